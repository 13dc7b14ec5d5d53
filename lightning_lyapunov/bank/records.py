"""What the bank keeps: one file for each population while it grows, one compact file of all when it is done."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from lightning_lyapunov.bank.population import CHECKPOINTS, METRICS, SECOND_PROBE
from lightning_lyapunov.bank.tasks import TASKS
from lightning_lyapunov.files import write_whole

FORMAT = "lightning_lyapunov.bank/1"
BEST_QUANTILE = 0.99
"""The best metric of a task is this quantile over its networks, since the very best one may be luck."""


@dataclass(frozen=True, eq=False)
class Bank:
    """Trained networks: how each was made, its spectrum at every checkpoint, and how well it did."""

    networks: Sequence[dict[str, Any]]
    """N of them: task, family, cell, hidden_size, number of its draw, seed, and the draw."""
    spectra: Sequence[Tensor]
    """(C, D) each, nats per step, largest first; ``-inf`` for dead directions, NaN where not measured."""
    stderr: Sequence[Tensor]
    """(C, 3) each: standard errors between sequences, the largest, the median and that of the largest exponent."""
    second: Sequence[Tensor]
    """(3, D) each: at the updates of :data:`~lightning_lyapunov.bank.population.SECOND_PROBE`, spectra on other inputs
    than the first; NaN for three networks in four."""
    metrics: Tensor
    """(N, C, 6): see :data:`~lightning_lyapunov.bank.population.METRICS`."""
    final: Tensor
    """(N,) the task's metric at the end, on sequences never used otherwise."""

    def __len__(self) -> int:
        return len(self.networks)

    def column(self, key: str) -> list[Any]:
        """One property of every network."""
        return [network[key] for network in self.networks]

    def metric(self, name: str, checkpoint: int) -> Tensor:
        """(N,) one of :data:`METRICS` after so many updates."""
        return self.metrics[:, CHECKPOINTS.index(checkpoint), METRICS.index(name)]

    def subset(self, keep: Sequence[int]) -> Bank:
        """Some of the networks; skills are still relative to what all were."""
        chosen = Bank(
            [self.networks[i] for i in keep],
            [self.spectra[i] for i in keep],
            [self.stderr[i] for i in keep],
            [self.second[i] for i in keep],
            self.metrics[list(keep)],
            self.final[list(keep)],
        )
        chosen.__dict__["best"] = self.best
        return chosen

    @cached_property
    def best(self) -> dict[str, float]:
        """The best metric of each task, as far as networks of this bank came."""
        tasks = self.column("task")
        values = self.final.nan_to_num(-math.inf)
        return {
            task: float(values[[i for i, t in enumerate(tasks) if t == task]].quantile(BEST_QUANTILE))
            for task in sorted(set(tasks))
        }

    def skill(self, metric: Tensor) -> Tensor:
        """(N,) metrics as a share of the way from chance to the best, clipped to [0, 1]; 0 for those not finite."""
        tasks = self.column("task")
        chance = torch.tensor([TASKS[task].chance for task in tasks])
        best = torch.tensor([self.best[task] for task in tasks])
        return ((metric - chance) / (best - chance)).nan_to_num(0.0, 0.0, 0.0).clamp(0.0, 1.0)

    def save(self, path: Path) -> None:
        """Write one compact file: spectra as float16, everything else as plain numbers; no pickle."""
        tensors = {
            "spectra": _flat(self.spectra),
            "stderr": _flat(self.stderr),
            "second": _flat([s for s in self.second if not s.isnan().all()]),
            "has_second": torch.tensor([not bool(s.isnan().all()) for s in self.second]),
            "metrics": self.metrics.float(),  # gradient norms outgrow float16
            "final": self.final.float(),
        }
        _write(tensors, {"networks": json.dumps(self.networks, separators=(",", ":"))}, path)

    @staticmethod
    def load(path: Path) -> Bank:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: If the file is of another format.
        """
        tensors, metadata = _read(path)
        networks = json.loads(metadata["networks"])
        sizes = [network["dimension"] for network in networks]
        has_second = tensors["has_second"].tolist()
        measured = [size for size, has in zip(sizes, has_second, strict=True) if has]
        written = iter(_unflat(tensors["second"], measured, len(SECOND_PROBE)))
        second = [
            next(written) if has else torch.full((len(SECOND_PROBE), size), math.nan)
            for size, has in zip(sizes, has_second, strict=True)
        ]
        spectra = _unflat(tensors["spectra"], sizes, len(CHECKPOINTS))
        stderr = _unflat(tensors["stderr"], [3] * len(networks), len(CHECKPOINTS))
        return Bank(networks, spectra, stderr, second, tensors["metrics"], tensors["final"])


def write_record(record: dict[str, Any], path: Path) -> None:
    """Write what a population left, all of it or nothing."""
    tensors = {key: value for key, value in record.items() if isinstance(value, Tensor)}
    _write(tensors, {"networks": json.dumps(record["networks"])}, path)


def collect(directory: Path) -> Bank:
    """The bank out of the records in a directory, in the order of their names.

    Raises:
        ValueError: If there are none.
    """
    networks: list[dict[str, Any]] = []
    parts: dict[str, list[Tensor]] = {key: [] for key in ("spectrum", "stderr", "second", "metrics", "final")}
    for path in sorted(directory.glob("*.safetensors")):
        tensors, metadata = _read(path)
        dimension = tensors["spectrum"].shape[-1]
        networks += [{**network, "dimension": dimension} for network in json.loads(metadata["networks"])]
        error = tensors["stderr"].nan_to_num(0.0)
        tensors["stderr"] = torch.stack([error.amax(-1), error.median(-1).values, error[..., 0]], -1)
        for key, values in parts.items():
            values.extend(tensors[key].unbind(0))
    if not networks:
        raise ValueError(f"directory must hold records of populations (*.safetensors); {directory} has none.")
    return Bank(
        networks,
        parts["spectrum"],
        parts["stderr"],
        parts["second"],
        torch.stack(parts["metrics"]),
        torch.stack(parts["final"]),
    )


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors] or [torch.empty(0)]).half()


def _unflat(flat: Tensor, sizes: Sequence[int], rows: int) -> list[Tensor]:
    pieces = flat.float().split([rows * size for size in sizes])
    return [piece.view(rows, size) for piece, size in zip(pieces, sizes, strict=True)]


def _write(tensors: dict[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    write_whole(path, save({k: v.contiguous() for k, v in tensors.items()}, metadata={"format": FORMAT, **metadata}))


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise ValueError(f"path must be a file of format {FORMAT}; {path} says {metadata.get('format')!r}.")
        return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118 (no mapping)
