"""A scorer at work in a fit: what becomes of its scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from torch import nn

from lightning_lyapunov.aelle import AeLLEScore, AeLLEScorer
from lightning_lyapunov.capture.finding import architecture_of
from lightning_lyapunov.engine.isolation import measuring
from lightning_lyapunov.engine.spectrum import LyapunovSpectrum
from lightning_lyapunov.monitoring.facts import Facts
from lightning_lyapunov.names import key_of
from lightning_lyapunov.reading.conditions import FAMILIAR

if TYPE_CHECKING:
    from lightning_lyapunov.figures import LatentMap


class Scoring:
    """Scores the spectra of one fit; a scorer that cannot be had, or fails, is told of and does no harm.

    Args:
        scorer: "general", a path, a scorer or None, as the callback takes it.
        prefix: First part of the keys, for what is told.
        tell: Says something once, with ``warn`` and ``subject``.
    """

    def __init__(self, scorer: str | AeLLEScorer | None, prefix: str, tell: Callable[..., None]) -> None:
        self._source, self._prefix, self._tell = scorer, prefix, tell
        self.ready: AeLLEScorer | None = None
        """The scorer, while a fit runs on rank zero."""
        self.score: AeLLEScore | None = None
        """Of the last spectrum, if it could be scored."""
        self._map: LatentMap | None = None
        self._map_of: AeLLEScorer | None = None

    def load(self) -> None:
        """Get the scorer ready, if it can be had."""
        try:
            with torch.random.fork_rng(devices=[]):
                if isinstance(self._source, str):
                    general = self._source == "general"
                    self.ready = AeLLEScorer.from_pretrained() if general else AeLLEScorer.load(self._source)
                else:
                    self.ready = self._source
        except Exception as error:
            self._warn(error, f"{self._source!r} could not be loaded")

    def release(self) -> None:
        """Let go of the scorer."""
        self.ready = None

    @property
    def latent_map(self) -> LatentMap | None:
        """The bank as the scorer sees it, made once; None if it sees nothing of it."""
        if self.ready is None or self.ready is self._map_of:
            return None if self.ready is None else self._map
        from lightning_lyapunov.figures import LatentMap

        self._map_of = self.ready
        try:
            with measuring(None, torch.device("cpu")), torch.device("cpu"):
                self._map = LatentMap.of_bank(self.ready)
        except Exception:  # a scorer of one's own may see spectra of another kind: then there is no such picture
            self._map = None
        return self._map

    def scores(
        self, spectrum: LyapunovSpectrum, layers: Sequence[nn.Module], updates: int, facts: Facts
    ) -> dict[str, float]:
        """What the scorer says of a spectrum, by name; nothing if it cannot.

        Args:
            spectrum: Of the layers together.
            layers: Those that were measured.
            updates: Made so far.
            facts: What is known beside these.
        """
        self.score = None
        if self.ready is None:
            return {}
        sizes = [getattr(layer, "hidden_size", None) for layer in layers]
        try:
            with measuring(None, torch.device("cpu")), torch.device("cpu"):
                self.score = said = self.ready.score(
                    spectrum,
                    architecture=architecture_of(layers),
                    hidden_size=max((size for size in sizes if isinstance(size, int)), default=None),
                    updates=updates,
                    **asdict(facts),
                )
        except Exception as error:
            self._warn(error, "failed")
            return {}
        values = {
            "performance": said.performance,
            "performance_low": said.low,
            "performance_high": said.high,
            "baseline": said.baseline,
            "failure_probability": said.failure_probability,
            "takeoff_probability": said.takeoff_probability,
            "ends_stable_probability": said.stability,
            "familiarity": said.familiarity,
        }
        if said.familiarity < FAMILIAR:
            self._tell(
                f"familiarity is {said.familiarity:.2f}: the spectrum, the size or the kind of cell is unlike the "
                f"networks that the scorer was fitted on, so what {key_of('aelle/', self._prefix)} says is little more "
                "than a guess.",
                warn="unfamiliar",
                subject="familiarity",
            )
        return {f"aelle/{name}": float(value) for name, value in values.items() if math.isfinite(value)}

    def _warn(self, error: Exception, what: str) -> None:
        self._tell(
            f"the scorer {what}, the spectrum is logged without scores: {type(error).__name__}: {error} (EarlyStopping "
            "that monitors them needs strict=False to go on.)",
            warn="no-scores",
            subject="scorer",
        )
