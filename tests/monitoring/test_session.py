"""One fit, watched, without a Trainer: what is measured, charged, kept and said."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_lyapunov import lyapunov_spectrum
from lightning_lyapunov.monitoring.budget import Budget, Plan
from lightning_lyapunov.monitoring.clock import Clock
from lightning_lyapunov.monitoring.facts import Facts
from lightning_lyapunov.monitoring.layers import Layers
from lightning_lyapunov.monitoring.lyapunov_session import FLOOR, MOST, LyapunovSession
from lightning_lyapunov.monitoring.notices import Notices
from lightning_lyapunov.monitoring.options import Options
from lightning_lyapunov.monitoring.ranks import Ranks
from lightning_lyapunov.reading.history import History

ROWS, STEPS, HIDDEN = 6, 24, 5


class Watch:
    """A session with its parts, and what is said."""

    def __init__(self, model: nn.Module, ranks: Ranks | None = None, **options: Any) -> None:
        self.said: list[str] = []
        told = Options(**{"k": None, "max_overhead": None, "scorer": None, "figures": False, **options})
        self.history, self.budget = History(told.prefix), Budget(told.max_overhead)
        self.clock = Clock(lambda: self.budget.away)
        notices = Notices("Watch", self.said.append, self.said.append)
        self.session = LyapunovSession(model, told, self.history, self.budget, self.clock, notices, ranks or Ranks())
        self.model = model

    def see(self, x: Tensor, source: Any = "training") -> None:
        with self.session.record(source), torch.no_grad():
            self.model(x)

    def measure(self, step: int = 0, source: Any = "training", **told: Any) -> dict[str, float] | None:
        return self.session.measure(step, source=source, **told)


def layer(kind: type = nn.GRU, **options: Any) -> Any:
    torch.manual_seed(0)
    return kind(3, HIDDEN, batch_first=True, **options)


def batch(seed: int = 1) -> Tensor:
    """Rows first, but one step after another in memory, as recorded: products round by the layout."""
    return torch.randn(STEPS, ROWS, 3, generator=torch.Generator().manual_seed(seed)).transpose(0, 1)


def test_figures_are_those_of_the_spectrum_by_hand() -> None:
    model = layer(num_layers=2)
    watch = Watch(nn.ModuleDict({"rnn": model}))
    with watch.session.record("training"):
        model(batch())
    figures = watch.measure()
    expected = lyapunov_spectrum(model, batch())
    assert figures is not None and watch.session.spectrum is not None
    torch.testing.assert_close(watch.session.spectrum.exponents, expected.exponents, rtol=0, atol=1e-12)
    assert figures["max"] == pytest.approx(float(expected.exponents[0]), abs=1e-12)
    assert figures["gradient_gain"] == pytest.approx(expected.gain, abs=1e-12)
    for name, part in expected.layers.items():
        assert figures[f"rnn.{name}/max"] == pytest.approx(float(part.exponents[0]), abs=1e-12)
    assert figures["seconds"] == watch.budget.last_seconds > 0


def test_a_measurement_is_kept_with_where_it_comes_from() -> None:
    watch = Watch(layer(), num_sequences=4, num_steps=16)
    watch.see(batch(), "validation")
    watch.measure(7, "validation", epoch=2, facts=Facts(performance=0.25))
    (kept,) = watch.history
    assert (kept.step, kept.epoch, kept.source, kept.reached) == (7, 2, "validation", 0.25)
    assert (kept.sequences, kept.steps, kept.seen, kept.length) == (4, 16, ROWS, STEPS)
    assert kept.fewer and [kept.fewer in text for text in watch.said if "measured are" in text] == [True]


def test_inputs_of_the_source_asked_for_drive_it_and_else_what_there_is() -> None:
    model = layer()
    watch = Watch(model)
    watch.see(batch(1), "training")
    assert watch.session.has_recorded("training") and not watch.session.has_recorded("validation")
    for seed, source in ((1, "validation"), (2, "validation"), (1, "training")):
        if (seed, source) == (2, "validation"):
            watch.see(batch(2), "validation")
        watch.measure(source=source)
        expected = lyapunov_spectrum(model, batch(seed)).exponents
        assert watch.session.spectrum is not None
        torch.testing.assert_close(watch.session.spectrum.exponents, expected, rtol=0, atol=1e-12)
    assert [m.source for m in watch.history] == ["training", "validation", "training"]


def test_figures_are_finite_where_exponents_are_not() -> None:
    """Units that never fire: directions of -inf, no gradient at all and an endless horizon."""
    model = layer(nn.RNN, nonlinearity="relu")
    with torch.no_grad():
        model.bias_ih_l0.fill_(-100.0)
    watch = Watch(model)
    watch.see(batch())
    figures = watch.measure()
    assert figures is not None and all(map(math.isfinite, figures.values()))
    assert figures["max"] == FLOOR and figures["floored"] == HIDDEN and figures["gradient_gain"] == -MOST


def test_overhead_is_the_share_of_all_that_was_spent() -> None:
    watch = Watch(layer())
    watch.clock.trained = 50.0
    watch.budget.charge(2.0, "pictures")
    watch.see(batch())
    figures = watch.measure(0)
    assert figures is not None and "overhead" not in figures  # before any training there is nothing to compare with
    watch.see(batch())
    figures = watch.measure(10)
    assert figures is not None and figures["overhead"] == pytest.approx(watch.budget.spent / 50.0, rel=1e-6)
    assert figures["overhead"] > 0.04 and watch.budget.by_kind["recording"] > 0


def test_recording_is_charged_once() -> None:
    watch = Watch(layer())
    before = watch.budget.by_kind.get("recording", 0.0)  # for getting ready
    watch.see(batch())
    watch.measure()
    seconds = watch.budget.by_kind["recording"]
    assert seconds - before == pytest.approx(watch.session.layers.seconds)
    assert watch.session.layers.seconds > 0
    watch.measure(1)
    watch.session.close()
    assert watch.budget.by_kind["recording"] == seconds


# ---------------------------------------------------------------- the budget


def test_before_anything_is_known_a_pilot_is_measured_and_then_what_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plans: list[Plan] = []
    spectrum = Layers.spectrum

    def noted(layers: Layers, ranks: Any, preferred: Any, plan: Plan, *args: Any, **options: Any) -> Any:
        plans.append(plan)
        return spectrum(layers, ranks, preferred, plan, *args, **options)

    monkeypatch.setattr(Layers, "spectrum", noted)
    watch = Watch(layer(), max_overhead=0.5)
    watch.clock.trained = 1000.0
    watch.see(batch())
    watch.measure(promised=True)
    whole = Plan(ROWS, STEPS, HIDDEN)
    assert len(plans) == 2 and plans[0].work < plans[1].work and plans[1] == whole
    watch.measure(1)
    assert plans[2:] == [whole]


def test_what_there_is_no_room_for_is_skipped_unless_it_is_promised() -> None:
    watch = Watch(layer(), max_overhead=0.01)
    watch.see(batch())
    watch.budget.note(Plan(16, 64, HIDDEN), 30.0)
    assert watch.measure(5) is None and watch.session.was_skipped
    assert len(watch.history) == 0 and watch.session.spectrum is None
    assert watch.measure(6, promised=True) is not None and not watch.session.was_skipped
    assert [m.step for m in watch.history] == [6] and watch.history[0].fewer
    assert len([text for text in watch.said if "to stay within 1%" in text]) == 1
    assert len([text for text in watch.said if "a measurement that is always made" in text]) == 1


# ---------------------------------------------------------------- failures


def test_states_that_overflow_are_told_once_and_nothing_is_kept() -> None:
    model = layer()
    watch = Watch(model)
    with torch.no_grad():
        model.weight_hh_l0.fill_(math.nan)
    for step in range(2):
        watch.see(batch())
        assert watch.measure(step) is None and not watch.session.was_skipped
    assert len(watch.history) == 0 and watch.session.spectrum is None
    assert len([text for text in watch.said if "could not be measured, training goes on without it" in text]) == 1


def test_a_scorer_that_fails_costs_the_scores_alone() -> None:
    watch = Watch(layer(), scorer="nowhere/to/be/found.safetensors")
    watch.see(batch())
    figures = watch.measure()
    assert figures is not None and not any(name.startswith("aelle/") for name in figures)
    assert any("nowhere/to/be/found.safetensors" in text for text in watch.said)


def test_a_logger_that_refuses_is_told_of_once_by_its_kind() -> None:
    watch = Watch(layer())
    for _ in range(2):
        watch.session.warn_of_logger(Path("a"), OSError("disk full"))
    (text,) = watch.said
    assert text.endswith("Path refused the measurement (OSError: disk full). (docs/warnings.md#logger-refused)")


# ---------------------------------------------------------------- ranks


class Second(Ranks):
    """The second of two ranks, who hears what the first one says, which is what it would say itself."""

    rank = 1


def test_another_rank_than_the_first_keeps_and_scores_nothing() -> None:
    watch = Watch(layer(), Second(), scorer="general")
    watch.see(batch())
    watch.measure()
    assert watch.session.spectrum is None or len(watch.history) == 0
    assert watch.session.scoring.ready is None and watch.session.scoring.score is None


# ---------------------------------------------------------------- the end


def test_closing_takes_the_hooks_off_and_twice_does_nothing(tmp_path: Path) -> None:
    model = layer()
    watch = Watch(model)
    watch.see(batch())
    assert watch.session.write_report(str(tmp_path), {}) is None  # of nothing
    watch.session.close()
    watch.session.close()
    assert watch.session.is_closed and not model._forward_hooks


def test_the_page_is_named_by_the_prefix(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for prefix, name in (("lyapunov", "lyapunov.html"), ("encoder", "encoder.html")):
        watch = Watch(layer(), prefix=prefix)
        watch.see(batch())
        watch.measure()
        path = watch.session.write_report(str(tmp_path), {"k": None})
        assert path == tmp_path / name and path.exists() and f"Watch: wrote {path}" in watch.said
