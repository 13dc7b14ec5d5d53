"""A monitor in loops of one's own: what it says against the same by hand, and what it leaves untouched."""

import copy
import io
import math
import os
import pickle
import random
import warnings
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from ranks import on_ranks
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tracked import wandb_offline as wandb_offline
from tracked import wandb_run

from lightning_lyapunov import AeLLEScore, AeLLEScorer, LyapunovMonitor, LyapunovSpectrum, lyapunov_spectrum
from lightning_lyapunov.monitoring import budget as budget_module
from lightning_lyapunov.monitoring import clock as clock_module
from lightning_lyapunov.monitoring.layers import Layers
from lightning_lyapunov.monitoring.lyapunov_session import LyapunovSession
from lightning_lyapunov.names import LOGGED, MEASURED, key_of

ROWS, STEPS, HIDDEN = 8, 20, 5


class Network(nn.Module):
    """Predicts the mean of a sequence, with dropout in front of two layers."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.rnn = nn.LSTM(3, HIDDEN, num_layers=2, batch_first=True, dropout=dropout)
        self.out = nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(self.drop(x))[0][:, -1])


def batch(seed: int = 1, rows: int = ROWS, steps: int = STEPS) -> Tensor:
    return torch.randn(rows, steps, 3, generator=torch.Generator().manual_seed(seed))


def seeded(make: Callable[[], Any] = Network) -> Any:
    torch.manual_seed(0)
    return make()


def whole(model: nn.Module, module: Any = None, **options: Any) -> LyapunovMonitor:
    """A monitor without a bound, of all exponents, that makes no predictions."""
    plain = {"k": None, "max_overhead": None, "scorer": None, "figures": False}
    return LyapunovMonitor(model, module, **{**plain, **options})


def watched(monitor: LyapunovMonitor, model: nn.Module, *batches: Tensor, step: int = 0, **told: Any) -> Any:
    """The spectrum of what a model does with batches."""
    for x in batches:
        with monitor.record():
            model(x)
    return monitor.measure(step, **told)


def by_hand(layer: nn.Module, x: Tensor, **options: Any) -> LyapunovSpectrum:
    """Of the same numbers as recorded: one step after another in memory, as products round by the layout."""
    return lyapunov_spectrum(layer, x.transpose(0, 1).contiguous().transpose(0, 1), **options)


def assert_same(spectrum: LyapunovSpectrum | None, expected: LyapunovSpectrum, tolerance: float = 1e-12) -> None:
    assert spectrum is not None
    assert (spectrum.sequences, spectrum.steps) == (expected.sequences, expected.steps)
    for one, other in (
        (spectrum.exponents, expected.exponents),
        (spectrum.error, expected.error),
        (spectrum.log_singular_values, expected.log_singular_values),
        (torch.tensor(spectrum.gain), torch.tensor(expected.gain)),
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance, equal_nan=True)


def told(record: Any) -> list[str]:
    return [str(w.message) for w in record if str(w.message).startswith("LyapunovMonitor")]


# ---------------------------------------------------------------- the spectrum


def test_it_is_that_of_the_layer_along_its_inputs() -> None:
    model = seeded()
    monitor = whole(model)
    for step in range(3):
        spectrum = watched(monitor, model, batch(step), step=step)
        assert_same(spectrum, by_hand(model.rnn, batch(step)))
        assert spectrum is monitor.spectrum
        with torch.no_grad():
            model.rnn.weight_hh_l0.mul_(1.5)  # and next time it is that of the new weights
    assert [m.step for m in monitor.history] == [0, 1, 2]
    assert monitor.history[0].metrics["max"] != monitor.history[-1].metrics["max"]


def test_several_records_before_a_measurement_count_together_and_none_after_it() -> None:
    model = seeded()
    monitor = whole(model)
    spectrum = watched(monitor, model, batch(1), batch(2))
    assert_same(spectrum, by_hand(model.rnn, torch.cat([batch(1), batch(2)])))
    spectrum = watched(monitor, model, batch(3), step=1)
    assert_same(spectrum, by_hand(model.rnn, batch(3)))


def test_of_more_records_than_it_takes_the_latest_count() -> None:
    model = seeded()
    monitor = whole(model, num_sequences=ROWS)
    spectrum = watched(monitor, model, batch(1), batch(2), batch(3))
    assert_same(spectrum, by_hand(model.rnn, batch(3)))
    with monitor.record("validation"):
        model(batch(4))
    with monitor.record("validation"):
        model(batch(5))
    assert_same(monitor.measure(1), by_hand(model.rnn, batch(4)))  # of validation the first


def test_without_another_record_the_same_inputs_drive_the_new_weights() -> None:
    model = seeded()
    monitor = whole(model)
    watched(monitor, model, batch())
    with torch.no_grad():
        model.rnn.weight_hh_l0.mul_(1.5)
    assert_same(monitor.measure(1), by_hand(model.rnn, batch()))


def test_what_is_not_recorded_does_not_count() -> None:
    model = seeded()
    monitor = whole(model)
    model(batch(1))
    spectrum = watched(monitor, model, batch(2))
    model(batch(3))
    assert_same(spectrum, by_hand(model.rnn, batch(2)))
    assert_same(monitor.measure(1), by_hand(model.rnn, batch(2)))


def test_a_measurement_knows_whose_inputs_drove_it() -> None:
    """The latest record says which, also where there were others before it."""
    model = seeded()
    monitor = whole(model)
    watched(monitor, model, batch(1))
    for source, seed in (("training", 2), ("validation", 3)):
        with monitor.record(source):
            model(batch(seed))
    assert_same(monitor.measure(1), by_hand(model.rnn, batch(3)))
    assert [m.source for m in monitor.history] == ["training", "validation"]


@pytest.mark.parametrize("mode", ["train", "no_grad", "inference_mode", "compiled"])
def test_a_pass_of_any_kind_can_be_recorded(mode: str) -> None:
    model = seeded()
    monitor = whole(torch.compile(model, backend="eager") if mode == "compiled" else model)
    kinds: dict[str, Any] = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
    with kinds.get(mode, torch.enable_grad)():
        spectrum = watched(monitor, model, batch())
    assert_same(spectrum, by_hand(model.rnn, batch()))


def test_a_cell_that_an_environment_resets_has_a_sequence_for_each_life() -> None:
    """Oracle: the lives as sequences of their own, each from zeros."""
    torch.manual_seed(0)
    cell, x = nn.GRUCell(3, HIDDEN), torch.randn(24, 2, 3)
    done = torch.zeros(24, 2, 1)
    done[9, 0] = 1  # the first row ends after ten steps, the other one never
    monitor = whole(cell, num_sequences=3)
    h = torch.zeros(2, HIDDEN)
    with monitor.record(), torch.no_grad():
        for t in range(24):
            h = cell(x[t], h) * (1 - done[t])
    spectrum = monitor.measure(0)
    assert spectrum is not None and spectrum.sequences == 3
    lives = nn.utils.rnn.pack_sequence([x[:10, 0], x[:, 1], x[10:, 0]], enforce_sorted=False)
    layer = nn.GRU(3, HIDDEN)
    layer.load_state_dict({f"{name}_l0": weight for name, weight in cell.state_dict().items()})
    torch.testing.assert_close(spectrum.exponents, lyapunov_spectrum(layer, lives).exponents, rtol=0, atol=1e-10)


# ---------------------------------------------------------------- no trace


def train(monitor_of: Callable[[nn.Module], LyapunovMonitor] | None, tmp_path: Path | None = None) -> dict[str, Any]:
    """What a run of five updates leaves: the third part of the model is in eval mode, one weight is frozen."""
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(0)
    model = Network(dropout=0.3)
    model.out.eval()
    model.rnn.bias_hh_l0.requires_grad_(False)
    monitor = None if monitor_of is None else monitor_of(model)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
    losses, gradients = [], []
    for step in range(5):
        x = torch.randn(ROWS, STEPS, 3)
        if monitor is None:
            loss = (model(x) - x.mean()).square().mean()
        else:
            with monitor.record():
                loss = (model(x) - x.mean()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if monitor is not None:  # between the backward pass and the update, where gradients lie about
            assert monitor.measure(step, always=True) is not None
        optimizer.step()
        losses.append(loss.detach())
        gradients.append([None if p.grad is None else p.grad.clone() for p in model.parameters()])
    modes = [part.training for part in model.modules()]
    attributes = [sorted(vars(part)) for part in model.modules()]
    if monitor is not None:
        assert list(pickle.loads(pickle.dumps(model)).state_dict()) == list(copy.deepcopy(model).state_dict())
        monitor.report(tmp_path or "unused")
        monitor.close()
    return {
        "losses": losses,
        "gradients": gradients,
        "state": dict(model.state_dict()),
        "optimizer": optimizer.state_dict(),
        "modes": modes,
        "attributes": attributes,
        "frozen": [p.requires_grad for p in model.parameters()],
        "hooks": [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules()],
        "random": [torch.rand(1), np.random.rand(), random.random()],
        "grad mode": torch.is_grad_enabled(),
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def test_a_run_is_bit_for_bit_what_it_is_without(tmp_path: Path) -> None:
    """With scores, pictures, a report and dropout."""
    pytest.importorskip("matplotlib")
    writer = SummaryWriter(str(tmp_path))
    with_monitor = train(lambda model: LyapunovMonitor(model, to=writer), tmp_path)
    without = train(None)
    writer.close()
    assert without["hooks"] == [0] * 4 and without["modes"] == [True, True, True, False]
    differing = [what for what in without if not same(with_monitor[what], without[what])]
    assert differing == []


# ---------------------------------------------------------------- where figures go


def test_a_summary_writer_holds_figures_histogram_and_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    model, writer = seeded(), SummaryWriter(str(tmp_path))
    with whole(model, to=writer, metrics="all", figures=True) as monitor:
        for step in (0, 10, 20):
            watched(monitor, model, batch(), step=step, epoch=step // 10)
    writer.close()
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0, "images": 0, "histograms": 0}).Reload()
    for name in {*MEASURED} - {"overhead"} | {"rnn.l1/max"}:
        points = {e.step: e.value for e in events.Scalars(key_of(name))}
        assert points == {m.step: pytest.approx(m.metrics[name], rel=1e-5, abs=1e-6) for m in monitor.history}, name
    assert [e.step for e in events.Scalars("lyapunov/overhead")] == [10, 20]
    assert [(e.step, e.value) for e in events.Scalars("epoch")] == [(0, 0.0), (10, 1.0), (20, 2.0)]
    histograms = events.Histograms("lyapunov/spectrum")
    assert [h.step for h in histograms] == [0, 10, 20]
    assert {h.histogram_value.num for h in histograms} == {2 * 2 * HIDDEN}
    assert [e.step for e in events.Images("lyapunov_figures/spectrum")] == [0, 10, 20]  # the last as it is closed


def test_charts_are_laid_out_for_what_is_written(tmp_path: Path) -> None:
    """TensorBoard shows a chart without points for each key that never comes."""
    laid: list[Any] = []
    writer = SummaryWriter(str(tmp_path))
    writer.add_custom_scalars = laid.append  # type: ignore[method-assign, assignment]
    whole(seeded(), to=writer, metrics=["max"]).close()
    writer.close()
    (layout,) = laid
    assert [tags for page in layout.values() for _, tags in page.values()] == [["^lyapunov/max$"]]


@pytest.mark.parametrize("users_steps", ["counted by the run", "told"])
def test_a_run_of_wandb_keeps_all_that_the_user_logs_and_each_measurement(
    tmp_path: Path,
    wandb_offline: dict[str, Any],
    users_steps: str,
) -> None:
    """A run drops what is logged for a row that has ended, which a call of ours would otherwise end."""
    import wandb

    run = wandb.init(dir=str(tmp_path), settings=wandb_offline["settings"])
    model = seeded()
    with whole(model, to=run if users_steps == "told" else wandb) as monitor:
        for step in range(5):
            at = {"step": 10 * step} if users_steps == "told" else {}
            logs = step in (1, 2, 4)  # at the others the user logs nothing
            if logs:
                run.log({"loss": step}, **at, commit=False)
            watched(monitor, model, batch(), step=step)
            if logs:
                run.log({"accuracy": -step}, **at)
    run.finish()
    wandb.teardown()
    rows, kinds = wandb_run(tmp_path)
    assert [row["loss"] for row in rows if "loss" in row] == [1, 2, 4]
    assert [row["accuracy"] for row in rows if "accuracy" in row] == [-1, -2, -4]
    if users_steps == "told":
        assert [row["_step"] for row in rows if "loss" in row and "accuracy" in row] == [10, 20, 40]
    ours = [row for row in rows if "lyapunov/max" in row]
    assert [row["trainer/global_step"] for row in ours] == [0, 1, 2, 3, 4]
    assert [row["lyapunov/max"] for row in ours] == pytest.approx(list(monitor.history.values("max")))
    assert all(sum(row["lyapunov/spectrum"]["values"]) == 2 * 2 * HIDDEN for row in ours)
    assert kinds.count("artifact") == 1  # the table of measurements


def test_a_function_is_called_with_the_figures_and_the_step() -> None:
    calls: list[tuple[dict[str, float], int]] = []
    model = seeded()
    with whole(model, to=lambda figures, step: calls.append((figures, step))) as monitor:
        watched(monitor, model, batch(), step=3)
    assert [step for _, step in calls] == [3]
    expected = {key_of(name) for name in LOGGED if not name.startswith("aelle/")}  # there is no scorer
    assert set(calls[0][0]) == expected and "epoch" not in calls[0][0]
    assert calls[0][0]["lyapunov/max"] == float(monitor.spectrum.exponents[0])  # type: ignore[union-attr]


def test_a_writer_that_fails_is_told_of_once_and_the_others_are_served() -> None:
    calls: list[int] = []

    def down(figures: dict[str, float], step: int) -> None:
        raise ConnectionError("no route to the tracker")

    model = seeded()
    monitor = whole(model, to=[down, lambda _, step: calls.append(step)])
    with pytest.warns(UserWarning, match="no route to the tracker") as record:
        for step in range(3):
            assert watched(monitor, model, batch(), step=step) is not None
    assert len(told(record)) == 1 and calls == [0, 1, 2]


# ---------------------------------------------------------------- what it means


def test_a_network_with_strong_weights_is_said_to_be_chaotic(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = nn.RNN(3, 32, batch_first=True)
    nn.init.normal_(model.weight_hh_l0, std=3 / 32**0.5)
    monitor = whole(model, num_steps=128)
    assert [finding.state for finding in monitor.findings] == ["evidence"]  # nothing was measured yet
    with caplog.at_level("INFO", "lightning_lyapunov"):
        watched(monitor, model, batch(steps=128))
    assert "exploding" in {finding.state for finding in monitor.findings}
    assert any("0 updates: " in text and "chao" in text for text in caplog.messages)


def test_the_page_about_the_run_tells_its_settings_and_measurements(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    model = seeded()
    monitor = whole(model, "rnn", num_sequences=7)
    assert monitor.report(tmp_path) is None and not list(tmp_path.iterdir())  # nothing to tell yet
    watched(monitor, model, batch())
    path = monitor.report(tmp_path / "page")
    assert path == tmp_path / "page" / "lyapunov.html"
    text = path.read_text(encoding="utf-8")
    assert "Lyapunov spectrum of Network" in text and "num_sequences" in text and "<img" in text
    assert "performance_range" in text and ">performance<" not in text
    monitor.close()
    assert monitor.report(tmp_path / "again") is not None


def test_a_report_that_cannot_be_written_warns(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "file").touch()
    model = seeded()
    monitor = whole(model)
    watched(monitor, model, batch())
    with pytest.warns(UserWarning, match="the report could not be written"):
        assert monitor.report(tmp_path / "file") is None


class Attentive(AeLLEScorer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []

    def score(self, spectrum: Any, **context: Any) -> AeLLEScore:
        self.heard.append(context)
        return AeLLEScore(0.5, 0.4, 0.6, 0.1, 0.9, 0.75, 0.9, torch.zeros(4), 0.5)


def test_a_metric_of_another_unit_is_not_taken_for_a_skill() -> None:
    """An accuracy in per cent, of which the range is that of a share."""
    model = nn.RNN(3, 8, batch_first=True)
    monitor = whole(model, scorer="general", performance_range=(0.25, 1.0))
    with pytest.warns(UserWarning, match=r"performance is 25, far beyond the best of .*Give the range in the unit"):
        with monitor.record():
            model(batch())
        monitor.measure(40, performance=25.0)
    assert math.isnan(monitor.history[-1].skill)
    with monitor.record():
        model(batch())
    monitor.measure(80, performance=1.2)
    assert monitor.history[-1].skill == 1.0


def test_the_scorer_is_told_the_skill_that_the_metric_amounts_to() -> None:
    """Of a loss that is 2 by chance and 0.5 at best: 1.25 is half of the way."""
    scorer, model = Attentive(), seeded()
    monitor = whole(model, scorer=scorer, performance_range=(2.0, 0.5))
    assert monitor.score is None
    for step, loss in enumerate([None, 1.25, 0.0, float("nan")]):
        watched(monitor, model, batch(), step=step, performance=loss)
    assert [context["performance"] for context in scorer.heard] == [None, 0.5, 1.0, None]
    assert [context["updates"] for context in scorer.heard] == [0, 1, 2, 3]
    assert [m.reached for m in monitor.history] == [None, 0.5, 1.0, None]
    assert monitor.score is not None and monitor.score.performance == 0.5
    assert monitor.history[-1].metrics["aelle/performance"] == 0.5


def test_the_scorer_is_told_what_is_free_to_know() -> None:
    """Of a warm-up by hand, and of a gradient that is clipped."""
    scorer, model = Attentive(), seeded()
    optimizer = torch.optim.RMSprop(model.parameters(), 1e-3)
    monitor, norms = whole(model, scorer=scorer, optimizer=optimizer), []
    for step in range(3):
        optimizer.param_groups[0]["lr"] = 1e-3 * step / 10
        with monitor.record():
            loss = model(batch()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-9))
        optimizer.step()
        spectrum = monitor.measure(step, gradient_norm=norms[-1])
        heard = scorer.heard[-1]
        assert (heard["learning_rate"], heard["adaptive"], heard["steps"]) == (pytest.approx(1e-3), True, STEPS)
        assert (heard["state_mean"], heard["state_spread"]) == (spectrum.state_mean, spectrum.state_spread)  # type: ignore[union-attr]
        assert heard["gradient_norm"] == float(norms[-1]) > 1e-9
    monitor.measure(3)
    assert scorer.heard[-1]["gradient_norm"] is None


def test_without_an_optimiser_its_rate_is_not_known() -> None:
    scorer, model = Attentive(), seeded()
    watched(whole(model, scorer=scorer), model, batch())
    assert scorer.heard[-1]["learning_rate"] is scorer.heard[-1]["adaptive"] is None


def test_of_several_optimisers_that_of_the_layer_counts() -> None:
    scorer, model = Attentive(), seeded()
    several = [torch.optim.Adam(model.out.parameters(), 0.1), torch.optim.SGD(model.rnn.parameters(), 0.2)]
    watched(whole(model, scorer=scorer, optimizer=several), model, batch())
    assert (scorer.heard[-1]["learning_rate"], scorer.heard[-1]["adaptive"]) == (pytest.approx(0.2), False)


def test_what_is_no_optimiser_is_refused() -> None:
    with pytest.raises(ValueError, match="optimizer must be one of torch's optimisers, or a list of them; got float"):
        LyapunovMonitor(seeded(), optimizer=1e-3)


def test_the_general_scorer_is_not_told_a_metric_of_unknown_range() -> None:
    model = seeded()
    monitor = whole(model, scorer="general")
    with pytest.warns(UserWarning, match=r"performance_range=\(worst, best\).* must be given") as record:
        watched(monitor, model, batch(), performance=0.5)
        watched(monitor, model, batch(), step=1, performance=0.6)
    assert len([text for text in told(record) if "performance_range" in text]) == 1
    assert monitor.history[-1].reached is None and "aelle/performance" in monitor.history[-1].metrics


# ---------------------------------------------------------------- the budget


@pytest.fixture
def time_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], dict[str, float]]:
    """A time that passes only as told, and by so many seconds for each whole measurement."""

    def make(seconds: float) -> dict[str, float]:
        time, spectrum, known = {"now": 0.0}, Layers.spectrum, dict[Any, LyapunovSpectrum]()

        def taking(layers: Layers, ranks: Any, preferred: Any, plan: Any, *args: Any, **options: Any) -> Any:
            time["now"] += seconds * plan.work / budget_module.Plan(16, 64, 2 * 2 * HIDDEN).work
            if plan not in known:
                known[plan] = spectrum(layers, ranks, preferred, plan, *args, **options)
            return known[plan]

        for module in (budget_module, clock_module):
            monkeypatch.setattr(module.time, "perf_counter", lambda: time["now"])
        monkeypatch.setattr(Layers, "spectrum", taking)
        return time

    return make


@pytest.mark.parametrize("seconds", [0.01, 0.3, 5.0])
def test_what_is_spent_stays_within_the_budget(
    seconds: float, time_of: Callable[[float], dict[str, float]], caplog: pytest.LogCaptureFixture
) -> None:
    """By a clock that is read: a hundred intervals of a second's training, 3 % or a second of which may be spent."""
    time, model = time_of(seconds), seeded()
    monitor = whole(model, max_overhead=0.03)
    with caplog.at_level("INFO", "lightning_lyapunov"):
        made = []
        for step in range(100):
            made.append(watched(monitor, model, batch(), step=step) is not None)
            time["now"] += 1.0
    assert made[:2] == [True, True]  # before training, and the first one after an update
    assert monitor._budget.spent <= max(0.03 * 99, 1.0) * 1.05
    assert len(monitor.history) == sum(made)
    assert (sum(made) == 100) == (seconds == 0.01)
    assert any("max_overhead=None always makes whole ones" in text for text in caplog.messages) == (seconds > 0.01)
    assert monitor.measure(100, always=True) is not None
    assert monitor.history[-1].step == 100


def test_the_first_two_are_promised_and_a_failed_one_is_not_promised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    promised: list[bool] = []

    def measure(session: LyapunovSession, *args: Any, **told: Any) -> None:
        promised.append(told["promised"])

    monkeypatch.setattr(LyapunovSession, "measure", measure)
    model = seeded()
    monitor = whole(model)
    for step, always in ((0, False), (10, False), (20, False), (30, True)):
        watched(monitor, model, batch(), step=step, always=always)
    assert promised == [True, True, False, True]


# ---------------------------------------------------------------- going on


def test_a_run_goes_on_from_a_checkpoint() -> None:
    """Saved as torch.load(weights_only=True) reads it."""
    model = seeded()
    before = whole(model)
    for step in range(3):
        watched(before, model, batch(step), step=step)
    file, saved = io.BytesIO(), before.state_dict()
    torch.save(saved, file)
    file.seek(0)
    after = whole(model)
    after.load_state_dict(torch.load(file, weights_only=True))
    watched(after, model, batch(9), step=3)
    assert [m.step for m in after.history] == [0, 1, 2, 3]
    for old, new in zip(before.history, after.history, strict=False):
        torch.testing.assert_close(old.exponents, new.exponents, rtol=0, atol=0)
        assert old.metrics == new.metrics
    assert after._budget.spent > before._budget.spent > 0
    assert after.state_dict()["training_seconds"] > saved["training_seconds"] > 0


def test_a_state_of_another_version_is_told_of() -> None:
    monitor = whole(seeded())
    with pytest.warns(UserWarning, match="another version .*state has no budget.*begins anew"):
        monitor.load_state_dict({"history": monitor.history.state_dict(), "training_seconds": 2.0})
    assert monitor._clock.trained >= 2.0
    monitor = whole(seeded())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor.load_state_dict(monitor.state_dict())


# ---------------------------------------------------------------- wrapped models


def test_a_model_that_fabric_set_up() -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    plain = seeded()
    model, optimizer = fabric.setup(plain, torch.optim.SGD(plain.parameters(), 0.1))
    rows: list[int] = []
    monitor = whole(model, "rnn", to=lambda _, step: rows.append(step))
    for step in range(2):
        with monitor.record():
            loss = model(batch()).square().mean()
        assert_same(monitor.measure(step), by_hand(plain.rnn, batch()))
        fabric.backward(loss)
        optimizer.step()
    assert rows == [0, 1]


class Wrapped(nn.Module):
    """What stands around a model in other libraries."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)


@pytest.mark.parametrize("kind", ["DataParallel", "DeepSpeedEngine"])
def test_names_are_those_of_the_model_inside_a_wrapper(kind: str) -> None:
    model = seeded()
    wrapper = nn.DataParallel(model) if kind == "DataParallel" else type(kind, (Wrapped,), {})(model)
    monitor = whole(wrapper, "rnn")
    assert_same(watched(monitor, wrapper, batch()), by_hand(model.rnn, batch()))


def test_parameters_in_flat_pieces_are_refused() -> None:
    model = nn.Sequential(type("FullyShardedDataParallel", (Wrapped,), {})(seeded()))
    with pytest.raises(ValueError, match=r"model: FullyShardedDataParallel .* use fully_shard \(FSDP2\)"):
        LyapunovMonitor(model)


# ---------------------------------------------------------------- several ranks


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    """The process that ranks are forked from, with all imports done."""
    before = os.environ.get("PYTHONPATH")
    here = Path(__file__).parent
    os.environ["PYTHONPATH"] = os.pathsep.join([str(here), str(here.parent), str(here.parents[1]), before or ""])
    try:
        context = get_context("forkserver")
        context.set_forkserver_preload(["ranks", "test_monitor"])
        process = context.Process(target=int)
        process.start()
        process.join()
        yield
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def one_rank(rank: int, world: int, directory: str) -> dict[str, Any]:
    """What a rank says of a share of the data; the last one records nothing the second time."""
    model = nn.parallel.DistributedDataParallel(seeded())
    rows: list[int] = []
    monitor = whole(model, to=lambda _, step: rows.append(step), interval=1, dtype="float64")
    spectra = []
    for step in range(2):
        if step == 0 or rank < world - 1:
            with monitor.record(), torch.no_grad():
                model(batch(10 * step + rank))
        spectrum = monitor.measure(step)
        assert spectrum is not None
        spectra.append(spectrum.exponents.numpy())
    history = len(monitor.history)
    state = [monitor.state_dict()]
    torch.distributed.broadcast_object_list(state)  # as a checkpoint that all ranks read
    monitor.load_state_dict(state[0])
    report = monitor.report(Path(directory) / str(rank))
    monitor.close()
    return {
        "spectra": spectra,
        "history": history,
        "rows": rows,
        "report": report is not None,
        "findings": len(monitor.findings),
    }


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_two_ranks_say_what_one_process_says(tmp_path: Path, server: None) -> None:
    said = on_ranks(2, one_rank, tmp_path, str(tmp_path))
    assert all(isinstance(one, dict) for one in said), said
    first, second = said
    rnn = seeded().rnn
    # The second time the last rank has only what it recorded before, which has been measured, and is still its share.
    inputs = [torch.cat([batch(0), batch(1)]), torch.cat([batch(10), batch(1)])]
    for step, x in enumerate(inputs):
        expected = by_hand(rnn, x, interval=1, dtype=torch.float64).exponents
        for one in (first, second):
            torch.testing.assert_close(torch.as_tensor(one["spectra"][step]), expected, rtol=0, atol=1e-9)
    assert (first["history"], first["rows"], first["report"]) == (2, [0, 1], True)
    assert (second["history"], second["rows"], second["report"]) == (0, [], False)


# ---------------------------------------------------------------- mistakes


def test_measuring_before_anything_was_recorded_says_what_to_do() -> None:
    model = seeded()
    monitor = whole(model)
    with pytest.warns(
        UserWarning, match=r"nothing was recorded\. Run the model within `with monitor\.record"
    ) as record:
        assert monitor.measure(0) is None and monitor.measure(1) is None
    assert len(told(record)) == 1 and record[0].filename == __file__
    assert watched(monitor, model, batch()) is not None  # the advice, followed


def test_a_record_that_no_layer_was_reached_in_warns() -> None:
    model = seeded()
    monitor = whole(model)
    with monitor.record():
        model.out(torch.zeros(1, HIDDEN))
    with pytest.warns(UserWarning, match="no inputs reached a layer"):
        assert monitor.measure(0) is None
    assert monitor.spectrum is None


def test_a_pass_that_raises_is_not_swallowed_and_recording_ends() -> None:
    model = seeded()
    monitor = whole(model)
    with pytest.raises(RuntimeError), monitor.record():
        model(torch.zeros(ROWS, STEPS, 4))
    model(batch(1))  # is not recorded
    assert_same(watched(monitor, model, batch(2)), by_hand(model.rnn, batch(2)))


def test_closing_twice_does_nothing_and_after_it_nothing_is_measured() -> None:
    tables: list[Any] = []

    class Logger:
        def log_metrics(self, metrics: dict[str, float], step: int) -> None:
            tables.append(step)

    model = seeded()
    monitor = whole(model, to=Logger())
    with pytest.raises(KeyError), monitor:
        watched(monitor, model, batch())
        raise KeyError  # a loop that breaks off leaves no hooks either
    assert not any(part._forward_hooks for part in model.modules())
    monitor.close()
    with pytest.warns(UserWarning, match="it is closed: make another one"):
        assert watched(monitor, model, batch(), step=1) is None
    assert tables == [0] and len(monitor.history) == 1 and monitor.spectrum is not None


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"every_n_epochs": 2}, TypeError, r"no option every_n_epochs; its options are k, .*told to measure\(\)"),
        ({"performance": "val_acc"}, TypeError, "no option performance; .*performance so far, are told to measure"),
        ({"k": 0}, ValueError, "k must be at least 1; got 0"),
        ({"performance_range": (1.0, 1.0)}, ValueError, "performance_range must be two different numbers"),
        ({"module": "head"}, ValueError, "module: the model has no 'head'; it has rnn"),
        ({"to": 3}, ValueError, "to must be a SummaryWriter, .*got 3"),
    ],
)
def test_errors_name_what_would_work(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LyapunovMonitor(seeded(), **options)


def test_another_source_is_refused() -> None:
    monitor = whole(seeded())
    refused = pytest.raises(ValueError, match="source must be one of 'validation', 'training'; got 'test'")
    with refused, monitor.record("test"):  # type: ignore[arg-type]
        pass
