"""Records and banks against what was put into them, and skills worked by hand."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from systems import noise

from lightning_lyapunov.bank import bank_1
from lightning_lyapunov.bank.population import CHECKPOINTS, METRICS
from lightning_lyapunov.bank.probes import MEASURED, quantile_function
from lightning_lyapunov.bank.records import PER_NETWORK, Bank, read_record, write_record
from lightning_lyapunov.files import write_tensors

EXACT = {"rtol": 0.0, "atol": 0.0, "equal_nan": True}
MADE = {
    "seed": 0, "init": "normal", "gain": 1.25, "input_gain": 0.7, "memory_bias": 0.0, "learning_rate": 0.0023,
    "optimizer": "sgd", "clip": False, "warmup": 40,
}  # fmt: skip


def record(
    task: str, cell: str, dimension: int, networks: int, seed: int = 0, *, rows: int = 10, layers: int = 1
) -> dict[str, Any]:
    """What a population leaves, with numbers that were drawn, dead directions, and one network without a spectrum."""

    def spectra(moments: int, width: int, seed: int) -> torch.Tensor:
        values = noise(networks, moments, width, seed=seed).sort(descending=True).values.half()
        values[0, :, -1] = -math.inf
        values[-1] = math.nan
        return values

    metrics = noise(networks, rows, len(METRICS), seed=seed + 2).float()
    metrics[-1, :, 0] = math.nan
    made = [
        {"task": task, "family": task.split("-")[0], "cell": cell, "layers": layers, "hidden_size": 4}
        | {"dimension": dimension, "number": n} | MADE | {"gain": 1.25 + n}
        for n in range(networks)
    ]  # fmt: skip
    tensors = {
        "quantiles": spectra(rows, 64, seed),
        "leading": spectra(rows, 8, seed + 1),
        "measured": noise(networks, rows, len(MEASURED), seed=seed + 3).abs().float(),
        "long_quantiles": spectra(3, 64, seed + 4),
        "long_leading": spectra(3, 8, seed + 5),
        "long_measured": noise(networks, 3, len(MEASURED), seed=seed + 6).abs().float(),
        "metrics": metrics,
        "final": torch.linspace(0.0, 0.9, networks),
        **({"layers": noise(networks, rows, 2, 2, seed=seed + 7).float()} if layers > 1 else {}),
    }
    return {**tensors, "networks": made}


A, B = record("adding-20", "rnn", 4, 6), record("recall-6", "lstm", 16, 3, seed=9, rows=8, layers=2)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Two populations, of different ends and numbers of layers, written in another order than that of their names."""
    write_record(B, tmp_path / "records" / "b.safetensors")
    write_record(A, tmp_path / "records" / "a.safetensors")
    return tmp_path / "records"


def bank_of(finals: dict[str, list[float]]) -> Bank:
    """Networks that have nothing but a task and a final metric."""
    networks = [{"task": task} for task, values in finals.items() for _ in values]
    final = torch.tensor([value for values in finals.values() for value in values])
    nothing = dict.fromkeys(PER_NETWORK, torch.zeros(len(networks), 1)) | {"final": final}
    return Bank(networks, CHECKPOINTS, **nothing)


def test_a_record_is_read_as_it_was_written(directory: Path, tmp_path: Path) -> None:
    for written, name in ((A, "a"), (B, "b")):
        path = directory / f"{name}.safetensors"
        found = read_record(path)
        assert found["networks"] == written["networks"]
        assert found.keys() == written.keys()
        for key in written.keys() - {"networks"}:
            torch.testing.assert_close(found[key], written[key], **EXACT)
        write_record(found, tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_a_bank_is_its_records_in_order_of_names(directory: Path) -> None:
    bank = Bank.load(directory)
    assert len(bank) == 9
    assert bank.networks == A["networks"] + B["networks"]
    assert bank.checkpoints == CHECKPOINTS
    assert bank.end.tolist() == [2000] * 6 + [800] * 3
    for key in ("quantiles", "leading", "measured", "metrics", "long_quantiles", "long_leading", "long_measured"):
        ours = getattr(bank, key)
        rows = B[key].shape[1]
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours[:6], A[key].float(), **EXACT)
        torch.testing.assert_close(ours[6:, :rows], B[key].float(), **EXACT)
        assert ours[6:, rows:].isnan().all() and ours.shape[1] == (3 if "long" in key else 10)
    torch.testing.assert_close(bank.final, torch.cat([A["final"], B["final"]]), **EXACT)
    assert bank.layers[:6].isnan().all() and bank.layers[6:, 8:].isnan().all()
    torch.testing.assert_close(bank.layers[6:, :8], B["layers"], **EXACT)


def test_the_digest_is_that_of_names_and_contents(directory: Path) -> None:
    contents = {path.name: path.read_bytes() for path in sorted(directory.iterdir())}
    lines = [f"{name} {hashlib.sha256(content).hexdigest()}\n" for name, content in contents.items()]
    before = Bank.load(directory).digest
    assert before == hashlib.sha256("".join(lines).encode()).hexdigest()
    write_record(record("adding-20", "rnn", 4, 6, seed=1), directory / "a.safetensors")
    assert Bank.load(directory).digest != before


def test_what_networks_share_is_written_once(directory: Path) -> None:
    with safe_open(directory / "a.safetensors", "pt") as file:  # what no pickle can be
        metadata = file.metadata()
    assert metadata["format"] == "lightning_lyapunov.bank/2"
    gains = "[1.25,2.25,3.25,4.25,5.25,6.25]"
    for part in ('"task":"adding-20"', '"number":[0,1,2,3,4,5]', f'"gain":{gains}', '"clip":false'):
        assert part in metadata["networks"]


def test_files_are_such_that_everybody_may_read(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    for path in directory.iterdir():
        assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert sorted(path.name for path in directory.iterdir()) == ["a.safetensors", "b.safetensors"]


@pytest.mark.parametrize("metadata", [None, {"format": "lightning_lyapunov.bank/0"}])
def test_another_format_is_refused(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"quantiles": torch.zeros(2)}, path, metadata)
    with pytest.raises(ValueError, match=r"path must be a file of format lightning_lyapunov\.bank/1; .*other"):
        Bank.load(path)
    with pytest.raises(ValueError, match=r"path must be a file of format lightning_lyapunov\.bank/2; .*other"):
        Bank.load(tmp_path)


def test_a_directory_without_records_is_refused(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "adding-20_rnn_8_0.4711").write_bytes(b"half of a record")
    with pytest.raises(ValueError, match="path must hold records of populations"):
        Bank.load(tmp_path)
    with pytest.raises(ValueError, match=r"records lacks 1, c among them\. Build again: what is there is kept\."):
        Bank.load(directory, expected=["a", "c"])
    assert len(Bank.load(directory, expected=["a", "b"])) == 9


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
    assert {getattr(few, name).shape[0] for name in PER_NETWORK} == {2}
    assert few.best == bank.best
    assert few.skill(few.final).tolist() == bank.skill(bank.final)[[3, 1]].tolist()
    assert few.subset([0]).best == bank.best


def test_a_metric_is_found_by_name_and_update(directory: Path) -> None:
    bank = Bank.load(directory)
    index = METRICS.index("gradient_norm")
    both = torch.cat([A["metrics"][:, 2, index], B["metrics"][:, 2, index]])
    torch.testing.assert_close(bank.metric("gradient_norm", 40), both, **EXACT)
    assert bank.metric("loss", 2000)[6:].isnan().all() and bank.metric("loss", 2000)[:6].isfinite().all()


# ------------------------------------------------------------------ the format before


def write_bank_1(path: Path, sizes: tuple[int, ...] = (4, 6, 4)) -> list[torch.Tensor]:
    """A bank of networks of so many dimensions, and their spectra as float16."""
    spectra = [noise(8, size, seed=i).sort(descending=True).values.half() for i, size in enumerate(sizes)]
    spectra[1][:, -1] = -math.inf
    spectra[2][:] = math.nan
    first = {key: value for key, value in MADE.items() if key not in bank_1.ALIKE} | {"hidden_size": 4}
    networks = [
        {"task": "adding-20", "family": "adding", "cell": "gru", "number": i, "dimension": size} | first
        for i, size in enumerate(sizes)
    ]
    tensors = {
        "spectra": torch.cat([spectrum.flatten() for spectrum in spectra]),
        "stderr": torch.arange(8 * 3 * len(sizes)).half(),
        "second": torch.zeros(3 * sizes[0]).half(),
        "has_second": torch.tensor([True] + [False] * (len(sizes) - 1)),
        "metrics": noise(len(sizes), 8, 6).float(),
        "final": torch.linspace(0, 1, len(sizes)),
    }
    write_tensors(path, tensors, {"format": bank_1.FORMAT, "networks": json.dumps(networks)})
    return spectra


def test_a_bank_of_the_format_before_is_read(tmp_path: Path) -> None:
    spectra = write_bank_1(tmp_path / "bank.safetensors")
    bank = Bank.load(tmp_path / "bank.safetensors")
    assert bank.digest == hashlib.sha256((tmp_path / "bank.safetensors").read_bytes()).hexdigest()
    assert bank.checkpoints == (0, 10, 40, 80, 160, 320, 560, 800)
    assert bank.end.tolist() == [800] * 3
    assert bank.networks[1] == {
        "task": "adding-20", "family": "adding", "cell": "gru", "layers": 1, "hidden_size": 4, "dimension": 6,
        "number": 1, **MADE, "optimizer": "adam", "clip": True, "warmup": 0,
    }  # fmt: skip
    torch.testing.assert_close(bank.metrics, noise(3, 8, 6).float(), **EXACT)
    for n, spectrum in enumerate(spectra):
        size = spectrum.shape[1]
        torch.testing.assert_close(bank.quantiles[n], quantile_function(spectrum.float()), **EXACT)
        torch.testing.assert_close(bank.leading[n, :, :size], spectrum.float(), **EXACT)
        assert bank.leading[n, :, size:].isnan().all()
        mean = bank.measured[n, :, MEASURED.index("mean")]
        torch.testing.assert_close(mean, spectrum.float().clamp(min=-100.0).mean(1), **EXACT)
    stderr = torch.arange(8.0 * 3 * 3).view(3, 8, 3)
    for name, column in (("median_error", 1), ("max_error", 2)):
        torch.testing.assert_close(bank.measured[..., MEASURED.index(name)], 2 * stderr[..., column], **EXACT)
    others = [i for i, name in enumerate(MEASURED) if name not in ("mean", "median_error", "max_error")]
    assert bank.measured[:, :, others].isnan().all()
    for values in (bank.long_quantiles, bank.long_leading, bank.long_measured, bank.layers):
        assert values.isnan().all()
