"""The states a recurrent system visits along a driving input: one :class:`Trajectory` per layer and direction.

A stack of layers is a chain of driven maps, each driven by the outputs of the one below, so the layers are run one
after another and each keeps a trajectory of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from lightning_lyapunov.recurrence import Cell, CellMap, Factors, Recurrence, State, as_parts, cast_tensors, module_map

Inputs = Tensor | PackedSequence
Families = (nn.RNN, nn.GRU, nn.LSTM)
Cells = (nn.RNNCell, nn.GRUCell, nn.LSTMCell)
STRETCH = 32
"""Steps that are run and linearised at once: what bounds the memory."""


@dataclass(frozen=True)
class Sequences:
    """Driving inputs, time first, longest sequence first."""

    values: Tensor
    """``(T, B, ...)``, padded beyond each sequence's end."""
    lengths: list[int]
    """(B,) steps of each sequence, falling."""
    order: Tensor | None = None
    """(B,) the user's row of each row here; None if it is the same."""

    @property
    def running(self) -> list[int]:
        """(T,) how many sequences, counted from the first row, still run at each step."""
        if self.lengths[-1] == len(self.values):
            return [len(self.lengths)] * len(self.values)
        return [sum(length > t for length in self.lengths) for t in range(len(self.values))]

    def reversed(self, values: Tensor) -> Tensor:
        """``values`` ``(T, B, ...)`` with time reversed within each sequence's own length."""
        if self.lengths[-1] == len(values):
            return values.flip(0)
        time = torch.arange(len(values), device=values.device).unsqueeze(1)
        lengths = torch.tensor(self.lengths, device=values.device)
        source = torch.where(time < lengths, lengths - 1 - time, time)
        return values[source, torch.arange(values.shape[1], device=values.device)]


class Trajectory:
    """The path of one map, run stretch by stretch as it is needed: no more than a stretch of it is held.

    Args:
        recurrence: The map.
        inputs: ``(T, B, ...)`` what drives it, or a function that gives this once it is needed.
        initial: ``(B, D)`` the state before the first step.
        running: (T,) how many sequences, counted from the first row, still run at each step.
        order: (B,) the user's row of each row here; None if it is the same.
        drives_another: Whether the outputs are kept for a layer above.
    """

    def __init__(
        self,
        recurrence: Recurrence,
        inputs: Tensor | Callable[[], Tensor],
        initial: Tensor,
        running: list[int],
        order: Tensor | None = None,
        *,
        drives_another: bool = False,
    ) -> None:
        self.recurrence, self.initial, self.running, self.order = recurrence, initial, running, order
        self._inputs, self._drives_another = inputs, drives_another
        self._state, self._time, self._outputs = initial, 0, list[Tensor]()

    @property
    def inputs(self) -> Tensor:
        """``(T, B, ...)`` what drives the map."""
        if not isinstance(self._inputs, Tensor):
            self._inputs = self._inputs()
        return self._inputs

    @property
    def state(self) -> Tensor:
        """``(B, D)`` the state that the path has been followed to."""
        return self._state

    @property
    def time(self) -> int:
        """The step that the path has been followed to."""
        return self._time

    def follow(self, stop: int) -> Factors:
        """Factors ``(S, B, ...)`` of the Jacobians from where the path was last followed to, up to step ``stop``."""
        states, factors = self.recurrence.follow(self.inputs[self._time : stop], self._state)
        self._advance(states, stop)
        return factors

    def skip(self, stop: int) -> None:
        """Follow the path without linearising it, a stretch at a time."""
        while self._time < stop:
            end = min(self._time + STRETCH, stop)
            inputs = self.inputs[self._time : end]
            self._advance(self.recurrence.run(inputs, self.recurrence.drive(inputs), self._state), end)

    def _advance(self, states: Tensor, stop: int) -> None:
        self._state, self._time = states[-1].clone(), stop
        if self._drives_another:
            self._outputs.append(states[1:, :, : self.recurrence.output_size].clone())

    def outputs(self) -> Tensor:
        """``(T, B, output_size)`` what a layer above sees; follows the rest of the path if need be."""
        self.skip(len(self.running))
        self._outputs = [torch.cat(self._outputs)]
        return self._outputs[0]

    @property
    def drive(self) -> Tensor:
        """``(T, B, ...)`` what the map makes of all the inputs."""
        return self.recurrence.drive(self.inputs)

    @property
    def states(self) -> Tensor:
        """``(T + 1, B, D)`` the whole path at once; ``states[t]`` is the state before step t."""
        return self.recurrence.run(self.inputs, self.drive, self.initial)


def unwrap(system: object) -> Any:
    """The module inside ``torch.compile`` and data-parallel wrappers."""
    while isinstance(system, nn.Module):
        if isinstance(inner := getattr(system, "_orig_mod", None), nn.Module):
            system = inner
        elif isinstance(system, nn.DataParallel | nn.parallel.DistributedDataParallel):
            system = system.module
        else:
            break
    return system


def trajectories(
    system: object, inputs: Inputs | None, state: State | None, steps: int | None, dtype: torch.dtype | None
) -> dict[str, Trajectory]:
    """Run a system along its inputs and return the trajectory of each of its layers, by name.

    Args:
        system: A recurrent torch module or cell, or a callable ``cell(x, state) -> state``; modules in eval mode.
        inputs: What the module's forward takes; ``(T, B, ...)`` for cells and callables; None for an autonomous map.
        state: Initial state, as the system takes it; zeros if None.
        steps: Run only so many steps; all there are if None.
        dtype: Floating type of the run; float64 where the system and its device allow it if None.

    Raises:
        ValueError: For inputs, states, weights or step counts that do not fit; the message says which.
    """
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be at least 1; got {steps}.")
    if isinstance(system, nn.RNNBase):
        return _module_trajectories(system, inputs, state, steps, dtype)
    if isinstance(system, nn.RNNCellBase):
        return _cell_trajectory(system, inputs, state, steps, dtype)
    if callable(system):
        return _callable_trajectory(system, inputs, state, steps, dtype)
    raise ValueError(
        f"system must be an nn.RNN, nn.GRU or nn.LSTM, one of torch's cells, or a callable cell(x, state) -> state; "
        f"got {type(system).__name__}."
    )


def widest_dtype(device: torch.device) -> torch.dtype:
    """float64, except on the one device that has none."""
    return torch.float32 if device.type == "mps" else torch.float64


def device_of(system: object, inputs: Inputs | None, state: State | None) -> torch.device:
    """The device a system computes on: that of its weights, else of its inputs, else of its state."""
    if isinstance(system, nn.Module):
        for tensor in (*system.parameters(), *system.buffers()):
            return tensor.device
    if isinstance(inputs, PackedSequence):
        return inputs.data.device
    tensors = [inputs, *([] if state is None else as_parts(state))]
    return next((tensor.device for tensor in tensors if isinstance(tensor, Tensor)), torch.device("cpu"))


# ------------------------------------------------------------------ torch's modules and cells


def _module_trajectories(
    module: nn.RNNBase, inputs: Inputs | None, state: State | None, steps: int | None, dtype: torch.dtype | None
) -> dict[str, Trajectory]:
    check_supported(module)
    device = device_of(module, inputs, state)
    dtype = dtype or widest_dtype(device)
    _check_weights(module)
    batch_axis = 0 if module.batch_first else 1
    sequences = _sequences(module, inputs, state, steps, dtype, device, batch_axis=batch_axis)
    initial = _initial_states(module, state, sequences, dtype, device)
    directions = ("", "_reverse") if module.bidirectional else ("",)

    def outputs_of(layer: int) -> Tensor:
        parts = [result[f"l{layer}{direction}"].outputs() for direction in directions]
        return torch.cat([parts[0], *(sequences.reversed(part) for part in parts[1:])], -1)

    def inputs_of(layer: int, direction: str) -> Tensor:
        values = outputs_of(layer - 1) if layer else sequences.values
        return sequences.reversed(values) if direction else values

    result: dict[str, Trajectory] = {}
    for layer in range(module.num_layers):
        for d, direction in enumerate(directions):
            row = len(directions) * layer + d
            result[f"l{layer}{direction}"] = Trajectory(
                module_map(module, dtype, f"_l{layer}{direction}"),
                partial(inputs_of, layer, direction),
                torch.cat([part[row] for part in initial], -1),
                sequences.running,
                sequences.order,
                drives_another=layer + 1 < module.num_layers,
            )
    return result


def _cell_trajectory(
    cell: nn.RNNCellBase, inputs: Inputs | None, state: State | None, steps: int | None, dtype: torch.dtype | None
) -> dict[str, Trajectory]:
    check_supported(cell)
    device = device_of(cell, inputs, state)
    dtype = dtype or widest_dtype(device)
    _check_weights(cell)
    sequences = _sequences(cell, inputs, state, steps, dtype, device, batch_axis=1)
    initial = _initial_states(cell, state, sequences, dtype, device)
    recurrence = module_map(cell, dtype)
    state_0 = torch.cat([part[0] for part in initial], -1)
    return {"cell": Trajectory(recurrence, sequences.values, state_0, sequences.running, sequences.order)}


def check_supported(module: nn.Module) -> None:
    """Refuse what only looks like torch's own layers.

    Raises:
        ValueError: If the forward pass of a torch module or cell was replaced: the formulas would be of another map.
    """
    for family in (*Families, *Cells):
        if isinstance(module, family):
            if type(module).forward is not family.forward or "forward" in vars(module):
                raise ValueError(
                    f"system: {type(module).__name__} replaces the forward pass of nn.{family.__name__}, so its step "
                    "is not known. Pass the plain module inside it, or its step as a callable cell(x, state) -> state."
                )
            return
    raise ValueError(
        f"system: {type(module).__name__} is none of {', '.join(f'nn.{f.__name__}' for f in (*Families, *Cells))}. "
        "Pass its step as a callable cell(x, state) -> state."
    )


def _check_weights(module: nn.Module) -> None:
    for name, weight in module.named_parameters():
        if not torch.isfinite(weight).all():
            raise ValueError(f"system: its weight {name} holds NaN or infinite values; they must be finite.")


def _sequences(
    module: Any,
    inputs: Inputs | None,
    state: State | None,
    steps: int | None,
    dtype: torch.dtype,
    device: torch.device,
    *,
    batch_axis: int,
) -> Sequences:
    """Inputs as a torch module or cell takes them, checked, as sequences."""
    width = module.input_size
    if inputs is None:
        batch = 1 if state is None else _batch_of(module, state)
        inputs = torch.zeros(_needed(steps), batch, width, dtype=dtype, device=device)
        batch_axis = 1
    if isinstance(inputs, PackedSequence):
        values, given = _unpacked(inputs)
    else:
        values = _checked_tensor(inputs)
        if values.dim() not in (2, 3):
            layout = "(B, T, I)" if batch_axis == 0 else "(T, B, I)"
            raise ValueError(f"inputs must have shape {layout}, or (T, I) unbatched; got {tuple(values.shape)}.")
        values = values.unsqueeze(1) if values.dim() == 2 else values.movedim(batch_axis, 1)
        given = None
    if values.shape[-1] != width:
        raise ValueError(
            f"inputs must be {width} wide (the last axis), the system's input_size; got {values.shape[-1]}."
        )
    if not values.is_floating_point():
        raise ValueError(f"inputs must be of a floating type; got {values.dtype}.")
    return _cut(values, given, steps, dtype, device)


def _unpacked(inputs: PackedSequence) -> tuple[Tensor, Tensor]:
    """Values ``(T, B, ...)``, padded, and lengths (B,) of what need not be of torch's own packing."""
    sizes, rows = inputs.batch_sizes.tolist(), len(inputs.data)
    named = [len(indices) for indices in (inputs.sorted_indices, inputs.unsorted_indices) if indices is not None]
    falls = inputs.batch_sizes.dim() == 1 and len(sizes) > 0 and all(a >= b for a, b in pairwise([*sizes, 1]))
    if not falls or sum(sizes) != rows or any(n != sizes[0] for n in named):
        raise ValueError(
            f"inputs: the batch_sizes of a PackedSequence must fall from the number of its sequences to at least 1, as "
            f"each has a step, and sum to the {rows} rows of its data; got {sizes}"
            + (f" and the indices of {named[0]} sequences." if named else ".")
        )
    return pad_packed_sequence(inputs)


def _batch_of(module: nn.Module, state: State) -> int:
    part = _checked_state(module, state)[0]
    batched = part.dim() == (3 if isinstance(module, nn.RNNBase) else 2)
    return part.shape[-2] if batched else 1


def _checked_state(module: nn.Module, state: State) -> Sequence[Tensor]:
    """The parts of a torch module's state: one, or h and c."""
    parts = as_parts(state)
    pair = isinstance(module, nn.LSTM | nn.LSTMCell)
    if len(parts) != 1 + pair or not all(isinstance(part, Tensor) and part.is_floating_point() for part in parts):
        wanted = "a pair (h, c) of floating tensors" if pair else "a floating tensor"
        came = ", ".join(str(part.dtype) if isinstance(part, Tensor) else type(part).__name__ for part in parts)
        raise ValueError(f"state must be {wanted}, as {type(module).__name__} takes it; got {came or 'nothing'}.")
    if not all(torch.isfinite(part).all() for part in parts):
        raise ValueError("state holds NaN or infinite values; it must be finite.")
    return parts


def _needed(steps: int | None) -> int:
    if steps is None:
        raise ValueError("steps must say how many to run when inputs is None; got None.")
    return steps


def _checked_tensor(inputs: object) -> Tensor:
    if not isinstance(inputs, Tensor):
        raise ValueError(f"inputs must be a tensor, a PackedSequence or None; got {type(inputs).__name__}.")
    return inputs


def _cut(
    values: Tensor, given: Tensor | None, steps: int | None, dtype: torch.dtype, device: torch.device
) -> Sequences:
    """Checked sequences from ``values`` ``(T, B, ...)`` of the ``given`` lengths, cut after ``steps``."""
    if values.shape[0] == 0 or values.shape[1] == 0:
        raise ValueError(f"inputs must hold at least one step and one sequence; got {tuple(values.shape[:2])} (T, B).")
    if steps is not None and steps > len(values):
        raise ValueError(f"steps must not exceed the {len(values)} steps of inputs; got {steps}.")
    values = values[:steps].to(device)
    if values.is_floating_point():
        values = values.to(dtype)
        if not torch.isfinite(values).all():
            raise ValueError(f"inputs hold NaN or infinite values (in {dtype}); they must be finite.")
    if values.is_inference():
        values = values.clone()
    if given is None:
        return Sequences(values, [len(values)] * values.shape[1])
    lengths, order = given.clamp(max=len(values)).sort(descending=True, stable=True)
    order = order.to(device)
    return Sequences(values.index_select(1, order), lengths.tolist(), order)


def _initial_states(
    module: Any, state: State | None, sequences: Sequences, dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """The parts of a torch module's initial state, each ``(layers x directions, B, size)``, rows in running order."""
    is_cell = isinstance(module, nn.RNNCellBase)
    batch = sequences.values.shape[1]
    rows = 1 if is_cell else module.num_layers * (2 if module.bidirectional else 1)
    sizes = [module.hidden_size]
    if isinstance(module, nn.LSTM | nn.LSTMCell):
        sizes = [getattr(module, "proj_size", 0) or module.hidden_size, module.hidden_size]
    if state is None:
        return [torch.zeros(rows, batch, size, dtype=dtype, device=device) for size in sizes]
    shaped = []
    for part, size in zip(_checked_state(module, state), sizes, strict=True):
        shape = (batch, size) if is_cell else (rows, batch, size)
        unbatched = (*shape[:-2], size)
        if part.shape != shape and not (batch == 1 and part.shape == unbatched):
            raise ValueError(f"state must have shape {shape}; got {tuple(part.shape)}.")
        part = part.detach().to(device=device, dtype=dtype).reshape(rows, batch, size)
        shaped.append(part if sequences.order is None else part.index_select(1, sequences.order))
    return shaped


# ------------------------------------------------------------------ any other cell


def _callable_trajectory(
    cell: Any, inputs: Inputs | None, state: State | None, steps: int | None, dtype: torch.dtype | None
) -> dict[str, Trajectory]:
    device = device_of(cell, inputs, state)
    is_module = isinstance(cell, nn.Module)
    if is_module:
        _check_weights(cell)
    template = _template(cell, inputs, device) if state is None else state
    parts = as_parts(template)
    if not parts or not all(isinstance(p, Tensor) and p.is_floating_point() and p.dim() >= 1 for p in parts):
        came = ", ".join(f"{tuple(p.shape)} {p.dtype}" if isinstance(p, Tensor) else type(p).__name__ for p in parts)
        raise ValueError(f"state must be a floating tensor (B, ...) or a tuple of them; got {came or 'nothing'}.")
    batch = parts[0].shape[0]
    if batch == 0 or any(part.shape[0] != batch for part in parts):
        raise ValueError(f"state must have a row per sequence in each part; got {[len(part) for part in parts]} rows.")
    if not all(torch.isfinite(part).all() for part in parts):
        raise ValueError("state holds NaN or infinite values; it must be finite.")
    # A bare callable may hold tensors of its own that nobody can cast: it runs in the type of its state.
    native = parts[0].dtype
    if dtype is not None and not is_module and dtype != native:
        raise ValueError(f"dtype of a callable is that of its state, {native}; got {dtype}. Cast the state instead.")
    widest = dtype is None
    dtype = (dtype or widest_dtype(device)) if is_module else native

    if inputs is None:
        sequences = _cut(torch.zeros(_needed(steps), batch, 0, dtype=dtype, device=device), None, None, dtype, device)
    elif isinstance(inputs, PackedSequence):
        sequences = _cut(*_unpacked(inputs), steps, dtype, device)
    else:
        values = _checked_tensor(inputs)
        if values.dim() < 2:
            raise ValueError(f"inputs of a cell must have shape (T, B, ...); got {tuple(values.shape)}.")
        sequences = _cut(values, None, steps, dtype, device)
    if sequences.values.shape[1] != batch:
        raise ValueError(f"state must have {sequences.values.shape[1]} rows, one per sequence of inputs; got {batch}.")
    if sequences.order is not None:
        order = sequences.order
        permuted = tuple(part.index_select(0, order) for part in parts)
        template = permuted[0] if isinstance(template, Tensor) else permuted

    recurrence = CellMap(cast(Cell, cell), template, driven=inputs is not None, dtype=dtype)
    initial = recurrence.flatten(template).detach().to(device=device, dtype=dtype)
    _check_step(recurrence, sequences.values[0], initial)
    recurrence.castable = recurrence.castable and widest and _runs_narrow(recurrence, sequences.values[0], initial)
    return {"cell": Trajectory(recurrence, sequences.values, initial, sequences.running, sequences.order)}


def _check_step(recurrence: CellMap, first: Tensor, state: Tensor) -> None:
    """One trial step: what goes wrong in somebody's cell is told in terms of the arguments it got."""
    try:
        returned = recurrence.step(state, first).dtype
    except ValueError:
        raise
    except Exception as error:  # the cell is the user's: anything may come out of it
        given = f"inputs {tuple(first.shape)} {first.dtype}" if recurrence.driven else "no inputs"
        raise ValueError(
            f"system: calling {_name(recurrence.cell)}(x, state) with {given} and state parts "
            f"{[(len(state), *shape) for shape in recurrence.shapes]} failed ({type(error).__name__}: {error}). "
            f"It must be a cell(x, state) -> state{_layers_inside(recurrence.cell)}."
        ) from error
    if torch.finfo(returned).bits < torch.finfo(recurrence.dtype).bits:
        raise ValueError(
            f"system must return its state in the type it takes it, {recurrence.dtype}; it returned {returned}. "
            f"Measure it in that type: dtype={returned}, or a state of that type for a bare callable."
        )


def _runs_narrow(recurrence: CellMap, first: Tensor, state: Tensor) -> bool:
    """Whether the cell runs in float32 too: constants that its module does not register are not cast with it."""
    try:
        narrow = recurrence.to(torch.float32)
        return narrow.step(state.float(), first).dtype == torch.float32
    except Exception:  # the cell is the user's: anything may come out of it
        return False


def _template(cell: Any, inputs: Inputs | None, device: torch.device) -> State:
    """Zeros in the shape of the cell's state, as far as the cell itself can tell."""
    if isinstance(inputs, PackedSequence):
        inputs = _unpacked(inputs)[0]
    if isinstance(inputs, Tensor) and inputs.dim() >= 2:
        try:
            first = inputs[0].to(device)
            if isinstance(cell, nn.Module):
                dtype = widest_dtype(device)
                first = first.to(dtype) if first.is_floating_point() else first
                state = functional_call(cell, cast_tensors(cell, dtype), (first, None))
            else:
                state = cell(first, None)
        except Exception as error:  # whatever a cell raises on None: it cannot tell, so the caller must
            raise ValueError(
                f"state must be given for {_name(cell)}: calling it with None to learn its shape failed "
                f"({type(error).__name__}: {error}){_layers_inside(cell)}."
            ) from error
        parts = as_parts(state)
        if all(isinstance(part, Tensor) for part in parts):
            zeros = tuple(torch.zeros_like(part) for part in parts)
            return zeros[0] if isinstance(state, Tensor) else zeros
    raise ValueError(f"state must be given for {_name(cell)}: its shape cannot be known otherwise; got None.")


def _name(cell: object) -> str:
    return getattr(cell, "__name__", None) or type(cell).__name__


def _layers_inside(cell: object) -> str:
    """A hint for somebody who passed a whole model where a layer was meant."""
    if not isinstance(cell, nn.Module):
        return ""
    names = [name for name, part in cell.named_modules() if name and isinstance(part, nn.RNNBase | nn.RNNCellBase)]
    return f"; to measure a layer inside it, pass one of: {', '.join(names)}" if names else ""
