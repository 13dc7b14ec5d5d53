"""Pictures of a run, drawn rarely and within the budget, for the loggers that take them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lightning_lyapunov.engine.isolation import measuring
from lightning_lyapunov.monitoring.loggers.trackers import log_pictures, log_table, prepare, takes_pictures
from lightning_lyapunov.names import MEASURED, ON_REQUEST, QUANTITIES, SCORED, key_of
from lightning_lyapunov.reading.history import History

if TYPE_CHECKING:
    from lightning_lyapunov.aelle import AeLLEScorer
    from lightning_lyapunov.figures import LatentMap

FIRST = 0.8
"""Seconds that drawing is expected to take before it was done."""
COLUMNS = (*MEASURED, *ON_REQUEST, *SCORED)
"""What the table of measurements holds beside update, epoch and skill so far, as far as it is known."""


class Panels:
    """Draws a history for loggers: at the first two measurements, then at the fourth, the eighth and so on.

    Args:
        wanted: Whether any pictures are.
        refused: Told of a logger that refused something: the logger and its error.

    Attributes:
        seconds: What drawing is expected to take: as long as the last time.
    """

    def __init__(self, wanted: bool, refused: Callable[[Any, Exception], None]) -> None:
        self._wanted, self._refused = wanted, refused
        self.seconds = FIRST
        self._measurements = 0
        self._drawn_at: int | None = None  # update of the last ones
        self._map: LatentMap | None = None
        self._map_of: AeLLEScorer | None = None

    def begin(self, loggers: Sequence[Any], prefix: str, names: Sequence[str] = tuple(QUANTITIES)) -> None:
        """Tell the loggers how to group what is to come, the figures of these names."""
        self._measurements, self._drawn_at = 0, None
        for logger in loggers:
            self._try(logger, prepare, prefix, names)

    def stop(self) -> None:
        """Draw no more."""
        self._wanted = False

    def are_for(self, loggers: Sequence[Any]) -> bool:
        """Whether pictures are wanted, and any of the loggers takes them."""
        return self._wanted and any(map(takes_pictures, loggers))

    def is_due(self, loggers: Sequence[Any]) -> bool:
        """Whether it is time for pictures, at a new measurement; asked once for each."""
        self._measurements += 1
        return self._measurements.bit_count() == 1 and self.are_for(loggers)

    @staticmethod
    def load() -> None:
        """Import what draws, which a process does once.

        Raises:
            ImportError: Without matplotlib.
        """
        import lightning_lyapunov.figures  # noqa: F401

    def draw(self, loggers: Sequence[Any], history: History, step: int, scorer: AeLLEScorer | None) -> None:
        """Draw a history and write the pictures, unless those of the last measurement were drawn already.

        Args:
            loggers: What is written to.
            history: What was measured; at least one measurement.
            step: Place on the loggers' axis.
            scorer: Whose map the run's path is drawn on.

        Raises:
            ImportError: Without matplotlib.
        """
        if not self.are_for(loggers) or history[-1].step == self._drawn_at:
            return
        self.load()
        start = time.perf_counter()
        pictures = self._pictures(history, scorer)
        for logger in filter(takes_pictures, loggers):
            self._try(logger, log_pictures, pictures, step)
        self._drawn_at, self.seconds = history[-1].step, time.perf_counter() - start

    def close(self, loggers: Sequence[Any], history: History, step: int) -> None:
        """Write the table of all measurements, once a run."""
        names = [name for name in COLUMNS if not all(map(math.isnan, history.values(name)))]
        values = [history.values(name) for name in names]
        rows = [
            [m.step, m.epoch, m.reached, *(None if math.isnan(column[i]) else column[i] for column in values)]
            for i, m in enumerate(history)
        ]
        columns = ["update", "epoch", "skill so far", *(key_of(name, history.prefix) for name in names)]
        for logger in loggers:
            self._try(logger, log_table, f"{history.prefix}/measurements", columns, rows, step)

    def _pictures(self, history: History, scorer: AeLLEScorer | None) -> dict[str, Any]:
        from lightning_lyapunov.figures import figures_of

        figures = figures_of(history, self.map_for(scorer))
        return {f"{history.prefix}_figures/{name}": _pixels(figure) for name, figure in figures.items()}

    def map_for(self, scorer: AeLLEScorer | None) -> LatentMap | None:
        """The bank as this scorer sees it, made once; None if it sees nothing of it."""
        if scorer is None or scorer is self._map_of:
            return None if scorer is None else self._map
        from lightning_lyapunov.figures import LatentMap

        self._map_of = scorer
        try:
            with measuring(None, torch.device("cpu")), torch.device("cpu"):
                self._map = LatentMap.of_bank(scorer)
        except Exception:  # a scorer of one's own may see spectra of another kind: then there is no such picture
            self._map = None
        return self._map

    def _try(self, logger: Any, write: Callable[..., None], *what: Any) -> None:
        try:
            write(logger, *what)
        except Exception as error:  # a tracker that is down is no reason to end a run
            self._refused(logger, error)


def _pixels(figure: Any) -> np.ndarray:
    """``(height, width, 3)`` bytes."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
