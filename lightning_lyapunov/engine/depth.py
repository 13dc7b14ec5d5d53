r"""The spectrum of a chain of blocks: singular values of the product of their Jacobians, and what each block adds.

.. math:: J = J_D \cdots J_1, \qquad \ln\sigma_i(J), \qquad \text{gain} = \tfrac12 \ln(\|J\|_F^2 / n_D)

A depth is finite, so nothing here is a rate in the long run: the singular values are those of this very chain at this
very sample, whatever frame it is looked at by. Lengths are Euclidean; a gain is what a random gradient grows by, root
mean square, from the output of the chain back to its input, and for equal widths what a random perturbation grows by.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_lyapunov.engine.depth_spectrum import DepthSpectrum
from lightning_lyapunov.engine.frames import random_frames
from lightning_lyapunov.engine.growth import Product
from lightning_lyapunov.engine.isolation import plain_attention
from lightning_lyapunov.engine.lanczos import Effort, Leading, Map, leading, restricted
from lightning_lyapunov.engine.maps.blocks import Block, BlockSteps
from lightning_lyapunov.engine.precision import widest_dtype

DENSE = 24
"""Width of the last state up to which all of it is pulled back at once."""
PROBES = 4
"""Random gradients, at most, that tell what the leading directions leave out of the gain."""


@dataclass(frozen=True)
class DepthSettings:
    """What to measure of a chain, and how exactly.

    Raises:
        ValueError: For a value out of range.
    """

    k: int = 4
    """Leading singular values."""
    tolerance: float = 1e-3
    """Nats to which the logarithm of the largest is found, the others to ten times that."""
    most: int = 24
    """Blocks of vectors that the iteration takes at most to find them."""
    columns: int | None = None
    """Vectors that the iteration takes at once; of fewer than k it may miss one of the leading values but the largest,
    and needs fewer in all. 4, or an eighth of k where that is more, if None."""
    probes: int = 16
    """Random gradients that tell the gain of each block; all directions of a block that is no wider."""
    seed: int = 0
    """Of the random vectors to begin with."""
    first_place: int = 0
    """Place of the first sample among all that are measured, elsewhere too."""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k must be at least 1; got {self.k}.")
        for name in ("probes", "most"):
            if (count := getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least 1; got {count}.")
        if self.columns is not None and self.columns < 1:
            raise ValueError(f"columns must be at least 1, or None; got {self.columns}.")
        if not self.tolerance > 0:
            raise ValueError(f"tolerance must be above 0 nats; got {self.tolerance}.")

    @property
    def block(self) -> int:
        """Vectors that the iteration takes at once."""
        return max(4, -(-self.k // 8)) if self.columns is None else self.columns


def measure_depth(
    blocks: Sequence[Block], state: Tensor, settings: DepthSettings, *, alive: Tensor | None = None
) -> DepthSpectrum:
    """Measure a chain of blocks at some samples.

    Args:
        blocks: The links, in order; each takes ``(R, ...)`` to ``(R, ...)`` and acts on each row alone.
        state: ``(B, ...)`` before the first, of the type in which the blocks compute.
        settings: What to measure.
        alive: Which entries of the state count, bool, ``(B, ...)`` over its leading dimensions, as ``(B, T)`` for
            tokens; the others, behind a mask, are neither perturbed nor looked at. All if None.

    Raises:
        ValueError: If there are no blocks, the state is no floating tensor of at least one sample, or a block cannot
            be differentiated, or returns no state.
    """
    if not blocks:
        raise ValueError("blocks must hold at least one block; got none.")
    if not isinstance(state, Tensor) or not state.is_floating_point() or state.dim() < 2 or not len(state):
        raise ValueError(f"inputs must be a floating tensor (samples, ...) of at least one sample; got {_told(state)}.")
    with plain_attention():
        return _measured(blocks, state, settings, alive)


def _measured(blocks: Sequence[Block], state: Tensor, settings: DepthSettings, alive: Tensor | None) -> DepthSpectrum:
    steps = BlockSteps(blocks, state, min(settings.block, 4))
    _check_finite(blocks, steps)
    ends = (_counting(alive, steps.states[0]), _counting(alive, steps.states[-1]))
    rank = min([*steps.dimensions, *(int(counts.sum(1).min()) for counts in ends if counts is not None)])
    chain, count = Map(steps, ends), min(settings.k, rank)
    found = _leading(chain, steps, count, rank, settings)
    values, contributions = _along(steps, found.right, ends)
    gain, typical = _gains(chain, steps, found, settings)
    own, change = _block_gains(steps, alive, settings), _changes(steps, alive, settings)
    missing = settings.k - count
    return DepthSpectrum(
        names=tuple(block.name for block in blocks),
        dimensions=steps.dimensions,
        per_sample=_padded(values, missing, -math.inf),
        iteration_error=_padded(found.error.to(values), missing, 0.0),
        gain_per_sample=gain.to(values),
        typical_per_sample=typical.to(values),
        block_gain_per_sample=own.to(values),
        block_change_per_sample=change.to(values),
        contributions_per_sample=_padded(contributions, missing, -math.inf),
        state_growth_per_sample=_size(steps.states[-1]) - _size(steps.states[0]),
        passes=steps.passes,
        dtype=state.dtype,
    )


def _check_finite(blocks: Sequence[Block], steps: BlockSteps) -> None:
    """Look at all states at once, as each look waits for the device.

    Raises:
        ValueError: If one is not finite; the first block that makes such states is named.
    """
    largest = torch.stack([after.abs().amax() for after in steps.states[1:]])
    if not bool(largest.isfinite().all()):
        block = blocks[int((~largest.isfinite()).int().argmax())]
        raise ValueError(f"{block.name} makes states that are not finite: nothing after it can be measured.")


def _told(thing: object) -> str:
    return f"{thing.dtype} {tuple(thing.shape)}" if isinstance(thing, Tensor) else type(thing).__name__


def _counting(alive: Tensor | None, state: Tensor) -> Tensor | None:
    """``(B, D)`` 1 for the entries of a state that count, else 0; None where its dimensions are not those of alive."""
    if alive is None or state.shape[: alive.dim()] != alive.shape:
        return None
    return alive.reshape(*alive.shape, *[1] * (state.dim() - alive.dim())).expand_as(state).flatten(1).to(state.dtype)


def _padded(values: Tensor, missing: int, by: float) -> Tensor:
    return torch.cat([values, values.new_full((*values.shape[:-1], missing), by)], -1) if missing else values


def _size(state: Tensor) -> Tensor:
    """(B,) ln of the root mean square of a state."""
    wide = state.flatten(1).to(widest_dtype(state.device))
    return wide.square().mean(1).log() / 2


def _random(samples: int, size: int, count: int, like: Tensor, settings: DepthSettings, turn: int) -> Tensor:
    """Random orthonormal columns ``(B, D, K)``; of each turn others."""
    places = range(settings.first_place, settings.first_place + samples)
    seed = settings.seed + 1_000_003 * turn
    return random_frames(places, size, min(count, size), like.device, seed).to(like.dtype)


def _leading(chain: Map, steps: BlockSteps, k: int, rank: int, settings: DepthSettings) -> Leading:
    last = steps.states[-1]
    width = last[0].numel()
    start = _random(len(last), width, width if width <= DENSE else settings.block, last, settings, 0)
    if chain.ends[1] is not None and width > DENSE:
        start = torch.linalg.qr(restricted(start, chain.ends[1])).Q
    return leading(chain, start, k, rank, Effort(settings.tolerance, settings.most))


def _along(steps: BlockSteps, frame: Tensor, ends: tuple[Tensor | None, Tensor | None]) -> tuple[Tensor, Tensor]:
    r"""Push right vectors ``(B, D, K)`` with a QR at each block: :math:`\ln\sigma` ``(B, K)`` and shares ``(B, D, K)``.

    The triangles tell how the vectors must be turned to leave the chain at right angles; turned so, the diagonals of
    their products are the singular values, and what each block does to them are its shares.
    """
    samples, _, k = frame.shape
    product = Product.one(samples, k, frame.to(widest_dtype(frame.device)))
    products = []
    for t in range(len(steps)):
        moved = steps.push(t, frame)
        if t == len(steps) - 1 and ends[1] is not None:
            moved = restricted(moved, ends[1])
        frame, triangle = torch.linalg.qr(moved)
        product = Product(product.scale, product.rows)  # one for each block
        product.times(triangle)
        products.append(product)
    values = products[-1].log_singular_values()
    turn = _turn(products[-1])
    so_far = torch.stack([_diagonal(one, turn) for one in products], 1)
    before = torch.cat([torch.zeros_like(so_far[:, :1]), so_far[:, :-1]], 1)
    shares = torch.where(so_far == before, 0.0, so_far - before)
    return values, shares


def _turn(product: Product) -> Tensor:
    """``(B, K, K)`` right singular vectors of a product, largest first."""
    top = product.scale.amax(-1, keepdim=True).nan_to_num(neginf=0.0)
    whole = (product.scale - top).exp().unsqueeze(-1) * product.rows
    return torch.linalg.svd(whole.nan_to_num()).Vh.mT


def _diagonal(product: Product, turn: Tensor) -> Tensor:
    """``(B, K)`` logarithms of the diagonal of the triangle of a product times an orthogonal matrix."""
    top = product.scale.amax(-1, keepdim=True).nan_to_num(neginf=0.0)
    whole = (product.scale - top).exp().unsqueeze(-1) * product.rows @ turn
    return torch.linalg.qr(whole).R.diagonal(dim1=-2, dim2=-1).abs().log() + top


def _gains(chain: Map, steps: BlockSteps, found: Leading, settings: DepthSettings) -> tuple[Tensor, Tensor]:
    """Gain and typical growth (B,) of a random gradient: what is known of the leading directions, and probes.

    Source: Meyer, Musco, Musco, Woodruff, SOSA (2021) 142-155, with the leading space of the iteration for theirs.
    """
    assert chain.scale is not None
    counts, last = chain.ends[1], steps.states[-1]
    width, left = last[0].numel(), found.left.shape[-1]
    entries = last.new_full((len(last),), width) if counts is None else counts.sum(1)
    squares = found.pulled.square().sum(-2)
    random = squares[:, : left if width <= DENSE else settings.block]  # of the vectors that it began with
    if counts is not None:
        random = random / restricted(found.left[..., : random.shape[1]], counts).square().sum(-2)
    whole = squares.sum(-1)
    if left < width:
        probes = restricted(_random(len(last), width, min(settings.probes, PROBES), last, settings, 1), counts)
        outside = probes - found.left @ (found.left.mT @ probes)
        outside = outside / torch.linalg.vector_norm(outside, dim=-2, keepdim=True)
        whole = whole + chain.pull(outside).square().sum(-2).mean(-1) * (entries - left)
    gain = chain.scale + (whole / entries).log() / 2
    typical = chain.scale + random.log().mean(-1) / 2
    return gain, torch.minimum(typical, gain)


def _block_gains(steps: BlockSteps, alive: Tensor | None, settings: DepthSettings) -> Tensor:
    """Gain ``(B, D)`` of each block alone, by random cotangents; exact for narrow ones."""
    gains, drawn = [], dict[int, Tensor]()
    for t in range(len(steps)):
        before, after = steps.states[t], steps.states[t + 1]
        if (width := after[0].numel()) not in drawn:
            drawn[width] = _random(len(after), width, settings.probes, after, settings, 3)
        probes = restricted(drawn[width], _counting(alive, after))
        pulled = restricted(steps.pull(t, probes), _counting(alive, before))
        gains.append((pulled.square().sum((-2, -1)) / probes.square().sum((-2, -1))).log() / 2)
    return torch.stack(gains, 1)


def _changes(steps: BlockSteps, alive: Tensor | None, settings: DepthSettings) -> Tensor:
    """How much each block changes ``(B, D)`` what passes it: random tangents, as the blocks before have left them.

    Not any tangents: behind a ReLU many directions are empty, and a block whose branch is dead passes on the others.
    """
    first = steps.states[0]
    tangents = _random(len(first), first[0].numel(), settings.probes, first, settings, 2)
    changes = []
    for t in range(len(steps)):
        before, after = steps.states[t], steps.states[t + 1]
        tangents = restricted(tangents, _counting(alive, before))
        length = torch.linalg.vector_norm(tangents, dim=-2, keepdim=True)
        tangents = tangents / torch.where(length > 0, length, 1.0)
        moved = steps.push(t, tangents)
        if before.shape == after.shape:
            changed = restricted(moved - tangents, _counting(alive, after))
            changes.append((changed.square().sum((-2, -1)) / tangents.square().sum((-2, -1))).log() / 2)
        else:
            changes.append(moved.new_full((len(moved),), math.nan))
        tangents = moved
    return torch.stack(changes, 1)
