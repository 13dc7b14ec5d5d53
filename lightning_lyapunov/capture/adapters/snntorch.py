"""Spiking neurons of snnTorch, as they are in version 1.0.0.

A neuron's forward makes one step. Its state is a few named tensors (``mem``, ``spk``, ``syn``), which it is given as
arguments or, for want of these, keeps in itself; the step is that of the library's own forward.

A spike is a jump, of derivative zero wherever there is one. In its place the library differentiates a smooth surrogate,
and a reset not at all: the exponents are those of the products that training by backpropagation sees. They say how
gradients grow and fade, and of the spiking map itself only what goes around the spikes: a leaky neuron has ln β.

Source: Eshraghian et al., Proceedings of the IEEE 111 (2023) 1016–1054; Neftci et al., IEEE Signal Processing Magazine
36 (2019) 51–63 (surrogate gradients).
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lyapunov.capture.calls import Adapter, Call, Parts
from lightning_lyapunov.capture.stepping import class_name, twin
from lightning_lyapunov.engine.maps.cell import State, as_parts


class Spiking(Adapter):
    """A neuron that keeps its state in attributes, which are also the names of the arguments that give it one.

    Where a neuron is not given its state, a row began in what it had come to in the call before if the step from there
    is the one that was made, else in zeros if that is; in neither case it is NaN, as nobody knows it.

    Args:
        names: Of the attributes.
    """

    def __init__(self, *names: str) -> None:
        self.names = names
        self._latest: weakref.WeakKeyDictionary[nn.Module, Parts] = weakref.WeakKeyDictionary()

    def __reduce__(self) -> tuple[type[Spiking], tuple[str, ...]]:
        return type(self), self.names

    def read(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Call:
        """As in the base.

        Raises:
            ValueError: If the neuron takes no state of the shape that it returns.
        """
        given = inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments
        x, after = given["input_"], tuple(getattr(module, name).detach() for name in self.names)
        parts = [given.get(name) for name in self.names]
        if x.dim() == 1:
            x, *rows = (part.unsqueeze(0) for part in (x, *after))
            after = tuple(rows)
            parts = [part.unsqueeze(0) if isinstance(part, Tensor) else part for part in parts]
        if _is_ignored(after, x):
            raise ValueError(
                f"{class_name(module)} begins each step from zeros where its state {tuple(after[0].shape)} is not of "
                f"the shape of its inputs {tuple(x.shape)}: nothing recurs. Give it as many units as inputs"
            )
        if all(isinstance(part, Tensor) and part.shape == x.shape for part in parts):
            before: Parts | None = tuple(part for part in parts if isinstance(part, Tensor))
        elif any(isinstance(part, Tensor) and part.numel() for part in parts):
            raise ValueError(f"{class_name(module)} must be given all of {', '.join(self.names)}, or none")
        else:
            before = self._kept(module, x.detach(), after)
        self._latest[module] = after
        return Call.of_step(x, before, after)

    def _kept(self, module: nn.Module, x: Tensor, after: Parts) -> Parts:
        """The state that a neuron kept in itself before a call."""
        zeros = tuple(torch.zeros_like(part) for part in after)
        latest = self._latest.get(module, zeros)
        if any(part.shape != zero.shape for part, zero in zip(latest, zeros, strict=True)):
            latest = zeros
        with torch.no_grad():
            from_latest = _same_rows(as_parts(self.step(module, x, latest)), after)
            from_zeros = _same_rows(as_parts(self.step(module, x, zeros)), after)
        unknown = tuple(torch.where(_like(from_zeros, part), part, torch.nan) for part in zeros)
        pairs = zip(latest, unknown, strict=True)
        return tuple(torch.where(_like(from_latest, part), part, other) for part, other in pairs)

    def step(self, module: nn.Module, x: Tensor, state: State) -> State:
        """As in the base; the neuron's own state is left alone."""
        parts = as_parts(state)
        neuron: Any = twin(module, **dict(zip(self.names, parts, strict=True)))
        type(module).forward(neuron, x)
        # A surrogate makes spikes of single precision, whatever it is given.
        after = tuple(getattr(neuron, name).to(part.dtype) for name, part in zip(self.names, parts, strict=True))
        return after[0] if isinstance(state, Tensor) else after


def _is_ignored(after: Parts, x: Tensor) -> bool:
    """Whether a neuron takes its state for that of another batch, which it tells from the shape of its inputs."""
    return any(part.shape != x.shape for part in after)


def _same_rows(one: Any, other: Parts) -> Tensor:
    """Whether a row is the same in all parts: ``(B,)``."""
    same = [torch.eq(a, b).flatten(1).all(1) for a, b in zip(one, other, strict=True)]
    return torch.stack(same).all(0)


def _like(rows: Tensor, part: Tensor) -> Tensor:
    return rows.reshape(-1, *[1] * (part.dim() - 1))


ADAPTERS: dict[str, Adapter] = {
    f"snntorch._neurons.{name.lower()}.{name}": Spiking(*parts)
    for name, parts in {
        "Leaky": ("mem",),
        "Lapicque": ("mem",),
        "RLeaky": ("spk", "mem"),
        "Synaptic": ("syn", "mem"),
        "RSynaptic": ("spk", "syn", "mem"),
        "Alpha": ("syn_exc", "syn_inh", "mem"),
        "SLSTM": ("syn", "mem"),
    }.items()
}
