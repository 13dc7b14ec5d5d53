r"""What torch's RNN, GRU and LSTM have in common: pre-activations :math:`a = W_i x + b_i + W_h h + b_h` of some gates.

How they depend on the state is one product, :math:`da = W_h\, dh`, and how the next state depends on them is a scale
for each, ``factors[0]``, and sums that are the family's own.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from copy import copy
from functools import cached_property
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from lightning_lyapunov.engine.maps.base import Recurrence
from lightning_lyapunov.engine.maps.forms import Factors

Weight: TypeAlias = Callable[[str], "Tensor | None"]
"""Gives a weight of a module by torch's name of it, such as ``"weight_hh"``; None where it has none."""


class GatedMap(Recurrence):
    """A layer of torch, with the weights of its gates stacked as torch stacks them.

    Attributes:
        gates: How many there are.
        parts: How many tensors the state is made of, as torch passes it.
        layer: Torch's own.
    """

    gates: ClassVar[int]
    parts: ClassVar[int] = 1
    layer: ClassVar[type[nn.RNNBase]]
    is_pure = True

    def __init__(self, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor | None, bias_hh: Tensor | None) -> None:
        self.weight_ih, self.weight_hh = weight_ih, weight_hh
        zeros = weight_hh.new_zeros(weight_hh.shape[0])
        self.bias_ih = zeros if bias_ih is None else bias_ih
        self.bias_hh = zeros if bias_hh is None else bias_hh
        self.hidden_size = weight_hh.shape[0] // self.gates
        self.state_size = self.output_size = self.hidden_size
        self.dtype = weight_hh.dtype
        self._casts: dict[torch.dtype, GatedMap] = {}

    @classmethod
    def of(cls, module: Any, weight: Weight) -> GatedMap:
        """The map of a module of torch, whose weights ``weight`` reads."""
        weight_ih, weight_hh = weight("weight_ih"), weight("weight_hh")
        if weight_ih is None or weight_hh is None:
            raise ValueError(f"system: {type(module).__name__} has no such recurrent weights.")
        return cls(weight_ih, weight_hh, weight("bias_ih"), weight("bias_hh"), **cls._options_of(module, weight))

    @classmethod
    def _options_of(cls, module: Any, weight: Weight) -> dict[str, Any]:
        """What else the map is made of."""
        return {}

    @classmethod
    def sizes(cls, module: Any) -> tuple[int, ...]:
        """Width of each part of a module's state."""
        return (module.hidden_size,)

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
        """How torch's layer is to be made."""
        return {}

    def _recur(self, h: Tensor) -> Tensor:
        return h @ self.weight_hh.mT + self.bias_hh

    def replace(self, **weights: Tensor) -> GatedMap:
        """The same map with some other weights, by torch's names of them without suffix, as ``weight_hh``."""
        own = {name: getattr(self, name) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
        return type(self)(**(own | self._own_options() | weights))

    def _own_options(self) -> dict[str, Any]:
        """What else this map was made of."""
        return {}

    def to(self, dtype: torch.dtype) -> GatedMap:
        if dtype == self.dtype:
            return self
        if dtype not in self._casts:
            self._casts[dtype] = self._cast(dtype)
        return self._casts[dtype]

    def _cast(self, dtype: torch.dtype) -> GatedMap:
        cast = copy(self)
        vars(cast).pop("_library", None)
        cast.dtype, cast._casts, cast._dense = dtype, {}, None
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(cast, name, value.to(dtype))
        return cast

    # ----------------------------------------------------------------- one step's Jacobian; vectors as rows (B, K, ...)

    def push_forward(self, factors: Factors, tangents: Tensor) -> Tensor:
        rows = tangents.mT
        gates = times(self._visible(rows), self.weight_hh).mul_(factors[0].unsqueeze(-2))
        return self._to_state(factors, gates, rows).mT

    def push_driven(self, factors: Factors, t: int, tangents: Tensor, input_tangents: Tensor) -> Tensor:
        factors, rows = at(factors, t, len(tangents)), tangents.mT
        gates = times(self._visible(rows), self.weight_hh).mul_(factors[0].unsqueeze(-2))
        gates.addcmul_(times(input_tangents.mT, self.weight_ih), self._by_drive(factors).unsqueeze(-2))
        return self._to_state(factors, gates, rows).mT

    def pull_back(self, factors: Factors, cotangents: Tensor) -> Tensor:
        gates, past = self._to_gates(factors, cotangents.mT)
        return self._join(times(gates * factors[0].unsqueeze(-2), self.weight_hh.mT), past).mT

    def pull_driven(self, factors: Factors, t: int, cotangents: Tensor) -> tuple[Tensor, Tensor]:
        factors = at(factors, t, len(cotangents))
        gates, past = self._to_gates(factors, cotangents.mT)
        state = self._join(times(gates * factors[0].unsqueeze(-2), self.weight_hh.mT), past)
        inputs = times(gates * self._by_drive(factors).unsqueeze(-2), self.weight_ih.mT)
        return state.mT, inputs.mT

    def _visible(self, rows: Tensor) -> Tensor:
        """What the gates see of the state."""
        return rows

    def _by_drive(self, factors: Factors) -> Tensor:
        """``(B, gates H)`` how the gates depend on the drive: as they do on the state, if nothing else is said."""
        return factors[0]

    @abstractmethod
    def _to_state(self, factors: Factors, gates: Tensor, tangents: Tensor) -> Tensor:
        """Tangents ``(B, K, D)`` of the next state.

        Args:
            factors: Of one step, ``(B, ...)``.
            gates: ``(B, K, gates H)`` of what the gates add to it, scaled by ``factors[0]``.
            tangents: ``(B, K, D)`` of the state.
        """

    @abstractmethod
    def _to_gates(self, factors: Factors, cotangents: Tensor) -> tuple[Tensor, Tensor | None]:
        """Cotangents ``(B, K, gates H)`` of the gates, not yet scaled by ``factors[0]``, and those that bypass them.

        Args:
            factors: Of one step, ``(B, ...)``.
            cotangents: ``(B, K, D)`` of the next state.
        """

    def _join(self, by_gates: Tensor, past: Tensor | None) -> Tensor:
        """Cotangents ``(B, K, D)`` of the state, from those through the gates and those past them."""
        return by_gates if past is None else by_gates.add_(past)


def at(factors: Factors, t: int, rows: int) -> Factors:
    """The factors of step t, of the first so many rows."""
    return tuple(factor[t, :rows] for factor in factors)


def times(rows: Tensor, weights: Tensor) -> Tensor:
    """``rows`` ``(B, K, M)`` times the transpose of ``weights`` ``(N, M)``, in one product for the whole batch."""
    return (rows.flatten(0, 1) @ weights.mT).unflatten(0, rows.shape[:2])


def scaled_sum(scales: Tensor, weights: Tensor) -> Tensor:
    """Matrices ``(B, N, M)`` whose row i is that of each of G weights, times its scale, added up.

    Args:
        scales: ``(B, G, N)``.
        weights: ``(N, G, M)``.
    """
    # N small products are faster than G passes over the matrices, if they find their operands contiguous.
    return torch.bmm(scales.permute(2, 0, 1).contiguous(), weights).transpose(0, 1)


def tanh_slope(a: Tensor) -> Tensor:
    """1 - tanh(a)², without the cancellation that turns a saturated unit into an exactly dead one."""
    decay = torch.exp(-2 * a.abs())
    return 4 * decay / (1 + decay).square()


def relu_slope(a: Tensor) -> Tensor:
    """1 where a unit is on, 0 where it is off; NaN where it has overflowed, which is not to look like off."""
    return (a > 0).to(a.dtype).masked_fill(~a.isfinite(), torch.nan)


def sigmoid_slope(a: Tensor) -> Tensor:
    """σ(a)(1 - σ(a)), without cancellation."""
    return torch.sigmoid(a) * torch.sigmoid(-a)
