r"""Any callable ``cell(x, state) -> state`` as a map, differentiated by automatic differentiation.

States are run through first, one step after another. Their Jacobians follow from reverse mode, vectorised over time and
over the entries of the state: a batch of sequences at one time is to the cell what it was when it ran, so that a cell
which looks at its state, or holds a row per sequence of something, either gives the same or refuses. Where it refuses,
draws random numbers or changes while it runs, each step is differentiated by itself.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp, vmap

from lightning_lyapunov.engine.maps.base import Recurrence
from lightning_lyapunov.engine.maps.forms import Factors
from lightning_lyapunov.engine.maps.weights import cast, cast_tensors

State: TypeAlias = "Tensor | tuple[Tensor, ...]"
Cell: TypeAlias = "Callable[[Tensor | None, State], State]"


class CellMap(Recurrence):
    """Any callable ``cell(x, state) -> state``; rows of the batch must not act on each other.

    Args:
        cell: The map. The parameters of a module are copied and cast; any other callable runs as it is.
        template: A state as the cell takes it, one tensor or a tuple, ``(B, ...)``: gives structure and shapes.
        driven: False where the cell is to be called with None as input.
        dtype: Floating type; must be that of the template unless the cell is a module.
        detach: Whether to cut the map off from a module's parameters, so that no gradient reaches them.

    Attributes:
        castable: Whether the cell also runs in other floating types; False for one that is no module.
        over_time: Whether the Jacobians of many steps are formed at once; None before it was tried.
    """

    dense_limit = 32768

    def __init__(self, cell: Cell, template: State, *, driven: bool, dtype: torch.dtype, detach: bool = True) -> None:
        self.cell, self.template, self.driven, self.dtype, self._detach = cell, template, driven, dtype, detach
        self.shapes = [part.shape[1:] for part in as_parts(template)]
        self.sizes = [shape.numel() for shape in self.shapes]
        self.state_size, self.output_size = sum(self.sizes), self.sizes[0]
        self.castable = isinstance(cell, nn.Module)
        self._holder = _Holder(cell) if isinstance(cell, nn.Module) else None
        self._tensors = cast_tensors(self._holder, dtype, detach) if self._holder is not None else {}
        self._casts: dict[torch.dtype, CellMap] = {}
        self.over_time: bool | None = None
        self._forward_mode: bool | None = None
        self._reverse_mode: bool | None = None

    def to(self, dtype: torch.dtype) -> CellMap:
        if dtype == self.dtype or not self.castable:
            return self
        if dtype not in self._casts:
            self._casts[dtype] = CellMap(self.cell, self.template, driven=self.driven, dtype=dtype, detach=self._detach)
        return self._casts[dtype]

    def flatten(self, state: State) -> Tensor:
        """The parts of a state, each ``(B, ...)``, side by side: ``(B, D)``."""
        flat = [part.reshape(part.shape[0], -1) for part in as_parts(state)]
        return flat[0] if len(flat) == 1 else torch.cat(flat, -1)

    def unflatten(self, state: Tensor) -> State:
        """The inverse of :meth:`flatten`."""
        parts = self._split(state)
        return parts[0] if isinstance(self.template, Tensor) else tuple(parts)

    def _split(self, state: Tensor) -> list[Tensor]:
        return [
            part.reshape(part.shape[0], *shape)
            for part, shape in zip(state.split(self.sizes, -1), self.shapes, strict=True)
        ]

    # ------------------------------------------------------------------ the step

    def step(self, state: Tensor, drive: Tensor) -> Tensor:
        return self._with_tensors(lambda: self._step(state, drive), self._tensors)

    def run(self, inputs: Tensor, drive: Tensor, state: Tensor) -> Tensor:
        with torch.no_grad():
            return self._with_tensors(lambda: self._run(drive, state), self._tensors)

    def linearise(self, states: Tensor, drive: Tensor, by_input: bool = False) -> Factors:
        return states, drive

    def _with_tensors(self, function: Callable[[], Tensor], tensors: dict[str, Tensor]) -> Tensor:
        """What a function gives while the cell computes with other ``tensors``; what it changes of them, it changes."""
        return function() if self._holder is None else functional_call(self._holder, tensors, (function,))

    def _run(self, drive: Tensor, state: Tensor) -> Tensor:
        """States ``(T + 1, B, D)``; each part by itself, so that a step need not join and cut them."""
        histories = [part.new_empty(len(drive) + 1, *part.shape) for part in self._split(state)]
        steps = list(zip(*[history.unbind() for history in histories], strict=True))
        _copy(self._split(state), steps[0])
        for t, x in enumerate(cast(drive, self.dtype).unbind()):
            _copy(self._next(x, [part.clone() for part in steps[t]]), steps[t + 1])
        flat = [history.reshape(*history.shape[:2], -1) for history in histories]
        return flat[0] if len(flat) == 1 else torch.cat(flat, -1)

    def _step(self, state: Tensor, drive: Tensor) -> Tensor:
        # Clones: a cell may write to the state it is given, and this one is a step of the trajectory.
        return self.flatten(tuple(self._next(cast(drive, self.dtype), [part.clone() for part in self._split(state)])))

    def _next(self, x: Tensor, parts: list[Tensor]) -> Sequence[Tensor]:
        """The parts of the next state, checked."""
        expected = [part.shape for part in parts]
        state = parts[0] if isinstance(self.template, Tensor) else tuple(parts)
        result = as_parts(self.cell(x if self.driven else None, state))
        if [part.shape if isinstance(part, Tensor) else None for part in result] != expected:
            raise ValueError(
                "system must return the next state as it takes it, parts of shape "
                f"{[tuple(shape) for shape in expected]}; it returned "
                f"{[tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in result]}."
            )
        return result

    # ------------------------------------------------------------------ Jacobians of many steps at once

    def prefers_dense(self, factors: Factors, k: int) -> bool:
        if self._volume_is_cheap(k):  # they are formed anyway
            return True
        size, most = self.state_size, 4 * self.dense_limit
        pays = super().prefers_dense(factors, k) or 4 * k >= 3 * size
        pays = pays or (2 * k >= size and factors[0].shape[1] * size**2 <= most)
        return pays and self._goes_over_time(factors)

    def jacobians(self, factors: Factors) -> Tensor:
        states, drive = factors
        if self._goes_over_time(factors):
            try:
                return self._derive(lambda: self._jacobians_over_time(states, drive))
            except (
                Exception
            ):  # a way through the cell that its first steps did not take; if it is wrong, it says so below
                self.over_time = False
        basis = torch.eye(self.state_size, dtype=self.dtype, device=states.device).expand(states.shape[1], -1, -1)
        return torch.stack([self.push_forward(factor, basis) for factor in zip(states, drive, strict=True)])

    def log_volume_of_last(self, factors: Factors, steps: int) -> Tensor:
        if not self._goes_over_time(factors):
            return super().log_volume_of_last(factors, steps)
        if not self._has_dense(factors):
            factors = tuple(factor[-steps:] for factor in factors)  # all rows: a cell may count on their number
        return self.dense(factors).log_volume(len(factors[0]) - steps, rows=1).sum()

    def _jacobians_over_time(self, states: Tensor, drive: Tensor) -> Tensor:
        """Jacobians ``(T, B, D, D)``, their rows pulled back from the entries of the state."""

        def rows(state: Tensor, drive: Tensor) -> Tensor:
            """Row by row ``(D, B, D)``; the basis belongs to all sequences, as they do not act on each other."""
            image, pull = vjp(lambda h: self._step(h, drive), state)[:2]
            basis = torch.eye(self.state_size, dtype=image.dtype, device=image.device).unsqueeze(1)
            pulled: Tensor = vmap(pull)(basis.expand(-1, len(state), -1))[0]
            return pulled

        # Time is the outer of the two: torch then takes its own cells apart before it looks for their batching rules.
        return _unknown_where_overflown(vmap(rows)(states, drive).transpose(1, 2), states)

    def _goes_over_time(self, factors: Factors) -> bool:
        if self.over_time is None:
            self.over_time = self._try_over_time(factors[0][:2], factors[1][:2])
        return self.over_time

    def _try_over_time(self, states: Tensor, drive: Tensor) -> bool:
        """Whether the first steps' Jacobians can be had at once, and are those that each step has by itself."""
        try:
            with warnings.catch_warnings():
                # An operator without a batching rule is called once for each step, slower than we would do it.
                warnings.filterwarnings("error", "There is a performance drop")
                if self._changes_itself(states[0], drive[0]):
                    return False
                jacobian = self._derive(lambda: self._jacobians_over_time(states, drive))[0]
        except Exception:  # the cell is the user's, and has met none of this in its own steps
            return False
        entries = torch.arange(1, self.state_size + 1, dtype=states.dtype, device=states.device)
        tangent = torch.cos(entries).expand(len(jacobian), 1, -1).mT
        alone = self.push_forward((states[0], drive[0]), tangent)
        # Half the digits: rounding of a step that is a long computation in itself, but not another random number.
        slack = math.sqrt(torch.finfo(states.dtype).eps) * float((jacobian.abs() @ tangent.abs()).nan_to_num().amax())
        return torch.allclose(jacobian @ tangent, alone, rtol=0.0, atol=slack, equal_nan=True)

    def _changes_itself(self, state: Tensor, drive: Tensor) -> bool:
        """Whether a step leaves the cell another one: in training mode, or where it writes to its buffers."""
        if self._holder is None:
            return False
        if any(part.training for part in self._holder.cell.modules()):
            return True
        tensors = {name: tensor.clone() for name, tensor in self._tensors.items()}
        self._with_tensors(lambda: self._step(state, drive), tensors)
        return not all(torch.equal(tensors[name], tensor) for name, tensor in self._tensors.items())

    # ------------------------------------------------------------------ the Jacobian of one step

    def push_forward(self, factors: Factors, tangents: Tensor) -> Tensor:
        state, drive = factors
        own = tangents.to(self.dtype)
        if self._forward_mode is None:
            self._forward_mode = self._works(lambda: self._push_by_forward_mode(state, drive, own[..., :1]))
        if self._forward_mode:
            pushed = self._derive(lambda: self._push_by_forward_mode(state, drive, own))
        else:
            basis = torch.eye(self.state_size, dtype=own.dtype, device=own.device).unsqueeze(1)
            rows = self._derive(lambda: self._pull_one_by_one(state, drive, basis.expand(-1, len(state), -1)))
            pushed = rows.movedim(0, 1) @ own
        return _unknown_where_overflown(pushed, state).to(tangents.dtype)

    def pull_back(self, factors: Factors, cotangents: Tensor) -> Tensor:
        state, drive = factors
        rows = cotangents.to(self.dtype).movedim(-1, 0)
        if self._reverse_mode is None:
            self._reverse_mode = self._works(lambda: self._pull_at_once(state, drive, rows[:1]))
        pull = self._pull_at_once if self._reverse_mode else self._pull_one_by_one
        pulled = self._derive(lambda: pull(state, drive, rows)).movedim(0, -1)
        return _unknown_where_overflown(pulled, state).to(cotangents.dtype)

    def _derive(self, function: Callable[[], Tensor]) -> Tensor:
        """What a function of steps gives that are made for their derivative alone."""
        return self._with_tensors(function, dict(self._tensors))

    def _works(self, function: Callable[[], Tensor]) -> bool:
        """Whether every operator of the cell has the rules that a way to differentiate takes."""
        _load_forward_mode()
        try:
            self._derive(function)
        except (RuntimeError, NotImplementedError):  # what torch raises for a missing rule
            return False
        return True

    def _push_by_forward_mode(self, state: Tensor, drive: Tensor, tangents: Tensor) -> Tensor:
        def push(tangent: Tensor) -> Tensor:
            pushed: Tensor = jvp(lambda h: self._step(h, drive), (state,), (tangent,))[1]
            return pushed

        # Random cells (noise in the state) draw the same for every tangent: one Jacobian per step.
        return vmap(push, in_dims=-1, out_dims=-1, randomness="same")(tangents)

    def _pull_at_once(self, state: Tensor, drive: Tensor, cotangents: Tensor) -> Tensor:
        """Cotangents ``(N, B, D)`` pulled back together."""
        pull = vjp(lambda h: self._step(h, drive), state)[1]
        pulled: Tensor = vmap(pull)(cotangents)[0]
        return pulled

    def _pull_one_by_one(self, state: Tensor, drive: Tensor, cotangents: Tensor) -> Tensor:
        """Cotangents ``(N, B, D)`` pulled back by as many backward passes: every operator has a rule for one."""
        with torch.enable_grad():
            h = state.detach().clone().requires_grad_()
            image = self._step(h, drive)
            if not image.requires_grad:  # nothing of the state reaches the next one
                return torch.zeros_like(cotangents)
            pulled = [torch.autograd.grad(image, h, u, retain_graph=True, allow_unused=True)[0] for u in cotangents]
        return torch.stack([torch.zeros_like(state) if row is None else row for row in pulled])


class _Holder(nn.Module):
    """Calls a function while the tensors of a cell are swapped for others, which takes longer than a small step."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, function: Callable[[], Any]) -> Any:
        return function()


def as_parts(state: State) -> Sequence[Tensor]:
    """A state as a sequence of tensors, whether it is one or several."""
    return state if isinstance(state, tuple | list) else (state,)


def _copy(source: Sequence[Tensor], target: Sequence[Tensor]) -> None:
    for one, other in zip(source, target, strict=True):
        other.copy_(one)


def _unknown_where_overflown(vectors: Tensor, states: Tensor) -> Tensor:
    """NaN where the state ``(..., B, D)`` has overflowed: rules of differentiation may give a number, as relu's."""
    return vectors.masked_fill(~states.isfinite().all(-1)[..., None, None], math.nan)


@cache
def _load_forward_mode() -> None:
    """Load torch's rules, which is done once: some are compiled then, in a way that torch itself warns of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")
        jvp(torch.sin, (torch.zeros((), device="cpu"),), (torch.ones((), device="cpu"),))
