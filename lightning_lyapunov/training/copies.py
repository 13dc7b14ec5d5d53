"""Who else holds the weights of a layer: parameters that are tied to them, and copies that somebody made of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn


def ties(model: nn.Module, layer: nn.Module, parameters: Iterable[Tensor]) -> list[str]:
    """The names that parameters of a layer have outside it: what changes them here changes them there.

    Args:
        model: Where to look.
        layer: A module inside it.
        parameters: Of the layer.
    """
    own, inside = set(parameters), set(layer.modules())
    outside = ((name, module) for name, module in model.named_modules() if module not in inside)
    return [
        f"{name}.{of}" if name else of
        for name, module in outside
        for of, parameter in module.named_parameters(recurse=False)
        if parameter in own
    ]


def copies(
    model: nn.Module, guests: Iterable[object], values: Iterable[Tensor], own: Iterable[Tensor] = ()
) -> list[str]:
    """Where else matrices of the same values are held: by other parts of a model, or by guests of its training.

    So are target networks and running averages found. An average that has not begun, which will begin with whatever
    the weights are then, does not count.

    Args:
        model: Where to look.
        guests: Callbacks, whose attributes are looked at: modules, and tensors by name.
        values: What to look for; vectors, which are often alike, are passed over.
        own: Tensors that are no copies: those of the layers themselves, which may hold what they held.

    Returns:
        The name of each place.
    """
    matrices = [value for value in values if value.dim() > 1 and bool(value.any())]
    places, themselves = [*_tensors(model), *(place for guest in guests for place in _held(guest))], set(own)
    return [
        name
        for name, tensor in places
        if tensor not in themselves and any(_is_same(tensor, value) for value in matrices)
    ]


def _held(guest: object) -> Iterator[tuple[str, Tensor]]:
    """All tensors that hang on a callback, by where they are."""
    if _is_to_begin(guest):
        return
    for name, thing in vars(guest).items():
        where = f"{type(guest).__name__}.{name}"
        if isinstance(thing, nn.Module):
            yield from ((f"{where}.{of}", tensor) for of, tensor in _tensors(thing))
        elif isinstance(thing, Mapping):
            yield from ((f"{where}[{of!r}]", tensor) for of, tensor in thing.items() if isinstance(tensor, Tensor))


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, but for those of averages that have not begun."""
    fresh = {part for of in module.modules() if _is_to_begin(of) for part in of.modules()}
    for name, part in module.named_modules():
        if part not in fresh:
            own = (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))
            yield from ((f"{name}.{of}" if name else of, tensor) for of, tensor in own)


def _is_to_begin(thing: object) -> bool:
    """Whether it is an average of torch's or Lightning's that the next update will begin anew."""
    count = vars(thing).get("n_averaged", 1)
    if isinstance(thing, nn.Module):
        count = thing._buffers.get("n_averaged", count)
    return count is None or int(count) == 0


def _is_same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one.detach().to(other.device), other)
