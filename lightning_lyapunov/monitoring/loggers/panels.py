"""Pictures of a run, drawn rarely and within the budget, for the loggers that take them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from lightning_lyapunov.monitoring.loggers.charts import ChartsOf, charts_of_spectra
from lightning_lyapunov.monitoring.loggers.trackers import attempt, log_pictures, log_table, prepare, takes_pictures
from lightning_lyapunov.names import MEASURED, ON_REQUEST, QUANTITIES, SCORED, SPECTRA, Table, key_of
from lightning_lyapunov.reading.history import History

FIRST = 0.8
"""Seconds that drawing is expected to take before it was done."""
FIRST_OF_ALL = "overview"
"""The picture of the whole run."""
COLUMNS = (*MEASURED, *ON_REQUEST, *SCORED)
"""What the table of measurements holds beside update, epoch and skill so far, as far as it is known."""
FiguresOf: TypeAlias = Callable[[History[Any]], Mapping[str, Any]]
"""What draws a history: matplotlib's figures, by name."""


class Panels:
    """Draws a history for loggers: at the first two measurements, then at the fourth, the eighth and so on.

    Args:
        wanted: Whether any pictures are.
        refused: Told of a logger that refused something: the logger and its error.
        charts: What makes the charts of a dashboard.
        table: Of what is measured.
        columns: Names of the figures that the table of measurements holds, as far as they are known.
        beside: What else it holds: headings, each with the field of a measurement.

    Attributes:
        seconds: What drawing is expected to take: as long as the last time.
    """

    def __init__(
        self,
        wanted: bool,
        refused: Callable[[Any, Exception], None],
        *,
        charts: ChartsOf = charts_of_spectra,
        table: Table = SPECTRA,
        columns: Sequence[str] = COLUMNS,
        beside: Sequence[tuple[str, str]] = (("skill so far", "reached"),),
    ) -> None:
        self._wanted, self._refused = wanted, refused
        self._charts, self._table, self._columns, self._beside = charts, table, columns, beside
        self.seconds = FIRST
        self._measurements = 0
        self._drawn_at: int | None = None  # update of the last ones

    def begin(self, loggers: Sequence[Any], prefix: str, names: Sequence[str] = tuple(QUANTITIES)) -> None:
        """Tell the loggers how to group what is to come, the figures of these names."""
        self._measurements, self._drawn_at = 0, None
        attempt(loggers, self._refused, prepare, prefix, names, self._charts, self._table)

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

    def draw(self, loggers: Sequence[Any], history: History[Any], step: int, figures: FiguresOf) -> None:
        """Draw a history and write the pictures, unless those of the last measurement were drawn already.

        Args:
            loggers: What is written to.
            history: What was measured; at least one measurement.
            step: Place on the loggers' axis.
            figures: What draws it.

        Raises:
            ImportError: Without matplotlib.
        """
        if not self.are_for(loggers) or history[-1].step == self._drawn_at:
            return
        self.load()
        start = time.perf_counter()
        pictures = self._pictures(history, figures)
        attempt([*filter(takes_pictures, loggers)], self._refused, log_pictures, pictures, step)
        self._drawn_at, self.seconds = history[-1].step, time.perf_counter() - start

    def close(self, loggers: Sequence[Any], history: History[Any], step: int) -> None:
        """Write the table of all measurements, once a run."""
        names = [name for name in self._columns if not all(map(math.isnan, history.values(name)))]
        values = [history.values(name) for name in names]
        rows = [
            [
                m.step,
                m.epoch,
                *(getattr(m, field) for _, field in self._beside),
                *(None if math.isnan(column[i]) else column[i] for column in values),
            ]
            for i, m in enumerate(history)
        ]
        columns = [
            "update",
            "epoch",
            *(heading for heading, _ in self._beside),
            *(key_of(name, history.prefix) for name in names),
        ]
        attempt(loggers, self._refused, log_table, f"{history.prefix}/measurements", columns, rows, step)

    def _pictures(self, history: History[Any], figures: FiguresOf) -> dict[str, Any]:
        """By tag; that of the whole run among the figures of the prefix itself."""
        drawn = figures(history)
        groups = {name: "" if name == FIRST_OF_ALL else "_figures" for name in drawn}
        return {f"{history.prefix}{groups[name]}/{name}": _pixels(figure) for name, figure in drawn.items()}


def _pixels(figure: Any) -> np.ndarray:
    """``(height, width, 3)`` bytes."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
