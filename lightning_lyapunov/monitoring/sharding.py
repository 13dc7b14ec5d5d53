"""Layers whose parameters lie on several devices in pieces: a whole copy of one, made by all ranks together."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn


def why_not(strategy: object) -> str | None:
    """Why a Trainer's strategy keeps parameters out of reach, and what to do; None if it does not.

    FSDP2, under ``ModelParallelStrategy``, leaves each parameter a tensor that knows its other pieces. FSDP1 and the
    third stage of DeepSpeed flatten them into one another.
    """
    names = {kind.__name__ for kind in type(strategy).__mro__}
    if "FSDPStrategy" in names or getattr(strategy, "zero_stage_3", False):
        return (
            f"{type(strategy).__name__} keeps parameters in flat pieces that no layer can be measured from; use "
            "ModelParallelStrategy (FSDP2), whose pieces are put together for a measurement, or DDPStrategy."
        )
    return None


def whole(layer: nn.Module) -> nn.Module:
    """The layer itself; where its parameters are sharded, a copy that has them whole.

    To be called on all ranks at once: putting the pieces together is a collective.
    """
    if not any(map(_is_sharded, layer.parameters())):
        return layer
    return _copied(layer)


def _is_sharded(parameter: Tensor) -> bool:
    return hasattr(parameter, "full_tensor")


def _copied(module: nn.Module) -> nn.Module:
    """A shallow copy without what FSDP added: its class, its hooks and its pieces."""
    kinds = type(module).__mro__
    kind = next(k for k in kinds if not any(base.__name__ == "FSDPModule" for base in k.__mro__))
    copy: Any = object.__new__(kind)
    vars(copy).update(vars(module))
    parameters = {name: _gathered(parameter) for name, parameter in module._parameters.items()}
    hooks = OrderedDict((i, hook) for i, hook in module._forward_pre_hooks.items() if not _is_of_fsdp(hook))
    vars(copy).update(
        _parameters=parameters,
        _modules={name: None if part is None else _copied(part) for name, part in module._modules.items()},
        _forward_pre_hooks=hooks,
        _forward_hooks=OrderedDict(),
    )
    if isinstance(copy, nn.RNNBase):
        vars(copy)["_flat_weights"] = [parameters.get(name) for name in copy._flat_weights_names]
    return copy


def _gathered(parameter: Any) -> Any:
    if parameter is None or not _is_sharded(parameter):
        return parameter
    return nn.Parameter(parameter.full_tensor().detach(), parameter.requires_grad)


def _is_of_fsdp(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("torch.distributed")
