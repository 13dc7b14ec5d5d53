"""The predictions for one network, in NumPy: the same as those of many rows, in a tenth of the time.

A score in the course of a training is of a single row, for which an operator of torch takes longer to call than to run.
What is computed, and why, is told by :class:`~lightning_lyapunov.aelle.heads.Heads` and the modules it is made of, and
by :mod:`lightning_lyapunov.aelle.calibration`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_lyapunov.aelle.autoencoder import AeLLE
from lightning_lyapunov.aelle.calibration import BINS, KNOTS, Gate, Intervals, Shares
from lightning_lyapunov.aelle.features import ARCHITECTURES, CONTEXT, FLOOR, LEVELS, SCALE, Rows
from lightning_lyapunov.aelle.fitting import Ridge

Array = np.ndarray[Any, np.dtype[Any]]
_SKILL, _TIME = CONTEXT.index("skill"), CONTEXT.index("log_updates")
_TIMES_HAND = [CONTEXT.index(name) for name in (*ARCHITECTURES, "log_updates")]
_MARKS = [math.log1p(knot / 10) for knot in KNOTS]
_LEVELS = [int(p * LEVELS) for p in (0.05, 0.25, 0.5, 0.75, 0.95)]


@dataclass(frozen=True, eq=False)
class _Seen:
    """What is made of a spectrum, whatever else is known of the network."""

    spectrum: Tensor
    """(1, LEVELS + 1)."""
    codes: Array
    """(M, L) of the autoencoders."""
    inner: Array
    """(M, W) what the codes add to the inner layer of their heads."""
    hand: Array | None
    """(H,) features made by hand; None where nothing of a spectrum is known."""
    state: int
    """What is known of it: 0 nothing, 1 a part, 2 all."""


class Single:
    """Evaluates heads on one row.

    Args:
        models: Autoencoders of one size.
        ridges: As the heads have them.
        shares: As the heads have them.
    """

    def __init__(self, models: Sequence[AeLLE], ridges: Mapping[str, Ridge], shares: Shares) -> None:
        self._centre, self._spread = (
            _stacked(getattr(model, name) for model in models) for name in ("centre", "spread")
        )
        self._encoder, self._decoder, self._heads = (
            [
                tuple(_stacked(getattr(layer, name) for layer in layers) for name in ("weight", "bias"))
                for layers in part
            ]
            for part in (_linear(models, "encoder"), _linear(models, "decoder"), _linear(models, "heads"))
        )
        self._ridges = {
            name: (_array(ridge.centre), _array(ridge.spread), _array(ridge.coefficients))
            for name, ridge in ridges.items()
        }
        self._shares = _array(shares.table)
        nothing = torch.full((1, LEVELS + 1), math.nan)
        self._none = self._last = self._look(nothing, _array(nothing[0]))

    @staticmethod
    def takes(models: Sequence[AeLLE]) -> bool:
        """Whether these are of one size."""
        return len({tuple(weight.shape for weight in model.parameters()) for model in models}) == 1

    def __call__(self, spectrum: Tensor, context: Tensor) -> Array:
        """What the heads say, ``(heads,)``.

        Args:
            spectrum: (1, LEVELS + 1).
            context: (1, len(CONTEXT)).
        """
        seen, known = self._seen(spectrum), _array(context[0])
        by_ridge = self._by_ridge(seen, known)
        return by_ridge + self._share(seen, known) * (self._by_model(seen, known) - by_ridge)

    def code(self, spectrum: Tensor) -> Array:
        """(L,) the first autoencoder's code of a spectrum."""
        return self._seen(spectrum).codes[0]

    def reconstruction(self, spectrum: Tensor) -> Array:
        """(LEVELS + 1,) what the first autoencoder makes of a spectrum."""
        return _through(self._decoder, self._seen(spectrum).codes)[0] * self._spread[0] + self._centre[0]

    def _seen(self, spectrum: Tensor) -> _Seen:
        """The last one is kept, as the same spectrum is asked about more than once."""
        if spectrum is not self._last.spectrum:
            values = _array(spectrum[0])
            if np.isnan(values).all():
                return self._none
            self._last = self._look(spectrum, values)
        return self._last

    def _look(self, spectrum: Tensor, values: Array) -> _Seen:
        codes = _through(self._encoder, _masked((values - self._centre) / self._spread))
        (weight, bias), _ = self._heads
        inner = _times(weight[..., : codes.shape[1]], codes) + bias
        unknown = np.isnan(values[:LEVELS])
        state = int(not unknown[0]) + int(not unknown.any())
        return _Seen(spectrum, codes, inner, None if unknown[0] else _hand_features(values), state)

    def _by_model(self, seen: _Seen, known: Array) -> Array:
        (weight, _), (last, bias) = self._heads
        inner = seen.inner + weight[..., seen.codes.shape[1] :] @ _masked(known)
        return np.add.reduce(_sigmoid(_times(last, inner * _sigmoid(inner)) + bias)) / len(inner)

    def _by_ridge(self, seen: _Seen, known: Array) -> Array:
        has_skill = not math.isnan(known[_SKILL])
        parts = [known if has_skill else known[:_SKILL]]
        if seen.hand is not None:
            parts += [seen.hand, *(seen.hand * known[i] for i in _TIMES_HAND)]
        name = ("context" if seen.hand is None else "spectrum") + ("+skill" if has_skill else "")
        centre, spread, coefficients = self._ridges[name]
        standard = (np.concatenate(parts) - centre) / spread
        return _sigmoid(np.where(np.isnan(standard), 0.0, standard) @ coefficients[:-1] + coefficients[-1])

    def _share(self, seen: _Seen, known: Array) -> Array:
        before, part = _place(known)
        by_time = self._shares[seen.state + (0 if math.isnan(known[_SKILL]) else 3), before : before + 2]
        return by_time[0] * (1 - part) + by_time[1] * part


def gated(gate: Gate, prediction: Tensor, rows: Rows) -> Tensor:
    """(1,) what a gate makes of the prediction for a single row that knows its skill so far."""
    known, said = _array(rows.context[0]), float(prediction)
    before, part = _place(known)
    tables = [_array(values)[before : before + 2] for values in (gate.trust, gate.offset, gate.slope)]
    trust, offset, slope = (float(low * (1 - part) + high * part) for low, high in tables)
    so_far = float(known[_SKILL])
    through = _sigmoid(offset + slope * (so_far + trust * (1 - so_far) ** 2 * said))
    return prediction if math.isnan(through) else prediction.new_tensor([through])


def ends(
    intervals: Intervals, prediction: Tensor, rows: Rows, familiarity: Tensor, share: Tensor
) -> tuple[Tensor, Tensor]:
    """(1,) and (1,) ends of the interval around the prediction for a single row."""
    known, said = _array(rows.context[0]), float(prediction)
    before, part = _place(known)
    whole = not bool(torch.isnan(rows.spectrum[0, :LEVELS]).any())
    state = (0 if math.isnan(known[_SKILL]) else 1) + 2 * whole + (0 if math.isnan(known[0]) else 4)
    position = min(max(said * BINS - 0.5, 0), BINS - 1)
    low = int(position)
    table = _array(intervals.quantiles)[state, before : before + 2][:, [low, min(low + 1, BINS - 1)]]
    by_knot = table[:, 0] * (1 - (position - low)) + table[:, 1] * (position - low)
    found = said + by_knot[0] * (1 - part) + by_knot[1] * part
    near = min(float(familiarity) / 0.5, 1.0) * float(share)
    bottom, top = (float(end) for end in intervals.spread)
    least = near * float(found[0]) + (1 - near) * min(float(found[0]), bottom)
    most = near * float(found[1]) + (1 - near) * max(float(found[1]), top)
    clamped = (min(min(max(least, 0.0), 1.0), said), max(min(max(most, 0.0), 1.0), said))
    return prediction.new_tensor([clamped[0]]), prediction.new_tensor([clamped[1]])


def _place(known: Array) -> tuple[int, float]:
    """The knot before the updates made, and where they lie between it and the next one."""
    time = float(known[_TIME])
    time = _MARKS[2] if math.isnan(time) else min(max(time, _MARKS[0]), _MARKS[-1])
    before = min(bisect_right(_MARKS, time) - 1, len(_MARKS) - 2)
    return before, (time - _MARKS[before]) / (_MARKS[before + 1] - _MARKS[before])


def _hand_features(spectrum: Array) -> Array:
    """Those of a spectrum of which the largest is known, at least; of rows: ``features.hand_features``."""
    q, mean = spectrum[:-1], spectrum[-1]
    there = ~np.isnan(q)
    whole, lowest, size = bool(there.all()), float(np.fmin.reduce(q)), np.abs(q)

    def share(belongs: Array, beyond: float) -> float:
        return np.count_nonzero(belongs) / LEVELS if whole or lowest <= beyond else math.nan

    def at(multiple: float) -> float:
        return math.copysign(math.log1p(abs(multiple)), multiple)

    raw = np.sign(q) * np.expm1(size)
    total = raw.cumsum()
    crossed = bool((total < 0).any())
    entropy = math.log1p(np.fmax(raw, 0.0).sum() / LEVELS)
    levels = q[_LEVELS]
    return np.array(
        [
            q[0], size[0], q[0] ** 2, mean, *levels, q[0] - levels[-1],
            q.std(ddof=1) if whole else math.nan,
            share(size < at(1.0), at(-1.0)),
            share(size < at(4.0), at(-4.0)),
            share(q > 0, 0.0),
            share(q > at(-10.0), at(-10.0)),
            1 - share(q > at(-40.0), at(-40.0)),
            1 - share(q > at(FLOOR / SCALE) + 1e-3, at(FLOOR / SCALE)),
            np.count_nonzero(total >= 0) / LEVELS if whole or crossed else math.nan,
            entropy if whole or lowest <= 0 else math.nan,
        ]
    )  # fmt: skip


def _through(layers: Sequence[tuple[Array, ...]], x: Array) -> Array:
    (weight, bias), (last, end) = layers
    hidden = _times(weight, x) + bias
    return _times(last, hidden * _sigmoid(hidden)) + end


def _times(weights: Array, x: Array) -> Array:
    """(M, n) products of matrices (M, n, m) and columns (M, m)."""
    return np.matmul(weights, x[..., None])[..., 0]


def _masked(values: Array) -> Array:
    known = values == values  # but for NaN
    return np.concatenate([np.where(known, values, 0.0), known], -1)


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def _linear(models: Sequence[AeLLE], name: str) -> list[list[nn.Linear]]:
    """The layers of a part, each of all models."""
    parts = [[layer for layer in getattr(model, name) if isinstance(layer, nn.Linear)] for model in models]
    return [list(layers) for layers in zip(*parts, strict=True)]


def _stacked(tensors: Iterable[Tensor]) -> Array:
    return np.stack([_array(tensor) for tensor in tensors])


def _array(tensor: Tensor) -> Array:
    return tensor.detach().numpy().astype(np.float64)
