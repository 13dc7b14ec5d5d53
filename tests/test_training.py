"""Networks trained side by side against torch.nn modules trained one by one with torch's own optimisers."""

import dataclasses
import math
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LambdaLR

from lightning_lyapunov.bank.cells import CELLS, UNKNOWN_CELLS
from lightning_lyapunov.bank.draws import Draw
from lightning_lyapunov.bank.population import Population
from lightning_lyapunov.bank.tasks import TASKS, Batch, loss
from lightning_lyapunov.bank.training import Trainer

FIVE = Population("adding-20", "gru", 8, (0, 1, 2, 3, 4))
KNOWN = [name for name in CELLS if name not in UNKNOWN_CELLS]
HOWS = [
    Draw("normal", 1.0, 1.0, 0.0, rate, optimizer, clip, warmup)
    for optimizer, rate in (("adam", 3e-3), ("sgd", 3e-2))
    for clip in (True, False)
    for warmup in (0, 4)
]
"""Every way to train."""


@pytest.fixture
def double() -> Iterator[None]:
    """Float64 wherever nothing else is said."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def trainer(cell: str, hows: list[Draw], layers: int = 1) -> Trainer:
    return Trainer(TASKS["adding-20"], CELLS[cell], 8, layers, hows, [str(n) for n in range(len(hows))])


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", KNOWN)
def test_training_equals_torch_modules_and_optimisers(cell: str, layers: int, double: None) -> None:
    """Each network rebuilt from torch.nn, clipped by torch, stepped by torch.optim at a rate of torch's scheduler."""
    ours, task = trainer(cell, HOWS, layers), TASKS["adding-20"]
    generator = torch.Generator().manual_seed(0)
    batches = [task.sample(16, generator) for _ in range(6)]
    batches[2] = Batch(batches[2].inputs, 20 * batches[2].targets)  # gradients to clip
    theirs = []
    for n, how in enumerate(HOWS):
        module, out = CELLS[cell].module(*ours.network(n)), nn.Linear(8, 1)
        with torch.no_grad():
            out.weight.copy_(ours.weights["out"][n])
            out.bias.copy_(ours.weights["out_bias"][n])
        recurrent = [p for name, p in module.named_parameters() if "bias_hh" not in name]
        parameters = [*recurrent, *out.parameters()]
        optimizer: torch.optim.Optimizer
        if how.optimizer == "adam":
            optimizer = torch.optim.Adam(parameters, lr=how.learning_rate)
        else:
            optimizer = torch.optim.SGD(parameters, lr=how.learning_rate, momentum=0.9)
        warmup = how.warmup
        scheduler = LambdaLR(optimizer, lambda u, warmup=warmup: min(1.0, (u + 1) / warmup) if warmup else 1.0)
        theirs.append((how, module, out, parameters, optimizer, scheduler))

    norms = []
    for batch in batches:
        losses, norm = ours.differentiate(batch)
        ours.step()
        norms.append(norm)
        for n, (how, module, out, parameters, optimizer, scheduler) in enumerate(theirs):
            optimizer.zero_grad()
            expected = loss(task, out(module(batch.inputs)[0])[None], batch.targets)[0]
            expected.backward()
            torch.testing.assert_close(losses[n], expected.detach(), rtol=1e-7, atol=1e-10)
            theirs_norm = clip_grad_norm_(parameters, 1.0 if how.clip else math.inf)
            torch.testing.assert_close(norm[n], theirs_norm, rtol=1e-7, atol=1e-10)
            optimizer.step()
            scheduler.step()
    assert (torch.stack(norms)[2] > 1).all()
    assert (torch.stack(norms) < 1).any()
    for n, (_, _, _, parameters, _, _) in enumerate(theirs):
        whole = torch.cat([p.detach().flatten() for p in parameters])
        torch.testing.assert_close(ours.flat[n], whole, rtol=1e-7, atol=1e-9)
    moved = (ours.flat - trainer(cell, HOWS, layers).flat).norm(dim=1)
    assert len({round(float(m), 9) for m in moved}) == len(HOWS)  # none of the ways is another


@pytest.mark.parametrize("layers", [1, 2])
def test_plain_lstm_equals_the_stacked_one(layers: int, double: None) -> None:
    plain, stacked = trainer("lstm", HOWS[:2], layers), trainer("lstm", HOWS[:2], layers)
    assert plain.is_plain
    stacked.is_plain = False
    batch = TASKS["adding-20"].sample(4, torch.Generator().manual_seed(0))
    torch.testing.assert_close(plain.forward(batch.inputs), stacked.forward(batch.inputs), rtol=0, atol=1e-12)
    torch.testing.assert_close(plain.differentiate(batch), stacked.differentiate(batch), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(plain.gradient, stacked.gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_a_network_learns_alone_as_in_company(cell: str, double: None) -> None:
    together, others, alone = (Population("adding-20", cell, 8, d).trainer() for d in ((0, 1, 2), (5, 1, 6), (0,)))
    batch = TASKS["adding-20"].sample(4, torch.Generator().manual_seed(0))
    for _ in range(3):
        for one in (together, others, alone):
            one.differentiate(batch)
            one.step()
    torch.testing.assert_close(others.flat[1], together.flat[1], rtol=0, atol=1e-9)
    torch.testing.assert_close(alone.flat[0], together.flat[0], rtol=0, atol=1e-9)
    assert not torch.equal(others.flat[0], together.flat[0])


@pytest.mark.parametrize("cell", UNKNOWN_CELLS)
def test_read_outs_and_states_are_those_of_the_module(cell: str, double: None) -> None:
    ours = trainer(cell, HOWS[:2])
    inputs = TASKS["adding-20"].sample(4, torch.Generator().manual_seed(0)).inputs.double()
    reads, states = ours.forward(inputs)
    for n in range(2):
        (weights,) = ours.network(n)
        module, state = CELLS[cell].module(weights), None
        for t, x in enumerate(inputs):
            state = module(x, state)
            h = state[0] if isinstance(state, tuple) else state
            seen = CELLS[cell].seen(CELLS[cell].prepared(weights), h)
            read = seen @ ours.weights["out"][n].T + ours.weights["out_bias"][n]
            torch.testing.assert_close(states[n, t].detach(), h.detach(), rtol=0, atol=1e-12)
            torch.testing.assert_close(reads[n, t].detach(), read.detach(), rtol=0, atol=1e-12)


def test_twins_share_draws_but_neither_weights_nor_batches() -> None:
    twin = dataclasses.replace(FIVE, seed=1)
    assert twin.networks == FIVE.networks
    assert twin.name != FIVE.name
    assert not torch.equal(twin.trainer().flat, FIVE.trainer().flat)


@pytest.mark.parametrize("place", [0, 3])
def test_a_network_that_diverges_stays_so_and_disturbs_nobody(place: int, double: None) -> None:
    """Adam, clipped; SGD, not clipped."""
    hows = [HOWS[0], HOWS[1], HOWS[4], HOWS[6]]
    ours, reference = trainer("gru", hows), trainer("gru", hows)
    ours.flat[place, 0] = math.nan
    batch = TASKS["adding-20"].sample(16, torch.Generator().manual_seed(0))
    for _ in range(3):
        for one in (ours, reference):
            one.differentiate(batch)
            one.step()
    others = [n for n in range(4) if n != place]
    assert torch.equal(ours.flat[others], reference.flat[others])
    assert ours.flat[place].isnan().all()
