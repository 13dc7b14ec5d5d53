"""Whoever measures on one line: what it was told beyond its defaults, before, in and after a fit, and pickled."""

import pickle
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from fits import Regressor, loader, trainer
from made import course
from torch import nn

from lightning_lyapunov import (
    AeLLEScorer,
    DepthMonitor,
    DepthSpectrumCallback,
    LyapunovConditioning,
    LyapunovEarlyStopping,
    LyapunovMonitor,
    LyapunovSpectrumCallback,
    lyapunov_spectrum,
)

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    ("made", "shown"),
    [
        (lambda: LyapunovSpectrumCallback(), "LyapunovSpectrumCallback()"),
        (lambda: LyapunovSpectrumCallback(k=32, num_steps=64, metrics="default"), "LyapunovSpectrumCallback()"),
        (lambda: LyapunovSpectrumCallback("rnn", k=None), "LyapunovSpectrumCallback(module='rnn', k=None)"),
        (
            lambda: LyapunovSpectrumCallback(performance="acc", performance_range=(0.1, 1.0), scorer=None),
            "LyapunovSpectrumCallback(scorer=None, performance='acc', performance_range=(0.1, 1.0))",
        ),
        (lambda: DepthSpectrumCallback(["a", "b"], k=3), "DepthSpectrumCallback(module=['a', 'b'], k=3)"),
        (lambda: LyapunovEarlyStopping("chaotic"), "LyapunovEarlyStopping(conditions=['chaotic'])"),
        (
            lambda: LyapunovEarlyStopping(monitor="lyapunov/max", min_delta=0.1),
            "LyapunovEarlyStopping(monitor='lyapunov/max', min_delta=0.1)",
        ),
        (lambda: LyapunovConditioning(lag=40.0), "LyapunovConditioning(lag=40.0)"),
        (lambda: LyapunovMonitor(nn.LSTM(3, 4), k=3), "LyapunovMonitor(k=3)"),
        (lambda: DepthMonitor(nn.Sequential(nn.Linear(2, 2)), "0", k=3), "DepthMonitor(module='0', k=3)"),
    ],
)
def test_only_what_differs_from_the_defaults_is_told(made: Any, shown: str) -> None:
    assert repr(made()) == shown


def feed(module: nn.Module) -> None:
    """A way to close the loop."""


def test_large_arguments_stay_short() -> None:
    spectrum = lyapunov_spectrum(nn.GRU(2, 8), torch.randn(20, 2, 2))
    for reference in (course(-0.1, -0.2), spectrum, [(0, torch.randn(300)), (10, torch.randn(300))]):
        callback = LyapunovSpectrumCallback(
            closed_loop=feed, scorer=AeLLEScorer.from_pretrained(), reference=reference, report="d" * 500
        )
        text = repr(callback)
        assert "closed_loop=feed, " in text and "scorer=AeLLEScorer(" in text and "0x" not in text
        assert len(text) < 500 and "\n" not in text


def test_one_that_is_half_made_can_be_shown() -> None:
    """As a debugger shows it while its constructor runs, or has raised."""
    for kind in (LyapunovSpectrumCallback, DepthSpectrumCallback, LyapunovEarlyStopping, LyapunovConditioning):
        assert repr(kind.__new__(kind)) == f"{kind.__name__}()"


class Mine(LyapunovSpectrumCallback):
    """A subclass with an argument of its own."""

    def __init__(self, colour: str = "red") -> None:
        super().__init__(k=2, max_overhead=None)
        self.colour = colour


class Shown(pl.Callback):
    """Shows the others during a fit."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.current_epoch == 0:
            self.seen = [repr(callback) for callback in trainer.callbacks]  # type: ignore[attr-defined]


def test_after_a_fit_it_says_how_far_the_run_has_come() -> None:
    callback, shown = Mine(), Shown()
    stopper = LyapunovEarlyStopping(monitor="lyapunov/max", patience=1, min_delta=100.0)
    torch.manual_seed(0)
    fit = trainer(callback, stopper, shown)
    fit.fit(Regressor(), loader(), loader())
    begun = "Mine(k=2, max_overhead=None) [1 measurement, the last after update 0: "
    assert any(text.startswith(begun) for text in shown.seen)
    count = f"[{len(callback.history)} measurements, the last after update {fit.global_step}: "
    verdict = callback.verdict
    assert verdict is not None
    assert repr(callback) == f"Mine(k=2, max_overhead=None) {count}{verdict.sign} {verdict.word}]"
    assert repr(pickle.loads(pickle.dumps(callback))) == repr(callback)
    assert stopper.reason is not None and repr(stopper).endswith(f" [stopped: {stopper.reason}]")
    assert repr(pickle.loads(pickle.dumps(stopper))) == repr(stopper)
    assert callback.score is not None
    text = repr(callback.score)
    assert text.startswith(f"AeLLEScore(performance {callback.score.performance:.3g}, 80 % interval ")
    assert f"familiarity {callback.score.familiarity:.2f}" in text and "tensor" not in text
    assert repr(AeLLEScorer.from_pretrained()).startswith("AeLLEScorer(fitted on 5,763 networks (rnn, ")
