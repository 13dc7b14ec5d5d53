r"""A recurrent network as a one-step map :math:`h_{t+1} = f(h_t, x_t)` on one flat state, and its derivative.

The state is the *whole* state: :math:`(h, c)` for an LSTM. Each family writes its step and the derivative of that step
side by side, in plain tensor operations, so that both run on any device and in any floating type. For anything else
(:class:`CellMap`) the derivative comes from automatic differentiation.

A derivative is used in two halves. :meth:`Recurrence.linearise` computes, for many steps at once, the factors that the
Jacobians :math:`J_t = \partial f / \partial h` are made of; :meth:`Recurrence.push_forward` multiplies one step's
Jacobian into a bundle of tangent vectors without ever forming it. With several gates and more than a few tangents it is
cheaper to scale and add the gates' weights first: :meth:`Recurrence.push_condensed` does.

Tangents are ``(B, D, K)``, vectors as columns, and fastest where a column is contiguous in memory: all K of a sequence
then meet the weights in one product of matrices.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from functools import cache, cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vmap
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

State: TypeAlias = "Tensor | tuple[Tensor, ...]"
Cell: TypeAlias = "Callable[[Tensor | None, State], State]"
Factors: TypeAlias = tuple[Tensor, ...]


class Recurrence(ABC):
    r"""A one-step map on a flat state, one row per sequence.

    Attributes:
        state_size: D, the dimension of the whole state.
        output_size: Leading entries of the state that the next layer sees (h, not c).
        dtype: Floating type of the arithmetic.
        crossover: Tangents above which :meth:`push_condensed` is the faster; infinite where there is no such form.
        is_pure: Whether a step depends on state and drive alone, however many sequences there are and whenever it is
            made: not known of a user's function.
    """

    state_size: int
    output_size: int
    dtype: torch.dtype
    crossover: float = math.inf
    is_pure: bool = False

    def drive(self, inputs: Tensor) -> Tensor:
        """The part of a step that depends on the inputs ``(T, B, ...)`` alone, for all steps in one product."""
        return inputs

    @abstractmethod
    def linearise(self, states: Tensor, drive: Tensor) -> Factors:
        """Factors ``(T, B, ...)`` of the Jacobians at ``states`` ``(T, B, D)`` under ``drive`` ``(T, B, ...)``."""

    @abstractmethod
    def push_forward(self, factors: Factors, tangents: Tensor) -> Tensor:
        """One step's Jacobians times ``tangents`` ``(B, D, K)``, vectors as columns; ``factors`` lead with (B,)."""

    def condense(self, factors: Factors) -> Factors:
        """What :meth:`push_condensed` needs of ``factors`` ``(T, B, ...)``: scales for the rows of each weight."""
        raise NotImplementedError

    def push_condensed(self, factors: Factors, tangents: Tensor) -> Tensor:
        """The same as :meth:`push_forward`, by one product with Jacobians formed from condensed ``factors``."""
        raise NotImplementedError

    @abstractmethod
    def run(self, inputs: Tensor, drive: Tensor, state: Tensor) -> Tensor:
        """States ``(T + 1, B, D)`` from ``state`` ``(B, D)`` on, along ``inputs`` and their :meth:`drive`."""

    def follow(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Factors]:
        """States ``(T + 1, B, D)`` along ``inputs`` ``(T, B, ...)``, and the factors ``(T, B, ...)`` at the first T."""
        drive = self.drive(inputs)
        states = self.run(inputs, drive, state)
        return states, self.linearise(states[:-1], drive)

    @abstractmethod
    def to(self, dtype: torch.dtype) -> Recurrence:
        """The same map in another floating type (itself where it cannot be cast)."""

    def log_volume(self, factors: Factors) -> Tensor | None:
        r"""Closed form of :math:`\ln|\det J|` ``(T, B)``, or None where there is none."""
        return None

    def dense_log_volume(self, factors: Factors) -> Tensor:
        r""":math:`\ln|\det J|` ``(T, B)`` by LU of the dense Jacobian, one step at a time to bound memory."""
        steps, sequences = factors[0].shape[:2]
        frame = torch.eye(self.state_size, dtype=self.dtype, device=factors[0].device)
        frame = frame.repeat(sequences, 1, 1)
        return torch.stack(
            [
                torch.linalg.slogdet(self.push_forward(tuple(f[t] for f in factors), frame)).logabsdet
                for t in range(steps)
            ]
        )


class _Gated(Recurrence):
    """What RNN, GRU and LSTM share: stacked gate weights, one product for the drive, torch's layer for the states."""

    gates: int
    layer: type[nn.RNNBase]
    is_pure = True

    def __init__(self, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor | None, bias_hh: Tensor | None) -> None:
        self.weight_ih, self.weight_hh = weight_ih, weight_hh
        zeros = weight_hh.new_zeros(weight_hh.shape[0])
        self.bias_ih = zeros if bias_ih is None else bias_ih
        self.bias_hh = zeros if bias_hh is None else bias_hh
        self.hidden_size = weight_hh.shape[0] // self.gates
        self.state_size = self.output_size = self.hidden_size
        self.dtype = weight_hh.dtype

    def drive(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight_ih.mT + self.bias_ih

    def run(self, inputs: Tensor, drive: Tensor, state: Tensor) -> Tensor:
        output = self._library(inputs.contiguous(), state.unsqueeze(0).contiguous())[0]
        return torch.cat([state.unsqueeze(0), output])

    @cached_property
    def _library(self) -> nn.RNNBase:
        """Torch's layer with these weights: its loop over time is compiled."""
        # Made on no device, so that nothing is drawn and the user's random state stays as it is.
        make: Callable[..., nn.RNNBase] = self.layer
        layer = make(self.weight_ih.shape[1], self.hidden_size, device="meta", **self._options())
        parts = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh, getattr(self, "weight_hr", None))
        for name, part in zip(layer._flat_weights_names, [p for p in parts if p is not None], strict=True):
            setattr(layer, name, nn.Parameter(part, requires_grad=False))
        layer.flatten_parameters()
        return layer.eval()

    def _options(self) -> dict[str, Any]:
        return {}

    def _recur(self, h: Tensor) -> Tensor:
        return h @ self.weight_hh.mT + self.bias_hh

    def to(self, dtype: torch.dtype) -> Recurrence:
        if dtype == self.dtype:
            return self
        cast = copy(self)
        vars(cast).pop("_library", None)
        cast.dtype = dtype
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(cast, name, value.to(dtype))
        return cast


class ElmanMap(_Gated):
    r""":class:`torch.nn.RNN`: :math:`h' = \phi(a)`, :math:`a = W_i x + b_i + W_h h + b_h`, with tanh or relu.

    .. math:: dh' = \phi'(a) \circ W_h\, dh
    """

    gates = 1
    layer = nn.RNN

    def __init__(
        self,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias_ih: Tensor | None,
        bias_hh: Tensor | None,
        nonlinearity: str = "tanh",
    ) -> None:
        super().__init__(weight_ih, weight_hh, bias_ih, bias_hh)
        self.nonlinearity = nonlinearity

    def _options(self) -> dict[str, Any]:
        return {"nonlinearity": self.nonlinearity}

    def linearise(self, states: Tensor, drive: Tensor) -> Factors:
        a = drive + self._recur(states)
        return (_tanh_slope(a) if self.nonlinearity == "tanh" else _relu_slope(a),)

    def push_forward(self, factors: Factors, tangents: Tensor) -> Tensor:
        (slope,) = factors
        return _times(tangents.mT, self.weight_hh).mul_(slope.unsqueeze(-2)).mT

    def log_volume(self, factors: Factors) -> Tensor:
        (slope,) = factors
        return slope.log().sum(-1) + self._log_volume_of_weights

    @cached_property
    def _log_volume_of_weights(self) -> Tensor:
        return torch.linalg.slogdet(self.weight_hh).logabsdet


class GRUMap(_Gated):
    r""":class:`torch.nn.GRU`, its reset gate applied after the product with W_n.

    .. math::
        h' &= (1 - z) \circ n + z \circ h, \qquad n = \tanh(a_n + r \circ u), \qquad u = W_n h + b_{hn} \\
        dh' &= z \circ dh + e\,u\,r(1-r) \circ W_r\,dh + (h - n)\,z(1-z) \circ W_z\,dh + e\,r \circ W_n\,dh,
        \qquad e = (1 - z)(1 - n^2)
    """

    gates = 3
    layer = nn.GRU
    crossover = 8

    def _activate(self, states: Tensor, drive: Tensor) -> tuple[Tensor, ...]:
        drive_r, drive_z, drive_n = drive.chunk(3, -1)
        recur_r, recur_z, u = self._recur(states).chunk(3, -1)
        a_r, a_z = drive_r + recur_r, drive_z + recur_z
        return a_r, a_z, u, drive_n + torch.sigmoid(a_r) * u

    def linearise(self, states: Tensor, drive: Tensor) -> Factors:
        a_r, a_z, u, a_n = self._activate(states, drive)
        e = torch.sigmoid(-a_z) * _tanh_slope(a_n)
        by_r = e * u * _sigmoid_slope(a_r)
        by_z = (states - torch.tanh(a_n)) * _sigmoid_slope(a_z)
        by_n = e * torch.sigmoid(a_r)
        return torch.cat([by_r, by_z, by_n], -1), torch.sigmoid(a_z)

    def push_forward(self, factors: Factors, tangents: Tensor) -> Tensor:
        by_gate, z = factors
        pushed = _times(tangents.mT, self.weight_hh).mul_(by_gate.unsqueeze(-2))
        return torch.addcmul(pushed.unflatten(-1, (3, self.hidden_size)).sum(-2), tangents.mT, z.unsqueeze(-2)).mT

    def condense(self, factors: Factors) -> Factors:
        by_gate, z = factors
        return by_gate.unflatten(-1, (3, self.hidden_size)), z

    def push_condensed(self, factors: Factors, tangents: Tensor) -> Tensor:
        scales, z = factors
        jacobian = _scaled_sum(scales, self._weights_by_row)
        jacobian.diagonal(dim1=-2, dim2=-1).add_(z)
        return (tangents.mT @ jacobian.mT).mT

    @cached_property
    def _weights_by_row(self) -> Tensor:
        """``(H, gates, H)``: row i of each gate's weights, side by side."""
        return self.weight_hh.unflatten(0, (3, -1)).transpose(0, 1).contiguous()


class LSTMMap(_Gated):
    r""":class:`torch.nn.LSTM` on the state (h, c), with the projection P of ``proj_size`` (identity without it).

    .. math::
        c' &= f \circ c + i \circ g, \qquad h' = P\,(o \circ \tanh c') \\
        dc' &= f \circ dc + g\,i(1-i) \circ W_i\,dh + c\,f(1-f) \circ W_f\,dh + i\,(1-g^2) \circ W_g\,dh \\
        dh' &= P\,[\tanh(c')\,o(1-o) \circ W_o\,dh + o\,(1-\tanh^2 c') \circ dc']
    """

    gates = 4
    layer = nn.LSTM

    def __init__(
        self,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias_ih: Tensor | None,
        bias_hh: Tensor | None,
        weight_hr: Tensor | None = None,
    ) -> None:
        super().__init__(weight_ih, weight_hh, bias_ih, bias_hh)
        self.weight_hr = weight_hr
        self.output_size = weight_hh.shape[1]
        self.state_size = self.output_size + self.hidden_size
        self.crossover = 16 if weight_hr is None else math.inf

    def _options(self) -> dict[str, Any]:
        return {} if self.weight_hr is None else {"proj_size": self.output_size}

    def _project(self, h: Tensor) -> Tensor:
        return h if self.weight_hr is None else h @ self.weight_hr.mT

    def _split(self, state: Tensor) -> tuple[Tensor, Tensor]:
        return state[..., : self.output_size], state[..., self.output_size :]

    def run(self, inputs: Tensor, drive: Tensor, state: Tensor) -> Tensor:
        return self._run(inputs, drive, state)[0]

    def _run(self, inputs: Tensor, drive: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """States, and pre-activations ``(T, B, 4 H)``: the layer keeps h alone, and c follows from the gates."""
        h, c = self._split(state)
        output = self._library(inputs.contiguous(), (h.unsqueeze(0).contiguous(), c.unsqueeze(0).contiguous()))[0]
        hs = torch.cat([h.unsqueeze(0), output])
        activations = drive + self._recur(hs[:-1])
        a_i, a_f, a_g, _ = activations.chunk(4, -1)
        added, kept = torch.sigmoid(a_i).mul_(torch.tanh(a_g)), torch.sigmoid(a_f)
        cs = c.new_empty((len(hs), *c.shape))
        cs[0] = c
        for t in range(len(kept)):
            torch.addcmul(added[t], kept[t], cs[t], out=cs[t + 1])
        return torch.cat([hs, cs], -1), activations

    def follow(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Factors]:
        states, activations = self._run(inputs, self.drive(inputs), state)
        return states, self._linearise(states[:-1], activations)

    def linearise(self, states: Tensor, drive: Tensor) -> Factors:
        return self._linearise(states, drive + self._recur(self._split(states)[0]))

    def _linearise(self, states: Tensor, activations: Tensor) -> Factors:
        c = self._split(states)[1]
        a_i, a_f, a_g, a_o = activations.chunk(4, -1)
        i, f, g, o = torch.sigmoid(a_i), torch.sigmoid(a_f), torch.tanh(a_g), torch.sigmoid(a_o)
        next_c = f * c + i * g
        by_i, by_f = g * _sigmoid_slope(a_i), c * _sigmoid_slope(a_f)
        by_g, by_o = i * _tanh_slope(a_g), torch.tanh(next_c) * _sigmoid_slope(a_o)
        return torch.cat([by_i, by_f, by_g, by_o], -1), f, o * _tanh_slope(next_c)

    def push_forward(self, factors: Factors, tangents: Tensor) -> Tensor:
        by_gate, f, s = factors
        dh, dc = self._split(tangents.mT)
        pushed = _times(dh, self.weight_hh).mul_(by_gate.unsqueeze(-2))
        by_i, by_f, by_g, by_o = pushed.chunk(4, -1)
        dc = torch.addcmul(by_i + by_f + by_g, dc, f.unsqueeze(-2))
        dh = torch.addcmul(by_o, dc, s.unsqueeze(-2))
        return torch.cat([self._project(dh), dc], -1).mT

    def condense(self, factors: Factors) -> Factors:
        by_gate, f, s = factors
        by_gate = by_gate.unflatten(-1, (4, self.hidden_size))
        return by_gate[..., :3, :], by_gate[..., 3, :], f, s

    def push_condensed(self, factors: Factors, tangents: Tensor) -> Tensor:
        # Three gates act through c and become one matrix; the fourth acts on h alone, and its weights need no copy.
        scales, by_o, f, s = factors
        dh, dc = self._split(tangents.mT)
        dc = torch.bmm(dh, _scaled_sum(scales, self._weights_by_row).mT).addcmul_(dc, f.unsqueeze(-2))
        dh = _times(dh, self.weight_hh[3 * self.hidden_size :]).mul_(by_o.unsqueeze(-2)).addcmul_(dc, s.unsqueeze(-2))
        return torch.cat([dh, dc], -1).mT

    @cached_property
    def _weights_by_row(self) -> Tensor:
        """``(H, 3, H)``: row i of the weights of i, f and g, side by side."""
        return self.weight_hh.unflatten(0, (4, -1))[:3].transpose(0, 1).contiguous()

    def log_volume(self, factors: Factors) -> Tensor:
        # Row operations take the dc' block out of dh': det J = prod(f) · det(P diag(by_o) W_o).
        by_gate, f, _ = factors
        by_o = by_gate.chunk(4, -1)[3]
        if self.weight_hr is None:
            h_block = by_o.abs().log().sum(-1) + self._log_volume_of_weights
        else:
            weight_o = self.weight_hh.chunk(4)[3]
            h_block = torch.linalg.slogdet((self.weight_hr * by_o.unsqueeze(-2)) @ weight_o).logabsdet
        return f.log().sum(-1) + h_block

    @cached_property
    def _log_volume_of_weights(self) -> Tensor:
        return torch.linalg.slogdet(self.weight_hh.chunk(4)[3]).logabsdet


class CellMap(Recurrence):
    """Any callable ``cell(x, state) -> state``; rows of the batch must not act on each other.

    Derivatives are forward-mode (:func:`torch.func.jvp`, vectorised over the tangents). Where an operator of the cell
    has no forward-mode rule, as the fused CUDA cells, Jacobian rows come from reverse mode instead.

    Args:
        cell: The map. The parameters of a module are copied, detached and cast; any other callable runs as it is.
        template: A state as the cell takes it, one tensor or a tuple, ``(B, ...)``: gives structure and shapes.
        driven: False where the cell is to be called with None as input.
        dtype: Floating type; must be that of the template unless the cell is a module.

    Attributes:
        castable: Whether the cell also runs in other floating types; False for one that is no module.
    """

    def __init__(self, cell: Cell, template: State, *, driven: bool, dtype: torch.dtype) -> None:
        self.cell, self.template, self.driven, self.dtype = cell, template, driven, dtype
        self.shapes = [part.shape[1:] for part in as_parts(template)]
        self.sizes = [shape.numel() for shape in self.shapes]
        self.state_size, self.output_size = sum(self.sizes), self.sizes[0]
        self.castable = isinstance(cell, nn.Module)
        self._tensors = cast_tensors(cell, dtype) if isinstance(cell, nn.Module) else {}
        self._forward_mode: bool | None = None

    def flatten(self, state: State) -> Tensor:
        """The parts of a state, each ``(B, ...)``, side by side: ``(B, D)``."""
        return torch.cat([part.reshape(part.shape[0], -1) for part in as_parts(state)], -1)

    def unflatten(self, state: Tensor) -> State:
        """The inverse of :meth:`flatten`."""
        parts = tuple(
            part.reshape(part.shape[0], *shape)
            for part, shape in zip(state.split(self.sizes, -1), self.shapes, strict=True)
        )
        return parts[0] if isinstance(self.template, Tensor) else parts

    def step(self, state: Tensor, drive: Tensor) -> Tensor:
        """The state ``(B, D)`` one step later, driven by ``drive`` ``(B, ...)``."""
        # A copy: a cell may write to the state it is given, and this one is a step of the trajectory.
        arguments = (_cast(drive, self.dtype) if self.driven else None, self.unflatten(state.clone()))
        if isinstance(self.cell, nn.Module):
            result = functional_call(self.cell, self._tensors, arguments)
        else:
            result = self.cell(*arguments)
        shapes = [tuple(p.shape) if isinstance(p, Tensor) else type(p).__name__ for p in as_parts(result)]
        expected = [(len(state), *shape) for shape in self.shapes]
        if shapes != expected:
            raise ValueError(
                f"system must return the next state as it takes it, parts of shape {expected}; it returned {shapes}."
            )
        return self.flatten(result)

    def run(self, inputs: Tensor, drive: Tensor, state: Tensor) -> Tensor:
        states = state.new_empty((len(drive) + 1, *state.shape))
        states[0] = state
        for t in range(len(drive)):
            states[t + 1] = self.step(states[t], drive[t])
        return states

    def linearise(self, states: Tensor, drive: Tensor) -> Factors:
        return states, drive

    def push_forward(self, factors: Factors, tangents: Tensor) -> Tensor:
        state, drive = factors
        if self._forward_mode is None:
            self._forward_mode = self._has_forward_mode(state, drive, tangents)
        push = self._push_by_forward_mode if self._forward_mode else self._push_by_reverse_mode
        # Where the state has overflowed, what rules of differentiation give need not look like it: relu's is a number.
        return push(state, drive, tangents).masked_fill(~state.isfinite().all(-1)[:, None, None], torch.nan)

    def _has_forward_mode(self, state: Tensor, drive: Tensor, tangents: Tensor) -> bool:
        """Whether every operator of the cell has a forward-mode and a batching rule: tried on one tangent."""
        _load_forward_mode()
        try:
            self._push_by_forward_mode(state, drive, tangents[..., :1])
        except (RuntimeError, NotImplementedError):  # what torch raises for a missing rule
            return False
        return True

    def _push_by_forward_mode(self, state: Tensor, drive: Tensor, tangents: Tensor) -> Tensor:
        def push(tangent: Tensor) -> Tensor:
            pushed: Tensor = jvp(lambda h: self.step(h, drive), (state,), (tangent,))[1]
            return pushed

        # Random cells (noise in the state) draw the same for every tangent: one Jacobian per step.
        return vmap(push, in_dims=-1, out_dims=-1, randomness="same")(tangents)

    def _push_by_reverse_mode(self, state: Tensor, drive: Tensor, tangents: Tensor) -> Tensor:
        with torch.enable_grad():
            h = state.detach().clone().requires_grad_()
            image = self.step(h, drive)
            if not image.requires_grad:  # nothing of the state reaches the next one
                return torch.zeros_like(tangents)
            rows = [
                torch.autograd.grad(image[:, d].sum(), h, retain_graph=True, allow_unused=True)[0]
                for d in range(self.state_size)
            ]
        return torch.stack([torch.zeros_like(state) if row is None else row for row in rows], -2) @ tangents

    def to(self, dtype: torch.dtype) -> CellMap:
        if dtype == self.dtype or not self.castable:
            return self
        return CellMap(self.cell, self.template, driven=self.driven, dtype=dtype)


@cache
def _load_forward_mode() -> None:
    """Load torch's rules, which is done once: some are compiled then, in a way that torch itself warns of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")
        jvp(torch.sin, (torch.zeros((), device="cpu"),), (torch.ones((), device="cpu"),))


def _times(rows: Tensor, weights: Tensor) -> Tensor:
    """``rows`` ``(B, K, M)`` times the transpose of ``weights`` ``(N, M)``, in one product for the whole batch."""
    return (rows.flatten(0, 1) @ weights.mT).unflatten(0, rows.shape[:2])


def _scaled_sum(scales: Tensor, weights: Tensor) -> Tensor:
    """Matrices ``(B, N, M)`` whose row i is that of each of G weights, times its scale, added up.

    Args:
        scales: ``(B, G, N)``.
        weights: ``(N, G, M)``.
    """
    # N small products are faster than G passes over the matrices, if they find their operands contiguous.
    return torch.bmm(scales.permute(2, 0, 1).contiguous(), weights).transpose(0, 1)


def as_parts(state: State) -> Sequence[Tensor]:
    """A state as a sequence of tensors, whether it is one or several."""
    return state if isinstance(state, tuple | list) else (state,)


def _tanh_slope(a: Tensor) -> Tensor:
    """1 - tanh(a)², without the cancellation that turns a saturated unit into an exactly dead one."""
    decay = torch.exp(-2 * a.abs())
    return 4 * decay / (1 + decay).square()


def _relu_slope(a: Tensor) -> Tensor:
    """1 where a unit is on, 0 where it is off; NaN where it has overflowed, which is not to look like off."""
    return (a > 0).to(a.dtype).masked_fill(~a.isfinite(), torch.nan)


def _sigmoid_slope(a: Tensor) -> Tensor:
    """σ(a)(1 - σ(a)), without cancellation."""
    return torch.sigmoid(a) * torch.sigmoid(-a)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Change the floating type; leave indices and flags alone."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def cast_tensors(module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Copies of a module's parameters and buffers by name: a cell that writes to its buffers writes to ours."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: _cast(tensor.detach(), dtype).clone() for name, tensor in named}


def _effective(module: nn.Module, name: str, dtype: torch.dtype) -> Tensor | None:
    """The weight a module computes with, detached and cast; None where it has none.

    Parametrisations compute it on access. The older ways, torch's weight_norm, spectral_norm and pruning, do so in a
    hook before each forward pass, and what they left behind is old after an update: their formula is evaluated.
    """
    weight = getattr(module, name, None)
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm) and hook.name == name:
            weight = hook.compute_weight(module)
        elif isinstance(hook, SpectralNorm) and hook.name == name:
            weight = hook.compute_weight(module, do_power_iteration=False)
        elif isinstance(hook, BasePruningMethod) and hook._tensor_name == name:
            weight = hook.apply_mask(module)
    return None if weight is None else weight.detach().to(dtype)


def module_map(module: nn.Module, dtype: torch.dtype, suffix: str = "") -> Recurrence:
    """The map of one layer and direction of a torch recurrent module, or of a torch cell.

    Args:
        module: ``nn.RNN``, ``nn.GRU``, ``nn.LSTM`` or one of the cells, in eval mode (reading a parametrised weight in
            train mode may change it, as spectral normalisation does).
        dtype: Floating type of the map.
        suffix: Torch's suffix of the layer's weights: ``"_l0"``, ``"_l1_reverse"``; empty for a cell.
    """
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    weight_ih, weight_hh, bias_ih, bias_hh = (_effective(module, name + suffix, dtype) for name in names)
    if weight_ih is None or weight_hh is None:
        raise ValueError(f"system: {type(module).__name__} has no recurrent weights weight_hh{suffix}.")
    if isinstance(module, nn.LSTM | nn.LSTMCell):
        return LSTMMap(weight_ih, weight_hh, bias_ih, bias_hh, _effective(module, "weight_hr" + suffix, dtype))
    if isinstance(module, nn.GRU | nn.GRUCell):
        return GRUMap(weight_ih, weight_hh, bias_ih, bias_hh)
    assert isinstance(module, nn.RNN | nn.RNNCell)
    return ElmanMap(weight_ih, weight_hh, bias_ih, bias_hh, module.nonlinearity)
