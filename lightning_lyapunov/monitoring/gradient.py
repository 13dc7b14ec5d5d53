"""The norm of the gradient that an update was made with, taken without waiting for the device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lyapunov.monitoring.learning import trained, trains


class GradientNorm:
    """Keeps the norms of the last gradients, one for each optimiser."""

    def __init__(self) -> None:
        self._last: dict[int, tuple[int, list[Tensor]]] = {}  # by the optimiser's id: updates before it, and norms

    def note(self, optimizer: Any, step: int) -> None:
        """Take the norm of the gradient that an optimiser is about to make an update with.

        Args:
            optimizer: Whose.
            step: Updates made before it, by all optimisers.
        """
        self._last[id(optimizer)] = step, norms_of(optimizer)

    def of(self, optimizers: Sequence[Any], layers: Iterable[nn.Module], step: int) -> float | None:
        """The norm of the last gradient by all parameters that are trained together with some layers.

        Args:
            optimizers: All there are. Those that hold none of the layers' parameters do not count, as the
                discriminator's, where the generator is measured; if several do, each made one of the last updates.
            layers: Those that are measured.
            step: Updates made so far.

        Returns:
            It; None if it was not taken, there was none, or its parts lie on other devices.
        """
        own, parts = trained(layers), list[Tensor]()
        for optimizer in optimizers:
            if trains(optimizer, own):
                at, norms = self._last.get(id(optimizer), (-1, []))
                if not norms or step - at > len(optimizers):
                    return None
                parts += norms
        return float(torch.stack([norm.cpu() for norm in parts]).norm()) if parts else None


@torch.no_grad()
def norms_of(optimizer: Any) -> list[Tensor]:
    """The norms () in float32 of all gradients of an optimiser's parameters together, one for each device.

    Empty if there are no gradients, or if they are sparse, or pieces that other devices have the rest of.
    """
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if any(one.is_sparse or hasattr(one, "full_tensor") for one in gradients):
        return []
    norms: dict[torch.device, list[Tensor]] = {}
    for one in gradients:
        real = torch.view_as_real(one.resolve_conj()) if one.is_complex() else one
        wide = torch.promote_types(real.dtype, torch.float32)
        norms.setdefault(one.device, []).append(torch.linalg.vector_norm(real, dtype=wide).float())
    return [torch.stack(parts).norm() for parts in norms.values()]
