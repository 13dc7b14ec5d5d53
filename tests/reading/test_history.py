"""The record of a run: bounded, evenly spread over it, and fit to travel in a checkpoint."""

import csv
import io
import math
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from made import growth, layer, numbers, spectrum

from lightning_lyapunov import LyapunovSpectrumCallback
from lightning_lyapunov.cli.reading import history_of, loaded
from lightning_lyapunov.engine.spectrum import LyapunovSpectrum
from lightning_lyapunov.reading import findings
from lightning_lyapunov.reading.history import FEWEST, LIMIT, History, Measurement


def measured(step: int, size: int = 4) -> Measurement:
    exponents = torch.linspace(0.0, -1.0, size) - step
    return Measurement(step, step // 10, exponents, {"max": float(-step), "seconds": 0.5})


def filled(count: int, size: int = 4) -> History:
    history = History()
    for step in range(count):
        history.append(measured(step, size))
    return history


def steps_of(history: History) -> list[int]:
    return [measurement.step for measurement in history]


def reloaded(history: History) -> tuple[History, int]:
    """Through a checkpoint, with its size in bytes."""
    buffer = io.BytesIO()
    torch.save({"history": history.state_dict()}, buffer)
    size = buffer.tell()
    buffer.seek(0)
    restored = History()
    restored.load_state_dict(torch.load(buffer, weights_only=True)["history"])
    return restored, size


def test_few_measurements_are_all_kept_in_order() -> None:
    history = filled(LIMIT)
    assert steps_of(history) == list(range(LIMIT))
    assert (len(history), history[0].step, history[-1].step) == (LIMIT, 0, LIMIT - 1)


@pytest.mark.parametrize("size", [4, 750, 1300])  # limits 256, 208 and 132
def test_thinning_keeps_the_newest_after_every_append(size: int) -> None:
    history, exponents = History(), torch.zeros(size)
    for step in range(1200):
        history.append(Measurement(step, 0, exponents, {}))
        steps = steps_of(history)
        assert (steps[0], steps[-1]) == (0, step)
        strides = {b - a for a, b in pairwise(steps[:-1])}
        assert len(strides) <= 1 and all(steps[-1] - steps[-2] <= stride for stride in strides)


def test_many_measurements_stay_bounded_and_even() -> None:
    count = 10**5
    history, exponents = History(), torch.zeros(3)
    for step in range(count):
        history.append(Measurement(step, 0, exponents, {}))
        assert len(history) <= LIMIT
    steps = steps_of(history)
    assert (steps[0], steps[-1]) == (0, count - 1)
    assert len(steps) > LIMIT // 2
    assert len({b - a for a, b in pairwise(steps[:-1])}) == 1


@pytest.mark.parametrize("count", [0, 1, 300])
def test_checkpoint_round_trip_is_lossless(count: int) -> None:
    history = filled(count)
    restored, _ = reloaded(history)
    assert len(restored) == len(history)
    for ours, theirs in zip(history, restored, strict=True):
        assert (ours.step, ours.epoch, ours.metrics) == (theirs.step, theirs.epoch, theirs.metrics)
        assert torch.equal(ours.exponents, theirs.exponents)


def test_a_state_without_the_newer_fields_still_loads() -> None:
    state = filled(3).state_dict()
    needed = ("step", "epoch", "exponents", "metrics")
    state["measurements"] = [{name: m[name] for name in needed} for m in state["measurements"]]
    restored = History()
    restored.load_state_dict(state)
    assert steps_of(restored) == [0, 1, 2] and restored[0].stderr is None and restored[0].layers == {}


def test_values_are_found_by_name() -> None:
    history = History("encoder")
    history.append(Measurement(0, 0, torch.zeros(2), {"max": -0.5, "aelle/performance": 0.7}))
    history.append(Measurement(4, 0, torch.zeros(2), {"max": -0.4}))
    assert history.values("max") == [-0.5, -0.4]
    performance = history.values("aelle/performance")
    assert performance[0] == 0.7 and math.isnan(performance[1])


def test_figures_that_were_renamed_are_found_by_their_new_names() -> None:
    state = filled(1).state_dict()
    state["measurements"][0]["metrics"] = {"aelle/stability": 0.7}
    restored = History()
    assert restored.load_state_dict(state) == [] and restored[0].metrics == {"aelle/ends_stable_probability": 0.7}


@pytest.mark.parametrize("break_at", [1, 100, 256, 257, 400, 999])
def test_goes_on_from_a_checkpoint_as_if_never_stopped(break_at: int) -> None:
    restored, _ = reloaded(filled(break_at))
    for step in range(break_at, 1000):
        restored.append(measured(step))
    assert steps_of(restored) == steps_of(filled(1000))


@pytest.mark.parametrize("size", [32, 1024])
def test_state_stays_under_a_megabyte(size: int) -> None:
    keys = [
        "max",
        "max_stderr",
        "near_zero_fraction",
        "kaplan_yorke_dimension",
        "kolmogorov_sinai_entropy",
        *"abcdefghi",
    ]
    history = History()
    for step in range(600):
        metrics = {key: step / 7 for key in keys}
        whole = {"stderr": torch.rand(size), "error": torch.rand(size), "latent": torch.rand(8)}
        whole |= {"trusted": torch.ones(size) > 0, "settled": torch.ones(size) > 0}
        whole |= {"growth": torch.rand(8), "growth_error": torch.rand(8), "gain": 0.5, "gain_error": 0.1}
        history.append(Measurement(step, 0, torch.randn(size), metrics, **whole, layers={"rnn": layer(0.1, 0.5)}))
    assert reloaded(history)[1] < 1_000_000


# ------------------------------------------------------------------ several fits


def several(*lengths: int, **options: Any) -> History:
    """Fits of so many measurements each, by one callback."""
    history = History()
    for run, length in enumerate(lengths):
        history.begin()
        for step in range(length):
            history.append(replace(measured(step, **options), epoch=run))
    return history


def runs(history: History) -> list[tuple[int, list[int]]]:
    """Which fit each run is, and its updates."""
    return [(run[0].epoch, steps_of(run)) for run in (*history.earlier, history)]


def test_folds_of_a_cross_validation_are_kept_apart() -> None:
    """One callback over several fits: iteration, length, values and sentences are of the last alone."""
    history = several(3, 2, 4)
    assert runs(history) == [(0, [0, 1, 2]), (1, [0, 1]), (2, [0, 1, 2, 3])]
    assert (len(history), history[0].step, history[-1].step, history.runs_before) == (4, 0, 3, 2)
    assert history.values("max") == [0.0, -1.0, -2.0, -3.0]
    alone = [f.text.replace("epoch 1", "epoch 3") for f in findings(several(4))]
    assert [f.text for f in findings(history)] == alone


def test_a_fit_that_has_not_measured_yet_is_empty() -> None:
    history = several(3)
    for _ in range(2):
        history.begin()
        assert len(history) == 0 == len(list(history)) and len(history.earlier) == 1 == history.runs_before


def test_a_fit_that_nobody_announced_begins_where_updates_go_back() -> None:
    history = History()
    for step in (0, 8, 16, 0, 8):
        history.append(measured(step))
    assert steps_of(history) == [0, 8] and [steps_of(run) for run in history.earlier] == [[0, 8, 16]]


@pytest.mark.parametrize("lengths", [(2, 3), (1, 300, 40), (5,) * 60])
def test_earlier_fits_travel_with_the_checkpoint(lengths: tuple[int, ...]) -> None:
    history = several(*lengths)
    restored, _ = reloaded(history)
    assert runs(restored) == runs(history) and restored.runs_before == history.runs_before == len(lengths) - 1
    for step in range(lengths[-1], 500):
        history.append(measured(step))
        restored.append(measured(step))
    assert runs(restored) == runs(history)


def test_room_is_made_by_the_oldest_fits_first() -> None:
    history = several(200, 50, 10)
    assert [len(run) for run in (*history.earlier, history)] == [50, 10] and history.runs_before == 2
    history = several(10, 40, LIMIT)
    assert (len(history), history.earlier, history.runs_before) == (LIMIT, (), 2)
    assert reloaded(history)[0].runs_before == 2


def test_all_fits_together_stay_under_a_megabyte() -> None:
    """As torch.save writes it, after many fits of a large network; from the fifth on it is full."""
    history = History()
    for run in range(40):
        history.begin()
        for step in range(20):
            whole = {"stderr": torch.rand(600), "error": torch.rand(600), "fewer": f"{run} of {10**6 + step} sequences"}
            history.append(Measurement(step, run, torch.randn(600), {"max": 0.5}, **whole))
        assert run % 5 or reloaded(history)[1] < 1_000_000
    assert len(history.earlier) > 2 and history.runs_before == 39


def test_fits_that_an_older_version_wrote_as_one_are_taken_apart() -> None:
    state = filled(3).state_dict()
    state["measurements"] += filled(2).state_dict()["measurements"]
    restored = History()
    assert restored.load_state_dict(state) == []
    assert runs(restored) == [(0, [0, 1, 2]), (0, [0, 1])]


# ------------------------------------------------------------------ what is kept of a spectrum


def test_a_measurement_keeps_what_the_spectrum_says() -> None:
    """Oracle: 11 gains of which the second and the last but one are the ends of eight in ten."""
    gains = [float(i) for i in range(11)]
    measured = spectrum(0.1, -1.0, error=numbers(0.05, 0.06), growth=growth(gains, steps=64), dimension=4)
    made = Measurement.of(
        measured, step=7, epoch=2, metrics={"max": 0.1}, length=300, latent=numbers(1, 2), reached=0.3
    )
    assert (made.step, made.epoch, made.metrics, made.length) == (7, 2, {"max": 0.1}, 300)
    assert (made.reached, made.dimension, made.layers) == (0.3, 4, {})
    assert made.exponents.dtype == torch.float32 == made.latent.dtype
    assert made.error.tolist() == pytest.approx([0.05, 0.06]) and made.settled.tolist() == [True, True]
    assert (made.gain, made.gain_low, made.gain_high) == (5.0, 1.0, 9.0)
    assert made.gain_error == measured.growth.gain_error and made.growth.tolist() == [6.0]
    assert made.growth_error.tolist() == pytest.approx(measured.growth.error.tolist(), rel=1e-6)
    assert (made.growth_steps, made.growth_whole, made.growth_of) == (64.0, False, "")


def test_length_is_what_was_measured_unless_more_is_known() -> None:
    """A sequence that came call by call, of 40 steps, is as long as it is, and not as a call."""
    assert Measurement.of(spectrum(0.1, steps=48, transient=16)).length == 64
    assert Measurement.of(spectrum(0.1, steps=20, transient=20), length=1).length == 40


def test_a_measurement_knows_its_source_and_how_much_of_what_was_seen_it_is() -> None:
    known = {"source": "training", "seen": 128, "fewer": "2 of 128 sequences"}
    made = Measurement.of(spectrum(0.1, steps=48, transient=16), **known)
    assert (made.source, made.sequences, made.steps, made.counted) == ("training", 2, 64, 48)
    assert (made.seen, made.fewer) == (128, "2 of 128 sequences")
    made = Measurement.of(spectrum(0.1), sequences=7, steps=30)
    assert (made.source, made.sequences, made.steps, made.seen, made.fewer) == ("", 7, 30, None, "")
    history, again = History(), History()
    history.append(made := replace(made, source="validation", seen=9, fewer="7 of 9 sequences"))
    assert again.load_state_dict(history.state_dict()) == []
    names = ("source", "sequences", "steps", "counted", "seen", "fewer")
    assert [getattr(again[0], name) for name in names] == [getattr(made, name) for name in names]


def test_of_several_layers_the_longest_sequence_and_the_fewest_steps_that_count() -> None:
    parts = {"a": spectrum(0.3, steps=20, transient=20), "b": spectrum(0.1, steps=6, transient=2)}
    made = Measurement.of(LyapunovSpectrum.union(parts), source="training")
    assert (made.steps, made.counted, made.length) == (40, 6, 40)
    assert made.layer("a").source == "training"


def test_what_the_version_before_did_not_know_is_not_missed() -> None:
    """No word about it in the warning that a checkpoint is of another version."""
    state = filled(2).state_dict()
    for written in state["measurements"]:
        for name in ("source", "sequences", "steps", "counted", "seen", "fewer"):
            del written[name]
    restored = History()
    assert restored.load_state_dict(state) == []
    assert (restored[0].source, restored[0].sequences, restored[0].seen, restored[0].fewer) == ("", None, None, "")


def test_sequences_of_different_length_are_known_to_be_whole() -> None:
    made = Measurement.of(spectrum(0.1, growth=growth([1.0, 1.0], steps=(64, 20)), steps=40, transient=24), length=64)
    assert (made.growth_steps, made.growth_whole) == (42.0, True)


def test_of_a_few_sequences_the_range_is_not_told() -> None:
    """Oracle: of eight, the outermost two are not among eight in ten."""
    few, enough = (Measurement.of(spectrum(0.1, growth=growth([float(i) for i in range(n)]))) for n in (7, FEWEST))
    assert FEWEST == 8 and math.isnan(few.gain_low) and math.isnan(few.gain_high)
    assert (enough.gain_low, enough.gain_high) == (1.0, 6.0)


def test_without_growth_it_is_unknown() -> None:
    made = Measurement.of(spectrum(0.1))
    assert made.growth is None and math.isnan(made.gain) and math.isnan(made.growth_steps)


def test_layers_are_kept_as_plain_numbers_and_read_as_measurements() -> None:
    settled = torch.tensor([False])
    parts = {"a": spectrum(0.3, growth=growth([1.0, 1.0])), "b": spectrum(0.1, settled=settled)}
    made = Measurement.of(LyapunovSpectrum.union(parts))
    assert made.layers["a"] == [0.3, 0.03, 1.0, 1.0, 0.0, 2.0]
    assert made.layers["b"][:3] == [0.1, 0.03, 0.0] and all(map(math.isnan, made.layers["b"][3:]))
    assert made.growth_of == "a"
    of = made.layer("a")
    assert (float(of.exponents[0]), float(of.error[0]), of.gain) == (pytest.approx(0.3), pytest.approx(0.03), 1.0)
    assert of.settled.tolist() == [True] and made.layer("b").settled.tolist() == [False]
    assert of.growth_steps == 64.0 == made.layer("b").growth_steps


def test_error_is_two_standard_errors_where_it_is_not_given() -> None:
    assert Measurement(0, 0, torch.zeros(1), {}, stderr=torch.tensor([0.5])).error.tolist() == [1.0]
    both = {"stderr": torch.tensor([0.5]), "error": torch.tensor([1.5])}
    assert Measurement(0, 0, torch.zeros(1), {}, **both).error.tolist() == [1.5]


# ------------------------------------------------------------------ written by the version before


def old_state(prefix: str, scores: str) -> dict[str, Any]:
    """What 0.1.0.dev0 wrote before names lost their prefix."""
    metrics = {f"{prefix}/max": 0.1, f"{prefix}/max_stderr": 0.01, f"{prefix}/rnn.l0/max": 0.1}
    metrics[f"{scores}/performance"] = 0.5
    tensors = {"stderr": torch.tensor([0.01, 0.02]), "trusted": torch.tensor([True, False]), "latent": None}
    layers = {"rnn.l0": [0.1, 0.01], "rnn.l1": [-0.2, 0.02]}
    written = {"step": 3, "epoch": 1, "exponents": torch.tensor([0.1, -1.0]), "metrics": metrics, **tensors}
    written |= {"dimension": 2, "length": 12, "layers": layers, "reached": 0.4}
    return {"seen": 1, "stride": 1, "measurements": [written]}


@pytest.mark.parametrize(
    ("prefix", "scores"), [("lyapunov", "aelle"), ("encoder", "encoder/aelle"), ("a/b", "a/b/aelle")]
)
def test_histories_with_prefixed_names_still_load(prefix: str, scores: str) -> None:
    history = History(prefix)
    amiss = history.load_state_dict(old_state(prefix, scores))
    assert history[0].metrics == {"max": 0.1, "max_stderr": 0.01, "rnn.l0/max": 0.1, "aelle/performance": 0.5}
    assert history[0].error.tolist() == pytest.approx([0.02, 0.04]) and history[0].settled is None
    largest, error, settled, *unknown = history[0].layers["rnn.l1"]
    assert (largest, error, settled) == (-0.2, 0.04, 0.0) and all(map(math.isnan, unknown))
    assert "a measurement has no error" in amiss and not any("metrics" in text for text in amiss)
    again = History(prefix)
    assert again.load_state_dict(history.state_dict()) == []
    assert again[0].metrics == history[0].metrics


def test_a_layer_that_is_named_as_the_prefix_keeps_its_name() -> None:
    """Oracle: the name of its figure begins as the keys of the prefix do, in a state that holds names."""
    history, again = History("rnn"), History("rnn")
    history.append(Measurement(0, 0, torch.zeros(1), {"rnn/max": 0.5, "max": 0.7}))
    again.load_state_dict(history.state_dict())
    assert again[0].metrics == {"rnn/max": 0.5, "max": 0.7}


def test_layers_that_are_no_numbers_are_left_out() -> None:
    state = filled(1).state_dict()
    state["measurements"][0]["layers"] = {"a": 7, "b": ["x", "y"], "c": [0.1], "d": layer(0.1, 0.5)}
    restored = History()
    restored.load_state_dict(state)
    assert list(restored[0].layers) == ["d"]


def test_a_checkpoint_of_the_version_before_is_read_as_it_was_written(tmp_path: Path) -> None:
    """By the command line, which builds the report of it, and by the callback that goes on from it."""
    path = tmp_path / "old.ckpt"
    state = {"history": old_state("encoder", "encoder/aelle"), "measuring_seconds": 0.5, "training_seconds": 9.0}
    torch.save({"callbacks": {"LyapunovSpectrumCallback{'prefix': 'encoder', 'module': None}": state}}, path)
    history = history_of(loaded(path, trust_pickle=False), path, None)
    assert (history.prefix, history.values("aelle/performance")) == ("encoder", [0.5])
    ours = LyapunovSpectrumCallback(prefix="encoder", scorer=None)
    with pytest.warns(UserWarning, match="of another version of this package .*a measurement has no error"):
        ours.load_state_dict(torch.load(path, weights_only=True)["callbacks"].popitem()[1])
    assert ours.history.values("max") == [0.1]
    assert "growing" not in {f.state for f in findings(ours.history)}  # 12 · 0.1 = 1.2 nats


# ---------------------------------------------------------------- as a list, a table, a line


def told(*metrics: dict[str, float]) -> History:
    history = History("mine")
    for i, known in enumerate(metrics):
        history.append(replace(measured(10 * i), metrics=known, source="validation"))
    return history


def test_slices_are_histories_of_their_own() -> None:
    history = filled(6)
    some = history[2:]
    assert isinstance(some, History) and steps_of(some) == [2, 3, 4, 5] == [m.step for m in list(history)[2:]]
    assert (some.prefix, some.kind, some.earlier) == (history.prefix, history.kind, ())
    assert steps_of(history[::-2]) == [5, 3, 1] and len(history[9:]) == 0
    some.append(measured(6))
    assert (len(some), len(history)) == (5, 6)
    assert steps_of(reloaded(some)[0]) == [2, 3, 4, 5, 6]


def test_rows_hold_every_figure_and_nan_where_it_was_not_known() -> None:
    first, second = told({"max": 0.1}, {"max": 0.2, "aelle/performance": 0.5}).rows()
    assert first | {"aelle/performance": 0} == {
        "step": 0, "epoch": 0, "source": "validation", "max": 0.1, "aelle/performance": 0,
    }  # fmt: skip
    assert math.isnan(first["aelle/performance"]) and second["aelle/performance"] == 0.5


def test_csv_is_read_back_by_the_standard_library(tmp_path: Path) -> None:
    history = told({"max": 1 / 3}, {"max": -math.inf, "seconds": 2.0})
    text = history.to_csv(tmp_path / "run.csv")
    assert (tmp_path / "run.csv").read_bytes() == text.encode()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(int(row["step"]), float(row["max"]), row["seconds"]) for row in rows] == [
        (0, 1 / 3, ""), (10, -math.inf, "2.0"),
    ]  # fmt: skip
    assert History().to_csv() == "step,epoch,source\n"


def test_pandas_gets_the_same_by_step() -> None:
    pytest.importorskip("pandas")
    frame = told({"max": 0.1}, {"max": 0.2, "seconds": 2.0}).to_pandas()
    assert frame.index.tolist() == [0, 10] and frame.index.name == "step"
    assert frame["max"].tolist() == [0.1, 0.2] and frame["seconds"].isna().tolist() == [True, False]
    assert list(History().to_pandas().columns) == ["epoch", "source"]


def test_without_pandas_its_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match="pip install pandas"):
        filled(1).to_pandas()


def test_measurements_and_histories_are_told_on_one_line() -> None:
    kept = Measurement.of(spectrum(0.13, -0.5, growth=growth([2.5] * 8, steps=100)), step=1200, epoch=3)
    assert repr(kept) == (
        "Measurement(update 1,200, epoch 3: largest exponent +0.13 ± 0.03 nats/step, settled, gradient 12-fold over "
        "your 100 steps)"
    )
    history = History("mine")
    assert repr(history) == "History('mine', 0 measurements)"
    history.append(kept)
    assert repr(history) == f"History('mine', 1 measurement, newest {kept!r})"
    history.append(measured(0))
    assert "1 measurement, 1 earlier run, newest" in repr(history)
    assert "\n" not in repr(replace(kept, exponents=torch.full((0,), 0.0), settled=None, error=None))
