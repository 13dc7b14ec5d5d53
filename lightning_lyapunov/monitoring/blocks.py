"""The blocks of a deep model in training: what reaches them, and their spectrum, measured by all ranks together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from lightning_lyapunov.capture.chain_finder import BlockNames
from lightning_lyapunov.capture.chain_measure import measure_recorded
from lightning_lyapunov.capture.chain_plan import ChainPlan
from lightning_lyapunov.capture.chain_probe import ChainProbe, KnownChain
from lightning_lyapunov.engine.depth import DepthSettings
from lightning_lyapunov.engine.depth_spectrum import DepthSpectrum
from lightning_lyapunov.monitoring.ranks import Offer, Ranks, agreed, attempt, shares_of
from lightning_lyapunov.monitoring.watch import Source, other_than

FORGOTTEN = 5.0
"""Times the inverse of its momentum that a running statistic is updated until less than a hundredth of it is what it
began with: the variance of a deep block may well be a tenth of that."""


@dataclass(frozen=True)
class SeenSamples:
    """What there was to measure, on all ranks together."""

    source: Source
    samples: int
    """In the batches that were recorded."""
    kinds: tuple[str, ...]
    """Classes of the blocks."""
    masked: float
    """Share of the state's coordinates that do not count, as tokens behind a mask."""


@dataclass(frozen=True)
class _Measured:
    """What a rank has measured."""

    spectrum: DepthSpectrum
    kinds: tuple[str, ...]
    words: str
    masked: float


class Blocks:
    """Watches the blocks of a model and measures them.

    In training a block is measured with the batch statistics that normalised the recorded batch, in validation with the
    running ones; as long as these have hardly seen data, training batches are measured in the place of validation's.

    Args:
        model: The user's.
        names: Where the blocks are; wherever they are found if None.
        num_samples: Samples recorded.
        tell: Says something once, with ``subject``.

    Attributes:
        seen: What there was at the last measurement; None before the first.

    Raises:
        ValueError: If there is no module of such a name, or parameters lie in pieces on several devices.
    """

    def __init__(self, model: nn.Module, names: BlockNames | None, num_samples: int, tell: Callable[..., None]) -> None:
        if any(hasattr(parameter, "full_tensor") for parameter in model.parameters()):
            raise ValueError(
                "the model's parameters lie in pieces on several devices (FSDP2, tensor parallelism), and blocks are "
                "measured whole; use DDPStrategy."
            )
        known = KnownChain()
        self._tell = tell
        self._probes: dict[Source, ChainProbe] = {
            source: ChainProbe(model, names, num_samples, known=known) for source in ("validation", "training")
        }
        self._pauses = 0
        self._is_validation_fit = True  # whether what normalises it has seen enough data
        self.seen: SeenSamples | None = None

    def remove(self) -> None:
        """Leave the model as it was found, and let go of what was recorded."""
        for probe in self._probes.values():
            probe.remove()

    # ---------------------------------------------------------------- what reaches them

    def forget(self, source: Source) -> None:
        """Let go of what was recorded: the model may have learnt since."""
        self._probes[source].forget()

    def begin_batch(self, source: Source) -> None:
        """Record a batch: the first ones of validation, the latest ones of training."""
        self._probes[source].begin_batch(keep_latest=source == "training")

    def end_turn(self, source: Source, *, is_again: bool) -> None:
        """A part of the batch has ended; what follows is another pass over the same rows if ``is_again``."""
        self._probes[source].end_turn(is_again=is_again)

    def end_batch(self, source: Source) -> None:
        """Stop recording."""
        self._probes[source].end_batch()
        if source == "validation" and self._probes[source].has_recorded:
            self._is_validation_fit = self._are_statistics_settled()

    def _are_statistics_settled(self) -> bool:
        """Whether running means and variances have forgotten what they began with."""
        with suppress(ValueError):  # there is no chain, as will be said
            return all(_is_settled(part) for block in self.plan.modules for part in block.modules())
        return True

    @property
    def seconds(self) -> float:
        """Spent recording so far."""
        return sum(probe.seconds for probe in self._probes.values())

    @property
    def batches_needed(self) -> int:
        """Training batches that bring as many samples as are wanted, going by the last; 1 before there was any."""
        return self._probes["training"].batches_needed

    def have_recorded(self, source: Source | None = None) -> bool:
        """Whether samples that can be measured have reached the blocks on this rank."""
        sources = self._probes if source is None else (source,)
        return any(self._probes[one].has_recorded and (source is None or self._is_fit(one)) for one in sources)

    def _is_fit(self, source: Source) -> bool:
        return source == "training" or self._is_validation_fit

    @property
    def plan(self) -> ChainPlan:
        """The chain that was found.

        Raises:
            ValueError: If there is none, or nothing was recorded.
        """
        return self._probes["validation"].plan

    def _chosen(self, preferred: Source) -> Source:
        """Whose samples to measure: the preferred ones if they are there and fit, else what there is."""
        other = other_than(preferred)
        there_are = [source for source in (preferred, other) if self._probes[source].has_recorded]
        return next((source for source in there_are if self._is_fit(source)), (*there_are, preferred)[0])

    def recorded(self, preferred: Source) -> int:
        """How many samples this rank could measure."""
        with self.paused(), suppress(Exception):  # what is amiss is said when it is measured
            return len(self._probes[self._chosen(preferred)].states()[1])
        return 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Record nothing meanwhile; the model is as it was found, for a measurement to look at and to call."""
        if not self._pauses:
            for probe in self._probes.values():
                probe.pause()
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1
            if not self._pauses:
                for probe in self._probes.values():
                    probe.go_on()

    # ---------------------------------------------------------------- measuring

    def spectrum(
        self, ranks: Ranks, preferred: Source, samples: int, settings: DepthSettings, dtype: torch.dtype | None
    ) -> DepthSpectrum:
        """Of the chain of all blocks; to be called on all ranks at once.

        Samples are shared out over the ranks, each measures its own, and all get the spectrum of all of them.

        Args:
            ranks: Who measures.
            preferred: Whose samples to measure, if there are any.
            samples: How many, on all ranks together.
            settings: What to measure of them.
            dtype: Arithmetic; at least that of the states if None.

        Raises:
            ValueError: If it cannot be done, on all ranks alike.
        """
        with self.paused():
            offers = agreed(ranks.gather(attempt(lambda: self._offer(ranks, preferred))))
            shares = shares_of([offer for offer, _ in offers], samples)
            me = ranks.rank if len(offers) > 1 else 0
            start = sum(shares[:me])

            def measure_mine() -> _Measured | None:
                told = replace(settings, first_place=start)
                return self._measured(preferred, shares[me], told, dtype) if shares[me] else None

            everyone = [one for one in agreed(ranks.gather(attempt(measure_mine))) if one is not None]
        if not everyone:
            raise ValueError("no samples reached the blocks in the forward pass.")
        spectrum = DepthSpectrum.merge([one.spectrum for one in everyone])
        is_second = all(offer.is_second_choice for offer, _ in offers)
        by_data = {offer.data_rank: seen for offer, seen in reversed(offers)}  # ranks that see the same data count once
        masked = sum(one.masked * one.spectrum.samples for one in everyone) / spectrum.samples
        source = other_than(preferred) if is_second else preferred
        self.seen = SeenSamples(source, sum(by_data.values()), everyone[0].kinds, masked)
        self._tell(f"measures {everyone[0].words}.", subject="chain")
        return spectrum

    def _offer(self, ranks: Ranks, preferred: Source) -> tuple[Offer, int]:
        """How many samples this rank could measure, and how many it has seen."""
        source = self._chosen(preferred)
        probe = self._probes[source]
        count = len(probe.states()[1]) if probe.has_recorded else 0
        is_second_choice = source != preferred or not count
        return Offer(ranks.data_rank, count, is_second_choice), probe.extent.samples

    def _measured(
        self, preferred: Source, samples: int, settings: DepthSettings, dtype: torch.dtype | None
    ) -> _Measured:
        probe = self._probes[self._chosen(preferred)]
        spectrum, masked = measure_recorded(probe, samples, settings, dtype)
        return _Measured(spectrum.to("cpu"), tuple(probe.plan.kinds), probe.plan.words, masked)


def _is_settled(part: nn.Module) -> bool:
    if not isinstance(part, _NormBase) or part.num_batches_tracked is None:
        return True
    return int(part.num_batches_tracked) >= (FORGOTTEN / part.momentum if part.momentum else 1)
