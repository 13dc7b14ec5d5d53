"""Modules of other libraries that are known by their class's name; none of these libraries is imported."""

from __future__ import annotations

from torch import nn

from lightning_lyapunov.capture.adapters import ncps, scans, snntorch, xlstm
from lightning_lyapunov.capture.calls import Adapter

_ADAPTERS: dict[str, Adapter] = {**ncps.ADAPTERS, **snntorch.ADAPTERS, **xlstm.ADAPTERS, **scans.SCANS}
"""By the full names of classes."""


def register(class_name: str, adapter: Adapter) -> None:
    """Measure modules of a class, and of its subclasses, through an adapter; they are found without being named.

    Args:
        class_name: In full, as ``"ncps.torch.cfc.CfC"``: the class's module and its name.
        adapter: How they are read and what their step is; a later one takes the place of an earlier one.

    Raises:
        ValueError: If the name is not one in full, or the adapter is none.
    """
    if not isinstance(class_name, str) or "." not in class_name:
        raise ValueError(f"class_name must name the class in full, as 'package.module.Class'; got {class_name!r}.")
    if not isinstance(adapter, Adapter):
        raise ValueError(f"adapter must be an Adapter; got {type(adapter).__name__}.")
    _ADAPTERS[class_name] = adapter


def adapter_of(module: nn.Module) -> Adapter | None:
    """The adapter that is registered for a module's class, or for the nearest class that it inherits from."""
    names = (f"{kind.__module__}.{kind.__qualname__}" for kind in type(module).__mro__)
    return next((_ADAPTERS[name] for name in names if name in _ADAPTERS), None)
