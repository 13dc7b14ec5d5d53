r"""Exponents and growth with a gradient, to be part of a loss.

The numbers are those of :func:`~lightning_lyapunov.lyapunov_spectrum`, from the same maps and the same frames, by as
plain a loop as torch can differentiate: Householder's QR after every so many steps, in a single floating type.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lyapunov.engine.chain import Steps
from lightning_lyapunov.engine.frames import random_frames, seed_of, spare
from lightning_lyapunov.engine.isolation import measuring
from lightning_lyapunov.engine.maps.cell import CellMap, State
from lightning_lyapunov.engine.orthonormal import by_householder
from lightning_lyapunov.engine.precision import unit_roundoff
from lightning_lyapunov.engine.sequences import Inputs, lengths_of
from lightning_lyapunov.engine.settings import Settings
from lightning_lyapunov.engine.spectrum import largest_first
from lightning_lyapunov.engine.stack import Stack
from lightning_lyapunov.engine.statistics import mean_and_error
from lightning_lyapunov.engine.system import device_of, trajectories, unwrap
from lightning_lyapunov.engine.trajectory import STRETCH, Trajectory

PROBES = 128
"""Directions in which the gain is measured at most: all of a state that has no more."""


def lyapunov_exponents(
    system: Any,
    inputs: Inputs,
    *,
    k: int | None = None,
    state: State | None = None,
    transient: int | None = None,
    interval: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Lyapunov exponents as a tensor with a gradient, to be used in a loss.

    .. math:: \lambda_i = \frac{1}{N} \sum_{n=1}^{N} \ln |R^{(n)}_{ii}|, \qquad J_n Q_{n-1} = Q_n R^{(n)}

    They are those of :func:`~lightning_lyapunov.lyapunov_spectrum` with ``growth=0``, which else carries more columns,
    from the same frames. The gradient reaches whatever the system is made of, through parametrisations, weight
    normalisation and pruning masks too, and inputs and state that require one. Steps of the transient settle state and
    frame and are not recorded: it does not reach back beyond their end.

    The arithmetic is in the type of the parameters, float32 at least, with autocast off. As in eval mode there is no
    dropout; the mode, buffers, the random state and ``.grad`` are left as they were.

    Args:
        system: As there: ``nn.RNN``, ``nn.GRU``, ``nn.LSTM``, one of torch's cells, or a callable
            ``cell(x, state) -> state``. Layers of a stack and directions are measured each alone; the exponents are
            their sorted union.
        inputs: What the module's forward takes (batch first, unbatched and packed included); ``(T, B, ...)`` for a cell
            or a callable.
        k: Number of leading exponents; all if None. Time and memory grow with k.
        state: Initial state, as the system takes it; zeros if None.
        transient: Steps at the start that do not count; half of each sequence, at most 64, if None. 0 for a gradient
            through all steps.
        interval: Steps between reorthonormalisations; an interval in which rounding loses a direction is made again
            step by step.
        generator: Source of the seed of the initial frames; seed 0 if None.

    Returns:
        ``(K,)`` nats per step, mean over sequences, largest first. A dead direction, as of a relu unit that is off, is
        ``-inf`` and has no gradient; the others' gradients are not touched by it. Leave it out of a sum by ``isfinite``
        or a clamp.

    Raises:
        ValueError: If an argument does not fit the system, holds NaN or infinite values, or leaves no step to measure;
            for a cell that draws random numbers or changes as it runs.

    Source:
        Benettin et al., Meccanica 15 (1980) 9-30; as an objective: Engelken, arXiv:2312.17306.

    Example:
        >>> import torch
        >>> from lightning_lyapunov import lyapunov_exponents
        >>> matrix = torch.tensor([2.0, 0.5]).diag().requires_grad_()
        >>> inputs, state = torch.zeros(50, 1, 0), torch.zeros(1, 2)
        >>> exponents = lyapunov_exponents(lambda x, h: h @ matrix.T, inputs, state=state)
        >>> exponents[0].backward()  # of ln 2 by the entry that is 2
        >>> round(float(matrix.grad[0, 0]), 3)
        0.5
    """
    if interval is None or interval < 1:
        raise ValueError(f"interval must be at least 1; got {interval}.")
    settings = Settings(k, transient)
    with _live(system, inputs, state) as paths:
        dimension = sum(path.size for path in paths.values())
        if k is not None and k > dimension:
            raise ValueError(f"k must lie in [1, {dimension}], the dimension of the state; got {k}.")
        seed = seed_of(generator)
        exponents = torch.cat([_exponents(path, settings, interval, seed) for path in paths.values()])
        return largest_first(exponents)[0][:k]


def lyapunov_growth(
    system: Any, inputs: Inputs, *, vectors: Tensor | None = None, state: State | None = None
) -> Tensor:
    r"""Growth over whole sequences as a tensor with a gradient, to be used in a loss.

    Of the product :math:`M = J_T \cdots J_1` of all Jacobians of a sequence :math:`\ln \|M v\|` for given vectors, or
    the gain :math:`\tfrac12 \ln(\|M_h\|_F^2 / H)`, with M_h the rows of the H entries of the last state that are seen
    (:attr:`LyapunovSpectrum.gain`): what a gradient that enters at the last step is multiplied by, on its way to the
    first, on average over directions. The gradient reaches all that :func:`lyapunov_exponents` says, and the vectors,
    through every step.

    Args:
        system: As for :func:`lyapunov_exponents`. The layers of a stack are taken together.
        inputs: As there.
        vectors: Tangent vectors of the first state, ``(D,)``, as columns ``(D, K)``, or for each sequence
            ``(B, D, K)``: h, then c, of each layer from the bottom up. The gain if None.
        state: As there.

    Returns:
        Nats over the sequence, mean over sequences: ``(K,)``, one for each vector; () for a single vector or the gain.
        ``-inf``, without a gradient, where nothing is left. The gain is exact up to a state of 128 entries; of larger
        ones it is estimated from the growth of 128 orthonormal random directions, the same at each call, to .09 nats or
        better for each sequence.

    Raises:
        ValueError: As there; for a bidirectional module, the directions of which have no product in common; and for
            vectors that do not fit the state.
    """
    with _live(system, inputs, state) as paths:
        layers = list(paths.values())
        if getattr(unwrap(system), "bidirectional", False):
            raise ValueError(
                "system must run in one direction: two that run against each other have no product of Jacobians in "
                f"common; got a bidirectional {type(unwrap(system)).__name__}."
            )
        chain: Trajectory | Stack = Stack(layers) if len(layers) > 1 else layers[0]
        if vectors is None:
            return _mean(_gain(chain)).squeeze(-1)
        length, _ = _pushed(chain, _checked(vectors, chain, layers), (-2,))
        grown = _mean(length.squeeze(-2))
        return grown.squeeze(-1) if vectors.dim() == 1 else grown


# ------------------------------------------------------------------ what both begin with


@contextmanager
def _live(system: Any, inputs: Inputs, state: State | None) -> Iterator[dict[str, Trajectory]]:
    """The trajectories of a system's layers, and around them the arithmetic of a measurement that torch records.

    Where the user records nothing, neither do we.
    """
    recorded = torch.is_grad_enabled()
    system = unwrap(system)
    if inputs is None:
        raise ValueError("inputs must be given; got None. Of an autonomous cell(x, state): torch.zeros(T, B, 0).")
    with measuring(system, device_of(system, inputs, state)), torch.set_grad_enabled(recorded):
        paths = trajectories(system, inputs, state, None, _dtype_of(system), live=True)
        for path in paths.values():
            if torch.finfo(path.dtype).bits < 32:
                raise ValueError(f"state of a callable must be float32 or float64; got {path.dtype}.")
            if isinstance(path.recurrence, CellMap):
                with torch.no_grad():
                    path.recurrence.follow(path.inputs[:1], path.initial)
                if path.recurrence.changes:
                    raise ValueError(
                        "system draws random numbers or changes as it runs, so that its steps cannot be made again to "
                        "be differentiated. lyapunov_spectrum measures it, without a gradient."
                    )
        yield paths


def _dtype_of(system: Any) -> torch.dtype | None:
    """That of a module's tensors, float32 at least; None for what has none: a callable runs in that of its state."""
    tensors = (*system.parameters(), *system.buffers()) if isinstance(system, nn.Module) else ()
    own = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), None)
    return None if own is None else torch.promote_types(own, torch.float32)


def _mean(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean (K,) of sums ``(B, K)`` over so many steps (B,) of each sequence, as in a spectrum; -inf has no gradient."""
    mean = mean_and_error(values, values.new_ones(len(values)) if weights is None else weights)[0]
    return torch.where(mean.isneginf(), mean.detach(), mean)


# ------------------------------------------------------------------ rates


def _exponents(path: Trajectory, settings: Settings, interval: int, seed: int) -> Tensor:
    """Exponents of all columns pushed along one path, those of ``settings`` and a few more."""
    lengths, steps, size = lengths_of(path.running), len(path.running), path.size
    transients = [settings.transient_of(length) for length in lengths]
    counted = torch.tensor([max(n - t, 0) for n, t in zip(lengths, transients, strict=True)])
    if not counted.any():
        raise ValueError(f"transient must leave at least one of the {steps} steps to measure; got {min(transients)}.")
    k = min(size, min(settings.k or size, size) + spare(steps))
    places = range(len(path.initial)) if path.order is None else path.order.tolist()
    frame = random_frames(list(places), size, k, path.initial.device, seed).to(path.dtype)
    sums = frame.new_zeros(len(frame), k)
    begins, is_recorded = torch.tensor(transients, device=frame.device), torch.is_grad_enabled()
    for stop in [*sorted({t for t in transients if 0 < t < steps}), steps]:
        begin = path.time
        with torch.set_grad_enabled(is_recorded and begin >= min(transients)):
            begun = (begins == begin) & (begin > 0)
            frame = _cut_off(frame, begun)
            path.rewind(begin, _cut_off(path.state, begun))
            frame, log = _carried(path, frame, stop, interval)
            sums = sums + torch.where((begins <= begin).unsqueeze(-1), log, 0.0)
    return _mean(sums, counted.to(sums))


def _cut_off(values: Tensor, rows: Tensor) -> Tensor:
    """Values ``(B, ...)``, without a history in some of the rows."""
    return torch.where(rows.reshape(-1, *[1] * (values.dim() - 1)), values.detach(), values)


def _carried(path: Trajectory, frame: Tensor, stop: int, interval: int) -> tuple[Tensor, Tensor]:
    """Push a frame ``(B, D, K)`` along a path up to a step: where it is then, and its growth ``(B, K)``, nats."""
    pivots, gone = list[Tensor](), torch.zeros_like(frame[:, 0], dtype=torch.bool)
    while (begin := path.time) < stop:
        end = min(begin + interval * max(1, path.stretch // interval), stop)
        running = path.running[begin:end]
        steps = path.follow(end).steps(frame.shape[-1], path.dtype)
        since = 0
        for t, rows in enumerate(running, 1):
            if t - since == interval or t == len(running) or running[t] < rows:
                moved, came_off, lost = _orthonormal(steps, range(since, t), frame[:rows])
                frame, since = _with_rest(moved, frame), t
                pivots += [_with_rest(pivot, torch.ones_like(frame[:, 0])) for pivot in came_off]
                gone[:rows] |= lost
    return frame, torch.stack(pivots).abs().log().sum(0).masked_fill(gone, -math.inf)


def _with_rest(values: Tensor, whole: Tensor) -> Tensor:
    """Values of the first sequences, and what those that have ended hold."""
    return values if len(values) == len(whole) else torch.cat([values, whole[len(values) :]])


def _orthonormal(steps: Steps, times: range, frame: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
    """Push a frame along some steps and make it orthonormal again.

    Returns:
        The frame; the diagonals of R that came off ``(B, K)``; and where a direction is lost, with 1 in the diagonals.
    """
    moved = frame
    for t in times:
        moved = steps.push(t, moved)
    after, triangle = by_householder(moved)
    pivots = triangle.diagonal(dim1=-2, dim2=-1)
    lost = _are_lost(moved.detach(), pivots.detach())
    if lost.any():
        if len(times) > 1:  # whether they died, or fell below the rounding, cannot be told here
            return _one_by_one(steps, times, frame)
        # What has no length has no derivative, and would leave the others none: a constant takes its place.
        after, triangle = by_householder(torch.where(lost.unsqueeze(-2), after.detach(), moved))
        pivots = triangle.diagonal(dim1=-2, dim2=-1)
    return after, [pivots], lost


def _one_by_one(steps: Steps, times: range, frame: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
    """The same, orthonormal after every step."""
    pivots, lost = list[Tensor](), torch.zeros_like(frame[:, 0], dtype=torch.bool)
    for t in times:
        frame, came_off, now = _orthonormal(steps, range(t, t + 1), frame)
        pivots, lost = pivots + came_off, lost | now
    return frame, pivots, lost


def _are_lost(moved: Tensor, pivots: Tensor) -> Tensor:
    """Where pivots ``(B, K)`` of vectors ``(B, D, K)`` are below their rounding, as ``precision.log_pivots`` has it."""
    size, k = moved.shape[1:]
    length = torch.linalg.vector_norm(moved, dim=(-2, -1)) / math.sqrt(k)
    sizes = pivots.abs()
    resolution = 4 * math.sqrt(size) * unit_roundoff(moved.dtype)
    return sizes <= resolution * torch.maximum(sizes.amax(-1), length).unsqueeze(-1)


# ------------------------------------------------------------------ growth over a sequence


def _gain(chain: Trajectory | Stack) -> Tensor:
    """The gain ``(B, 1)`` of each sequence."""
    count = min(chain.size, PROBES)
    places = list(range(len(chain.initial))) if chain.order is None else chain.order.tolist()
    frame = random_frames(places, chain.size, count, chain.initial.device).to(chain.dtype)
    length, moved = _pushed(chain, frame, (-2, -1))
    squares = moved[:, : chain.visible].square().sum((-2, -1)) * chain.size / (count * chain.visible)
    is_gone = squares == 0
    last = squares.masked_fill(is_gone, 1.0).log() / 2
    return length[..., 0] + last.masked_fill(is_gone, -math.inf).unsqueeze(-1)


def _pushed(chain: Trajectory | Stack, vectors: Tensor, dim: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Push vectors ``(B, D, K)`` along a whole chain: the logarithm of their length over ``dim``, and their direction.

    They are scaled to a length of 1 after every step, so that none overflows.
    """
    vectors, log = _unit(vectors, dim)
    while (begin := chain.time) < len(chain.running):
        running = chain.running[begin : begin + STRETCH]
        steps = chain.follow(begin + len(running)).steps(vectors.shape[-1], chain.dtype)
        for t, rows in enumerate(running):
            moved, grown = _unit(steps.push(t, vectors[:rows]), dim)
            vectors, log = _with_rest(moved, vectors), log + _with_rest(grown, torch.zeros_like(log))
    return log, vectors


def _unit(vectors: Tensor, dim: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Vectors by their length over ``dim``, and its logarithm, kept as an axis of 1; of nothing nothing and -inf."""
    length = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True)
    is_gone = length == 0
    length = length.masked_fill(is_gone, 1.0)
    return vectors / length, length.log().masked_fill(is_gone, -math.inf)


def _checked(vectors: Tensor, chain: Trajectory | Stack, layers: list[Trajectory]) -> Tensor:
    """Vectors for each sequence ``(B, D, K)`` as the chain takes them: its rows, the top layer first."""
    batch, size = len(chain.initial), chain.size
    if not isinstance(vectors, Tensor) or not vectors.is_floating_point() or not vectors.isfinite().all():
        raise ValueError("vectors must be a tensor of finite numbers of a floating type, or None for the gain.")
    shaped = vectors.reshape(-1, 1) if vectors.dim() == 1 else vectors
    shaped = shaped.expand(batch, -1, -1) if shaped.dim() == 2 else shaped
    if shaped.shape[:-1] != (batch, size):
        raise ValueError(
            f"vectors must have shape ({size},), ({size}, K) or ({batch}, {size}, K), {size} the dimension of the "
            f"state; got {tuple(vectors.shape)}."
        )
    shaped = shaped.to(device=chain.initial.device, dtype=chain.dtype)
    shaped = shaped if chain.order is None else shaped.index_select(0, chain.order)
    return torch.cat(shaped.split([layer.size for layer in layers], 1)[::-1], 1)
