"""The recurrent layers of a model, found by what they are, or by name."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import nn

from lightning_lyapunov.engine.maps.families import FAMILIES
from lightning_lyapunov.engine.system import check_supported


def find_layers(model: nn.Module, names: str | Sequence[str] | None = None) -> tuple[dict[str, nn.Module], list[str]]:
    """The recurrent layers of a model, by the names they are shown under.

    Args:
        model: Any module; wrappers of ``torch.compile`` inside it are seen through.
        names: Which submodules to take: torch's recurrent modules and cells, or a cell of your own whose forward is
            ``(x, state) -> state``. All of torch's that can be measured if None.

    Returns:
        The layers, and what looked recurrent but cannot be measured, a line each.

    Raises:
        ValueError: If there is none, or a name does not exist; the message lists what there is.
    """
    # A module shared by several parents is found under each of its names when asked for, and measured once when not.
    named = model.named_modules(remove_duplicate=names is None)
    modules = {_shown(name): module for name, module in named if not _is_wrapper(module)}
    if names is not None:
        wanted = [names] if isinstance(names, str) else list(names)
        if not wanted:
            raise ValueError(f"module must name at least one layer; got none. The model has {_listed(modules)}.")
        for name in wanted:
            if name not in modules:
                raise ValueError(f"module: the model has no {name!r}; it has {_listed(modules)}.")
        return {name: modules[name] for name in wanted}, []
    layers: dict[str, nn.Module] = {}
    unsupported: list[str] = []
    for name, module in modules.items():
        if isinstance(module, nn.RNNBase | nn.RNNCellBase) and not isinstance(module, torch.jit.ScriptModule):
            try:
                check_supported(module)
                layers[name] = module
            except ValueError as error:
                unsupported.append(f"{name}: {error}")
        elif _looks_recurrent(module):
            shown = name or "the model"
            unsupported.append(f"{shown}: {class_name(module)} is not one of torch's own recurrent layers")
    if not layers:
        found = f" Found but not measurable: {'; '.join(unsupported)}." if unsupported else ""
        raise ValueError(
            f"module: the model has no nn.RNN, nn.GRU, nn.LSTM or torch cell; it has {_listed(modules)}.{found} A "
            "cell of your own, (x, state) -> state, is measured when it is named: module='name'."
        )
    return layers, unsupported


def architecture_of(layers: Sequence[nn.Module]) -> str:
    """As scorers know it if all layers are of one kind that they know; else the names of the classes."""
    for family in FAMILIES:
        if all(isinstance(layer, family.layer | family.cell) for layer in layers):
            return family.name
    return "+".join(sorted({type(layer).__name__ for layer in layers}))


def _shown(name: str) -> str:
    """A module's name as the user wrote it, without the segments that wrappers add."""
    return re.sub(r"(^|\.)(_orig_mod|_fsdp_wrapped_module)(?=\.|$)", "", name).lstrip(".")


def _is_wrapper(module: nn.Module) -> bool:
    return isinstance(getattr(module, "_orig_mod", None), nn.Module)


def class_name(module: nn.Module) -> str:
    """The name of a module's class."""
    return str(getattr(module, "original_name", type(module).__name__))  # a scripted module hides its own


def _looks_recurrent(module: nn.Module) -> bool:
    """Whether a module is named like a recurrent layer and holds none that would be told instead."""
    recurrent = (p for p in module.modules() if re.search(r"RNN|GRU|LSTM", class_name(p)))
    return next(recurrent, None) is module and next(recurrent, None) is None


def _listed(modules: dict[str, nn.Module], limit: int = 20) -> str:
    names = [f"{name} ({class_name(module)})" for name, module in modules.items() if name]
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "no submodules") + more
