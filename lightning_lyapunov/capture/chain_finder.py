"""Which blocks of a network make up its depth: the chain that its state passes through, found by what flows.

The coarsest calls of modules that have parts of their own, at least three of a kind in a row, each given the state that
the one before it returned. Stages, containers and encoders are seen through; a block with a skip inside it is one link
and never cut; what links blocks, such as a downsampling, joins as a link of its own. Where there is no such row, the
layers of a plain network are taken: a block begins at each that holds weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TypeAlias

from torch import nn

from lightning_lyapunov.capture.chain_paths import (
    FEWEST,
    Paths,
    Stretch,
    holds_weights,
    is_block,
    is_layer,
    is_silent,
    kind_of,
    name_of_kind,
    size_of,
)
from lightning_lyapunov.capture.chain_plan import ChainPlan as ChainPlan
from lightning_lyapunov.capture.chain_plan import Link, listed
from lightning_lyapunov.capture.flow import Flow, ModuleCall

BlockNames: TypeAlias = "str | Sequence[str]"
"""A container whose blocks to take, a block, or the blocks themselves in order."""


def find_chain(flow: Flow, module: BlockNames | None = None, *, rows: int = 0) -> ChainPlan:
    """Choose the chain of a network from the flow of one forward pass.

    Args:
        flow: Of that pass.
        module: Where to look; the whole network if None.
        rows: The axis of the samples in states of tokens, ``(B, T, C)`` or ``(T, B, C)``.

    Raises:
        ValueError: If there is none, or not where it was looked for; the message says what would work.
    """
    if not flow.calls:
        raise ValueError(f"module: no module of the model was called in the forward pass.{_about_compiled(flow)}")
    if module is None:
        return _found(flow, rows)
    if isinstance(module, str):
        return _in_container(flow, module, rows)
    return _by_names(flow, list(module), rows)


# ---------------------------------------------------------------------- without a name


def _found(flow: Flow, rows: int) -> ChainPlan:
    paths = Paths(flow.calls, rows)
    plans = list(_plans(paths))
    best = _best(plan for plan in plans if not _repeats(plan))
    if not plans and not paths.refused:
        best = _longest(plan for plan in _plans(paths, to_leaves=True) if not _repeats(plan))
        scattered = _scattered(flow)
        if best is not None and (scattered & {*best.modules} or size_of(best.modules) < size_of(scattered)):
            best = None  # the network is made of blocks, and these are some of them, or some of its layers
    if best is None:
        raise ValueError(_no_chain(flow, paths, plans))
    return best


def _plans(paths: Paths, *, to_leaves: bool = False, fewest: int = FEWEST) -> Iterator[ChainPlan]:
    """The chains of all paths."""
    for path in paths.all(to_leaves=to_leaves):
        for stretch in paths.stretches(path):
            if (plan := _chain_in(paths, stretch, fewest, by_layers=to_leaves)) is not None:
                yield plan


def _best(plans: Iterable[ChainPlan]) -> ChainPlan | None:
    """The chain with the most weights, those that are fed by others counting half; of equals that of fewer links."""
    return max(plans, key=_worth, default=None)


def _worth(plan: ChainPlan) -> tuple[float, int]:
    size = sum(size_of(link.modules[:1]) for link in plan.links if link.is_block)
    is_fed = any(link.is_conditional or link.is_fed for link in plan.links)
    return size / 2 if is_fed else size, -len(plan.links)


def _longest(plans: Iterable[ChainPlan]) -> ChainPlan | None:
    """Of plain layers those that are the most, rather than the widest, as a head may be."""
    return max(plans, key=lambda plan: (len(plan.links), _worth(plan)), default=None)


def _is_fed(call: ModuleCall) -> bool:
    state = call.shapes[0]
    others = (size for where, size in call.sizes.items() if call.given[where] != call.before)
    return any(len(size) == len(state) > 2 and (len(size) > 3 or size[-1] == state[-1]) for size in others)


def _repeats(plan: ChainPlan) -> bool:
    counts = Counter(module for link in plan.links for module in link.modules if holds_weights(module))
    return any(count > 1 for count in counts.values())


def _chain_in(paths: Paths, stretch: Stretch, fewest: int = FEWEST, *, by_layers: bool = False) -> ChainPlan | None:
    """The chain in a stretch; None if it has no blocks, or too few of a kind."""
    if by_layers:
        heads = [holds_weights(call.module) for call in stretch.calls]
        if sum(heads) < fewest:
            return None
        return _plan(paths, stretch.part(heads.index(True), len(heads)), set(), by_layers=True)
    counts = Counter(kind_of(call.module) for call in stretch.calls if is_block(call.module))
    kinds = {kind for kind, count in counts.items() if count >= fewest}
    layers = {kind_of(call.module) for call in stretch.calls if is_layer(call.module)}
    kinds = kinds - layers or kinds
    places = [place for place, call in enumerate(stretch.calls) if kind_of(call.module) in kinds]
    if not places:
        return None
    return _plan(paths, stretch.part(places[0], places[-1] + 1), kinds - _linking(stretch, kinds))


def _linking(stretch: Stretch, kinds: set[object]) -> set[object]:
    """Kinds of which each call makes the state smaller, where there are others: they lead from stage to stage."""
    smaller = {
        kind
        for kind in kinds
        if all(
            before.numel() > after.numel()
            for before, after in (call.shapes for call in stretch.calls if kind_of(call.module) == kind)
        )
    }
    return smaller if smaller < kinds else set()


def _plan(paths: Paths, stretch: Stretch, kinds: set[object], *, by_layers: bool = False) -> ChainPlan:
    """The links of a stretch: what passes all on in eval mode, or holds no weights, goes with the call before it."""
    rows: list[list[ModuleCall]] = []
    for call in stretch.calls:
        goes_along = is_silent(call.module) or (by_layers and not holds_weights(call.module))
        if rows and goes_along:
            rows[-1].append(call)
        else:
            rows.append([call])
        rows[-1] += paths.idle_after(call, stretch.calls)
    seen: Counter[str] = Counter()
    links = []
    for row in rows:
        head = row[0]
        seen[head.name] += 1
        number = seen[head.name]
        links.append(
            Link(
                head.name if number == 1 else f"{head.name}#{number}",
                name_of_kind(head.module),
                tuple(call.module for call in row),
                by_layers or not kinds or kind_of(head.module) in kinds,
                any(call in stretch.conditional for call in row),
                any(_is_fed(call) for call in row),
            )
        )
    shapes = [tuple(row[0].shapes[0]) for row in rows] + [tuple(rows[-1][-1].shapes[1])]
    return ChainPlan(tuple(links), tuple(shapes))


# ---------------------------------------------------------------------- by name


def _in_container(flow: Flow, name: str, rows: int) -> ChainPlan:
    """The chain inside a module; the module itself, call by call, if there is none."""
    own = [call for call in flow.calls if call.name == name]
    inside = [call for call in flow.calls if call.name.startswith(f"{name}.") or not name]
    if not own and not inside:
        raise ValueError(f"module: nothing reached {name!r} in the forward pass.{_about_compiled(flow)}")
    if len(own) > 1 and (plan := _again_and_again(flow, own, rows)) is not None:
        return plan
    paths = Paths([*own, *(call for call in inside if call not in own)], rows, flow)
    best = _best(_plans(paths))
    if best is not None and set(best.modules) != {call.module for call in own}:
        return best
    if own:
        body = paths.parts(own[0]) if own[0].moves else []
        if len(body) > 1:
            return _chosen(paths, body)
        if own[0].moves and len([c for c in paths.parts(own[0], to_leaves=True) if holds_weights(c.module)]) > 1:
            best = _longest(_plans(paths, to_leaves=True, fewest=2))
        if best is not None:
            return best
        _check_is_link(own[0])
        return _chosen(paths, own[:1])
    best = _best(_plans(paths, fewest=1)) or _longest(_plans(paths, to_leaves=True, fewest=1))
    if best is None or paths.refused:
        raise ValueError(_no_chain(flow, paths, [], name))
    return best


def _again_and_again(flow: Flow, own: list[ModuleCall], rows: int) -> ChainPlan | None:
    """A module that is given what it returned."""
    row = [own[0]]
    for call in own[1:]:
        if call.before != row[-1].after or not call.moves:
            break
        row.append(call)
    return _chosen(Paths(flow.calls, rows), row) if len(row) > 1 else None


def _chosen(paths: Paths, calls: list[ModuleCall]) -> ChainPlan:
    """A row of calls that somebody has named."""
    stretch = paths.whole(calls)
    plan = _plan(paths, stretch, {kind_of(call.module) for call in calls if holds_weights(call.module)})
    return (
        plan
        if any(link.is_block for link in plan.links)
        else replace(plan, links=tuple(replace(link, is_block=True) for link in plan.links))
    )


def _by_names(flow: Flow, names: list[str], rows: int) -> ChainPlan:
    """The blocks of these names in order; one that stands there twice is called twice."""
    if not names:
        raise ValueError("module must name at least one block; got none.")
    row: list[ModuleCall] = []
    for name in names:
        calls = [call for call in flow.calls if call.name == name and (not row or call.index > row[-1].index)]
        if not calls:
            again = "again " if name in {call.name for call in row} else ""
            raise ValueError(
                f"module: nothing reached {name!r} {again}in the forward pass"
                f"{f' after {row[-1].name!r}' if row else ''}.{_about_compiled(flow)}"
            )
        if row:
            between = _between(flow, row[-1], calls)
            if between is None:
                raise ValueError(f"module: {_glue(row[-1], calls[0])}.")
            row += between
        else:
            _check_is_link(calls[0])
            row.append(calls[0])
    return _chosen(Paths(flow.calls, rows), row)


def _between(flow: Flow, last: ModuleCall, calls: list[ModuleCall]) -> list[ModuleCall] | None:
    """The call that goes on from the last one, after those that pass all on in eval mode; None if there is none."""
    between: list[ModuleCall] = []
    token = last.after
    while True:
        if (following := next((call for call in calls if call.before == token and call.moves), None)) is not None:
            return [*between, following]
        silent = next(
            (call for call in flow.calls if call.before == token and call.moves and is_silent(call.module)), None
        )
        if silent is None:
            return None
        between.append(silent)
        token = silent.after


def _check_is_link(call: ModuleCall) -> None:
    kind = f"{call.name or 'the model'} ({name_of_kind(call.module)})"
    if call.obstacle == "integers":
        raise ValueError(
            f"module: {kind} is given integers, and a chain begins with a state of floating type: begin behind the "
            "embedding, by naming the blocks."
        )
    if call.obstacle:
        advice = ": pad it, and give a mask" if "nested" in call.obstacle else ""
        raise ValueError(f"module: {kind} is given {call.obstacle}, which is no state of a chain{advice}.")
    if not call.moves:
        raise ValueError(f"module: {kind} returns no other state of floating type than it is given.")


# ---------------------------------------------------------------------- in words


def _no_chain(flow: Flow, paths: Paths, repeating: Iterable[ChainPlan], name: str = "") -> str:
    modules = {call.name: call.module for call in flow.calls if call.name}
    blocks = {name: module for name, module in modules.items() if is_block(module)} or modules
    has = listed([f"{one} ({name_of_kind(module)})" for one, module in blocks.items()]) or "no parts"
    told = [
        f"module: found no three blocks in a row{f' in {name!r}' if name else ''}; the model has {has}; name them: "
        "module='encoder.layers', or give callables to depth_spectrum."
    ]
    for plan in repeating:
        again = Counter(link.name.partition("#")[0] for link in plan.links if link.is_block).most_common(1)[0]
        told.append(f"{again[0]} is called {again[1]} times: name it to measure it call by call, module={again[0]!r}.")
        break
    if any("nested" in call.obstacle for call in flow.calls):
        told.append("Nested tensors are no states of a chain: pad them, and give a mask.")
    told += [f"{paths.refused[one]}." for one in sorted(paths.refused, key=lambda one: one.count("."))[:1]]
    if len(told) == 1 and (torn := _torn(flow, paths)) is not None:
        glue = _glue(*torn)
        told.append(f"{glue[0].upper()}{glue[1:]}.")
    return " ".join(told) + _about_compiled(flow)


def _torn(flow: Flow, paths: Paths) -> tuple[ModuleCall, ModuleCall] | None:
    """Two blocks, or layers, of the most frequent kind, of which the second is not given what the first returned."""
    for is_one in (is_block, holds_weights):
        calls = [call for call in flow.calls if call.moves and is_one(call.module)]
        kinds = Counter(kind_of(call.module) for call in calls)
        kind = next((kind for kind, count in kinds.most_common() if count >= FEWEST), None)
        row = [call for call in calls if kind_of(call.module) == kind]
        for one, other in pairwise(row):
            if paths.scope(one) is paths.scope(other) and one.after != other.before:
                return one, other
    return None


def _scattered(flow: Flow) -> set[nn.Module]:
    """Blocks of which there are enough of a kind, in a network in which they do not follow each other."""
    blocks = {call.module for call in flow.calls if is_block(call.module) and not is_layer(call.module)}
    kinds = Counter(map(kind_of, blocks))
    return {block for block in blocks if kinds[kind_of(block)] >= FEWEST}


def _glue(one: ModuleCall, other: ModuleCall) -> str:
    before, after = tuple(one.shapes[1]), tuple(other.shapes[0])
    return (
        f"between {one.name} and {other.name} something outside any module changes the state {before} -> {after}: "
        "wrap it in a module, or give callables to depth_spectrum"
    )


def _about_compiled(flow: Flow) -> str:
    if not flow.is_compiled:
        return ""
    return (
        " A part of it is compiled as a whole, in which no block is seen: give the model without torch.compile, or "
        "compile its blocks one by one."
    )
