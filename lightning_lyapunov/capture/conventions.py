"""How a module that nobody described passes its state on, found in what it was given and what it returned.

Cells return their state alone, or beside an output; take it as one argument, or as several, or make it when there is
none; take more than one input; keep their rows on any axis. What part of the output is which part of the arguments of a
later call shows which it is.
"""

from __future__ import annotations

import enum
import inspect
import math
import re
import types
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lightning_lyapunov.capture.calls import Adapter, Call, Parts
from lightning_lyapunov.capture.stepping import Adapted as Adapted
from lightning_lyapunov.capture.stepping import adapted as adapted
from lightning_lyapunov.capture.stepping import class_name, undisturbed
from lightning_lyapunov.capture.stepping import watch_forward as watch_forward
from lightning_lyapunov.capture.structures import Other, Path, Rows, at, leaves_of, mapped, said
from lightning_lyapunov.engine.maps.cell import State, as_parts
from lightning_lyapunov.engine.precision import widest_dtype

Step: TypeAlias = "Callable[[nn.Module, Tensor, State], State]"
"""The state one step later, of a module, an input and a state."""

STATE_NAMES = re.compile(
    r"(?:prev|previous|last|init|initial)?_?(?:h|c|hx|cx|hc|hidden|cell|state|carry|memory|mem|syn)"
    r"(?:_?(?:x|t|tm1|0|prev|previous|last|init|in|state|states))?s?"
)
"""What people call the argument that is the state."""


@dataclass(frozen=True, eq=False)
class RawCall:
    """What one call was given and returned; tensors with rows as :class:`Rows`, all of them copies."""

    given: dict[str, Any]
    """Arguments by the names of forward's signature, those left out at their defaults."""
    returned: Any
    rows: int
    """Sequences kept."""
    signature: inspect.Signature
    """Of forward."""


# ---------------------------------------------------------------------- recording


def signature_of(module: nn.Module) -> inspect.Signature:
    """What forward takes; scripted modules, which hide it, are asked for their schema."""
    forward = module.forward
    schema = getattr(forward, "schema", None)
    if schema is None:
        return inspect.signature(forward)
    kind, none = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty
    has_default = [argument.has_default_value() for argument in schema.arguments]
    return inspect.Signature(
        [
            inspect.Parameter(argument.name, kind, default=argument.default_value if optional else none)
            for argument, optional in zip(schema.arguments, has_default, strict=True)
            if argument.name != "self"
        ]
    )


def keep(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    output: Any,
    most: int,
    signature: inspect.Signature,
) -> RawCall:
    """A bounded copy of what a call was given and returned; made where it happens, without waiting for the device.

    A tensor's rows are on the first of its axes that is as long as axis 0 of the first tensor that was given; of the
    second, where the first is a state whose rows are elsewhere.

    Args:
        module: Whose forward was called.
        args: With what.
        kwargs: With what by name.
        output: What it returned.
        most: Rows to keep; the first ones.
        signature: Of the module's forward.

    Raises:
        ValueError: In words, if the arguments do not begin with a tensor that has rows.
    """
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    given = dict(bound.arguments)
    if packed := next((name for name, value in given.items() if isinstance(value, PackedSequence)), None):
        raise ValueError(f"{class_name(module)}.forward is given packed sequences ({packed}), which are no single step")
    rows = _count_rows([leaf for leaf in leaves_of(given).values() if isinstance(leaf, Tensor)])
    if rows is None:
        raise ValueError(
            f"{class_name(module)}.forward must be given a tensor with a row per sequence; it is given "
            f"{ {name: type(value).__name__ for name, value in given.items()} }"
        )

    def copied(_: Path, leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            axis = _axis_of_rows(leaf, rows)
            if axis is None:
                return leaf.detach().clone()
            return Rows(leaf.detach().narrow(axis, 0, min(rows, most)).clone(), axis)
        return leaf if isinstance(leaf, _HARMLESS) else Other(type(leaf).__name__)

    with torch.no_grad():
        return RawCall(mapped(given, copied), mapped(output, copied), min(rows, most), signature)


_HARMLESS = (
    *(int, float, complex, str, bytes, type(None), type, enum.Enum, types.FunctionType, types.BuiltinFunctionType),
    *(nn.Module, torch.dtype, torch.device),
)
"""Arguments that are kept as they are: none of them holds on to a graph."""


def _count_rows(given: Sequence[Tensor]) -> int | None:
    first, second = [*(tensor.shape for tensor in given), (), ()][:2]
    if first and second and first[0] not in second and second[0] in first:
        return second[0]
    return first[0] if first else None


def _axis_of_rows(tensor: Tensor, rows: int) -> int | None:
    return next((axis for axis, size in enumerate(tensor.shape) if size == rows), None)


# ---------------------------------------------------------------------- forms of tensors


@dataclass(frozen=True)
class _Form:
    """How a value that has a row per sequence looks to the module."""

    axis: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    """Of a row, as it is recorded."""
    is_number: bool = False
    """Whether it is a number of the call, as the time since the last one is."""

    @staticmethod
    def of(leaf: Rows | Tensor | float) -> _Form:
        if isinstance(leaf, Rows):
            return _Form(leaf.axis, leaf.values.dtype, tuple(_real(leaf.values.movedim(leaf.axis, 0)).shape[1:]))
        if isinstance(leaf, Tensor) and leaf.dim() > 0:
            return _Form(0, leaf.dtype, tuple(_real(leaf).shape[1:]))
        return _Form(0, leaf.dtype if isinstance(leaf, Tensor) else torch.float64, (1,), is_number=True)

    def take(self, leaf: Any, rows: int, device: torch.device) -> Tensor | None:
        """A recorded value, rows first; None where it is of another form."""
        if self.is_number:
            dtype = self.dtype if isinstance(leaf, Tensor) else widest_dtype(device)
            return torch.as_tensor(leaf, dtype=dtype, device=device).expand(rows, 1)
        values = leaf.values if isinstance(leaf, Rows) else leaf
        if not isinstance(values, Tensor) or values.is_complex() != self.dtype.is_complex:
            return None
        of_other_layout = values.dim() != len(self.shape) + 1 - self.dtype.is_complex
        axis = leaf.axis if isinstance(leaf, Rows) and of_other_layout else self.axis
        if values.dim() <= axis:
            return None
        taken = _real(values.movedim(axis, 0))
        if of_other_layout and taken[0].numel() == self.size:  # a first state of one more axis, of length 1
            taken = taken.reshape(-1, *self.shape)
        taken = taken.expand(rows, *taken.shape[1:]) if len(taken) == 1 else taken
        return taken if taken.shape == (rows, *self.shape) else None

    def of_output(self, values: Tensor) -> Tensor:
        """What the module returned, rows first."""
        return _real(values.movedim(self.axis, 0))

    def give(self, rows: Tensor) -> Tensor:
        """Rows ``(B, ...)`` as the module takes them; a floating type is that of the rows."""
        rows = rows.reshape(len(rows), *self.shape)
        if self.dtype.is_complex:
            rows = torch.view_as_complex(rows.contiguous())
        elif not self.dtype.is_floating_point:
            rows = rows.to(self.dtype)
        return rows.movedim(0, self.axis)

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


# ---------------------------------------------------------------------- the convention


@dataclass(frozen=True, eq=False)
class Recognised(Adapter):
    """A module of a convention that was found in its calls."""

    signature: inspect.Signature
    template: dict[str, Any]
    """Arguments of a call that was given a state; constants among them are those of every call."""
    taken: dict[Path, _Form]
    """Parts of the state among the arguments."""
    returned: tuple[Path, ...]
    """The same parts among what is returned."""
    drive: dict[Path, _Form]
    """The other arguments that have a row per sequence."""
    is_single: bool
    """Whether the state is one tensor rather than a tuple of them."""

    def read(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Call:
        """As in the base, from a copy.

        Raises:
            ValueError: If the call is not of this convention.
        """
        raw = keep(module, args, kwargs, output, 2**31, self.signature)
        if (call := self.call_of(raw)) is None:
            raise ValueError(f"{class_name(module)}.forward is given other arguments than in the calls before")
        return call

    def call_of(self, raw: RawCall) -> Call | None:
        """A recorded call in terms of the convention; None if it is not of it."""
        given, returned = leaves_of(raw.given), leaves_of(raw.returned)
        device = next((leaf.values.device for leaf in given.values() if isinstance(leaf, Rows)), torch.device("cpu"))
        after = [
            form.take(returned.get(path), raw.rows, device)
            for path, form in zip(self.returned, self.taken.values(), strict=True)
        ]
        drive = [form.take(given.get(path), raw.rows, device) for path, form in self.drive.items()]
        state = [given.get(path) for path in self.taken]
        has_state = any(isinstance(part, Rows | Tensor) for part in state)
        parts = zip(state, self.taken.values(), strict=True)
        before = [form.take(part, raw.rows, device) for part, form in parts] if has_state else []
        if any(part is None for part in (*after, *drive, *before)):
            return None
        return Call.of_step(
            self._joined([part for part in drive if part is not None], raw.rows, device),
            tuple(part for part in before if part is not None) or None,
            tuple(part for part in after if part is not None),
        )

    def _joined(self, drive: Sequence[Tensor], rows: int, device: torch.device) -> Tensor:
        """What drives a step, in one tensor: as it is if it is one, else flat, in a type that holds each of them."""
        if len(drive) == 1:
            return drive[0]
        if not drive:
            return torch.zeros(rows, 0, device=device)
        floating = [part.dtype for part in drive if part.is_floating_point()]
        dtype = widest_dtype(device)
        if len(floating) == len(drive):
            dtype = floating[0]
            for other in floating[1:]:
                dtype = torch.promote_types(dtype, other)
        return torch.cat([part.reshape(rows, -1).to(dtype) for part in drive], 1)

    def _parted(self, x: Tensor) -> list[Tensor]:
        """The inverse of :meth:`_joined`, in the forms that the module takes."""
        forms = list(self.drive.values())
        parts = [x] if len(forms) == 1 else x.split([form.size for form in forms], 1) if forms else []
        return [form.give(part) for form, part in zip(forms, parts, strict=True)]

    def step(self, module: nn.Module, x: Tensor, state: State) -> State:
        """As in the base: one call of the module, with the constants of the recorded ones."""
        parts = as_parts(state)
        given = dict(zip(self.drive, self._parted(x), strict=True))
        given |= {path: form.give(part) for (path, form), part in zip(self.taken.items(), parts, strict=True)}
        returned = called(module, self.signature, self.template, given, parts[0].dtype)
        after = [at(returned, path) for path in self.returned]
        if not all(isinstance(part, Tensor) for part in after):
            raise ValueError(f"{class_name(module)} returned no tensor at {[said(path) for path in self.returned]}")
        made = tuple(form.of_output(part) for form, part in zip(self.taken.values(), after, strict=True))
        return made[0] if self.is_single else made


def called(
    module: nn.Module, signature: inspect.Signature, template: Mapping[str, Any], given: Mapping[Path, Any], dtype: Any
) -> Any:
    """What a module returns for recorded arguments with those ``given`` in place; floating constants in a type."""

    def argument(path: Path, leaf: Any) -> Any:
        if path in given:
            return given[path]
        leaf = leaf.values if isinstance(leaf, Rows) else leaf
        return leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    bound = inspect.BoundArguments(signature, mapped(dict(template), argument))
    return module(*bound.args, **bound.kwargs)


# ---------------------------------------------------------------------- recognition


def read_calls(
    module: nn.Module, batches: Sequence[Sequence[RawCall]], adapter: Adapter | None = None
) -> tuple[Adapter, list[list[Call]]]:
    """Recognise how a module passes its state on, and read its calls so.

    A call that was given no state is read as one that began at zeros if the module gives the same for these; else it is
    left out, and the rows begin a step later, in the state that the module made.

    Args:
        module: Whose calls they are; it is run a few times for it, and is as before.
        batches: What was recorded, batch by batch, in the order of the calls.
        adapter: A function's (:class:`ByFunction`) if its step is to be taken, not that of the module.

    Returns:
        The adapter, and the calls of each batch.

    Raises:
        ValueError: In words, if no state can be made out.
    """
    batches = _of_one_layout([[raw for raw in batch if raw.rows] for batch in batches])
    convention = _convention(module, batches)
    if adapter is None and (apart := _rows_are_apart(module, convention, batches)) is not True:
        other = _with_rows_further_back(batches)
        turned = None if other is None else _convention(module, other)
        if other is not None and turned is not None and _rows_are_apart(module, turned, other):
            convention, batches = turned, other
        elif apart is False:
            raise ValueError(
                f"{class_name(module)}: rows act on each other, as a row by itself makes another step than beside the "
                "others. Each row must be a sequence of its own: give a step in which they are, module={'name': step}, "
                "step(module, x, state) -> state."
            )
    own = adapter if isinstance(adapter, ByFunction) else convention
    calls: list[list[Call]] = []
    made_is_zeros: bool | None = None
    for batch in batches:
        calls.append([])
        for raw in batch:
            if (call := convention.call_of(raw)) is None:
                continue
            if call.before is None and made_is_zeros is None:
                made_is_zeros = _starts_at_zeros(module, own, convention, raw, call)
            if call.before is not None or made_is_zeros:
                calls[-1].append(call)
    return own, calls


def _of_one_layout(batches: Sequence[Sequence[RawCall]]) -> list[list[RawCall]]:
    """The calls with a tensor's rows on one axis throughout, where the number of rows left it open."""
    votes: dict[tuple[bool, Path], Counter[int]] = {}
    for raw in (raw for batch in batches for raw in batch):
        for is_output, tree in ((False, raw.given), (True, raw.returned)):
            for path, leaf in leaves_of(tree).items():
                if isinstance(leaf, Rows):
                    votes.setdefault((is_output, path), Counter())[leaf.axis] += 1
    axes = {key: max(counter, key=lambda axis: (counter[axis], axis)) for key, counter in votes.items()}
    if all(len(counter) == 1 for counter in votes.values()):
        return [list(batch) for batch in batches]

    def turned(raw: RawCall, is_output: bool) -> Any:
        def leaf_of(path: Path, leaf: Any) -> Any:
            if not isinstance(leaf, Rows) or leaf.values.dim() <= (axis := axes[is_output, path]):
                return leaf
            return Rows(leaf.values, axis) if leaf.values.shape[axis] == raw.rows else leaf

        return mapped(raw.returned if is_output else raw.given, leaf_of)

    return [[RawCall(turned(raw, False), turned(raw, True), raw.rows, raw.signature) for raw in b] for b in batches]


def _with_rows_further_back(batches: list[list[RawCall]]) -> list[list[RawCall]] | None:
    """The calls with rows on the second of two axes that are as long as there are rows; None where none has two."""
    found = False

    def turned(raw: RawCall, tree: Any) -> Any:
        def leaf_of(_: Path, leaf: Any) -> Any:
            nonlocal found
            if not isinstance(leaf, Rows) or leaf.axis != 0 or leaf.values.dim() < 3:
                return leaf
            axis = next((i for i, size in enumerate(leaf.values.shape) if i > 0 and size == raw.rows), None)
            found = found or axis is not None
            return leaf if axis is None else Rows(leaf.values, axis)

        return mapped(tree, leaf_of)

    other = [
        [RawCall(turned(raw, raw.given), turned(raw, raw.returned), raw.rows, raw.signature) for raw in batch]
        for batch in batches
    ]
    return other if found else None


def _rows_are_apart(module: nn.Module, convention: Recognised, batches: list[list[RawCall]]) -> bool | None:
    """Whether a row by itself makes the step that it makes beside the others; None where there is no telling.

    If not, they act on each other, or were taken on a wrong axis.
    """
    # Of a late one: many begin at zeros, where nothing shows.
    read = (convention.call_of(raw) for batch in batches for raw in reversed(batch))
    call = next((call for call in read if call is not None and call.before is not None), None)
    if call is None or call.before is None or len(call.lengths) < 2:
        return True
    x, before = call.inputs[0], call.before

    def step(rows: slice, others: float = 1.0) -> Sequence[Tensor]:
        factor = torch.full((len(x),), others, device=x.device)
        factor[0] = 1.0
        parts = tuple((part * factor.to(part).view(-1, *[1] * (part.dim() - 1)))[rows] for part in before)
        return as_parts(convention.step(module, x[rows], _state(parts, convention)))

    every = slice(None)
    try:
        together, again, beside = undisturbed(module, lambda: [step(every), step(every), step(every, 0.5)])
    except Exception:  # the cell is the user's: anything may come out of it
        return None
    if not all(map(_are_close, together, again)):
        return True  # it draws at random
    if not all(_are_close(one[:1], two[:1]) for one, two in zip(together, beside, strict=True)):
        return False
    try:
        alone = undisturbed(module, lambda: step(slice(1)))
    except Exception:  # it may hold something for each of the rows that it was given
        return None
    if any(one[:1].shape != two.shape for one, two in zip(together, alone, strict=True)):
        return None
    return all(_are_close(one[:1], two) for one, two in zip(together, alone, strict=True))


def _are_close(one: Tensor, two: Tensor) -> bool:
    return bool(torch.allclose(one, two, rtol=1e-4, atol=1e-5, equal_nan=True))


def _convention(module: nn.Module, batches: list[list[RawCall]]) -> Recognised:
    calls = [raw for batch in batches for raw in batch]
    if not calls:
        raise ValueError("none of its calls was recorded")
    pairs = _passed_on([batch[:64] for batch in batches[:8]]) or _passed_on(batches) or _by_position(module, calls)
    if pairs is None:
        return _by_trial(module, calls[0])
    whole = [raw for raw in calls if all(isinstance(at(raw.given, path), Rows) for path in pairs)]
    if not whole:
        raise ValueError(f"{class_name(module)}.forward is never given its whole state, {', '.join(map(said, pairs))}")
    return _recognised(module, batches, whole[-1].signature, whole[-1].given, pairs)


def _recognised(
    module: nn.Module,
    batches: list[list[RawCall]],
    signature: inspect.Signature,
    template: dict[str, Any],
    pairs: Mapping[Path, Path],
) -> Recognised:
    """The convention in which the arguments at some paths are what was returned at others."""
    taken = {path: _Form.of(at(template, path)) for path in pairs}
    drive: dict[Path, _Form] = {}
    for path, leaf in leaves_of(template).items():
        if path in taken:
            continue
        if isinstance(leaf, Rows) or _varies(module, batches, path):
            drive[path] = _Form.of(leaf)
        elif isinstance(leaf, Other):
            raise ValueError(
                f"{class_name(module)}.forward is given {said(path)}, a {leaf.kind}: what it holds is not known. "
                "Give the step as a function: module={'name': step}, step(module, x, state) -> state"
            )
    states = {path[0] for path in taken}  # the first of which may be made of other things
    changing = {
        said(path)
        for batch in batches
        for raw in batch
        for path, leaf in leaves_of(raw.given).items()
        if path[0] not in states and isinstance(leaf, Rows) != (path in drive and isinstance(at(template, path), Rows))
    }
    if changing:
        raise ValueError(
            f"{class_name(module)}.forward is given {', '.join(sorted(changing))} in some calls and not in others, "
            "so that its step is not one map. Give it the same arguments at each step"
        )
    is_single = len(pairs) == 1 and len(next(iter(pairs))) == 1
    return Recognised(signature, template, taken, tuple(pairs.values()), drive, is_single)


def _varies(module: nn.Module, batches: list[list[RawCall]], path: Path) -> bool:
    """Whether an argument without rows is another one from call to call; numbers and rows for all may be.

    Raises:
        ValueError: If it is and cannot be taken as an input: its meaning is not known.
    """
    values = [[at(raw.given, path) for raw in batch] for batch in batches]
    if all(_are_equal(batch[0], value) for batch in values for value in batch[1:]):
        return False
    if all(_is_input(value) for batch in values for value in batch):
        return True
    seen = next(batch for batch in values if any(not _are_equal(batch[0], value) for value in batch))
    shown = ", ".join(str(value) for value in seen[:3] if not isinstance(value, Tensor)) or "tensors without rows"
    raise ValueError(
        f"{class_name(module)}.forward is given another {said(path)} at each call ({shown}, ...), so that its step is "
        "not one map"
    )


def _is_input(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.dim() == 0 or len(value) == 1
    return isinstance(value, float | Rows)


def _are_equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, Rows) or isinstance(other, Rows):
        return isinstance(one, Rows) and isinstance(other, Rows)
    return type(one) is type(other) and bool(one == other)


# ---------------------------------------------------------------------- which is the state


def _passed_on(batches: Sequence[Sequence[RawCall]], rows: int = 8) -> dict[Path, Path]:
    """Arguments that are what an earlier call returned, and where it did; empty if none is.

    Rows are compared, so that those that begin anew or are dropped do not hide the others. A row that was returned
    counts once for each argument: a context that is the same in all calls may have come out of the cell, but once.
    """
    votes: dict[Path, Counter[Path]] = {}
    seen: list[Path] = []
    for batch in batches:
        returned: dict[Any, tuple[set[Path], set[Path]]] = {}  # a row: where it was returned, what it was given as
        for raw in batch:
            for path, leaf in _floating(raw.given).items():
                if path not in seen:
                    seen.append(path)
                for row in _bytes_of_rows(leaf, rows):
                    sources, used = returned.get(row, (set(), set()))
                    if sources and path not in used:
                        used.add(path)
                        votes.setdefault(path, Counter()).update(sources)
            made: dict[Any, tuple[set[Path], set[Path]]] = {}
            for path, leaf in _floating(raw.returned).items():
                for row in _bytes_of_rows(leaf, rows):
                    made.setdefault(row, (set(), set()))[0].add(path)
            returned |= made
    if not votes:
        return {}
    most = max(max(counter.values()) for counter in votes.values())
    pairs = {
        # Of places that hold the same, the last: an output comes first, and may be changed on its way.
        path: max(votes[path], key=lambda source: (votes[path][source], [str(key) for key in source]))
        for path in seen
        if path in votes and 2 * max(votes[path].values()) >= most
    }
    given = next(leaves_of(raw.given) for batch in batches for raw in batch)
    first = next(path for path, leaf in given.items() if isinstance(leaf, Rows))
    fed_back = len(pairs) > 1 and not STATE_NAMES.fullmatch(str(first[0]))
    if first in pairs and fed_back:  # an input, which a decoder may well have returned
        del pairs[first]
    return pairs


def _floating(tree: Any) -> dict[Path, Rows]:
    """Tensors with rows that may be a state."""
    return {
        path: leaf
        for path, leaf in leaves_of(tree).items()
        if isinstance(leaf, Rows) and (leaf.values.is_floating_point() or leaf.values.is_complex())
    }


def _bytes_of_rows(leaf: Rows, rows: int) -> list[Any]:
    """The first rows of a tensor, so that equal ones are equal; without those that are zero and tell nothing."""
    values = leaf.values.movedim(leaf.axis, 0)[:rows]
    shape, dtype = values.shape[1:], values.dtype
    flat = _real(values).reshape(len(values), -1).contiguous().cpu()
    if flat.numel() == 0:
        return []
    rows_bytes = [row.tobytes() for row in flat.view(torch.uint8).numpy()]
    return [(dtype, shape, row) for row in rows_bytes if row.strip(b"\0")]


def _by_position(module: nn.Module, calls: list[RawCall]) -> dict[Path, Path] | None:
    """The state by its name or as the second argument, and the part of the output that looks like it.

    None if no call was given one.

    Raises:
        ValueError: If forward takes none, or returns none like it.
    """
    names = _state_arguments(module, calls[0])
    for raw in calls:
        state = {path: leaf for path, leaf in _floating(raw.given).items() if path[0] in names}
        if not state:
            continue
        looks = [_Form.of(leaf) for leaf in state.values()]
        returned = _floating(raw.returned)
        found = {path: _Form.of(leaf) for path, leaf in returned.items()}
        for start in reversed(range(len(found) - len(looks) + 1)):
            if [form.shape for form in list(found.values())[start:][: len(looks)]] == [form.shape for form in looks]:
                return dict(zip(state, list(found)[start:], strict=False))
        raise ValueError(
            f"{class_name(module)}.forward must return its next state: {', '.join(map(said, state))} has parts of "
            f"shape {[form.shape for form in looks]} for each row; it returned {[f.shape for f in found.values()]}"
        )
    return None


def _state_arguments(module: nn.Module, call: RawCall) -> list[str]:
    """The arguments that are the state, going by their names, else the second one."""
    others = list(call.given)[1:]
    if not others:
        raise ValueError(
            f"{class_name(module)}.forward must take (x, state), x a tensor; it takes {list(call.given)}. A state that "
            "it keeps in itself needs an adapter: module={'name': adapter}"
        )
    return [name for name in others if STATE_NAMES.fullmatch(name)] or others[:1]


def _by_trial(module: nn.Module, call: RawCall) -> Recognised:
    """The convention of a module that was never given a state: the first in which it takes what it returned.

    Raises:
        ValueError: If there is none.
    """
    names = _state_arguments(module, call)
    returned = call.returned
    parts = list(returned) if isinstance(returned, tuple | list) else [returned]
    options: list[dict[str, Path]] = []
    if len(names) > 1:
        tails = [leaves for leaves in [list(_floating(returned))] if len(leaves) >= len(names)]
        options += [dict(zip(names, leaves[start:], strict=False)) for leaves in tails for start in (-len(names), 0)]
    for name in names[:1]:
        options += [{name: ()}, *({name: (index,)} for index in reversed(range(len(parts))) if len(parts) > 1)]
    for option in options:
        template = call.given | {name: at(returned, path) for name, path in option.items()}
        state = {path: leaf for path, leaf in _floating(template).items() if path[0] in option}
        pairs = {path: (*option[path[0]], *path[1:]) for path in state}
        if not pairs or any(isinstance(leaf, Other) for leaf in leaves_of(template).values()):
            continue
        convention = _recognised(module, [[]], call.signature, template, pairs)
        if (read := convention.call_of(call)) is not None and _runs(module, convention, read):
            return convention
    raise ValueError(
        f"{class_name(module)}.forward must be (x, state) -> state or (output, state), the state a tensor or a tuple "
        f"of them; it takes {list(call.given)}, and was never given a state"
    )


def _runs(module: nn.Module, convention: Recognised, call: Call) -> bool:
    zeros = tuple(map(torch.zeros_like, call.after))
    try:
        made = undisturbed(module, lambda: convention.step(module, call.inputs[0], _state(zeros, convention)))
    except Exception:  # the cell is the user's: anything may come out of it
        return False
    return [part.shape for part in as_parts(made)] == [part.shape for part in zeros]


def _starts_at_zeros(module: nn.Module, own: Adapter, convention: Recognised, raw: RawCall, call: Call) -> bool:
    """Whether a call without a state is one that is given zeros, as far as rounding goes."""
    zeros = tuple(map(torch.zeros_like, call.after))
    weights = [tensor.dtype for tensor in module.parameters() if tensor.is_floating_point()]
    dtype = (weights or [zeros[0].dtype])[0]
    inputs = call.inputs[0].to(dtype) if call.inputs.is_floating_point() else call.inputs[0]
    zeros = tuple(part.to(dtype) for part in zeros)
    try:
        returned = undisturbed(module, lambda: called(module, raw.signature, raw.given, {}, dtype))
        made = [form.of_output(at(returned, path)) for (path, form) in _returned(convention)]
        other = undisturbed(module, lambda: own.step(module, inputs, _state(zeros, convention)))
    except Exception:  # the cell is the user's: anything may come out of it
        return False
    slack = math.sqrt(torch.finfo(dtype).eps)
    return all(
        one.shape == two.shape and torch.allclose(one, two.to(one.dtype), rtol=slack, atol=slack * 1e-2)
        for one, two in zip(made, as_parts(other), strict=True)
    )


def _returned(convention: Recognised) -> Iterator[tuple[Path, _Form]]:
    return zip(convention.returned, convention.taken.values(), strict=True)


def _state(parts: Parts, convention: Recognised) -> State:
    return parts[0] if convention.is_single else parts


# ---------------------------------------------------------------------- a function in place of an adapter


class ByCalls(Adapter):
    """A module that is read by its calls: its convention is recognised in them (:func:`read_calls`)."""

    def read(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Call:
        """As in the base, of this one call alone.

        Raises:
            ValueError: If no state can be made out.
        """
        raw = keep(module, args, kwargs, output, 2**31, signature_of(module))
        call = _convention(module, [[raw]]).call_of(raw)
        assert call is not None
        return call

    def step(self, module: nn.Module, x: Tensor, state: State) -> State:
        """None before calls were read."""
        raise ValueError(f"the step of {class_name(module)} is known when its calls were read, by read_calls.")


@dataclass(frozen=True, eq=False)
class ByFunction(ByCalls):
    """A step that the user wrote, ``step(module, x, state) -> state``, for a module that is read by its calls.

    ``x`` is what the module is given beside its state: that tensor, or several flattened side by side.
    """

    function: Step

    def step(self, module: nn.Module, x: Tensor, state: State) -> State:
        """As in the base."""
        return self.function(module, x, state)


def as_adapter(thing: Adapter | Step) -> Adapter:
    """An adapter as it is; a function ``step(module, x, state) -> state`` as one whose calls are recognised.

    Raises:
        ValueError: If it is neither.
    """
    if isinstance(thing, Adapter):
        return thing
    if callable(thing):
        return ByFunction(thing)
    raise ValueError(
        "module: what stands beside a name must be an Adapter or a function step(module, x, state) -> state; "
        f"got {type(thing).__name__}."
    )


def needs_raw_calls(adapter: Adapter | None) -> bool:
    """Whether calls are to be kept as they are (:func:`keep`) and read together (:func:`read_calls`)."""
    return adapter is None or isinstance(adapter, ByCalls)
