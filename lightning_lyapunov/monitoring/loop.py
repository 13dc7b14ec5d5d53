"""The monitor of a plain training loop, whatever it measures: all of a callback, without a Trainer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from torch import nn

from lightning_lyapunov.monitoring.budget import Budget
from lightning_lyapunov.monitoring.checkpoint import restore, state_of
from lightning_lyapunov.monitoring.clock import Clock
from lightning_lyapunov.monitoring.notices import Notices
from lightning_lyapunov.monitoring.options import CommonOptions
from lightning_lyapunov.monitoring.ranks import current_ranks
from lightning_lyapunov.monitoring.session import Session
from lightning_lyapunov.monitoring.showing import course_of, defaults_of, described
from lightning_lyapunov.monitoring.watch import Source
from lightning_lyapunov.monitoring.writers import Target, writers_of
from lightning_lyapunov.reading.history import History
from lightning_lyapunov.reading.verdict import Verdict

if TYPE_CHECKING:
    from typing_extensions import Self

_WRAPPERS = ("DistributedDataParallel", "DataParallel", "_FabricModule", "DeepSpeedEngine")
_SOURCES: tuple[Source, ...] = get_args(Source)


class LoopMonitor:
    """Watches a network in a training loop of your own; a subclass says what is measured.

    Args:
        model: The network; what wraps it, as DistributedDataParallel does, is seen through.
        options: What to measure, and what to make of it.
        to: Where figures and pictures are written.

    Attributes:
        history: What was measured.

    Raises:
        ValueError: If the model has nothing that can be measured, or not what is named, or if its parameters lie in
            flat pieces (FSDP1).
    """

    _session_type: ClassVar[type[Session]]
    """What measures."""
    _elsewhere: ClassVar[tuple[str, ...]] = ("module",)
    """Options that are told otherwise than by name."""
    _when: ClassVar[str] = "When to measure is told to measure()."
    """What is told elsewhere, in a sentence."""
    _options: CommonOptions
    _session: Session
    history: History[Any]

    def __init__(self, model: nn.Module, options: CommonOptions, to: Target | Sequence[Target] | None) -> None:
        self._options = options
        self.history = History(options.prefix, self._session_type.kind)
        self._budget = Budget(options.max_overhead)
        self._clock = Clock(lambda: self._budget.away)
        self._writers = writers_of(to)
        self._ranks = current_ranks()
        silent = None if self._ranks.is_first else lambda _: None
        self._notices = Notices(type(self).__name__, silent, silent)
        parts = self.history, self._budget, self._clock, self._notices, self._ranks
        self._session = self._session_type(_unwrapped(model), options, *parts)
        self._source: Source | None = None  # of what was recorded last
        self._is_used = False  # whether what was recorded has been measured
        self._tried_at: int | None = None  # update of the last measurement
        if self._ranks.is_first:
            self._session.begin_logging(self._writers, self._settings)
        self._clock.start()

    @classmethod
    def _check(cls, options: Mapping[str, Any]) -> None:
        """Refuse options that there are not.

        Raises:
            TypeError: For one that does not exist.
        """
        known = [name for name in cls._session_type.options_type.names() if name not in cls._elsewhere]
        if unknown := [name for name in options if name not in known]:
            raise TypeError(
                f"{cls.__name__} has no option {', '.join(unknown)}; its options are {', '.join(known)}. {cls._when}"
            )

    def __repr__(self) -> str:
        options, of = self._options, type(self._options)
        course = course_of(self.history, lambda: self.verdict)
        return described(type(self).__name__, defaults_of(of), lambda name: getattr(options, name), course)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---------------------------------------------------------------- recording

    @contextmanager
    def record(self, source: Source = "training") -> Iterator[None]:
        """Record what reaches the watched parts while the model runs on a batch, or a rollout.

        What was recorded before the last measurement is forgotten first. Of several batches before one measurement the
        latest count, as many as it takes; those of validation are the first ones. Best is a pass that the loop makes
        anyway: an extra one draws random numbers where there is dropout.

        Args:
            source: Whose batch it is: ``training`` or ``validation``. Measurements of different sources are shown
                apart, and are not compared.

        Raises:
            ValueError: For another source.

        Example::

            with monitor.record():
                loss = loss_of(model(x), y)
        """
        if source not in _SOURCES:
            raise ValueError(f"source must be one of {', '.join(map(repr, _SOURCES))}; got {source!r}.")
        if self._is_used:
            for of in _SOURCES:
                self._session.watch.forget(of)
            self._is_used = False
        self._source = source
        with self._session.record(source):
            yield

    # ---------------------------------------------------------------- measuring

    def _measure(self, step: int, epoch: int | None, *, always: bool, **known: Any) -> Any:
        """Measure the weights as they are, on what was recorded last, and write the figures.

        Args:
            step: Updates made so far.
            epoch: In which they were; written beside the figures.
            always: Whether to measure even if ``max_overhead`` has no room for it.
            **known: What else the session is told.

        Returns:
            The spectrum; None where the budget has no room for it, or it could not be measured.
        """
        source = self._recorded()
        if source is None:
            return None
        promised = always or not self._tried_at
        figures = self._session.measure(step, epoch or 0, source=source, promised=promised, **known)
        self._is_used = True
        if not self._session.was_skipped:
            self._tried_at = step
        if figures is None:
            return None
        if self._ranks.is_first:
            self._session.write(self._writers, figures, step, epoch=epoch)
            self._session.tell_news()
            self._session.draw(self._writers, step)
        return self._session.spectrum

    def _recorded(self) -> Source | None:
        """The source of what was recorded, on whichever rank; None, and a word about it, where nothing was."""
        everyone = self._ranks.gather(None if self._session.is_closed else self._source)
        source = next((one for one in everyone if one is not None), None)
        if source is None:
            why = "it is closed: make another one" if self._session.is_closed else "nothing was recorded"
            self._notices.tell(
                f"nothing is measured, as {why}. Run the model within `with monitor.record():` before "
                "monitor.measure(step).",
                warn="not-measured",
                subject=why,
            )
        return source

    # ---------------------------------------------------------------- in the end

    @property
    def _settings(self) -> dict[str, Any]:
        """What it was told, by name."""
        hidden = {*self._elsewhere} - {"module"}
        return {name: getattr(self._options, name) for name in self._options.names() if name not in hidden}

    @property
    def verdict(self) -> Verdict | None:
        """What to make of the run so far, in a word and a sentence; None if that is not known."""
        return None

    def report(self, directory: str | Path) -> Path | None:
        """Write the page about the run so far, with pictures and what they mean in words.

        Args:
            directory: Where it goes.

        Returns:
            The file; None where nothing was measured, on other ranks than zero, or where it could not be written, of
            which a warning says why.
        """
        if not self._ranks.is_first:
            return None
        return self._session.write_report(str(directory), self._settings, self._writers)

    def close(self) -> None:
        """Draw the whole run once more, and take the hooks off the model; a second time does nothing."""
        if self._session.is_closed:
            return
        if self._ranks.is_first and len(self.history):
            self._session.end_logging(self._writers, self.history[-1].step)
            self._notices.conclude(self.verdict)
        self._clock.stop()
        self._session.close()

    # ---------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """History and clocks: tensors and plain values only."""
        return state_of(self.history, self._clock, self._budget)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`, or from as much of it as another version wrote."""
        if amiss := restore(state_dict, self.history, self._clock, self._budget):
            self._notices.tell(amiss, warn="another-version", subject="state")


def _unwrapped(model: nn.Module) -> nn.Module:
    """The network itself.

    Raises:
        ValueError: If its parameters lie in flat pieces.
    """
    while type(model).__name__ in _WRAPPERS:
        model = model.module  # type: ignore[assignment]
    if any(type(part).__name__ == "FullyShardedDataParallel" for part in model.modules()):
        raise ValueError(
            "model: FullyShardedDataParallel keeps parameters in flat pieces that no layer can be measured from; use "
            "fully_shard (FSDP2), whose pieces are put together for a measurement, or DistributedDataParallel."
        )
    return model
