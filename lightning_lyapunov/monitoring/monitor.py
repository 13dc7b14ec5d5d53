"""The monitor of a plain training loop: all of the callback, without a Trainer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from torch import Tensor, nn

from lightning_lyapunov.aelle import AeLLEScore
from lightning_lyapunov.engine.spectrum import LyapunovSpectrum
from lightning_lyapunov.monitoring.budget import Budget
from lightning_lyapunov.monitoring.checkpoint import restore, state_of
from lightning_lyapunov.monitoring.clock import Clock
from lightning_lyapunov.monitoring.facts import Facts
from lightning_lyapunov.monitoring.layers import Source
from lightning_lyapunov.monitoring.learning import Learning
from lightning_lyapunov.monitoring.notices import Notices
from lightning_lyapunov.monitoring.options import Modules, Options
from lightning_lyapunov.monitoring.ranks import current_ranks
from lightning_lyapunov.monitoring.session import Session
from lightning_lyapunov.monitoring.writers import Target, write_figures, writers_of
from lightning_lyapunov.reading.history import History
from lightning_lyapunov.reading.rules import Finding, findings
from lightning_lyapunov.reading.verdict import Verdict, verdict

_WRAPPERS = ("DistributedDataParallel", "DataParallel", "_FabricModule", "DeepSpeedEngine")
_SOURCES: tuple[Source, ...] = get_args(Source)
_OPTIONS = tuple(name for name in Options.names() if name not in ("module", "performance"))


class LyapunovMonitor:
    """Watches a network in a training loop of your own: plain PyTorch, Fabric, Accelerate, a Hugging Face Trainer, RL.

    It records what reaches the recurrent layers while the model runs, measures when it is told to, and does with the
    result what :class:`~lightning_lyapunov.LyapunovSpectrumCallback` does: budget, scores, history, words, pictures.
    The model and its training are not touched. In a distributed run make one on each rank, once the process group is
    there, and call :meth:`measure` on all of them at the same times; rank zero writes, and keeps the history.

    Args:
        model: The network; what wraps it, as DistributedDataParallel does, is seen through.
        module: Which of its layers, as the callback takes it.
        to: Where figures and pictures are written: a ``SummaryWriter``, a run of Weights & Biases, a function
            ``(figures, step)``, a logger of Lightning's, or a list of these.
        optimizer: What trains the model, or a list of several: the scorer is told its kind and its base rate.
        **options: ``k``, ``num_sequences``, ``num_steps``, ``transient``, ``interval``, ``dtype``, ``tolerance``,
            ``growth``, ``warm_start``, ``max_overhead``, ``prefix``, ``metrics``, ``histogram``, ``figures``,
            ``scorer``, ``performance_range``, ``closed_loop`` and ``reference``, as the callback takes them.

    Attributes:
        history: What was measured, a :class:`~lightning_lyapunov.reading.History`.

    Raises:
        ValueError: If the model has no layer that can be measured, or not those that are named, if its parameters lie
            in flat pieces (FSDP1), or an option is out of range.
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
        self,
        model: nn.Module,
        module: Modules = None,
        *,
        to: Target | Sequence[Target] | None = None,
        optimizer: Any | Sequence[Any] | None = None,
        **options: Any,
    ) -> None:
        if unknown := [name for name in options if name not in _OPTIONS]:
            raise TypeError(
                f"{type(self).__name__} has no option {', '.join(unknown)}; its options are {', '.join(_OPTIONS)}. "
                "When to measure, and the performance so far, are told to measure()."
            )
        self._optimizers = _checked(optimizer)
        self._learning = Learning(self._optimizers)
        told = "performance" if options.get("performance_range") is not None else None
        self._options = Options(module=module, performance=told, **options)
        self.history = History(self._options.prefix)
        self._budget = Budget(self._options.max_overhead)
        self._clock = Clock(lambda: self._budget.away)
        self._writers = writers_of(to)
        self._ranks = current_ranks()
        silent = None if self._ranks.is_first else lambda _: None
        self._notices = Notices(type(self).__name__, silent, silent)
        self._session = Session(
            _unwrapped(model), self._options, self.history, self._budget, self._clock, self._notices, self._ranks
        )
        self._source: Source | None = None  # of what was recorded last
        self._is_used = False  # whether what was recorded has been measured
        self._tried_at: int | None = None  # update of the last measurement
        if self._ranks.is_first:
            self._session.begin_logging(self._writers)
        self._clock.start()

    def __enter__(self) -> LyapunovMonitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def spectrum(self) -> LyapunovSpectrum | None:
        """The last one, with its layers, the same on all ranks; None before the first."""
        return self._session.spectrum

    @property
    def score(self) -> AeLLEScore | None:
        """What the scorer says of the last spectrum; None where there is none."""
        return self._session.scoring.score

    @property
    def findings(self) -> list[Finding]:
        """What the measurements so far mean, in words, the most pressing first."""
        return findings(self.history)

    @property
    def verdict(self) -> Verdict | None:
        """What to make of the run so far: ``healthy``, ``watch`` or ``act``, with a sentence; None before the first."""
        return verdict(self.history)

    # ---------------------------------------------------------------- recording

    @contextmanager
    def record(self, source: Source = "training") -> Iterator[None]:
        """Record what reaches the layers while the model runs on a batch, or a rollout.

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
                self._session.layers.forget(of)
            self._is_used = False
        self._source = source
        with self._session.record(source):
            yield

    # ---------------------------------------------------------------- measuring

    def measure(
        self,
        step: int,
        *,
        epoch: int | None = None,
        performance: float | None = None,
        gradient_norm: float | Tensor | None = None,
        always: bool = False,
    ) -> LyapunovSpectrum | None:
        """Measure the weights as they are, on what was recorded last, and write the figures.

        Without a new :meth:`record` since the last measurement the same inputs drive the layers again.

        Args:
            step: Updates made so far.
            epoch: In which they were; written beside the figures.
            performance: The metric reached so far, of which ``performance_range`` says what is worst and best.
            gradient_norm: Of the last gradient, of all parameters and before clipping, as ``clip_grad_norm_`` returns
                it.
            always: Whether to measure even if ``max_overhead`` has no room for it, as at the end of a run. The first
                measurement, and the first after an update, are made in any case.

        Returns:
            The spectrum; None where the budget has no room for it, or it could not be measured, of which a warning
            says why.
        """
        source = self._recorded()
        if source is None:
            return None
        figures = self._session.measure(
            step,
            epoch or 0,
            source=source,
            promised=always or not self._tried_at,
            facts=self._facts(performance, gradient_norm),
        )
        self._is_used = True
        if not self._session.was_skipped:
            self._tried_at = step
        if figures is None:
            return None
        if self._ranks.is_first:
            self._write(figures, step, epoch)
            self._session.tell_news()
            self._session.draw(self._writers, step)
        return self.spectrum

    def _recorded(self) -> Source | None:
        """The source of what was recorded, on whichever rank; None, and a word about it, where nothing was."""
        everyone = self._ranks.gather(None if self._session.is_closed else self._source)
        source = next((one for one in everyone if one is not None), None)
        if source is None:
            why = "it is closed: make another one" if self._session.is_closed else "nothing was recorded"
            self._notices.tell(
                f"nothing is measured, as {why}. Run the model within `with monitor.record():` before "
                "monitor.measure(step).",
                warn=True,
                subject=why,
            )
        return source

    def _skill_of(self, performance: float | None) -> float | None:
        if performance is not None and self._options.scorer == "general" and self._options.performance_range is None:
            self._notices.tell(
                f"the scorer is not told the performance of {performance:g}: it reads a skill from 0 to 1, so "
                "performance_range=(worst, best), the metric by chance and at best, must be given too.",
                warn=True,
                subject="performance",
            )
            return None
        return None if performance is None else self._options.skill_of(performance)

    def _facts(self, performance: float | None, gradient_norm: float | Tensor | None) -> Facts:
        rate, adaptive = self._learning.of(self._optimizers, self._session.layers.measured)
        norm = None if gradient_norm is None else float(gradient_norm)
        return Facts(self._skill_of(performance), rate, adaptive, norm)

    def _write(self, figures: dict[str, float], step: int, epoch: int | None) -> None:
        exponents = None if self.spectrum is None else self.spectrum.exponents
        with self._budget.spending("logging"):
            write_figures(
                self._writers, figures, step, self._options, exponents, self._session.warn_of_logger, epoch=epoch
            )

    # ---------------------------------------------------------------- in the end

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
        told = {name: getattr(self._options, name) for name in ("module", *_OPTIONS)}
        return self._session.write_report(str(directory), told)

    def close(self) -> None:
        """Draw the whole run once more, and take the hooks off the layers; a second time does nothing."""
        if self._session.is_closed:
            return
        if self._ranks.is_first and len(self.history):
            self._session.end_logging(self._writers, self.history[-1].step)
        self._clock.stop()
        self._session.close()
        self._optimizers = []

    # ---------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """History and clocks: tensors and plain values only."""
        return state_of(self.history, self._clock, self._budget)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`, or from as much of it as another version wrote."""
        if amiss := restore(state_dict, self.history, self._clock, self._budget):
            self._notices.tell(amiss, warn=True, subject="state")


def _checked(optimizer: Any | Sequence[Any] | None) -> list[Any]:
    """The optimisers.

    Raises:
        ValueError: If one is none.
    """
    optimizers = [] if optimizer is None else list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
    for one in optimizers:
        if not isinstance(getattr(one, "param_groups", None), list):
            kind = type(one).__name__
            raise ValueError(f"optimizer must be one of torch's optimisers, or a list of them; got {kind}.")
    return optimizers


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
