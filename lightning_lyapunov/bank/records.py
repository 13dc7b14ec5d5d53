"""What the bank keeps: one file for each population while it grows, one compact file of all when it is done."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_lyapunov.bank.population import CHECKPOINTS, METRICS, SECOND_PROBE
from lightning_lyapunov.bank.tasks import TASKS
from lightning_lyapunov.files import reading, require, write_tensors

FORMAT = "lightning_lyapunov.bank/1"
SHIPPED = Path(__file__).with_name("bank.safetensors")
"""The bank that comes with the package."""
SHIPPED_SHA256 = "bde3820aa5e73de0e439818924fba9efa3853bb884ab6367e8ab05fd47eb6a65"
"""Of that file, which was written before files held a digest of their own."""
MADE = {
    "task": str, "family": str, "cell": str, "hidden_size": int, "number": int, "seed": int, "init": str,
    "gain": float, "input_gain": float, "memory_bias": float, "learning_rate": float,
}  # fmt: skip
"""What is known of how each network was made."""
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
        networks = json.dumps(self.networks, separators=(",", ":"))
        write_tensors(path, tensors, {"format": FORMAT, "networks": networks})

    @staticmethod
    def load(path: Path) -> Bank:
        """Read what :meth:`save` wrote.

        Raises:
            OSError: If there is no such file.
            ValueError: If the file is of another format, or not as it was written.
        """
        is_shipped = path.resolve() == SHIPPED.resolve()
        with reading(path, FORMAT, SHIPPED_SHA256 if is_shipped else None) as (tensors, metadata):
            networks = _networks(metadata, {**MADE, "dimension": int})
            sizes = [network["dimension"] for network in networks]
            has_second = tensors["has_second"].tolist()
            measured = [size for size, has in zip(sizes, has_second, strict=True) if has]
            count, rows, few = len(networks), len(CHECKPOINTS), len(SECOND_PROBE)
            require(
                tensors,
                {
                    "spectra": (torch.float16, (rows * sum(sizes),)),
                    "stderr": (torch.float16, (rows * 3 * count,)),
                    "second": (torch.float16, (few * sum(measured),)),
                    "has_second": (torch.bool, (count,)),
                    "metrics": (torch.float32, (count, rows, len(METRICS))),
                    "final": (torch.float32, (count,)),
                },
            )
            _require_possible(tensors["spectra"], tensors["stderr"])
            written = iter(_unflat(tensors["second"], measured, few))
            second = [
                next(written) if has else torch.full((few, size), math.nan)
                for size, has in zip(sizes, has_second, strict=True)
            ]
            spectra = _unflat(tensors["spectra"], sizes, rows)
            stderr = _unflat(tensors["stderr"], [3] * count, rows)
            return Bank(networks, spectra, stderr, second, tensors["metrics"], tensors["final"])


def write_record(record: dict[str, Any], path: Path) -> None:
    """Write what a population left, all of it or nothing."""
    tensors = {key: value for key, value in record.items() if isinstance(value, Tensor)}
    write_tensors(path, tensors, {"format": FORMAT, "networks": json.dumps(record["networks"])})


def read_record(path: Path) -> dict[str, Any]:
    """What :func:`write_record` wrote.

    Raises:
        OSError: If there is no such file.
        ValueError: If the file is of another format, or not as it was written.
    """
    with reading(path, FORMAT) as (tensors, metadata):
        networks = _networks(metadata, MADE)
        count, rows, dimension = len(networks), len(CHECKPOINTS), tensors["spectrum"].shape[-1]
        shapes: dict[str, tuple[int, ...]] = {
            "spectrum": (count, rows, dimension),
            "stderr": (count, rows, dimension),
            "second": (count, len(SECOND_PROBE), dimension),
            "metrics": (count, rows, len(METRICS)),
            "final": (count,),
        }
        require(tensors, {key: (torch.float32, shape) for key, shape in shapes.items()})
        _require_possible(tensors["spectrum"], tensors["stderr"].nan_to_num(0.0))
        return {**tensors, "networks": networks}


def collect(directory: Path, expected: Iterable[str] = ()) -> Bank:
    """The bank out of the records in a directory, in the order of their names.

    Args:
        directory: Where the records are.
        expected: Names of populations that must be among them.

    Raises:
        ValueError: If there are none, one that is expected is missing, or one is not as it was written.
    """
    paths = sorted(directory.glob("*.safetensors"))
    if missing := sorted(set(expected) - {path.stem for path in paths}):
        raise ValueError(
            f"directory must hold the records of populations that were planned; {directory} lacks {len(missing)}, "
            f"{missing[0]} among them. Build again: what is there is kept."
        )
    networks: list[dict[str, Any]] = []
    parts: dict[str, list[Tensor]] = {key: [] for key in ("spectrum", "stderr", "second", "metrics", "final")}
    for path in paths:
        record = read_record(path)
        dimension = record["spectrum"].shape[-1]
        networks += [{**network, "dimension": dimension} for network in record["networks"]]
        error = record["stderr"].nan_to_num(0.0)
        record["stderr"] = torch.stack([error.amax(-1), error.median(-1).values, error[..., 0]], -1)
        for key, values in parts.items():
            values.extend(record[key].unbind(0))
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


def _networks(metadata: dict[str, str], kinds: dict[str, type]) -> list[dict[str, Any]]:
    """How the networks of a file were made, each with a value of the right kind under every key."""
    if metadata.keys() != {"format", "networks"}:
        raise ValueError(f"its metadata must be format and networks; got {', '.join(metadata)}")
    networks = json.loads(metadata["networks"])
    if not isinstance(networks, list) or not networks:
        raise ValueError("networks must be a list, and not empty")
    for i, network in enumerate(networks):
        found = {key: type(value) for key, value in network.items()}
        if found != kinds:
            wanted = ", ".join(f"{key}: {kind.__name__}" for key, kind in kinds.items())
            raise ValueError(f"networks must each have {wanted}; number {i} has another")
        if min(network["hidden_size"], network.get("dimension", 1)) < 1:
            raise ValueError(f"networks must have a size of at least 1; number {i} has none")
    return networks


def _require_possible(spectra: Tensor, stderr: Tensor) -> None:
    if (spectra == math.inf).any() or not (stderr >= 0).all():
        raise ValueError("exponents must be below infinity, and their standard errors not below 0")
