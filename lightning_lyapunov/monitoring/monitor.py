"""The monitor of a plain training loop: all of the callback, without a Trainer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from lightning_lyapunov.aelle import AeLLEScore
from lightning_lyapunov.engine.spectrum import LyapunovSpectrum
from lightning_lyapunov.monitoring.budget import Budget
from lightning_lyapunov.monitoring.clock import Clock
from lightning_lyapunov.monitoring.loggers.trackers import log_measurement
from lightning_lyapunov.monitoring.notices import Notices
from lightning_lyapunov.monitoring.options import Modules, Options
from lightning_lyapunov.monitoring.ranks import current_ranks
from lightning_lyapunov.monitoring.session import Session
from lightning_lyapunov.monitoring.writers import Target, writers_of
from lightning_lyapunov.names import key_of, selected, selection
from lightning_lyapunov.reading.history import History, read_state
from lightning_lyapunov.reading.rules import Finding, findings

_WRAPPERS = {"DistributedDataParallel", "DataParallel", "_FabricModule"}


class LyapunovMonitor:
    """Watches a network in a training loop of your own: plain PyTorch, Fabric, Accelerate, a Hugging Face Trainer, RL.

    It records what reaches the recurrent layers while the model runs on some batch, measures when it is told to, and
    does with the result what :class:`~lightning_lyapunov.LyapunovSpectrumCallback` does: budget, scores, history,
    words, pictures. The model is not touched. In a distributed run each rank has a monitor, and all of them call
    :meth:`measure` at the same times.

    Args:
        model: The network.
        module: Which of its layers, as the callback takes it.
        to: Where figures and pictures are written: a ``SummaryWriter``, a run of Weights & Biases, a function
            ``(figures, step)``, a logger of Lightning's, or a list of these.
        **options: ``k``, ``num_sequences``, ``num_steps``, ``transient``, ``interval``, ``dtype``, ``tolerance``,
            ``growth``, ``warm_start``, ``max_overhead``, ``prefix``, ``metrics``, ``histogram``, ``figures``,
            ``scorer`` and ``performance_range``, as the callback takes them.

    Attributes:
        history: What was measured, a :class:`~lightning_lyapunov.reading.History`.

    Raises:
        ValueError: If the model has no layer that can be measured, or not those that are named, or an option is out of
            range.
        TypeError: For an option that does not exist.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.LSTM(3, 8))
        >>> with LyapunovMonitor(model, scorer=None) as monitor:
        ...     with monitor.record():
        ...         _ = model(torch.randn(40, 16, 3))
        ...     spectrum = monitor.measure(step=0)
        >>> spectrum.sequences, len(monitor.history)
        (16, 1)
    """

    def __init__(
        self, model: nn.Module, module: Modules = None, *, to: Target | Sequence[Target] | None = None, **options: Any
    ) -> None:
        if options.get("performance_range") is not None:
            options["performance"] = "performance"  # which measure is told
        self._options = Options(module=module, **options)
        while type(model).__name__ in _WRAPPERS:
            model = model.module  # type: ignore[assignment]
        self.history = History(self._options.prefix)
        self._budget = Budget(self._options.max_overhead)
        self._clock = Clock(lambda: self._budget.away)
        self._writers = writers_of(to)
        self._ranks = current_ranks()
        self._is_used = False  # whether what was recorded was measured
        self._measured_at: int | None = None
        self._session = Session(
            model,
            self._options,
            self.history,
            self._budget,
            self._clock,
            Notices(type(self).__name__),
            self._ranks,
        )
        if self._ranks.is_first:
            with self._budget.spending("logging"):
                self._session.panels.begin(self._writers, self._options.prefix)
        self._clock.start()

    def __enter__(self) -> LyapunovMonitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def spectrum(self) -> LyapunovSpectrum | None:
        """The last one, with its layers; None before the first."""
        return self._session.spectrum

    @property
    def score(self) -> AeLLEScore | None:
        """What the scorer says of the last spectrum; None where there is none."""
        return self._session.scoring.score

    @property
    def findings(self) -> list[Finding]:
        """What the measurements so far mean, in words, the most pressing first."""
        return findings(self.history)

    @contextmanager
    def record(self) -> Iterator[None]:
        """Record what reaches the layers while the model runs on a batch.

        What was recorded before the last measurement is forgotten first.

        Example::

            with monitor.record():
                model(batch)
        """
        if self._is_used:
            self._session.layers.forget("training")
            self._is_used = False
        with self._session.record("training"):
            yield

    def measure(
        self, step: int, *, epoch: int = 0, performance: float | None = None, always: bool = False
    ) -> LyapunovSpectrum | None:
        """Measure the weights as they are, on what was recorded, and write the figures.

        Args:
            step: Updates made so far.
            epoch: In which they were.
            performance: The metric reached so far, of which ``performance_range`` says what is worst and best.
            always: Whether to measure even if ``max_overhead`` has no room for it, as at the end of a run. The first
                measurement, and the first after an update, are made in any case.

        Returns:
            The spectrum; None where the budget has no room for it, or it could not be measured, of which a warning
            says why.
        """
        promised = always or not self._measured_at
        figures = self._session.measure(
            step,
            epoch,
            source="training",
            promised=promised,
            performance=None if performance is None else self._options.skill_of(performance),
        )
        self._is_used = True
        if figures is None:
            return None
        self._measured_at = step
        if self._ranks.is_first:
            self._write(figures, step, epoch)
            self._session.tell_news()
            self._session.draw(self._writers, step)
        return self.spectrum

    def _write(self, figures: dict[str, float], step: int, epoch: int) -> None:
        prefix, spectrum = self._options.prefix, self.spectrum
        exponents = spectrum.exponents if spectrum is not None and self._options.histogram else None
        names = selection(self._options.metrics, prefix)
        row = {key_of(name, prefix): value for name, value in selected(figures, names).items()}
        with self._budget.spending("logging"):
            for writer in self._writers:
                try:
                    log_measurement(
                        writer, {**row, "epoch": epoch}, step, name=f"{prefix}/spectrum", exponents=exponents
                    )
                except Exception as error:  # a tracker that is down is no reason to end a run
                    self._session.warn_of_logger(writer, error)

    def report(self, directory: str | Path) -> Path | None:
        """Write the page about the run so far, with pictures and what they mean in words.

        Args:
            directory: Where it goes.

        Returns:
            The file; None where nothing was measured, or it could not be written, of which a warning says why.
        """
        settings = {name: getattr(self._options, name) for name in Options.names()}
        return self._session.write_report(str(directory), settings)

    def close(self) -> None:
        """Draw the whole run once more, and take the hooks off the layers; a second time does nothing."""
        if self._ranks.is_first and len(self.history) and self._writers and not self._session.is_closed:
            step = self.history[-1].step
            self._session.draw(self._writers, step, last=True)
            self._session.panels.close(self._writers, self.history, step)
        self._session.close()

    # ---------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """History and clocks: tensors and plain values only."""
        return {
            "history": self.history.state_dict(),
            "training_seconds": self._clock.trained,
            "budget": self._budget.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`, or from as much of it as another version wrote."""
        known, _ = read_state(state_dict, {"history": object, "training_seconds": float, "budget": dict}, "state")
        self.history.load_state_dict(known.get("history", {}))
        self._budget.load_state_dict(known.get("budget", {}))
        self._clock.trained = known.get("training_seconds", 0.0)
