r"""The Lyapunov spectrum: growth rates of tangent vectors, averaged along a trajectory.

.. math:: \lambda_i = \frac{1}{N} \sum_{n=1}^{N} \ln |R^{(n)}_{ii}|, \qquad J_n Q_{n-1} = Q_n R^{(n)}

Exponents are in nats per step, largest first, and conditional on the driving input.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from lightning_lyapunov.isolation import measuring
from lightning_lyapunov.orthonormal import TOLERANCE, PrecisionLaw
from lightning_lyapunov.recurrence import Factors, Recurrence, State, as_parts
from lightning_lyapunov.tangent import Growth, push_along, random_frame
from lightning_lyapunov.trajectory import STRETCH, Inputs, Trajectory, device_of, trajectories, unwrap, widest_dtype

CHUNK = STRETCH
"""Longest interval, and about the steps between two looks at the precision law."""
FEW, SEGMENTS, SHORTEST_SEGMENT, BURN_IN = 2, 16, 2048, 64
"""Sequences up to which time is cut into segments that run side by side; how many rows they make at most; the fewest
steps of one, since each adds to the bias of finite time; and the steps before it in which its frame settles."""
SMALL = 32
"""Dimension of the state up to which the volume rate is computed by LU where it has no closed form."""
BLOCKS, FEWEST_BLOCKS = 32, 8
"""Stretches of time whose spread is the standard error where there is a single sequence; the fewest that tell."""


@dataclass(frozen=True, eq=False)
class LyapunovSpectrum:
    """Lyapunov exponents of a driven map, with their error bars and how they were measured."""

    exponents: Tensor
    """(K,) nats per step, mean over sequences, largest first; ``-inf`` for a dead direction, NaN where unknown: where
    states overflow, or where too long an interval lost a direction."""
    stderr: Tensor
    """(K,) nats per step: spread between sequences over the root of their number. For a single sequence, the spread
    between stretches of time, if there are at least 8; else NaN."""
    per_sequence: Tensor
    """(B, K) nats per step, rows as in the inputs; NaN for a sequence that ended within the transient."""
    trusted: Tensor
    """(K,) bool: within the precision law, so that rounding the tangents moved it by less than 1e-3."""
    dimension: int
    """D, the dimension of the whole state; K of its exponents were measured."""
    steps: int
    """Steps measured, of the longest sequence, after the transient."""
    sequences: int
    """B, the number of sequences measured."""
    transient: int
    """Steps run before growth counted."""
    interval: float
    """Mean number of steps between reorthonormalisations."""
    dtype: torch.dtype
    """Floating type in which the tangent vectors were propagated."""
    driven: bool
    """Whether an input drove the map; False for an autonomous one."""
    volume_rate: float
    r"""Mean :math:`\ln|\det J|` per step, computed without tangent vectors: what a whole spectrum must sum to.
    NaN where it would cost more than the measurement."""
    audit: float = math.nan
    """Where a whole spectrum was measured and ``volume_rate`` is not known: by how much the frame grew faster than
    ln|det J| says, in those intervals in which it was looked at."""
    parts: Mapping[str, LyapunovSpectrum] = field(default_factory=dict)
    """The layers this spectrum is the union of; empty for a single layer."""
    lengths: Tensor | None = None
    """(B,) steps measured of each sequence, after the transient, by which it weighs in the mean; None: all alike."""
    columns: Tensor | None = None
    """(K,) which column of the frame each exponent is of: close ones may be out of order there; None: in order."""

    @property
    def complete(self) -> bool:
        """Whether all exponents of the state were measured."""
        return len(self.exponents) == self.dimension

    @property
    def layers(self) -> Mapping[str, LyapunovSpectrum]:
        """The spectrum of each layer and direction, by name; a single layer has itself alone."""
        return self.parts or {"l0": self}

    @property
    def sum_rule_error(self) -> float:
        """Sum of the exponents less the volume rate, nats per step: a self-check, NaN for a partial spectrum.

        Where the volume rate would cost too much it is looked at in one interval in a while.
        """
        if self.parts:
            return sum(part.sum_rule_error for part in self.parts.values()) if self.complete else math.nan
        error = float(self.exponents.sum()) - self.volume_rate if self.complete else math.nan
        return self.audit if math.isnan(error) else error

    def __repr__(self) -> str:
        top = f"max {float(self.exponents[0]):+.4f} ± {float(self.stderr[0]):.4f}"
        trusted = f"{int(self.trusted.sum())} trusted"
        return (
            f"LyapunovSpectrum({len(self.exponents)} of {self.dimension} exponents, {top} nats/step, {trusted}, "
            f"{self.steps} steps × {self.sequences} sequences)"
        )

    @staticmethod
    def union(parts: Mapping[str, LyapunovSpectrum], k: int | None = None) -> LyapunovSpectrum:
        """The spectrum of independent or stacked cocycles: the sorted union of theirs.

        Exact for stacked layers in the limit of many steps, since the Jacobian of the stack is block triangular.

        Args:
            parts: Spectra by name; where their numbers of sequences differ, missing rows are NaN.
            k: Keep the leading k exponents; all if None.

        Raises:
            ValueError: If there are no parts.
        """
        if not parts:
            raise ValueError("parts must hold at least one spectrum; got none.")
        spectra = list(parts.values())
        rows = max(s.sequences for s in spectra)
        padded = [torch.cat([s.per_sequence, s.per_sequence.new_full((rows - s.sequences, len(s.exponents)), math.nan)])
                  for s in spectra]  # fmt: skip
        exponents, order = _sorted(torch.cat([s.exponents for s in spectra]))
        order = order[:k]
        return LyapunovSpectrum(
            exponents=exponents[:k],
            stderr=torch.cat([s.stderr for s in spectra])[order],
            per_sequence=torch.cat(padded, 1)[:, order],
            trusted=torch.cat([s.trusted for s in spectra])[order],
            dimension=sum(s.dimension for s in spectra),
            steps=min(s.steps for s in spectra),
            sequences=rows,
            transient=max(s.transient for s in spectra),
            interval=sum(s.interval for s in spectra) / len(spectra),
            dtype=min((s.dtype for s in spectra), key=_bits),
            driven=any(s.driven for s in spectra),
            volume_rate=sum(s.volume_rate for s in spectra),
            parts=dict(parts),
            lengths=max((s._lengths for s in spectra), key=len),
        )

    @staticmethod
    def pooled(spectra: Sequence[LyapunovSpectrum]) -> LyapunovSpectrum:
        """The spectrum of a map along all the sequences that it was measured along in several turns.

        With the same options, ``interval`` and ``dtype`` among them, it is that of one measurement of all of them.

        Args:
            spectra: Of the same map, with as many exponents.

        Raises:
            ValueError: If there are none, or they are not alike.
        """
        shapes = sorted({(s.dimension, len(s.exponents), tuple(s.parts)) for s in spectra})
        if len(shapes) != 1:
            raise ValueError(
                f"spectra must be of one map, with as many exponents each; got {len(spectra)} of "
                f"{[f'{k} of {dimension} exponents' for dimension, k, _ in shapes]}."
            )
        first = spectra[0]
        if len(spectra) == 1:
            return first
        if first.parts:
            parts = {name: LyapunovSpectrum.pooled([s.parts[name] for s in spectra]) for name in first.parts}
            return LyapunovSpectrum.union(parts, len(first.exponents))
        lengths = torch.cat([s._lengths for s in spectra])
        rates = torch.cat([s._by_column(s.per_sequence) for s in spectra])
        mean, error = _mean_and_error(rates * lengths.unsqueeze(1), lengths)
        exponents, order = _sorted(mean)
        trusted = torch.stack([s._by_column(s.trusted) for s in spectra]).all(0)[order]
        weights = [float(s._lengths.sum() / lengths.sum()) for s in spectra]
        return replace(
            first,
            exponents=exponents,
            stderr=error[order],
            per_sequence=rates[:, order],
            trusted=trusted & exponents.isfinite(),
            steps=max(s.steps for s in spectra),
            sequences=sum(s.sequences for s in spectra),
            interval=sum(weight * s.interval for weight, s in zip(weights, spectra, strict=True)),
            dtype=min((s.dtype for s in spectra), key=_bits),
            volume_rate=sum(weight * s.volume_rate for weight, s in zip(weights, spectra, strict=True)),
            audit=sum(weight * s.audit for weight, s in zip(weights, spectra, strict=True)),
            lengths=lengths,
            columns=order,
        )

    @property
    def _lengths(self) -> Tensor:
        """(B,) steps of each sequence, as weights."""
        return torch.full_like(self.per_sequence[:, 0], self.steps) if self.lengths is None else self.lengths

    def _by_column(self, values: Tensor) -> Tensor:
        """``(..., K)`` in the order of the frame's columns."""
        return values if self.columns is None else values[..., self.columns.argsort()]


class Frames:
    """Tangent frames at the end of the transient, kept for the next measurement of a system on the same inputs.

    While weights move little from one measurement to the next, a frame that has settled once need not settle again at
    the same place: the transient's tangents are saved. Every so often, and on other inputs, frames begin anew.

    Args:
        refresh: Measurements after which frames settle anew; in between they are as good as 16 steps of settling.
        most: Numbers that are kept at most, of all layers together.
    """

    def __init__(self, refresh: int = 4, most: int = 2**22) -> None:
        self.refresh, self.most = refresh, most
        self._kept: dict[str, Tensor] = {}
        self._driven_by: list[Tensor] = []
        self._age = 0

    def begin(self, inputs: Inputs | None, state: State | None) -> None:
        """Begin a measurement."""
        now: list[Tensor] = [] if state is None else list(as_parts(state))
        if isinstance(inputs, PackedSequence):
            now += [inputs.data, inputs.batch_sizes]
        elif inputs is not None:
            now.append(inputs)
        same = len(now) == len(self._driven_by) and all(map(_are_equal, now, self._driven_by))
        self._age += 1
        if not same or self._age >= self.refresh:
            self._kept, self._age = {}, 0
        self._driven_by = [part.detach().clone() for part in now] if not same else self._driven_by

    def get(self, name: str, like: Tensor) -> Tensor | None:
        """The frame kept of a layer, if it is of the same shape and on the same device as ``like``."""
        frame = self._kept.get(name)
        return frame if frame is not None and frame.shape == like.shape and frame.device == like.device else None

    def keep(self, name: str, frame: Tensor) -> None:
        """Keep a layer's frame ``(B, D, K)``, if there is room."""
        if frame.numel() + sum(other.numel() for other in self._kept.values()) <= self.most:
            self._kept[name] = frame.clone()


def _are_equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.device == b.device and torch.equal(a, b)


def lyapunov_spectrum(
    system: Any,
    inputs: Inputs | None,
    *,
    state: State | None = None,
    steps: int | None = None,
    k: int | None = None,
    transient: int = 0,
    interval: int | None = None,
    dtype: torch.dtype | None = None,
    tolerance: float | None = None,
    generator: torch.Generator | None = None,
    frames: Frames | None = None,
) -> LyapunovSpectrum:
    r"""Estimate the Lyapunov spectrum of a driven map by QR (Benettin's method).

    .. math:: \lambda_i = \frac{1}{N} \sum_{n=1}^{N} \ln |R^{(n)}_{ii}|, \qquad J_n Q_{n-1} = Q_n R^{(n)}

    Layers of a stack, and directions of a bidirectional layer, are cocycles of their own: each is measured alone
    (:attr:`LyapunovSpectrum.layers`), and the network's spectrum is their sorted union. Dropout is off, as in eval
    mode; the system, its mode and the random state are left as they were.

    Args:
        system: The map :math:`h_{t+1} = f(h_t, x_t)`: ``nn.RNN``, ``nn.GRU``, ``nn.LSTM``, one of torch's cells, or a
            callable ``cell(x, state) -> state`` whose state is a tensor ``(B, ...)`` or a tuple of them. The state is
            the whole state: (h, c) for an LSTM.
        inputs: For a module what its forward takes (batch first, unbatched and packed included); for a cell or a
            callable ``(T, B, ...)``; None for an autonomous map, with ``steps`` and, for a callable, ``state`` given.
        state: Initial state, as the system takes it; zeros if None.
        steps: Steps to run, the transient included; all the inputs have if None.
        k: Number of leading exponents, ``1 <= k <= D``; all of them if None. Cost grows with k.
        transient: Steps at the start during which state and frame settle and growth does not count.
        interval: Steps between reorthonormalisations; chosen by the precision law
            (:mod:`lightning_lyapunov.orthonormal`) if None.
        dtype: ``torch.float32`` or ``torch.float64``; if None the trajectory is float64, and so are the tangent
            vectors unless they spread so little that float32 loses nothing. With float32 the states are float32 too;
            what their rounding does to saturated gates, or in chaos, is not judged by ``trusted``.
        tolerance: Stop early, at the first look after 32 measured steps at which every exponent's standard error is
            below it, in nats per step.
        generator: Source of the initial frame; a private one with seed 0 if None.
        frames: Those of earlier measurements of the same system, as it changes, on the same inputs: a warm start. They
            are kept in it for the next time.

    Returns:
        The exponents ``(K,)``, each with its standard error, and how they were measured.

    Raises:
        ValueError: If an argument does not fit the system, holds NaN or infinite values, or leaves no step to measure;
            the message names the argument, what it was and what would do. What a cell of yours raises on the way is
            raised as it is.

    Source:
        Benettin et al., Meccanica 15 (1980) 9-30; compared with other methods in Geist et al., Prog. Theor. Phys. 83
        (1990) 875-893. For stacked and gated networks: Engelken, Wolf, Abbott, arXiv:2006.02427.

    Example:
        >>> import torch
        >>> from lightning_lyapunov import lyapunov_spectrum
        >>> def henon(_, state):
        ...     x, y = state[:, :1], state[:, 1:]
        ...     return torch.cat([1 - 1.4 * x**2 + y, 0.3 * x], 1)
        >>> start = torch.zeros(1, 2, dtype=torch.float64)
        >>> spectrum = lyapunov_spectrum(henon, None, state=start, steps=4000, transient=100)
        >>> [round(float(e), 1) for e in spectrum.exponents]
        [0.4, -1.6]
    """
    system = unwrap(system)
    _check_options(k, transient, interval, dtype, tolerance)
    with measuring(system, device_of(system, inputs, state)):
        paths = trajectories(system, inputs, state, steps, dtype)
        dimension = sum(path.recurrence.state_size for path in paths.values())
        if k is not None and k > dimension:
            raise ValueError(f"k must lie in [1, {dimension}], the dimension of the state; got {k}.")
        driven = inputs is not None
        if frames is not None:
            frames.begin(inputs, state)
        parts = {
            name: _measure(path, k, transient, interval, dtype, tolerance, generator, driven, frames, name)
            for name, path in paths.items()
        }
        return next(iter(parts.values())) if len(parts) == 1 else LyapunovSpectrum.union(parts, k)


def _check_options(
    k: int | None, transient: int, interval: int | None, dtype: torch.dtype | None, tolerance: float | None
) -> None:
    if k is not None and k < 1:
        raise ValueError(f"k must be at least 1, or None for the whole spectrum; got {k}.")
    if transient < 0:
        raise ValueError(f"transient must be at least 0; got {transient}.")
    if interval is not None and interval < 1:
        raise ValueError(f"interval must be at least 1, or None for the precision law to choose; got {interval}.")
    if dtype not in (None, torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float32, torch.float64 or None; got {dtype}.")
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"tolerance must be above 0 nats per step, or None; got {tolerance}.")


def _measure(
    path: Trajectory,
    k: int | None,
    transient: int,
    interval: int | None,
    dtype: torch.dtype | None,
    tolerance: float | None,
    generator: torch.Generator | None,
    driven: bool,
    frames: Frames | None,
    name: str,
) -> LyapunovSpectrum:
    """The spectrum of one map along its trajectory."""
    steps, (sequences, size), device = len(path.running), path.initial.shape, path.initial.device
    k = min(k or size, size)
    if transient >= steps:
        raise ValueError(f"transient must leave at least one of the {steps} steps to measure; got {transient}.")

    frame = random_frame(size, k, device, generator).expand(sequences, size, k)
    may_narrow = dtype is None and path.recurrence.to(torch.float32).dtype == torch.float32
    counted = sum(path.running[transient:])
    law = PrecisionLaw(path.recurrence.dtype, interval, may_narrow=may_narrow, limit=CHUNK, steps=counted)
    segments = _segments(path, transient)
    order = path.order
    tally = _Tally(sequences, segments, k, device)
    if segments > 1:
        path, frame = _cut(path, transient, segments, frame, law, tally)
    elif frames is not None and (settled := frames.get(name, frame)) is not None:
        path.skip(transient)
        frame = settled
    else:
        frame = _advance(path, transient, frame, law, tally, settling=True)
        if frames is not None and transient > 0:
            frames.keep(name, frame)
    _advance(path, len(path.running), frame, law, tally, tolerance=tolerance)
    exponents, stderr, per_sequence = tally.averages()
    exponents, ranks = _sorted(exponents)
    return LyapunovSpectrum(
        exponents=exponents,
        stderr=stderr[ranks],
        per_sequence=_in_users_order(per_sequence, order)[:, ranks],
        trusted=tally.trusted[ranks] & exponents.isfinite() & tally.is_consistent,
        dimension=size,
        steps=tally.steps,
        sequences=sequences,
        transient=transient,
        interval=tally.interval,
        dtype=tally.dtype,
        driven=driven,
        volume_rate=tally.volume_rate(),
        audit=tally.audit(),
        lengths=_in_users_order(tally.lengths, order),
        columns=ranks,
    )


def _segments(path: Trajectory, transient: int) -> int:
    """Pieces of time to run side by side: more than one where sequences are so few that they leave the machine idle."""
    steps, sequences = len(path.running) - transient, len(path.initial)
    if not path.recurrence.is_pure or sequences > FEW or path.running[-1] < sequences:
        return 1
    return max(1, min(SEGMENTS // sequences, steps // SHORTEST_SEGMENT))


def _cut(
    path: Trajectory, transient: int, count: int, frame: Tensor, law: PrecisionLaw, tally: _Tally
) -> tuple[Trajectory, Tensor]:
    """The time after the transient as ``count`` pieces, each a sequence of its own, and frames settled at their starts.

    The states are those of the one long path. Each frame begins anew and settles in the steps before its piece.
    """
    inputs, sequences, total = path.inputs, len(path.initial), len(path.running)
    length = math.ceil((total - transient) / count)
    starts = [transient + i * length for i in range(count)]
    first = _advance(path, transient, frame, law, tally, settling=True)
    states = [path.state]
    for start in starts[1:]:
        path.skip(start - BURN_IN)
        states.append(path.state)
    before = torch.cat([inputs[start - BURN_IN : start] for start in starts[1:]], 1)
    settling = Trajectory(path.recurrence, before, torch.cat(states[1:]), [before.shape[1]] * BURN_IN)
    rest = _advance(settling, BURN_IN, frame.repeat(count - 1, 1, 1), law, tally, settling=True)
    pieces = [inputs[start : start + length] for start in starts]
    missing = length - len(pieces[-1])
    pieces[-1] = torch.cat([pieces[-1], pieces[-1].new_zeros(missing, *pieces[-1].shape[1:])])
    running = [count * sequences] * (length - missing) + [(count - 1) * sequences] * missing
    state = torch.cat([states[0], settling.state])
    return Trajectory(path.recurrence, torch.cat(pieces, 1), state, running), torch.cat([first.to(rest.dtype), rest])


def _advance(
    path: Trajectory,
    stop: int,
    frame: Tensor,
    law: PrecisionLaw,
    tally: _Tally,
    *,
    settling: bool = False,
    tolerance: float | None = None,
) -> Tensor:
    """Push the frame along the path up to a step, and count what it does unless it is settling; the frame there."""
    while (start := path.time) < stop:
        factors = path.follow(min(start + law.stretch, stop))
        running = path.running[start : path.time]
        settled, growth, gap, failed = _push(path.recurrence, factors, running, frame, law)
        while law.refuses(gap, failed):
            settled, growth, gap, failed = _push(path.recurrence, factors, running, frame, law)
        frame = settled
        tally.judge(growth.gap, law.budget)
        if not settling:
            tally.add(growth, law.dtype, running, *_volumes(path.recurrence, factors, growth, frame.shape[-1]))
            if tolerance is not None and tally.is_within(tolerance):
                break
        law.learn(gap, growth.intervals)
    return frame


def _push(
    recurrence: Recurrence, factors: Factors, running: list[int], frame: Tensor, law: PrecisionLaw
) -> tuple[Tensor, Growth, float, bool]:
    """Push the frame along a stretch as the law allows; with the worst gap, and whether it broke down."""
    factors = tuple(f.to(law.dtype) if f.is_floating_point() else f for f in factors)
    frame, growth = push_along(
        recurrence.to(law.dtype),
        factors,
        running,
        frame.to(law.dtype),
        law.interval,
        may_use_blocks=law.may_use_blocks,
    )
    # The one time per stretch that the device is waited for.
    gap, failed = torch.stack([growth.gap.amax(), growth.failed.to(growth.gap)]).tolist()
    return frame, growth, gap, bool(failed)


def _volumes(recurrence: Recurrence, factors: Factors, growth: Growth, k: int) -> tuple[Tensor | None, Tensor | None]:
    """ln|det J| ``(T, B)`` if it is cheap; else, of a whole frame, its sum over the last interval of one sequence.

    Cheap is a closed form, and LU of a small Jacobian where pushing k directions costs about as much.
    """
    closed = recurrence.log_volume(factors)
    if closed is not None:
        return closed, None
    if recurrence.state_size <= min(2 * k, SMALL):
        return recurrence.dense_log_volume(factors), None
    if recurrence.state_size > k:
        return None, None
    return None, recurrence.dense_log_volume(tuple(factor[-growth.last_steps :, :1] for factor in factors)).sum()


class _Tally:
    """Growth summed over the measured stretches, and what follows from it.

    Rows are sequences, or pieces of them in time: piece after piece, in each all sequences.
    """

    def __init__(self, sequences: int, pieces: int, k: int, device: torch.device) -> None:
        self.intervals = 0
        self.dtype = torch.float64
        self.trusted = torch.ones(k, dtype=torch.bool, device=device)
        self._pieces, self._pushed = pieces, 0
        self._log = torch.zeros(sequences * pieces, k, dtype=widest_dtype(device), device=device)
        self._steps_of = [0] * (sequences * pieces)
        self._stretches: list[list[tuple[Tensor, int]]] = [[] for _ in range(pieces)]  # of a single sequence
        self._volume: Tensor | float | None = 0.0
        self._audits: list[Tensor] = []

    def judge(self, gap: Tensor, budget: float) -> None:
        """Trust no direction that rounding had a hand in, nor any after it, as these are what was left of it."""
        self.trusted &= (gap.amax(0) <= budget).cummin(0).values

    def add(
        self,
        growth: Growth,
        dtype: torch.dtype,
        running: list[int],
        log_volume: Tensor | None,
        audited: Tensor | None,
    ) -> None:
        self._log = self._log + growth.log
        self.dtype = min(self.dtype, dtype, key=_bits)
        self.intervals += growth.intervals
        self._pushed += len(running)
        ran = [sum(rows > row for rows in running) if row >= running[-1] else len(running) for row in range(running[0])]
        for row, steps in enumerate(ran):
            self._steps_of[row] += steps
        if len(self._steps_of) == self._pieces:  # a single sequence: its error bar comes from stretches of time
            for row, steps in enumerate(ran):
                self._stretches[row].append((growth.log[row], steps))
        self._add_volume(log_volume, running)
        if audited is not None:
            self._audits.append((growth.last[0] - audited) / growth.last_steps)

    def _add_volume(self, log_volume: Tensor | None, running: list[int]) -> None:
        if log_volume is None or self._volume is None:
            self._volume = None
            return
        row = torch.arange(log_volume.shape[1], device=log_volume.device)
        active = row < torch.tensor(running, device=log_volume.device).unsqueeze(1)
        self._volume = self._volume + torch.where(active, log_volume, 0.0).sum()

    @property
    def steps(self) -> int:
        """Of the longest sequence."""
        return max(self._steps_of_sequences())

    @property
    def lengths(self) -> Tensor:
        """(B,) steps of each, in the type of the exponents."""
        return torch.tensor(self._steps_of_sequences(), dtype=self._log.dtype, device=self._log.device)

    def _steps_of_sequences(self) -> list[int]:
        """(B,) steps of each, all its pieces together."""
        sequences = len(self._steps_of) // self._pieces
        return [sum(self._steps_of[row::sequences]) for row in range(sequences)]

    @property
    def interval(self) -> float:
        """Mean steps between reorthonormalisations."""
        return self._pushed / self.intervals

    def volume_rate(self) -> float:
        return math.nan if self._volume is None else float(self._volume) / sum(self._steps_of)

    def audit(self) -> float:
        """Mean by which a whole frame grew faster than ln|det J| says, nats per step; NaN if that was not looked at."""
        return float(torch.stack(self._audits).mean()) if self._audits else math.nan

    @property
    def is_consistent(self) -> Tensor:
        """() bool: that all exponents are within the law is not at odds with the volume where that was looked at."""
        wrong = abs(self.audit()) > 10 * TOLERANCE
        return ~(self.trusted.all() & wrong)

    def averages(self) -> tuple[Tensor, Tensor, Tensor]:
        """Exponents ``(K,)``, their standard errors ``(K,)`` and the exponents of each sequence ``(B, K)``."""
        log = self._log.unflatten(0, (self._pieces, -1)).sum(0)
        steps = self.lengths
        mean, error = _mean_and_error(log, steps)
        if len(log) == 1:
            error = _mean_and_error(*self._blocks())[1]
        return mean, error, log / steps.unsqueeze(1)

    def is_within(self, tolerance: float) -> bool:
        """Whether enough was measured for every standard error to be below the tolerance; dead directions have none."""
        exponents, error, _ = self.averages()
        return self.steps >= CHUNK and bool((error[exponents.isfinite()] < tolerance).all())

    def _blocks(self) -> tuple[Tensor, Tensor]:
        """The stretches of a single sequence joined into at most :data:`BLOCKS`: growth ``(S, K)`` and steps (S,)."""
        stretches = [stretch for piece in self._stretches for stretch in piece]
        joined = math.ceil(len(stretches) / BLOCKS)
        groups = [stretches[i : i + joined] for i in range(0, len(stretches), joined)]
        groups = groups if len(groups) >= FEWEST_BLOCKS else groups[:1]
        log = torch.stack([torch.stack([log for log, _ in group]).sum(0) for group in groups])
        return log, torch.tensor([sum(n for _, n in group) for group in groups], dtype=log.dtype, device=log.device)


def _mean_and_error(log: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Mean rate (K,) of samples that grew by ``log`` ``(S, K)`` in ``steps`` (S,), and its standard error (K,).

    Samples weigh by their steps; with equal steps the error is the usual one, the standard deviation over √S.
    """
    log, steps = log[steps > 0], steps[steps > 0]
    mean = log.sum(0) / steps.sum()
    if len(log) < 2:
        return mean, torch.full_like(mean, math.nan)
    weights = (steps / steps.sum()).unsqueeze(1)
    variance = (weights * (log / steps.unsqueeze(1) - mean)).square().sum(0) * len(log) / (len(log) - 1)
    return mean, variance.sqrt()


def _sorted(exponents: Tensor) -> tuple[Tensor, Tensor]:
    """Largest first, the unknown last."""
    order = exponents.sort(descending=True, stable=True).indices  # torch holds NaN for the largest
    order = order.roll(-int(exponents.isnan().sum()))
    return exponents[order], order


def _bits(dtype: torch.dtype) -> int:
    return torch.finfo(dtype).bits


def _in_users_order(rows: Tensor, order: Tensor | None) -> Tensor:
    """Undo the sorting of sequences by length."""
    return rows if order is None else rows[order.argsort()]
