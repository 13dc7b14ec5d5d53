r"""Any callable ``cell(x, state) -> state`` as a map, differentiated by automatic differentiation.

States are run through first, one step after another. Their Jacobians follow from reverse mode, vectorised over time and
over the entries of the state: a batch of sequences at one time is to the cell what it was when it ran, so that a cell
which looks at its state, or holds a row per sequence of something, either gives the same or refuses. Where it refuses,
each step is differentiated by itself.

A cell that draws random numbers or changes as it runs would be another one by then. The first step of a map is a trial
of that; where it is so, each step is linearised by the very call that makes it, and its Jacobian is kept.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp, vmap

from lightning_lyapunov.engine.maps.base import Recurrence
from lightning_lyapunov.engine.maps.changes import are_as_given, are_close, are_same, kept
from lightning_lyapunov.engine.maps.forms import Factors
from lightning_lyapunov.engine.maps.weights import Holder, cast, cast_tensors

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
        changes: Whether the cell draws random numbers or changes as it runs, so that its steps are linearised as they
            are made; None before it was tried.
    """

    dense_limit = 32768

    def __init__(self, cell: Cell, template: State, *, driven: bool, dtype: torch.dtype, detach: bool = True) -> None:
        self.cell, self.template, self.driven, self.dtype, self._detach = cell, template, driven, dtype, detach
        self.shapes = [part.shape[1:] for part in as_parts(template)]
        self.sizes = [shape.numel() for shape in self.shapes]
        self.state_size, self.output_size = sum(self.sizes), self.sizes[0]
        self.castable = isinstance(cell, nn.Module)
        self._holder = Holder(cell) if isinstance(cell, nn.Module) else None
        self._tensors = cast_tensors(self._holder, dtype, detach) if self._holder is not None else {}
        self._casts: dict[torch.dtype, CellMap] = {}
        self.over_time: bool | None = None
        self.changes: bool | None = None
        self._forward_mode: bool | None = None
        self._reverse_mode: bool | None = None
        self._rows_at_once: bool | None = None

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
        """As in the base; a module is as it was after it, its buffers and attributes included."""
        with self._as_found() as tensors:
            return self._with_tensors(lambda: self._step(state, drive), tensors)

    def run(self, inputs: Tensor, drive: Tensor, state: Tensor) -> Tensor:
        with torch.no_grad():
            return self._with_tensors(lambda: self._run(drive, state), self._tensors)

    def linearise(self, states: Tensor, drive: Tensor, by_input: bool = False) -> Factors:
        return states, drive

    def follow(self, inputs: Tensor, state: Tensor, by_input: bool = False) -> tuple[Tensor, Factors]:
        """As in the base; the factors of a cell that :attr:`changes` are its Jacobians ``(T, B, D, D)`` themselves."""
        drive, made, before = self.drive(inputs), list[tuple[Tensor, Tensor]](), state
        if self.changes is None and len(drive):
            if self._holder is not None:
                self.changes = self._module_changes(state, drive[0])
            else:  # nobody can set it back, so the trial is the step itself
                found = kept(self.cell, state.device)
                start, image = self._make(state, drive[0])
                self.changes = not are_same(found, kept(self.cell, state.device))
                # What changes out of sight costs it a second step, which does not count.
                self.changes = self.changes or not are_close(self.step(state, drive[0]), image)
                made += [(image.detach(), self._jacobian(start, image))] if self.changes else []
        if not (self.changes and len(drive)):
            return super().follow(inputs, state, by_input)
        for x in drive[len(made) :]:
            start, image = self._make(made[-1][0] if made else before, x)
            made.append((image.detach(), self._jacobian(start, image)))
        after, jacobians = zip(*made, strict=True)
        return torch.stack([before, *after]), (torch.stack(jacobians),)

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

    # ------------------------------------------------------------------ a cell that changes as it runs

    def _module_changes(self, state: Tensor, drive: Tensor) -> bool:
        """Whether a step leaves a module another one, or is not the same twice; the module is as before."""
        if any(part.training for part in self._modules()):
            return True
        found = []
        devices = [state.device] if state.is_cuda else []
        with self._as_found(), torch.random.fork_rng(devices):
            for _ in range(2):
                given = {name: tensor.clone() for name, tensor in self._tensors.items()}
                tensors = dict(given)
                image = self._with_tensors(partial(self._step, state, drive), tensors).detach()
                if not are_as_given(tensors, given):
                    return True
                found.append((image, kept(self.cell, state.device)))
        (image, before), (again, after) = found
        return not (are_close(image, again) and are_same(before, after))

    def _modules(self) -> list[nn.Module]:
        return [] if self._holder is None else list(self._holder.module.modules())

    @contextmanager
    def _as_found(self) -> Iterator[dict[str, Tensor]]:
        """Tensors for a module whose buffers may be written to; its attributes are its own again afterwards."""
        tensors, found = dict(self._tensors), [(part, dict(vars(part))) for part in self._modules()]
        if self._holder is not None:
            tensors |= {name: tensors[name].clone() for name, _ in self._holder.named_buffers() if name in tensors}
        try:
            yield tensors
        finally:
            for part, attributes in found:
                vars(part).clear()
                vars(part).update(attributes)

    def _make(self, state: Tensor, drive: Tensor) -> tuple[Tensor, Tensor]:
        """Make a step that counts: the state ``(B, D)`` before and after it, joined by a graph."""
        with torch.enable_grad():
            start = state.detach().clone().requires_grad_()
            image = self._with_tensors(lambda: self._step(start, drive), self._tensors).to(self.dtype)
        if self._detach:  # a buffer that the state was written to
            self._tensors = {name: tensor.detach() for name, tensor in self._tensors.items()}
        return start, image

    def _jacobian(self, start: Tensor, image: Tensor) -> Tensor:
        """That of each sequence ``(B, D, D)``, from the graph of a step."""
        size = self.state_size
        basis = torch.eye(size, dtype=image.dtype, device=image.device).unsqueeze(1).expand(-1, len(image), -1)
        rows = None
        if self._rows_at_once is not False and image.requires_grad:
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("error", "There is a performance drop")
                    options: dict[str, Any] = {"is_grads_batched": True, "allow_unused": True, "retain_graph": True}
                    rows = torch.autograd.grad(image, start, basis, **options)[0]
                self._rows_at_once = True
            except Exception:  # an operator of the user's cell, without a batching rule
                self._rows_at_once = False
        if rows is None:
            rows = _pull_each(image, start, basis)
        return _unknown_where_overflown(rows.transpose(0, 1), start.detach())

    # ------------------------------------------------------------------ Jacobians of many steps at once

    def prefers_dense(self, factors: Factors, k: int) -> bool:
        if _are_jacobians(factors) or self._volume_is_cheap(k):  # they are formed anyway
            return True
        size, most = self.state_size, 4 * self.dense_limit
        pays = super().prefers_dense(factors, k) or 4 * k >= 3 * size
        pays = pays or (2 * k >= size and factors[0].shape[1] * size**2 <= most)
        return pays and self._goes_over_time(factors)

    def jacobians(self, factors: Factors) -> Tensor:
        if _are_jacobians(factors):
            return factors[0]
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
        if _are_jacobians(factors) or not self._goes_over_time(factors):
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
            with torch.no_grad():
                self.over_time = self._try_over_time(factors[0][:2], factors[1][:2])
        return self.over_time

    def _try_over_time(self, states: Tensor, drive: Tensor) -> bool:
        """Whether the first steps' Jacobians can be had at once, and are those that each step has by itself."""
        try:
            with warnings.catch_warnings():
                # An operator without a batching rule is called once for each step, slower than we would do it.
                warnings.filterwarnings("error", "There is a performance drop")
                jacobian = self._derive(lambda: self._jacobians_over_time(states, drive))[0]
        except Exception:  # the cell is the user's, and has met none of this in its own steps
            return False
        entries = torch.arange(1, self.state_size + 1, dtype=states.dtype, device=states.device)
        tangent = torch.cos(entries).expand(len(jacobian), 1, -1).mT
        alone = self.push_forward((states[0], drive[0]), tangent)
        # Half the digits: rounding of a step that is a long computation in itself, but not another random number.
        slack = math.sqrt(torch.finfo(states.dtype).eps) * float((jacobian.abs() @ tangent.abs()).nan_to_num().amax())
        return torch.allclose(jacobian @ tangent, alone, rtol=0.0, atol=slack, equal_nan=True)

    # ------------------------------------------------------------------ the Jacobian of one step

    def push_forward(self, factors: Factors, tangents: Tensor) -> Tensor:
        if _are_jacobians(factors):
            return factors[0].to(tangents.dtype) @ tangents
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
        if _are_jacobians(factors):
            return factors[0].to(cotangents.dtype).mT @ cotangents
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
        live = torch.is_grad_enabled() and not self._detach
        with torch.enable_grad():
            h = state if live and state.requires_grad else state.detach().clone().requires_grad_()
            image = self._step(h, drive)
        return _pull_each(image, h, cotangents, live)


def as_parts(state: State) -> Sequence[Tensor]:
    """A state as a sequence of tensors, whether it is one or several."""
    return state if isinstance(state, tuple | list) else (state,)


def _are_jacobians(factors: Factors) -> bool:
    """Whether they are the Jacobians of steps that were linearised as they were made."""
    return len(factors) == 1


def _pull_each(image: Tensor, start: Tensor, cotangents: Tensor, live: bool = False) -> Tensor:
    """Cotangents ``(N, B, D)`` pulled back along a graph, one after another; with a gradient of their own if live."""
    if not image.requires_grad:  # nothing of the state reaches the next one
        return torch.zeros_like(cotangents)
    options: dict[str, Any] = {"retain_graph": True, "create_graph": live, "allow_unused": True}
    pulled = [torch.autograd.grad(image, start, u, **options)[0] for u in cotangents]
    rows = torch.stack([torch.zeros_like(start) if row is None else row for row in pulled])
    return rows if live else rows.detach()


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
