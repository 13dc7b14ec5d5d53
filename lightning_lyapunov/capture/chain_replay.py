"""The proof of a chain: each block, called again with what was kept of it, returns what it returned.

It is called for the samples that were kept, in eval mode, with the statistics of its batch. Where a block drew random
numbers, as dropout does, that cannot be compared; then all rows of a later batch are, from the same random state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import SyncBatchNorm

from lightning_lyapunov.capture.chain_arguments import Arguments, Copies
from lightning_lyapunov.capture.chain_blocks import (
    RecordedBlock,
    Statistics,
    Step,
    floating,
    measuring_blocks,
    modes_of_scripts,
)
from lightning_lyapunov.capture.chain_paths import sample_axis
from lightning_lyapunov.capture.chain_plan import Link, Run
from lightning_lyapunov.capture.flow import ModuleCall
from lightning_lyapunov.capture.structures import Other, at
from lightning_lyapunov.engine.isolation import measuring, untouched_random_state

TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Of a replay, relative, by floating type: other rows take other kernels."""
COARSE = {"highest": 0.0, "high": 5e-3, "medium": 5e-2}
"""The same for float32 where its products may be taken in fewer digits: TF32, bfloat16."""


@dataclass(eq=False)
class Kept:
    """What was kept of a call.

    Attributes:
        arguments: Beside the state, for the first samples.
        before: The state of these before it, where it was wanted.
        after: The state after it.
        statistics: Those of a normalisation in training.
        autocast: The type that its device's products were taken in; None for the type they are given.
        is_nested: Whether its state was a nested tensor, which is kept with zeros where it has nothing.
        drew: Whether it drew random numbers in training mode.
        weights: Tells whether its weights have been updated since.
        whole: What a replay of all rows needs.
    """

    arguments: Arguments | None = None
    before: Tensor | None = None
    after: Tensor | None = None
    statistics: Statistics | None = None
    autocast: torch.dtype | None = None
    is_nested: bool = False
    drew: bool = False
    weights: int = 0
    whole: Whole | None = None
    _random: list[Tensor] = field(default_factory=list)


@dataclass(eq=False)
class Whole:
    """A call with all its rows, and the random state and the buffers that it began with."""

    arguments: Arguments
    before: Tensor
    random: list[Tensor]
    buffers: dict[Tensor, Tensor]
    after: Tensor | None = None


class Recorder:
    """Keeps what goes into the calls of a forward pass.

    Args:
        copies: Where it is kept.
        wanted: Modules whose states are kept.
        whole: Modules of which all rows are kept, to be replayed from the same random state.
        rows: The axis of the samples in states of tokens.
        notes_draws: Whether to note which calls draw random numbers.
    """

    def __init__(
        self, copies: Copies, wanted: set[nn.Module], whole: set[nn.Module], rows: int = 0, *, notes_draws: bool = True
    ) -> None:
        self._copies, self._wanted, self._whole, self._notes_draws = copies, wanted, whole, notes_draws
        self._all = Copies(1 << 62, rows)

    def begin_anew(self) -> bool:
        """Let go of the copies, for another pass; whether there was room for all of this one."""
        had_room = not self._copies.is_full
        self._copies.begin_anew()
        self._all.begin_anew()
        return had_room

    def begin(self, call: ModuleCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep what a call is given."""
        if call.before is None:
            return
        state = at((args, kwargs), call.where)
        call.kept = kept = Kept()
        kept.is_nested = state.is_nested
        if self._notes_draws and any(part.training for part in call.module.modules()):
            kept._random = random_state(state.device)
        kept.statistics = Statistics.of(call.module, state)
        kept.arguments = self._copies.arguments(call, args, kwargs)
        kept.autocast = _autocast(state.device.type)
        if call.module in self._wanted:
            kept.before = self._copies.state(state, call.before)
            kept.weights = _versions(call.module)
        if call.module in self._whole:
            buffers = {buffer: buffer.detach().clone() for buffer in call.module.buffers()}
            arguments, before = self._all.arguments(call, args, kwargs), self._all.state(state, call.before)
            assert arguments is not None and before is not None
            kept.whole = Whole(arguments, before, random_state(state.device), buffers)

    def end(self, call: ModuleCall, output: Any) -> None:
        """Keep what a call returned."""
        kept, after = call.kept, call.after
        if kept is None or after is None:
            return
        if kept._random:
            now = random_state(floating(output).device)
            kept.drew = any(not torch.equal(one, other) for one, other in zip(kept._random, now, strict=True))
            kept._random = []
        if call.module in self._wanted:
            state = floating(output)
            kept.after = self._copies.state(state, after) if state.dim() else None
        if kept.whole is not None:
            kept.whole.after = self._all.state(floating(output), after)


def _autocast(device: str) -> torch.dtype | None:
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _versions(module: nn.Module) -> int:
    return sum(parameter._version for parameter in module.parameters() if not parameter.is_inference())


def random_state(device: torch.device) -> list[Tensor]:
    """Of the global generators on the CPU and on a device."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


# ---------------------------------------------------------------------- blocks


def blocks_of(run: Run, links: Sequence[Link], rows: int) -> list[RecordedBlock] | None:
    """The links of a chain with what their calls were given; None if that was not kept."""
    blocks = []
    for link, calls in zip(links, run, strict=True):
        steps = []
        for call in calls:
            if call.kept is None or call.kept.arguments is None:
                return None
            inner = [one.kept.statistics for one in (call, *call.descendants()) if one.kept is not None]
            steps.append(Step(call.module, call.kept.arguments, tuple(one for one in inner if one is not None)))
        blocks.append(RecordedBlock(link.name, link.kind, tuple(steps), rows))
    return blocks


# ---------------------------------------------------------------------- proof


@dataclass
class Proof:
    """What replays have shown of the links of a chain.

    Attributes:
        is_begun: Whether any has been replayed.
        open: Places of links that could not be compared yet.
        failures: Times that this has been tried in vain since.
        as_tables: How what they are given is to be understood where there are two ways, by place.
    """

    is_begun: bool = False
    open: set[int] = field(default_factory=set)
    failures: int = 0
    as_tables: dict[int, bool] = field(default_factory=dict)

    def settled(self, blocks: Sequence[RecordedBlock]) -> list[RecordedBlock]:
        """Blocks understood as the replay has shown."""
        return [block.settled(as_tables=self.as_tables.get(place, False)) for place, block in enumerate(blocks)]


def prove(proof: Proof, blocks: Sequence[RecordedBlock], run: Run) -> None:
    """Replay the links of a chain for the samples that were kept.

    Raises:
        ValueError: If one does not return what it returned; the message names it.
    """
    state: Tensor | None = None
    unseen: set[int] = set()  # links since the last state that was kept
    for place, (block, calls) in enumerate(zip(blocks, run, strict=True)):
        first = calls[0].kept
        state = first.before if first.before is not None else state
        expected = run[place + 1][0].kept.before if place + 1 < len(run) else None
        expected = _returned(calls) if expected is None else expected
        unseen.add(place)
        is_same = False
        if state is not None and not any(_is_updated(call) for call in calls):
            state, is_same = _replayed(proof, place, block, calls, state, expected)
        else:
            state = None
        if expected is not None:
            proof.open |= set() if is_same else unseen
            unseen = set()
            state = expected
    proof.open |= unseen
    proof.is_begun = True


def _returned(calls: Sequence[ModuleCall]) -> Tensor | None:
    """The state after a link, where it was kept."""
    for call in reversed(calls):
        if call.kept.after is not None or call.moves:
            return call.kept.after
    return None


def _is_updated(call: ModuleCall) -> bool:
    return call.kept.before is not None and call.kept.weights != _versions(call.module)


def _replayed(
    proof: Proof, place: int, block: RecordedBlock, calls: list[ModuleCall], state: Tensor, expected: Tensor | None
) -> tuple[Tensor, bool]:
    """What a link returns now, and whether it is what it returned."""
    tried: list[tuple[float, Tensor]] = []
    trouble: Exception | None = None
    for as_tables in (False, True) if block.is_doubtful else (False,):
        try:
            after = _again(block.settled(as_tables=as_tables), calls, state)
        except torch.cuda.OutOfMemoryError:
            raise  # which is nothing of the block's
        except Exception as error:
            trouble = trouble or error.with_traceback(None)
            continue
        tried.append((_difference(after, expected), after))
        if tried[-1][0] <= _tolerance(calls, after):
            proof.as_tables[place] = as_tables
            return after, expected is not None
    name = f"{block.name} ({block.kind})"
    if not tried:
        raise ValueError(
            f"module: {name} cannot be called again for a few of the samples with what it was given{_left_out(block)}: "
            f"{trouble}. It may depend on something else, or its rows may be no samples. Name other blocks, or give "
            "callables to depth_spectrum."
        )
    difference, after = min(tried, key=lambda one: one[0])
    if any(call.kept.drew for call in calls):
        _check_is_map(name, block.settled(as_tables=False), calls, state)
        return after, False
    if any(isinstance(part, SyncBatchNorm) and part.training for call in calls for part in call.module.modules()):
        return after, False  # its statistics are those of all ranks together
    raise ValueError(f"module: {name} {_differs(difference)}.")


def _left_out(block: RecordedBlock) -> str:
    """What it was given that cannot be kept, as a cache, in words."""
    values = (value for step in block.steps for value in step.arguments.leaves().values())
    kinds = dict.fromkeys(value.kind for value in values if isinstance(value, Other))
    return f", leaving out {' and '.join(kinds)}" if kinds else ""


def _differs(difference: float) -> str:
    by = f"by {difference:.1%}" if difference < 10 else "by far"
    return (
        f"called again with what it was given differs {by} from what it returned: it may keep a state of its own, "
        "change its input, draw random numbers in eval mode, or mix the samples. Name other blocks, or give callables "
        "to depth_spectrum"
    )


def _check_is_map(name: str, block: RecordedBlock, calls: list[ModuleCall], state: Tensor) -> None:
    """In eval mode a block must do the same again, and to each row alone.

    Raises:
        ValueError: If it does not.
    """
    after = _again(block, calls, state)
    axis, axis_after = (sample_axis(one.shape, block.rows) for one in (state, after))
    index = torch.arange(1, device=state.device)
    with untouched_random_state(state.device):
        torch.rand(1, device=state.device)  # so that the second call draws others, if it draws any
        alone = _again(block.of(index), calls, state.narrow(axis, 0, 1))
    difference = _difference(alone, after.narrow(axis_after, 0, 1))
    if difference > _tolerance(calls, after):
        raise ValueError(f"module: {name} {_differs(difference)}.")


def _again(block: RecordedBlock, calls: Sequence[ModuleCall], state: Tensor) -> Tensor:
    """What a block returns for the state of the samples, as they lie in it."""
    axis = sample_axis(state.shape, block.rows)
    with measuring_blocks([block], None, state.device), _autocast_of(calls[0].kept, state.device):
        after = block(state.clone().movedim(axis, 0))
    if calls[-1].kept.is_nested:
        padding = calls[-1].kept.arguments.kwargs["src_key_padding_mask"].values[: len(after)]
        after = after.masked_fill(padding.unsqueeze(-1), 0.0)
    return after.movedim(0, sample_axis(after.shape, block.rows))


def _autocast_of(kept: Kept, device: torch.device) -> torch.autocast:
    # Without its cache, in which weights would stay that no gradient flows to.
    return torch.autocast(device.type, kept.autocast, enabled=kept.autocast is not None, cache_enabled=False)


def _difference(after: Tensor, expected: Tensor | None) -> float:
    """Relative, in the norm; infinite where the shapes differ."""
    if expected is None:
        return 0.0
    if after.shape != expected.shape:
        return float("inf")
    one, other = (tensor.detach().double().nan_to_num() for tensor in (after, expected))
    size = torch.linalg.vector_norm(other)
    return float(torch.linalg.vector_norm(one - other) / size.clamp_min(1e-30))


def _tolerance(calls: Sequence[ModuleCall], after: Tensor) -> float:
    tolerance = max(TOLERANCES.get(kind, 0.0) for kind in (after.dtype, calls[0].kept.autocast) if kind is not None)
    if after.dtype != torch.float32:
        return tolerance
    precision = torch.get_float32_matmul_precision() if after.device.type == "cpu" else "high"
    return max(tolerance, COARSE[precision])


def prove_from_random_state(block: RecordedBlock, calls: list[ModuleCall]) -> bool:
    """Replay a link in training mode for all rows, from the random state that it had; whether that could be done.

    Raises:
        ValueError: If it does not return what it returned.
    """
    for call in calls:
        whole = call.kept.whole
        if whole is None or whole.after is None or _is_updated(call):
            return False
        doubts = (False, True) if whole.arguments.is_doubtful else (False,)
        difference = min(_from_random_state(call, whole, as_tables=as_tables) for as_tables in doubts)
        if difference > _tolerance(calls, whole.after):
            raise ValueError(f"module: {block.name} ({block.kind}) {_differs(difference)}.")
    return True


def _from_random_state(call: ModuleCall, whole: Whole, *, as_tables: bool) -> float:
    device = whole.before.device
    args, kwargs = whole.arguments.settled(as_tables=as_tables).given(whole.before.clone())
    with _as_in_training(call.module, whole, device), _autocast_of(call.kept, device):
        return _difference(floating(call.module(*args, **kwargs)), whole.after)


@contextmanager
def _as_in_training(module: nn.Module, whole: Whole, device: torch.device) -> Iterator[None]:
    """Modes, buffers and the random state as at the beginning of a call; all as it is now afterwards."""
    modes = {part: part.training for part in module.modules()}
    with modes_of_scripts(module), measuring(module, device):
        for part, training in modes.items():
            part.training = training
            vars(part).pop("_compiled_call_impl", None)
            vars(part)["_buffers"] = {
                name: None if one is None else whole.buffers.get(one, one) for name, one in part._buffers.items()
            }
        cpu, *others = whole.random
        torch.set_rng_state(cpu)
        for state in others:
            torch.cuda.set_rng_state(state, device)
        yield
