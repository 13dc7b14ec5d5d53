"""What a measurement says: long-run rates, growth over a sequence, and how far either is to be believed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from lightning_lyapunov.engine.spectrum_json import SPECTRUM, check, completed, dumps, loads, read, why, written
from lightning_lyapunov.engine.statistics import half_width, mean_and_error
from lightning_lyapunov.engine.visited import Visited


@dataclass(frozen=True, eq=False)
class LocalExponents:
    """Exponents block by block along the sequences, of the same frame as the whole spectrum."""

    starts: Tensor
    """(S,) int: the step before which each block of 1 to 32 steps begins."""
    ends: Tensor
    """(S,) int: the step before which it ends."""
    exponents: Tensor
    """``(S, K)`` nats per step, mean over the sequences that run through the block; NaN where none does. Blocks within
    the transient are among them."""
    pushes: Tensor
    r"""``(S, B)`` nats per step: how a push grew in each block that was given to the state before the first one, in a
    random direction, rows as in the inputs; NaN where the sequence had ended. Times the steps of the blocks they sum to
    :math:`\ln\|J_T \cdots J_1 q\|`. It is the first vector of the frame, which no QR turns: soon it grows as the
    leading direction does. With a warm start it begins there, after the transient; of a diagonal map it is the root
    mean square over all directions."""

    def __repr__(self) -> str:
        return f"LocalExponents({len(self.starts)} blocks of steps, {self.exponents.shape[-1]} exponents)"

    @property
    def push(self) -> Tensor:
        """(S,) nats per step: mean of :attr:`pushes` over sequences; NaN where there is none.

        As everywhere, dead ones are left out where most live.
        """
        return _mean_and_spread(self.pushes)[0]

    @property
    def push_spread(self) -> Tensor:
        """(S,) nats per step: standard deviation of :attr:`pushes` between sequences; NaN of fewer than two."""
        return _mean_and_spread(self.pushes)[1]

    def brief(self, most: int) -> Tensor:
        """``(4, S' + 1)`` float32 on the CPU: start, end, mean and spread of the push in S' ≤ ``most`` joined blocks.

        The last column is of all of them together.
        """
        starts, ends, rates = self.starts.cpu(), self.ends.cpu(), self.pushes.double().cpu()
        made = torch.where(rates.isnan(), 0.0, (ends - starts).double().unsqueeze(1))
        nats = torch.where(made > 0, rates * made, 0.0)
        begin, steps = int(starts[0]), int(ends[-1] - starts[0])
        group = ((ends - begin - 1) * most).div(steps, rounding_mode="floor").unique(return_inverse=True)[1]
        joined = torch.zeros(2, int(group[-1]) + 1, rates.shape[1], dtype=torch.float64)
        joined.index_add_(1, group, torch.stack([nats, made]))
        joined = torch.cat([joined, joined.sum(1, keepdim=True)], 1)
        mean, spread = _mean_and_spread(joined[0] / joined[1])
        last = torch.cat([group[1:] != group[:-1], torch.tensor([True])])
        edges = torch.cat([starts[:1], ends[last]]).double()
        first, final = torch.cat([edges[:-1], edges[:1]]), torch.cat([edges[1:], edges[-1:]])
        return torch.stack([first, final, mean, spread]).float()


def _mean_and_spread(rates: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (S,) of rates ``(S, B)``, NaN unknown; dead ones left out where most live."""
    known, dead = ~rates.isnan(), rates.isneginf()
    used = known & ~(dead & (2 * dead.sum(1) < known.sum(1)).unsqueeze(1))
    count = used.sum(1)
    mean = torch.where(used, rates, 0.0).sum(1) / count
    squares = torch.where(used, rates - mean.unsqueeze(1), 0.0).square().sum(1)
    return mean, torch.where(count > 1, squares / (count - 1), math.nan).sqrt()


@dataclass(frozen=True, eq=False)
class SequenceGrowth:
    r"""What the product :math:`M = J_T \cdots J_1` of all Jacobians of a sequence does.

    Means are over sequences, of logarithms. A sequence in which nothing is left, :math:`-\infty`, is left out of them
    as long as most others live: one that dies among many does not make a typical one dead.
    """

    per_sequence: Tensor
    r"""``(B, G)`` nats: the leading :math:`\ln\sigma_i` of M, largest first."""
    gain_per_sequence: Tensor
    r"""(B,) nats: :math:`\tfrac12 \ln(\|M_h\|_F^2 / H)`, M_h the rows of what is seen of the last state."""
    lengths: Tensor
    """(B,) steps of each sequence."""

    @staticmethod
    def merge(several: Sequence[SequenceGrowth]) -> SequenceGrowth:
        """That of all their sequences, as many singular values each."""
        return SequenceGrowth(*(torch.cat([getattr(one, f.name) for one in several]) for f in fields(SequenceGrowth)))

    def to(self, device: torch.device | str) -> SequenceGrowth:
        """The same on another device."""
        return SequenceGrowth(*(getattr(self, f.name).to(device) for f in fields(self)))

    def __repr__(self) -> str:
        steps = float(self.lengths.double().mean())
        return (
            f"SequenceGrowth(gain {self.gain:+.3f} ± {self.gain_error:.3f} nats over {steps:.4g} steps, "
            f"{self.per_sequence.shape[1]} singular values, {len(self.lengths)} sequences)"
        )

    @property
    def log_singular_values(self) -> Tensor:
        r"""(G,) nats over the sequence: mean of :math:`\ln\sigma_i` over sequences."""
        return _over_sequences(self.per_sequence)[0]

    @property
    def stderr(self) -> Tensor:
        """(G,) nats: standard error of :attr:`log_singular_values`, from the spread between sequences."""
        return _over_sequences(self.per_sequence)[1]

    @property
    def error(self) -> Tensor:
        """(G,) nats: half-width of their 95 % bar, Student's factor times the standard error: there is no bias."""
        _, stderr, samples = _over_sequences(self.per_sequence)
        return half_width(stderr, samples)

    @property
    def gain(self) -> float:
        """Mean gain over sequences, nats."""
        return float(_over_sequences(self.gain_per_sequence.unsqueeze(1))[0])

    @property
    def gain_stderr(self) -> float:
        """Its standard error, nats."""
        return float(_over_sequences(self.gain_per_sequence.unsqueeze(1))[1])

    @property
    def gain_error(self) -> float:
        """Half-width of its 95 % bar, nats."""
        _, stderr, samples = _over_sequences(self.gain_per_sequence.unsqueeze(1))
        return float(half_width(stderr, samples))


def _over_sequences(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, standard error and number (G,) of what sequences ``(B, G)`` gave, each counting once."""
    return mean_and_error(values, values.new_ones(len(values)))


@dataclass(frozen=True, eq=False)
class LyapunovSpectrum:
    """Lyapunov exponents of a driven map and its growth over a sequence, with their errors and how they were measured.

    The two answer two questions. :attr:`exponents` are rates in the long run, for stability and chaos, and
    :attr:`settled` says whether the steps measured were enough to tell. :attr:`growth` is what happens between the
    first step and the last, exact over any number of steps, for gradients and memory.
    """

    exponents: Tensor
    """(K,) nats per step, mean over sequences, largest first; ``-inf`` for a dead direction, NaN where unknown: where
    states overflow, or where too long an interval lost a direction."""
    stderr: Tensor
    """(K,) nats per step: spread between sequences over the root of their number. For a single sequence, the spread
    between blocks of time, from 64 measured steps on; else NaN. Sampling error alone: :attr:`error` is the bar."""
    error: Tensor
    """(K,) nats per step: half-width of the 95 % bar, Student's factor times :attr:`stderr` and, in quadrature, 0.4
    nats over the measured steps for what start and frame leave in a short measurement."""
    per_sequence: Tensor
    """(B, K) nats per step, rows as in the inputs; NaN for a sequence that ended within the transient."""
    trusted: Tensor
    """(K,) bool: within the precision law, so that rounding the tangents moved it by less than 1e-3."""
    settled: Tensor
    """(K,) bool: may be read as a rate in the long run. At least 8 steps after a long enough transient, the halves of
    which agree, and at most 15 % of the exponents disagree."""
    dimension: int
    """D, the dimension of the whole state; K of its exponents were measured."""
    steps: int
    """Steps measured, of the longest sequence, after the transient."""
    sequences: int
    """B, the number of sequences measured."""
    transient: int
    """Steps run before growth counted, of the longest sequence."""
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
    growth: SequenceGrowth | None = None
    """Growth over the whole sequence, from its first step on; None where it was not asked for, or cannot be had: of
    the union of layers that are not one stack."""
    local: LocalExponents | None = None
    """Exponents along the sequence, block by block; None for a union of layers."""
    visited: Visited | None = None
    """The states that the sequences came through, the transient among them; None where they are not known."""
    parts: Mapping[str, LyapunovSpectrum] = field(default_factory=dict)
    """The layers this spectrum is the union of; empty for a single layer."""
    stacks: Mapping[str, SequenceGrowth] = field(default_factory=dict)
    """In a union of several modules the growth of each of those whose layers are one stack, by the module's name."""

    @property
    def log_singular_values(self) -> Tensor:
        r"""(G,) nats over the sequence: mean :math:`\ln\sigma_i` of :math:`J_T \cdots J_1`; (0,) if not known."""
        return self.exponents.new_empty(0) if self.growth is None else self.growth.log_singular_values

    @property
    def gain(self) -> float:
        """What a gradient grows by from the last step to the first, nats, root mean square; NaN if not known."""
        return math.nan if self.growth is None else self.growth.gain

    @property
    def state_mean(self) -> float:
        """Mean ``|h|`` over steps, sequences and units of the states visited (h, not c); NaN if not known."""
        return math.nan if self.visited is None else self.visited.mean_size

    @property
    def state_spread(self) -> float:
        """Standard deviation of h over the same; NaN if not known."""
        return math.nan if self.visited is None else self.visited.spread

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
        error = error if math.isfinite(error) else math.nan  # the volume of a sequence that died is nothing
        return self.audit if math.isnan(error) else error

    # ------------------------------------------------------------------ to be kept, shown and passed on

    def numpy(self) -> Any:
        """The exponents as an array of NumPy's, ``(K,)`` float64, nats per step, largest first; a copy on the CPU."""
        return self.exponents.detach().to("cpu", torch.float64, copy=True).numpy()

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values, as :meth:`to_json` writes them, and beside them the figures that follow from it.

        These are ``log_singular_values``, ``gain`` and their errors, ``state_mean``, ``state_spread`` and ``complete``.
        """
        return {"format": SPECTRUM, "unit": "nats/step", **written(self)}

    def to_json(self) -> str:
        """JSON on one line, which :meth:`from_json` makes the same spectrum of, to the last bit of every number.

        It is what ``lightning-lyapunov spectrum --format json`` writes, and ``lightning-lyapunov score`` reads. Null
        stands for what is not known, ``"inf"`` and ``"-inf"`` for what is infinite.
        """
        return dumps(self.to_dict())

    @staticmethod
    def from_json(text: str | bytes) -> LyapunovSpectrum:
        """The spectrum that :meth:`to_json`, the command line or an older version of either wrote, on the CPU.

        Older versions wrote no more than the figures of the whole: growth, layers and the exponents of each sequence
        are not known then; where there is no error it is two standard errors, and nothing has settled.

        Args:
            text: JSON; of a file ``Path("spectrum.json").read_text()``.

        Raises:
            ValueError: If it is not that, or of another format; the message says what is wrong.
        """
        try:
            return _of(loads(text, SPECTRUM))
        except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
            raise ValueError(f"text must be what LyapunovSpectrum.to_json wrote: {why(error)}.") from error

    def plot(self) -> Any:
        """The spectrum as a curve with its error: a ``matplotlib.figure.Figure``, which notebooks show by themselves.

        Elsewhere ``spectrum.plot().savefig("spectrum.png")``.

        Raises:
            ModuleNotFoundError: Without Matplotlib; the message says how to install it.
        """
        from lightning_lyapunov.figures.alone import spectrum_alone

        return spectrum_alone(self)

    def _repr_html_(self) -> str:
        """A small table, for notebooks."""
        from lightning_lyapunov.reading.notebook import table_of_spectrum

        return table_of_spectrum(self)

    def __repr__(self) -> str:
        top = f"max {float(self.exponents[0]):+.4f} ± {float(self.error[0]):.4f}"
        marks = f"{int(self.trusted.sum())} trusted, {int(self.settled.sum())} settled"
        return (
            f"LyapunovSpectrum({len(self.exponents)} of {self.dimension} exponents, {top} nats/step, {marks}, "
            f"{self.steps} steps × {self.sequences} sequences)"
        )

    @staticmethod
    def union(
        parts: Mapping[str, LyapunovSpectrum],
        k: int | None = None,
        growth: SequenceGrowth | None = None,
        stacks: Mapping[str, SequenceGrowth] | None = None,
    ) -> LyapunovSpectrum:
        """The spectrum of independent or stacked cocycles: the sorted union of theirs.

        Exact for stacked layers in the limit of many steps, since the Jacobian of the stack is block triangular. Each
        exponent keeps the error bar and the marks that it has in its layer.

        Args:
            parts: Spectra by name; where their numbers of sequences differ, missing rows are NaN.
            k: Keep the leading k exponents; all if None.
            growth: Of the layers together, if known: that over a sequence does not follow from theirs.
            stacks: Of those layers together that are one module's, by its name; a layer's name begins with it.

        Raises:
            ValueError: If there are no parts.
        """
        if not parts:
            raise ValueError("parts must hold at least one spectrum; got none.")
        spectra = list(parts.values())
        rows = max(s.sequences for s in spectra)
        padded = [torch.cat([s.per_sequence, s.per_sequence.new_full((rows - s.sequences, len(s.exponents)), math.nan)])
                  for s in spectra]  # fmt: skip
        exponents, order = largest_first(torch.cat([s.exponents for s in spectra]))
        order = order[:k]
        longest = max(spectra, key=lambda s: s.steps)
        return LyapunovSpectrum(
            exponents=exponents[:k],
            stderr=torch.cat([s.stderr for s in spectra])[order],
            error=torch.cat([s.error for s in spectra])[order],
            per_sequence=torch.cat(padded, 1)[:, order],
            trusted=torch.cat([s.trusted for s in spectra])[order],
            settled=torch.cat([s.settled for s in spectra])[order],
            dimension=sum(s.dimension for s in spectra),
            steps=min(s.steps for s in spectra),
            sequences=rows,
            transient=longest.transient,
            interval=sum(s.interval for s in spectra) / len(spectra),
            dtype=narrowest(s.dtype for s in spectra),
            driven=any(s.driven for s in spectra),
            volume_rate=sum(s.volume_rate for s in spectra),
            growth=growth,
            visited=Visited.merge([s.visited for s in spectra]),
            parts=dict(parts),
            stacks=dict(stacks or {}),
        )


def _of(content: dict[str, Any]) -> LyapunovSpectrum:
    """The spectrum of plain values, and of the layers among them."""
    known, layers = completed(content)
    made = read(LyapunovSpectrum, known)
    check(made)
    return replace(made, parts={name: _of(part) for name, part in layers.items()})


def largest_first(exponents: Tensor) -> tuple[Tensor, Tensor]:
    """Exponents (K,) sorted, the unknown last, and where each was."""
    order = exponents.sort(descending=True, stable=True).indices  # torch holds NaN for the largest
    order = order.roll(-int(exponents.isnan().sum()))
    return exponents[order], order


def narrowest(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """The floating type with the fewest bits."""
    return min(dtypes, key=lambda dtype: torch.finfo(dtype).bits)
