"""A chain of blocks that was found in a network, and the calls that make it up in a forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import nn

from lightning_lyapunov.capture.chain_paths import is_silent
from lightning_lyapunov.capture.flow import Flow, ModuleCall

Run: TypeAlias = "list[list[ModuleCall]]"
"""The calls of each link in one forward pass."""


@dataclass(frozen=True, eq=False)
class Link:
    """A block of a chain, or what leads from one block to the next.

    Attributes:
        name: Of the module; with a number behind it where it is called again, ``layer#2``.
        kind: Its class.
        modules: Called one after another: the module, and what without weights of its own comes behind it.
        is_block: Whether it is of the kind that the chain is made of.
        is_conditional: Whether it is given a state from before the chain, or from far back in it, held fixed: a skip.
        is_fed: Whether it is given something like a state beside its own, as a decoder is by an encoder.
    """

    name: str
    kind: str
    modules: tuple[nn.Module, ...]
    is_block: bool = True
    is_conditional: bool = False
    is_fed: bool = False


@dataclass(frozen=True, eq=False)
class ChainPlan:
    """A chain that was found.

    Attributes:
        links: In order.
        shapes: Of the states of the batch in which it was found, those of the D links before and the last after.
    """

    links: tuple[Link, ...]
    shapes: tuple[tuple[int, ...], ...] = ()

    @property
    def names(self) -> list[str]:
        """Of the links."""
        return [link.name for link in self.links]

    @property
    def kinds(self) -> list[str]:
        """Their classes."""
        return [link.kind for link in self.links]

    @property
    def modules(self) -> list[nn.Module]:
        """All that are called, each once."""
        return list(dict.fromkeys(module for link in self.links for module in link.modules))

    @property
    def conditional(self) -> tuple[str, ...]:
        """Links that are given states from outside the chain, or far back in it, held fixed."""
        return tuple(link.name for link in self.links if link.is_conditional)

    @property
    def words(self) -> str:
        """What was found, as ``12 blocks layers.0 ... layers.11 (Block) and 3 links between them``."""
        blocks = [link for link in self.links if link.is_block]
        kinds = ", ".join(dict.fromkeys(link.kind for link in blocks))
        names = " ... ".join(dict.fromkeys((blocks[0].name, blocks[-1].name)))
        others = len(self.links) - len(blocks)
        told = f"{len(blocks)} block{'s' * (len(blocks) != 1)} {names} ({kinds})"
        told += f" and {others} link{'s' * (others != 1)} between them" if others else ""
        return told + (f", conditional on skips into {listed(self.conditional)}" if self.conditional else "")


def runs_of(flow: Flow, plan: ChainPlan) -> list[Run]:
    """The calls of the links of a chain, for each time that a state passed through all of it."""
    calls: dict[nn.Module, list[ModuleCall]] = {}
    for call in flow.calls:
        calls.setdefault(call.module, []).append(call)
    runs: list[Run] = []
    for first in calls.get(plan.links[0].modules[0], []):
        run = _run_from(first, plan, calls)
        if run is not None and not any(first in row for done in runs for row in done):
            runs.append(run)
    return runs


def _run_from(first: ModuleCall, plan: ChainPlan, calls: dict[nn.Module, list[ModuleCall]]) -> Run | None:
    run: Run = []
    token, index = first.before, first.index
    for link in plan.links:
        row: list[ModuleCall] = []
        for module in link.modules:
            following = (call for call in calls.get(module, []) if call.index >= index and call.before == token)
            call = next((call for call in following if call.after is not None), None)
            if call is None and is_silent(module):
                continue
            if call is None:
                return None
            row.append(call)
            token, index = call.after, call.index + 1
        run.append(row)
    return run


def listed(names: Sequence[str], limit: int = 8) -> str:
    """Some names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
