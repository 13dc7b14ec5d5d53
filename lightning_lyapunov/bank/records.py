"""What the bank keeps: a directory with one file for each population, and all of them as one table."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_lyapunov.bank.population import CHECKPOINTS, METRICS
from lightning_lyapunov.bank.probes import LEADING, LEVELS, MEASURED
from lightning_lyapunov.bank.tasks import SET_ASIDE, TASKS
from lightning_lyapunov.files import reading, require, write_tensors

FORMAT = "lightning_lyapunov.bank/2"
MADE = {
    "task": str, "family": str, "cell": str, "layers": int, "hidden_size": int, "dimension": int, "number": int,
    "seed": int, "init": str, "gain": float, "input_gain": float, "memory_bias": float, "learning_rate": float,
    "optimizer": str, "clip": bool, "warmup": int,
}  # fmt: skip
"""What is known of how each network was made."""
LONG = 3
"""Moments of the long probe."""
BEST_QUANTILE = 0.99
"""The best metric of a task is this quantile over its networks, since the very best one may be luck."""
PER_NETWORK = (
    "end", "quantiles", "leading", "measured", "long_quantiles", "long_leading", "long_measured", "layers", "metrics",
    "final",
)  # fmt: skip
"""Fields of a bank with one entry for each network."""


@dataclass(frozen=True, eq=False)
class Bank:
    """N trained networks at C checkpoints: how each was made, its spectrum, and how well it did. NaN where unknown."""

    networks: Sequence[dict[str, Any]]
    """N of them: the keys of :data:`MADE`."""
    checkpoints: tuple[int, ...]
    """Updates of each."""
    end: Tensor
    """(N,) updates of each network at its end; rows beyond are NaN."""
    quantiles: Tensor
    """``(N, C, 64)`` nats per step: spectra as quantile functions, from the top down; ``-inf`` for dead directions."""
    leading: Tensor
    """``(N, C, 8)`` nats per step: the largest exponents; NaN beyond the dimension."""
    measured: Tensor
    """``(N, C, 10)``: see :data:`~lightning_lyapunov.bank.probes.MEASURED`."""
    long_quantiles: Tensor
    """``(N, 3, 64)``: the same on at least 256 steps, after 0 and 40 updates and at the end."""
    long_leading: Tensor
    """``(N, 3, 8)``."""
    long_measured: Tensor
    """``(N, 3, 10)``."""
    layers: Tensor
    """``(N, C, 2, 2)``: of networks of two layers, the largest exponent and the gain of each."""
    metrics: Tensor
    """``(N, C, 6)``: see :data:`~lightning_lyapunov.bank.population.METRICS`."""
    final: Tensor
    """(N,) the task's metric at the end, on sequences never used otherwise."""
    set_aside: tuple[str, ...] = SET_ASIDE
    """Families that nothing may be based on."""
    digest: str = field(default="")
    """sha256 of the files it was read from."""

    def __len__(self) -> int:
        return len(self.networks)

    def column(self, key: str) -> list[Any]:
        """One property of every network."""
        return [network[key] for network in self.networks]

    def metric(self, name: str, updates: int) -> Tensor:
        """(N,) one of :data:`METRICS` after so many updates."""
        return self.metrics[:, self.checkpoints.index(updates), METRICS.index(name)]

    def subset(self, keep: Sequence[int]) -> Bank:
        """Some of the networks; skills are still relative to what all were."""
        parts = {name: getattr(self, name)[list(keep)] for name in PER_NETWORK}
        chosen = replace(self, networks=[self.networks[i] for i in keep], **parts)
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

    @staticmethod
    def load(path: Path, expected: Iterable[str] = ()) -> Bank:
        """Read the records in a directory, in the order of their names; or a file of the format before.

        Args:
            path: The directory or the file.
            expected: Names of populations that must be among the records.

        Raises:
            OSError: If it cannot be read.
            ValueError: If there are no records, one that is expected is missing, or a file is of another format or not
                as it was written.
        """
        if path.is_file():
            from lightning_lyapunov.bank.bank_1 import load

            return load(path)
        paths = sorted(path.glob("*.safetensors"))
        if missing := sorted(set(expected) - {one.stem for one in paths}):
            raise ValueError(
                f"path must hold the records of populations that were planned; {path} lacks {len(missing)}, "
                f"{missing[0]} among them. Build again: what is there is kept."
            )
        if not paths:
            raise ValueError(f"path must hold records of populations (*.safetensors); {path} has none.")
        records = [read_record(one) for one in paths]
        whole: dict[str, Any] = {key: torch.cat([_filled(record, key) for record in records]) for key in PER_NETWORK}
        digests = [f"{one.name} {hashlib.sha256(one.read_bytes()).hexdigest()}\n" for one in paths]
        return Bank(
            networks=[network for record in records for network in record["networks"]],
            checkpoints=CHECKPOINTS,
            digest=hashlib.sha256("".join(digests).encode()).hexdigest(),
            **whole,
        )


def _filled(record: Mapping[str, Any], key: str) -> Tensor:
    """A field of the bank from a record, as float32 and with rows for all checkpoints."""
    networks, rows = record["metrics"].shape[:2]
    if key == "end":
        return torch.full((networks,), CHECKPOINTS[rows - 1])
    if key == "layers" and key not in record:
        return torch.full((networks, len(CHECKPOINTS), 2, 2), math.nan)
    values: Tensor = record[key].float()
    if key == "final" or key.startswith("long_"):
        return values
    return torch.cat([values, values.new_full((networks, len(CHECKPOINTS) - rows, *values.shape[2:]), math.nan)], 1)


def write_record(record: Mapping[str, Any], path: Path) -> None:
    """Write what a population left, all of it or nothing."""
    tensors = {key: value for key, value in record.items() if isinstance(value, Tensor)}
    networks = json.dumps(_columns(record["networks"]), separators=(",", ":"))
    write_tensors(path, tensors, {"format": FORMAT, "networks": networks})


def read_record(path: Path) -> dict[str, Any]:
    """What :func:`write_record` wrote.

    Raises:
        OSError: If there is no such file.
        ValueError: If the file is of another format, or not as it was written.
    """
    with reading(path, FORMAT) as (tensors, metadata):
        networks = _networks(metadata)
        count, rows = len(networks), _rows(tensors)
        shapes = {
            "quantiles": (torch.float16, (count, rows, LEVELS)),
            "leading": (torch.float16, (count, rows, LEADING)),
            "measured": (torch.float32, (count, rows, len(MEASURED))),
            "long_quantiles": (torch.float16, (count, LONG, LEVELS)),
            "long_leading": (torch.float16, (count, LONG, LEADING)),
            "long_measured": (torch.float32, (count, LONG, len(MEASURED))),
            "metrics": (torch.float32, (count, rows, len(METRICS))),
            "final": (torch.float32, (count,)),
        }
        if networks[0]["layers"] > 1:
            shapes["layers"] = (torch.float32, (count, rows, networks[0]["layers"], 2))
        require(tensors, shapes)
        _require_possible(tensors)
        return {**tensors, "networks": networks}


def _rows(tensors: Mapping[str, Tensor]) -> int:
    """Checkpoints of a record: as many as its metrics say, if so many there are."""
    shape = tensors["metrics"].shape if "metrics" in tensors else ()
    return shape[1] if len(shape) == 3 and 1 <= shape[1] <= len(CHECKPOINTS) else len(CHECKPOINTS)


def _columns(networks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Networks key by key: one value where all have the same, else a list."""
    columns = {key: [network[key] for network in networks] for key in networks[0]}
    return {key: values[0] if all(v == values[0] for v in values) else values for key, values in columns.items()}


def _networks(metadata: Mapping[str, str]) -> list[dict[str, Any]]:
    """How the networks of a record were made, each with a value of the right kind under every key."""
    if metadata.keys() != {"format", "networks"}:
        raise ValueError(f"its metadata must be format and networks; got {', '.join(metadata)}")
    columns = json.loads(metadata["networks"])
    if not isinstance(columns, dict) or columns.keys() != MADE.keys():
        raise ValueError(f"networks must be an object of {', '.join(MADE)}")
    lengths = {len(values) for values in columns.values() if isinstance(values, list)} or {1}
    if len(lengths) > 1 or 0 in lengths:
        raise ValueError(f"networks must have columns of one length, at least 1; got lengths of {sorted(lengths)}")
    (count,) = lengths
    whole = {key: values if isinstance(values, list) else [values] * count for key, values in columns.items()}
    for key, kind in MADE.items():
        if {type(value) for value in whole[key]} != {kind}:
            raise ValueError(f"networks must have {key} of type {kind.__name__}")
    networks = [dict(zip(whole, values, strict=True)) for values in zip(*whole.values(), strict=True)]
    if min(min(n["hidden_size"], n["dimension"], n["layers"]) for n in networks) < 1:
        raise ValueError("networks must have a hidden_size, a dimension and layers of at least 1")
    if len({network["layers"] for network in networks}) > 1:
        raise ValueError("networks must have one number of layers")
    return networks


def _require_possible(tensors: Mapping[str, Tensor]) -> None:
    for key in ("quantiles", "leading", "long_quantiles", "long_leading"):
        if (tensors[key] == math.inf).any():
            raise ValueError(f"{key} must be below infinity")
    errors = [i for i, name in enumerate(MEASURED) if name.endswith("error")]
    for key in ("measured", "long_measured"):
        if (tensors[key][..., errors] < 0).any():
            raise ValueError(f"{key} must hold no error below 0")
