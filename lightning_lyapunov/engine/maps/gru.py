"""The gated recurrent unit, :class:`torch.nn.GRU`."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor, nn

from lightning_lyapunov.engine.maps.forms import Factors
from lightning_lyapunov.engine.maps.gated import GatedMap, scaled_sum, sigmoid_slope, tanh_slope


class GRUMap(GatedMap):
    r""":class:`torch.nn.GRU`, its reset gate applied after the product with W_n.

    .. math::
        h' &= (1 - z) \circ n + z \circ h, \qquad n = \tanh(a_n + r \circ u), \qquad u = W_n h + b_{hn} \\
        dh' &= z \circ dh + s_r \circ W_r\,dh + s_z \circ W_z\,dh + s_n \circ W_n\,dh \\
        s_r &= e\,u\,r(1-r), \qquad s_z = (h - n)\,z(1-z), \qquad s_n = e\,r, \qquad e = (1 - z)(1 - n^2)

    By the input, the gate n has the scale e, not :math:`e\,r`. Transposed, a cotangent v of :math:`h'` gives
    :math:`z \circ v + \sum_g W_g^\top (s_g \circ v)` of h. Factors: the scales side by side, z, and for the derivative
    by the input the scales of its gates.
    """

    gates = 3
    layer = nn.GRU
    crossover = 8
    dense_limit = 16384

    def _activations(self, states: Tensor, drive: Tensor) -> tuple[Tensor, ...]:
        """Pre-activations of r and z, then u, then the pre-activation of n."""
        drive_r, drive_z, drive_n = drive.chunk(3, -1)
        recur_r, recur_z, u = self._recur(states).chunk(3, -1)
        a_r, a_z = drive_r + recur_r, drive_z + recur_z
        return a_r, a_z, u, drive_n + torch.sigmoid(a_r) * u

    def step(self, state: Tensor, drive: Tensor) -> Tensor:
        _, a_z, _, a_n = self._activations(state, drive)
        return torch.lerp(torch.tanh(a_n), state, torch.sigmoid(a_z))

    def linearise(self, states: Tensor, drive: Tensor, by_input: bool = False) -> Factors:
        a_r, a_z, u, a_n = self._activations(states, drive)
        e = torch.sigmoid(-a_z) * tanh_slope(a_n)
        by_r = e * u * sigmoid_slope(a_r)
        by_z = (states - torch.tanh(a_n)) * sigmoid_slope(a_z)
        factors = torch.cat([by_r, by_z, e * torch.sigmoid(a_r)], -1), torch.sigmoid(a_z)
        return (*factors, torch.cat([by_r, by_z, e], -1)) if by_input else factors

    def _by_drive(self, factors: Factors) -> Tensor:
        return factors[2]

    def _to_state(self, factors: Factors, gates: Tensor, tangents: Tensor) -> Tensor:
        z = factors[1].unsqueeze(-2)
        return torch.addcmul(gates.unflatten(-1, (3, self.hidden_size)).sum(-2), tangents, z)

    def _to_gates(self, factors: Factors, cotangents: Tensor) -> tuple[Tensor, Tensor]:
        return cotangents.repeat(1, 1, 3), cotangents * factors[1].unsqueeze(-2)

    def condense(self, factors: Factors) -> Factors:
        return factors[0].unflatten(-1, (3, self.hidden_size)), factors[1]

    def push_condensed(self, factors: Factors, tangents: Tensor) -> Tensor:
        return (tangents.mT @ self._condensed(*factors).mT).mT

    def pull_condensed(self, factors: Factors, cotangents: Tensor) -> Tensor:
        return (cotangents.mT @ self._condensed(*factors)).mT

    def _condensed(self, scales: Tensor, z: Tensor) -> Tensor:
        """Jacobians ``(B, H, H)`` from scales ``(B, 3, H)`` and z ``(B, H)``."""
        jacobian = scaled_sum(scales, self._weights_by_row)
        jacobian.diagonal(dim1=-2, dim2=-1).add_(z)
        return jacobian

    def jacobians(self, factors: Factors) -> Tensor:
        scales, z = self.condense(factors)
        return self._condensed(scales.flatten(0, 1), z.flatten(0, 1)).contiguous().unflatten(0, z.shape[:2])

    @cached_property
    def _weights_by_row(self) -> Tensor:
        """``(H, gates, H)``: row i of each gate's weights, side by side."""
        return self.weight_hh.unflatten(0, (3, -1)).transpose(0, 1).contiguous()
