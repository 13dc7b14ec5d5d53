"""The plain recurrent network, :class:`torch.nn.RNN`."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lyapunov.engine.maps.forms import Factors
from lightning_lyapunov.engine.maps.gated import GatedMap, Weight, relu_slope, tanh_slope


class ElmanMap(GatedMap):
    r""":class:`torch.nn.RNN`: :math:`h' = \phi(a)`, :math:`a = W_i x + b_i + W_h h + b_h`, with tanh or relu.

    .. math:: dh' = \phi'(a) \circ (W_h\, dh + W_i\, dx)

    Transposed, a cotangent u of :math:`h'` gives :math:`W_h^\top (\phi'(a) \circ u)` of h and
    :math:`W_i^\top (\phi'(a) \circ u)` of x. Factors: :math:`\phi'(a)`.
    """

    gates = 1
    layer = nn.RNN
    dense_limit = 4096

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

    @classmethod
    def _options_of(cls, module: Any, weight: Weight) -> dict[str, Any]:
        return {"nonlinearity": module.nonlinearity}

    def _options(self) -> dict[str, Any]:
        return {"nonlinearity": self.nonlinearity}

    _own_options = _options

    def step(self, state: Tensor, drive: Tensor) -> Tensor:
        a = drive + self._recur(state)
        return torch.tanh(a) if self.nonlinearity == "tanh" else torch.relu(a)

    def linearise(self, states: Tensor, drive: Tensor, by_input: bool = False) -> Factors:
        a = drive + self._recur(states)
        return (tanh_slope(a) if self.nonlinearity == "tanh" else relu_slope(a),)

    def _to_state(self, factors: Factors, gates: Tensor, tangents: Tensor) -> Tensor:
        return gates

    def _to_gates(self, factors: Factors, cotangents: Tensor) -> tuple[Tensor, None]:
        return cotangents, None

    def jacobians(self, factors: Factors) -> Tensor:
        (slope,) = factors
        return slope.unsqueeze(-1) * self.weight_hh

    def log_volume(self, factors: Factors, k: int) -> Tensor:
        (slope,) = factors
        return slope.log().sum(-1) + self._log_volume_of_weights

    @cached_property
    def _log_volume_of_weights(self) -> Tensor:
        return torch.linalg.slogdet(self.weight_hh).logabsdet
