"""Since when nothing was measured, and why: from where it happens to the history, the checkpoint and the page."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from fits import Regressor, loader, trainer
from made import course, measured

from lightning_lyapunov import LyapunovMonitor, LyapunovSpectrumCallback, report
from lightning_lyapunov.monitoring.budget import Budget
from lightning_lyapunov.monitoring.lyapunov_session import LyapunovSession
from lightning_lyapunov.page import missed
from lightning_lyapunov.reading import History
from lightning_lyapunov.training.schedule import Schedule


class BreaksOff(pl.Callback):
    """Ends a fit in the middle of its second epoch, of four updates each."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == 6:
            raise RuntimeError("out of memory")


def test_a_fit_that_breaks_off_says_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_pictures", lambda *_: [])
    callback = LyapunovSpectrumCallback(k=2, report=str(tmp_path), max_overhead=None)
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer(callback, BreaksOff()).fit(Regressor(), loader(), loader())
    said = "Not measured since update 4 of 6: the next measurement was due after the next validation, and the fit ended"
    assert said in (tmp_path / "lyapunov.html").read_text("utf-8")


def test_what_could_not_be_measured_is_told_with_the_reason_until_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.GRU(3, 4, batch_first=True)
    monitor, whole = LyapunovMonitor(model, max_overhead=0.5, scorer=None), LyapunovSession._spectrum

    def measure(step: int) -> str:
        with monitor.record():
            model(torch.randn(4, 12, 3))
        monitor.measure(step, always=True)
        return missed(monitor.history)

    def fail(*_: Any) -> Any:
        raise ValueError("states overflow")

    assert measure(0) == ""
    monkeypatch.setattr(LyapunovSession, "_spectrum", fail)
    with pytest.warns(UserWarning, match="states overflow"):
        assert measure(5) == "Not measured since update 0 of 5: it could not be measured: states overflow."
    monkeypatch.setattr(LyapunovSession, "_spectrum", whole)
    assert measure(6) == ""
    monkeypatch.setattr(Budget, "choose", lambda *_, **__: None)
    assert measure(9) == "Not measured since update 6 of 9: max_overhead=0.5 left no room for it."
    monitor.close()


def test_a_checkpoint_remembers_it_and_the_next_measurement_ends_it() -> None:
    made = course(-0.1, -0.1)
    assert "missed" not in made.state_dict()
    made.missed = 188, "it could not be measured"
    again = History()
    assert again.load_state_dict(made.state_dict()) == [] and again.missed == made.missed
    again.append(measured(-0.1, step=200))
    assert again.missed is None
    made.begin()
    assert made.missed is None and made.earlier[-1].missed == (188, "it could not be measured")
    assert History().load_state_dict({**course(-0.1).state_dict(), "missed": ["x"]}) == []


@pytest.mark.parametrize(
    ("every", "source", "due"),
    [
        ((1, None), "validation", "after the next validation"),
        ((1, None), "training", "at the end of the epoch"),
        ((3, None), "validation", "after the next validation, from epoch 6 on (every_n_epochs=3)"),
        ((1, 100), "training", "at update 140 (every_n_train_steps=100)"),
    ],
)
def test_what_would_have_come_next_is_named(every: tuple[int, int | None], source: Any, due: str) -> None:
    """After 40 updates, in epoch 2 from 0, which people call the third."""
    schedule = Schedule(*every)
    schedule.source = source
    schedule.note(SimpleNamespace(global_step=40, current_epoch=2))
    assert schedule.what_is_next() == f"the next measurement was due {due}, and the fit ended before"
