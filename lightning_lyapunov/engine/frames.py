"""Where the frames of a measurement begin: at random for each sequence, or where the last measurement left them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from lightning_lyapunov.engine.maps.cell import State, as_parts
from lightning_lyapunov.engine.sequences import Inputs, Sequences

SPARE, SPARE_OF_SHORT, SHORT = 2, 8, 16
"""Columns carried beyond those asked for, as after few steps the first of a frame need not be the fastest; more of them
below so many steps."""


def seed_of(generator: torch.Generator | None) -> int:
    """A seed drawn from a generator; 0 without one."""
    if generator is None:
        return 0
    return int(torch.randint(2**31, (), generator=generator, device=generator.device))


def spare(steps: int) -> int:
    """Columns carried beyond those asked for, over so many steps."""
    return SPARE_OF_SHORT if steps < SHORT else SPARE


def random_vectors(places: Sequence[int], size: int, k: int, seed: int) -> Tensor:
    """Normal vectors ``(B, D, K)``, float64, on the CPU: columns that depend on place and seed alone.

    Args:
        places: (B,) of the sequences among all that are measured.
        size: D.
        k: K. The first columns are the same however many follow.
        seed: Of the measurement.
    """
    # Drawn by sixteens, as torch's generator does, or the first ones would depend on how many follow.
    count = -(-k * size // 16) * 16
    drawn = torch.empty(len(places), count, dtype=torch.float64, device="cpu")
    for row, place in zip(drawn, places, strict=True):
        row.normal_(generator=torch.Generator().manual_seed(seed + place))
    return drawn[:, : k * size].view(len(places), k, size).mT


def random_frames(places: Sequence[int], size: int, k: int, device: torch.device, seed: int = 0) -> Tensor:
    """Orthonormal frames ``(B, D, K)`` in general position, one for each sequence; not to be written to.

    A frame depends on the place of its sequence and the seed alone, so that it is the same on every device and whoever
    measures which sequences, and its first columns are the same however many follow.
    """
    make = _kept_frames if len(places) * size * k <= _KEPT else _frames
    return make(tuple(places), size, k, seed).to(device, torch.float32 if device.type == "mps" else None)


def _frames(places: tuple[int, ...], size: int, k: int, seed: int) -> Tensor:
    return torch.linalg.qr(random_vectors(places, size, k, seed)).Q


_KEPT = 2**18
"""Numbers of frames that are kept for the next measurement, which mostly wants the same."""
_kept_frames = lru_cache(maxsize=8)(_frames)


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
        elif isinstance(inputs, Sequences):
            now += [inputs.values, torch.tensor(inputs.lengths)]
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
