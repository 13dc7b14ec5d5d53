"""Tasks of dynamics: what a system, computed or recorded, left alone or driven, does next."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Generator, Tensor

from lightning_lyapunov.bank.tasks.sequences import HELD_OUT, delayed, followed_by_nothing, windows
from lightning_lyapunov.bank.tasks.task import Batch

Series = Callable[[], Tensor]
"""Recordings ``(L, C, V)`` of V variables from C sources over L steps."""

CHAINS, LENGTH = 64, 640
"""Independent trajectories of a system, and how many steps of each are kept."""


def forecast(
    batch: int,
    generator: Generator,
    held_out: bool,
    *,
    series: Series,
    steps: int,
    horizon: int,
    noise: float = 0.0,
    warmup: int = 4,
    wait: int = 0,
) -> Batch:
    """The first variable of a system is observed with noise; its true value ``horizon`` steps ahead is asked.

    The first steps are not asked, as nothing can be known from so short a past. After a ``wait``, in which only noise
    comes in, the value ``horizon`` steps after the last observation is asked alone.
    """
    window = windows(series(), steps + horizon, batch, generator, held_out)[..., :1]
    targets = window[horizon:].clone()
    targets[:warmup] = torch.nan
    if wait:
        targets = torch.cat((torch.full((steps + wait - 1, batch, 1), torch.nan), targets[-1:]))
    seen = followed_by_nothing(window[:steps], wait)
    return Batch(seen + noise * torch.randn(seen.shape, generator=generator), targets)


def _standardised(series: Tensor) -> Tensor:
    """Zero mean and unit variance of each variable over the part that is not held out; float32."""
    seen = series[: len(series) - int(HELD_OUT * len(series))]
    return ((series - seen.mean((0, 1))) / seen.std((0, 1))).float()


def _iterated(step: Callable[[Tensor], Tensor], state: Tensor, *, every: int = 1, washout: int = 200) -> Tensor:
    """States ``(L, C, V)`` that a map visits, one in ``every``, after ``washout`` of them."""
    kept = []
    for time in range((washout + LENGTH) * every):
        state = step(state)
        if time % every == 0:
            kept.append(state)
    return _standardised(torch.stack(kept[washout:]))


def _start(variables: int) -> Tensor:
    """Initial states ``(C, V)`` in the unit cube, always the same."""
    return torch.rand(CHAINS, variables, generator=Generator().manual_seed(0), dtype=torch.float64)


@cache
def lorenz() -> Tensor:
    """The Lorenz system (1963), sampled every 0.1 units of time."""

    def flow(state: Tensor) -> Tensor:
        x, y, z = state.unbind(-1)
        return torch.stack((10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z), -1)

    def step(state: Tensor, dt: float = 0.02) -> Tensor:  # fourth-order Runge-Kutta
        a = flow(state)
        b = flow(state + dt / 2 * a)
        c = flow(state + dt / 2 * b)
        d = flow(state + dt * c)
        return state + dt / 6 * (a + 2 * b + 2 * c + d)

    return _iterated(step, _start(3), every=5)


@cache
def mackey_glass(delay: int, dt: float = 0.25, spacing: int = 12) -> Tensor:
    """The delay equation of Mackey and Glass (1977), by Euler steps, sampled every 3 units of time."""
    lag = round(delay / dt)
    past = [0.5 + _start(1)] * (lag + 1)
    for _ in range((LENGTH + 200) * spacing):
        before, now = past[-lag - 1], past[-1]
        past.append(now + dt * (0.2 * before / (1 + before**10) - 0.1 * now))
    return _standardised(torch.stack(past[lag + 1 + 200 * spacing :: spacing]))


@cache
def henon() -> Tensor:
    """The map of Hénon (1976)."""

    def step(state: Tensor) -> Tensor:
        x, y = state.unbind(-1)
        return torch.stack((1 - 1.4 * x**2 + y, 0.3 * x), -1)

    return _iterated(step, 0.1 * _start(2))


@cache
def coupled_logistic(coupling: float = 0.1) -> Tensor:
    """Two logistic maps at a = 3.9 and 4, each pulled towards the other; Kaneko (1983). Other pulls end in a cycle."""
    rates = torch.tensor([3.9, 4.0], dtype=torch.float64)

    def step(state: Tensor) -> Tensor:
        image = rates * state * (1 - state)
        return (1 - coupling) * image + coupling * image.flip(-1)

    return _iterated(step, _start(2))


@cache
def ikeda(u: float = 0.9) -> Tensor:
    """The map of Ikeda (1979) in the plane; Hammel, Jones and Moloney (1985)."""

    def step(state: Tensor) -> Tensor:
        x, y = state.unbind(-1)
        angle = 0.4 - 6 / (1 + x**2 + y**2)
        sin, cos = angle.sin(), angle.cos()
        return torch.stack((1 + u * (x * cos - y * sin), u * (x * sin + y * cos)), -1)

    return _iterated(step, _start(2))


@cache
def laser() -> Tensor:
    """Intensity of a chaotic far-infrared laser, 10,093 samples; Hübner, Abraham and Weiss (1989)."""
    import numpy

    # Data set A of the Santa Fe competition (Weigend and Gershenfeld, 1993), published there for anyone's use with no
    # licence of its own; reservoirpy, which carries the file, is under MIT. The bank keeps none of it.
    series = numpy.load(_shipped("reservoirpy", "reservoirpy/datasets/santafe_laser.npy"))
    return _standardised(torch.as_tensor(series, dtype=torch.float64).view(-1, 1, 1))


def _shipped(package: str, file: str) -> Path:
    """A data file of an installed package, found without importing it."""
    try:
        return Path(str(importlib.metadata.distribution(package).locate_file(file)))
    except importlib.metadata.PackageNotFoundError:
        raise ModuleNotFoundError(
            f"This task reads a recording of the package {package}: pip install {package}."
        ) from None


def narma(batch: int, generator: Generator, held_out: bool, *, order: int, steps: int, late: int = 0) -> Batch:
    """Noise drives a system with a memory of some steps; its next output is asked. The past before the start is hidden.

    It may be asked so many steps ``late``.

    Source: Atiya and Parlos, IEEE Transactions on Neural Networks 11 (2000) 697-709.
    """
    window = windows(_narma_series(order), steps, batch, generator, held_out)
    targets = window[..., 1:].clone()
    targets[:order] = torch.nan
    targets = delayed(targets, late)
    return Batch(window[..., :1], targets)


@cache
def _narma_series(order: int) -> Tensor:
    """Drive and response ``(L, C, 2)``, standardised."""
    return _standardised(_narma_system(order))


def _narma_system(order: int, washout: int = 100) -> Tensor:
    """Drive u, uniform in [0, 0.5], and response y one step later, ``(L, C, 2)``."""
    drive = 0.5 * torch.rand(washout + LENGTH, CHAINS, generator=Generator().manual_seed(order), dtype=torch.float64)
    response = torch.zeros(washout + LENGTH + 1, CHAINS, dtype=torch.float64)
    for t in range(order, washout + LENGTH):
        past = response[t - order + 1 : t + 1]
        after = 0.3 * past[-1] + 0.05 * past[-1] * past.sum(0) + 1.5 * drive[t - order + 1] * drive[t] + 0.1
        response[t + 1] = after.clamp(max=1)  # a rare run of large inputs would send it to infinity
    return torch.stack((drive, response[1:]), -1)[washout:]
