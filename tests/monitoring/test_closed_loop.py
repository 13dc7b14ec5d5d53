"""A forecaster fed with its own forecasts, measured while it trains.

Oracles: maps whose exponent is known; the measurement by hand; the same fit without it.
"""

import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from fits import Recorder, trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_lyapunov import LyapunovEarlyStopping, LyapunovMonitor, LyapunovSpectrumCallback, lyapunov_spectrum
from lightning_lyapunov.monitoring import closed_loop
from lightning_lyapunov.monitoring.budget import Budget
from lightning_lyapunov.monitoring.clock import Clock
from lightning_lyapunov.monitoring.closed_loop import FEWEST_STEPS, STEPS, ClosedLoop
from lightning_lyapunov.monitoring.lyapunov_session import LyapunovSession
from lightning_lyapunov.monitoring.notices import Notices
from lightning_lyapunov.monitoring.options import Options
from lightning_lyapunov.monitoring.ranks import Ranks
from lightning_lyapunov.reading.history import History

ALL: dict[str, Any] = {"max_overhead": None, "scorer": None, "figures": False}
KEYS = ("lyapunov/closed_loop_max", "lyapunov/closed_loop_error")


class Forecaster(pl.LightningModule):
    """A GRU that forecasts the next sample; dropout and batch norm show whether its mode is left alone."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(1), nn.Dropout(0.2)
        self.gru, self.head = nn.GRU(1, 8, batch_first=True), nn.Linear(8, 1)
        self.seen: list[tuple[bool, bool, bool]] = []  # of each time the loop was closed

    def forward(self, samples: Tensor) -> Tensor:
        return self.head(self.drop(self.gru(self.norm(samples.mT).mT)[0]))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return (self(batch[0][:, :-1]) - batch[0][:, 1:]).square().mean()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.training_step(batch, batch_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)

    def alone(self) -> tuple[Callable[[None, Tensor], Tensor], Tensor]:
        """The map and its states, ``(8, 8)``; it draws, which nobody is to notice."""
        in_training = self.training or self.drop.training
        self.seen.append((in_training, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        torch.rand(1)
        state = torch.rand(8, 8, generator=torch.Generator().manual_seed(0)) - 0.5

        def step(_: None, h: Tensor) -> Tensor:
            return self.gru(self.norm(self.head(h)).unsqueeze(1), h.unsqueeze(0))[1][0]

        return step, state


def waves(rows: int = 16) -> DataLoader:
    phase = torch.arange(rows).unsqueeze(1) + 0.7 * torch.arange(13)
    return DataLoader(TensorDataset(phase.sin().unsqueeze(-1)), batch_size=8)


def fit(model: Forecaster, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    fitted = trainer(*callbacks, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted.fit(model, waves(), waves())
    return fitted


def loop(closing: Any, share: float | None = None, model: nn.Module | None = None) -> tuple[ClosedLoop, list[str]]:
    said: list[str] = []
    return ClosedLoop(model or Forecaster(), closing, Budget(share), lambda text, **_: said.append(text)), said


def always(seconds: float) -> bool:
    return True


# ---------------------------------------------------------------- what it is


def test_a_spiral_shrinks_at_its_known_rate() -> None:
    """Oracle: a rotation scaled by g has ln g at every step."""
    turn = 0.9 * torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
    start = torch.randn(4, 2, dtype=torch.float64)
    found = loop(lambda _: (lambda _, h: h @ turn, start))[0].exponent(always)
    assert found is not None and found[0] == pytest.approx(math.log(0.9), abs=1e-9)


def test_the_henon_map_within_its_bar() -> None:
    """Oracle: 0.4192 (published)."""

    def henon(_: None, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return 1 - 1.4 * state[0] ** 2 + state[1], 0.3 * state[0]

    start = 0.1 * torch.rand(8, 1, dtype=torch.float64), torch.zeros(8, 1, dtype=torch.float64)
    found = loop(lambda _: (henon, start))[0].exponent(always)
    assert found is not None and 0 < found[1] < 0.03 and abs(found[0] - 0.4192) < 1.5 * found[1]


def test_the_model_is_measured_in_peace_and_left_as_it_was() -> None:
    model = Forecaster()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = torch.get_rng_state()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loop("alone", model=model)[0].exponent(always) is not None
    assert model.seen == [(False, False, False)]
    assert model.training and model.drop.training and all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_states_of_an_inference_are_taken() -> None:
    with torch.inference_mode():
        start = torch.rand(4, 2)
    found = loop(lambda _: (lambda _, h: 0.5 * h, start))[0].exponent(always)
    assert found is not None and found[0] == pytest.approx(math.log(0.5), abs=1e-6)


# ---------------------------------------------------------------- what it costs


@pytest.fixture
def steps_of(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of each measurement."""
    counts: list[int] = []

    def counted(*args: Any, steps: int, **options: Any) -> Any:
        counts.append(steps)
        return lyapunov_spectrum(*args, steps=steps, **options)

    monkeypatch.setattr(closed_loop, "lyapunov_spectrum", counted)
    return counts


def test_it_is_charged_and_a_pilot_comes_first(steps_of: list[int]) -> None:
    watched, _ = loop("alone", share=0.03)
    assert watched.exponent(always) is not None and steps_of == [8, 8, 32, STEPS]
    spent = watched._budget.by_kind["measuring"]
    assert spent > 0 and watched._budget.by_kind["imports"] > 0  # the first time loads what it needs
    assert watched.exponent(always) is not None and steps_of == [8, 8, 32, STEPS, STEPS]
    assert watched._budget.by_kind["measuring"] > spent


def test_without_a_bound_there_is_no_pilot(steps_of: list[int]) -> None:
    assert loop("alone")[0].exponent(always) is not None and steps_of == [STEPS]


@pytest.mark.parametrize(("share", "steps"), [(1.0, STEPS), (0.6, STEPS // 2), (0.3, FEWEST_STEPS), (0.2, None)])
def test_where_there_is_less_room_it_is_of_fewer_steps_or_not_made(
    steps_of: list[int], share: float, steps: int | None
) -> None:
    watched, said = loop("alone", share=0.03)
    watched._begin, watched._per_step, watched._is_known = 0.1, 1e-3, True
    found = watched.exponent(lambda seconds: seconds <= 0.1 + share * 1e-3 * STEPS)
    assert (found is None) == (steps is None) and steps_of == ([] if steps is None else [steps])
    assert [text for text in said if "no room for it, which takes about 0.23 s" in text] == said
    assert len(said) == (found is None)


def test_where_there_is_no_room_at_all_the_model_is_not_touched() -> None:
    model = Forecaster()
    watched, said = loop("alone", share=0.03, model=model)
    assert watched.exponent(lambda _: False) is None and not model.seen and "max_overhead has no room" in said[0]


# ---------------------------------------------------------------- failures


def broken(_: Any) -> Any:
    raise RuntimeError("no series yet")


@pytest.mark.parametrize(
    ("closing", "message"),
    [
        (broken, "RuntimeError: no series yet"),
        ("missing", "closed_loop must be a function, or the name of a method of Forecaster; got 'missing'"),
        ("norm", "TypeError: .*forward"),
        (lambda _: torch.zeros(1), r"closed_loop must return \(step, state\).*got Tensor"),
        (lambda _: (1, 2, 3), "got a tuple of 3"),
        (lambda _: (lambda _, h: h, [1, 2]), "state must be a floating tensor"),
        (lambda _: (lambda _, h: h, torch.ones(2, 1).bfloat16()), "must run in float32 or float64.*bfloat16"),
        (lambda _: (lambda _, h: 1e9 * h**3, torch.ones(2, 1)), "overflow|NaN|infinite"),
    ],
)
def test_whatever_goes_wrong_is_told(closing: Any, message: str) -> None:
    watched, said = loop(closing)
    assert watched.exponent(always) is None
    (text,) = said
    assert text.startswith("closed_loop could not be measured, the rest is logged without it: ")
    assert re.search(message, text), text


def test_options_take_a_function_a_name_or_nothing() -> None:
    for given in (None, "alone", broken):
        assert Options(closed_loop=given).closed_loop is given
    with pytest.raises(ValueError, match=r"closed_loop must be a function of the model.*got an object of int"):
        Options(closed_loop=3)  # type: ignore[arg-type]


# ---------------------------------------------------------------- in a fit


def test_a_fit_logs_the_exponent_by_hand_and_its_weights_are_bit_for_bit_the_same() -> None:
    def fitted(*callbacks: pl.Callback, **options: Any) -> tuple[Forecaster, pl.Trainer, Tensor]:
        torch.manual_seed(3)
        model = Forecaster()
        return model, fit(model, *callbacks, **options), torch.get_rng_state()

    ours, recorder = LyapunovSpectrumCallback(closed_loop="alone", **ALL), Recorder()
    plain, _, drawn = fitted()
    model, run, drawn_too = fitted(ours, logger=recorder)
    assert torch.equal(drawn_too, drawn)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name

    step, start = model.eval().alone()
    by_hand = lyapunov_spectrum(step, None, state=start, steps=STEPS, k=1)
    expected = float(by_hand.exponents[0]), float(by_hand.error[0])
    assert [float(run.callback_metrics[key]) for key in KEYS] == pytest.approx(expected, abs=1e-6)
    rows = [row for _, row in recorder.rows if "lyapunov/max" in row]
    assert len(rows) == len(ours.history) == 3 and all(key in row for row in rows for key in KEYS)
    assert len({row[KEYS[0]] for row in rows}) == 3  # of the weights as they were at each
    assert list(ours.history.values("closed_loop_max")) == [row[KEYS[0]] for row in rows]
    assert model.seen[:3] == [(False, False, False)] * 3


def test_a_failure_is_warned_of_once_a_fit_and_the_rest_is_logged() -> None:
    ours = LyapunovSpectrumCallback(closed_loop=broken, **ALL)
    fitted = trainer(ours)
    with pytest.warns(UserWarning) as record:
        fitted.fit(Forecaster(), waves(), waves())
    assert len([w for w in record if "closed_loop could not be measured" in str(w.message)]) == 1
    assert len(ours.history) == 3 and "lyapunov/max" in fitted.callback_metrics
    assert not any(key in fitted.callback_metrics for key in KEYS)


def test_the_monitor_of_a_plain_loop_takes_it_too() -> None:
    model, figures = Forecaster(), {}
    with LyapunovMonitor(model, to=lambda row, step: figures.update(row), closed_loop="alone", **ALL) as monitor:
        with monitor.record(), torch.no_grad():
            model(next(iter(waves()))[0])
        monitor.measure(0)
    assert set(KEYS) <= set(figures) and figures[KEYS[0]] == monitor.history[0].metrics["closed_loop_max"]


def test_stoppers_know_the_key() -> None:
    assert LyapunovEarlyStopping(monitor=KEYS[0]).monitor == KEYS[0]


def test_lightning_cli_takes_the_name_of_a_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jsonargparse")
    from lightning.pytorch.cli import LightningCLI

    monkeypatch.chdir(tmp_path)
    given = ["--trainer.callbacks+=LyapunovSpectrumCallback", "--trainer.callbacks.closed_loop=alone"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cli = LightningCLI(Forecaster, run=False, args=given)
    ours = cli.trainer.callbacks[0]
    assert isinstance(ours, LyapunovSpectrumCallback) and ours.closed_loop == "alone"


# ---------------------------------------------------------------- on several ranks


class First(Ranks):
    """Rank zero of two; what it says to the other is written down."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    def gather(self, thing: Any) -> list[Any]:
        self.said.append([thing])
        return [thing]

    def from_first(self, thing: Any) -> Any:
        self.said.append(thing)
        return thing


class Second(Ranks):
    """The other one, which hears all that was said in its turn, or fails where it would wait for ever."""

    rank = data_rank = 1

    def __init__(self, said: list[Any]) -> None:
        self.said = said

    def gather(self, thing: Any) -> list[Any]:
        return self.said.pop(0)

    from_first = gather


def test_rank_zero_measures_and_the_other_hears_of_it() -> None:
    first = First()
    measured, model = session_of(first)
    heard, other = session_of(Second(first.said))
    assert measured is not None and measured == heard and not first.said
    assert KEYS[0].removeprefix("lyapunov/") in measured and len(model.seen) > 0 and not other.seen


@pytest.mark.parametrize(("trained", "is_made"), [(1e4, True), (1.0, False)])
def test_it_is_made_after_a_measurement_where_the_budget_has_room(trained: float, is_made: bool) -> None:
    """3 % of 10,000 seconds of training are 300 for it, of which 3 are spent."""
    measured, model = session_of(Ranks(), share=0.03, trained=trained, spent=3.0)
    assert measured is not None and "max" in measured  # which is promised
    assert ("closed_loop_max" in measured) == ("closed_loop_error" in measured) == (len(model.seen) > 0) == is_made


def session_of(
    ranks: Ranks, share: float | None = None, trained: float = 0.0, spent: float = 0.0
) -> tuple[dict[str, float] | None, Forecaster]:
    """The figures of a measurement on this rank, and the model."""
    torch.manual_seed(0)
    told = {**ALL, "max_overhead": share}
    model, options, budget = Forecaster(), Options(closed_loop="alone", k=None, **told), Budget(share)
    clock, notices = Clock(lambda: budget.away), Notices("Rank", print, print)
    budget.charge(spent, "pictures")
    clock.trained = trained
    session = LyapunovSession(model, options, History("lyapunov"), budget, clock, notices, ranks)
    with session.record("training"), torch.no_grad():
        model(next(iter(waves()))[0])
    figures = session.measure(0, source="training", promised=True)
    session.close()
    return figures, model
