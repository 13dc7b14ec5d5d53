"""Records and banks against what was put into them, and skills worked by hand."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from systems import noise
from torch import Tensor

from lightning_lyapunov.bank.population import CHECKPOINTS, METRICS, SECOND_PROBE
from lightning_lyapunov.bank.records import Bank, collect, write_record

HALF = {"rtol": 2**-11, "atol": 2**-25, "equal_nan": True}  # half a unit in the last place of float16, and of its least
MADE = {"seed": 0, "init": "normal", "gain": 1.25, "input_gain": 0.7, "memory_bias": 0.0, "learning_rate": 0.0023}


def record(task: str, cell: str, dimension: int, networks: int, seed: int = 0) -> dict[str, Any]:
    """What a population leaves, with numbers that were drawn, dead directions, and one network without a spectrum."""
    spectrum = noise(networks, len(CHECKPOINTS), dimension, seed=seed).float().sort(descending=True).values
    spectrum[0, :, -1] = -math.inf
    spectrum[-1] = math.nan
    second = noise(networks, len(SECOND_PROBE), dimension, seed=seed + 1).float()
    second[[n for n in range(networks) if n % 4]] = math.nan
    metrics = noise(networks, len(CHECKPOINTS), len(METRICS), seed=seed + 2).float()
    metrics[-1, :, 0] = math.nan
    made = [
        {"task": task, "family": task.split("-")[0], "cell": cell, "hidden_size": 4, "number": n} | MADE
        for n in range(networks)
    ]
    final = torch.linspace(0.0, 0.9, networks)
    stderr = torch.where(spectrum.isfinite(), noise(*spectrum.shape, seed=seed + 3).float().abs(), math.nan)
    return {
        "spectrum": spectrum, "stderr": stderr, "second": second, "metrics": metrics, "final": final, "networks": made,
    }  # fmt: skip


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Two populations, of different dimensions, that were written in another order than that of their names."""
    write_record(record("recall-6", "lstm", 8, 3, seed=9), tmp_path / "records" / "b.safetensors")
    write_record(record("adding-20", "rnn", 4, 6), tmp_path / "records" / "a.safetensors")
    return tmp_path / "records"


def bank_of(finals: dict[str, list[float]]) -> Bank:
    """Networks that have nothing but a task and a final metric."""
    networks = [{"task": task} for task, values in finals.items() for _ in values]
    final = torch.tensor([value for values in finals.values() for value in values])
    nothing: list[Tensor] = [torch.empty(0)] * len(networks)
    return Bank(networks, nothing, nothing, nothing, torch.empty(len(networks), 1, 1), final)


def test_collect_returns_what_was_written_in_order_of_names(directory: Path) -> None:
    bank = collect(directory)
    parts = record("adding-20", "rnn", 4, 6), record("recall-6", "lstm", 8, 3, seed=9)
    assert len(bank) == 9
    dimensions = [4] * 6 + [8] * 3
    made = [network for part in parts for network in part["networks"]]
    assert bank.networks == [{**how, "dimension": d} for how, d in zip(made, dimensions, strict=True)]
    for ours, key in ((bank.spectra, "spectrum"), (bank.second, "second")):
        expected = [row for part in parts for row in part[key]]
        torch.testing.assert_close(list(ours), expected, rtol=0, atol=0, equal_nan=True)
    for whole, key in ((bank.metrics, "metrics"), (bank.final, "final")):
        expected_whole = torch.cat([part[key] for part in parts])
        torch.testing.assert_close(whole, expected_whole, rtol=0, atol=0, equal_nan=True)


def test_standard_errors_are_kept_as_the_largest_the_median_and_the_first(directory: Path) -> None:
    """Sorted by Python; what has none, as dead directions and spectra that were not measured, counts as 0."""
    bank = collect(directory)
    whole = [
        network for part in (record("adding-20", "rnn", 4, 6), record("recall-6", "lstm", 8, 3, seed=9))
        for network in part["stderr"].nan_to_num(0.0).tolist()
    ]  # fmt: skip
    for ours, network in zip(bank.stderr, whole, strict=True):
        ordered = [sorted(errors) for errors in network]
        # Of an even number torch's median is the lower one.
        expected = [[o[-1], o[(len(o) - 1) // 2], errors[0]] for o, errors in zip(ordered, network, strict=True)]
        assert ours.tolist() == expected


def test_standard_errors_worked_by_hand(tmp_path: Path) -> None:
    made = record("adding-20", "rnn", 6, 2)
    made["stderr"][0, 3] = torch.tensor([0.3, 0.9, 0.1, math.nan, 0.2, 0.0])
    made["stderr"][1] = math.nan
    write_record(made, tmp_path / "a.safetensors")
    bank = collect(tmp_path)
    assert bank.stderr[0][3].tolist() == pytest.approx([0.9, 0.1, 0.3])  # 0, 0, 0.1, 0.2, 0.3, 0.9
    assert bank.stderr[1].tolist() == [[0.0] * 3] * len(CHECKPOINTS)


def test_save_and_load_keep_all_but_the_digits_of_float16(directory: Path, tmp_path: Path) -> None:
    bank = collect(directory)
    bank.save(tmp_path / "new" / "bank.safetensors")
    loaded = Bank.load(tmp_path / "new" / "bank.safetensors")
    assert loaded.networks == bank.networks
    for key in ("spectra", "stderr", "second"):
        torch.testing.assert_close(getattr(loaded, key), getattr(bank, key), **HALF)
    torch.testing.assert_close(loaded.metrics, bank.metrics, **HALF)
    assert torch.equal(loaded.final, bank.final)
    assert loaded.spectra[0][:, -1].tolist() == [-math.inf] * len(CHECKPOINTS)
    assert loaded.spectra[5].isnan().all()
    has_second = [not second.isnan().all() for second in loaded.second]
    assert has_second == [number % 4 == 0 for number in loaded.column("number")]
    assert {tuple(error.shape) for error in loaded.stderr} == {(len(CHECKPOINTS), 3)}
    floats = (*loaded.spectra, *loaded.stderr, *loaded.second, loaded.metrics)
    assert {tensor.dtype for tensor in floats} == {torch.float32}


def test_files_are_safetensors_that_everybody_may_read(directory: Path, tmp_path: Path) -> None:
    compact, plain = tmp_path / "bank.safetensors", tmp_path / "plain"
    collect(directory).save(compact)
    plain.touch()
    for path in (compact, *directory.iterdir()):
        assert path.stat().st_mode == plain.stat().st_mode
        with safe_open(path, "pt") as file:  # what no pickle can be
            assert file.metadata()["format"] == "lightning_lyapunov.bank/1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bank.safetensors", "plain", "records"]


@pytest.mark.parametrize("metadata", [None, {"format": "lightning_lyapunov.bank/0"}])
def test_another_format_is_refused(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"spectra": torch.zeros(2)}, path, metadata)
    for read in (Bank.load, lambda path: collect(path.parent)):
        with pytest.raises(ValueError, match=r"path must be a file of format lightning_lyapunov\.bank/1; .*other"):
            read(path)


def test_a_directory_without_records_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adding-20_rnn_8_0.4711").write_bytes(b"half of a record")
    with pytest.raises(ValueError, match="directory must hold records of populations"):
        collect(tmp_path)


def test_skill_worked_by_hand() -> None:
    """From chance, 1/8 in recall-6 and 0 in adding-20, to the best: the 99 % quantile, between two networks here."""
    bank = bank_of({"recall-6": [0.125, 0.6, 1.0], "adding-20": [0.3, 0.8, math.nan, -2.0]})
    best = {"recall-6": 0.6 + 0.98 * 0.4, "adding-20": 0.3 + 0.97 * 0.5}  # places 1.98 and 2.97 of 0, 1, 2 (, 3)
    assert bank.best == pytest.approx(best)
    by_hand = [0.0, (0.6 - 0.125) / (best["recall-6"] - 0.125), 1.0, 0.3 / best["adding-20"], 1.0, 0.0, 0.0]
    assert bank.skill(bank.final).tolist() == pytest.approx(by_hand)


def test_a_subset_keeps_what_the_best_of_all_was() -> None:
    bank = bank_of({"recall-6": [0.125, 0.6, 1.0], "adding-20": [0.3, 0.8]})
    few = bank.subset([3, 1])
    assert few.column("task") == ["adding-20", "recall-6"]
    assert few.final.tolist() == pytest.approx([0.3, 0.6])
    assert few.best == bank.best
    assert few.skill(few.final).tolist() == bank.skill(bank.final)[[3, 1]].tolist()
    assert few.subset([0]).best == bank.best


def test_a_metric_is_found_by_name_and_update(directory: Path) -> None:
    bank = collect(directory)
    index = CHECKPOINTS.index(40), METRICS.index("gradient_norm")
    expected = torch.cat([record("adding-20", "rnn", 4, 6)["metrics"], record("recall-6", "lstm", 8, 3, 9)["metrics"]])
    torch.testing.assert_close(bank.metric("gradient_norm", 40), expected[:, index[0], index[1]], rtol=0, atol=0)
