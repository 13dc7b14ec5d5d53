"""One fit of a network, watched: what is recorded, measured, scored and remembered, whatever loop trains it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from lightning_lyapunov.capture.finding import architecture_of
from lightning_lyapunov.engine.spectrum import LyapunovSpectrum
from lightning_lyapunov.monitoring.budget import Budget, Plan
from lightning_lyapunov.monitoring.clock import Clock
from lightning_lyapunov.monitoring.closed_loop import ClosedLoop
from lightning_lyapunov.monitoring.facts import Facts
from lightning_lyapunov.monitoring.layers import Layers, Source
from lightning_lyapunov.monitoring.loggers.panels import Panels
from lightning_lyapunov.monitoring.notices import Notices
from lightning_lyapunov.monitoring.options import Options
from lightning_lyapunov.monitoring.ranks import Ranks
from lightning_lyapunov.monitoring.reference import Reference
from lightning_lyapunov.monitoring.scoring import Scoring
from lightning_lyapunov.names import selection
from lightning_lyapunov.reading.conditions import DEAD, explodes, is_chaotic
from lightning_lyapunov.reading.extent import extent
from lightning_lyapunov.reading.features import spectrum_features
from lightning_lyapunov.reading.history import History, Measurement
from lightning_lyapunov.reading.rules import news
from lightning_lyapunov.reading.verdict import verdict

FLOOR = DEAD
"""Nats per step. Exponents below, dead directions among them, are logged as this, since a monitor stops on infinity."""
MOST = 1e6
"""Steps, or nats over a sequence. A gradient horizon beyond is logged as this, and a gain of -inf as minus this."""
_NOTHING = Facts()
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Moment:
    """When a measurement is made."""

    step: int
    source: Source
    promised: bool
    progress: float


class Session:
    """Watches a network while it is trained, once.

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
        spectrum: The last one, the same on all ranks; None before the first.
        was_skipped: Whether the budget left no room for the last measurement.

    Raises:
        ValueError: If the model has no layer that can be measured, or not those that were named.
    """

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
        self.options, self.history, self.budget, self.clock = options, history, budget, clock
        self._model_name, self._notices, self._ranks, self._advice = type(model).__name__, notices, ranks, advice
        with budget.spending("recording"):
            self.layers = Layers(model, options.module, options.num_sequences, options.num_steps, notices.tell)
        self.scoring = Scoring(options.scorer, options.prefix, notices.tell)
        self.closed_loop = ClosedLoop(model, options.closed_loop, budget, notices.tell)
        self.reference = Reference(options.reference, options.prefix, notices.tell)
        self.panels = Panels(options.figures, self.warn_of_logger)
        self.spectrum: LyapunovSpectrum | None = None
        self.was_skipped = self.is_closed = False
        self._moment = _Moment(0, "validation", promised=True, progress=0.0)
        self._recording_counted = 0.0
        if ranks.is_first:
            with budget.spending("recording"):  # not "scoring", which each measurement costs again
                self.scoring.load()
                self.reference.load()

    def begin_logging(self, loggers: Sequence[Any]) -> None:
        """Tell the loggers how to group what is to come, and keep room for the pictures of the end."""
        names = selection(self.options.metrics, self.options.prefix)
        with self.budget.spending("logging"):
            self.panels.begin(loggers, self.options.prefix, names)
        self.budget.ahead = self.panels.seconds if self.panels.are_for(loggers) else 0.0

    def end_logging(self, loggers: Sequence[Any], step: int) -> None:
        """Draw the whole run once more, and write the table of all measurements."""
        self.draw(loggers, step, last=True)
        with self.budget.spending("logging"):
            self.panels.close(loggers, self.history, step)

    def close(self) -> None:
        """Take the hooks off the layers; a second time does nothing."""
        if not self.is_closed:
            self._count_recording()
            self.layers.remove()
            self.is_closed = True

    # ---------------------------------------------------------------- recording

    @contextmanager
    def record(self, source: Source) -> Iterator[None]:
        """Record what reaches the layers meanwhile, as one batch."""
        self.layers.begin_batch(source)
        try:
            yield
        finally:
            self.layers.end_batch(source)

    def _count_recording(self) -> None:
        seconds = self.layers.seconds
        self.budget.charge(seconds - self._recording_counted, "recording")
        self._recording_counted = seconds

    def has_recorded(self, source: Source | None = None) -> bool:
        """Whether inputs have reached a layer, on any rank; to be called on all of them at once."""
        return any(self._ranks.gather(self.layers.have_recorded(source)))

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
        """Measure the weights as they are; to be called on all ranks at once.

        Args:
            step: Updates made so far.
            epoch: In which they were.
            source: Whose inputs drive the layers, where there are any.
            is_partial: Whether what was recorded may be a part of the sequences alone, so that it is compared with no
                other.
            promised: Whether it is made even if the budget has no room for it.
            progress: Share of the fit that is done, 1 where not known.
            facts: What is known of the run, for the scorer; the measurement adds what it tells.

        Returns:
            The figures by name, the same on all ranks; None if there is no room for it, or it could not be done.
        """
        self._count_recording()
        with self.layers.paused():
            return self._measure(_Moment(step, source, promised, progress), epoch, source, is_partial, facts)

    def _measure(
        self, moment: _Moment, epoch: int, source: Source, is_partial: bool, facts: Facts
    ) -> dict[str, float] | None:
        step = moment.step
        self.was_skipped = False
        self._moment = moment
        try:
            whole = self._whole(source)
            plan = self._measure_within(whole, source)
        except Exception as error:
            self._warn(error)
            return None
        if plan is None:
            self.was_skipped = True
            return None
        figures = None
        if self._ranks.is_first:
            try:
                figures = self._figures(step, facts)
                self._keep(figures, plan, whole, step, epoch, facts.performance, is_partial)
            except Exception as error:
                self._warn(error)
                figures = None
        return self._ranks.from_first(figures)

    def _whole(self, source: Source) -> Plan:
        """What is measured where there is no bound, as far as it was recorded."""
        options, size = self.options, self.layers.largest_state
        recorded = self._ranks.gather(self.layers.recorded(source))
        sequences, steps = sum(count for count, _ in recorded), max(steps for _, steps in recorded)
        return Plan(min(options.num_sequences, sequences), min(options.num_steps, steps), min(options.k or size, size))

    def _measure_within(self, whole: Plan, source: Source) -> Plan | None:
        """Measure as much as the budget allows: how much that was."""
        plan = self._chosen(whole)
        if plan is None:
            return None
        if (pilot := self._ranks.from_first(self.budget.pilot(plan, self.layers.largest_state))) is not None:
            self._measure_as_planned(pilot, source)
            plan = self._chosen(whole)
            if plan is None or plan.work <= pilot.work:
                return pilot
        self._measure_as_planned(plan, source)
        return plan

    def _chosen(self, whole: Plan) -> Plan | None:
        """How much of a measurement there is room for; rank zero decides."""
        plan = None
        if self._ranks.is_first:
            at, trained = self._moment, self.clock.trained
            plan = self.budget.choose(
                whole,
                trained,
                promised=at.promised,
                training_step=self.clock.per_step(at.step),
                progress=at.progress,
            )
            self._tell_of_budget(plan, whole)
        return self._ranks.from_first(plan)

    def _tell_of_budget(self, plan: Plan | None, whole: Plan) -> None:
        """Say once that the budget makes measurements smaller, and once that one that is promised breaks it."""
        if plan == whole:
            return
        share = self.budget.share
        self._notices.tell(
            f"to stay within {share:.0%} of the training time, or one second in all, measurements are made smaller or "
            f"spaced out; a whole one takes {self.budget.predicted(whole):.2g} s. max_overhead=None always makes whole "
            "ones; a smaller k, num_sequences or num_steps costs less.",
            subject="budget",
        )
        if plan is not None and self._moment.promised and not self.budget.fits(plan, self.clock.trained):
            self._notices.tell(
                f"a measurement that is always made, before training, in the first epoch and at its end, takes more "
                f"than max_overhead={share:g} allows: about {self.budget.cost(plan):.2g} s.",
                subject="promised",
            )

    def _measure_as_planned(self, plan: Plan, source: Source) -> None:
        with self.budget.measuring(plan):
            spectrum = self.layers.spectrum(
                self._ranks, source, plan, self.options.settings, warm_start=self.options.warm_start
            )
            if any(part.exponents[0].isnan() for part in (spectrum, *spectrum.parts.values())):
                raise ValueError("the largest exponent is NaN: the states of the network overflow along its inputs.")
            self.spectrum = spectrum

    def _figures(self, step: int, facts: Facts) -> dict[str, float]:
        """What is known of the last spectrum, by name: finite numbers only; what is unknown is left out."""
        assert self.spectrum is not None
        spectrum = self.spectrum
        with self.budget.spending("measuring"):
            values = spectrum_features(spectrum)
            values["floored"] = float((spectrum.exponents <= FLOOR).sum())
            values |= {f"{name}/max": float(part.exponents[0]) for name, part in spectrum.parts.items()}
            figures = {name: _bounded(name, value) for name, value in values.items() if not math.isnan(value)}
            source = "" if self.layers.seen is None else self.layers.seen.source
            if (distance := self.reference.distance(spectrum, step, source)) is not None:
                figures["distance"] = distance
        with self.budget.spending("scoring"):
            seen = self.layers.seen
            facts = facts.measured(spectrum, None if seen is None else seen.longest)
            figures |= self.scoring.scores(spectrum, self.layers.measured, step, facts)
        if (closed := self.closed_loop.exponent(self._has_room)) is not None:
            both = zip(("closed_loop_max", "closed_loop_error"), closed, strict=True)
            figures |= {name: _bounded(name, value) for name, value in both if not math.isnan(value)}
        figures["seconds"] = self.budget.last_seconds
        if step > 0 and (trained := self.clock.trained) > 0:
            figures["overhead"] = self.budget.spent / trained
        return figures

    def _has_room(self, seconds: float) -> bool:
        """Whether so much more may be spent on what can wait, and leave room for another measurement if one follows."""
        at = self._moment
        later = 0.0 if at.promised else self.budget.last_seconds
        return self.budget.allows(seconds + later, self.clock.trained, at.progress)

    def _keep(
        self,
        figures: dict[str, float],
        plan: Plan,
        whole: Plan,
        step: int,
        epoch: int,
        performance: float | None,
        is_partial: bool,
    ) -> None:
        """Add the measurement to the history."""
        spectrum, seen = self.spectrum, self.layers.seen
        assert spectrum is not None and seen is not None
        parts = spectrum.layers.values()
        steps = min(plan.steps, whole.steps)
        transient = min(max(part.transient for part in parts), steps)
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
        score = self.scoring.score
        measurement = Measurement.of(
            spectrum,
            step=step,
            epoch=epoch,
            metrics=figures,
            length=seen.longest,
            steps=steps,
            source=f"partial {seen.source}" if is_partial else seen.source,
            seen=seen.sequences,
            fewer=fewer,
            latent=None if score is None else score.latent,
            reached=performance,
        )
        is_skill = self.options.performance_range is not None
        measurement = replace(
            measurement,
            skill=performance if performance is not None and is_skill else math.nan,
            speaks=None if score is None else ", ".join(score.speaks),
            cell=architecture_of(self.layers.measured),
        )
        if step == 0:
            measurement = replace(measurement, softening=self._softening(measurement))
        self.history.append(measurement)
        if (said := verdict(self.history)) is not None:
            figures["verdict"] = measurement.metrics["verdict"] = float(said.number)

    def _softening(self, measurement: Measurement) -> dict[str, float]:
        """What would cure layers of chaos before the first update, by name; nothing where that cannot be told."""
        is_growing = is_chaotic(measurement) or explodes(measurement)
        if is_growing and not self._has_room(2 * self.budget.last_seconds):  # about what it takes
            return {}
        with self.budget.spending("measuring"), suppress(Exception):  # it is advice alone
            return self.layers.softening(self._moment.source, look=is_growing)
        return {}

    # ---------------------------------------------------------------- telling

    def tell_news(self) -> None:
        """Say it in words when a state begins."""
        try:
            for finding in news(self.history):
                level = logging.INFO if finding.level == "note" else logging.WARNING
                _log.log(level, "%d updates: %s", self.history[-1].step, finding.text)
        except Exception as error:
            self._notices.tell(f"what the measurement means could not be told: {error}", warn=True, subject="news")

    def draw(self, loggers: Sequence[Any], step: int, *, last: bool = False) -> None:
        """Draw pictures if it is time, and if the budget leaves room for them; at the end in any case."""
        if last:
            self.budget.ahead = 0.0
        elif not self.panels.is_due(loggers):
            return
        if not last and not self.budget.allows(self.panels.seconds, self.clock.trained, self._moment.progress):
            return
        try:
            if self.panels.are_for(loggers):
                with self.budget.spending("imports"):
                    self.panels.load()
            with self.budget.spending("pictures"):
                self.panels.draw(loggers, self.history, step, self.scoring.ready)
        except Exception as error:
            self.panels.stop()
            self._notices.tell(f"no pictures are drawn: {error}", warn=not isinstance(error, ImportError))

    def write_report(self, directory: str, settings: Mapping[str, Any]) -> Path | None:
        """Write the page about the fit, as far as it came: where it lies; None if there is nothing to write."""
        if not len(self.history):
            return None
        prefix = self.options.prefix
        try:
            with self.budget.spending("imports"):
                from lightning_lyapunov.report import write_report
            with self.budget.spending("report"):
                path = Path(directory) / ("lyapunov.html" if prefix == "lyapunov" else f"{prefix}.html")
                title = f"Lyapunov spectrum of {self._model_name}"
                latent_map = self.panels.map_for(self.scoring.ready)
                written = write_report(self.history, path, settings=settings, title=title, latent_map=latent_map)
        except Exception as error:
            self._notices.tell(f"the report could not be written: {error}", warn=True, subject="report")
            return None
        self._notices.tell(f"wrote {written}", subject=f"report {written}")
        return written

    def warn_of_logger(self, logger: Any, error: Exception) -> None:
        """Say once that a logger refused something."""
        text = f"{type(logger).__name__} refused the measurement ({type(error).__name__}: {error})."
        self._notices.tell(text, warn=True, subject=type(logger).__name__)

    def _warn(self, error: Exception) -> None:
        warn_of_failure(self._notices, error, self._advice)


def warn_of_failure(notices: Notices, error: Exception, advice: str = "") -> None:
    """Say once that nothing is measured, and what to do about it."""
    notices.tell(
        f"the Lyapunov spectrum could not be measured, training goes on without it: {error}{advice}",
        warn=True,
        subject="failure",
    )


def _bounded(name: str, value: float) -> float:
    """A figure as it is logged: a rate no lower than a floor, a change over a sequence as it is, neither infinite."""
    return min(max(value, -MOST if name.startswith("gradient_") else FLOOR), MOST)
