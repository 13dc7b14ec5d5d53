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
from lightning_lyapunov.names import MEASURED, SCORED, key_of
from lightning_lyapunov.reading.history import History

if TYPE_CHECKING:
    from lightning_lyapunov.aelle import AeLLEScorer
    from lightning_lyapunov.figures import LatentMap

FIRST = 3.0
"""Seconds that drawing is expected to take before it was done: matplotlib is imported, the map of the bank is made."""
COLUMNS = (*MEASURED, *SCORED)
"""What the table of measurements holds beside update, epoch and skill so far, as far as it is known."""


class Panels:
    """Draws a history for loggers.

    Args:
        every: Measurements from one set of pictures to the next; None: none are drawn.
        refused: Told of a logger that refused something: the logger and its error.
    """

    def __init__(self, every: int | None, refused: Callable[[Any, Exception], None]) -> None:
        self.every = every
        self._refused = refused
        self._since = 0
        self._seconds = FIRST
        self._drawn_at: int | None = None  # update of the last ones
        self._map: LatentMap | None = None
        self._has_map = False

    def begin(self, loggers: Sequence[Any], prefix: str) -> None:
        """Tell the loggers how to group what is to come."""
        self._since, self._drawn_at, self._has_map = 0, None, False
        for logger in loggers:
            self._try(logger, prepare, prefix)

    @property
    def seconds(self) -> float:
        """What drawing is expected to take."""
        return self._seconds

    def is_due(self, loggers: Sequence[Any]) -> bool:
        """Whether it is time for pictures, at a new measurement; asked once for each."""
        self._since += 1
        return self.every is not None and self._since >= self.every and any(map(takes_pictures, loggers))

    def draw(self, loggers: Sequence[Any], history: History, step: int, scorer: AeLLEScorer | None) -> float:
        """Draw a history and write the pictures.

        Args:
            loggers: The Trainer's.
            history: What was measured; at least one measurement.
            step: Place on the loggers' axis.
            scorer: Whose map the run's path is drawn on.

        Returns:
            Seconds it took.

        Raises:
            ImportError: Without matplotlib.
        """
        start = time.perf_counter()
        takers = [logger for logger in loggers if takes_pictures(logger)]
        if takers and self.every is not None and history[-1].step != self._drawn_at:
            pictures = self._pictures(history, scorer)
            for logger in takers:
                self._try(logger, log_pictures, pictures, step)
            self._since, self._drawn_at = 0, history[-1].step
        self._seconds = time.perf_counter() - start
        return self._seconds

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
        """The bank as this scorer sees it, made once a run; None if it sees nothing of it."""
        if scorer is None or self._has_map:
            return self._map if scorer is not None else None
        from lightning_lyapunov.figures import LatentMap

        self._has_map = True
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
