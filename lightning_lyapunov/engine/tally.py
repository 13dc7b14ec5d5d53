"""Raw sums of a measurement: growth added up by sequence and by time, from which a spectrum follows at the very end.

Sums of several measurements of one chain add up, whoever made them; means and error bars do not. So ranks, turns and
pieces of time hand on tallies, and :meth:`Tally.spectrum` computes once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lightning_lyapunov.engine.precision import TOLERANCE
from lightning_lyapunov.engine.spectrum import (
    LocalExponents,
    LyapunovSpectrum,
    SequenceGrowth,
    largest_first,
    narrowest,
)
from lightning_lyapunov.engine.statistics import agree, agree_in_pairs, half_width, mean_and_error
from lightning_lyapunov.engine.visited import Visited

BLOCK, MOST_BLOCKS = 16, 32
"""Steps of a block, whose spread is the standard error where there is a single sequence; blocks at most, so that those
of a long sequence are longer."""
FEWEST_STEPS_ALONE = 64
"""Measured steps of a single sequence from which on its blocks tell."""
BIAS = 0.4
"""Nats over the measured steps: what frame and start leave in a short measurement, twice the scale of it seen."""
FEWEST_STEPS = 8
"""Measured steps below which nothing has settled."""
NEGLIGIBLE = 1e-4
"""Nats per step by which halves may differ however surely they do, as where a network comes to rest."""
DISAGREEING = 0.15
"""Share of the exponents whose halves may disagree before none of them has settled."""


@dataclass(frozen=True, eq=False)
class Along:
    """Growth along the sequences, block by block, summed over those that run through a block."""

    starts: list[int]
    """(S,) step before which a block begins."""
    ends: list[int]
    """(S,) step before which it ends; blocks follow each other without a gap."""
    log: Tensor
    """``(S, K)`` nats, summed over the sequences."""
    weights: list[int]
    """(S,) steps made in it, of all sequences together."""
    pushes: Tensor
    """``(S, B)`` nats: how the first vector of each sequence's frame grew in it, rows as in the inputs; 0 where the
    sequence had ended."""

    @staticmethod
    def merge(several: Sequence[Along]) -> Along:
        """The sum of several, in blocks whose ends all of them have as far as they go."""
        longest = max(several, key=lambda one: one.ends[-1])
        shared = set(longest.ends)
        for one in several:
            shared &= {end for end in longest.ends if end > one.ends[-1]} | set(one.ends)
        ends = sorted(shared | {longest.ends[-1]})
        starts = [longest.starts[0], *ends[:-1]]
        log, weights = longest.log.new_zeros(len(ends), longest.log.shape[1]), [0] * len(ends)
        pushes = [one.pushes.new_zeros(len(ends), one.pushes.shape[1]) for one in several]
        for one, own in zip(several, pushes, strict=True):
            for place, (start, end) in enumerate(zip(starts, ends, strict=True)):
                inside = [i for i, e in enumerate(one.ends) if start < e <= end]
                if inside:
                    log[place] += one.log[inside].sum(0)
                    own[place] = one.pushes[inside].sum(0)
                    weights[place] += sum(one.weights[i] for i in inside)
        return Along(starts, ends, log, weights, torch.cat(pushes, 1))

    def leading(self, k: int) -> Along:
        """The same of the first k directions."""
        return replace(self, log=self.log[:, :k])

    def to(self, device: torch.device | str) -> Along:
        """The same on another device."""
        return replace(self, log=self.log.to(device), pushes=self.pushes.to(device))

    def exponents(self, order: Tensor, lengths: list[int]) -> LocalExponents:
        """What follows from it.

        Args:
            order: ``(K,)`` of the directions.
            lengths: (B,) all steps of each sequence.
        """
        starts, ends = torch.tensor(self.starts), torch.tensor(self.ends)
        rates = self.log[:, order] / self.log.new_tensor(self.weights).unsqueeze(1)
        made = torch.minimum(ends.unsqueeze(1), torch.tensor(lengths)) - starts.unsqueeze(1)
        made = torch.where(made > 0, made, math.nan).to(self.pushes)
        return LocalExponents(starts, ends, rates, self.pushes / made)


@dataclass(eq=False)
class Tally:
    """Raw sums of a measurement of one chain along B sequences with K directions."""

    log: Tensor
    """``(2, B, K)`` nats: growth in the first and in the second half of each sequence's measured steps."""
    steps: Tensor
    """``(2, B)`` int, on the CPU: how many steps these are."""
    lengths: list[int]
    """(B,) all steps of each sequence."""
    transients: list[int]
    """(B,) those before growth counted."""
    trusted: Tensor
    """(K,) bool: within the precision law all along."""
    dimension: int
    driven: bool
    along: Along | None = None
    volume: Tensor | None = None
    r"""() sum of :math:`\ln|\det J|` over all measured steps; None if it is not known."""
    audits: list[Tensor] = field(default_factory=list)
    """() each: by how much a whole frame grew faster than ln|det J| says, nats per step, where it was looked at."""
    intervals: int = 0
    pushed: int = 0
    """Steps that the intervals add up to."""
    dtype: torch.dtype = torch.float64
    may_settle: bool = True
    """Whether it began with frames of its own and ran to the end."""
    again: Tensor | None = None
    """``(B, K)`` nats per step: rates of the same sequences from a second start, if there was one."""
    growth: SequenceGrowth | None = None
    visited: Visited | None = None
    """The states that the sequences came through; None if they are not known."""

    @staticmethod
    def merge(several: Sequence[Tally]) -> Tally:
        """The tally of all sequences of several tallies of one chain; of the directions that all of them have.

        Raises:
            ValueError: If there are none, or they are not of one chain.
        """
        sizes = sorted({one.dimension for one in several})
        if len(sizes) != 1:
            raise ValueError(f"tallies must be of one map; got {len(several)} of states of dimension {sizes}.")
        if len(several) == 1:
            return several[0]
        k = min(one.log.shape[-1] for one in several)
        several = [one.leading(k) for one in several]
        volumes = [one.volume for one in several]
        along = [one.along for one in several if one.along is not None]
        again = [one.again for one in several]
        grown = [one.growth for one in several]
        return Tally(
            log=torch.cat([one.log for one in several], 1),
            steps=torch.cat([one.steps for one in several], 1),
            lengths=[n for one in several for n in one.lengths],
            transients=[n for one in several for n in one.transients],
            trusted=torch.stack([one.trusted for one in several]).all(0),
            dimension=several[0].dimension,
            driven=several[0].driven,
            along=Along.merge(along) if along else None,
            volume=sum(volumes) if all(v is not None for v in volumes) else None,  # type: ignore[arg-type]
            audits=[audit for one in several for audit in one.audits],
            intervals=sum(one.intervals for one in several),
            pushed=sum(one.pushed for one in several),
            dtype=narrowest(one.dtype for one in several),
            may_settle=all(one.may_settle for one in several),
            again=torch.cat(again) if all(a is not None for a in again) else None,  # type: ignore[arg-type]
            growth=SequenceGrowth.merge(grown) if all(g is not None for g in grown) else None,  # type: ignore[arg-type]
            visited=Visited.merge([one.visited for one in several]),
        )

    def leading(self, k: int) -> Tally:
        """The same of the first k directions of the frame."""
        if k == self.log.shape[-1]:
            return self
        return replace(
            self,
            log=self.log[..., :k],
            trusted=self.trusted[:k],
            along=None if self.along is None else self.along.leading(k),
            audits=[],
            again=None if self.again is None else self.again[:, :k],
        )

    def to(self, device: torch.device | str) -> Tally:
        """The same on another device."""
        return replace(
            self,
            log=self.log.to(device),
            trusted=self.trusted.to(device),
            volume=None if self.volume is None else self.volume.to(device),
            again=None if self.again is None else self.again.to(device),
            audits=[audit.to(device) for audit in self.audits],
            along=None if self.along is None else self.along.to(device),
            growth=None if self.growth is None else self.growth.to(device),
            visited=None if self.visited is None else self.visited.to(device),
        )

    # ---------------------------------------------------------------- what follows from it

    def spectrum(self, k: int) -> LyapunovSpectrum:
        """The leading k exponents, with everything that is known of them.

        Raises:
            ValueError: If no step was measured.
        """
        if not self.steps.any():
            raise ValueError(
                f"transient must leave at least one of the {max(self.lengths)} steps to measure; got "
                f"{min(self.transients)}."
            )
        sums, steps = self.log.sum(0), self.steps.sum(0).to(self.log)
        mean, stderr, samples = self._mean(sums, steps)
        measured = float(steps[steps > 0].mean())
        error = torch.hypot(half_width(stderr, samples), torch.full_like(stderr, BIAS / measured))
        exponents, order = largest_first(mean)
        order = order[:k]
        exponents = exponents[:k]
        audit = float(torch.stack(self.audits).mean()) if self.audits else math.nan
        is_consistent = not (bool(self.trusted.all()) and abs(audit) > 10 * TOLERANCE)
        longest = int(steps.argmax())
        return LyapunovSpectrum(
            exponents=exponents,
            stderr=stderr[order],
            error=error[order],
            per_sequence=(sums / steps.unsqueeze(1))[:, order],
            trusted=self.trusted[order] & exponents.isfinite() & is_consistent,
            settled=self._settled(order, measured) & ~exponents.isnan(),
            dimension=self.dimension,
            steps=int(steps.max()),
            sequences=len(self.lengths),
            transient=self.transients[longest],
            interval=self.pushed / self.intervals,
            dtype=self.dtype,
            driven=self.driven,
            volume_rate=math.nan if self.volume is None else float(self.volume) / float(steps.sum()),
            audit=audit,
            growth=self.growth,
            visited=self.visited,
            local=None if self.along is None else self.along.exponents(order, self.lengths),
        )

    def is_within(self, tolerance: float, k: int) -> bool:
        """Whether the standard errors of the leading k are all below a tolerance; dead directions have none."""
        steps = self.steps.sum(0).to(self.log)
        mean, error, _ = self._mean(self.log.sum(0), steps)
        exponents, order = largest_first(mean)
        return bool((error[order[:k]][exponents[:k].isfinite()] < tolerance).all())

    def _mean(self, sums: Tensor, steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Exponents (K,), their standard errors (K,), and how many samples these come from (K,)."""
        mean, error, samples = mean_and_error(sums, steps)
        if len(sums) > 1:
            return mean, error, samples
        log, weights = self._blocks()
        if len(log) * BLOCK < FEWEST_STEPS_ALONE or float(steps) < FEWEST_STEPS_ALONE:
            return mean, error, samples
        joined = math.ceil(len(log) / MOST_BLOCKS)
        if joined > 1:
            log = torch.stack([part.sum(0) for part in log.split(joined)])
            weights = torch.stack([part.sum() for part in weights.split(joined)])
        _, error, samples = mean_and_error(log, weights)
        return mean, error.masked_fill(~mean.isfinite(), math.nan), samples

    def _blocks(self) -> tuple[Tensor, Tensor]:
        """Measured growth of a single sequence in blocks of 16 steps ``(S, K)``, and their steps (S,)."""
        assert self.along is not None
        begin = self.transients[0]
        groups: dict[int, list[int]] = {}
        for i, start in enumerate(self.along.starts):
            if start >= begin:
                groups.setdefault((start - begin) // BLOCK, []).append(i)
        log = torch.stack([self.along.log[inside].sum(0) for inside in groups.values()])
        return log, log.new_tensor([sum(self.along.weights[i] for i in inside) for inside in groups.values()])

    def _settled(self, order: Tensor, measured: float) -> Tensor:
        """Which of the exponents, in this order, may be read as rates in the long run."""
        none = torch.zeros_like(order, dtype=torch.bool)
        counted = [(n, t) for n, t in zip(self.lengths, self.transients, strict=True) if n > t]
        if measured < FEWEST_STEPS or not self.may_settle or any(t < min(n / 4, 32) for n, t in counted):
            return none
        if len(self.lengths) == 1:
            log, steps = self._blocks()
            if float(steps.sum()) < FEWEST_STEPS_ALONE:
                return none
            rates = (log / steps.unsqueeze(1))[:, order]
            half = len(rates) // 2
            agreeing = agree(rates[:half], rates[half:], NEGLIGIBLE)
        else:
            enough = self.steps.sum(0) >= FEWEST_STEPS
            rates = self.log[:, enough.to(self.log.device)] / self.steps[:, enough].to(self.log).unsqueeze(-1)
            agreeing = agree_in_pairs(rates[0][:, order], rates[1][:, order], NEGLIGIBLE)
        agreeing = self._widely(agreeing)
        if self.again is not None:
            rates = self.log.sum(0) / self.steps.sum(0).to(self.log).unsqueeze(1)
            known = rates.isnan().logical_not().all(1)
            agreeing &= self._widely(agree_in_pairs(rates[known][:, order], self.again[known][:, order], NEGLIGIBLE))
        return agreeing

    @staticmethod
    def _widely(agreeing: Tensor) -> Tensor:
        """The same, if hardly any of them disagree; else none."""
        return agreeing & ((~agreeing).double().mean() <= DISAGREEING)
