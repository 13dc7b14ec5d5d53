"""Exponents by brute force: float64, Jacobians by autograd, Householder after every step, and nothing of ours."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from lightning_lyapunov.engine.frames import random_frames
from tests.systems import jacobian_by_autograd


def by_qr(jacobians: list[Tensor]) -> Tensor:
    """Exponents of Jacobians ``(B, D, D)``, the mean over rows, in the engine's initial frames."""
    rows, size = jacobians[0].shape[:2]
    frame = random_frames(range(rows), size, size, torch.device("cpu"))
    total = torch.zeros(size, dtype=torch.float64)
    for jacobian in jacobians:
        frame, r = torch.linalg.qr(jacobian @ frame)
        total += r.diagonal(dim1=-2, dim2=-1).abs().log().mean(0)
    return (total / len(jacobians)).sort(descending=True).values


def exponents_of(step: Callable[[Any, Tensor], Tensor], state: Tensor, inputs: Iterable[Any]) -> Tensor:
    """Those of ``step(x, (B, D)) -> (B, D)`` along inputs, from a state on."""
    jacobians = []
    for x in inputs:
        jacobians.append(jacobian_by_autograd(lambda s, x=x: step(x, s), state))  # type: ignore[misc]
        state = step(x, state).detach()
    return by_qr(jacobians)
