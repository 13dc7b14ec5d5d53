"""Measuring: one system, or the layers of a network side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lyapunov.engine.diagonal import DiagonalSystem, measure_diagonal
from lightning_lyapunov.engine.exponents import Counting, Meter
from lightning_lyapunov.engine.frames import Frames, random_frames, random_vectors, spare
from lightning_lyapunov.engine.growth import (
    PROBES,
    Recording,
    columns,
    growth_of_whole,
    sequence_growth,
)
from lightning_lyapunov.engine.isolation import measuring
from lightning_lyapunov.engine.maps.cell import State
from lightning_lyapunov.engine.precision import PrecisionLaw
from lightning_lyapunov.engine.segments import cut_in_time, segments
from lightning_lyapunov.engine.sequences import Inputs, lengths_of
from lightning_lyapunov.engine.settings import FROM_SEED_0, Settings, Start
from lightning_lyapunov.engine.spectrum import LyapunovSpectrum, SequenceGrowth
from lightning_lyapunov.engine.stack import Stack
from lightning_lyapunov.engine.system import device_of, trajectories, unwrap
from lightning_lyapunov.engine.tally import Tally
from lightning_lyapunov.engine.trajectory import STRETCH, Trajectory


@dataclass(frozen=True)
class SystemTally:
    """Raw sums of a system: of each of its layers, and the growth of all of them together where they are one stack."""

    parts: dict[str, Tally]
    growth: SequenceGrowth | None = None

    @staticmethod
    def merge(several: Sequence[SystemTally]) -> SystemTally:
        """That of all sequences of several tallies of one system."""
        parts = {name: part.merge([one.parts[name] for one in several]) for name, part in several[0].parts.items()}
        grown = [one.growth for one in several if one.growth is not None]
        return SystemTally(parts, SequenceGrowth.merge(grown) if len(grown) == len(several) else None)

    def to(self, device: torch.device | str) -> SystemTally:
        """The same on another device."""
        growth = None if self.growth is None else self.growth.to(device)
        return SystemTally({name: part.to(device) for name, part in self.parts.items()}, growth)

    @property
    def is_complete(self) -> bool:
        """Whether all exponents of all layers were measured."""
        return all(part.log.shape[-1] == part.dimension for part in self.parts.values())

    def spectra(self, k: int | None) -> dict[str, LyapunovSpectrum]:
        """The spectrum of each layer, leading k exponents or as many as it has."""
        return {name: part.spectrum(min(k or part.dimension, part.dimension)) for name, part in self.parts.items()}


def measure(
    system: Any,
    inputs: Inputs | None,
    settings: Settings,
    *,
    state: State | None = None,
    steps: int | None = None,
    start: Start = FROM_SEED_0,
) -> SystemTally:
    """Measure a system along its inputs; :func:`~lightning_lyapunov.lyapunov_spectrum` up to the raw sums.

    Args:
        system: As there.
        inputs: As there, or sequences as they were recorded.
        settings: What to measure, and how.
        state: As there.
        steps: As there.
        start: Where the frames begin.

    Raises:
        ValueError: As there.
    """
    system = unwrap(system)
    if isinstance(system, DiagonalSystem):
        _check_counts(settings, system.dimension(inputs))
        return SystemTally({"cell": measure_diagonal(system, inputs, settings, steps)})
    with measuring(system, device_of(system, inputs, state)):
        paths = trajectories(system, inputs, state, steps, settings.dtype)
        dimension = sum(path.size for path in paths.values())
        _check_counts(settings, dimension)
        if start.frames is not None:
            start.frames.begin(inputs, state)
        tallies = {name: measure_path(path, settings, start, inputs is not None, name) for name, path in paths.items()}
        whole = None
        if isinstance(system, nn.RNNBase) and system.num_layers > 1 and not system.bidirectional:
            count = settings.growth_of(settings.k or dimension, dimension, len(next(iter(paths.values())).running))
            if count:
                whole = _growth_alone(Stack(list(paths.values())), count, start)
        return SystemTally(tallies, whole)


def _check_counts(settings: Settings, dimension: int) -> None:
    for name, most in (("k", settings.k), ("growth", settings.growth)):
        if most is not None and most > dimension:
            least = 1 if name == "k" else 0
            raise ValueError(f"{name} must lie in [{least}, {dimension}], the dimension of the state; got {most}.")


def measure_path(
    path: Trajectory, settings: Settings, start: Start = FROM_SEED_0, driven: bool = True, name: str = ""
) -> Tally:
    """The raw sums of one map along its trajectory.

    Args:
        path: The trajectory, at its first step.
        settings: What to measure, and how.
        start: Where the frames begin.
        driven: Whether an input drives the map.
        name: Of the map, under which its frames are kept.
    """
    steps, sequences, size = len(path.running), len(path.initial), path.size
    if settings.second_start and sequences < 2:
        raise ValueError("second_start begins each sequence where another one ended, so it takes two or more; got 1.")
    lengths = lengths_of(path.running)
    transients = [settings.transient_of(length) for length in lengths]
    k = min(settings.k or size, size)
    count = settings.growth_of(k, size, steps)
    pieces = 1 if settings.second_start else segments(path, transients[0])
    # Up to the last step the frame of the exponents is that of a first pass for the growth.
    is_shared = count > 0 and pieces == 1 and start.frames is None and settings.tolerance is None
    # Where all directions are carried, their triangles are those of the growth, if the law chose the interval.
    is_whole = is_shared and settings.interval is None and columns(count, size) == size
    pushed = min(size, max(k + spare(steps), columns(count, size) if is_shared else 0))
    frame = random_frames(_places(path, start), size, pushed, path.initial.device, start.seed)
    counted = sum(max(n - t, 0) for n, t in zip(lengths, transients, strict=True))

    def law() -> PrecisionLaw:
        may_narrow = settings.dtype is None and path.can_narrow
        return PrecisionLaw(
            path.dtype,
            settings.interval,
            may_narrow=may_narrow,
            limit=STRETCH,
            stretch=path.stretch,
            steps=max(counted, 1),
        )

    def is_enough(meter: Meter) -> bool:
        tolerance = settings.tolerance
        return tolerance is not None and meter.tally(lengths, transients, driven).is_within(tolerance, k)

    recording, is_warm = Recording(path), False
    if pieces > 1:
        meter = cut_in_time(path, transients[0], pieces, frame, law())
        meter.advance(max(meter.counting.lengths))
    else:
        meter = Meter(path, frame, law(), Counting.of(lengths, transients))
        if start.frames is not None:
            is_warm = _begin_warm(meter, start.frames, name, min(transients))
        watch = recording.add if is_shared else None
        enough = None if settings.tolerance is None else is_enough
        meter.advance(steps, watch=watch, with_triangles=is_whole, is_enough=enough)
    tally = meter.tally(lengths, transients, driven)
    tally.visited = path.visited
    tally.may_settle = not is_warm and (pieces > 1 or path.time == steps)
    if is_whole:
        tally.growth = growth_of_whole(recording, meter.frame, count)
    elif is_shared:
        leading = meter.frame[..., : columns(count, size)]
        tally.growth = sequence_growth(recording, leading, _probes(path, start), count, meter.law)
    elif count:
        tally.growth = _growth_alone(path, count, start)
    if settings.second_start:
        tally.again = _again(path, Meter(path, frame, law(), Counting.of(lengths, transients)), lengths, transients)
    return tally


def _places(path: Trajectory | Stack, start: Start) -> list[int]:
    """The place of each row among all sequences that are measured."""
    rows = range(len(path.initial)) if path.order is None else path.order.tolist()
    return [start.first_place + row for row in rows]


def _probes(path: Trajectory | Stack, start: Start) -> Tensor:
    # Of another seed than the frames, whose columns they would be otherwise.
    return random_vectors(_places(path, start), path.size, PROBES, start.seed + 2**31)


def _begin_warm(meter: Meter, frames: Frames, name: str, transient: int) -> bool:
    """Bring a meter to the end of the shortest transient; whether by a frame that was kept."""
    kept = frames.get(name, meter.frame)
    if kept is not None:
        meter.chain.skip(transient)
        meter.frame = kept
    else:
        meter.advance(transient)
        if transient > 0:
            frames.keep(name, meter.frame)
    return kept is not None


def _growth_alone(chain: Trajectory | Stack, count: int, start: Start) -> SequenceGrowth:
    """Growth over a chain from its first step on, by passes of its own."""
    chain.rewind(0, chain.initial)
    recording = Recording(chain)
    recording.follow(STRETCH)
    k = columns(count, chain.size)
    frame = random_frames(_places(chain, start), chain.size, k, chain.initial.device, start.seed)
    return sequence_growth(recording, frame, _probes(chain, start), count)


def _again(path: Trajectory, meter: Meter, lengths: list[int], transients: list[int]) -> Tensor:
    """Rates ``(B, K)`` of the same sequences, each from the state that another one ended in."""
    rows = torch.arange(len(lengths), device=path.initial.device)
    ended = path.states[torch.tensor(lengths, device=path.initial.device), rows]
    path.rewind(0, ended.roll(1, 0))
    meter.advance(len(path.running))
    tally = meter.tally(lengths, transients, driven=True)
    return tally.log.sum(0) / tally.steps.sum(0).to(tally.log).unsqueeze(1)


# ------------------------------------------------------------------ the layers of a network


@dataclass(frozen=True)
class Driven:
    """A layer and what drives it."""

    layer: nn.Module | DiagonalSystem
    inputs: Inputs | None
    state: State | None = None
    dimension: int | None = None
    """Of its state, all its own layers and directions together: there are no more exponents. None where not known."""
    start: Start = FROM_SEED_0


def measure_layers(layers: Mapping[str, Driven], settings: Settings) -> dict[str, SystemTally]:
    """Measure layers one after another, of each as many exponents as it has, if not as many as asked for.

    Raises:
        ValueError: If one cannot be measured; the message begins with its name.
    """
    tallies = {}
    for name, driven in layers.items():
        most = driven.dimension or math.inf
        k, growth = (None if n is None else int(min(n, most)) for n in (settings.k, settings.growth))
        own = replace(settings, k=k, growth=growth)
        try:
            tallies[name] = measure(driven.layer, driven.inputs, own, state=driven.state, start=driven.start)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return tallies


def union_of_layers(tallies: Mapping[str, SystemTally], k: int | None) -> LyapunovSpectrum:
    """The spectrum of layers together: the sorted union of theirs, the leading k exponents; all if None."""
    parts: dict[str, LyapunovSpectrum] = {}
    for name, tally in tallies.items():
        spectra = tally.spectra(k)
        inner = len(spectra) > 1
        parts |= {f"{name}.{layer}".lstrip(".") if inner else name: spectrum for layer, spectrum in spectra.items()}
    if len(parts) == 1:
        return next(iter(parts.values()))
    stacks = {name: tally.growth for name, tally in tallies.items() if tally.growth is not None}
    if len(tallies) == 1:
        return LyapunovSpectrum.union(parts, k, next(iter(stacks.values()), None))
    return LyapunovSpectrum.union(parts, k, stacks=stacks)
