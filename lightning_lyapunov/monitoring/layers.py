"""The recurrent layers of a model in training: what drives them, and their spectrum, measured by all ranks together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import lightning.pytorch as pl
from torch import nn

from lightning_lyapunov.capture.finding import find_layers
from lightning_lyapunov.capture.probe import Probe
from lightning_lyapunov.engine.frames import Frames
from lightning_lyapunov.engine.maps.families import family_of
from lightning_lyapunov.engine.measure import Driven, SystemTally, measure_layers, union_of_layers
from lightning_lyapunov.engine.sequences import Sequences
from lightning_lyapunov.engine.settings import Settings, Start
from lightning_lyapunov.engine.spectrum import LyapunovSpectrum
from lightning_lyapunov.monitoring.budget import Plan
from lightning_lyapunov.monitoring.ranks import data_rank, gather, share_out
from lightning_lyapunov.monitoring.sharding import whole

T = TypeVar("T")
Source = Literal["validation", "training"]
_Recorded = tuple[Sequences, Any, int]
"""Inputs, state before them, dimension of the state."""


@dataclass(frozen=True)
class _Offer:
    """What a rank could measure."""

    rank: int
    """Of its share of the data."""
    sequences: dict[str, int]
    """How many it recorded, by layer."""
    second_choice: set[str]
    """Layers whose sequences are not from where they are preferred: they count if no rank has any from there."""
    longest: int


@dataclass(frozen=True)
class _Trouble:
    """What came in the way of a rank."""

    text: str


class Layers:
    """Watches the recurrent layers of a model and measures them.

    Args:
        model: The user's.
        names: Which layers; all of torch's recurrent ones if None.
        num_sequences: Sequences recorded.
        num_steps: Steps recorded of each.
        tell: Says something once, with ``warn``.

    Raises:
        ValueError: If there are none, or not those that are named.
    """

    def __init__(
        self,
        model: nn.Module,
        names: str | Sequence[str] | None,
        num_sequences: int,
        num_steps: int,
        tell: Callable[..., None],
    ) -> None:
        layers, unsupported = find_layers(model, names)
        if unsupported:
            tell(f"found but not measured: {'; '.join(unsupported)}.", warn=True)
        size = num_sequences, num_steps
        self._tell = tell
        self._probes: dict[str, dict[Source, Probe]] = {
            name: {"validation": Probe(layer, *size), "training": Probe(layer, *size)} for name, layer in layers.items()
        }
        self._frames: dict[str, Frames] = {}
        self.longest = 0
        """Steps of the longest sequence that was seen on any rank, at the last measurement."""

    def remove(self) -> None:
        """Take the hooks off the layers and let go of what was recorded."""
        for probes in self._probes.values():
            for probe in probes.values():
                probe.remove()

    # ---------------------------------------------------------------- what drives them

    def forget_validation(self) -> None:
        """Let go of the inputs of an earlier validation."""
        for probes in self._probes.values():
            probes["validation"].forget()

    def begin_batch(self, source: Source) -> None:
        """Record a batch: the first ones of validation, the latest ones of training."""
        for probes in self._probes.values():
            probes[source].begin_batch(keep_latest=source == "training")

    def end_batch(self, source: Source) -> None:
        """Stop recording."""
        for probes in self._probes.values():
            probes[source].end_batch()

    def have_recorded(self, source: Source | None = None) -> bool:
        """Whether inputs have reached a layer on this rank."""
        return any(self._has_recorded(name, source) for name in self._probes)

    def _has_recorded(self, name: str, source: Source | None = None) -> bool:
        return any(probe.has_recorded for kind, probe in self._probes[name].items() if source in (None, kind))

    @property
    def measured(self) -> list[nn.Module]:
        """Those that inputs have reached on this rank."""
        return [probes["validation"].layer for name, probes in self._probes.items() if self._has_recorded(name)]

    @property
    def largest_state(self) -> int:
        """About the dimension of the largest state, of all its layers and directions."""
        return max(_state_size(probes["validation"].layer) for probes in self._probes.values())

    # ---------------------------------------------------------------- measuring

    def spectrum(
        self, trainer: pl.Trainer, preferred: Source, plan: Plan, settings: Settings, *, warm_start: bool = False
    ) -> LyapunovSpectrum:
        """The union over all layers that inputs have reached; to be called on all ranks at once.

        Sequences are shared out over the ranks, each measures its own, and all get the spectrum of all of them.

        Args:
            trainer: Whose ranks they are.
            preferred: Where to take the inputs from, if there are any.
            plan: How much to measure, on all ranks together.
            settings: What to measure otherwise, and how; its ``k`` is what would be measured without a bound.
            warm_start: Whether to begin with the frames of the last measurement.

        Raises:
            ValueError: If it cannot be done, on all ranks alike.
        """
        recorded = _attempt(lambda: self._recorded(preferred, plan.sequences))
        offers = _agreed(
            gather(trainer, recorded if isinstance(recorded, _Trouble) else self._offer(trainer, preferred, recorded))
        )
        self.longest = max(offer.longest for offer in offers)
        shares = {name: _shares(name, offers, plan.sequences) for name in self._reached(offers)}
        layers = {name: whole(self._probes[name]["validation"].layer) for name in shares}
        me = trainer.global_rank if len(offers) > 1 else 0

        def measure_mine() -> dict[str, SystemTally]:
            mine: dict[str, Driven] = {}
            if isinstance(recorded, _Trouble):  # all have agreed that there is none, unless rank zero speaks for all
                raise ValueError(recorded.text)
            for name, share in shares.items():
                if share[me]:
                    inputs, state, dimension = recorded[name]
                    if share[me] < len(inputs):
                        inputs, state, _ = self._probe(name, preferred).sequences(share[me])
                    frames = self._frames.setdefault(name, Frames()) if warm_start else None
                    start = Start(first_place=sum(share[:me]), frames=frames)
                    mine[name] = Driven(layers[name], inputs, state, dimension, start)
            largest = max((driven.dimension or 0 for driven in mine.values()), default=0)
            everything = settings.k is None and plan.k >= largest
            tallies = measure_layers(mine, settings if everything else replace(settings, k=plan.k))
            return tallies if len(offers) == 1 else {name: tally.to("cpu") for name, tally in tallies.items()}

        everyone = _agreed(gather(trainer, _attempt(measure_mine)))
        tallies = {name: SystemTally.merge([mine[name] for mine in everyone if name in mine]) for name in shares}
        is_complete = settings.k is None and all(tally.is_complete for tally in tallies.values())
        return union_of_layers(tallies, None if is_complete else plan.k)

    def _recorded(self, preferred: Source, most: int) -> dict[str, _Recorded]:
        """What this rank recorded, by layer."""
        recorded = {}
        for name in self._probes:
            if self._has_recorded(name):
                with _named(name):
                    recorded[name] = self._probe(name, preferred).sequences(most)
        return recorded

    def _probe(self, name: str, preferred: Source) -> Probe:
        probes = self._probes[name]
        other: Source = "training" if preferred == "validation" else "validation"
        return probes[preferred] if probes[preferred].has_recorded else probes[other]

    def _offer(self, trainer: pl.Trainer, preferred: Source, recorded: dict[str, _Recorded]) -> _Offer:
        sequences = {name: len(recorded[name][0]) if name in recorded else 0 for name in self._probes}
        longest = max(probe.longest for probes in self._probes.values() for probe in probes.values())
        second_choice = {name for name, probes in self._probes.items() if not probes[preferred].has_recorded}
        return _Offer(data_rank(trainer), sequences, second_choice, longest)

    def _reached(self, offers: Sequence[_Offer]) -> list[str]:
        """The layers that inputs have reached on any rank."""
        reached = [name for name in self._probes if any(offer.sequences[name] for offer in offers)]
        if not reached:
            raise ValueError(
                f"{', '.join(self._probes)}: no inputs reached a layer in the forward pass (a compiled cell cannot be "
                "watched)."
            )
        for name in self._probes:
            if name not in reached:
                self._tell(f"{name} is not measured: no inputs reached it in the forward pass.", warn=True)
        return reached


def _shares(name: str, offers: Sequence[_Offer], sequences: int) -> list[int]:
    """Sequences of a layer that each rank measures; those of ranks that see the same data count once."""
    no_first_choice = all(name in offer.second_choice for offer in offers)
    seen: set[int] = set()
    there_are = []
    for offer in offers:
        counts = offer.rank not in seen and (no_first_choice or name not in offer.second_choice)
        there_are.append(offer.sequences[name] if counts else 0)
        seen.add(offer.rank)
    return share_out(sequences, there_are)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Say which layer it is that cannot be measured."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _attempt(what: Callable[[], T]) -> T | _Trouble:
    """What it returns, or what came in the way: a rank that gave up alone would leave the others waiting."""
    try:
        return what()
    except Exception as error:
        return _Trouble(str(error) or type(error).__name__)


def _agreed(everyone: Sequence[T | _Trouble]) -> list[T]:
    """What all ranks brought, if none of them is in trouble."""
    for rank, brought in enumerate(everyone):
        if isinstance(brought, _Trouble):
            raise ValueError(brought.text + (f" (on rank {rank})" if len(everyone) > 1 else ""))
    return [brought for brought in everyone if not isinstance(brought, _Trouble)]


def _state_size(layer: nn.Module) -> int:
    """About the dimension of a layer's state, of all its own layers and directions."""
    family = family_of(layer)
    size = sum(family.sizes(layer)) if family else int(getattr(layer, "hidden_size", 1024))
    return size * int(getattr(layer, "num_layers", 1)) * (2 if getattr(layer, "bidirectional", False) else 1)
