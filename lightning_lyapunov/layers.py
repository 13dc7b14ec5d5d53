"""The recurrent layers of a model in training: what drives them, and their spectrum, measured by all ranks together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from lightning_lyapunov.budget import Plan
from lightning_lyapunov.probe import Probe, find_layers
from lightning_lyapunov.ranks import data_rank, gather, share_out
from lightning_lyapunov.sharding import whole
from lightning_lyapunov.spectrum import Frames, LyapunovSpectrum, lyapunov_spectrum

T = TypeVar("T")
Source = Literal["validation", "training"]
_Recorded = tuple[PackedSequence, Any, int]
"""Inputs, state before them, dimension of the state."""


@dataclass(frozen=True)
class Options:
    """How to measure, as :func:`~lightning_lyapunov.lyapunov_spectrum` takes it."""

    k: int | None
    transient: int | None
    """Steps; if None a quarter of the mean length, at most 32."""
    interval: int | None
    dtype: torch.dtype | None
    tolerance: float | None


@dataclass(frozen=True)
class _Offer:
    """What a rank could measure."""

    rank: int
    """Of its share of the data."""
    lengths: dict[str, list[int]]
    """Steps of the sequences that it recorded, by layer."""
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
        """Record no more."""
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
        self, trainer: pl.Trainer, preferred: Source, plan: Plan, options: Options, *, warm_start: bool = False
    ) -> LyapunovSpectrum:
        """The union over all layers that inputs have reached; to be called on all ranks at once.

        Sequences are shared out over the ranks, each measures its own, and all get the spectrum of all of them.

        Args:
            trainer: Whose ranks they are.
            preferred: Where to take the inputs from, if there are any.
            plan: How much to measure, on all ranks together.
            options: How.
            warm_start: Whether to begin with the frames of the last measurement.

        Raises:
            ValueError: If it cannot be done, on all ranks alike.
        """
        recorded = _attempt(lambda: self._recorded(preferred, plan.sequences))
        offers = _agreed(
            gather(trainer, recorded if isinstance(recorded, _Trouble) else self._offer(trainer, preferred, recorded))
        )
        self.longest = max(offer.longest for offer in offers)
        turns = {name: _turns(name, offers, plan.sequences, options.transient) for name in self._reached(offers)}
        layers = {name: whole(self._probes[name]["validation"].layer) for name in turns}
        me = trainer.global_rank if len(offers) > 1 else 0

        def measure_mine() -> dict[str, LyapunovSpectrum]:
            mine: dict[str, LyapunovSpectrum] = {}
            if isinstance(recorded, _Trouble):  # all have agreed that there is none, unless rank zero speaks for all
                raise ValueError(recorded.text)
            for name, turn in turns.items():
                if turn.has_steps[me]:
                    driven = recorded[name]
                    if turn.shares[me] < len(offers[me].lengths[name]):
                        driven = self._probe(name, preferred).sequences(turn.shares[me])
                    frames = self._frames.setdefault(name, Frames()) if warm_start else None
                    with _named(name):
                        mine[name] = _measure(layers[name], driven, plan.k, turn.transient, options, frames)
            return mine if len(offers) == 1 else {name: _on_cpu(spectrum) for name, spectrum in mine.items()}

        everyone = _agreed(gather(trainer, _attempt(measure_mine)))
        parts: dict[str, LyapunovSpectrum] = {}
        for name in turns:
            pooled = LyapunovSpectrum.pooled([mine[name] for mine in everyone if name in mine])
            parts |= {f"{name}.{layer}": part for layer, part in pooled.parts.items()} or {name: pooled}
        k = None if all(part.complete for part in parts.values()) and options.k is None else plan.k
        return next(iter(parts.values())) if len(parts) == 1 else LyapunovSpectrum.union(parts, k)

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
        lengths = {name: _lengths(recorded[name][0]) if name in recorded else [] for name in self._probes}
        longest = max(probe.longest for probes in self._probes.values() for probe in probes.values())
        second_choice = {name for name, probes in self._probes.items() if not probes[preferred].has_recorded}
        return _Offer(data_rank(trainer), lengths, second_choice, longest)

    def _reached(self, offers: Sequence[_Offer]) -> list[str]:
        """The layers that inputs have reached on any rank."""
        reached = [name for name in self._probes if any(offer.lengths[name] for offer in offers)]
        if not reached:
            raise ValueError(
                f"{', '.join(self._probes)}: no inputs reached a layer in the forward pass (a compiled cell cannot be "
                "watched)."
            )
        for name in self._probes:
            if name not in reached:
                self._tell(f"{name} is not measured: no inputs reached it in the forward pass.", warn=True)
        return reached


@dataclass(frozen=True)
class _Turn:
    """Who measures what of a layer."""

    shares: list[int]
    """Sequences that each rank measures."""
    transient: int
    """Steps of each that do not count."""
    has_steps: list[bool]
    """Whether that leaves a rank anything to measure."""


def _turns(name: str, offers: Sequence[_Offer], sequences: int, transient: int | None) -> _Turn:
    """Share the sequences of a layer out, those of ranks that see the same data once."""
    no_first_choice = all(name in offer.second_choice for offer in offers)
    seen: set[int] = set()
    there_are = []
    for offer in offers:
        counts = offer.rank not in seen and (no_first_choice or name not in offer.second_choice)
        there_are.append(len(offer.lengths[name]) if counts else 0)
        seen.add(offer.rank)
    shares = share_out(sequences, there_are)
    lengths = [offer.lengths[name][:share] for offer, share in zip(offers, shares, strict=True)]
    everyones = [length for some in lengths for length in some]
    mean, longest = sum(everyones) // len(everyones), max(everyones)
    transient = min(mean // 4, 32) if transient is None else min(transient, longest - 1)
    return _Turn(shares, transient, [any(length > transient for length in some) for some in lengths])


def _measure(
    layer: nn.Module, driven: _Recorded, k: int, transient: int, options: Options, frames: Frames | None
) -> LyapunovSpectrum:
    inputs, state, dimension = driven
    return lyapunov_spectrum(
        layer,
        inputs,
        state=state,
        k=None if options.k is None and k >= dimension else min(k, dimension),
        transient=transient,
        interval=options.interval,
        dtype=options.dtype,
        tolerance=options.tolerance,
        frames=frames,
    )


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Say which layer it is that cannot be measured."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _lengths(inputs: PackedSequence) -> list[int]:
    """Steps of each sequence, in the order of the rows that were recorded."""
    return list(map(int, pad_packed_sequence(inputs)[1]))


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


def _on_cpu(spectrum: LyapunovSpectrum) -> LyapunovSpectrum:
    moved: dict[str, Any] = {name: value.cpu() for name, value in vars(spectrum).items() if isinstance(value, Tensor)}
    return replace(spectrum, **moved, parts={name: _on_cpu(part) for name, part in spectrum.parts.items()})


def _state_size(layer: nn.Module) -> int:
    """About the dimension of a layer's state, of all its own layers and directions."""
    size = int(getattr(layer, "hidden_size", 1024))
    parts = 2 if isinstance(layer, nn.LSTM | nn.LSTMCell) else 1
    return size * parts * int(getattr(layer, "num_layers", 1)) * (2 if getattr(layer, "bidirectional", False) else 1)
