"""Whether a layer still sees its input: exponents near zero alone do not say so, as a saturated one has them too."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lightning_lyapunov.engine.maps.cell import State, as_parts
from lightning_lyapunov.engine.sequences import Sequences

PROBES = 8
"""Random cotangents that the norm of a Jacobian is estimated by, without bias in its square."""


def reach(layer: Any, inputs: Sequences, state: State | None = None, seed: int = 0) -> float:
    r"""What the last output of a layer feels of the first input beside what it feels of the last one, nats.

    .. math:: \tfrac12 \ln(\|M_1\|_F^2 / \|M_T\|_F^2), \quad M_t = \partial h_T / \partial x_t, \quad
              \|M\|_F^2 = E \|M^\top u\|^2, \ u \sim N(0, 1)

    A ratio, so that it does not depend on the scale of the inputs: near 0 all inputs count alike.

    Args:
        layer: A recurrent module or cell, in eval mode, in its own precision.
        inputs: ``(T, B, ...)``, the longest first.
        state: Before the first step, as the layer takes it.
        seed: Of the probes.

    Returns:
        The mean over sequences; -inf where nothing of the first input is left in any of them, inf where what it does
        outgrows the layer's type.
    """
    dtype = next((p.dtype for p in layer.parameters()), torch.get_default_dtype())
    values = inputs.values.detach().to(dtype).clone().requires_grad_()
    rows = torch.arange(values.shape[1], device=values.device)
    ends = torch.tensor(inputs.lengths, device=values.device) - 1
    generator = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        last = _outputs(layer, values, inputs.lengths, _cast(state, dtype))[ends, rows]
    squares = torch.zeros(2, len(rows), dtype=torch.float64, device=values.device)
    for _ in range(PROBES):
        probe = torch.randn(last.shape, generator=generator, device="cpu").to(last)
        by_input = _pulled(last, values, probe).double().flatten(2)
        squares += torch.stack([by_input[0], by_input[ends, rows]]).square().sum(-1)
    logs = 0.5 * (squares[0] / squares[1]).log()
    if logs.isfinite().any():
        return float(logs[logs.isfinite()].mean())
    return -math.inf if (squares[0] == 0).all() else math.inf


def _pulled(last: Tensor, values: Tensor, probe: Tensor) -> Tensor:
    """What a probe of the last outputs feels of the inputs; nothing where they do not enter."""
    return torch.autograd.grad(last, values, probe, retain_graph=True, allow_unused=True, materialize_grads=True)[0]


def _cast(state: State | None, dtype: torch.dtype) -> State | None:
    if state is None or isinstance(state, Tensor):
        return state if state is None else state.to(dtype)
    return tuple(part.to(dtype) for part in state)


def _outputs(layer: Any, values: Tensor, lengths: list[int], state: State | None) -> Tensor:
    """What is seen of the state after each step, ``(T, B, H)``; sequences the longest first."""
    if isinstance(layer, nn.RNNBase):  # packed, as what runs backwards is not to begin in the padding
        outputs: Tensor = pad_packed_sequence(layer(pack_padded_sequence(values, lengths), state)[0])[0]
        return outputs
    outputs_of = []
    for x in values:
        state = layer(x, state)
        outputs_of.append(as_parts(state)[0].flatten(1))
    return torch.stack(outputs_of)
