"""Conditioning a layer before it is trained: its weights are set so that its exponents lie where a task needs them."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, get_args

import torch
from torch import nn

from lightning_lyapunov.conditioning.flossing import Descent, floss
from lightning_lyapunov.conditioning.reach import reach
from lightning_lyapunov.conditioning.report import Conditioning
from lightning_lyapunov.conditioning.rows import Rows
from lightning_lyapunov.conditioning.scaling import TOO_MUCH, hold, is_gated, spread
from lightning_lyapunov.conditioning.weights import put_back, put_back_on_error, write_weight
from lightning_lyapunov.engine.isolation import measuring
from lightning_lyapunov.engine.maps.cell import State
from lightning_lyapunov.engine.maps.families import family_of
from lightning_lyapunov.engine.measure import measure
from lightning_lyapunov.engine.sequences import Inputs
from lightning_lyapunov.engine.settings import Settings
from lightning_lyapunov.engine.spectrum import LyapunovSpectrum
from lightning_lyapunov.engine.system import check_supported, device_of, trajectories, unwrap

Shape = Literal["hold", "spread"]
Method = Literal["scaling", "flossing"]
MOST = 64
"""Exponents of each layer that are looked at; of a wider layer the leading ones."""


def condition(
    layer: Any,
    inputs: Inputs,
    *,
    lag: float,
    shape: Shape = "hold",
    method: Method = "scaling",
    state: State | None = None,
    k: int | None = None,
    steps: int = 300,
    tolerance: float = 1e-3,
    learning_rate: float = 2e-3,
    clip: float = 0.1,
    num_steps: int = 55,
    transient: int = 16,
    max_seconds: float = 30.0,
    seed: int = 0,
) -> Conditioning:
    r"""Set a layer's weights, in place, so that it can hold something over so many steps from the first update on.

    For tasks that are known to ask for it: recall, copying, adding, comparing with what was seen ``lag`` steps ago. It
    takes a fraction of a second. Where nothing is to be held for long it harms, gated layers above all: docs/acting.md
    has the table.

    Layers of a stack are set from below, each along the outputs of those already set. How, for each kind of layer:
    :mod:`lightning_lyapunov.conditioning.scaling`. If the spectrum on other sequences is no nearer to the target
    afterwards, or not finite, the weights are put back.

    Args:
        layer: ``nn.RNN``, ``nn.GRU``, ``nn.LSTM`` or one of torch's cells: with several layers, two directions or a
            projection too.
        inputs: What drives it, as its forward takes it, two sequences or more; ``(T, B, I)`` for a cell. The first 256
            steps of 16 of them are used. The task's own: noise would set another scale.
        lag: Steps that something is to be held for. There is no default, as nobody else knows; four times too long
            costs.
        shape: ``"hold"``: all exponents close to :math:`-2 / \text{lag}` (RNN), :math:`-1 / (3\,\text{lag})` (gates).
            ``"spread"``: time constants of gates from 1.5 steps to the lag, evenly on a logarithmic scale, which breaks
            even where nothing is to be held and helps less where it is; an RNN with tanh is made orthogonal alone.
            Where exponents are to lie apart, the target that is told is their mean.
        method: ``"scaling"``, closed forms and one bisection; ``"flossing"``, gradient steps that bring the exponents
            to 0 whatever the lag (:mod:`lightning_lyapunov.conditioning.flossing`), also of a cell of your own, a
            module ``cell(x, state) -> state``.
        state: Initial state, as the layer takes it; zeros if None.
        k: Exponents of each layer that are looked at; the leading H, at most 64, if None. Those that are flossed: the
            leading H of all layers together, all of a cell of your own, if None.
        steps: Gradient steps at most; this and what follows up to ``max_seconds`` are for flossing alone.
        tolerance: Mean square of the exponents at which to stop, (nats/step)².
        learning_rate: Adam's.
        clip: Largest norm of a gradient.
        num_steps: Steps of the window, at a random place of a random sequence, that each gradient step looks at.
        transient: Of these so many settle first; the gradient does not reach back beyond them.
        max_seconds: After which the best weights so far are taken.
        seed: Of the windows, and of the probes that the reach is estimated by.

    Returns:
        The spectrum before and after, on sequences that the setting did not see, and what was changed; its text is a
        sentence.

    Raises:
        ValueError: If an argument is out of range, or the layer cannot be set: of another kind, without the bias that
            opens its gates, frozen, of half precision, masked. The layer is as it was then.
    """
    began = time.perf_counter()
    check(lag, shape, method, k)
    lag = float(lag)
    descent = Descent(steps, tolerance, learning_rate, clip, num_steps, transient, max_seconds, seed)
    module = unwrap(layer)
    check_layer(module, method)
    made = _Made((), 0.0)
    with measuring(module, device_of(module, inputs, state)), put_back_on_error(module) as found:
        mine, others = Rows.of(module, inputs, state).halves()
        most = min(k or MOST, MOST)
        before, reach_before = _looked_at(module, others, most, seed, lag)
        if method == "flossing":
            size = getattr(module, "hidden_size", before.dimension)
            descended = floss(module, mine, min(k or size, before.dimension), descent)
            made = _Made(descended.changes, 0.0, descended.steps, descended.largest_gradient)
        else:
            made = _scale(module, mine, lag, shape)
        after, reach_after = _looked_at(module, others, most, seed, lag)
        rms_before, rms_after = (_rms(spectrum, made.target) for spectrum in (before, after))
        reason = _why_not(after, rms_before, rms_after, lag, has_target=shape == "hold" or method == "flossing")
        if reason:
            put_back(module, found)
    return Conditioning(
        before=before,
        after=after,
        changed=made.changes,
        target=made.target,
        rms_before=rms_before,
        rms_after=rms_after,
        reach_before=reach_before,
        reach_after=reach_after,
        seconds=time.perf_counter() - began,
        steps=made.steps,
        largest_gradient=made.largest_gradient,
        reason=reason,
    )


@dataclass(frozen=True)
class _Made:
    """What was made of a layer."""

    changes: tuple[str, ...]
    target: float
    steps: int = 0
    largest_gradient: float = math.nan


def check_layer(module: Any, method: str = "scaling") -> None:
    """Refuse a layer that cannot be conditioned.

    Raises:
        ValueError: If it is of another kind, has no bias that would open its gates, or is sharded.
    """
    if method == "flossing" and isinstance(module, nn.Module) and family_of(module) is None:
        return
    if family_of(module) is None:
        parts = module.named_modules() if isinstance(module, nn.Module) else ()
        inside = ", ".join(name for name, part in parts if name and family_of(part) is not None)
        cure = f"To set a layer inside it, pass one of these with the inputs that reach it: {inside}. " * bool(inside)
        raise ValueError(
            f"layer must be an nn.RNN, nn.GRU or nn.LSTM, or one of torch's cells; got {type(module).__name__}. {cure}"
            "A module cell(x, state) -> state of your own can be flossed: method='flossing', with its state."
        )
    check_supported(module)
    if method == "scaling" and not any(parameter.requires_grad for parameter in module.parameters()):
        raise ValueError("layer: its parameters are frozen (requires_grad=False), so it is left as it is.")
    if any(hasattr(parameter, "full_tensor") for parameter in module.parameters()):
        raise ValueError("layer: its parameters are sharded; condition it before it is, on each rank alike.")
    if method == "scaling" and is_gated(module) and not module.bias:
        raise ValueError(
            f"layer: {type(module).__name__}(bias=False) has no bias to open its gates by; make it with bias=True."
        )


def check(lag: float, shape: str, method: str, k: int | None) -> None:
    """Refuse arguments that are out of range.

    Raises:
        ValueError: Naming the argument, what was given and what would do.
    """
    if isinstance(lag, bool) or not isinstance(lag, Real) or not 1 <= float(lag) < math.inf:
        raise ValueError(f"lag must be a number of steps, at least 1, that something is to be held for; got {lag!r}.")
    for name, value, choices in (("shape", shape, get_args(Shape)), ("method", method, get_args(Method))):
        if value not in choices:
            raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}; got {value!r}.")
    if k is not None and (isinstance(k, bool) or not isinstance(k, Integral) or k < 1):
        raise ValueError(f"k must be at least 1, or None for the leading H, at most {MOST}; got {k!r}.")


def _looked_at(module: Any, rows: Rows, most: int, seed: int, lag: float) -> tuple[LyapunovSpectrum, float]:
    """The leading H exponents of each layer, or as many as are looked at, and their reach over the lag."""
    k = min(getattr(module, "hidden_size", most), most)
    tally = measure(module, rows.inputs, Settings(k=k if family_of(module) else None), state=rows.state)
    parts = tally.spectra(k)
    spectrum = next(iter(parts.values())) if len(parts) == 1 else LyapunovSpectrum.union(parts)
    return spectrum, reach(module, rows.inputs.cut(math.ceil(lag) + 1), rows.state, seed)


def _scale(module: Any, rows: Rows, lag: float, shape: Shape) -> _Made:
    """Set layer after layer; what was changed, and where the exponents were put."""
    changes: list[str] = []
    names = list(trajectories(module, rows.inputs, rows.state, None, None))
    for name in names:
        path = trajectories(module, rows.inputs, rows.state, None, None)[name]  # along what is set below by now
        setting = (hold if shape == "hold" else spread)(path, lag)
        for weight, value in setting.weights.items():
            if not weight.startswith("bias") or module.bias:
                write_weight(module, weight if name == "cell" else f"{weight}_{name}", value)
        changes += [f"{name}: {change}" if len(names) > 1 else change for change in setting.changes]
    return _Made(tuple(changes), setting.target)


def _rms(spectrum: LyapunovSpectrum, target: float) -> float:
    """Root mean square of each layer's exponents less the target, nats per step; of those that are not dead.

    Half of all rectified units are off at a time, whatever the weights. NaN where nothing lives.
    """
    away = torch.cat([part.exponents.double() - target for part in spectrum.layers.values()])
    return float(away[away > -math.inf].square().mean().sqrt())


def _why_not(after: LyapunovSpectrum, rms_before: float, rms_after: float, lag: float, *, has_target: bool) -> str:
    """Why the weights are better put back; empty where they are not.

    Args:
        after: As it was set.
        rms_before: Of the exponents less their target, as it was found.
        rms_after: The same as it was set.
        lag: Steps.
        has_target: Whether one number is the target of all exponents, so that they may be nearer to it.
    """
    if float(after.exponents[0]) == -math.inf:
        return "all directions of its state are dead after it"
    if not math.isfinite(rms_after) or math.isnan(float(after.exponents[0])):
        return "the exponents after it are not known"
    if has_target and rms_after >= rms_before and rms_before < 1 / lag:
        return "its exponents lay within 1 / lag of the target already"
    if has_target and rms_after >= rms_before:
        return (
            f"its exponents are no nearer to the target after it (rms {rms_before:.2g} before, {rms_after:.2g} after)"
        )
    if float(after.exponents[0] - after.error[0]) > TOO_MUCH / min(lag, after.steps + after.transient):
        return "its largest exponent is well above 0 after it"
    return ""
