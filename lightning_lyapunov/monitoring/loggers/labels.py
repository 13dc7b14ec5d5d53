"""What a tracker keeps of a run as a whole: the settings it was measured with, the verdict on it, the page about it.

Each is kept where the tracker's own users look for it:

===============  =============================  =====================================  ============================
..               settings                       verdict                                page
===============  =============================  =====================================  ============================
TensorBoard      --                             Text ``<prefix>/verdict``              --
W&B              ``config["<prefix>"]``         summary ``<prefix>/verdict_word`` and  artifact ``run-<id>-<prefix>``
                                                ``_text``; an alert when it is "act"   of type ``report``
MLflow           parameters ``<prefix>/...``    tags ``<prefix>/verdict`` and          artifact ``<prefix>/...html``
                                                ``<prefix>/verdict_text``
===============  =============================  =====================================  ============================

Nothing that is there already is replaced, but for our own verdict. The settings that TensorBoard shows under HParams a
Trainer knows to write; as text they would push the verdict out of sight.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_lyapunov.monitoring.loggers.trackers import attempt, kinds_of
from lightning_lyapunov.reading.verdict import Verdict

LONGEST, MOST = 250, 100
"""Characters of a parameter, and parameters at a time, that MLflow takes in every version."""


class Labels:
    """Labels a run in the trackers: once with its settings, with the verdict when that changes, in the end with a page.

    Args:
        prefix: That of the keys.
        refused: Told of a logger that refused something: the logger and its error.
    """

    def __init__(self, prefix: str, refused: Callable[[Any, Exception], None]) -> None:
        self._prefix, self._refused = prefix, refused
        self.begin({}, alerted=False)

    def begin(self, settings: Mapping[str, Any], *, alerted: bool) -> None:
        """Begin a fit.

        Args:
            settings: What it is measured with.
            alerted: Whether the run was once to be acted on before, which was told then.
        """
        self._settings: Mapping[str, Any] | None = {name: plain(value) for name, value in settings.items()}
        self._alerted, self._said_at = alerted, -1
        self._said: Verdict | None = None

    def write(self, loggers: Sequence[Any], verdict: Verdict | None, step: int, *, last: bool = False) -> None:
        """Write what is new since the last time: settings, and the verdict.

        The settings come with the first measurement: before that, Lightning has not yet written those of the user,
        which MLflow would refuse if something of the same name stood there.

        Args:
            loggers: What is written to.
            verdict: On the run as it is.
            step: Place on the loggers' axis.
            last: Whether the run has ended, of which TensorBoard gets a line in any case.
        """
        if self._settings:
            attempt(loggers, self._refused, log_settings, self._prefix, self._settings)
        self._settings = None
        if verdict is None:
            return
        if verdict != self._said or (last and step != self._said_at):
            alert = verdict.word == "act" and not self._alerted
            attempt(loggers, self._refused, log_verdict, self._prefix, verdict, step, alert)
            self._said, self._said_at, self._alerted = verdict, step, self._alerted or alert

    def keep(self, loggers: Sequence[Any], page: Path) -> None:
        """Keep the page about the run with it."""
        attempt(loggers, self._refused, log_page, self._prefix, page)


# ---------------------------------------------------------------- what each tracker takes


def log_settings(logger: Any, prefix: str, settings: Mapping[str, Any]) -> None:
    """Write what the run is measured with, under names of our own."""
    kinds = kinds_of(logger)
    if "WandbLogger" in kinds:
        if prefix not in logger.experiment.config:
            logger.experiment.config.update({prefix: dict(settings)})
    elif "MLFlowLogger" in kinds:
        from mlflow.entities import Param

        there = logger.experiment.get_run(logger.run_id).data.params  # each of which is there for good
        values = {f"{prefix}/{name}": str(value)[:LONGEST] for name, value in settings.items()}
        new = [Param(name, value) for name, value in values.items() if name not in there and value]
        for first in range(0, len(new), MOST):
            logger.experiment.log_batch(logger.run_id, params=new[first : first + MOST])


def log_verdict(logger: Any, prefix: str, verdict: Verdict, step: int, alert: bool) -> None:
    """Write what to make of the run.

    Args:
        logger: What is written to.
        prefix: That of the keys.
        verdict: Its word, its sentence, and what to do.
        step: Place on the logger's axis, in TensorBoard.
        alert: Whether Weights & Biases is to tell whoever wants to be told.
    """
    kinds, key = kinds_of(logger), f"{prefix}/verdict"
    told = f"{verdict.text} {verdict.advice}".rstrip()
    if "TensorBoardLogger" in kinds:
        todo = f"\n\n**What to do:** {verdict.advice}" if verdict.advice else ""
        logger.experiment.add_text(key, f"{verdict.sign} **{verdict.word}**: {verdict.text}{todo}", step)
    elif "WandbLogger" in kinds:
        # Words stand beside the number, which is under the key itself: charts, sweeps and filters take numbers.
        logger.experiment.summary.update({f"{key}_word": verdict.word, f"{key}_text": told})
        if alert:
            logger.experiment.alert(f"{verdict.sign} {prefix}: {verdict.word}", told, level="WARN")
    elif "MLFlowLogger" in kinds:
        for name, value in {key: verdict.word, f"{key}_text": told}.items():
            logger.experiment.set_tag(logger.run_id, name, value)


def log_page(logger: Any, prefix: str, page: Path) -> None:
    """Keep a page with the run, where the tracker keeps files."""
    kinds = kinds_of(logger)
    if "WandbLogger" in kinds:
        run = logger.experiment
        name = re.sub(r"[^\w.-]", "-", f"run-{run.id}-{prefix}")  # as wandb names its own tables
        run.log_artifact(str(page), name=name, type="report")
    elif "MLFlowLogger" in kinds:
        logger.experiment.log_artifact(logger.run_id, str(page), prefix)


# ---------------------------------------------------------------- plain values


def plain(value: Any) -> Any:
    """A setting as every tracker can keep it: numbers, words and lists of them; of anything else its name.

    Example:
        >>> plain([1, None]), plain({"rnn": len}), plain(object())
        ([1, None], {'rnn': 'len'}, 'object')
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple) and all(isinstance(item, bool | int | float | str | None) for item in value):
        return list(value)
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    return str(value) if isinstance(value, Path) else getattr(value, "__name__", type(value).__name__)
