r"""The same exponents written plainly, with a gradient: the reference that the engine is compared with.

One QR after every step, in the type of the map, with nothing saved, blocked or adapted: a textbook's loop over the step
of each map, whose derivative comes from automatic differentiation. Gradients flow to whatever the map was made of.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import jvp, vmap

from lightning_lyapunov.engine.maps.base import Recurrence


def plain_growth(recurrence: Recurrence, inputs: Tensor, state: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
    r"""Growth :math:`\ln|R_{ii}|` ``(T, B, K)`` of a frame at every step, and the frame after the last.

    Args:
        recurrence: The map.
        inputs: ``(T, B, ...)`` what drives it.
        state: ``(B, D)`` before the first step.
        frame: ``(B, D, K)`` orthonormal columns before it.

    Source: Benettin et al., Meccanica 15 (1980) 9-30.
    """
    drive, logs = recurrence.drive(inputs), []
    for t in range(len(drive)):
        step = _at(recurrence, drive[t])
        pushed = _pushed(step, state, frame)
        frame, triangle = torch.linalg.qr(pushed)
        logs.append(triangle.diagonal(dim1=-2, dim2=-1).abs().log())
        state = step(state)
    return torch.stack(logs), frame


def plain_product(recurrence: Recurrence, inputs: Tensor, state: Tensor) -> Tensor:
    """The dense product of all Jacobians ``(B, D, D)`` along the inputs, the last leftmost."""
    drive = recurrence.drive(inputs)
    size = state.shape[-1]
    product = torch.eye(size, dtype=state.dtype, device=state.device).expand(len(state), size, size)
    for t in range(len(drive)):
        step = _at(recurrence, drive[t])
        product = _pushed(step, state, product)
        state = step(state)
    return product


def _at(recurrence: Recurrence, drive: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda state: recurrence.step(state, drive)


def _pushed(step: Callable[[Tensor], Tensor], state: Tensor, tangents: Tensor) -> Tensor:
    """The step's Jacobians times tangents ``(B, D, K)``."""

    def push(tangent: Tensor) -> Tensor:
        moved: Tensor = jvp(step, (state,), (tangent,))[1]
        return moved

    return vmap(push, in_dims=-1, out_dims=-1)(tangents)
