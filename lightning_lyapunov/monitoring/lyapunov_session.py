"""The recurrent layers of a network, watched: their spectrum, what a scorer says of it, and what it means."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_lyapunov.capture.finding import architecture_of
from lightning_lyapunov.engine.spectrum import LyapunovSpectrum
from lightning_lyapunov.monitoring.budget import Budget, Plan
from lightning_lyapunov.monitoring.clock import Clock
from lightning_lyapunov.monitoring.closed_loop import ClosedLoop
from lightning_lyapunov.monitoring.facts import Facts
from lightning_lyapunov.monitoring.layers import Layers
from lightning_lyapunov.monitoring.loggers.panels import Panels
from lightning_lyapunov.monitoring.notices import Notices
from lightning_lyapunov.monitoring.options import Options
from lightning_lyapunov.monitoring.ranks import Ranks
from lightning_lyapunov.monitoring.reference import Reference
from lightning_lyapunov.monitoring.scoring import Scoring
from lightning_lyapunov.monitoring.session import Session
from lightning_lyapunov.monitoring.watch import Source
from lightning_lyapunov.reading.conditions import DEAD, grows_gravely, is_chaotic
from lightning_lyapunov.reading.extent import extent
from lightning_lyapunov.reading.features import spectrum_features
from lightning_lyapunov.reading.history import History, Measurement
from lightning_lyapunov.reading.rules import Finding, news
from lightning_lyapunov.reading.verdict import Verdict, verdict

FLOOR = DEAD
"""Nats per step. Exponents below, dead directions among them, are logged as this, since a monitor stops on infinity."""
MOST = 1e6
"""Steps, or nats over a sequence. A gradient horizon beyond is logged as this, and a gain of -inf as minus this."""
_NOTHING = Facts()


class LyapunovSession(Session):
    """Watches the recurrent layers of a network while it is trained, once.

    Args:
        model: The network.
        options: What to measure, and what to make of it.
        history: To which measurements are added.
        budget: That pays for them.
        clock: That counts the seconds of training.
        notices: Says what is to be said.
        ranks: Who measures together; the history is kept on rank zero.
        advice: What is added where a measurement has failed.

    Attributes:
        layers: Those that are watched.
        scoring: The scorer at work.

    Raises:
        ValueError: If the model has no layer that can be measured, or not those that were named.
    """

    options_type, kind = Options, Measurement
    measures = "the Lyapunov spectrum"
    saves = "a smaller k, num_sequences or num_steps"

    options: Options
    history: History
    spectrum: LyapunovSpectrum | None

    def __init__(
        self,
        model: nn.Module,
        options: Options,
        history: History,
        budget: Budget,
        clock: Clock,
        notices: Notices,
        ranks: Ranks,
        advice: str = "",
    ) -> None:
        super().__init__(model, options, history, budget, clock, notices, ranks, advice)
        self.scoring = Scoring(options.scorer, options.prefix, notices.tell)
        self.closed_loop = ClosedLoop(model, options.closed_loop, budget, notices.tell)
        self.reference = Reference(options.reference, options.prefix, notices.tell)
        self._facts = _NOTHING
        if ranks.is_first:
            with budget.spending("recording"):  # not "scoring", which each measurement costs again
                self.scoring.load()
                self.reference.load()

    def _watching(self, model: nn.Module) -> Layers:
        told = self.options
        self.layers = Layers(model, told.module, told.num_sequences, told.num_steps, self._notices.tell)
        return self.layers

    # ---------------------------------------------------------------- measuring

    def measure(
        self,
        step: int,
        epoch: int = 0,
        *,
        source: Source,
        is_partial: bool = False,
        promised: bool = False,
        progress: float = 1.0,
        facts: Facts = _NOTHING,
    ) -> dict[str, float] | None:
        """As in the base.

        Args:
            step: Updates made so far.
            epoch: In which they were.
            source: As in the base.
            is_partial: As in the base.
            promised: As in the base.
            progress: As in the base.
            facts: What is known of the run, for the scorer; the measurement adds what it tells.
        """
        self._facts = facts
        return super().measure(step, epoch, source=source, is_partial=is_partial, promised=promised, progress=progress)

    def _whole(self, source: Source) -> Plan:
        options, size = self.options, self._state_size
        recorded = self._ranks.gather(self.layers.recorded(source))
        sequences, steps = sum(count for count, _ in recorded), max(steps for _, steps in recorded)
        return Plan(min(options.num_sequences, sequences), min(options.num_steps, steps), min(options.k or size, size))

    @property
    def _state_size(self) -> int:
        return self.layers.largest_state

    def _spectrum(self, plan: Plan, source: Source) -> LyapunovSpectrum:
        settings, warm = self.options.settings, self.options.warm_start
        spectrum = self.layers.spectrum(self._ranks, source, plan, settings, warm_start=warm)
        if any(part.exponents[0].isnan() for part in (spectrum, *spectrum.parts.values())):
            raise ValueError("the largest exponent is NaN: the states of the network overflow along its inputs.")
        return spectrum

    @property
    def histogram(self) -> Tensor | None:
        """The exponents (K,), nats per step."""
        return None if self.spectrum is None else self.spectrum.exponents

    def _figures(self) -> dict[str, float]:
        assert self.spectrum is not None
        spectrum, seen, step = self.spectrum, self.layers.seen, self._moment.step
        with self.budget.spending("measuring"):
            values = spectrum_features(spectrum)
            values["floored"] = float((spectrum.exponents <= FLOOR).sum())
            values |= {f"{name}/max": float(part.exponents[0]) for name, part in spectrum.parts.items()}
            figures = {name: _bounded(name, value) for name, value in values.items() if not math.isnan(value)}
            distance = self.reference.distance(spectrum, step, "" if seen is None else seen.source)
            if distance is not None:
                figures["distance"] = distance
        with self.budget.spending("scoring"):
            facts = self._facts.measured(spectrum, None if seen is None else seen.longest)
            figures |= self.scoring.scores(spectrum, self.layers.measured, step, facts)
        if (closed := self.closed_loop.exponent(self._has_room)) is not None:
            both = zip(("closed_loop_max", "closed_loop_error"), closed, strict=True)
            figures |= {name: _bounded(name, value) for name, value in both if not math.isnan(value)}
        return figures

    def _keep(self, figures: dict[str, float], plan: Plan, whole: Plan) -> None:
        spectrum, seen, at, score = self.spectrum, self.layers.seen, self._moment, self.scoring.score
        assert spectrum is not None and seen is not None
        steps, reached = min(plan.steps, whole.steps), self._facts.performance
        fewer = self._fewer(plan, whole, steps)
        measurement = Measurement.of(
            spectrum,
            step=at.step,
            epoch=at.epoch,
            metrics=figures,
            length=seen.longest,
            steps=steps,
            source=f"partial {seen.source}" if at.is_partial else seen.source,
            seen=seen.sequences,
            fewer=fewer,
            latent=None if score is None else score.latent,
            reached=reached,
        )
        is_skill = self.options.performance_range is not None
        measurement = replace(
            measurement,
            skill=reached if reached is not None and is_skill else math.nan,
            speaks=None if score is None else ", ".join(score.speaks),
            cell=architecture_of(self.layers.measured),
        )
        if at.step == 0:
            measurement = replace(measurement, softening=self._softening(measurement))
        self.history.append(measurement)

    def _fewer(self, plan: Plan, whole: Plan, steps: int) -> str:
        """How much less was measured than seen, and why; said once."""
        spectrum, seen = self.spectrum, self.layers.seen
        assert spectrum is not None and seen is not None
        transient = min(max(part.transient for part in spectrum.layers.values()), steps)
        fewer = extent(
            sequences=spectrum.sequences,
            steps=steps,
            counted=steps - transient,
            seen=seen.sequences,
            length=seen.longest,
            num_sequences=self.options.num_sequences,
            num_steps=self.options.num_steps,
            pieces=seen.pieces,
            over_budget=plan.work < whole.work,
        )
        if fewer:
            self._notices.tell(f"of what the layers were given, measured are {fewer}.", subject="extent")
        return fewer

    def _softening(self, measurement: Measurement) -> dict[str, float]:
        """What would cure layers of chaos before the first update, by name; nothing where that cannot be told."""
        is_growing = is_chaotic(measurement) or grows_gravely(measurement)
        about = 2 * self.budget.last_seconds
        if is_growing and not self.budget.allows_now(about, self.clock.trained):
            return {}
        with self.budget.spending("measuring"), suppress(Exception):  # it is advice alone
            return self.layers.softening(self._moment.source, look=is_growing)
        return {}

    # ---------------------------------------------------------------- telling

    def _panels(self) -> Panels:
        return Panels(self.options.figures, self.warn_of_logger)

    def _verdict(self) -> Verdict | None:
        return verdict(self.history)

    def _is_measured(self, name: str) -> bool:
        options = self.options
        needs = {
            "closed_loop_": options.closed_loop,
            "distance": options.reference,
            "aelle/": options.scorer,
            "gradient_": options.growth != 0 or None,
        }
        return all(needed is not None for start, needed in needs.items() if name.startswith(start))

    def _news(self) -> Sequence[Finding]:
        return news(self.history)

    def _drawn(self, history: History) -> Mapping[str, Any]:
        from lightning_lyapunov.figures import figures_of

        return figures_of(history, self.scoring.latent_map)

    def _report(self) -> Callable[[Path, Mapping[str, Any]], Path]:
        from lightning_lyapunov.report import write_report

        def write(path: Path, settings: Mapping[str, Any]) -> Path:
            title, latent_map = f"Lyapunov spectrum of {self._model_name}", self.scoring.latent_map
            return write_report(self.history, path, settings=settings, title=title, latent_map=latent_map)

        return write


def _bounded(name: str, value: float) -> float:
    """A figure as it is logged: a rate no lower than a floor, a change over a sequence as it is, neither infinite."""
    return min(max(value, -MOST if name.startswith("gradient_") else FLOOR), MOST)
