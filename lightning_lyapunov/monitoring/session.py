"""One fit of a network, watched: what is recorded, measured, logged and remembered, whatever loop trains it."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from lightning_lyapunov.monitoring.budget import FEWEST, Budget, Plan
from lightning_lyapunov.monitoring.clock import Clock
from lightning_lyapunov.monitoring.loggers.labels import Labels
from lightning_lyapunov.monitoring.loggers.panels import Panels
from lightning_lyapunov.monitoring.notices import Notices, say
from lightning_lyapunov.monitoring.options import CommonOptions
from lightning_lyapunov.monitoring.ranks import Ranks
from lightning_lyapunov.monitoring.watch import Source, Watch
from lightning_lyapunov.monitoring.writers import write_figures
from lightning_lyapunov.names import selected
from lightning_lyapunov.reading.history import History
from lightning_lyapunov.reading.kept import Kept
from lightning_lyapunov.reading.rules import Finding
from lightning_lyapunov.reading.verdict import WORDS, Verdict


@dataclass(frozen=True)
class Moment:
    """When a measurement is made."""

    step: int
    epoch: int
    source: Source
    is_partial: bool
    promised: bool
    progress: float


class Session(ABC):
    """Watches a network while it is trained, once.

    What is measured, of which parts, and what is kept of it are a subclass's: see the methods without a body.

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
        watch: Records what reaches the parts that are measured.
        spectrum: The last one, the same on all ranks; None before the first.
        was_skipped: Whether the budget left no room for the last measurement.

    Raises:
        ValueError: If the model has nothing that can be measured, or not what was named.
    """

    options_type: ClassVar[type[CommonOptions]]
    """What it is told."""
    kind: ClassVar[type[Kept]]
    """What is kept of a measurement."""
    measures: ClassVar[str]
    """What cannot be measured, in a sentence."""
    saves: ClassVar[str]
    """Options that make a measurement cheaper, in a sentence."""
    fewest: ClassVar[Plan] = FEWEST
    """To which a measurement that could wait is cut at most."""

    watch: Watch
    spectrum: Any

    def __init__(
        self,
        model: nn.Module,
        options: CommonOptions,
        history: History[Any],
        budget: Budget,
        clock: Clock,
        notices: Notices,
        ranks: Ranks,
        advice: str = "",
    ) -> None:
        self.options, self.history, self.budget, self.clock = options, history, budget, clock
        self._model_name, self._notices, self._ranks, self._advice = type(model).__name__, notices, ranks, advice
        self.spectrum = None
        self.was_skipped = self.is_closed = False
        self._moment = Moment(0, 0, "validation", is_partial=False, promised=True, progress=0.0)
        self._recording_counted = 0.0
        with budget.spending("recording"):
            self.watch = self._watching(model)
        self.panels, self._labels = self._panels(), Labels(options.prefix, self.warn_of_logger)
        self._said: Verdict | None = None  # of the last measurement
        self._known = {name: None for measurement in history for name in measurement.metrics}  # at any time so far

    def begin_logging(self, loggers: Sequence[Any], settings: Mapping[str, Any]) -> None:
        """Tell the loggers how to group what is to come, and keep room for the pictures of the end.

        Args:
            loggers: What is written to.
            settings: What is measured with, by name.
        """
        with self.budget.spending("logging"):
            self.panels.begin(loggers, self.options.prefix, self.options.logged)
            self._labels.begin(settings, alerted=WORDS.index("act") in self.history.values("verdict"))
        self.budget.ahead = self.panels.seconds if self.panels.are_for(loggers) else 0.0

    def write(
        self, loggers: Sequence[Any], figures: Mapping[str, float], step: int, *, epoch: int | None = None
    ) -> None:
        """Write a measurement to the loggers, and on rank zero what to make of it.

        Args:
            loggers: What is written to.
            figures: What :meth:`measure` returned.
            step: Place on the loggers' axis.
            epoch: Written beside the figures, if given.
        """
        self._known |= dict.fromkeys(figures)
        with self.budget.spending("logging"):
            row, drawn = self._row(figures), self.histogram if self.options.with_histogram else None
            write_figures(
                loggers, row, step, self.options.prefix, drawn, self.warn_of_logger, known=self._known, epoch=epoch
            )
            if self._ranks.is_first:
                self._labels.write(loggers, self._said, step)

    def _row(self, figures: Mapping[str, float]) -> dict[str, float]:
        """What was asked for, by name: the same names for every measurement of a run, NaN where it is not known now.

        What is known changes within a run: where the budget measures fewer exponents than before, some of what they
        tell is not known any more. To leave it out would let every tracker show that of an earlier measurement beside
        the rest of this one, as if it were the last. Monitors are not told it: they end a run on NaN.
        """
        logged, table = self.options.logged, self.options.table
        ours = [name for name in logged if name != table.of_a_part and self._is_measured(name)]
        every = dict.fromkeys((*ours, *self._known), math.nan)
        return selected(every | dict(figures), logged, table)

    def end_logging(self, loggers: Sequence[Any], step: int) -> None:
        """Draw the whole run once more, write the table of all measurements, and the verdict."""
        self.draw(loggers, step, last=True)
        with self.budget.spending("logging"):
            self.panels.close(loggers, self.history, step)
            self._labels.write(loggers, self._said, step, last=True)

    def close(self) -> None:
        """Take the hooks off the network; a second time does nothing."""
        if not self.is_closed:
            self._count_recording()
            self.watch.remove()
            self.is_closed = True

    # ---------------------------------------------------------------- what a subclass says

    @abstractmethod
    def _watching(self, model: nn.Module) -> Watch:
        """What records; charged as recording.

        Raises:
            ValueError: If the model has nothing that can be measured, or not what was named.
        """

    @abstractmethod
    def _panels(self) -> Panels:
        """What the loggers are shown."""

    @abstractmethod
    def _whole(self, source: Source) -> Plan:
        """What is measured where there is no bound, as far as it was recorded; to be called on all ranks."""

    @abstractmethod
    def _spectrum(self, plan: Plan, source: Source) -> Any:
        """Measure as much as a plan says, on all ranks together.

        Raises:
            ValueError: If it cannot be done, on all ranks alike.
        """

    @abstractmethod
    def _figures(self) -> dict[str, float]:
        """What is known of the last spectrum, by name: finite numbers only; what is unknown is left out."""

    @abstractmethod
    def _keep(self, figures: dict[str, float], plan: Plan, whole: Plan) -> None:
        """Add the last measurement to the history.

        Args:
            figures: By name.
            plan: How much was measured.
            whole: How much there was to measure.
        """

    def _verdict(self) -> Verdict | None:
        """What to make of the run; None before the first measurement, or where nobody judges it."""
        return None

    def _is_measured(self, name: str) -> bool:
        """Whether a figure is measured, as the options are."""
        return True

    @abstractmethod
    def _news(self) -> Sequence[Finding]:
        """What has begun with the last measurement, in words."""

    @abstractmethod
    def _drawn(self, history: History[Any]) -> Mapping[str, Any]:
        """Figures of matplotlib's, by name."""

    @abstractmethod
    def _report(self) -> Callable[[Path, Mapping[str, Any]], Path]:
        """What writes the page about the fit, with these settings, and tells where it lies; imported by now."""

    @property
    def histogram(self) -> Tensor | None:
        """What is logged as a histogram, if that was asked for; None before the first measurement."""
        return None

    @property
    def _state_size(self) -> int:
        """About the dimension of the largest state; 0 where that makes no difference."""
        return 0

    # ---------------------------------------------------------------- recording

    @contextmanager
    def record(self, source: Source) -> Iterator[None]:
        """Record what reaches the network's parts meanwhile, as one batch."""
        self.watch.begin_batch(source)
        try:
            yield
        finally:
            self.watch.end_batch(source)

    def _count_recording(self) -> None:
        seconds = self.watch.seconds
        self.budget.charge(seconds - self._recording_counted, "recording")
        self._recording_counted = seconds

    def has_recorded(self, source: Source | None = None) -> bool:
        """Whether anything was recorded, on any rank; to be called on all of them at once."""
        return any(self._ranks.gather(self.watch.have_recorded(source)))

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
    ) -> dict[str, float] | None:
        """Measure the weights as they are; to be called on all ranks at once.

        Args:
            step: Updates made so far.
            epoch: In which they were.
            source: Whose inputs drive the network, where there are any.
            is_partial: Whether what was recorded may be a part of the sequences alone, so that it is compared with no
                other.
            promised: Whether it is made even if the budget has no room for it.
            progress: Share of the fit that is done, 1 where not known.

        Returns:
            The figures by name, the same on all ranks; None if there is no room for it, or it could not be done.
        """
        self._count_recording()
        self._moment = Moment(step, epoch, source, is_partial, promised, progress)
        with self.watch.paused():
            return self._measure()

    def _measure(self) -> dict[str, float] | None:
        self.was_skipped = False
        try:
            whole = self._whole(self._moment.source)
            plan = self._measure_within(whole)
        except Exception as error:
            self._warn(error)
            return None
        if plan is None:
            self.was_skipped = True
            self.history.missed = self._moment.step, f"max_overhead={self.budget.share} left no room for it"
            return None
        figures = None
        if self._ranks.is_first:
            try:
                figures = self._figures() | self._costs()
                self._keep(figures, plan, whole)
                self._said = self._verdict()
                if self._said is not None:
                    figures["verdict"] = self.history[-1].metrics["verdict"] = float(self._said.number)
            except Exception as error:
                self._warn(error)
                figures = None
        return self._ranks.from_first(figures)

    def _measure_within(self, whole: Plan) -> Plan | None:
        """Measure as much as the budget allows: how much that was."""
        plan = self._chosen(whole)
        if plan is None:
            return None
        pilot = self._ranks.from_first(self.budget.pilot(plan, self._state_size, self.fewest))
        if pilot is not None:
            self._measure_as_planned(pilot)
            plan = self._chosen(whole)
            if plan is None or plan.work <= pilot.work:
                return pilot
        self._measure_as_planned(plan)
        return plan

    def _chosen(self, whole: Plan) -> Plan | None:
        """How much of a measurement there is room for; rank zero decides."""
        plan = None
        if self._ranks.is_first:
            at = self._moment
            plan = self.budget.choose(
                whole,
                self.clock.trained,
                promised=at.promised,
                training_step=self.clock.per_step(at.step),
                progress=at.progress,
                fewest=self.fewest,
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
            f"ones; {self.saves} costs less.",
            subject="budget",
        )
        if plan is not None and self._moment.promised and not self.budget.fits(plan, self.clock.trained):
            self._notices.tell(
                f"a measurement that is always made, before training, in the first epoch and at its end, takes more "
                f"than max_overhead={share:g} allows: about {self.budget.cost(plan):.2g} s.",
                subject="promised",
            )

    def _measure_as_planned(self, plan: Plan) -> None:
        with self.budget.measuring(plan):
            self.spectrum = self._spectrum(plan, self._moment.source)

    def _costs(self) -> dict[str, float]:
        """What the last measurement took, and the share of all of it in the training time."""
        step, trained = self._moment.step, self.clock.trained
        costs = {"seconds": self.budget.last_seconds}
        return costs | {"overhead": self.budget.spent / trained} if step > 0 and trained > 0 else costs

    def _has_room(self, seconds: float) -> bool:
        """Whether so much more may be spent on what can wait, and leave room for another measurement if one follows."""
        at = self._moment
        later = 0.0 if at.promised else self.budget.last_seconds
        return self.budget.allows(seconds + later, self.clock.trained, at.progress)

    # ---------------------------------------------------------------- telling

    def tell_news(self) -> None:
        """Say it in words when a state begins."""
        try:
            for finding in self._news():
                level = logging.INFO if finding.level == "note" else logging.WARNING
                say(f"{self.history[-1].step} updates: {finding.text}", level)
        except Exception as error:
            self._notices.tell(
                f"what the measurement means could not be told: {error}", warn="no-pictures-or-page", subject="news"
            )

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
                self.panels.draw(loggers, self.history, step, self._drawn)
        except Exception as error:
            self.panels.stop()
            self._notices.tell(
                f"no pictures are drawn: {error}",
                warn="" if isinstance(error, ImportError) else "no-pictures-or-page",
            )

    def write_report(self, directory: str, settings: Mapping[str, Any], loggers: Sequence[Any] = ()) -> Path | None:
        """Write the page about the fit, as far as it came, and give it to the loggers that keep files.

        Args:
            directory: Where it goes.
            settings: What was measured with, by name.
            loggers: Who gets a copy.

        Returns:
            Where it lies; None if there is nothing to write.
        """
        if not len(self.history):
            return None
        try:
            with self.budget.spending("imports"):
                write = self._report()
            with self.budget.spending("report"):
                written = write(Path(directory) / f"{self.options.prefix}.html", settings)
                self._labels.keep(loggers, written)
        except Exception as error:
            self._notices.tell(
                f"the report could not be written: {error}", warn="no-pictures-or-page", subject="report"
            )
            return None
        self._notices.tell(f"wrote {written}", subject=f"report {written}")
        return written

    def warn_of_logger(self, logger: Any, error: Exception) -> None:
        """Say once that a logger refused something."""
        text = f"{type(logger).__name__} refused the measurement ({type(error).__name__}: {error})."
        self._notices.tell(text, warn="logger-refused", subject=type(logger).__name__)

    def _warn(self, error: Exception) -> None:
        self.history.missed = self._moment.step, f"it could not be measured: {error}"
        self.warn_of_failure(self._notices, error, self._advice)

    @classmethod
    def warn_of_failure(cls, notices: Notices, error: Exception, advice: str = "") -> None:
        """Say once that nothing is measured, and what to do about it."""
        notices.tell(
            f"{cls.measures} could not be measured, training goes on without it: {error}{advice}",
            warn="not-measured",
            subject="failure",
        )
