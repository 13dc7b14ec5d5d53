"""Populations against their networks measured and judged one by one, and against parts of themselves."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_lyapunov import lyapunov_spectrum
from lightning_lyapunov.bank import population
from lightning_lyapunov.bank.cells import CELLS
from lightning_lyapunov.bank.draws import Draw, draw, generator
from lightning_lyapunov.bank.population import METRICS, Population, run
from lightning_lyapunov.bank.probes import MEASURED, long_probe, probe, quantile_function
from lightning_lyapunov.bank.records import write_record
from lightning_lyapunov.bank.tasks import TASKS, Batch, loss, metric

EXACT = {"rtol": 0.0, "atol": 0.0, "equal_nan": True}
FIVE = Population("adding-20", "gru", 8, (0, 1, 2, 3, 4))


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Populations are trained for four updates, two of which make an epoch."""
    monkeypatch.setattr(population, "CHECKPOINTS", (0, 4))
    monkeypatch.setattr(population, "EPOCH", 1)


def tensors(record: dict[str, Any]) -> dict[str, Tensor]:
    return {key: value for key, value in record.items() if isinstance(value, Tensor)}


def test_checkpoints_run_to_the_end_of_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert population.CHECKPOINTS == (0, 10, 40, 80, 160, 320, 560, 800, 1400, 2000)
    ends = {task: TASKS[task].updates for task in TASKS}
    for task, end in ends.items():
        checkpoints = Population(task, "rnn", 4, (0,)).checkpoints
        assert checkpoints == population.CHECKPOINTS[: len(checkpoints)]
        assert checkpoints[-1] == end


def test_the_same_population_leaves_the_same_bytes_and_draws_nothing_else(tmp_path: Path) -> None:
    """Whatever the number of threads, and whatever was drawn before."""
    threads, before = torch.get_num_threads(), torch.get_rng_state()
    for place, which in enumerate((FIVE, dataclasses.replace(FIVE, cell="lstm", layers=2, draws=(0, 1)))):
        write_record(run(which), tmp_path / f"first{place}")
        torch.rand(3)
        torch.set_num_threads(2)
        write_record(run(which), tmp_path / f"again{place}")
        assert torch.get_num_threads() == 2
        torch.set_num_threads(threads)
        assert (tmp_path / f"first{place}").read_bytes() == (tmp_path / f"again{place}").read_bytes()
    torch.set_rng_state(before)
    run(FIVE)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_network_leaves_the_record_alone_that_it_leaves_in_company() -> None:
    together, alone = run(FIVE), run(dataclasses.replace(FIVE, draws=(2,)))
    assert alone["networks"] == together["networks"][2:3]
    for key, values in tensors(alone).items():
        torch.testing.assert_close(values[0], tensors(together)[key][2], rtol=2e-3, atol=2e-3, equal_nan=True, msg=key)


def test_a_network_that_is_not_finite_disturbs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    healthy = run(FIVE)

    def one_bad(name: str, cell: str) -> Draw:
        how = draw(name, cell)
        return dataclasses.replace(how, gain=math.inf) if name == "adding-20_gru_8_1" else how

    monkeypatch.setattr(population, "draw", one_bad)
    record = run(FIVE)
    others = [0, 2, 3, 4]
    for key, values in tensors(record).items():
        torch.testing.assert_close(values[others], tensors(healthy)[key][others], **EXACT, msg=key)
    for key in ("quantiles", "leading", "measured", "long_quantiles", "final"):
        assert record[key][1].isnan().all(), key
    assert record["metrics"][1, :, METRICS.index("metric")].isnan().all()


@pytest.mark.parametrize(("cell", "layers", "dimension"), [("rnn", 1, 8), ("lstm", 2, 32), ("cfc", 1, 8)])
def test_shapes_and_how_networks_were_made(cell: str, layers: int, dimension: int) -> None:
    record = run(dataclasses.replace(FIVE, cell=cell, layers=layers))
    shapes = {key: (tuple(values.shape), values.dtype) for key, values in tensors(record).items()}
    assert shapes == {
        "quantiles": ((5, 2, 64), torch.float16),
        "leading": ((5, 2, 8), torch.float16),
        "measured": ((5, 2, len(MEASURED)), torch.float32),
        "long_quantiles": ((5, 3, 64), torch.float16),
        "long_leading": ((5, 3, 8), torch.float16),
        "long_measured": ((5, 3, len(MEASURED)), torch.float32),
        "metrics": ((5, 2, len(METRICS)), torch.float32),
        "final": ((5,), torch.float32),
        **({"layers": ((5, 2, 2, 2), torch.float32)} if layers == 2 else {}),
    }
    assert not any(record[key].isnan().any() for key in ("quantiles", "leading", "measured", "metrics", "final"))
    assert record["long_quantiles"][:, [0, 2]].isfinite().all() and record["long_quantiles"][:, 1].isnan().all()
    assert (record["quantiles"].diff() <= 0).all()
    how = draw(f"adding-20_{cell}_8{'x2' if layers == 2 else ''}_3", cell)
    assert record["networks"][3] == {
        "task": "adding-20",
        "family": "adding",
        "cell": cell,
        "layers": layers,
        "hidden_size": 8,
        "dimension": dimension,
        "number": 3,
        "seed": 0,
        **dataclasses.asdict(how),
    }


@pytest.mark.parametrize("cell", ["rnn", "rnn_relu", "gru", "lstm"])
def test_record_before_training_by_hand(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every number of an untrained network again from its torch.nn module."""
    monkeypatch.setattr(population, "CHECKPOINTS", (0,))
    which = Population("recall-6", cell, 8, (0, 1))
    task, record, initial = TASKS[which.task], run(which), which.trainer()
    source = generator("validation", which.task)
    validation, last = (task.sample(256, source, held_out=True) for _ in range(2))
    inputs, long_inputs = probe(task, source), long_probe(task, source)
    first = task.sample(32, generator("batches", "recall-6_0"))
    for n in range(2):
        module = CELLS[cell].module(*initial.network(n))
        for start, spectrum in (
            ("", lyapunov_spectrum(module, inputs)),
            ("long_", lyapunov_spectrum(module, long_inputs, transient=64)),
        ):
            quantiles = quantile_function(spectrum.exponents).half()
            torch.testing.assert_close(record[f"{start}quantiles"][n, 0], quantiles, **EXACT)
            torch.testing.assert_close(record[f"{start}leading"][n, 0], spectrum.exponents[:8].half(), **EXACT)
            gain = float(record[f"{start}measured"][n, 0, MEASURED.index("gradient_gain")])
            assert gain == pytest.approx(spectrum.gain)

        def read(batch: Batch, module: nn.Module = module, n: int = n) -> tuple[Tensor, Tensor]:
            states = module(batch.inputs)[0]
            return (states @ initial.weights["out"][n].T + initial.weights["out_bias"][n])[None].detach(), states

        outputs, states = read(validation)
        expected = {
            "metric": metric(task, outputs, validation.targets)[0],
            "loss": loss(task, outputs, validation.targets)[0],
            "train_loss": loss(task, read(first)[0], first.targets)[0],
            "mean_abs_h": states.abs().mean().detach(),
            "std_h": states.std().detach(),
        }
        for key, value in expected.items():
            ours = record["metrics"][n, 0, METRICS.index(key)]
            torch.testing.assert_close(ours, value, rtol=1e-4, atol=1e-5, msg=key)
        torch.testing.assert_close(record["final"][n], metric(task, read(last)[0], last.targets)[0])


def test_final_is_the_mean_over_the_last_three_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(FIVE)["final"]
    each = []
    for end in (2, 3, 4):
        monkeypatch.setattr(population, "CHECKPOINTS", (0, end))
        monkeypatch.setattr(population, "EPOCH", 100)
        each.append(run(FIVE)["final"])
    torch.testing.assert_close(whole, torch.stack(each).mean(0))
    assert not torch.equal(each[0], each[2])
