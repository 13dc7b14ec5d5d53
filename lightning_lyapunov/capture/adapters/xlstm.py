r"""The sLSTM cell of xlstm, as it is in version 2.0.6.

With the preactivations :math:`(i, f, z, o) = W x + R y + b`, R block-diagonal in the heads,

.. math::
    c' = \sigma(f) c + e^i \tanh z, \quad n' = \sigma(f) n + e^i, \quad y' = \sigma(o) c' / n'.

The library keeps :math:`c e^{-m}` and :math:`n e^{-m}` with a stabiliser m, which is a change of units: it has no part
in the dynamics, and none in the state here, ``(y, c, n)``.

Source: Beck et al., xLSTM, NeurIPS 2024, arXiv 2405.04517, equations 8–17.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lyapunov.capture.calls import Adapter, Call, Parts
from lightning_lyapunov.capture.stepping import class_name
from lightning_lyapunov.engine.maps.cell import State, as_parts
from lightning_lyapunov.engine.precision import widest_dtype


class ScalarLSTM(Adapter):
    """The cell, which runs along a sequence ``(B, T, 4H)`` of what the layer around it makes of its inputs."""

    def read(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Call:
        """As in the base.

        Raises:
            ValueError: If the cell computes another function than an sLSTM or LSTM, or clips.
        """
        config: Any = module.config
        if config.function not in ("slstm", "lstm") or config.forward_clipval is not None:
            raise ValueError(
                f"{class_name(module)} with function={config.function!r}, forward_clipval="
                f"{config.forward_clipval} has another step than an sLSTM's"
            )
        inputs, state = _arguments(*args, **kwargs)
        steps = inputs.transpose(0, 1) if config.input_shape == "BSGNH" else inputs
        before = None if state is None else _in_units(state)
        return Call(steps, torch.full((steps.shape[1],), len(steps)), before, _in_units(output[1]))

    def step(self, module: nn.Module, x: Tensor, state: State) -> State:
        """As in the base."""
        cell: Any = module
        y, *memory = as_parts(state)
        recurrent = cell._recurrent_kernel_int2ext(cell._recurrent_kernel_)  # (heads, from, gates, to)
        bias = cell._bias_int2ext(cell._bias_)  # (heads, gates, to)
        heads = y.reshape(len(y), len(recurrent), -1)
        gates = torch.einsum("bnd,ndgh->bgnh", heads, recurrent) + bias.transpose(0, 1)
        i, f, z, o = (x.reshape(len(x), 4, -1) + gates.flatten(2)).unbind(1)
        if len(memory) == 1:
            c = f.sigmoid() * memory[0] + i.sigmoid() * z.tanh()
            return o.sigmoid() * c.tanh(), c
        c = f.sigmoid() * memory[0] + i.exp() * z.tanh()
        n = f.sigmoid() * memory[1] + i.exp()
        return o.sigmoid() * c / n, c, n


def _arguments(input: Tensor, state: Tensor | None = None, lengths: Any = None) -> tuple[Tensor, Tensor | None]:
    return input, state


def _in_units(state: Tensor) -> Parts:
    """The parts ``(B, H)`` of the library's state ``(4, B, H)``, without its stabiliser; or of an LSTM's (2, B, H)."""
    parts = state.unbind()
    if len(parts) == 2:
        return parts
    y, c, n, m = (part.to(widest_dtype(part.device)) for part in parts)
    return y, c * m.exp(), n * m.exp()


ADAPTERS: dict[str, Adapter] = {"xlstm.blocks.slstm.cell.sLSTMCellBase": ScalarLSTM()}
