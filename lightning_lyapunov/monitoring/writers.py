"""What a plain training loop writes to, in the form that Lightning's loggers have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

Target: TypeAlias = Any
"""A ``SummaryWriter``, a run of Weights & Biases, a function ``(figures, step)``, or a logger of Lightning's."""


class _Writer:
    """Something that is written to.

    Attributes:
        kinds: Names of the loggers of Lightning's that it stands for.
        experiment: What they wrap.
    """

    kinds: frozenset[str] = frozenset()

    def __init__(self, experiment: Any) -> None:
        self.experiment = experiment

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write figures by key."""
        self.experiment(dict(metrics), step)


class _TensorBoard(_Writer):
    kinds = frozenset({"TensorBoardLogger"})

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        for key, value in metrics.items():
            self.experiment.add_scalar(key, value, step)


class _WeightsAndBiases(_Writer):
    kinds = frozenset({"WandbLogger"})

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self.experiment.log({**metrics, "trainer/global_step": step})

    def log_table(self, key: str, columns: list[str], data: list[list[Any]], step: int | None = None) -> None:
        """Write a table."""
        import wandb

        self.log_metrics({key: wandb.Table(columns=[*columns], data=data)}, step)


def writers_of(to: Target | Sequence[Target] | None) -> list[Any]:
    """Each target as something with ``log_metrics``.

    Raises:
        ValueError: If one is none of those that can be written to.
    """
    targets = [] if to is None else list(to) if isinstance(to, list | tuple) else [to]
    return [_writer_of(target) for target in targets]


def _writer_of(target: Target) -> Any:
    if hasattr(target, "log_metrics"):
        return target
    if hasattr(target, "add_scalar"):
        return _TensorBoard(target)
    if hasattr(target, "define_metric"):
        return _WeightsAndBiases(target)
    if isinstance(target, Callable):  # type: ignore[arg-type]
        return _Writer(target)
    raise ValueError(
        "to must be a SummaryWriter, a run of wandb, a function (figures, step), a logger of Lightning's, or a list of "
        f"these; got {type(target).__name__}."
    )
