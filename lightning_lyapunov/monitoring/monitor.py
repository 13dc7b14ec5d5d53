"""The monitor of a plain training loop that measures recurrent layers: all of the callback, without a Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from lightning_lyapunov.aelle import AeLLEScore
from lightning_lyapunov.engine.spectrum import LyapunovSpectrum
from lightning_lyapunov.monitoring.facts import Facts
from lightning_lyapunov.monitoring.learning import Learning
from lightning_lyapunov.monitoring.loop import LoopMonitor
from lightning_lyapunov.monitoring.lyapunov_session import LyapunovSession
from lightning_lyapunov.monitoring.options import Modules, Options
from lightning_lyapunov.monitoring.writers import Target
from lightning_lyapunov.reading.history import History
from lightning_lyapunov.reading.rules import Finding, findings
from lightning_lyapunov.reading.verdict import Verdict, verdict


class LyapunovMonitor(LoopMonitor):
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

    _session_type = LyapunovSession
    _elsewhere = ("module", "performance")
    _when = "When to measure, and the performance so far, are told to measure()."
    _options: Options
    _session: LyapunovSession
    history: History

    def __init__(
        self,
        model: nn.Module,
        module: Modules = None,
        *,
        to: Target | Sequence[Target] | None = None,
        optimizer: Any | Sequence[Any] | None = None,
        **options: Any,
    ) -> None:
        self._check(options)
        self._optimizers = _checked(optimizer)
        self._learning = Learning(self._optimizers)
        told = "performance" if options.get("performance_range") is not None else None
        super().__init__(model, Options(module=module, performance=told, **options), to)

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
        return self._measure(step, epoch, always=always, facts=self._facts(performance, gradient_norm))

    def _skill_of(self, performance: float | None) -> float | None:
        if performance is not None and self._options.scorer == "general" and self._options.performance_range is None:
            self._notices.tell(
                f"the scorer is not told the performance of {performance:g}: it reads a skill from 0 to 1, so "
                "performance_range=(worst, best), the metric by chance and at best, must be given too.",
                warn="scorer-not-told",
                subject="performance",
            )
            return None
        if performance is None:
            return None
        if why := self._options.why_not_told(performance):
            self._notices.tell(why, warn="scorer-not-told", subject="performance range")
        return self._options.skill_of(performance)

    def _facts(self, performance: float | None, gradient_norm: float | Tensor | None) -> Facts:
        rate, adaptive = self._learning.of(self._optimizers, self._session.layers.measured)
        norm = None if gradient_norm is None else float(gradient_norm)
        return Facts(self._skill_of(performance), rate, adaptive, norm)

    def close(self) -> None:
        """Draw the whole run once more, and take the hooks off the layers; a second time does nothing."""
        super().close()
        self._optimizers = []


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
