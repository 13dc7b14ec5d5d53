"""What a fit says to a person: where, in how many epochs, and its verdict at the end."""

import warnings
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from deep import Classifier, ResNet
from deep import loader as images
from fits import Regressor, loader, trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from lightning_lyapunov import LyapunovMonitor, LyapunovSpectrumCallback
from lightning_lyapunov.reading.verdict import SIGNS
from lightning_lyapunov.reading.words import when
from lightning_lyapunov.training.depth import DepthSpectrumCallback

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*num_workers.*", "ignore:.*log_every_n_steps.*", "ignore:.*LeafSpec.*", "ignore:.*familiarity is.*"
)


def fitted(kind: type[Any], **options: Any) -> Any:
    ours = kind(figures=False, **options)
    model, data = (Classifier(ResNet()), images()) if kind is DepthSpectrumCallback else (Regressor(), loader())
    trainer(ours, max_epochs=2).fit(model, data, data)
    return ours


@pytest.mark.parametrize("kind", [LyapunovSpectrumCallback, DepthSpectrumCallback])
def test_the_last_word_of_a_fit_is_its_verdict(
    kind: type[Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level("INFO"):
        said = fitted(kind).verdict
    ours = [record.getMessage() for record in caplog.records if record.name == "lightning_lyapunov"]
    assert ours[-1].startswith(f"{kind.__name__}: {SIGNS[said.word]} {said.word}: {said.text}")
    assert sum(" ".join((SIGNS[said.word], said.word)) in text for text in ours) == 1
    assert said.word == "healthy" or ours[-1].endswith(said.advice)

    caplog.clear()
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    with caplog.at_level("INFO"):
        fitted(kind)
    assert not [record for record in caplog.records if "✓" in record.getMessage()]


def test_a_monitor_says_it_when_it_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    layer = nn.LSTM(3, 6, batch_first=True)
    with caplog.at_level("INFO"), LyapunovMonitor(layer, scorer=None, max_overhead=None) as monitor:
        with monitor.record():
            layer(torch.randn(4, 20, 3))
        monitor.measure(0)
    assert monitor.verdict is not None
    assert caplog.messages[-1].startswith(f"LyapunovMonitor: {monitor.verdict.sign} {monitor.verdict}")


def test_a_warning_is_at_the_users_line() -> None:
    """That of the call of ``fit``: neither ours nor Lightning's."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(LyapunovSpectrumCallback("nowhere"), max_epochs=1).fit(Regressor(), loader(), loader())
    (ours,) = [warning for warning in caught if str(warning.message).startswith("LyapunovSpectrumCallback")]
    assert ours.filename == __file__


@pytest.mark.parametrize("every", [1, 2, 5])
def test_epochs_are_counted_one_way(every: int) -> None:
    """Two are done at the end, whether that is measured in the second validation or when training is over."""
    ours = LyapunovSpectrumCallback(scorer=None, figures=False, max_overhead=None, every_n_epochs=every)
    told: list[str] = []

    class Listening(pl.Callback):
        def on_lyapunov_measurement(self, trainer: pl.Trainer, callback: Any) -> None:
            told.append(when(callback.history[-1]))

    trainer(ours, Listening(), max_epochs=2).fit(Regressor(), loader(), loader())
    assert when(ours.history[-1]) == "epoch 2"
    assert told[:2] == ["before the first update", "epoch 1"]
