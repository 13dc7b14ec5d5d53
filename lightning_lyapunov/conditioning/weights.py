"""Setting the weights that a module computes with, and putting them back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.weight_norm import WeightNorm

from lightning_lyapunov.engine.maps.weights import effective_weight

ROUNDING = 1e-3
"""Relative. A weight that is read back further than this from what was written was not written."""


@torch.no_grad()
def write_weight(module: nn.Module, name: str, value: Tensor) -> None:
    """Make a module compute with a weight, in place, through whatever computes it from the parameters it stores.

    Args:
        module: In eval mode.
        name: As torch names it, such as ``"weight_hh_l0"``.
        value: In any floating type.

    Raises:
        ValueError: If the parameter is frozen or of half precision, or if what computes the weight cannot give the
            value: an orthogonal parametrization that is to be scaled, a mask. The module may have changed by then.
    """
    stored = _stored(module, name, value)
    for parameter, part in stored:
        if not parameter.requires_grad:
            raise ValueError(f"layer: its {name} is frozen (requires_grad=False), so it is left as it is.")
        if parameter.dtype.itemsize < 4:
            raise ValueError(f"layer: its {name} is {parameter.dtype}; condition it in float32, then cast it.")
        parameter.copy_(part)
    now = effective_weight(module, name, torch.float64)
    wanted = value.to(torch.float64)
    if now is None or not torch.allclose(now, wanted, rtol=ROUNDING, atol=ROUNDING * float(wanted.abs().amax())):
        raise ValueError(
            f"layer: its {name} is computed from other parameters, by a mask or a parametrization that cannot give "
            "what is needed. Condition the layer first, then prune or parametrize it."
        )


def _stored(module: nn.Module, name: str, value: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The parameters that a weight is computed from, each with what it must be."""
    if is_parametrized(module, name):
        return _through_parametrizations(module, name, value)
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm) and hook.name == name:
            length = torch.norm_except_dim(value, 2, hook.dim)
            return [(getattr(module, f"{name}_g"), length), (getattr(module, f"{name}_v"), value)]
    own = module._parameters
    stored = own.get(name, own.get(f"{name}_orig"))  # the latter as pruning and spectral normalisation keep it
    if stored is None:
        raise ValueError(f"layer: its {name} is no parameter: another module writes it, so it cannot be set here.")
    return [(stored, value)]


def _through_parametrizations(module: nn.Module, name: str, value: Tensor) -> list[tuple[Tensor, Tensor]]:
    chain: Any = module.parametrizations[name]  # type: ignore[index]
    try:
        parts: Any = value.to(next(chain.parameters()).dtype)
        for one in reversed(list(chain)):
            parts = one.right_inverse(parts)
    except (AttributeError, NotImplementedError, ValueError) as error:
        raise ValueError(
            f"layer: its {name} is parametrized by {type(one).__name__}, which cannot be given a value ({error}). "
            "Condition the layer first, then parametrize it."
        ) from error
    if isinstance(parts, Tensor):
        return [(chain.original, parts)]
    return [(getattr(chain, f"original{i}"), part) for i, part in enumerate(parts)]


@contextmanager
def put_back_on_error(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Parameters and buffers of a module as they are now, which come back if anything is raised.

    Buffers too, as parametrizations may keep a part of what they are given in one.
    """
    found = {name: tensor.detach().clone() for name, tensor in _tensors(module)}
    try:
        yield found
    except BaseException:
        put_back(module, found)
        raise


@torch.no_grad()
def put_back(module: nn.Module, found: dict[str, Tensor]) -> None:
    """Give a module's parameters and buffers the values that were found, bit by bit."""
    for name, tensor in _tensors(module):
        if name in found:
            tensor.copy_(found[name])


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()
