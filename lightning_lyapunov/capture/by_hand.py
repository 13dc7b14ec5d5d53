"""Measuring by hand: a layer or a cell along its inputs, or layers of a network along what reaches them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lightning_lyapunov.capture.adapters import adapter_of
from lightning_lyapunov.capture.finding import Names, find
from lightning_lyapunov.engine.frames import Frames, seed_of
from lightning_lyapunov.engine.isolation import measuring
from lightning_lyapunov.engine.maps.cell import State
from lightning_lyapunov.engine.measure import measure, measure_layers, union_of_layers
from lightning_lyapunov.engine.settings import Settings, Start
from lightning_lyapunov.engine.spectrum import LyapunovSpectrum
from lightning_lyapunov.engine.system import device_of


def lyapunov_spectrum(
    system: Any,
    inputs: Any,
    *,
    module: Names | None = None,
    state: State | None = None,
    steps: int | None = None,
    k: int | None = None,
    transient: int | None = None,
    interval: int | None = None,
    dtype: torch.dtype | None = None,
    tolerance: float | None = None,
    generator: torch.Generator | None = None,
    frames: Frames | None = None,
    growth: int | None = None,
    second_start: bool = False,
) -> LyapunovSpectrum:
    r"""Estimate the Lyapunov spectrum of a driven map by QR (Benettin's method), and its growth over the sequences.

    .. math:: \lambda_i = \frac{1}{N} \sum_{n=1}^{N} \ln |R^{(n)}_{ii}|, \qquad J_n Q_{n-1} = Q_n R^{(n)}

    Layers of a stack, and directions of a bidirectional layer, are cocycles of their own: each is measured alone
    (:attr:`LyapunovSpectrum.layers`), and the network's spectrum is their sorted union. Dropout is off, as in eval
    mode; the system, its mode and the random state are left as they were.

    Args:
        system: The map :math:`h_{t+1} = f(h_t, x_t)`: ``nn.RNN``, ``nn.GRU``, ``nn.LSTM``, one of torch's cells, or a
            callable ``cell(x, state) -> state`` whose state is a tensor ``(B, ...)`` or a tuple of them. The state is
            the whole state: (h, c) for an LSTM. A module of another library that is registered
            (:mod:`lightning_lyapunov.capture.adapters`), a
            :class:`~lightning_lyapunov.engine.diagonal.DiagonalSystem`; or, with ``module``, a whole network.
        inputs: For a module what its forward takes (batch first, unbatched and packed included); for a cell or a
            callable ``(T, B, ...)``; None for an autonomous map, with ``steps`` and, for a callable, ``state`` given.
            For a network what its forward takes: a batch, or a tuple or a dict of arguments.
        module: Name of a layer inside the network, or several, as the callback takes them: what reaches them in one
            forward pass on the inputs drives them. The network runs in eval mode, and is left as it was.
        state: Initial state, as the system takes it; zeros if None.
        steps: Steps to run, the transient included; all the inputs have if None.
        k: Number of leading exponents, ``1 <= k <= D``; all of them if None. Cost grows with k.
        transient: Steps at the start during which state and frame settle and rates do not count; half of each
            sequence, at most 64, if None.
        interval: Steps between reorthonormalisations; chosen by the precision law
            (:mod:`lightning_lyapunov.engine.precision`) if None.
        dtype: ``torch.float32`` or ``torch.float64``; if None the trajectory is float64, and so are the tangent
            vectors unless they spread so little that float32 loses nothing. With float32 the states are float32 too;
            what their rounding does to saturated gates, or in chaos, is not judged by ``trusted``.
        tolerance: Stop early, at the first look after 32 measured steps at which every exponent's standard error is
            below it, in nats per step. Nothing of what ends early is called settled.
        generator: Source of the seed of the initial frames; seed 0 if None.
        frames: Those of earlier measurements of the same system, as it changes, on the same inputs: a warm start. They
            are kept in it for the next time.
        growth: How many leading singular values of the whole sequence's Jacobian to measure beside the exponents; 8,
            or k if that is less, if None, up to 4,096 steps; 0 for none, and no gain.
        second_start: Measure a second time, from states that other sequences ended in, and call settled only exponents
            in which both agree. Finds drifts that end within about as many steps; costs as much again.

    Returns:
        The exponents ``(K,)``, each with its error bar, growth and gain over the sequences, and how they were measured.

    Raises:
        ValueError: If an argument does not fit the system, holds NaN or infinite values, or leaves no step to measure;
            the message names the argument, what it was and what would do. What a cell of yours raises on the way is
            raised as it is.

    Source:
        Benettin et al., Meccanica 15 (1980) 9-30; compared with other methods in Geist et al., Prog. Theor. Phys. 83
        (1990) 875-893. For stacked and gated networks: Engelken, Wolf, Abbott, arXiv:2006.02427.

    Example:
        >>> import torch
        >>> from lightning_lyapunov import lyapunov_spectrum
        >>> def henon(_, state):
        ...     x, y = state[:, :1], state[:, 1:]
        ...     return torch.cat([1 - 1.4 * x**2 + y, 0.3 * x], 1)
        >>> start = torch.zeros(1, 2, dtype=torch.float64)
        >>> spectrum = lyapunov_spectrum(henon, None, state=start, steps=4000)
        >>> [round(float(e), 1) for e in spectrum.exponents]
        [0.4, -1.6]
    """
    settings = Settings(k, transient, interval, dtype, tolerance, growth, second_start)
    start = Start(seed_of(generator), 0, frames)
    if module is not None or (isinstance(system, nn.Module) and adapter_of(system) is not None):
        return _through_a_network(system, inputs, module, state, steps, settings, start)
    tally = measure(system, inputs, settings, state=state, steps=steps, start=start)
    parts = tally.spectra(k)
    return next(iter(parts.values())) if len(parts) == 1 else LyapunovSpectrum.union(parts, k, tally.growth)


def _through_a_network(
    network: Any,
    inputs: Any,
    names: Names | None,
    state: State | None,
    steps: int | None,
    settings: Settings,
    start: Start,
) -> LyapunovSpectrum:
    """The spectrum of layers inside a network, or of a module that is read by an adapter: what reaches them drives."""
    from lightning_lyapunov.capture.probe import driven_by  # which loads torch's compiler, and that takes a second

    if not isinstance(network, nn.Module):
        raise ValueError(f"module names a layer inside a network; system is no nn.Module but {type(network).__name__}.")
    if state is not None:
        raise ValueError("state is what reaches the layer in the forward pass; with module= it must be None.")
    found, _ = find(network, {"": adapter_of(network)} if names is None else names)
    is_several = isinstance(inputs, tuple) and not hasattr(inputs, "_fields")  # a packed sequence is a named tuple
    args = inputs if is_several else () if isinstance(inputs, Mapping) else (inputs,)
    kwargs = dict(inputs) if isinstance(inputs, Mapping) else {}
    with measuring(network, device_of(network, None, None)):
        try:
            driven = driven_by(network, found, *args, **kwargs)
        except TypeError as error:
            raise ValueError(
                f"inputs must be what {type(network).__name__}.forward takes, several in a tuple or by name in a dict; "
                f"one that is itself a tuple or a dict in a tuple, (batch,). It said: {error}"
            ) from error
    if missing := [name for name in found if name not in driven]:
        raise ValueError(f"module: no inputs reached {', '.join(missing)} in the forward pass on these inputs.")
    if steps is not None:
        driven = {name: replace(one, inputs=one.inputs.cut(steps)) for name, one in driven.items()}  # type: ignore[union-attr]
    tallies = measure_layers({name: replace(one, start=start) for name, one in driven.items()}, settings)
    return union_of_layers(tallies, settings.k)
