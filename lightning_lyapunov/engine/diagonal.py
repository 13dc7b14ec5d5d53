r"""Recurrences that are diagonal in the state, with gates that the inputs alone decide: all exponents in closed form.

.. math:: h_{t+1} = a(x_t) \odot h_t + b(x_t), \qquad \lambda_i = \frac{1}{N} \sum_t \ln |a_i(x_t)|

The Jacobian is the diagonal of gates whatever the state, so there is no trajectory to follow, no frame to carry and
nothing to round: exponents are means of logarithms, and singular values over a sequence are sums of them. A state may
be as large as its gates can be held for a few steps.

A gate may act on several entries of the state: on both parts of a complex one, on a row or all of a memory that is a
matrix, :math:`S_{t+1} = \mathrm{diag}(a_t) S_t + k_t v_t^\top`. All of them have its exponent, and it is kept once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lightning_lyapunov.engine.isolation import measuring
from lightning_lyapunov.engine.precision import widest_dtype
from lightning_lyapunov.engine.sequences import Inputs, Sequences
from lightning_lyapunov.engine.settings import Settings
from lightning_lyapunov.engine.spectrum import LyapunovSpectrum, SequenceGrowth, largest_first
from lightning_lyapunov.engine.statistics import half_width
from lightning_lyapunov.engine.system import device_of
from lightning_lyapunov.engine.tally import BLOCK, MOST_BLOCKS, Along, Tally

LISTED = 4096
"""Exponents listed one by one where no number is asked for; quantiles tell of the others."""
QUANTILES = 256
"""Of a spectrum, at the middles of as many equal shares."""
AT_ONCE = 2**22
"""Gates held at once, sequences times steps times channels."""


@dataclass(frozen=True, eq=False)
class DiagonalSystem:
    r"""A recurrence :math:`h_{t+1} = a(x_t) \odot h_t + b(x_t)`, known by its gates.

    Raises:
        ValueError: For a value out of range.

    Example:
        >>> import torch
        >>> from lightning_lyapunov import lyapunov_spectrum
        >>> leak = DiagonalSystem(lambda x: torch.tensor([0.9, 0.5]).log())
        >>> [round(float(e), 3) for e in lyapunov_spectrum(leak, torch.zeros(100, 4, 1)).exponents]
        [-0.105, -0.693]
    """

    log_gates: Callable[[Tensor], Tensor]
    r"""Of inputs ``(T, B, ...)`` the gates' :math:`\ln |a|`, ``(T, B, C)`` or what broadcasts to it; no row acts on
    another, no step on an earlier one."""
    multiplicity: int = 1
    """Entries of the state that each gate acts on: D = C times as many."""
    context: int | None = None
    """Earlier steps that a gate depends on beside its own; None if on any of them, so that sequences are not cut."""
    module: nn.Module | None = None
    """Whose gates they are: it is in eval mode while they are computed, and as it was afterwards."""

    def __post_init__(self) -> None:
        if self.multiplicity < 1:
            raise ValueError(
                f"multiplicity must be at least 1, the entries that a gate acts on; got {self.multiplicity}."
            )
        if self.context is not None and self.context < 0:
            raise ValueError(f"context must be at least 0 steps, or None for the whole sequence; got {self.context}.")

    def dimension(self, inputs: Inputs | None) -> int:
        """D, that of the state.

        Raises:
            ValueError: If inputs or gates do not fit.
        """
        device = device_of(self.module, inputs, None)
        first = _sequences(inputs, None, device).values[:1, :1]
        with measuring(self.module, device):
            return self.multiplicity * self.rates(first).shape[-1]

    def rates(self, values: Tensor) -> Tensor:
        r""":math:`\ln |a|` ``(T, B, C)`` in float64 where the device has it.

        Raises:
            ValueError: If that is not what ``log_gates`` gives.
        """
        rates = self.log_gates(values.contiguous())  # a product of strided rows is made one step at a time
        steps, rows = values.shape[:2]
        if isinstance(rates, Tensor) and rates.is_floating_point() and 1 <= rates.dim() <= 3:
            try:
                return rates.detach().to(values.device, widest_dtype(values.device)).expand(steps, rows, -1)
            except RuntimeError:  # another number of steps or rows
                pass
        came = f"{tuple(rates.shape)} {rates.dtype}" if isinstance(rates, Tensor) else type(rates).__name__
        raise ValueError(
            f"system: log_gates must give ln|a|, real numbers ({steps}, {rows}, C) for inputs "
            f"{tuple(values.shape)}; got {came}."
        )


@dataclass(frozen=True, eq=False, repr=False)
class DiagonalSpectrum(LyapunovSpectrum):
    r"""All exponents of a diagonal recurrence, the leading ones listed.

    :attr:`error` is that of sampling alone, of each channel: there is no frame to settle. Among C channels that are
    alike the first is the luckiest, above the truth by about :math:`\sqrt{2 \ln C}` standard errors.
    """

    quantiles: Tensor = field(kw_only=True)
    """``(256,)`` nats per step, largest first: the exponents of all of the state, at the middles of equal shares."""

    def share_between(self, low: float, high: float) -> float:
        """Share of all exponents that lie between two, to one part in 256."""
        return float(((self.quantiles > low) & (self.quantiles < high)).double().mean())


@dataclass(eq=False)
class DiagonalTally(Tally):
    """Raw sums of all channels of a diagonal recurrence."""

    multiplicity: int = 1
    listed: int = LISTED
    """Exponents listed at most."""

    @staticmethod
    def merge(several: Sequence[Tally]) -> DiagonalTally:
        """As in the base."""
        first = several[0]
        assert isinstance(first, DiagonalTally)
        own = {"multiplicity": first.multiplicity, "listed": first.listed}
        return DiagonalTally(**(vars(Tally.merge(several)) | own))

    def spectrum(self, k: int) -> DiagonalSpectrum:
        """The leading k exponents, but not more than are listed, and the quantiles of all.

        Raises:
            ValueError: If no step was measured.
        """
        every = super().spectrum(self.log.shape[-1])
        k = min(k, self.listed)
        mean, stderr, samples = self._mean(self.log.sum(0), self.steps.sum(0).to(self.log))
        error = half_width(stderr, samples)[largest_first(mean)[1]]

        def listed(channels: Tensor) -> Tensor:
            few = channels[..., : math.ceil(k / self.multiplicity)]
            return few.repeat_interleave(self.multiplicity, -1)[..., :k]

        local = every.local
        if local is not None:
            local = replace(local, exponents=listed(local.exponents))
        parts = {name: listed(getattr(every, name)) for name in ("exponents", "stderr", "per_sequence")}
        marks = {name: listed(getattr(every, name)) for name in ("trusted", "settled")}
        own = parts | marks | {"error": listed(error), "local": local}
        return DiagonalSpectrum(**(vars(every) | own), quantiles=_quantiles(every.exponents))


def _quantiles(exponents: Tensor) -> Tensor:
    """Of exponents (C,), sorted."""
    places = (torch.arange(QUANTILES, device=exponents.device) + 0.5) / QUANTILES * len(exponents)
    return exponents[places.long()]


# ------------------------------------------------------------------ measuring


def measure_diagonal(
    system: DiagonalSystem, inputs: Inputs | None, settings: Settings, steps: int | None = None
) -> DiagonalTally:
    """Add up the logarithms of the gates along sequences.

    Args:
        system: Whose.
        inputs: ``(T, B, ...)``, or sequences as they were recorded.
        settings: How many exponents and singular values, and the transient; the rest is of frames and does not matter.
        steps: Steps to run; all there are if None.

    Raises:
        ValueError: If inputs or gates do not fit.
    """
    device = device_of(system.module, inputs, None)
    sequences = _sequences(inputs, steps, device)
    with measuring(system.module, device):
        tallies, order = list[Tally](), list[int]()
        for length in sorted(set(sequences.lengths), reverse=True):
            rows = [row for row, n in enumerate(sequences.lengths) if n == length]
            values = sequences.values[:length]
            tallies.append(_measure(system, values if len(rows) == len(sequences) else values[:, rows], settings))
            order += rows
    if sequences.order is not None:
        order = sequences.order[order].tolist()
    return _in_users_order(DiagonalTally.merge(tallies), torch.tensor(order).argsort())


def _measure(system: DiagonalSystem, values: Tensor, settings: Settings) -> DiagonalTally:
    """The tally of sequences ``(T, B, ...)`` of one length."""
    length, sequences = values.shape[:2]
    begin = min(settings.transient_of(length), length)
    half = begin + (length - begin) // 2
    blocks = list(pairwise(_edges(length, begin, half)))
    channels = system.rates(values[:1, :1]).shape[-1]
    log = torch.zeros(2, sequences, channels, dtype=widest_dtype(values.device), device=values.device)
    whole, along = torch.zeros_like(log[0]), log.new_zeros(len(blocks), channels)
    pushes = log.new_zeros(len(blocks), sequences)
    most = max(1, AT_ONCE // (length * channels))
    for first in range(0, sequences, most):
        rows = slice(first, first + most)
        before = log.new_zeros(())
        for place, (start, grown) in enumerate(_grown(system, values[:, rows], blocks, channels)):
            if start >= begin:
                log[int(start >= half), rows] += grown
            whole[rows] += grown
            along[place] = along[place] + grown.sum(0)
            so_far = _typical(whole[rows])
            pushes[place, rows] = torch.where(so_far.isneginf(), so_far, so_far - before)
            before = so_far
    dimension, weights = channels * system.multiplicity, [(b - a) * sequences for a, b in blocks]
    listed = settings.k or min(dimension, LISTED)
    count = settings.growth_of(listed, dimension, length)
    return DiagonalTally(
        log=log,
        steps=torch.tensor([[half - begin] * sequences, [length - half] * sequences]),
        lengths=[length] * sequences,
        transients=[settings.transient_of(length)] * sequences,
        trusted=torch.ones(channels, dtype=torch.bool, device=values.device),
        dimension=dimension,
        driven=True,
        along=Along([a for a, _ in blocks], [b for _, b in blocks], along, weights, pushes),
        volume=system.multiplicity * log.sum(),
        intervals=1,
        pushed=1,
        dtype=log.dtype,
        growth=_growth(whole, length, count, system.multiplicity) if count else None,
        multiplicity=system.multiplicity,
        listed=listed,
    )


def _grown(
    system: DiagonalSystem, values: Tensor, blocks: list[tuple[int, int]], channels: int
) -> Iterator[tuple[int, Tensor]]:
    """For each block its first step, and the sum of ln|a| over it ``(B, C)``; some blocks at a time."""
    most = len(values) if system.context is None else max(1, AT_ONCE // (values.shape[1] * channels))
    while blocks:
        begin = blocks[0][0]
        now = [block for block in blocks if block[1] - begin <= most] or blocks[:1]
        blocks = blocks[len(now) :]
        before = begin - min(begin, system.context or 0)
        rates = system.rates(values[before : now[-1][1]])
        for start, stop in now:
            yield start, rates[start - before : stop - before].sum(0)


def _edges(length: int, begin: int, half: int) -> list[int]:
    """Steps between which growth is added up: blocks of a size, and where measuring and its second half begin."""
    measured = length - begin
    size = max(1, min(measured // 8, BLOCK))
    size *= max(1, math.ceil(length / (2 * MOST_BLOCKS * size)))
    return sorted({*range(0, begin, size), *range(begin, length, size), half, length})


def _growth(whole: Tensor, length: int, count: int, multiplicity: int) -> SequenceGrowth:
    r"""That of products :math:`\mathrm{diag}(e^{l})`, l ``(B, C)`` their logarithms."""
    leading = whole.topk(math.ceil(count / multiplicity), -1).values.repeat_interleave(multiplicity, -1)[:, :count]
    return SequenceGrowth(leading, _typical(whole), torch.full((len(whole),), length))


def _typical(whole: Tensor) -> Tensor:
    r"""The gain (B,) of products :math:`\mathrm{diag}(e^{l})`, l ``(B, C)``: the root mean square growth of a push."""
    return (torch.logsumexp(2 * whole, -1) - math.log(whole.shape[-1])) / 2


def _in_users_order(tally: DiagonalTally, places: Tensor) -> DiagonalTally:
    rows = places.tolist()
    if rows == sorted(rows):
        return tally
    moved = places.to(tally.log.device)
    growth, along = tally.growth, tally.along
    if growth is not None:
        growth = SequenceGrowth(growth.per_sequence[moved], growth.gain_per_sequence[moved], growth.lengths[places])
    if along is not None:
        along = replace(along, pushes=along.pushes[:, moved])
    return replace(
        tally,
        log=tally.log[:, moved],
        steps=tally.steps[:, places],
        lengths=[tally.lengths[row] for row in rows],
        transients=[tally.transients[row] for row in rows],
        growth=growth,
        along=along,
    )


def _sequences(inputs: Inputs | None, steps: int | None, device: torch.device) -> Sequences:
    """Inputs as sequences, cut after ``steps``, finite, on the device, in the widest type."""
    if isinstance(inputs, PackedSequence):
        inputs = Sequences.of_packed(inputs)
    if isinstance(inputs, Tensor) and inputs.dim() >= 2:
        inputs = Sequences(inputs, [len(inputs)] * inputs.shape[1])
    if not isinstance(inputs, Sequences) or 0 in inputs.values.shape[:2]:
        came = f"shape {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else type(inputs).__name__
        came = f"{tuple(inputs.values.shape)}" if isinstance(inputs, Sequences) else came
        raise ValueError(
            f"inputs of a diagonal system must be a tensor (T, B, ...) of at least a step and a sequence; got {came}."
        )
    if steps is not None and not 1 <= steps <= len(inputs.values):
        raise ValueError(f"steps must lie in [1, {len(inputs.values)}], the steps of inputs; got {steps}.")
    inputs = inputs.cut(steps)
    values = inputs.values.detach().to(device)
    if values.is_floating_point():
        values = values.to(widest_dtype(device))
        if not torch.isfinite(values).all():
            raise ValueError("inputs hold NaN or infinite values; they must be finite.")
    return replace(inputs, values=values.clone() if values.is_inference() else values)
