"""Paths through the flow between modules: which calls follow each other, and how coarsely they are to be seen."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from lightning_lyapunov.capture.flow import WEIGHTS, Flow, ModuleCall
from lightning_lyapunov.capture.structures import Path
from lightning_lyapunov.capture.tokens import Token

FEWEST = 3
"""Blocks of one kind that make a chain where nobody has named it."""
NEAR = 2
"""Links back: an argument that is a state of the chain no farther back is a skip that belongs to the block."""
_DROPS = re.compile(r"Drop(out|Path|Block|Connect)|StochasticDepth|^Identity$")


def kind_of(module: nn.Module) -> Any:
    """What tells blocks of one kind: the class; of a plain sequence also the kinds of what is in it."""
    kind = type_before_parametrizations(module)
    return (kind, tuple(kind_of(child) for child in module.children())) if kind is nn.Sequential else kind


def name_of_kind(module: nn.Module) -> str:
    """The name of its class, as its author wrote it."""
    name = getattr(module, "original_name", None)
    return name if isinstance(name, str) else type_before_parametrizations(module).__name__


def holds_weights(module: nn.Module) -> bool:
    """Whether it has a matrix, or a convolution."""
    return any(_is_weight(parameter) for parameter in module.parameters())


def is_block(module: nn.Module) -> bool:
    """Whether there are parts in it that hold weights; a norm with an activation in it is no block."""
    return any(holds_weights(child) for name, child in module.named_children() if name != WEIGHTS)


def is_layer(module: nn.Module) -> bool:
    """Whether it holds a single weight, as a convolution with the norm and the activation that belong to it."""
    return sum(map(_is_weight, module.parameters())) < 2


def is_silent(module: nn.Module) -> bool:
    """Whether it passes everything on when it is not training."""
    return _DROPS.search(type(module).__name__) is not None and next(module.parameters(), None) is None


def sample_axis(shape: torch.Size, rows: int) -> int:
    """The axis of the samples in a state: ``rows`` for tokens, which may come first; 0 otherwise."""
    return rows if len(shape) == 3 else 0


def size_of(modules: Iterable[nn.Module]) -> int:
    """Numbers that some modules have learnt, or will."""
    parameters = {parameter for module in modules for parameter in module.parameters() if not _is_unknown(parameter)}
    return sum(parameter.numel() for parameter in parameters)


def _is_weight(parameter: nn.Parameter) -> bool:
    return _is_unknown(parameter) or parameter.dim() >= 2


def _is_unknown(parameter: nn.Parameter) -> bool:
    return isinstance(parameter, nn.parameter.UninitializedParameter)


@dataclass(eq=False)
class Stretch:
    """Calls in a row, each taking the state that the one before it returned.

    Attributes:
        calls: In order.
        conditional: Those that are also given a state from before the chain, or from far back in it.
    """

    calls: list[ModuleCall]
    conditional: set[ModuleCall] = field(default_factory=set)

    def part(self, first: int, stop: int) -> Stretch:
        """Some of its calls."""
        calls = self.calls[first:stop]
        return Stretch(calls, self.conditional & set(calls))


class Paths:
    """The paths among some calls.

    Args:
        calls: Which ones, in the order in which they began.
        rows: The axis of the samples in states of tokens.
        flow: All calls of the forward pass, where these are only some of them.

    Attributes:
        refused: What keeps a call from being a link of a chain, in words.
    """

    def __init__(self, calls: Sequence[ModuleCall], rows: int = 0, flow: Flow | None = None) -> None:
        self._calls = [call for call in calls if call.moves]
        self._everything = self._calls if flow is None else [call for call in flow.calls if call.moves]
        self._idle = [call for call in calls if call.before == call.after and is_silent(call.module)]
        self._rows = rows
        self._opens: dict[Any, bool] = {}
        self._parts: dict[tuple[ModuleCall, bool], list[ModuleCall]] = {}
        self.refused: dict[str, str] = {}

    @cached_property
    def _producers(self) -> dict[Token, list[ModuleCall]]:
        """The calls that returned a state, the outermost first."""
        found: dict[Token, list[ModuleCall]] = {}
        for call in self._calls:
            assert call.after is not None
            found.setdefault(call.after, []).append(call)
        return found

    def _earlier(self, call: ModuleCall) -> ModuleCall | None:
        """The outermost call that had returned the state before one when it began."""
        assert call.before is not None
        around = set(_around(call))
        return next((one for one in self._producers.get(call.before, ()) if one not in around), None)

    @cached_property
    def _ancestry(self) -> dict[Token, set[Token]]:
        """The states that a state was directly made from, by whichever call."""
        found: dict[Token, set[Token]] = {}
        for call in self._everything:
            for token in call.returned.values():
                if call.before is not None and token != call.before:
                    found.setdefault(token, set()).add(call.before)
            if call.before is not None:
                found.setdefault(call.before, set()).update(call.depends.get(call.where, ()))
        return found

    # ---------------------------------------------------------------- coarse and fine

    def inside(self, call: ModuleCall) -> list[ModuleCall]:
        """The calls made in one that lead from its state before to its state after; empty if there are none."""
        producers = {inner.after: inner for inner in call.inner if inner.moves}
        path: list[ModuleCall] = []
        token = call.after
        while token != call.before:
            step = producers.pop(token, None)
            if step is None:
                return []
            path.append(step)
            token = step.before
        return path[::-1]

    def parts(self, call: ModuleCall, *, to_leaves: bool = False) -> list[ModuleCall]:
        """A call, or what it is made of where it is a stage rather than a block; every leaf if asked for."""
        key = call, to_leaves
        if key not in self._parts:
            inner = self.inside(call)
            opens = bool(inner) and (to_leaves or self._is_stage(call))
            parts = [part for one in inner for part in self.parts(one, to_leaves=to_leaves)] if opens else [call]
            self._parts[key] = parts
        return self._parts[key]

    def _is_stage(self, call: ModuleCall) -> bool:
        kind = kind_of(call.module)
        if kind not in self._opens:
            self._opens[kind] = False  # while it is found out: one in another of its kind
            self._opens[kind] = self._opens_up(kind)
            self._parts.clear()
        return self._opens[kind]

    def _opens_up(self, kind: Any) -> bool:
        """Whether the modules of a kind are stages: all of them rows of blocks, with nothing around them."""
        calls = [call for call in self._calls if kind_of(call.module) == kind]
        inner = [self.inside(call) for call in calls]
        if not all(inner):
            return False  # one has a skip of its own: a block
        bodies = [[part for one in row for part in self.parts(one)] for row in inner]
        blocks = [part for body in bodies for part in body if is_block(part.module)]
        if not blocks:
            return False
        most, layers = (max(_most_of_a_kind(body, layers) for body in bodies) for layers in (False, True))
        if any(self._looks_back(body) for body in bodies):
            return max(most, layers) >= FEWEST  # skips inside it: a network of its own, or a block
        if most > 1 or layers >= (2 if isinstance(kind, tuple) else FEWEST):
            return True
        whole = size_of(part.module for body in bodies for part in body)
        share = size_of(part.module for part in blocks) / max(whole, 1)
        is_one_of_many = len({call.module for call in calls}) >= FEWEST and not isinstance(kind, tuple)
        return share >= 0.5 and not is_one_of_many

    def _looks_back(self, path: Sequence[ModuleCall]) -> bool:
        places = _places(path)
        return any(self._nearest(path, place, places) is not None for place in range(len(path)))

    # ---------------------------------------------------------------- paths

    def all(self, *, to_leaves: bool = False) -> Iterator[list[ModuleCall]]:
        """The longest paths, each once."""
        before = {call: self._earlier(call) for call in self._calls}
        ends = set(self._calls) - {call for call in before.values() if call is not None}
        seen: set[tuple[int, ...]] = set()
        for end in (call for call in self._calls if call in ends):
            path = [end]
            while (earlier := before[path[-1]]) is not None and earlier.index < path[-1].index:
                path.append(earlier)
            path = self._on_one_level(path[::-1], to_leaves=to_leaves)
            calls = [part for call in path for part in self.parts(call, to_leaves=to_leaves)]
            if (key := tuple(call.index for call in calls)) not in seen:
                seen.add(key)
                yield calls

    def _on_one_level(self, path: list[ModuleCall], *, to_leaves: bool) -> list[ModuleCall]:
        """A path up to where it goes into a block like those before it; of leaves, the last part in one module."""
        if to_leaves:
            return [call for call in path if self.scope(call) is self.scope(path[-1])]
        around, kinds = set(_around(path[0])), {kind_of(call.module) for call in path}
        for place, call in enumerate(path):
            if any(kind_of(outer.module) in kinds for outer in set(_around(call)) - around):
                return path[:place]
        return path

    def scope(self, call: ModuleCall) -> ModuleCall | None:
        """The innermost call around one that is more than a row of calls."""
        return next((outer for outer in _around(call) if not self.inside(outer)), None)

    def stretches(self, path: Sequence[ModuleCall]) -> Iterator[Stretch]:
        """The pieces of a path in which no call is given an earlier state of the piece beside its own."""
        places = _places(path)
        start = 0
        for place, call in enumerate(path):
            nearest = self._nearest(path, place, places)
            obstacle = self._obstacle(call)
            if obstacle or (nearest is not None and nearest >= start):
                yield self._stretch(path, start, place)
                is_near = nearest is not None and place - nearest <= NEAR
                start = place + 1 if is_near or obstacle else place
                if obstacle or is_near:
                    self.refused[call.name] = obstacle or skip_of(call, path, nearest)
        yield self._stretch(path, start, len(path))

    def whole(self, path: Sequence[ModuleCall]) -> Stretch:
        """A path that somebody has chosen.

        Raises:
            ValueError: If a call in it cannot be a link.
        """
        places = _places(path)
        stretch = self._stretch(path, 0, len(path))
        for place, call in enumerate(path):
            if obstacle := self._obstacle(call):
                raise ValueError(f"module: {obstacle}.")
            if (nearest := self._nearest(path, place, places)) is not None:
                if place - nearest <= NEAR:
                    raise ValueError(f"module: {skip_of(call, path, nearest)}.")
                stretch.conditional.add(call)
        return stretch

    def idle_after(self, call: ModuleCall, path: Sequence[ModuleCall]) -> list[ModuleCall]:
        """Calls between two of a path that pass all on: in training they may not."""
        return [idle for idle in self._idle if idle.before == call.after and not set(_around(idle)) & set(path)]

    def _stretch(self, path: Sequence[ModuleCall], start: int, stop: int) -> Stretch:
        calls = list(path[start:stop])
        upstream = self._ancestors(calls[0].before) if calls else set()
        conditional = {
            call
            for call in calls
            for where, token in call.given.items()
            if token != call.before and (upstream & {token, *call.depends.get(where, ())} or _may_be_skip(call, where))
        }
        return Stretch(calls, conditional)

    def _ancestors(self, token: Token | None) -> set[Token]:
        found: set[Token] = set()
        ahead = [] if token is None else [token]
        while ahead:
            one = ahead.pop()
            if one not in found:
                found.add(one)
                ahead.extend(self._ancestry.get(one, ()))
        return found

    def _nearest(self, path: Sequence[ModuleCall], place: int, places: dict[Token, int]) -> int | None:
        """Place of the latest state of a path that an argument of a call beside its own state is, or comes from."""
        call = path[place]
        found = []
        for where, token in call.given.items():
            if token == call.before:
                continue
            comes_from = call.depends.get(where)
            if token in places:
                found.append(places[token])
            elif comes_from is not None:
                found += [places[one] for one in comes_from if one in places]
            else:
                found += [
                    earlier
                    for earlier, other in enumerate(path[:place])
                    if token in other.returned.values() and call.sizes[where] == other.shapes[0]
                ]
        return max((one for one in found if one <= place), default=None)

    def _obstacle(self, call: ModuleCall) -> str:
        """Why a call cannot be a link, whatever comes before it; empty if it can."""
        kind = f"{call.name} ({name_of_kind(call.module)})"
        if isinstance(call.module, torch.jit.ScriptModule) and holds_weights(call.module):
            return (
                f"{kind} is scripted or traced, which hides what it does: train the plain module, and script it "
                "afterwards: torch.jit.script(model)"
            )
        before, after = (shape[sample_axis(shape, self._rows)] if len(shape) > 1 else None for shape in call.shapes)
        if before is None or before != after:
            shapes = " to ".join(str(tuple(shape)) for shape in call.shapes)
            return f"{kind} takes {shapes}, which are not states of the same samples, one a row"
        return ""


def _around(call: ModuleCall) -> Iterator[ModuleCall]:
    """The calls that one was made in."""
    while call.parent is not None:
        call = call.parent
        yield call


def _may_be_skip(call: ModuleCall, where: Path) -> bool:
    """Whether an argument beside the state is a map of features like it, and nobody knows what it comes from."""
    size, state = call.sizes[where], call.shapes[0]
    return where not in call.depends and len(size) == len(state) > 3 and size[0] == state[0]


def _places(path: Sequence[ModuleCall]) -> dict[Token, int]:
    """Where the states of a path are: the one before its first call at 0."""
    states = [path[0].before, *(call.after for call in path)]
    return {token: place for place, token in enumerate(states) if token is not None}


def _most_of_a_kind(path: Sequence[ModuleCall], layers: bool) -> int:
    """Blocks, or layers in a wrapping of their own, of the most frequent kind."""
    kinds = Counter(kind_of(c.module) for c in path if is_block(c.module) and is_layer(c.module) == layers)
    return max(kinds.values(), default=0)


def skip_of(call: ModuleCall, path: Sequence[ModuleCall], nearest: int | None) -> str:
    """In words, that a call is given an earlier state beside its own."""
    assert nearest is not None
    own = path.index(call)
    state = "its own state" if nearest == own else f"the state before {path[nearest].name}"
    given = f"what was computed from {state}" if nearest == own else f"{state}, or what was computed from it,"
    return (
        f"{call.name} ({name_of_kind(call.module)}) is given {given} as another argument: a derivative of the links "
        "one by one would miss that way round. Put the skip and what it goes round into one module, and name these; or "
        "give callables to depth_spectrum"
    )
