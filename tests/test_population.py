"""Populations against torch.nn modules trained one by one with torch's own Adam, and against parts of themselves."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from lightning_lyapunov import lyapunov_spectrum
from lightning_lyapunov.bank import population
from lightning_lyapunov.bank.cells import CELLS
from lightning_lyapunov.bank.population import METRICS, Draw, Population, draw, run
from lightning_lyapunov.bank.tasks import TASKS, Batch, loss, metric

EXACT = {"rtol": 0.0, "atol": 0.0, "equal_nan": True}
FIVE = Population("adding-20", "gru", 8, (0, 1, 2, 3, 4))


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Populations are trained for four updates."""
    monkeypatch.setattr(population, "CHECKPOINTS", (0, 4))
    monkeypatch.setattr(population, "FINAL", (2, 4))
    monkeypatch.setattr(population, "SECOND_PROBE", (4,))


@pytest.fixture
def double() -> Iterator[None]:
    """Float64 wherever nothing else is said."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def trainer(which: Population) -> population._Trainer:
    return population._Trainer(TASKS[which.task], CELLS[which.cell], which.hidden_size, which.networks, which.name)


def held_out(task: str) -> tuple[Batch, Batch, Tensor, Tensor]:
    """The validation set, the last set, and the inputs of both probes."""
    generator = population._generator("validation", task)
    batches = [TASKS[task].sample(size, generator, held_out=True) for size in (256, 256, 8, 8)]
    return batches[0], batches[1], batches[2].inputs[:64], batches[3].inputs[:64]


def tensors(record: dict[str, Any]) -> dict[str, Tensor]:
    return {key: value for key, value in record.items() if isinstance(value, Tensor)}


def test_constants_fit_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    checkpoints = population.CHECKPOINTS
    assert checkpoints[0] == 0
    assert list(checkpoints) == sorted(set(checkpoints))
    assert len(checkpoints) >= 7
    assert set(population.SECOND_PROBE) <= set(checkpoints)
    assert population.FINAL[-1] == checkpoints[-1]


# What was drawn -------------------------------------------------------------------------------------------------------


def test_a_draw_depends_on_its_own_number_alone() -> None:
    drawn = FIVE.networks
    alone = [dataclasses.replace(FIVE, draws=(number,), seed=7).networks[0] for number in (4, 3, 2, 1, 0)]
    assert alone[::-1] == drawn
    assert len(set(drawn)) == 5
    for other in ({"task": "recall-6"}, {"cell": "lstm"}, {"hidden_size": 9}):
        assert dataclasses.replace(FIVE, **other).networks[0] not in drawn  # type: ignore[arg-type]


def test_draws_cover_the_useful_range_and_some_of_the_rest() -> None:
    draws = [draw(str(n), "lstm") for n in range(2000)]
    useful = sum(d.is_useful for d in draws) / len(draws)
    # log-uniform: of the three tenths from afar, ln(2.5/.3)/ln(8/.05) of the gains and half of the rates are useful
    assert useful == pytest.approx(0.7 + 0.3 * math.log(2.5 / 0.3) / math.log(160) * 0.5, abs=0.03)
    assert {d.init for d in draws} == {"normal", "uniform", "orthogonal"}
    assert {d.memory_bias for d in draws} == {0.0, 1.0, 2.0}
    for values, low, high in (
        ([d.gain for d in draws], 0.05, 8.0),
        ([d.learning_rate for d in draws], 3e-4, 3e-2),
        ([d.input_gain for d in draws], 0.3, 3.0),
    ):
        assert low <= min(values) < 1.2 * low
        assert high / 1.2 < max(values) <= high
    assert {draw(str(n), "rnn").memory_bias for n in range(50)} == {0.0}


@pytest.mark.parametrize(
    ("gain", "rate", "useful"),
    [(0.3, 1e-3, True), (2.5, 1e-2, True), (0.29, 3e-3, False), (2.6, 3e-3, False), (1, 9e-4, False), (1, 2e-2, False)],
)
def test_useful_range(gain: float, rate: float, useful: bool) -> None:
    assert Draw("normal", gain, 1.0, 0.0, rate).is_useful is useful


def test_twins_share_draws_but_neither_weights_nor_batches() -> None:
    twin = dataclasses.replace(FIVE, seed=1)
    assert twin.networks == FIVE.networks
    assert twin.name != FIVE.name
    assert not torch.equal(trainer(twin).flat, trainer(FIVE).flat)
    batches = [population._generator("batches", f"{FIVE.task}_{seed}") for seed in (0, 1)]
    drawn = [TASKS[FIVE.task].sample(4, generator).inputs for generator in batches]
    assert not torch.equal(*drawn)


# Training -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_training_equals_torch_modules_with_adam(cell: str, double: None) -> None:
    """Each network rebuilt from torch.nn, clipped by torch, stepped by torch.optim.Adam."""
    which = Population("adding-20", cell, 8, (0, 1, 2, 3))
    ours, task = trainer(which), TASKS[which.task]
    generator = torch.Generator().manual_seed(0)
    batches = [task.sample(16, generator) for _ in range(6)]
    batches[2] = Batch(batches[2].inputs, 20 * batches[2].targets)  # gradients to clip
    theirs = []
    for n, how in enumerate(which.networks):
        module, out = CELLS[cell].module(ours.network(n)), nn.Linear(8, 1)
        module.bias_hh_l0.requires_grad_(False)
        with torch.no_grad():
            out.weight.copy_(ours.weights["out"][n])
            out.bias.copy_(ours.weights["out_bias"][n])
        parameters = [p for p in (*module.parameters(), *out.parameters()) if p.requires_grad]
        theirs.append((module, out, parameters, torch.optim.Adam(parameters, lr=how.learning_rate)))

    norms = []
    for batch in batches:
        losses, norm = ours.differentiate(batch)
        ours.step()
        norms.append(norm)
        for n, (module, out, parameters, adam) in enumerate(theirs):
            adam.zero_grad()
            expected = loss(task, out(module(batch.inputs)[0])[None], batch.targets)[0]
            expected.backward()
            torch.testing.assert_close(losses[n], expected.detach(), rtol=1e-5, atol=1e-7)
            torch.testing.assert_close(norm[n], clip_grad_norm_(parameters, 1.0), rtol=1e-5, atol=1e-7)
            adam.step()
    assert (torch.stack(norms)[2] > 1).all()
    assert (torch.stack(norms) < 1).any()
    for n, (_, _, parameters, _) in enumerate(theirs):
        whole = torch.cat([p.detach().flatten() for p in parameters])
        torch.testing.assert_close(ours.flat[n], whole, rtol=1e-5, atol=1e-7)  # torch divides by norm + 1e-6


def test_plain_lstm_equals_the_stacked_one(double: None) -> None:
    which = Population("adding-20", "lstm", 64, (0, 1))
    plain, stacked = trainer(which), trainer(which)
    assert plain.is_plain
    stacked.is_plain = False
    batch = TASKS[which.task].sample(4, torch.Generator().manual_seed(0))
    torch.testing.assert_close(plain.forward(batch.inputs), stacked.forward(batch.inputs), rtol=0, atol=1e-12)
    torch.testing.assert_close(plain.differentiate(batch), stacked.differentiate(batch), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(plain.gradient, stacked.gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_a_network_learns_alone_as_in_company(cell: str, double: None) -> None:
    together = trainer(Population("adding-20", cell, 8, (0, 1, 2)))
    others = trainer(Population("adding-20", cell, 8, (5, 1, 6)))  # its weights go by its place
    alone = trainer(Population("adding-20", cell, 8, (0,)))
    batch = TASKS["adding-20"].sample(4, torch.Generator().manual_seed(0))
    for _ in range(3):
        for one in (together, others, alone):
            one.differentiate(batch)
            one.step()
    torch.testing.assert_close(others.flat[1], together.flat[1], rtol=0, atol=1e-9)
    torch.testing.assert_close(alone.flat[0], together.flat[0], rtol=0, atol=1e-9)
    assert not torch.equal(others.flat[0], together.flat[0])


def test_a_network_leaves_the_record_alone_that_it_leaves_in_company() -> None:
    together, alone = run(FIVE), run(dataclasses.replace(FIVE, draws=(0,)))
    assert alone["networks"] == together["networks"][:1]
    for key, values in tensors(alone).items():
        torch.testing.assert_close(values[0], tensors(together)[key][0], rtol=1e-4, atol=1e-4, equal_nan=True)


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
    for key in ("spectrum", "stderr", "final"):
        assert record[key][1].isnan().all(), key
    assert record["metrics"][1, :, METRICS.index("metric")].isnan().all()


def test_weights_that_are_not_finite_stay_and_the_others_move(double: None) -> None:
    ours, reference = trainer(FIVE), trainer(FIVE)
    ours.flat[2, 0] = math.nan
    batch = TASKS[FIVE.task].sample(16, torch.Generator().manual_seed(0))
    for one in (ours, reference):
        one.differentiate(batch)
        one.step()
    others = [0, 1, 3, 4]
    assert torch.equal(ours.flat[others], reference.flat[others])
    assert torch.equal(ours.flat[2, 1:], trainer(FIVE).flat[2, 1:])


# Records --------------------------------------------------------------------------------------------------------------


def test_the_same_population_leaves_the_same_record_and_draws_nothing_else() -> None:
    before = torch.get_rng_state()
    first = run(FIVE)
    torch.rand(3)
    torch.testing.assert_close(tensors(run(FIVE)), tensors(first), **EXACT)
    torch.set_rng_state(before)
    run(FIVE)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("cell", "dimension"), [("rnn", 8), ("lstm", 16)])
def test_shapes_and_what_was_not_asked_for(cell: str, dimension: int) -> None:
    record = run(dataclasses.replace(FIVE, cell=cell))
    shapes = {key: tuple(values.shape) for key, values in tensors(record).items()}
    assert shapes == {
        "spectrum": (5, 2, dimension),
        "stderr": (5, 2, dimension),
        "second": (5, 1, dimension),
        "metrics": (5, 2, len(METRICS)),
        "final": (5,),
    }
    assert not any(record[key].isnan().any() for key in ("spectrum", "stderr", "metrics", "final"))
    assert record["second"].isnan().flatten(1).any(1).tolist() == [False, True, True, True, False]
    assert record["second"][1:4].isnan().all()
    assert (record["spectrum"].diff() <= 0).all()
    network = record["networks"][3]
    how = draw(f"adding-20_{cell}_8_3", cell)
    assert network == {
        "task": "adding-20",
        "family": "adding",
        "cell": cell,
        "hidden_size": 8,
        "number": 3,
        "seed": 0,
        **dataclasses.asdict(how),
    }


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_record_before_training_by_hand(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every number of an untrained network again from its torch.nn module."""
    for name in ("CHECKPOINTS", "FINAL", "SECOND_PROBE"):
        monkeypatch.setattr(population, name, (0,))
    which = Population("recall-6", cell, 8, (0, 1))
    task, record, initial = TASKS[which.task], run(which), trainer(which)
    validation, last, *probes = held_out(which.task)
    first = task.sample(32, population._generator("batches", "recall-6_0"))
    for n in range(2):
        module = CELLS[cell].module(initial.network(n))
        for key, inputs in zip(("spectrum", "second"), probes, strict=True):
            spectrum = lyapunov_spectrum(module, inputs, transient=task.steps // 4)
            if key == "spectrum":
                torch.testing.assert_close(record["stderr"][n, 0], spectrum.stderr.float(), **EXACT)
            if key == "spectrum" or n == 0:
                torch.testing.assert_close(record[key][n, 0], spectrum.exponents.float(), **EXACT)

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


def test_final_is_the_mean_over_the_last_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    both = run(FIVE)["final"]
    each = []
    for update in (2, 4):
        monkeypatch.setattr(population, "FINAL", (update,))
        each.append(run(FIVE)["final"])
    torch.testing.assert_close(both, torch.stack(each).mean(0))
    assert not torch.equal(*each)


def test_probes_are_measured_for_at_most_64_steps_of_8_sequences() -> None:
    which = Population("adding-40", "rnn", 8, (0,))
    assert held_out(which.task)[2].shape == (40, 8, 2)
    exponents, stderr = population.measure(nn.RNN(2, 8), held_out(which.task)[2], 8)
    assert exponents.isfinite().all()
    assert (stderr > 0).any()  # between sequences


def test_a_module_that_cannot_be_measured_is_unknown() -> None:
    module = nn.RNN(2, 4)
    nn.init.constant_(module.weight_hh_l0, math.nan)
    exponents, stderr = population.measure(module, torch.zeros(8, 2, 2), 4)
    assert exponents.shape == stderr.shape == (4,)
    assert exponents.isnan().all()
    assert stderr.isnan().all()
