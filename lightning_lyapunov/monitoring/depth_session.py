"""The blocks of a deep network, watched: their spectrum across depth, and what it means."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from lightning_lyapunov.engine.depth_spectrum import DepthSpectrum
from lightning_lyapunov.monitoring.blocks import Blocks
from lightning_lyapunov.monitoring.budget import Plan
from lightning_lyapunov.monitoring.depth_options import COLUMNS, DepthOptions
from lightning_lyapunov.monitoring.loggers.charts import charts_of_depth
from lightning_lyapunov.monitoring.loggers.panels import Panels
from lightning_lyapunov.monitoring.session import Session
from lightning_lyapunov.monitoring.watch import Source
from lightning_lyapunov.names_depth import DEPTH, MEASURED
from lightning_lyapunov.reading.depth_history import FLOOR, DepthMeasurement, depth_features
from lightning_lyapunov.reading.depth_rules import news, verdict
from lightning_lyapunov.reading.history import History
from lightning_lyapunov.reading.rules import Finding
from lightning_lyapunov.reading.verdict import Verdict

MOST = 1e6
"""Nats. A growth beyond is logged as this, since a monitor stops on infinity."""


class DepthSession(Session):
    """Watches the blocks of a network while it is trained, once; arguments are those of the base.

    Attributes:
        blocks: Those that are watched.
    """

    options_type, kind = DepthOptions, DepthMeasurement
    measures = "the spectrum across depth"
    saves = "a smaller num_samples or k"
    fewest = Plan(1, 1, COLUMNS)  # vectors that are taken at once, so fewer growths hardly cost less

    options: DepthOptions
    history: History[DepthMeasurement]
    spectrum: DepthSpectrum | None

    def _watching(self, model: nn.Module) -> Blocks:
        self.blocks = Blocks(model, self.options.blocks, self.options.num_samples, self._notices.tell)
        return self.blocks

    # ---------------------------------------------------------------- measuring

    def _whole(self, source: Source) -> Plan:
        assert self.options.k is not None
        samples = sum(self._ranks.gather(self.blocks.recorded(source)))
        return Plan(min(self.options.num_samples, samples), 1, self.options.k)

    def _spectrum(self, plan: Plan, source: Source) -> DepthSpectrum:
        settings = replace(self.options.settings, k=plan.k)
        spectrum = self.blocks.spectrum(self._ranks, source, plan.sequences, settings, self.options.precision)
        if spectrum.log_singular_values[0].isnan():
            raise ValueError("the largest growth is NaN: states or weights of the blocks are not finite.")
        return spectrum

    def _figures(self) -> dict[str, float]:
        assert self.spectrum is not None
        with self.budget.spending("measuring"):
            values = depth_features(self.spectrum)
            return {name: min(max(value, FLOOR), MOST) for name, value in values.items() if not math.isnan(value)}

    def _keep(self, figures: dict[str, float], plan: Plan, whole: Plan) -> None:
        spectrum, seen, at = self.spectrum, self.blocks.seen, self._moment
        assert spectrum is not None and seen is not None
        measurement = DepthMeasurement.of(
            spectrum,
            step=at.step,
            epoch=at.epoch,
            kinds=seen.kinds,
            source=seen.source,
            seen=seen.samples,
            fewer=self._fewer(spectrum.samples, seen.samples, over_budget=plan.sequences < whole.sequences),
            masked=seen.masked,
        )
        self.history.append(replace(measurement, metrics=dict(figures)))

    def _fewer(self, samples: int, seen: int, *, over_budget: bool) -> str:
        """How much less was measured than seen, and why; empty where it was all."""
        if samples >= seen:
            return ""
        why = " (max_overhead allows no more)" if over_budget else f" (num_samples={self.options.num_samples})"
        return f"{samples} of {seen} samples{why}"

    # ---------------------------------------------------------------- telling

    def _panels(self) -> Panels:
        wanted, refused = self.options.figures, self.warn_of_logger
        return Panels(wanted, refused, charts=charts_of_depth, table=DEPTH, columns=MEASURED, beside=())

    def _verdict(self) -> Verdict | None:
        return verdict(self.history)

    def _news(self) -> Sequence[Finding]:
        return news(self.history)

    def _drawn(self, history: History[DepthMeasurement]) -> Mapping[str, Any]:
        from lightning_lyapunov.figures.depth import figures_of_depth

        return figures_of_depth(history)

    def _report(self) -> Callable[[Path, Mapping[str, Any]], Path]:
        from lightning_lyapunov.report_depth import write_depth_report

        def write(path: Path, settings: Mapping[str, Any]) -> Path:
            title = f"Gradients across the depth of {self._model_name}"
            return write_depth_report(self.history, path, settings=settings, title=title)

        return write
