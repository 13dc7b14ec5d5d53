"""Kinds of cell that no scorer is fitted on: what one says of them is what it can say of any new architecture."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn.functional import gelu

from lightning_lyapunov.bank.cell import Cell, Initial, State, Weights, block, recur


class MinGRUCell(Cell):
    r"""minGRU: :math:`h' = (1 - z) \circ h + z \circ (U x + c)`, :math:`1 - z = \sigma(V x + b)`.

    No weight acts on the state, so the gate alone sets how long it lasts, by the input; ``gain`` scales the gate's
    weights instead. Source: Feng et al., arXiv:2410.01201 (2024), section 3.1.
    """

    gates = 2  # what is kept, 1 - z, and the candidate
    memory_gate = 0

    def step(self, weights: Weights, drive: Tensor, state: State) -> State:
        (h,) = state
        kept, candidate = drive.chunk(2, -1)
        return (torch.lerp(candidate, h, torch.sigmoid(kept)),)

    def initial(self, inputs: int, hidden: int, how: Initial, generator: Generator) -> dict[str, Tensor]:
        gate, candidate = torch.randn(2, hidden, inputs, generator=generator) / math.sqrt(inputs)
        return {
            "ih": torch.cat([gate * how.gain, candidate * how.input_gain]),
            "bias": self._initial_bias(hidden, how),
        }


class DiagonalCell(Cell):
    r"""A diagonal state-space layer (LRU): :math:`h' = \lambda \circ h + \sqrt{1 - |\lambda|^2}\,(B x + b)`, h complex.

    .. math:: \lambda = \exp(-e^\nu + i \theta), \qquad y = \mathrm{gelu}(C h + c)

    The state is linear and never grows; the read-out sees y. H/2 complex numbers are kept as H real ones, real parts
    first. ``gain`` scales the speed of decay, which is drawn from 0.01 to 1 nat per step.
    Source: Orvieto et al., ICML 2023, equations 5 and 7.
    """

    def prepared(self, weights: Weights) -> Weights:
        decay = weights["decay"].exp()
        size, scale = (-decay).exp(), (-torch.expm1(-2 * decay)).sqrt()
        scale = torch.cat([scale, scale], -1)
        return {
            **weights,
            "ih": scale.unsqueeze(-1) * weights["ih"],
            "bias": scale * weights["bias"],
            "real": (size * weights["angle"].cos()).unsqueeze(-2),
            "imaginary": (size * weights["angle"].sin()).unsqueeze(-2),
            "mix_bias": weights["mix_bias"].unsqueeze(-2),
        }

    def step(self, weights: Weights, drive: Tensor, state: State) -> State:
        a, b = state[0].chunk(2, -1)
        real, imaginary = weights["real"], weights["imaginary"]
        return (drive + torch.cat([a * real - b * imaginary, a * imaginary + b * real], -1),)

    def seen(self, weights: Weights, states: Tensor) -> Tensor:
        return gelu(recur(weights["mix_bias"], states, weights["mix"]))

    def initial(self, inputs: int, hidden: int, how: Initial, generator: Generator) -> dict[str, Tensor]:
        decay, angle = torch.rand(2, hidden // 2, generator=generator)
        return {
            "ih": torch.randn(hidden, inputs, generator=generator) * (how.input_gain / math.sqrt(inputs)),
            "bias": torch.zeros(hidden),
            "decay": math.log(how.gain) + math.log(0.01) * decay,
            "angle": math.pi * angle,
            "mix": block(hidden, how.init, 1.0, generator),
            "mix_bias": torch.zeros(hidden),
        }


class AntisymmetricCell(Cell):
    r""":math:`h' = h + \epsilon \tanh((W - W^T - \gamma) h + V x + b)`: a rotation, stable by design.

    Source: Chang, Chen, Haber, Chi, ICLR 2019, equation 11.
    """

    epsilon, gamma = 0.3, 0.01

    def prepared(self, weights: Weights) -> Weights:
        hh = weights["hh"]
        return {**weights, "hh": hh - hh.mT - self.gamma * torch.eye(hh.shape[-1], dtype=hh.dtype, device=hh.device)}

    def step(self, weights: Weights, drive: Tensor, state: State) -> State:
        (h,) = state
        return (h + self.epsilon * torch.tanh(recur(drive, h, weights["hh"])),)


class OscillatorCell(Cell):
    r"""coRNN: :math:`z' = z + \Delta(\tanh(W y + V x + b) - \gamma y - \epsilon z)`, :math:`y' = y + \Delta z'`.

    Coupled damped oscillators, driven; the coupling through velocities is left out.
    Source: Rusch, Mishra, ICLR 2021, equations 3 and 4.
    """

    parts = 2
    delta, gamma, epsilon = 0.25, 1.0, 0.5

    def step(self, weights: Weights, drive: Tensor, state: State) -> State:
        y, z = state
        force = torch.tanh(recur(drive, y, weights["hh"])) - self.gamma * y - self.epsilon * z
        z = z + self.delta * force
        return y + self.delta * z, z


class CfCCell(Cell):
    r"""Closed-form continuous time: :math:`h' = \sigma(-f) \circ g + (1 - \sigma(-f)) \circ k`, a step being one unit.

    .. math:: a = \tanh(W h + V x + b),\ f = W_f a + b_f,\ g = \tanh(W_g a + b_g),\ k = \tanh(W_k a + b_k)

    Source: Hasani et al., Nature Machine Intelligence 4 (2022) 992-1003, equation 10, with a shared layer before the
    three heads as recommended there.
    """

    def prepared(self, weights: Weights) -> Weights:
        return {**weights, "heads_bias": weights["heads_bias"].unsqueeze(-2)}

    def step(self, weights: Weights, drive: Tensor, state: State) -> State:
        (h,) = state
        shared = torch.tanh(recur(drive, h, weights["hh"]))
        f, g, k = recur(weights["heads_bias"], shared, weights["heads"]).chunk(3, -1)
        return (torch.lerp(torch.tanh(g), torch.tanh(k), torch.sigmoid(f)),)  # 1 - σ(-f) = σ(f)

    def initial(self, inputs: int, hidden: int, how: Initial, generator: Generator) -> dict[str, Tensor]:
        shared = super().initial(inputs, hidden, how, generator)
        heads = torch.cat([block(hidden, how.init, 1.0, generator) for _ in range(3)])
        return {**shared, "heads": heads, "heads_bias": torch.zeros(3 * hidden)}
