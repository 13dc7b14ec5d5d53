r"""Growth over a finite chain: the singular values of the product of its Jacobians, and what a gradient feels of it.

.. math:: M = J_T \cdots J_1, \qquad \ln\sigma_i(M), \qquad \text{gain} = \tfrac12 \ln(\|M_h\|_F^2 / H)

with M_h the rows of the H entries of the last state that are seen. A frame is passed along the chain, forward by J and
back by its transpose, and the triangles of the last pass are kept: :math:`M Q_0 = Q_N R_N \cdots R_1`. Each pass is a
step of orthogonal iteration, so a frame of a few more columns than asked for turns to the leading singular vectors
within two or three. A frame that fills the whole space needs one pass and no spare columns.

What lies outside the frame is small where few directions lead, and most of it where all are alike, as in an orthogonal
network. So its share of the gain is estimated by some random vectors, passed along with the frame (Hutch++).

Products are kept as :math:`e^{l} X`, a scale for each row, so that nothing over- or underflows in long chains.

Sources: Stewart, ETNA 5 (1997) 29-47; Halko, Martinsson, Tropp, SIAM Rev. 53 (2011) 217-288; Meyer, Musco, Musco,
Woodruff, SOSA (2021) 142-155.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_lyapunov.engine.chain import Chain, Stretch
from lightning_lyapunov.engine.precision import PrecisionLaw, widest_dtype
from lightning_lyapunov.engine.sequences import lengths_of
from lightning_lyapunov.engine.spectrum import SequenceGrowth
from lightning_lyapunov.engine.tangent import Growth, carry

SPARE = 8
"""Columns beyond those asked for: a number, not a share of them."""
PROBES = 4
"""Random vectors that tell what the frame leaves out of the gain."""
TWO_PASSES = 32
"""Steps from which on two passes are enough; three below."""
CLOSE, MORE_PASSES = 0.75, 2
"""Nats between the last singular value asked for and the last of the frame, below which the frame turns so slowly that
more passes are made; and how many."""
KEPT_WHOLE = 512
"""Steps up to which the Jacobians of a whole chain are kept between passes; beyond, states, a stretch apart."""
ON_REQUEST = 4096
"""Steps above which growth is measured only where it was asked for."""
_RESCALED = 8
"""Steps whose triangles are multiplied before the product is scaled again: no float64 overflows in so few."""
_SWEEPS, _SPREAD, _NEAR = 4, 25.0, 12.0
"""QR sweeps of a product at most; nats by which its singular values may spread for one SVD to see all of them; nats
around a value in which others act on it once swept."""


class Product:
    r"""A product of upper triangular matrices as rows with a scale each, :math:`e^{l_i} X_{ij}`.

    Attributes:
        scale: l ``(B, K)``, nats; -inf for a row of zeros.
        rows: X ``(B, K, K)``, rows of length 1.
    """

    def __init__(self, scale: Tensor, rows: Tensor) -> None:
        self.scale, self.rows = scale, rows

    @staticmethod
    def one(sequences: int, k: int, like: Tensor) -> Product:
        """The unit matrix for each sequence."""
        rows = torch.eye(k, dtype=like.dtype, device=like.device).repeat(sequences, 1, 1)
        return Product(rows.new_zeros(sequences, k), rows)

    def times_all(self, triangles: Sequence[Tensor], spans: Sequence[int]) -> None:
        """Multiply by one triangle after another, each of so many steps; scaled again only after a few of them."""
        pending, steps = None, 0
        for triangle, span in zip(triangles, spans, strict=True):
            triangle = triangle.to(self.rows.dtype)
            if pending is not None and len(pending) == len(triangle) and steps + span <= _RESCALED:
                pending, steps = triangle @ pending, steps + span
                continue
            if pending is not None:
                self.times(pending)
            pending, steps = triangle, span
        if pending is not None:
            self.times(pending)

    def times(self, triangle: Tensor) -> None:
        """Multiply from the left by upper triangles ``(B', K, K)``, of the first sequences."""
        n = len(triangle)
        scale, rows = _scaled(triangle.to(self.rows.dtype), self.scale[:n], self.rows[:n])
        self.scale, self.rows = torch.cat([scale, self.scale[n:]]), torch.cat([rows, self.rows[n:]])

    def leading(self, k: int) -> Product:
        """Its upper left corner, that of a frame's first k columns."""
        return Product(self.scale[:, :k], self.rows[:, :k, :k])

    def log_singular_values(self) -> Tensor:
        r""":math:`\ln\sigma_i` ``(B, K)``, largest first; NaN for what is not finite."""
        scale, rows = self.scale, self.rows
        bad = ~rows.isfinite().flatten(1).all(1) | scale.isnan().any(1) | scale.isposinf().any(1)
        scale, rows = scale.masked_fill(bad[:, None], 0.0), rows.masked_fill(bad[:, None, None], 0.0)
        for _ in range(_SWEEPS if _spread(scale) > _SPREAD else 0):
            # The QR of the transpose is a triangle again, with the same singular values and smaller corners.
            scale, rows = _scaled(torch.linalg.qr(rows.mT).R, scale, None)
        return _in_windows(scale, rows).masked_fill(bad[:, None], math.nan)


def _scaled(triangle: Tensor, scale: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    r"""Scales and rows of :math:`R\, e^{l} X`, X the unit matrix if None."""
    # Row i of the product holds rows i, i + 1, ... of the right factor: it is scaled by the largest of them.
    top = scale.flip(-1).cummax(-1).values.flip(-1)
    top = top.masked_fill(top.isneginf(), 0.0)
    product = triangle * (scale.unsqueeze(-2) - top.unsqueeze(-1)).exp().triu()
    product = product if rows is None else product @ rows
    length = torch.linalg.vector_norm(product, dim=-1)
    return top + length.log(), product / length.clamp(min=torch.finfo(length.dtype).tiny).unsqueeze(-1)


def _spread(scale: Tensor) -> float:
    finite = scale.masked_fill(scale.isinf(), math.nan)
    low, high = finite.nan_to_num(nan=math.inf).amin(-1), finite.nan_to_num(nan=-math.inf).amax(-1)
    spread = (high - low).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return float(spread.amax()) if len(scale) else 0.0


def _in_windows(scale: Tensor, rows: Tensor) -> Tensor:
    """Logarithms of the singular values of a product after its sweeps, each where no larger one drowns it.

    What is far from a value no longer acts on it. So it is read off a matrix whose other scales are brought near it.
    """
    scale, order = scale.sort(dim=-1, descending=True, stable=True)
    rows = rows.gather(-2, order.unsqueeze(-1).expand_as(rows)).gather(-1, order.unsqueeze(-2).expand_as(rows))
    floor = scale.masked_fill(scale.isneginf(), math.inf).amin(-1, keepdim=True).nan_to_num(posinf=0.0)
    alive = ~scale.isneginf()
    held = torch.where(alive, scale, floor)
    top = held.amax(-1, keepdim=True)
    spread = float((top - held).amax())
    if spread <= _SPREAD:
        near = torch.where(alive, (scale - top).exp(), 0.0).unsqueeze(-1) * rows
        return torch.linalg.svdvals(near).log() + top
    result = torch.full_like(scale, -math.inf)
    reach = (_SPREAD + _NEAR) / 2
    for below in torch.arange(0.0, spread + _NEAR, _NEAR).tolist():
        distance = held - (top - below)
        near = ((distance.abs() <= reach) & alive).any(0).nonzero().flatten()
        if not len(near):
            continue
        window = slice(int(near[0]), int(near[-1]) + 1)
        weights = torch.where(alive, distance.clamp(-reach, reach).exp(), 0.0)[:, window]
        values = torch.linalg.svdvals(weights.unsqueeze(-1) * rows[:, window, window]).log() + top - below
        chosen = (alive & (distance.abs() <= _NEAR / 2))[:, window]
        result[:, window] = torch.where(chosen & result[:, window].isneginf(), values, result[:, window])
    return result.sort(-1, descending=True).values


@dataclass(frozen=True)
class Recorded:
    """A stretch of a chain that was followed before: its Jacobians, or where to begin to follow it again."""

    start: int
    stop: int
    stretch: Stretch | None
    state: Tensor


class Recording:
    """The stretches of a chain, in the order of time, to be passed along again in either direction."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self._is_kept = len(chain.running) <= KEPT_WHOLE or not chain.is_pure
        self._stretches: list[Recorded] = []
        self._before = chain.state
        self.product: Product | None = None

    def add(self, start: int, stretch: Stretch, growth: Growth | None = None) -> None:
        """Keep a stretch that was just followed, from step ``start`` to where the chain is.

        Where all directions are carried and ``growth`` holds their triangles, :attr:`product` is that of all so far.
        """
        if growth is not None and growth.triangles:
            if self.product is None:
                wide = self._before.to(widest_dtype(self._before.device))
                self.product = Product.one(len(wide), growth.triangles[0].shape[-1], wide)
            self.product.times_all(growth.triangles, growth.spans)
        kept = stretch if self._is_kept else None
        self._stretches.append(Recorded(start, self.chain.time, kept, self._before))
        self._before = self.chain.state

    def follow(self, length: int) -> None:
        """Follow the rest of the chain, so many steps at a time."""
        while (start := self.chain.time) < len(self.chain.running):
            self.add(start, self.chain.follow(min(start + length, len(self.chain.running))))

    def stretches(self, *, back: bool) -> Sequence[Recorded]:
        """All of them, from the first to the last or back."""
        return self._stretches[::-1] if back else self._stretches

    def linearised(self, recorded: Recorded) -> Stretch:
        """The Jacobians of one of them."""
        if recorded.stretch is not None:
            return recorded.stretch
        self.chain.rewind(recorded.start, recorded.state)
        return self.chain.follow(recorded.stop)


def columns(growth: int, size: int) -> int:
    """Columns of the frame in which so many leading singular values are found; all where probes would find no room."""
    return growth + SPARE if growth + SPARE + PROBES < size else size


def pass_along(recording: Recording, frame: Tensor, law: PrecisionLaw, *, back: bool) -> tuple[Tensor, Product]:
    """Carry a frame ``(B, D, K)`` along the whole chain; the frame at the end, and the product of its triangles."""
    chain = recording.chain
    product = Product.one(len(frame), frame.shape[-1], frame.to(widest_dtype(frame.device)))
    for recorded in recording.stretches(back=back):
        stretch, running = recording.linearised(recorded), chain.running[recorded.start : recorded.stop]
        while True:
            end, growth = carry(
                stretch.steps(frame.shape[-1], law.dtype),
                running,
                frame.to(law.dtype),
                law.interval,
                back=back,
                may_use_blocks=law.may_use_blocks,
                with_triangles=True,
            )
            gap, failed = torch.stack([growth.gap.amax(), growth.failed.to(growth.gap)]).tolist()
            if not law.refuses(gap, bool(failed)):
                break
        frame = end
        product.times_all(growth.triangles, growth.spans)
        law.learn(gap, len(growth.ends), max(growth.spans))
    return frame, product


def sequence_growth(
    recording: Recording, frame: Tensor, probes: Tensor, count: int, pushed_by: PrecisionLaw | None = None
) -> SequenceGrowth:
    r"""Leading singular values of the product of all Jacobians of a chain, and its gain.

    Args:
        recording: The chain, followed to its end.
        frame: ``(B, D, K)``, K = :func:`columns` orthonormal columns.
        probes: ``(B, D, P)`` normal vectors, for what the frame leaves out of the gain.
        count: G, singular values wanted.
        pushed_by: The law by which the frame was pushed from the first step to the last already, where it is now; None
            if it is at the first.

    Returns:
        Rows in the user's order. After so many passes the values are within .05 nats, but for networks whose singular
        values are all but equal, as orthogonal ones: there the largest may be some tenths low. The gain does not
        depend on that.
    """
    chain, (sequences, size, k) = recording.chain, frame.shape
    law = pushed_by or PrecisionLaw(chain.dtype, None, may_narrow=chain.can_narrow, limit=_RESCALED)
    made = int(pushed_by is not None)
    is_whole = k == size
    # Each sequence has as many passes as it needs by itself, whatever others run beside it.
    lengths = torch.tensor(lengths_of(chain.running), device=frame.device)
    needed = torch.ones_like(lengths) if is_whole else torch.where(lengths >= TWO_PASSES, 2, 3)
    fewest, done = int(needed.min()), torch.zeros_like(lengths, dtype=torch.bool)
    values, gain = frame.new_zeros(sequences, count), frame.new_zeros(sequences)
    while not bool(done.all()):
        back, begin = made % 2 == 1, frame.to(chain.dtype)
        made += 1
        if made >= fewest and not is_whole:
            begin = torch.cat([begin, _outside(begin, probes.to(begin), chain.visible if back else size)], -1)
        end, product = pass_along(recording, begin, law.limited(_RESCALED), back=back)
        frame = end[..., :k]
        if made < fewest:
            continue
        now = product.leading(k).log_singular_values()
        seen = (begin if back else end)[:, : chain.visible].to(now.dtype)
        turns_slowly = (now[:, count - 1] - now[:, -1] < CLOSE) & (not is_whole)
        ready = ~done & (made >= needed) & (~turns_slowly | (made >= needed + MORE_PASSES))
        values = torch.where(ready.unsqueeze(1), now[:, :count], values)
        gain = torch.where(ready, _gain(product, seen, k, is_back=back), gain)
        done = done | ready
    return _in_users_order(chain, values, gain)


def growth_of_whole(recording: Recording, frame: Tensor, count: int) -> SequenceGrowth:
    """The same from the product of triangles of a first pass that carried all directions.

    Args:
        recording: The chain, with its product.
        frame: ``(B, D, D)`` at the last step.
        count: G, singular values wanted.
    """
    chain, product = recording.chain, recording.product
    assert product is not None
    gain = _gain(product, frame[:, : chain.visible].to(product.rows), chain.size, is_back=False)
    return _in_users_order(chain, product.log_singular_values()[:, :count], gain)


def _outside(frame: Tensor, probes: Tensor, rows: int) -> Tensor:
    """What the frame ``(B, D, K)`` does not hold of probes ``(B, D, P)`` in the first ``rows`` entries of the state."""
    probes = torch.cat([probes[:, :rows], torch.zeros_like(probes[:, rows:])], 1)
    return probes - frame @ (frame.mT @ probes)


def _gain(product: Product, seen: Tensor, k: int, *, is_back: bool) -> Tensor:
    """The gain (B,) that follows from the last pass.

    Args:
        product: Of the triangles of all columns, the first k a frame, the others probes.
        seen: ``(B, H, K')`` rows of the columns at the last step: at which a pull begins and a push ends.
        k: Columns of the frame.
        is_back: Whether the last pass was a pull.
    """
    top = product.scale.amax(-1)
    top = top.masked_fill(top.isinf(), 0.0)
    whole = (product.scale - top.unsqueeze(-1)).exp().unsqueeze(-1) * product.rows  # what underflows counts for nothing
    inside = whole[:, :k, :k] @ seen[..., :k].mT if is_back else seen[..., :k] @ whole[:, :k, :k]
    squares = inside.square().sum((-2, -1))
    if whole.shape[-1] > k:
        outside = whole[:, :, k:] if is_back else seen @ whole[:, :, k:]
        squares = squares + outside.square().sum((-2, -1)) / (whole.shape[-1] - k)
    return top + (squares / seen.shape[1]).log() / 2


def _in_users_order(chain: Chain, values: Tensor, gain: Tensor) -> SequenceGrowth:
    lengths = torch.tensor(lengths_of(chain.running))
    if chain.order is None:
        return SequenceGrowth(values, gain, lengths)
    order = chain.order.argsort()
    return SequenceGrowth(values[order], gain[order], lengths[order.cpu()])
