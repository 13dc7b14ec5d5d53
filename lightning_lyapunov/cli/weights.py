"""The weights of a network, wherever a checkpoint keeps them and whatever wrapped the network when it was saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Parts of a name that DistributedDataParallel, averaged models, torch.compile and their like put in."""
COUNTER = "n_averaged"
"""What an averaged model counts beside its weights."""
DEEPEST = 4
"""Mappings inside one another that are searched."""


def load_weights(network: nn.Module, content: Any, file: Path, where: str | None = None) -> None:
    """Give a network its weights out of what a file holds: the one mapping of tensors that has its names.

    Names may carry what wrappers add, at the front or in the middle, and may all stand below one name, as those of a
    network inside a larger one do.

    Args:
        network: Whose weights are wanted; changed in place.
        content: What ``torch.save`` was given.
        file: Where it was, for messages.
        where: Which weights, where there are several: the name that messages tell them by.

    Raises:
        ValueError: If there are none, or several and ``where`` is none of them.
        RuntimeError: If they do not fit, from ``load_state_dict``.
    """
    own = network.state_dict()
    if not own:
        return
    mappings = dict(_mappings(content, set()))
    found = {place: w for at, mapping in mappings.items() for place, w in _named_as(own, at, mapping)}
    alike = {place: w for place, w in found.items() if all(w[name].shape == own[name].shape for name in own)}
    fitting = alike or found
    if where is not None:
        if where not in found and where not in mappings:
            raise ValueError(f"weights must be one of {_listed(found or mappings)} in {file}; got {where!r}.")
        network.load_state_dict(found.get(where) or dict(mappings[where]))
    elif len(fitting) > 1:
        places = [place for place in fitting if place]
        raise ValueError(
            f"weights: {file} holds weights that fit {type(network).__name__} in {len(fitting)} places, "
            f"{_listed(fitting)}; choose one, as --weights {places[0]}."
        )
    elif fitting:
        network.load_state_dict(next(iter(fitting.values())))
    elif mappings:
        nearest = max(mappings.values(), key=lambda mapping: len(mapping.keys() & own.keys()))
        network.load_state_dict(dict(nearest))  # which tells what is missing and what is too many
    else:
        kind = type(content).__name__
        raise ValueError(
            f"file: {file} holds a {kind} and in it no mapping of names to tensors, which are the weights; "
            "torch.save(network.state_dict(), path) writes one."
        )


def _mappings(content: Any, seen: set[int], place: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping of names to tensors, once, and where it is: a.b is what stands under b under a."""
    if not isinstance(content, Mapping) or id(content) in seen or depth > DEEPEST:
        return
    seen.add(id(content))
    if not all(isinstance(key, str) for key in content):
        return  # the state of an optimizer goes by numbers
    if any(isinstance(value, Tensor) for value in content.values()) and all(
        isinstance(value, Tensor) or key.endswith("_extra_state") for key, value in content.items()
    ):
        yield place, content
    else:
        for key, value in content.items():
            yield from _mappings(value, seen, f"{place}.{key}" if place else key, depth + 1)


def _named_as(own: Mapping[str, Any], at: str, mapping: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The parts of a mapping that have all names of ``own`` and no more, under these names, and where they are."""
    names = {_plain(name): name for name in own}
    values = {_plain(key): value for key, value in mapping.items() if key != COUNTER or key in own}
    if len(names) < len(own) or len(values) < len(mapping.keys() - {COUNTER}):  # wrappers' names that mean something
        names, values = {name: name for name in own}, dict(mapping)
    first = next(iter(names))
    for key in values:
        if key == first or key.endswith(f".{first}"):
            before = key.removesuffix(first)
            part = {k.removeprefix(before): value for k, value in values.items() if k.startswith(before)}
            if part.keys() == names.keys():
                yield ".".join(filter(None, (at, before.rstrip(".")))), {names[k]: v for k, v in part.items()}


def _plain(name: str) -> str:
    """A name without what wrappers add."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _listed(places: Mapping[str, Any], most: int = 12) -> str:
    """As ``model, ema``; the file itself has no name."""
    names = [place or "the file itself" for place in places]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
