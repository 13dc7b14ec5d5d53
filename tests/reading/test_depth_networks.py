"""What was broken in a network is found and named, and nothing in healthy ones: by dense Jacobians in float64."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from made_depth import Residual, dense
from torch import nn

from lightning_lyapunov.reading.depth_conditions import odd, severed
from lightning_lyapunov.reading.depth_history import DepthMeasurement
from lightning_lyapunov.reading.depth_rules import findings
from lightning_lyapunov.reading.rules import Finding

NETWORKS = 20
DEPTH = 12


def found(measurement: DepthMeasurement) -> dict[str, Finding]:
    return {finding.state: finding for finding in findings([measurement])}


def pre_norm(width: int, depth: int = DEPTH, **options: Any) -> list[Residual]:
    return [Residual(width, **options) for _ in range(depth)]


def width_of(seed: int) -> int:
    return (16, 20, 24, 32)[seed % 4]


def network(seed: int, **options: Any) -> list[Residual]:
    torch.manual_seed(seed)
    return pre_norm(width_of(seed), **options)


def trained(seed: int, updates: int = 40) -> list[Residual]:
    """To tell the largest of five random functions of the input."""
    blocks = network(seed)
    width = width_of(seed)
    head, task = nn.Linear(width, 5), torch.randn(width, 5)
    optimizer = torch.optim.Adam([*nn.ModuleList(blocks).parameters(), *head.parameters()], lr=3e-3)
    for _ in range(updates):
        state = torch.randn(32, width)
        target = (state.tanh() @ task).argmax(1)
        for block in blocks:
            state = block(state)
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(state), target).backward()
        optimizer.step()
    return blocks


def zero(block: Residual) -> None:
    block.last.weight.data.zero_()


def always_off(block: Residual) -> None:
    block.first.bias.data.fill_(-1e3)


def scaled(block: Residual) -> None:
    block.last.weight.data.mul_(1e-3)


@pytest.mark.parametrize("fault", [zero, always_off, scaled])
@pytest.mark.parametrize("make", [network, pytest.param(cache(trained), id="trained")])
def test_a_dead_branch_is_named_in_20_of_20_networks(
    make: Callable[[int], list[Residual]], fault: Callable[[Residual], None]
) -> None:
    """At any depth; no other block is named in any (asked for: 17 of 20)."""
    seeds = range(NETWORKS) if make is network else range(6)
    named = {}
    for seed in seeds:
        blocks, broken = nn.ModuleList(make(seed)), seed % DEPTH
        weights = {name: value.clone() for name, value in blocks.float().state_dict().items()}
        fault(blocks[broken])  # type: ignore[arg-type]
        made = found(dense(list(blocks), width_of(seed), seed=seed))
        blocks.float().load_state_dict(weights)
        named[seed] = made["dead_branch"].subject if "dead_branch" in made else ""
    assert named == {seed: f"block {seed % DEPTH + 1} of 12 (layers.{seed % DEPTH})" for seed in seeds}


HEALTHY: dict[str, Callable[[int], list[Residual]]] = {
    "pre-norm": network,
    "of small branches": lambda seed: network(seed, gate=0.05),
    "deep": lambda seed: network(seed, depth=48),
    "trained": trained,
    "gates that have begun to open": lambda seed: network(seed, gate=1e-3, norm=False),
    "plain": lambda seed: network(seed, norm=False, skip=False),
}


@pytest.mark.parametrize("kind", HEALTHY)
def test_no_block_is_named_in_healthy_networks(kind: str) -> None:
    seeds = range(6) if kind in ("trained", "deep") else range(NETWORKS)
    for seed in seeds:
        for step in (0, 200):
            made = found(dense(HEALTHY[kind](seed), width_of(seed), step=step, seed=seed))
            assert not made.keys() & {"dead_branch", "idle_late", "odd_block", "all_unchanged", "no_gradient"}, seed


def test_of_closed_gates_all_are_said_to_be_dead() -> None:
    """ReZero before its first update."""
    made = found(dense(network(0, gate=0.0, norm=False), width_of(0), step=0))
    assert made["all_unchanged"].text.startswith("All 12 blocks pass everything on unchanged.")
    assert "dead_branch" not in made


def test_a_block_of_three_times_the_gain_stands_out() -> None:
    """In 18 of 18 networks with branches a fifth as strong as their skips, the first and the last block left out."""
    hits, others = 0, 0
    for seed in range(18):
        blocks, broken = network(seed, gate=0.2), 1 + seed % (DEPTH - 2)
        blocks[broken].last.weight.data.mul_(3)
        made = odd(dense(blocks, width_of(seed), step=0, seed=seed))
        hits += [block for block, _ in made[:1]] == [broken]
        others += any(block != broken for block, _ in made)
    assert (hits, others) == (18, 0)


def test_the_block_whose_units_are_all_off_ends_the_gradient_of_a_plain_network() -> None:
    blocks = network(3, norm=False, skip=False)
    always_off(blocks[4])
    made = dense(blocks, width_of(3))
    assert severed(made) == list(range(4, DEPTH))  # without biases what follows gets zeros
    assert found(made)["no_gradient"].text.startswith(
        "Block 5 of 12 (layers.4) passes nothing on, nor does any after it: the gradient ends there."
    )


def test_late_blocks_that_were_silenced_are_named_as_idle() -> None:
    """In 6 of 6 trained networks whose last four branches are a fiftieth as strong as they were."""
    for seed in range(6):
        blocks = trained(seed)
        for block in blocks[-4:]:
            block.last.weight.data.mul_(0.02)
        made = found(dense(blocks, width_of(seed), seed=seed))
        assert "blocks 9 to 12 of 12 (layers.8 to layers.11) change" in made["idle_late"].text
        assert "dead_branch" not in made
