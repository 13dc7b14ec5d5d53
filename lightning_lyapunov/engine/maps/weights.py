"""The weights that a module computes with, which need not be the parameters it stores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


def effective_weight(module: nn.Module, name: str, dtype: torch.dtype, detach: bool = True) -> Tensor | None:
    """The weight a module computes with, cast; None where it has none.

    Parametrisations compute it on access. The older ways, torch's weight_norm, spectral_norm and pruning, do so in a
    hook before each forward pass, and what they left behind is old after an update: their formula is evaluated.

    Args:
        module: In eval mode: in train mode, reading a weight under spectral normalisation changes it.
        name: As torch names it, such as ``"weight_hh_l0"``.
        dtype: Floating type to cast it to.
        detach: Whether to cut it off from the parameters, so that no gradient reaches them.
    """
    weight = getattr(module, name, None)
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm) and hook.name == name:
            weight = hook.compute_weight(module)
        elif isinstance(hook, SpectralNorm) and hook.name == name:
            weight = hook.compute_weight(module, do_power_iteration=False)
        elif isinstance(hook, BasePruningMethod) and hook._tensor_name == name:
            weight = hook.apply_mask(module)
    if weight is None:
        return None
    return weight.detach().to(dtype) if detach else weight.to(dtype)


class Holder(nn.Module):
    """Calls a function while the tensors of a module are swapped for others, which takes longer than a small step."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, function: Callable[[], Any]) -> Any:
        """What the function gives."""
        return function()


def cast_tensors(module: nn.Module, dtype: torch.dtype, detach: bool = True) -> dict[str, Tensor]:
    """Parameters and buffers of a module by name, cast: copies, so that a cell that writes to them writes to ours.

    Args:
        module: Whose.
        dtype: Floating type; indices and flags keep theirs.
        detach: Whether to cut the copies off from the parameters, so that no gradient reaches them.
    """
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: cast(tensor.detach() if detach else tensor, dtype).clone() for name, tensor in named}


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Change the floating type; leave indices and flags alone."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def weights_written_by_others(module: nn.Module) -> dict[str, Tensor]:
    """The weights of a recurrent layer or cell that are plain tensors: another module computes and sets them.

    So does a module that drops weights out: it sets ``rnn.weight_hh_l0`` before each call, and what it set last is what
    is there. Those that the module itself computes, as torch's weight_norm does, are not among them.
    """
    hooks = module._forward_pre_hooks.values()
    own = {hook.name for hook in hooks if isinstance(hook, WeightNorm | SpectralNorm)}
    own |= {hook._tensor_name for hook in hooks if isinstance(hook, BasePruningMethod)}
    held = {**vars(module), **module._parameters}
    return {
        name: value
        for name, value in held.items()
        if name.startswith(("weight_", "bias_")) and isinstance(value, Tensor) and not isinstance(value, nn.Parameter)
        if name not in own and not hasattr(value, "full_tensor")
    }
