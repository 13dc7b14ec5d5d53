"""Rows made by hand, for what predicts from them."""

from typing import Any

import torch
from systems import noise
from torch import Tensor

from lightning_lyapunov.aelle.features import ARCHITECTURES, LEVELS, Context, Rows
from lightning_lyapunov.aelle.knowledge import KNOTS

EVERYTHING: dict[str, Any] = {
    "architecture": "gru", "hidden_size": 32, "updates": 40, "skill": 0.3, "learning_rate": 3e-3, "adaptive": True,
    "gradient_norm": 1.0, "state_mean": 0.5, "state_spread": 0.4, "steps": 32,
}  # fmt: skip
"""All that can be known of a network beside its spectrum."""


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def flat(count: int = 1, **known: Any) -> Rows:
    """Rows with whole spectra of zeros, and contexts that know so much and no more."""
    return Rows(torch.zeros(count, LEVELS + 1), Context(**known).values().repeat(count, 1))


def everything(count: int = 1, **known: Any) -> Rows:
    """The same with all of the context known."""
    return flat(count, **EVERYTHING | known)


def mixed(count: int, seed: int = 0) -> Rows:
    """Networks of all kinds, moments and rates, with spectra that fall from one end to another; all is known."""
    ends, told = noise(count, 2, seed=seed).float(), uniform(count, 6, seed=seed + 1000).tolist()
    spectrum = ends[:, :1] + (ends[:, 1:] - 4) * torch.linspace(0, 1, LEVELS + 1)
    contexts = [
        Context(
            architecture=ARCHITECTURES[i % 4],
            hidden_size=(16, 32, 64, 128)[i // 4 % 4],
            updates=int(KNOTS[i % len(KNOTS)]),
            skill=skill,
            learning_rate=10 ** (-4 + 3 * rate),
            adaptive=adaptive > 0.5,
            gradient_norm=4 * norm,
            state_mean=mean,
            state_spread=mean / 2,
            steps=int(16 + 48 * steps),
        ).values()
        for i, (skill, rate, adaptive, norm, mean, steps) in enumerate(told)
    ]
    return Rows(spectrum, torch.stack(contexts))
