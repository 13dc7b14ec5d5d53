"""The recurrent layers of a model, found by what they are, or by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import nn

from lightning_lyapunov.capture.adapters import adapter_of
from lightning_lyapunov.capture.calls import Adapter
from lightning_lyapunov.capture.conventions import Step, as_adapter
from lightning_lyapunov.capture.stepping import class_name as class_name
from lightning_lyapunov.engine.maps.families import FAMILIES, Family, family_of

Names: TypeAlias = "str | Sequence[str] | Mapping[str, Adapter | Step | None]"
"""Which submodules to take; with an adapter, or a step, for each in a mapping."""

RECURRENT = re.compile(
    r"RNN|GRU|LSTM|Recurrent|CfC|LTC(?![a-z])|Leaky(?!_?ReLU)|Lapicque|Synaptic|Mamba|S4|S5|S6|SSM|StateSpace|RWKV|RetNet"
    r"|Retention|LMU|LRU|Hyena|DeltaNet|Griffin|Hawk|QRNN|SRU|IndRNN|Reservoir|EchoState|NeuralCDE|ODECell|RecCell"
)
"""What recurrent modules are called."""
MODES = ("LSTM", "GRU", "RNN_TANH", "RNN_RELU")
"""Of torch's recurrent layers."""


@dataclass(frozen=True, eq=False)
class Found:
    """A module to measure."""

    module: nn.Module
    adapter: Adapter | None = None
    """How it is read and stepped; None for torch's layers and cells, and for those whose calls tell."""
    is_compiled: bool = False
    """Whether it runs inside a module that ``torch.compile`` compiles."""


def find(model: nn.Module, names: Names | None = None) -> tuple[dict[str, Found], list[str]]:
    """The recurrent layers of a model, by the names they are shown under.

    Without names these are torch's recurrent layers and cells, their subclasses, and modules of other libraries that
    are :func:`~lightning_lyapunov.capture.adapters.register`-ed; what is inside a module with a step of its own belongs
    to that. A subclass that replaces the forward pass of a torch layer is found as a candidate: whether it takes
    torch's steps shows when it has run.

    Args:
        model: Any module; wrappers of ``torch.compile`` inside it are seen through.
        names: Which submodules to take, whatever they are; by a mapping with an adapter or a function
            ``step(module, x, state) -> state`` for each, or None. All that are found if None.

    Returns:
        The layers, and what looked recurrent but cannot be measured, a line each.

    Raises:
        ValueError: If there is none, or a name does not exist; the message lists what there is.
    """
    # A module shared by several parents is found under each of its names when asked for, and measured once when not.
    named = model.named_modules(remove_duplicate=names is None)
    modules = {_shown(name): module for name, module in named if not _is_wrapper(module)}
    compiled = {part for module in model.modules() if _is_compiled(module) for part in module.modules()}
    if any(_has_compiled_functions(module) for module in model.modules()):
        compiled = set(model.modules())  # nobody can tell what these call
    if names is not None:
        chosen = _named(modules, names)
        return {name: replace(one, is_compiled=one.module in compiled) for name, one in chosen.items()}, []
    found: dict[str, Found] = {}
    unsupported: list[str] = []
    inside: set[nn.Module] = set()
    for name, module in modules.items():
        if module in inside:
            continue
        shown = name or "the model"
        adapter = adapter_of(module)
        if isinstance(module, torch.jit.ScriptModule):
            if _looks_recurrent(module):
                unsupported.append(f"{shown}: {_about_script(module, name)}")
        elif adapter is not None or _is_own_cell(module):
            found[name] = Found(module, adapter, module in compiled)
            inside.update(module.modules())
        elif isinstance(module, nn.RNNBase | nn.RNNCellBase):
            if family_of(module) is not None or getattr(module, "mode", None) in MODES:
                found[name] = Found(module, None, module in compiled)
                # Torch's layers and cells inside it may well be what it runs, if it takes other steps than torch's.
                own = [part for part in module.modules() if part is not module and _is_own(part)]
                inside.update(inner for part in own for inner in part.modules())
            else:
                unsupported.append(f"{shown}: {class_name(module)} is of none of torch's kinds, {', '.join(MODES)}")
        elif _looks_recurrent(module):
            unsupported.append(
                f"{shown}: {class_name(module)} is none of the recurrent layers that are known; "
                f"a cell is measured when it is named, module={name!r}"
            )
    if not found:
        told = f" Found but not measurable: {'; '.join(unsupported)}." if unsupported else ""
        raise ValueError(
            f"module: the model has no nn.RNN, nn.GRU, nn.LSTM or torch cell, and no layer of a library that is known."
            f"{told} A cell of your own is measured when it is named, module='name'; anything else recurrent by its "
            "step, module={'name': step} with step(module, x, state) -> state, or an adapter. For a network that is "
            f"not recurrent there is DepthSpectrumCallback, across its depth. The model has {_listed(modules)}."
        )
    return found, unsupported


def architecture_of(layers: Sequence[nn.Module]) -> str:
    """As scorers know it if all layers are of one kind that they know; else the names of the classes.

    A subclass of a torch layer is of its kind, as it is measured with torch's step; one of a cell has its own step. A
    plain network with relu is a kind of its own, ``"rnn_relu"``.
    """
    kinds = {_kind_of(layer) for layer in layers}
    kind = kinds.pop() if len(kinds) == 1 else None
    return kind or "+".join(sorted({class_name(layer) for layer in layers}))


def _kind_of(layer: nn.Module) -> str | None:
    name = next((family.name for family in FAMILIES if _is_of(family, layer)), None)
    return "rnn_relu" if name == "rnn" and getattr(layer, "nonlinearity", "") == "relu" else name


def _is_of(family: Family, layer: nn.Module) -> bool:
    if isinstance(layer, nn.RNNBase):
        return str(getattr(layer, "mode", "")).lower().startswith(family.name)
    return isinstance(layer, family.cell) and not _is_own_cell(layer)


# ---------------------------------------------------------------------- by name


def _named(modules: Mapping[str, nn.Module], names: Names) -> dict[str, Found]:
    wanted = names if isinstance(names, Mapping) else dict.fromkeys([names] if isinstance(names, str) else names)
    if not wanted:
        raise ValueError(f"module must name at least one layer; got none. The model has {_listed(modules)}.")
    found: dict[str, Found] = {}
    for name, thing in wanted.items():
        if name not in modules:
            raise ValueError(f"module: the model has no {name!r}; it has {_listed(modules)}.")
        module = modules[name]
        adapter = adapter_of(module) if thing is None else as_adapter(thing)
        if adapter is None and _is_scripted_layer(module):
            raise ValueError(f"module: {name!r}: {_about_script(module, name)}.")
        outer = next((of for of in _parents(name) if isinstance(modules.get(of), torch.jit.ScriptModule)), None)
        if outer is not None:
            raise ValueError(
                f"module: {name!r} is inside {outer or 'the model'}, which is scripted or traced, so that its calls "
                "are not seen. Train the plain model, and script it afterwards: torch.jit.script(model)."
            )
        found[name] = Found(module, adapter)
    return found


def _parents(name: str) -> list[str]:
    """The names of the modules that hold one, the model's (empty) first."""
    parts = name.split(".") if name else []
    return [".".join(parts[:count]) for count in range(len(parts))]


def _shown(name: str) -> str:
    """A module's name as the user wrote it, without the segments that wrappers add."""
    return re.sub(r"(^|\.)(_orig_mod|_fsdp_wrapped_module)(?=\.|$)", "", name).lstrip(".")


def _is_compiled(module: nn.Module) -> bool:
    whole = getattr(module, "_compiler_ctx", None)  # that Lightning was given a compiled module
    return _is_wrapper(module) or getattr(module, "_compiled_call_impl", None) is not None or whole is not None


def _has_compiled_functions(module: nn.Module) -> bool:
    own = [*vars(module).values(), *(value for kind in type(module).__mro__ for value in vars(kind).values())]
    return any(hasattr(value, "_torchdynamo_orig_callable") for value in own if callable(value))


def _is_wrapper(module: nn.Module) -> bool:
    return isinstance(getattr(module, "_orig_mod", None), nn.Module)


# ---------------------------------------------------------------------- what a module is


def _replaces_forward(module: nn.Module) -> bool:
    """Whether a recurrent module of torch's has another forward pass than torch's own."""
    family = family_of(module)
    if family is None:
        return True
    own = family.layer if isinstance(module, family.layer) else family.cell
    return type(module).forward is not own.forward or "forward" in vars(module)


def _is_own_cell(module: nn.Module) -> bool:
    return isinstance(module, nn.RNNCellBase) and _replaces_forward(module)


def _is_own(module: nn.Module) -> bool:
    """Whether a module is recurrent by a step that is not torch's."""
    recurrent = isinstance(module, nn.RNNBase | nn.RNNCellBase)
    return adapter_of(module) is not None or (recurrent and _replaces_forward(module))


def _is_scripted_layer(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule) and class_name(module) in ("RNN", "GRU", "LSTM")


def _about_script(module: nn.Module, name: str) -> str:
    """What to do about a scripted or traced module."""
    kind = class_name(module)
    if not _is_scripted_layer(module):
        return f"{kind} is scripted or traced; a cell is measured when it is named, module={name!r}"
    return (
        f"the nn.{kind} is scripted or traced, and shows neither its steps nor its settings. Train the plain layer, "
        "which is measured and is as fast, and script the model afterwards: torch.jit.script(model)"
    )


def _looks_recurrent(module: nn.Module) -> bool:
    """Whether a module is named like a recurrent layer and holds none that would be told instead."""
    recurrent = (part for part in module.modules() if _is_own(part) or RECURRENT.search(class_name(part)))
    return next(recurrent, None) is module and next(recurrent, None) is None


def _listed(modules: Mapping[str, nn.Module], limit: int = 8) -> str:
    """Some names of submodules; those that say recurrent first."""
    names = [name for name in modules if name]
    names.sort(key=lambda name: RECURRENT.search(class_name(modules[name])) is None)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(f"{name} ({class_name(modules[name])})" for name in names[:limit]) or "no submodules") + more
