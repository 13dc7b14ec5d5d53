r"""Gradient flossing: gradient steps on a layer's exponents themselves, until they are close to zero.

The loss is :math:`\frac{1}{K} \sum_i \lambda_i^2` of the leading exponents over a short window of one sequence, drawn
anew for each step. From chaos it fails, as gradients along a chaotic orbit diverge, so a layer whose largest exponent
is above zero has its recurrent weights scaled down first.

Source: Engelken, arXiv:2312.17306.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lyapunov.conditioning.rows import Rows
from lightning_lyapunov.conditioning.scaling import softening
from lightning_lyapunov.conditioning.weights import put_back, write_weight
from lightning_lyapunov.engine.differentiable import lyapunov_exponents
from lightning_lyapunov.engine.maps.families import family_of
from lightning_lyapunov.engine.system import trajectories


@dataclass(frozen=True)
class Descent:
    """How gradient steps are made.

    Raises:
        ValueError: For a value out of range.
    """

    steps: int
    """At most."""
    tolerance: float
    """Mean square of the exponents, (nats/step)², at which to stop."""
    learning_rate: float
    """Adam's."""
    clip: float
    """Largest norm of a gradient."""
    num_steps: int
    """Steps of a window."""
    transient: int
    """Of these so many settle state and frame first; half of a window at most."""
    max_seconds: float
    """After which the best weights so far are taken."""
    seed: int
    """Of the windows."""

    def __post_init__(self) -> None:
        for name in ("steps", "num_steps", "transient", "seed"):
            if isinstance(value := getattr(self, name), bool) or not isinstance(value, Integral):
                raise ValueError(f"{name} must be a whole number; got {value!r}.")
        for name in ("steps", "tolerance", "learning_rate", "clip", "max_seconds"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Real) or not float(value) >= 0:
                raise ValueError(f"{name} must be a number, at least 0; got {value!r}.")
        if not 0 <= self.transient < self.num_steps:
            raise ValueError(f"transient must lie in [0, {self.num_steps - 1}], below num_steps; got {self.transient}.")


@dataclass(frozen=True)
class Descended:
    """What gradient steps came to."""

    changes: tuple[str, ...]
    steps: int
    largest_gradient: float
    """NaN where no step was made."""


def floss(module: nn.Module, rows: Rows, k: int, descent: Descent) -> Descended:
    """Bring a layer's leading k exponents close to zero, in place: the best weights that were seen.

    Gradients that its parameters held are as they were.
    """
    changes = _soften(module, rows)
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError(f"layer: no parameter of {type(module).__name__} requires a gradient, so none can be set.")
    if narrow := {str(p.dtype) for p in parameters if p.dtype.itemsize < 4}:
        raise ValueError(f"layer: its parameters are {', '.join(narrow)}; floss it in float32, then cast it.")
    held = [parameter.grad for parameter in parameters]
    try:
        with torch.enable_grad():
            steps, largest = _descend(module, parameters, rows, k, descent)
    finally:
        for parameter, gradient in zip(parameters, held, strict=True):
            parameter.grad = gradient
    return Descended((*changes, f"{_counted(steps, 'gradient step')} on {_counted(k, 'exponent')}"), steps, largest)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _soften(module: Any, rows: Rows) -> list[str]:
    """Scale the recurrent weights of each layer that is chaotic, from below; what was changed."""
    if family_of(module) is None:
        return []
    changes = []
    names = list(trajectories(module, rows.inputs, rows.state, None, None))
    for name in names:
        path = trajectories(module, rows.inputs, rows.state, None, None)[name]
        if (factor := softening(path)) < 1:
            weight = "weight_hh" if name == "cell" else f"weight_hh_{name}"
            write_weight(module, weight, factor * path.recurrence.weight_hh)  # type: ignore[attr-defined]
            changes.append(f"{f'{name}: ' * (len(names) > 1)}recurrent weights × {factor:.2g}")
    return changes


def _descend(
    module: nn.Module, parameters: list[nn.Parameter], rows: Rows, k: int, descent: Descent
) -> tuple[int, float]:
    """Steps made, and the largest norm of a gradient; the module has the best weights seen."""
    optimizer = torch.optim.Adam(parameters, descent.learning_rate)
    generator = torch.Generator().manual_seed(descent.seed)
    best, weights, largest, began = math.inf, dict[str, Tensor](), math.nan, time.perf_counter()
    for step in range(descent.steps + 1):
        window = rows.window(descent.num_steps, generator)
        transient = min(descent.transient, max(window.inputs.lengths) // 2)
        exponents = lyapunov_exponents(module, window.inputs, k=k, state=window.state, transient=transient)
        living = exponents[exponents.isfinite()]
        loss = living.square().mean()
        if not (value := float(loss.detach())) < math.inf:  # NaN too, where nothing lives
            break
        if value < best:
            best, weights = value, {name: p.detach().clone() for name, p in module.named_parameters()}
        if value < descent.tolerance or step == descent.steps or time.perf_counter() - began > descent.max_seconds:
            break
        if not loss.requires_grad:
            raise ValueError(
                f"layer: the exponents depend on no parameter of {type(module).__name__} that requires a gradient, so "
                "none can be flossed."
            )
        # Not by backward(), which would set off what the user hooked on to the accumulation of gradients.
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        norm = float(nn.utils.clip_grad_norm_(parameters, descent.clip))
        if not norm < math.inf:
            break
        largest = norm if math.isnan(largest) else max(largest, norm)
        optimizer.step()
    if weights:
        put_back(module, weights)
    return step, largest
