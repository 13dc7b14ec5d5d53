"""The recurrent layers of a model in training: what drives them, and their spectrum, measured by all ranks together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from lightning_lyapunov.capture.finding import Names, find
from lightning_lyapunov.capture.probe import UNSEEN, Extent, Probe, probe_of
from lightning_lyapunov.conditioning.condition import check_layer
from lightning_lyapunov.conditioning.rows import SEQUENCES, STEPS
from lightning_lyapunov.conditioning.scaling import softening_of
from lightning_lyapunov.engine.frames import Frames
from lightning_lyapunov.engine.maps.families import family_of
from lightning_lyapunov.engine.measure import Driven, SystemTally, measure_layers, union_of_layers
from lightning_lyapunov.engine.sequences import Sequences
from lightning_lyapunov.engine.settings import Settings, Start
from lightning_lyapunov.engine.spectrum import LyapunovSpectrum
from lightning_lyapunov.monitoring.budget import Plan
from lightning_lyapunov.monitoring.ranks import Offer, Ranks, Trouble, agreed, attempt, shares_of
from lightning_lyapunov.monitoring.sharding import whole
from lightning_lyapunov.monitoring.watch import Source, other_than

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
    refused: dict[str, str]
    """Layers that cannot be measured, and why."""
    seen: int
    longest: int
    pieces: float | None


@dataclass(frozen=True)
class Seen:
    """What there was to measure, on all ranks together."""

    source: str
    """``validation``, ``training``, or ``validation and training`` where layers differ in it."""
    sequences: int
    """In the batches that were recorded; of the layer with the most."""
    longest: int
    """Steps of the longest sequence."""
    pieces: float | None
    """Mean steps of a sequence where rows begin anew inside a batch; None where none does."""


class Layers:
    """Watches the recurrent layers of a model and measures them.

    Args:
        model: The user's.
        names: Which layers; all that are known if None.
        num_sequences: Sequences recorded.
        num_steps: Steps recorded of each.
        tell: Says something once, with ``warn``.

    Attributes:
        seen: What there was at the last measurement; None before the first.

    Raises:
        ValueError: If there are none, or not those that are named.
    """

    def __init__(
        self, model: nn.Module, names: Names | None, num_sequences: int, num_steps: int, tell: Callable[..., None]
    ) -> None:
        found, unsupported = find(model, names)
        if unsupported:
            tell(f"found but not measured: {'; '.join(unsupported)}.", warn="layer-left-out")
        self._tell = tell
        self._is_chosen = names is not None
        self._probes: dict[str, dict[Source, Probe]] = {
            name: {source: probe_of(layer, num_sequences, num_steps) for source in ("validation", "training")}
            for name, layer in found.items()
        }
        self._frames: dict[str, Frames] = {}
        self._pauses = 0
        self.seen: Seen | None = None

    def remove(self) -> None:
        """Take the hooks off the layers and let go of what was recorded."""
        for probe in self._all_probes():
            probe.remove()

    def _all_probes(self, source: Source | None = None) -> Iterator[Probe]:
        for probes in self._probes.values():
            yield from (probe for kind, probe in probes.items() if source in (None, kind))

    # ---------------------------------------------------------------- what drives them

    def forget(self, source: Source) -> None:
        """Let go of what was recorded: the layers below may have learnt since."""
        for probe in self._all_probes(source):
            probe.forget()

    def begin_batch(self, source: Source) -> None:
        """Record a batch: the first ones of validation, the latest ones of training."""
        for probe in self._all_probes(source):
            probe.begin_batch(keep_latest=source == "training")

    def end_turn(self, source: Source, *, is_again: bool) -> None:
        """A part of the batch has ended; what follows is another pass over the same rows if ``is_again``."""
        for probe in self._all_probes(source):
            probe.end_turn(is_again=is_again)

    def end_batch(self, source: Source) -> None:
        """Stop recording."""
        for probe in self._all_probes(source):
            probe.end_batch()

    @property
    def seconds(self) -> float:
        """Spent recording so far."""
        return sum(probe.seconds for probe in self._all_probes())

    @property
    def batches_needed(self) -> int:
        """Training batches that bring as many sequences as are wanted, going by the last; 1 before there was any."""
        return max((probe.batches_needed for probe in self._all_probes("training")), default=1)

    def have_recorded(self, source: Source | None = None) -> bool:
        """Whether inputs have reached a layer on this rank."""
        return any(probe.has_recorded for probe in self._all_probes(source))

    def _has_recorded(self, name: str) -> bool:
        return any(probe.has_recorded for probe in self._probes[name].values())

    @property
    def measured(self) -> list[nn.Module]:
        """Those that inputs have reached on this rank."""
        return [probes["validation"].layer for name, probes in self._probes.items() if self._has_recorded(name)]

    @property
    def largest_state(self) -> int:
        """About the dimension of the largest state, of all its layers and directions."""
        return max(_state_size(probes["validation"].layer) for probes in self._probes.values())

    def recorded(self, preferred: Source) -> tuple[int, int]:
        """How many sequences this rank could measure, of the layer with the most, and steps of the longest."""
        counts = [(1, 1)]
        with self.paused():
            for name in self._probes:
                with suppress(Exception):  # what is amiss is said when it is measured
                    inputs, _, _ = self._probe(name, preferred).sequences()
                    counts.append((len(inputs), max(inputs.lengths)))
        return max(count for count, _ in counts), max(steps for _, steps in counts)

    # ---------------------------------------------------------------- measuring

    def spectrum(
        self, ranks: Ranks, preferred: Source, plan: Plan, settings: Settings, *, warm_start: bool = False
    ) -> LyapunovSpectrum:
        """The union over all layers that inputs have reached; to be called on all ranks at once.

        Sequences are shared out over the ranks, each measures its own, and all get the spectrum of all of them.

        Args:
            ranks: Who measures.
            preferred: Where to take the inputs from, if there are any.
            plan: How much to measure, on all ranks together.
            settings: What to measure otherwise, and how; its ``k`` is what would be measured without a bound.
            warm_start: Whether to begin with the frames of the last measurement.

        Raises:
            ValueError: If it cannot be done, on all ranks alike.
        """
        with self.paused():
            return self._spectrum(ranks, preferred, plan, settings, warm_start)

    def _spectrum(
        self, ranks: Ranks, preferred: Source, plan: Plan, settings: Settings, warm_start: bool
    ) -> LyapunovSpectrum:
        mine_to_offer = attempt(lambda: self._offer(ranks, preferred, plan))
        offers = agreed(ranks.gather(mine_to_offer if isinstance(mine_to_offer, Trouble) else mine_to_offer[0]))
        reached = self._reached(offers)
        self.seen = _seen(reached, offers, preferred)
        shares = {name: _shares(name, offers, plan.sequences) for name in reached}
        layers = {name: whole(self._probes[name]["validation"].layer) for name in shares}
        me = ranks.rank if len(offers) > 1 else 0

        def measure_mine() -> dict[str, SystemTally]:
            mine: dict[str, Driven] = {}
            if isinstance(mine_to_offer, Trouble):  # all have agreed on none, unless rank zero speaks for all
                raise ValueError(mine_to_offer.text)
            recorded = mine_to_offer[1]
            for name, share in shares.items():
                if share[me]:
                    probe = self._probe(name, preferred)
                    inputs, state, dimension = recorded[name]
                    if share[me] < len(inputs):
                        inputs, state, _ = probe.sequences(share[me])
                    frames = self._frames.setdefault(name, Frames()) if warm_start else None
                    start = Start(first_place=sum(share[:me]), frames=frames)
                    system = probe.system(layers[name])
                    mine[name] = Driven(system, inputs.cut(plan.steps), state, dimension, start)
            largest = max((driven.dimension or 0 for driven in mine.values()), default=0)
            everything = settings.k is None and plan.k >= largest
            told = settings if everything else replace(settings, k=plan.k)
            is_cut = any(plan.steps < max(inputs.lengths) for inputs, _, _ in recorded.values())
            if is_cut and told.transient is not None and told.transient >= plan.steps:
                told = replace(told, transient=plan.steps // 2)
            tallies = measure_layers(mine, told)
            return tallies if len(offers) == 1 else {name: tally.to("cpu") for name, tally in tallies.items()}

        everyone = agreed(ranks.gather(attempt(measure_mine)))
        tallies = {name: SystemTally.merge([mine[name] for mine in everyone if name in mine]) for name in shares}
        is_complete = settings.k is None and all(tally.is_complete for tally in tallies.values())
        self._tell_of_weights(reached, preferred)
        return union_of_layers(tallies, None if is_complete else plan.k)

    def softening(self, preferred: Source, *, look: bool) -> dict[str, float]:
        """The factor on the recurrent weights of each layer that cures it of chaos, by name.

        Of layers that can be conditioned, on the sequences that this rank recorded.

        Args:
            preferred: Where to take the inputs from, if there are any.
            look: Whether to measure; if none is known to be chaotic, each has a factor of 1.
        """
        factors = {}
        with self.paused():
            for name, probes in self._probes.items():
                layer = probes["validation"].layer
                with suppress(ValueError):  # nothing has reached it, or it cannot be conditioned
                    check_layer(layer)
                    inputs, state, _ = self._probe(name, preferred).sequences(SEQUENCES)
                    factors[name] = softening_of(layer, inputs.cut(STEPS), state) if look else 1.0
        return factors

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Record nothing meanwhile; the layers are as they were found, for a measurement to look at and to call."""
        if not self._pauses:
            for probe in self._all_probes():
                probe.pause()
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1
            if not self._pauses:
                for probe in self._all_probes():
                    probe.go_on()

    def _offer(self, ranks: Ranks, preferred: Source, plan: Plan) -> tuple[_Offer, dict[str, _Recorded]]:
        """What this rank could measure, and what it recorded, by layer."""
        recorded: dict[str, _Recorded] = {}
        refused: dict[str, str] = {}
        extents: list[Extent] = []
        for name in self._probes:
            if self._has_recorded(name):
                probe = self._probe(name, preferred)
                with _named(name):
                    recorded[name] = probe.sequences(plan.sequences)
                    extents.append(probe.extent)
                    try:
                        probe.system(probe.layer)
                    except ValueError as error:
                        if self._is_chosen:
                            raise
                        refused[name] = str(error)
        offer = _Offer(
            ranks.data_rank,
            {name: len(recorded[name][0]) if name in recorded else 0 for name in self._probes},
            {name for name, probes in self._probes.items() if not probes[preferred].has_recorded},
            refused,
            max((extent.sequences for extent in extents), default=0),
            max((extent.longest for extent in extents), default=0),
            min((extent.pieces for extent in extents if extent.pieces is not None), default=None),
        )
        return offer, recorded

    def _probe(self, name: str, preferred: Source) -> Probe:
        probes = self._probes[name]
        return probes[preferred] if probes[preferred].has_recorded else probes[other_than(preferred)]

    def _reached(self, offers: Sequence[_Offer]) -> list[str]:
        """The layers that inputs have reached on any rank, and that can be measured on all of them."""
        refused = {name: text for offer in offers for name, text in offer.refused.items()}
        reached = [name for name in self._probes if any(offer.sequences[name] for offer in offers)]
        if not reached:
            raise ValueError(f"{', '.join(self._probes)}: no inputs reached a layer in the forward pass ({UNSEEN}).")
        for name in self._probes:
            if name not in reached:
                self._tell(f"{name} is not measured: no inputs reached it in the forward pass.", warn="layer-left-out")
        if refused and not set(reached) - set(refused):
            raise ValueError("; ".join(f"{name}: {text}" for name, text in refused.items()))
        for name, text in refused.items():
            self._tell(f"{name} is not measured: {text}", warn="layer-left-out", subject=f"{name} refused")
        return [name for name in reached if name not in refused]

    def _tell_of_weights(self, names: Sequence[str], preferred: Source) -> None:
        """Say where weights that another module writes are those of a training pass."""
        for name in names:
            if self._probe(name, preferred).written_in_training:
                self._tell(
                    f"{name}: another module writes its weights, and they were last seen as they are in training: if "
                    "something is drawn at random for them there, as where weights are dropped out, the spectrum is of "
                    "that draw. Where validation drives the measurements it is of the weights in eval mode.",
                    warn="weights-of-training",
                    subject=f"weights of {name}",
                )


def _seen(names: Sequence[str], offers: Sequence[_Offer], preferred: Source) -> Seen:
    """What there is to measure of the layers of these names."""
    fallen_back = {all(name in offer.second_choice for offer in offers) for name in names}
    sources = {other_than(preferred) if back else preferred for back in fallen_back}
    by_data = {offer.rank: offer for offer in reversed(offers)}  # ranks that see the same data count once
    return Seen(
        " and ".join(sorted(sources, reverse=True)),
        sum(offer.seen for offer in by_data.values()),
        max(offer.longest for offer in offers),
        min((offer.pieces for offer in offers if offer.pieces is not None), default=None),
    )


def _shares(name: str, offers: Sequence[_Offer], sequences: int) -> list[int]:
    """Sequences of a layer that each rank measures; those of ranks that see the same data count once."""
    own = [Offer(offer.rank, offer.sequences[name], name in offer.second_choice) for offer in offers]
    return shares_of(own, sequences)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Say which layer it is that cannot be measured."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _state_size(layer: nn.Module) -> int:
    """About the dimension of a layer's state, of all its own layers and directions."""
    family = family_of(layer)
    size = sum(family.sizes(layer)) if family else int(getattr(layer, "hidden_size", 1024))
    return size * int(getattr(layer, "num_layers", 1)) * (2 if getattr(layer, "bidirectional", False) else 1)
