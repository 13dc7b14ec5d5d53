"""Long short-term memory, :class:`torch.nn.LSTM`, with and without projection."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lyapunov.engine.maps.forms import Factors
from lightning_lyapunov.engine.maps.gated import GatedMap, Weight, scaled_sum, sigmoid_slope, tanh_slope, times


class LSTMMap(GatedMap):
    r""":class:`torch.nn.LSTM` on the state (h, c), with the projection P of ``proj_size`` (identity without it).

    .. math::
        c' &= f \circ c + i \circ g, \qquad h' = P\,(o \circ \tanh c') \\
        dc' &= f \circ dc + s_i \circ W_i\,dh + s_f \circ W_f\,dh + s_g \circ W_g\,dh \\
        dh' &= P\,[s_o \circ W_o\,dh + q \circ dc'], \qquad q = o\,(1-\tanh^2 c') \\
        s_i &= g\,i(1-i), \qquad s_f = c\,f(1-f), \qquad s_g = i\,(1-g^2), \qquad s_o = \tanh(c')\,o(1-o)

    Transposed, with :math:`v = P^\top u_h` and :math:`w = u_c + q \circ v`, cotangents :math:`(u_h, u_c)` of
    :math:`(h', c')` give :math:`\sum_{g \ne o} W_g^\top (s_g \circ w) + W_o^\top (s_o \circ v)` of h and
    :math:`f \circ w` of c. Factors: the scales side by side, f, and q.
    """

    gates = 4
    parts = 2
    layer = nn.LSTM
    dense_limit = 4096

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

    @classmethod
    def _options_of(cls, module: Any, weight: Weight) -> dict[str, Any]:
        return {"weight_hr": weight("weight_hr")}

    @classmethod
    def sizes(cls, module: Any) -> tuple[int, ...]:
        return getattr(module, "proj_size", 0) or module.hidden_size, module.hidden_size

    def _options(self) -> dict[str, Any]:
        return {} if self.weight_hr is None else {"proj_size": self.output_size}

    def _own_options(self) -> dict[str, Any]:
        return {"weight_hr": self.weight_hr}

    def _project(self, h: Tensor) -> Tensor:
        return h if self.weight_hr is None else h @ self.weight_hr.mT

    def _split(self, state: Tensor) -> tuple[Tensor, Tensor]:
        return state[..., : self.output_size], state[..., self.output_size :]

    # ------------------------------------------------------------------ the step

    def step(self, state: Tensor, drive: Tensor) -> Tensor:
        h, c = self._split(state)
        a_i, a_f, a_g, a_o = (drive + self._recur(h)).chunk(4, -1)
        c = torch.sigmoid(a_f) * c + torch.sigmoid(a_i) * torch.tanh(a_g)
        return torch.cat([self._project(torch.sigmoid(a_o) * torch.tanh(c)), c], -1)

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
        memory = cs.unbind()
        for t, (plus, factor) in enumerate(zip(added.unbind(), kept.unbind(), strict=True)):
            torch.addcmul(plus, factor, memory[t], out=memory[t + 1])
        return torch.cat([hs, cs], -1), activations

    def follow(self, inputs: Tensor, state: Tensor, by_input: bool = False) -> tuple[Tensor, Factors]:
        states, activations = self._run(inputs, self.drive(inputs), state)
        return states, self._linearise(states[:-1], activations)

    def linearise(self, states: Tensor, drive: Tensor, by_input: bool = False) -> Factors:
        return self._linearise(states, drive + self._recur(self._split(states)[0]))

    def _linearise(self, states: Tensor, activations: Tensor) -> Factors:
        c = self._split(states)[1]
        a_i, a_f, a_g, a_o = activations.chunk(4, -1)
        i, f, g, o = torch.sigmoid(a_i), torch.sigmoid(a_f), torch.tanh(a_g), torch.sigmoid(a_o)
        next_c = f * c + i * g
        by_i, by_f = g * sigmoid_slope(a_i), c * sigmoid_slope(a_f)
        by_g, by_o = i * tanh_slope(a_g), torch.tanh(next_c) * sigmoid_slope(a_o)
        return torch.cat([by_i, by_f, by_g, by_o], -1), f, o * tanh_slope(next_c)

    # ------------------------------------------------------------------ its Jacobian, plain

    def _visible(self, rows: Tensor) -> Tensor:
        return rows[..., : self.output_size]

    def _to_state(self, factors: Factors, gates: Tensor, tangents: Tensor) -> Tensor:
        _, f, q = factors
        by_i, by_f, by_g, by_o = gates.chunk(4, -1)
        dc = torch.addcmul(by_i + by_f + by_g, tangents[..., self.output_size :], f.unsqueeze(-2))
        dh = torch.addcmul(by_o, dc, q.unsqueeze(-2))
        return torch.cat([self._project(dh), dc], -1)

    def _to_gates(self, factors: Factors, cotangents: Tensor) -> tuple[Tensor, Tensor]:
        _, f, q = factors
        v, w = self._past_output(q, cotangents)
        return torch.cat([w, w, w, v], -1), w * f.unsqueeze(-2)

    def _past_output(self, q: Tensor, cotangents: Tensor) -> tuple[Tensor, Tensor]:
        """Cotangents ``(B, K, H)`` of what the projection takes, and of c'."""
        v, by_c = self._split(cotangents)
        v = v if self.weight_hr is None else v @ self.weight_hr
        return v, torch.addcmul(by_c, v, q.unsqueeze(-2))

    def _join(self, by_gates: Tensor, past: Tensor | None) -> Tensor:
        return by_gates if past is None else torch.cat([by_gates, past], -1)

    # ------------------------------------------------------------------ condensed

    def condense(self, factors: Factors) -> Factors:
        by_gate, f, q = factors
        by_gate = by_gate.unflatten(-1, (4, self.hidden_size))
        return by_gate[..., :3, :], by_gate[..., 3, :], f, q

    # Three gates act through c and become one matrix; the fourth acts on h alone, and its weights need no copy.

    def push_condensed(self, factors: Factors, tangents: Tensor) -> Tensor:
        scales, by_o, f, q = factors
        dh, dc = self._split(tangents.mT)
        dc = torch.bmm(dh, scaled_sum(scales, self._weights_by_row).mT).addcmul_(dc, f.unsqueeze(-2))
        dh = times(dh, self._weight_o).mul_(by_o.unsqueeze(-2)).addcmul_(dc, q.unsqueeze(-2))
        return torch.cat([dh, dc], -1).mT

    def pull_condensed(self, factors: Factors, cotangents: Tensor) -> Tensor:
        scales, by_o, f, q = factors
        v, w = self._past_output(q, cotangents.mT)
        by_h = times(v * by_o.unsqueeze(-2), self._weight_o.mT)
        return torch.cat([by_h.baddbmm_(w, scaled_sum(scales, self._weights_by_row)), w * f.unsqueeze(-2)], -1).mT

    @property
    def _weight_o(self) -> Tensor:
        return self.weight_hh[3 * self.hidden_size :]

    @cached_property
    def _weights_by_row(self) -> Tensor:
        """``(H, 3, output_size)``: row i of the weights of i, f and g, side by side."""
        return self.weight_hh.unflatten(0, (4, -1))[:3].transpose(0, 1).contiguous()

    # ------------------------------------------------------------------ dense

    def jacobians(self, factors: Factors) -> Tensor:
        scales, by_o, f, q = self.condense(factors)
        by_c = scaled_sum(scales.flatten(0, 1), self._weights_by_row).unflatten(0, f.shape[:2])
        lower = torch.cat([by_c, f.diag_embed()], -1)
        upper = lower * q.unsqueeze(-1)
        upper[..., : self.output_size].addcmul_(by_o.unsqueeze(-1), self._weight_o)
        return torch.cat([upper if self.weight_hr is None else self.weight_hr @ upper, lower], -2)

    def log_volume(self, factors: Factors, k: int) -> Tensor:
        # Row operations take the dc' block out of dh': det J = prod(f) · det(P diag(s_o) W_o).
        by_gate, f, _ = factors
        by_o = by_gate.chunk(4, -1)[3]
        if self.weight_hr is None:
            h_block = by_o.abs().log().sum(-1) + self._log_volume_of_weights
        else:
            h_block = torch.linalg.slogdet((self.weight_hr * by_o.unsqueeze(-2)) @ self._weight_o).logabsdet
        return f.log().sum(-1) + h_block

    @cached_property
    def _log_volume_of_weights(self) -> Tensor:
        return torch.linalg.slogdet(self._weight_o).logabsdet
