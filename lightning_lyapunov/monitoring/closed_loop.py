"""A forecaster that is fed with its own forecasts: the largest exponent of the map that it then is, while it trains."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, TypeAlias, cast

from torch import Tensor, nn

from lightning_lyapunov.capture.by_hand import lyapunov_spectrum
from lightning_lyapunov.engine.isolation import measuring
from lightning_lyapunov.engine.maps.cell import State, as_parts
from lightning_lyapunov.engine.spectrum import LyapunovSpectrum
from lightning_lyapunov.engine.system import device_of
from lightning_lyapunov.monitoring.budget import Budget, Kind

Loop: TypeAlias = "tuple[Callable[[None, State], State], State]"
"""The map ``step(None, state) -> state`` of a forecaster fed with its own forecasts, and the states that it begins at,
``(B, ...)`` or several of these."""
Closing: TypeAlias = "str | Callable[[Any], Any]"
"""What makes a :data:`Loop` of a model: a function of it, or the name of a method of its own."""

STEPS, FEWEST_STEPS = 500, 125
"""Steps of a measurement, and to which it is cut where there is no room for so many. 500 of eight sequences tell the
exponent of forecasters of the Lorenz system within .004 nats per step in .4 s of one core, 250 within .011."""
PILOTS = (8, 32)
"""Steps of the two measurements that tell what more will take: of so few, most of it goes into beginning."""


class ClosedLoop:
    """Measures the closed loop of a model, as far as there is room; where that fails it is told of and does no harm.

    The model is in eval mode meanwhile, its hooks at rest, without autocast and gradients; torch's random state is put
    back.

    Args:
        model: The forecaster, as ``closing`` takes it.
        closing: What makes a loop of it; None: nothing is measured.
        budget: That is charged.
        tell: Says something once, with ``warn`` and ``subject``.
    """

    def __init__(self, model: nn.Module, closing: Closing | None, budget: Budget, tell: Callable[..., None]) -> None:
        self._model, self._closing, self._budget, self._tell = model, closing, budget, tell
        self._begin = self._per_step = 0.0  # seconds that one takes to begin, and then for a step
        self._is_known = budget.share is None  # whether these are known, or need not be

    def exponent(self, has_room: Callable[[float], bool]) -> tuple[float, float] | None:
        """The largest exponent and the half-width of its 95 % bar, nats per step.

        Args:
            has_room: Whether so many more seconds may be spent.

        Returns:
            Both; None where there is no room for it, it is not asked for, or it could not be measured.
        """
        if self._closing is None:
            return None
        if not has_room(0.0):
            self._tell_left_out()
            return None
        try:
            if not self._is_known:
                self._pilot()
            steps = STEPS
            while not has_room(self._begin + steps * self._per_step):
                if (steps := steps // 2) < FEWEST_STEPS:
                    self._tell_left_out()
                    return None
            spectrum, seconds = self._measure(steps)
            self._per_step = max(seconds - self._begin, 0.0) / steps
        except Exception as error:  # the loop is the user's: anything may come out of it
            self._tell(
                f"closed_loop could not be measured, the rest is logged without it: {type(error).__name__}: {error}",
                warn="no-closed-loop",
                subject="closed loop",
            )
            return None
        return float(spectrum.exponents[0]), float(spectrum.error[0])

    def _tell_left_out(self) -> None:
        least = self._begin + FEWEST_STEPS * self._per_step
        takes = f", which takes about {least:.2g} s at least" if least else ""
        self._tell(
            f"closed_loop is left out of measurements where max_overhead has no room for it{takes}. max_overhead=None "
            "always makes it; after the fit lyapunov_spectrum(step, None, state=state, steps=500, k=1) tells the same.",
            subject="closed loop budget",
        )

    def _pilot(self) -> None:
        self._measure(PILOTS[0], "imports")  # what a process loads once takes most of its first measurement
        self._begin, more = (self._measure(steps)[1] for steps in PILOTS)
        self._per_step = max(more - self._begin, 0.0) / (PILOTS[1] - PILOTS[0])
        self._is_known = True

    def _measure(self, steps: int, kind: Kind = "measuring") -> tuple[LyapunovSpectrum, float]:
        began = time.perf_counter()
        with self._budget.spending(kind), measuring(self._model, device_of(self._model, None, None)):
            step, state = self._loop()
            spectrum = lyapunov_spectrum(step, None, state=state, steps=steps, k=1, growth=0)
        if math.isnan(spectrum.exponents[0]):
            raise ValueError("its exponent is NaN: fed with its own forecasts, the states of the model overflow.")
        return spectrum, time.perf_counter() - began

    def _loop(self) -> Loop:
        """What the user's function makes of the model.

        Raises:
            ValueError: If the model has no such method, if its parameters lie on several devices in pieces, or if what
                comes is no loop, or one of half precision.
        """
        closing, kind = self._closing, type(self._model).__name__
        if any(hasattr(parameter, "full_tensor") for parameter in self._model.parameters()):
            raise ValueError(f"the parameters of {kind} lie on several devices in pieces, and one alone runs the loop.")
        if isinstance(closing, str):
            closing = getattr(self._model, closing, None)
            if not callable(closing):
                raise ValueError(
                    f"closed_loop must be a function, or the name of a method of {kind}; got {self._closing!r}."
                )
            made = closing()
        else:
            made = cast("Callable[[Any], Any]", closing)(self._model)
        if not (isinstance(made, tuple) and len(made) == 2 and callable(made[0])):
            raise ValueError(
                "closed_loop must return (step, state), a map step(None, state) -> state and the states (B, ...) that "
                f"it begins at; got {_shown(made)}."
            )
        step, state = made
        if half := [part.dtype for part in as_parts(state) if isinstance(part, Tensor) and part.itemsize < 4]:
            raise ValueError(f"closed_loop must run in float32 or float64; its states are {half[0]}.")
        parts = tuple(part.detach().clone() if isinstance(part, Tensor) else part for part in as_parts(state))
        return step, parts[0] if isinstance(state, Tensor) else parts


def _shown(made: object) -> str:
    return f"a tuple of {len(made)}" if isinstance(made, tuple) else type(made).__name__
