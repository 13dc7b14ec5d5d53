"""Searching among runs: what Optuna and Ray Tune are told, the examples, and the replay that the study rests on.

The oracles are counts worked by hand on constructed curves, a live search with Optuna's own callback, and integers.
"""

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from fits import Regressor, loader, trainer
from torch import Tensor, nn

from lightning_lyapunov import LyapunovSpectrumCallback

optuna = pytest.importorskip("optuna", reason="Optuna, of the extra test, is not installed")
integration = pytest.importorskip("optuna_integration", reason="Optuna's callback for Lightning is not installed")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def study() -> ModuleType:
    """The benchmark, under a name that no example has."""
    spec = importlib.util.spec_from_file_location("study_of_triage", ROOT / "benchmarks" / "triage.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look
    spec.loader.exec_module(module)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return module


def run(name: str, *arguments: str, cwd: Path) -> str:
    """What an example prints."""
    command = [sys.executable, str(ROOT / "examples" / name), *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, encoding="utf-8", timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


def curve(*valid: float, test: float | None = None, predicted: list[float | None] | None = None) -> dict[str, Any]:
    """What was seen of a candidate."""
    return {"valid": list(valid), "predicted": predicted or list(valid), "test": valid[-1] if test is None else test}


# ------------------------------------------------------------------ examples


def test_the_optuna_example_trains_the_best_predicted_alone(tmp_path: Path) -> None:
    lines = run("triage.py", "--quick", cwd=tmp_path).splitlines()
    rows = [line.split() for line in lines[1:7]]
    predicted = [float(row[5]) for row in rows]
    assert predicted == sorted(predicted, reverse=True)
    assert [row[-1] for row in rows[:2]] == ["trained", "trained"]
    assert all(len(row) == 7 for row in rows[2:]), "those left out have neither epochs nor accuracy"
    best = max(float(row[8].rstrip("%")) for row in rows[:2])
    assert lines[-1].startswith(f"Best: {best:.1f}%")


@pytest.mark.slow  # half of it is Ray's own start; what it does beside is a fit
def test_the_ray_example_runs_on_this_machine(tmp_path: Path) -> None:
    pytest.importorskip("ray.tune", reason="Ray Tune, of the extra ray, is not installed")
    head, *rows = run("ray_tune.py", "--quick", cwd=tmp_path).splitlines()
    assert head.split() == ["cell", "units", "gain", "rate", "epochs", "predicted", "accuracy"]
    assert len(rows) == 2
    for row in rows:
        cell, units, *_, epochs, predicted, accuracy = row.split()
        assert cell in ("rnn", "gru", "lstm") and 16 <= int(units) <= 64
        assert int(epochs) in (0, 1) and 0 <= float(predicted) <= 1 and 0 < float(accuracy.rstrip("%")) <= 100


# ------------------------------------------------------------------ Optuna's callback


class Graded(Regressor):
    """Logs a skill of its own choice after each epoch."""

    def __init__(self, skills: list[float]) -> None:
        super().__init__(nn.GRU(3, 6, batch_first=True))
        self.skills = skills

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("skill", torch.tensor(self.skills[self.current_epoch]))


def test_optuna_is_told_the_prediction_of_the_epoch_made_from_the_skill_of_the_epoch() -> None:
    """Oracle: the history, and the skills as they were given."""
    skills = [0.1, 0.7, 0.3]
    trial = optuna.create_study(direction="maximize").ask()
    ours = LyapunovSpectrumCallback(performance="skill", performance_range=(0.0, 1.0), max_overhead=None, num_steps=12)
    pruning = integration.PyTorchLightningPruningCallback(trial, "aelle/performance")
    trainer(pruning, ours, max_epochs=3).fit(Graded(skills), loader(), loader())
    told = trial.storage.get_trial(trial._trial_id).intermediate_values
    after = [m for m in ours.history if m.step > 0]
    assert [m.reached for m in after] == pytest.approx(skills, rel=1e-6)
    assert told == pytest.approx({m.epoch: m.metrics["aelle/performance"] for m in after}, rel=1e-6)
    assert len(set(told.values())) == 3


# ------------------------------------------------------------------ replay


class Follows(pl.LightningModule):
    """Trains nothing; its skill follows a curve."""

    def __init__(self, skills: list[float]) -> None:
        super().__init__()
        self.skills, self.weight = skills, nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.weight * 0

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("skill", torch.tensor(self.skills[self.current_epoch], dtype=torch.float64))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_replay_is_what_a_live_search_does(study: ModuleType, pruner: str) -> None:
    """Oracle: Optuna's callback in a real Trainer, on the same curves."""
    curves = {n: curve(*row) for n, row in enumerate(torch.rand(14, 5, dtype=torch.float64).cumsum(1).tolist())}
    replayed = study.replay(list(curves), curves, getattr(study, pruner)(5), "valid", "name")
    live = optuna.create_study(study_name="name", direction="maximize", pruner=getattr(study, pruner)(5))
    for expected in replayed:
        trial = live.ask()
        callback = integration.PyTorchLightningPruningCallback(trial, "skill")
        fit = trainer(callback, max_epochs=5, num_sanity_val_steps=0)
        try:
            fit.fit(Follows(curves[expected.number]["valid"]), loader(sequences=8), loader(sequences=8))
        except optuna.TrialPruned:
            live.tell(trial, state=optuna.trial.TrialState.PRUNED)
            assert expected == study.Run(expected.number, fit.current_epoch + 1, False)
        else:
            live.tell(trial, curves[expected.number]["valid"][-1])
            assert expected == study.Run(expected.number, 5, True)
    assert {run.finished for run in replayed} == {True, False}


def test_replay_counts_the_epochs_until_a_trial_is_pruned(study: ModuleType) -> None:
    """After five trials MedianPruner ends what stays below their median: here at once, and from the second epoch on."""
    good = {n: curve(0.1, 0.2, 0.3) for n in range(5)}
    curves = {**good, 5: curve(0.0, 0.9, 0.9), 6: curve(0.15, 0.16, 0.9), 7: curve(0.1, 0.2, 0.31)}
    runs = study.replay(range(8), curves, study.median(3), "valid", "name")
    assert [(run.epochs, run.finished) for run in runs] == [(3, True)] * 5 + [(1, False), (2, False), (3, True)]
    runs = study.replay(range(8), curves, optuna.pruners.NopPruner(), "valid", "name")
    assert [run.epochs for run in runs] == [3] * 8


def test_replay_prunes_on_what_it_is_told_to_watch(study: ModuleType) -> None:
    """What was not known is not told, so nothing ends there."""
    curves = {n: curve(0.1, 0.2, 0.3) for n in range(5)}
    curves[5] = curve(0.9, 0.9, 0.9, predicted=[None, 0.0, 0.0])
    (*_, last) = study.replay(range(6), curves, study.median(3), "predicted", "name")
    assert (last.epochs, last.finished) == (2, False)


def test_the_incumbent_is_the_best_in_validation_that_was_finished(study: ModuleType) -> None:
    curves = {
        0: curve(0.1, 0.5, test=0.6),
        1: curve(0.2, 0.4, test=0.9),  # better in the test, which nobody sees
        2: curve(0.3, 0.8, test=0.8),  # pruned
        3: curve(0.4, 0.7, test=0.55),  # chosen, though the test says less
    }
    runs = [study.Run(0, 2, True), study.Run(1, 2, True), study.Run(2, 1, False), study.Run(3, 2, True)]
    found = study.incumbents(runs, curves)
    assert found == [(2, 0.6), (7, 0.55)]
    assert study.epochs_to(found, 0.6) == 2 and study.epochs_to(found, 0.61) == math.inf
    assert [study._at(found, epochs) for epochs in (1, 2, 6, 7, 99)] == [0.0, 0.6, 0.6, 0.55, 0.55]


def test_triage_trains_the_best_looks_first(study: ModuleType) -> None:
    looks = [{"performance": p, "baseline": b} for p, b in ((0.2, 0.5), (0.9, 0.5), (0.4, 0.7), (-math.inf, 0.1))]
    assert study.METHODS["random"].order(looks, 2) == [0, 1]
    assert study.METHODS["triage"].order(looks, 3) == [1, 2, 0]
    assert study.METHODS["triage without spectrum"].order(looks, 3) == [2, 0, 1]


def test_methods_are_compared_study_by_study(study: ModuleType) -> None:
    """Ratios 1/2, 2, and never against 10: the median of them is 2. Never against never is even. Looks cost 5 more."""
    epochs = {"median": [20, 10, 10, math.inf], "triage": [10, 20, math.inf, math.inf]}
    rows = [
        {"task": "ring", "seed": seed, "method": method, "epochs": value, "cost": value + 5 * (method == "triage")}
        for method, values in epochs.items()
        for seed, value in enumerate(values)
    ]
    assert study.against(rows[:3] + rows[4:7], "triage") == ("faster in 1, slower in 2 of 3", "2.00×", "2.50×")
    assert study.against(rows, "triage") == ("faster in 1, slower in 2 of 4", "1.50×", "1.75×")


def test_differences_are_paired_by_study(study: ModuleType) -> None:
    """Oracle: by hand. Of three studies triage chooses better by .1, .2 and .3: .2 ± .1/√3; ρ is .1 above in each."""
    rows = [
        {
            "task": "sums", "seed": seed, "method": name, "cost": 10.0,
            "epochs": math.inf if name == "halving" else 10.0, "chosen": 0.5 + (seed + 1) / 10 * (name == "triage"),
            "agreement": {"performance": 0.6, "baseline": 0.5},
        }
        for name in study.METHODS
        for seed in range(3)
    ]  # fmt: skip
    for task in ("reverse", "queue"):
        rows += [row | {"task": task} for row in rows[: 3 * len(study.METHODS)]]
    text = study.differences([row for row in rows if row["task"] == "sums"] + rows[3 * len(study.METHODS) :])
    assert "+0.200 ± 0.029 in skill" in text  # three tasks of three studies: .0866/√9
    assert "is +0.100 ± 0.000 above" in text and "+0.000 ± 0.000 on *sums*" in text
    assert "*halving on the prediction* beside *halving* faster in 9, slower in 0 of 9" in text and "halving 9" in text


# ------------------------------------------------------------------ candidates and tasks


def test_candidates_are_the_same_every_time_and_draw_nothing_from_others(study: ModuleType) -> None:
    before = torch.get_rng_state()
    for number in range(20):
        one, other = (study.Candidate("sums", 0, number) for _ in range(2))
        how = one.values
        assert how == other.values != study.Candidate("sums", 1, number).values
        assert 16 <= how["hidden"] <= 64 and 0.5 <= how["gain"] <= 3 and 1e-4 <= how["rate"] <= 3e-2
        layer, twin = one.network()[0], other.network()[0]
        assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), twin.parameters(), strict=True))
        assert float(layer.weight_hh_l0.detach().std()) * how["hidden"] ** 0.5 == pytest.approx(how["gain"], rel=0.2)
    assert torch.equal(torch.get_rng_state(), before)


def test_sums_are_those_of_integers(study: ModuleType) -> None:
    batch = study.sums(16, torch.Generator().manual_seed(0), False, steps=12, delays=(0, 3))
    assert batch.inputs.shape == (12, 16, 2) and batch.targets.shape == (12, 16, 2)
    powers = 2 ** torch.arange(12)
    first, second = (((batch.inputs[..., i] > 0).long() * powers[:, None]).sum(0) for i in range(2))
    asked = (batch.targets[..., 0].long() * powers[:, None]).sum(0)
    assert torch.equal(asked, (first + second) % 2**12)
    assert batch.targets[:3, :, 1].isnan().all()
    assert torch.equal(batch.targets[3:, :, 1], batch.targets[:-3, :, 0])


def test_what_was_shown_is_asked_backwards(study: ModuleType) -> None:
    batch = study.reverse(16, torch.Generator().manual_seed(0), False, symbols=5, length=4, delay=3)
    assert (
        torch.equal(batch.targets[7:], batch.inputs[:4, :, :5].argmax(-1).flip(0)) and (batch.targets[:7] == -1).all()
    )


def test_first_in_is_first_out(study: ModuleType) -> None:
    """Oracle: the calls after a symbol that must come before it is called itself."""
    batch = study.queue(16, torch.Generator().manual_seed(0), False, steps=24, symbols=4, longest=3)
    is_call = batch.inputs[..., 4] == 1
    assert ((~is_call).long().cumsum(0) - is_call.long().cumsum(0)).aminmax() == (0, 3)
    for b in range(16):
        joined = batch.inputs[~is_call[:, b], b].argmax(-1)
        assert torch.equal(batch.targets[is_call[:, b], b], joined[: int(is_call[:, b].sum())])
    assert (batch.targets[~is_call] == -1).all()


def test_rank_correlation_of_known_orders(study: ModuleType) -> None:
    a = torch.tensor([0.1, 0.4, 0.2, 9.0])
    assert study.rank_correlation(a, a.exp()) == pytest.approx(1.0)
    assert study.rank_correlation(a, -a) == pytest.approx(-1.0)
    assert study.rank_correlation(a, torch.tensor([1.0, 2.0, 3.0, 4.0])) == pytest.approx(0.8)  # 1 - 6 * 2 / (4 * 15)


# ------------------------------------------------------------------ the whole of it


def test_what_is_kept_is_not_made_again(study: ModuleType, tmp_path: Path) -> None:
    made = []

    def make(candidate: Any) -> dict[str, Any]:
        made.append(candidate.number)
        return {"value": candidate.number / 2, "test": -math.inf}

    path = tmp_path / "kept.jsonl"
    for _ in range(2):  # as a second process would
        kept = study.Kept(path, make, jobs=1)
        records = kept.of(study.Candidate("sums", 0, n) for n in (3, 1, 3))
        assert [record["value"] for record in records.values()] == [1.5, 0.5]
    assert made == [3, 1] and records[study.Candidate("sums", 0, 1)]["test"] == -math.inf


def test_a_tiny_study_from_end_to_end(study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "KEPT", tmp_path)
    monkeypatch.setattr(study, "PAGE", tmp_path / "page.md")
    settings = study.Settings(epochs=2, updates=1, trials=2, drawn=3, seeds=1)
    rows = list(study.studies(settings, jobs=1))
    assert len(rows) == len(study.STUDIED) * len(study.METHODS)
    assert all(row["spent"] == 4 for row in rows), "with fewer trials than five nothing is pruned"
    curves = [json.loads(line) for line in (settings.folder / "curves.jsonl").read_text().splitlines()]
    assert all(len(one["valid"]) == len(one["predicted"]) == 2 for one in curves)
    assert all(0 <= value <= 1 for one in curves for value in one["predicted"])

    (tmp_path / "page.md").write_text(f"before\n{study.BEGIN}\nold\n{study.END}\nafter\n", encoding="utf-8")
    study.write(f"{study.tables(rows)}\n\n{study.costs(rows, settings)}\n\n{study.differences(rows)}")
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert page.startswith("before\n") and page.endswith("after\n") and "old" not in page
    assert all(page.count(f"| {name} |") == 2 for name in study.METHODS)
    study.draw(rows, settings).savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
