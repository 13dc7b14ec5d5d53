"""The monitor of a plain training loop that measures across depth: all of the callback, without a Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from lightning_lyapunov.engine.depth_spectrum import DepthSpectrum
from lightning_lyapunov.monitoring.depth_options import DepthOptions
from lightning_lyapunov.monitoring.depth_session import DepthSession
from lightning_lyapunov.monitoring.loop import LoopMonitor
from lightning_lyapunov.monitoring.writers import Target
from lightning_lyapunov.reading.depth_history import DepthMeasurement
from lightning_lyapunov.reading.depth_rules import findings, verdict
from lightning_lyapunov.reading.history import History
from lightning_lyapunov.reading.rules import Finding
from lightning_lyapunov.reading.verdict import Verdict


class DepthMonitor(LoopMonitor):
    """Watches a deep network in a training loop of your own: plain PyTorch, Fabric, Accelerate, a Hugging Face Trainer.

    It records what reaches the blocks while the model runs, measures when it is told to, and does with the result what
    :class:`~lightning_lyapunov.DepthSpectrumCallback` does: budget, history, words, pictures. The model and its
    training are not touched. In a distributed run make one on each rank, once the process group is there, and call
    :meth:`measure` on all of them at the same times; rank zero writes, and keeps the history.

    Args:
        model: The network; what wraps it, as DistributedDataParallel does, is seen through.
        module: Where its blocks are, as the callback takes it.
        to: Where figures and pictures are written: a ``SummaryWriter``, a run of Weights & Biases, a function
            ``(figures, step)``, a logger of Lightning's, or a list of these.
        **options: ``k``, ``num_samples``, ``dtype``, ``tolerance``, ``max_overhead``, ``prefix``, ``metrics`` and
            ``figures``, as the callback takes them.

    Attributes:
        history: What was measured, a :class:`~lightning_lyapunov.reading.History` of measurements across depth.

    Raises:
        ValueError: If there is no module of a name that is given, if the model's parameters lie in pieces on several
            devices, or an option is out of range.
        TypeError: For an option that does not exist.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3)))
        >>> with DepthMonitor(model) as monitor:
        ...     with monitor.record():
        ...         _ = model(torch.randn(16, 8))
        ...     spectrum = monitor.measure(step=0)
        >>> spectrum.depth, len(monitor.history)
        (3, 1)
    """

    _session_type = DepthSession
    _session: DepthSession
    history: History[DepthMeasurement]

    def __init__(
        self,
        model: nn.Module,
        module: str | Sequence[str] | None = None,
        *,
        to: Target | Sequence[Target] | None = None,
        **options: Any,
    ) -> None:
        self._check(options)
        super().__init__(model, DepthOptions(module=module, **options), to)

    @property
    def spectrum(self) -> DepthSpectrum | None:
        """The last one, the same on all ranks; None before the first."""
        return self._session.spectrum

    @property
    def findings(self) -> list[Finding]:
        """What the measurements so far mean, in words, the most pressing first."""
        return findings(self.history)

    @property
    def verdict(self) -> Verdict | None:
        """What to make of the run so far: ``healthy``, ``watch`` or ``act``, with a sentence; None before the first."""
        return verdict(self.history)

    def measure(self, step: int, *, epoch: int | None = None, always: bool = False) -> DepthSpectrum | None:
        """Measure the weights as they are, on what was recorded last, and write the figures.

        Without a new :meth:`record` since the last measurement the same samples are measured again.

        Args:
            step: Updates made so far.
            epoch: In which they were; written beside the figures.
            always: Whether to measure even if ``max_overhead`` has no room for it, as at the end of a run. The first
                measurement, and the first after an update, are made in any case.

        Returns:
            The spectrum; None where the budget has no room for it, or it could not be measured, of which a warning
            says why.
        """
        spectrum: DepthSpectrum | None = self._measure(step, epoch, always=always)
        return spectrum
