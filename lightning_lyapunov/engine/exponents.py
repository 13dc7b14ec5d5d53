r"""Long-run rates by Benettin's method: a frame pushed along a chain, what comes off at each QR added up.

.. math:: \lambda_i = \frac{1}{N} \sum_{n=1}^{N} \ln |R^{(n)}_{ii}|, \qquad J_n Q_{n-1} = Q_n R^{(n)}

Ours differs from the textbook's in four things. A QR is made as rarely as the precision law allows, and in float32
where that loses nothing. Each sequence has a frame of its own and its own number of steps. A few columns more than
asked for are carried, since after few steps the first of a frame need not be the fastest. A frame may begin where the
last measurement left it.

Source: Benettin et al., Meccanica 15 (1980) 9-30.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_lyapunov.engine.chain import Chain, Stretch
from lightning_lyapunov.engine.precision import PrecisionLaw, widest_dtype
from lightning_lyapunov.engine.tally import BLOCK, Along, Tally
from lightning_lyapunov.engine.tangent import Growth, carry

EARLIEST = 32
"""Measured steps after which a tolerance is looked at first."""


@dataclass(frozen=True)
class Counting:
    """Which steps of each row count, and where its second half begins; rows are sequences, or pieces of them in time.

    All by the clock of the row, which begins at 0 with its first step.
    """

    lengths: list[int]
    """(R,) steps of each row."""
    begins: list[int]
    """(R,) step from which on growth counts."""
    halves: list[int]
    """(R,) step from which on it counts for the second half."""
    pieces: int = 1
    """Pieces that a sequence is cut into; rows are ordered by piece, then by sequence."""
    offset: int = 0
    """Step of the sequence with which the first piece begins."""

    @staticmethod
    def of(lengths: list[int], transients: list[int]) -> Counting:
        """That of whole sequences."""
        begins = [min(t, n) for t, n in zip(transients, lengths, strict=True)]
        return Counting(lengths, begins, [t + (n - t) // 2 for t, n in zip(begins, lengths, strict=True)])

    @property
    def resolution(self) -> int:
        """Steps of a block in time: an eighth of what is measured, 16 at most."""
        longest = max(n - t for n, t in zip(self.lengths, self.begins, strict=True))
        return max(1, min(longest // 8, BLOCK))

    def cuts(self) -> set[int]:
        """Steps after which a frame must be orthonormal, so that what counts is told from what does not."""
        cuts = {*self.begins, *self.halves}
        if len(self.lengths) == self.pieces:  # a single sequence: blocks of time are its samples
            cuts |= {t for begin, end in zip(self.begins, self.lengths, strict=True) for t in range(begin, end, BLOCK)}
        return cuts


class Meter:
    """Pushes a frame along a chain, as the precision law allows, and adds up what it does.

    Args:
        chain: What it is pushed along.
        frame: ``(R, D, K)`` where it begins.
        law: How.
        counting: What counts.
    """

    def __init__(self, chain: Chain, frame: Tensor, law: PrecisionLaw, counting: Counting) -> None:
        self.chain, self.frame, self.law, self.counting = chain, frame, law, counting
        rows, _, self.k = frame.shape
        device = frame.device
        self.trusted = torch.ones(rows, self.k, dtype=torch.bool, device=device)
        self.dtype = chain.dtype
        self.intervals = self.pushed = 0
        self.audits: list[Tensor] = []
        self._volume: Tensor | None = torch.zeros((), dtype=widest_dtype(device), device=device)
        self._log = torch.zeros(2, rows, self.k, dtype=widest_dtype(device), device=device)
        self._steps = torch.zeros(2, rows, dtype=torch.long)
        self._starts, self._ends, self._weights = list[int](), list[int](), list[list[int]]()
        self._along: list[Tensor] = []  # (blocks, pieces, K) of each stretch
        self._pushes: list[Tensor] = []  # (blocks, rows) of each stretch
        self._cuts = counting.cuts()
        self._begins, self._halves = torch.tensor(counting.begins), torch.tensor(counting.halves)
        self._lengths = torch.tensor(counting.lengths)

    def advance(
        self,
        stop: int,
        *,
        counts: bool = True,
        watch: Callable[[int, Stretch, Growth], None] | None = None,
        with_triangles: bool = False,
        is_enough: Callable[[Meter], bool] | None = None,
    ) -> None:
        """Push the frame up to a step.

        Args:
            stop: That step.
            counts: Whether to add up what it does; trust is judged in any case.
            watch: Told of each stretch: its first step, its Jacobians and what they did.
            with_triangles: Whether that is to hold the triangles.
            is_enough: Asked after each stretch, once enough steps were measured, whether to end early.
        """
        law, chain = self.law, self.chain
        while (start := chain.time) < stop:
            stretch = chain.follow(min(start + law.stretch, stop))
            running = chain.running[start : chain.time]
            cuts = {t - start for t in range(start + 1, chain.time + 1) if t in self._cuts}
            growth = self._push(stretch, running, cuts, with_triangles)
            self.trusted &= (growth.gap <= law.budget).cummin(-1).values
            if counts:
                self._add(start, growth, running)
                self._add_volume(start, stretch, growth, running)
            if watch is not None:
                watch(start, stretch, growth)
            law.learn(float(growth.gap.amax()), len(growth.ends), max(growth.spans))
            if is_enough is not None and chain.time - min(self.counting.begins) >= EARLIEST and is_enough(self):
                break

    def _push(self, stretch: Stretch, running: list[int], cuts: set[int], with_triangles: bool) -> Growth:
        """Push the frame along a stretch, again and more carefully where the law refuses what came of it."""
        law = self.law
        while True:
            frame, growth = carry(
                stretch.steps(self.k, law.dtype),
                running,
                self.frame.to(law.dtype),
                law.interval,
                cuts=cuts,
                may_use_blocks=law.may_use_blocks,
                with_triangles=with_triangles,
            )
            # The one time per stretch that the device is waited for.
            gap, failed = torch.stack([growth.gap.amax(), growth.failed.to(growth.gap)]).tolist()
            if not law.refuses(gap, bool(failed)):
                self.frame = frame
                return growth

    # ---------------------------------------------------------------- adding up

    def _add(self, start: int, growth: Growth, running: list[int]) -> None:
        """Add the growth of a stretch that began at step ``start``."""
        counting, log = self.counting, growth.log.to(self._log.dtype)
        self.intervals += len(growth.ends)
        self.pushed += growth.ends[-1]
        self.dtype = min(self.dtype, self.law.dtype, key=lambda dtype: torch.finfo(dtype).bits)
        blocks = self._blocks(start, growth.ends, running)
        sums = torch.stack([log[first:last].sum(0) for first, last, _, _ in blocks])
        begins, halves, lengths = self._begins, self._halves, self._lengths
        firsts = torch.tensor([begin for _, _, begin, _ in blocks]).unsqueeze(1)
        lasts = torch.tensor([end for _, _, _, end in blocks]).unsqueeze(1)
        spans = torch.where(lasts <= lengths, lasts - firsts, 0)  # (S, R)
        for half, inside in enumerate((firsts < halves, firsts >= halves)):
            counted = inside & (firsts >= begins)
            mask = counted.to(sums.device).unsqueeze(-1)
            self._log[half] += torch.where(mask, sums, 0.0).sum(0)
            self._steps[half] += torch.where(counted, spans, 0).sum(0)
        self._along.append(sums.unflatten(1, (counting.pieces, -1)).sum(2))
        self._pushes.append(sums[..., 0].clone())
        self._starts += firsts[:, 0].tolist()
        self._ends += lasts[:, 0].tolist()
        self._weights += spans.unflatten(1, (counting.pieces, -1)).sum(2).tolist()

    def _blocks(self, start: int, ends: list[int], running: list[int]) -> list[tuple[int, int, int, int]]:
        """Intervals joined into blocks: first and last interval, first and last step; never across a cut."""
        blocks, first, begin, resolution = [], 0, 0, self.counting.resolution
        for place, end in enumerate(ends, 1):
            is_last = end == len(running)
            if is_last or end - begin >= resolution or start + end in self._cuts or running[end] < running[end - 1]:
                blocks.append((first, place, start + begin, start + end))
                first, begin = place, end
        return blocks

    def _add_volume(self, start: int, stretch: Stretch, growth: Growth, running: list[int]) -> None:
        if start + len(running) <= min(self.counting.begins):
            return
        volume = stretch.log_volume(self.k)
        if volume is None or self._volume is None:
            self._volume = None
            if volume is None and self.k == self.chain.size:
                span = growth.spans[-1]
                audited = stretch.log_volume_of_last(span)
                if audited is not None:
                    self.audits.append((growth.log[-1, 0].sum() - audited) / span)
            return
        time = torch.arange(start, start + len(running)).unsqueeze(1)
        counted = ((time >= self._begins) & (time < self._lengths)).to(volume.device)
        self._volume = self._volume + torch.where(counted, volume, 0.0).sum(dtype=self._volume.dtype)

    # ---------------------------------------------------------------- handing on

    def tally(self, lengths: list[int], transients: list[int], driven: bool) -> Tally:
        """What was added up, pieces joined, sequences in the user's order.

        Args:
            lengths: (B,) all steps of each whole sequence, in running order.
            transients: (B,) those before growth counted.
            driven: Whether inputs drove the chain.
        """
        pieces = self.counting.pieces
        order = self.chain.order
        rows = range(len(lengths)) if order is None else order.argsort().tolist()
        log = self._log.unflatten(1, (pieces, -1)).sum(1)
        steps = self._steps.unflatten(1, (pieces, -1)).sum(1)
        return Tally(
            log=log if order is None else log[:, order.argsort()],
            steps=steps[:, list(rows)],
            lengths=[lengths[row] for row in rows],
            transients=[transients[row] for row in rows],
            trusted=self._trusted(log),
            dimension=self.chain.size,
            driven=driven,
            along=self._along_time(order),
            volume=self._volume,
            audits=self.audits,
            intervals=self.intervals,
            pushed=self.pushed,
            dtype=self.dtype,
        )

    def _trusted(self, log: Tensor) -> Tensor:
        """(K,) bool: trusted in every sequence; where most live, in those that do, as means are of them.

        Args:
            log: ``(2, B, K)`` growth in the halves of each.
        """
        trusted = self.trusted.unflatten(0, (self.counting.pieces, -1)).all(0)
        dead = log.isneginf().any(0).all(-1)
        return (trusted | (dead & (2 * dead.sum() < len(dead))).unsqueeze(-1)).all(0)

    def _along_time(self, order: Tensor | None) -> Along:
        """Blocks in the order of time, one piece after another; pushes in the user's order."""
        pieces, log, pushes = self.counting.pieces, torch.cat(self._along), torch.cat(self._pushes)
        rows = slice(None) if order is None else order.argsort()
        if pieces == 1:
            weights = [of_piece[0] for of_piece in self._weights]
            return Along(self._starts, self._ends, log[:, 0], weights, pushes[:, rows])
        offset = self.counting.offset
        starts, ends, weights = list[int](), list[int](), list[int]()
        sums, grown = list[Tensor](), list[Tensor]()
        sequences = len(self.counting.lengths) // pieces
        pushes = pushes.unflatten(1, (pieces, sequences))
        for piece in range(pieces):
            length = self.counting.lengths[piece * sequences]
            for i, (start, end) in enumerate(zip(self._starts, self._ends, strict=True)):
                if end <= length:
                    starts.append(offset + start)
                    ends.append(offset + end)
                    sums.append(log[i, piece])
                    grown.append(pushes[i, piece])
                    weights.append(self._weights[i][piece])
            offset += length
        return Along(starts, ends, torch.stack(sums), weights, torch.stack(grown)[:, rows])
