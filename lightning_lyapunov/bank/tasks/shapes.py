"""Tasks of shapes, curves and handwritten digits, which go by with noise: which it was is asked at the end."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Generator, Tensor

from lightning_lyapunov.bank.tasks.sequences import HELD_OUT, at_the_end, followed_by_nothing
from lightning_lyapunov.bank.tasks.task import Batch


def templates(
    batch: int,
    generator: Generator,
    held_out: bool,
    *,
    steps: int,
    classes: int,
    noise: float,
    waves: int = 5,
    wait: int = 0,
) -> Batch:
    """A curve, one of several, is shifted, stretched, scaled, tilted and made noisy; which one is asked at the end.

    The end may come after a ``wait`` of so many steps in which only noise comes in.

    Source: after MNIST-1D, Greydanus (2020), arXiv:2011.14439, with curves of our own and no limit on the examples.
    """
    labels = torch.randint(classes, (batch,), generator=generator)
    shift, width, scale, tilt = torch.rand(4, batch, generator=generator)
    width = steps * (0.4 + 0.3 * width)
    phase = (torch.arange(steps)[:, None] - shift * (steps - width)) / width  # (T, B): 0 to 1 within the curve
    orders = math.pi * torch.arange(1, waves + 1)
    curves = (_curves(classes, waves)[labels] * (phase[..., None] * orders).sin()).sum(-1)
    inside = (phase >= 0) & (phase <= 1)
    ramp = torch.linspace(-1, 1, steps)[:, None] * (2 * tilt - 1)
    inputs = followed_by_nothing((0.6 + 0.8 * scale) * curves * inside + 0.5 * ramp, wait)
    inputs = inputs + noise * torch.randn(inputs.shape, generator=generator)
    return Batch(inputs[..., None], at_the_end(labels, len(inputs)))


@cache
def _curves(classes: int, waves: int) -> Tensor:
    """Sine coefficients ``(classes, waves)`` of curves that begin and end at zero, of unit mean square."""
    coefficients = torch.randn(classes, waves, generator=Generator().manual_seed(1))
    return coefficients * math.sqrt(2) / coefficients.norm(dim=-1, keepdim=True)


def digits(batch: int, generator: Generator, held_out: bool, *, pixels: int, noise: float, wait: int = 0) -> Batch:
    """Handwritten digits of 8 x 8 pixels, some pixels a step, with noise; the digit is asked at the end.

    The end may come after a ``wait`` of so many steps in which only noise comes in.

    Source: Alpaydin and Kaynak (1998), UCI machine learning repository, CC BY 4.0; a copy ships in scikit-learn.
    """
    images, labels = _digit_images()
    split = len(images) - int(HELD_OUT * len(images))
    first, end = (split, len(images)) if held_out else (0, split)
    chosen = torch.randint(first, end, (batch,), generator=generator)
    inputs = followed_by_nothing(images[chosen].view(batch, -1, pixels).transpose(0, 1), wait)
    inputs = inputs + noise * torch.randn(inputs.shape, generator=generator)
    return Batch(inputs, at_the_end(labels[chosen], len(inputs)))


@cache
def _digit_images() -> tuple[Tensor, Tensor]:
    """Images ``(1797, 64)`` of about unit variance, and their labels; shuffled, as writers follow one another."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=Generator().manual_seed(0))
    return (torch.as_tensor(images, dtype=torch.float32)[order] - 5) / 6, torch.as_tensor(labels).long()[order]
