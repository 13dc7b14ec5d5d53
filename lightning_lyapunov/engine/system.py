"""What a user passes, turned into chains of maps; what does not fit is refused here, by name and value.

A stack of layers is a chain of driven maps, each driven by the outputs of the one below, so the layers are run one
after another and each keeps a trajectory of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence

from lightning_lyapunov.engine.live import LivePath
from lightning_lyapunov.engine.maps.cell import Cell, CellMap, State, as_parts
from lightning_lyapunov.engine.maps.families import FAMILIES, Family, family_of, module_map
from lightning_lyapunov.engine.maps.weights import cast_tensors
from lightning_lyapunov.engine.precision import widest_dtype
from lightning_lyapunov.engine.sequences import Inputs, Sequences
from lightning_lyapunov.engine.trajectory import Trajectory


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
    system: object,
    inputs: Inputs | None,
    state: State | None,
    steps: int | None,
    dtype: torch.dtype | None,
    live: bool = False,
) -> dict[str, Trajectory]:
    """Run a system along its inputs and return the trajectory of each of its layers, by name.

    Args:
        system: A recurrent torch module or cell, or a callable ``cell(x, state) -> state``; modules in eval mode.
        inputs: What the module's forward takes; ``(T, B, ...)`` for cells and callables; sequences as they were
            recorded; None for an autonomous map.
        state: Initial state, as the system takes it; zeros if None.
        steps: Run only so many steps; all there are if None.
        dtype: Floating type of the run; float64 where the system and its device allow it if None.
        live: Whether gradients are to flow to whatever the system is made of, to inputs and state.

    Raises:
        ValueError: For inputs, states, weights or step counts that do not fit; the message says which.
    """
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be at least 1; got {steps}.")
    if isinstance(system, nn.RNNBase | nn.RNNCellBase):
        return _module_trajectories(system, inputs, state, steps, dtype, live)
    if callable(system):
        return _callable_trajectory(system, inputs, state, steps, dtype, live)
    raise ValueError(
        f"system must be an nn.RNN, nn.GRU or nn.LSTM, one of torch's cells, or a callable cell(x, state) -> state; "
        f"got {type(system).__name__}."
    )


def device_of(system: object, inputs: Inputs | None, state: State | None) -> torch.device:
    """The device a system computes on: that of its weights, else of its inputs, else of its state."""
    if isinstance(system, nn.Module):
        for tensor in (*system.parameters(), *system.buffers()):
            return tensor.device
    if isinstance(inputs, PackedSequence):
        return inputs.data.device
    given = inputs.values if isinstance(inputs, Sequences) else inputs
    tensors = [given, *([] if state is None else as_parts(state))]
    return next((tensor.device for tensor in tensors if isinstance(tensor, Tensor)), torch.device("cpu"))


# ------------------------------------------------------------------ torch's modules and cells


def _module_trajectories(
    module: Any,
    inputs: Inputs | None,
    state: State | None,
    steps: int | None,
    dtype: torch.dtype | None,
    live: bool,
) -> dict[str, Trajectory]:
    family = check_supported(module)
    device = device_of(module, inputs, state)
    dtype = dtype or widest_dtype(device)
    _check_weights(module)
    sequences = sequences_of(module, inputs, state, steps, dtype, device)
    initial = _initial_states(module, family, state, sequences, dtype, device)
    initial = initial if live else [part.detach() for part in initial]
    path = LivePath if live else Trajectory
    if isinstance(module, nn.RNNCellBase):
        state_0 = torch.cat([part[0] for part in initial], -1)
        recurrence = module_map(module, dtype, detach=not live)
        return {"cell": path(recurrence, sequences.values, state_0, sequences.running, sequences.order)}
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
            result[f"l{layer}{direction}"] = path(
                module_map(module, dtype, f"_l{layer}{direction}", not live),
                partial(inputs_of, layer, direction),
                torch.cat([part[row] for part in initial], -1),
                sequences.running,
                sequences.order,
                drives_another=layer + 1 < module.num_layers,
            )
    return result


def check_supported(module: nn.Module) -> Family:
    """The family of a torch module or cell; what only looks like one is refused.

    Raises:
        ValueError: If its forward pass was replaced: the formulas would be of another map.
    """
    family = family_of(module)
    torchs = [kind for known in FAMILIES for kind in (known.layer, known.cell)]
    if family is None:
        raise ValueError(
            f"system: {type(module).__name__} is none of {', '.join(f'nn.{kind.__name__}' for kind in torchs)}. "
            "Pass its step as a callable cell(x, state) -> state."
        )
    own = family.layer if isinstance(module, family.layer) else family.cell
    if type(module).forward is not own.forward or "forward" in vars(module):
        raise ValueError(
            f"system: {type(module).__name__} replaces the forward pass of nn.{own.__name__}, so its step is not "
            "known. Pass the plain module inside it, or its step as a callable cell(x, state) -> state."
        )
    return family


def _check_weights(module: nn.Module) -> None:
    for name, weight in module.named_parameters():
        if not torch.isfinite(weight).all():
            raise ValueError(f"system: its weight {name} holds NaN or infinite values; they must be finite.")


def sequences_of(
    module: Any,
    inputs: Inputs | None,
    state: State | None,
    steps: int | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Sequences:
    """Inputs as a torch module or cell takes them, checked, longest first."""
    width = module.input_size
    batch_axis = 0 if getattr(module, "batch_first", False) else 1
    if inputs is None:
        batch = 1 if state is None else _batch_of(module, state)
        inputs = torch.zeros(_needed(steps), batch, width, dtype=dtype, device=device)
        batch_axis = 1
    if isinstance(inputs, PackedSequence):
        inputs = Sequences.of_packed(inputs)
    if not isinstance(inputs, Sequences):
        values = _checked_tensor(inputs)
        if values.dim() not in (2, 3):
            layout = "(B, T, I)" if batch_axis == 0 else "(T, B, I)"
            raise ValueError(f"inputs must have shape {layout}, or (T, I) unbatched; got {tuple(values.shape)}.")
        values = values.unsqueeze(1) if values.dim() == 2 else values.movedim(batch_axis, 1)
        inputs = Sequences(values, [len(values)] * values.shape[1])
    values = inputs.values
    if values.shape[-1] != width:
        raise ValueError(
            f"inputs must be {width} wide (the last axis), the system's input_size; got {values.shape[-1]}."
        )
    if not values.is_floating_point():
        raise ValueError(f"inputs must be of a floating type; got {values.dtype}.")
    return _checked(inputs, steps, dtype, device)


def _batch_of(module: nn.Module, state: State) -> int:
    part = _checked_state(module, state)[0]
    batched = part.dim() == (3 if isinstance(module, nn.RNNBase) else 2)
    return part.shape[-2] if batched else 1


def _checked_state(module: nn.Module, state: State) -> Sequence[Tensor]:
    """The parts of a torch module's state: one, or h and c."""
    parts, family = as_parts(state), family_of(module)
    assert family is not None
    if len(parts) != family.parts or not all(isinstance(p, Tensor) and p.is_floating_point() for p in parts):
        wanted = "a pair (h, c) of floating tensors" if family.parts == 2 else "a floating tensor"
        came = ", ".join(str(part.dtype) if isinstance(part, Tensor) else type(part).__name__ for part in parts)
        raise ValueError(f"state must be {wanted}, as {type(module).__name__} takes it; got {came or 'nothing'}.")
    _check_finite(parts)
    return parts


def _check_finite(parts: Sequence[Tensor]) -> None:
    if not all(torch.isfinite(part).all() for part in parts):
        raise ValueError("state holds NaN or infinite values; it must be finite.")


def _needed(steps: int | None) -> int:
    if steps is None:
        raise ValueError("steps must say how many to run when inputs is None; got None.")
    return steps


def _checked_tensor(inputs: object) -> Tensor:
    if not isinstance(inputs, Tensor):
        raise ValueError(f"inputs must be a tensor, a PackedSequence or None; got {type(inputs).__name__}.")
    return inputs


def _checked(given: Sequences, steps: int | None, dtype: torch.dtype, device: torch.device) -> Sequences:
    """Sequences cut after ``steps``, finite, of the type and on the device of the run, longest first."""
    values = given.values
    if values.shape[0] == 0 or values.shape[1] == 0:
        raise ValueError(f"inputs must hold at least one step and one sequence; got {tuple(values.shape[:2])} (T, B).")
    if steps is not None and steps > len(values):
        raise ValueError(f"steps must not exceed the {len(values)} steps of inputs; got {steps}.")
    given = given.cut(steps)
    values = given.values.to(device)
    if values.is_floating_point():
        values = values.to(dtype)
        if not torch.isfinite(values).all():
            raise ValueError(f"inputs hold NaN or infinite values (in {dtype}); they must be finite.")
    if values.is_inference():
        values = values.clone()
    return Sequences(values, given.lengths).sorted()


def _initial_states(
    module: Any, family: Family, state: State | None, sequences: Sequences, dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """The parts of a torch module's initial state, each ``(layers x directions, B, size)``, rows in running order."""
    is_cell = isinstance(module, nn.RNNCellBase)
    batch = len(sequences)
    rows = 1 if is_cell else module.num_layers * (2 if module.bidirectional else 1)
    sizes = family.sizes(module)
    if state is None:
        return [torch.zeros(rows, batch, size, dtype=dtype, device=device) for size in sizes]
    shaped = []
    for part, size in zip(_checked_state(module, state), sizes, strict=True):
        shape = (batch, size) if is_cell else (rows, batch, size)
        unbatched = (*shape[:-2], size)
        if part.shape != shape and not (batch == 1 and part.shape == unbatched):
            raise ValueError(f"state must have shape {shape}; got {tuple(part.shape)}.")
        part = part.to(device=device, dtype=dtype).reshape(rows, batch, size)
        shaped.append(part if sequences.order is None else part.index_select(1, sequences.order))
    return shaped


# ------------------------------------------------------------------ any other cell


def _callable_trajectory(
    cell: Any,
    inputs: Inputs | None,
    state: State | None,
    steps: int | None,
    dtype: torch.dtype | None,
    live: bool,
) -> dict[str, Trajectory]:
    device = device_of(cell, inputs, state)
    if is_module := isinstance(cell, nn.Module):
        _check_weights(cell)
    if isinstance(inputs, PackedSequence):
        inputs = Sequences.of_packed(inputs)
    template = _template(cell, inputs, device) if state is None else state
    parts = as_parts(template)
    if not parts or not all(isinstance(p, Tensor) and p.is_floating_point() and p.dim() >= 1 for p in parts):
        came = ", ".join(f"{tuple(p.shape)} {p.dtype}" if isinstance(p, Tensor) else type(p).__name__ for p in parts)
        raise ValueError(f"state must be a floating tensor (B, ...) or a tuple of them; got {came or 'nothing'}.")
    batch = parts[0].shape[0]
    if batch == 0 or any(part.shape[0] != batch for part in parts):
        raise ValueError(f"state must have a row per sequence in each part; got {[len(part) for part in parts]} rows.")
    _check_finite(parts)
    # A bare callable may hold tensors of its own that nobody can cast: it runs in the type of its state.
    native = parts[0].dtype
    if dtype is not None and not is_module and dtype != native:
        raise ValueError(f"dtype of a callable is that of its state, {native}; got {dtype}. Cast the state instead.")
    widest = dtype is None
    dtype = (dtype or widest_dtype(device)) if is_module else native

    if inputs is None:
        values = torch.zeros(_needed(steps), batch, 0, dtype=dtype, device=device)
    elif not isinstance(inputs, Sequences):
        values = _checked_tensor(inputs)
        if values.dim() < 2:
            raise ValueError(f"inputs of a cell must have shape (T, B, ...); got {tuple(values.shape)}.")
    given = inputs if isinstance(inputs, Sequences) else Sequences(values, [len(values)] * values.shape[1])
    sequences = _checked(given, steps, dtype, device)
    if len(sequences) != batch:
        raise ValueError(f"state must have {len(sequences)} rows, one per sequence of inputs; got {batch}.")
    if sequences.order is not None:
        order = sequences.order
        permuted = tuple(part.index_select(0, order) for part in parts)
        template = permuted[0] if isinstance(template, Tensor) else permuted

    recurrence = CellMap(cast(Cell, cell), template, driven=inputs is not None, dtype=dtype, detach=not live)
    flat = recurrence.flatten(template)
    initial = (flat if live else flat.detach()).to(device=device, dtype=dtype)
    _check_step(recurrence, sequences.values[0], initial)
    recurrence.castable = recurrence.castable and widest and _runs_narrow(recurrence, sequences.values[0], initial)
    path = LivePath if live else Trajectory
    return {"cell": path(recurrence, sequences.values, initial, sequences.running, sequences.order)}


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


def _template(cell: Any, inputs: Tensor | Sequences | None, device: torch.device) -> State:
    """Zeros in the shape of the cell's state, as far as the cell itself can tell."""
    if isinstance(inputs, Sequences):
        inputs = inputs.values
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
