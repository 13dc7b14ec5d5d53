"""What was measured in the course of a run, and of those before it: a bounded record that a checkpoint can carry."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import StringIO
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, cast, overload

import torch
from torch import Tensor

from lightning_lyapunov.engine.spectrum import LocalExponents, LyapunovSpectrum
from lightning_lyapunov.names import current_name, name_of
from lightning_lyapunov.reading.features import known_growth
from lightning_lyapunov.reading.kept import Kept, read_state

if TYPE_CHECKING:
    from typing_extensions import TypeVar
else:
    from typing import TypeVar

LIMIT = 256
"""Measurements kept; when there are more, every second one is dropped, so that the whole run stays covered."""
BYTES = 800_000
"""What those kept may take in a checkpoint; where they are large, of many exponents or layers, fewer are kept."""
MOST_BLOCKS = 32
"""Blocks of steps that growth along the sequence is kept in, at most."""
FEWEST = 8
"""Sequences from which eight in ten of them are told: of fewer, those would be all of them."""


@dataclass(frozen=True)
class Measurement(Kept):
    """One measurement of the recurrent layers of a network."""

    step: int
    """The Trainer's ``global_step``: updates made before it."""
    epoch: int
    """Epoch in which it was made; the one before the first update has epoch 0 as well, and step 0."""
    exponents: Tensor
    """(K,) nats per step, float32 on the CPU, largest first."""
    metrics: dict[str, float]
    """What was logged, by name, as in :data:`lightning_lyapunov.names.QUANTITIES`: without the prefix of the keys."""
    stderr: Tensor | None = None
    """(K,) standard errors of the exponents, nats per step; NaN where not known."""
    error: Tensor | None = None
    """(K,) half-widths of their 95 % bars, nats per step; where not given, two standard errors."""
    settled: Tensor | None = None
    """(K,) bool: may be read as rates in the long run; None where that was not looked at."""
    trusted: Tensor | None = None
    """(K,) bool: inside the precision law."""
    dimension: int | None = None
    """D of the state: K of these exponents were measured."""
    length: int | None = None
    """Steps of the longest sequence that the network was driven with, of which the first ones were measured: where it
    came in several calls, those of all of them."""
    source: str = ""
    """What drove the network: ``validation``, ``training``, or ``validation and training`` where layers differ in it;
    empty where that is not known. Measurements of different sources are not compared."""
    sequences: int | None = None
    """Sequences measured."""
    steps: int | None = None
    """Steps measured of the longest of them, the transient among them."""
    counted: int | None = None
    """Steps of it after the transient, which count for the exponents; of several layers the fewest."""
    seen: int | None = None
    """Sequences that were seen in the batches recorded, of which those were measured; None where that is not known."""
    fewer: str = ""
    """How much less was measured than seen, and why: see :func:`~lightning_lyapunov.reading.extent.extent`."""
    growth: Tensor | None = None
    """(G,) mean ln σ of the product of all Jacobians of a sequence, largest first, nats over the sequence."""
    growth_error: Tensor | None = None
    """(G,) half-widths of their 95 % bars, nats."""
    gain: float = math.nan
    """What a gradient grows by over a sequence, nats: mean over sequences of the root mean square."""
    gain_error: float = math.nan
    """Half-width of its 95 % bar, nats."""
    gain_low: float = math.nan
    """A tenth of the sequences lie below, nats; NaN of fewer than 8 sequences."""
    gain_high: float = math.nan
    """A tenth of the sequences lie above, nats; NaN of fewer than 8 sequences."""
    growth_steps: float = math.nan
    """Steps over which growth was measured, mean over sequences."""
    growth_whole: bool = False
    """Whether these were whole sequences, if of different lengths; else the first steps of longer ones."""
    growth_of: str = ""
    """The layer, or stack of layers, whose growth it is, where that of all together is not known; else empty."""
    layers: dict[str, list[float]] = field(default_factory=dict)
    """Of each layer, if there are several: the largest exponent and its error (nats per step), whether it has settled
    (0 or 1), the gain, its error and the largest ln σ (nats over a sequence)."""
    latent: Tensor | None = None
    """(L,) the AeLLE code of the spectrum, if it was scored."""
    reached: float | None = None
    """Skill so far, as the scorer was told it."""
    skill: float = math.nan
    """Skill so far on the scale of the bank, from 0 by chance to 1 at best; NaN where it is not known."""
    cell: str = ""
    """Kind of cell, as the scorer was told it; empty where it is not known."""
    speaks: str | None = None
    """Of what the scorer says, the parts that the spectrum adds to: of ``rank``, ``failure``, ``takeoff``, separated by
    commas; None where that was not told."""
    softening: dict[str, float] = field(default_factory=dict)
    """Before the first update, of each layer that can be conditioned, by its name in the model: the factor on its
    recurrent weights that takes its largest exponent below 0; 1 where nothing grows."""
    along: Tensor | None = None
    """(4, S + 1) growth of a push along the sequence, in S blocks of steps, 32 at most: the step before which each
    begins and ends, the mean over sequences and the standard deviation between them, nats per step. The last column is
    of all blocks together. See :attr:`~lightning_lyapunov.engine.spectrum.LocalExponents.pushes`."""
    along_of: str = ""
    """The layer whose growth that is: of several the one with the largest exponent, which keeps a push longest."""

    NEWER: ClassVar[tuple[str, ...]] = (
        *("source", "sequences", "steps", "counted", "seen", "fewer", "softening", "skill", "cell", "speaks"),
        *("along", "along_of"),
    )

    def __post_init__(self) -> None:
        if self.error is None and self.stderr is not None:
            object.__setattr__(self, "error", 2 * self.stderr)

    @classmethod
    def of(
        cls,
        spectrum: LyapunovSpectrum,
        *,
        step: int = 0,
        epoch: int = 0,
        metrics: Mapping[str, float] | None = None,
        length: int | None = None,
        source: str = "",
        sequences: int | None = None,
        steps: int | None = None,
        seen: int | None = None,
        fewer: str = "",
        latent: Tensor | None = None,
        reached: float | None = None,
    ) -> Measurement:
        """What is kept of a spectrum.

        Args:
            spectrum: As measured, on whatever device.
            step: Updates made before it.
            epoch: In which it was made.
            metrics: What was logged of it, by name without prefix.
            length: Steps of the longest sequence, over all of its calls; never fewer than were measured.
            source: What drove the network, as in :attr:`source`.
            sequences: Measured; if None, those of the spectrum.
            steps: Measured of the longest sequence, with the transient; if None, those of the spectrum.
            seen: Sequences that were seen.
            fewer: How much less was measured than seen, and why.
            latent: The AeLLE code (L,), if it was scored.
            reached: Skill so far.
        """
        if steps is None:
            steps = max(part.steps + part.transient for part in spectrum.layers.values())
        length = max(length or 0, steps)
        layers = {name: _layer(part) for name, part in spectrum.parts.items()}
        known: dict[str, Any] = {}
        layer, growth = known_growth(spectrum)
        if growth is not None:
            gains = growth.gain_per_sequence.double().sort().values.tolist()
            tenth = round((len(gains) - 1) / 10)
            known = {
                "growth": growth.log_singular_values.float().cpu(),
                "growth_error": growth.error.float().cpu(),
                "gain": growth.gain,
                "gain_error": growth.gain_error,
                "growth_steps": float(growth.lengths.double().mean()),
                "growth_whole": int(growth.lengths.max()) >= length,
                "growth_of": layer,
            }
            if len(gains) >= FEWEST:
                known |= {"gain_low": gains[tenth], "gain_high": gains[-1 - tenth]}
        along_of, local = _telling(spectrum)
        if local is not None:
            known |= {"along": local.brief(MOST_BLOCKS), "along_of": along_of}
        return cls(
            step,
            epoch,
            exponents=spectrum.exponents.float().cpu(),
            metrics=dict(metrics or {}),
            stderr=spectrum.stderr.float().cpu(),
            error=spectrum.error.float().cpu(),
            settled=spectrum.settled.cpu(),
            trusted=spectrum.trusted.cpu(),
            dimension=spectrum.dimension,
            length=length,
            source=source,
            sequences=spectrum.sequences if sequences is None else sequences,
            steps=steps,
            counted=spectrum.steps,
            seen=seen,
            fewer=fewer,
            layers=layers,
            latent=None if latent is None else latent.float().cpu(),
            reached=reached,
            **known,
        )

    def __repr__(self) -> str:
        from lightning_lyapunov.reading.words import factor, in_words, steps_of  # which reads measurements

        marked = "" if self.settled is None or not len(self.settled) else ", settled" * bool(self.settled[0])
        grows = "" if math.isnan(self.gain) else f", gradient {factor(self.gain)} over {steps_of(self)}"
        when = f"update {self.step:,}, epoch {self.epoch}"
        return f"Measurement({when}: largest exponent {in_words(self)}{marked}{grows})"

    def layer(self, name: str) -> Measurement:
        """What was measured of one layer, of which the largest exponent and ln σ are kept."""
        exponent, error, settled, gain, gain_error, growth = self.layers[name]
        return Measurement(
            self.step,
            self.epoch,
            exponents=torch.tensor([exponent]),
            metrics={},
            error=torch.tensor([error]),
            settled=None if self.settled is None else torch.tensor([bool(settled)]),
            length=self.length,
            source=self.source,
            growth=torch.tensor([growth]),
            gain=gain,
            gain_error=gain_error,
            growth_steps=self.growth_steps,
            growth_whole=self.growth_whole,
            growth_of=name,
        )

    @classmethod
    def _repaired(cls, known: dict[str, Any], written: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        """Figures and layers as they are kept now."""
        metrics, layers = known["metrics"], known.get("layers", {})
        if "growth" not in written:  # of the time when metrics had the names that they are logged under
            metrics = {name_of(str(key), prefix) or key: value for key, value in metrics.items()}
        metrics = {current_name(str(key)): value for key, value in metrics.items()}
        layers = {name: kept for name, values in layers.items() if (kept := _six_of(values))}
        return known | {"metrics": metrics, "layers": layers}


def _telling(spectrum: LyapunovSpectrum) -> tuple[str, LocalExponents | None]:
    """Growth along the sequence of the layer that is worth telling of, with its name; of a single one without."""
    if not spectrum.parts:
        return "", spectrum.local
    name = max(spectrum.parts, key=lambda name: float(spectrum.parts[name].exponents[:1].nan_to_num(-math.inf).sum()))
    return name, spectrum.parts[name].local


def _layer(part: LyapunovSpectrum) -> list[float]:
    """What is kept of one layer: see :attr:`Measurement.layers`."""
    exponent = [float(part.exponents[0]), float(part.error[0]), float(part.settled[0])]
    if part.growth is None:
        return [*exponent, math.nan, math.nan, math.nan]
    return [*exponent, part.growth.gain, part.growth.gain_error, float(part.growth.log_singular_values[0])]


def _six_of(values: Any) -> list[float]:
    """What is kept of a layer: as it is, or from its largest exponent and standard error alone; else nothing."""
    if not isinstance(values, list) or not all(isinstance(value, float | int) for value in values):
        return []
    return [values[0], 2 * values[1], 0.0, *[math.nan] * 3] if len(values) == 2 else values if len(values) == 6 else []


if TYPE_CHECKING:
    M = TypeVar("M", bound=Kept, default=Measurement)
else:
    M = TypeVar("M", bound=Kept)


class History(Generic[M]):
    """Measurements of a run, of one kind, oldest first, thinned out evenly as they become many.

    A callback that is used for several fits keeps them apart: iteration, length and figures are of the last run alone,
    those before it are :attr:`earlier`. ``history[-1]`` is the newest measurement, ``history[2:]`` a history of some.

    Args:
        prefix: First part of the keys that their metrics are logged under: the callback's.
        kind: What each of them is; of recurrent layers if None.

    Attributes:
        missed: How many updates the run has come to since its newest measurement, and why nothing was measured since,
            in a clause; None where that is not known, or nothing was missed.
    """

    def __init__(self, prefix: str = "lyapunov", kind: type[M] | None = None) -> None:
        self.prefix = prefix
        self.kind = kind or cast(type[M], Measurement)
        self._clear()

    def _clear(self) -> None:
        self._measurements: list[M] = []
        self._stride = 1  # keep one measurement out of so many
        self._seen = 0
        self._bytes = 0  # of those kept
        self._earlier: list[History[M]] = []
        self._runs_before = 0
        self.missed: tuple[int, str] | None = None

    @property
    def earlier(self) -> tuple[History[M], ...]:
        """The runs before this one, oldest first, as far as they are kept: the oldest make room where it is needed."""
        return tuple(self._earlier)

    @property
    def runs_before(self) -> int:
        """How many runs there were before this one, those that are no longer kept among them."""
        return self._runs_before

    def begin(self) -> None:
        """Begin a new run; what was measured so far becomes the last of the earlier ones."""
        if not self._measurements:
            return
        run = History(self.prefix, self.kind)
        for name in ("_measurements", "_stride", "_seen", "_bytes", "missed"):
            setattr(run, name, getattr(self, name))
        self._earlier.append(run)
        self._runs_before += 1
        self._measurements, self._stride, self._seen, self._bytes, self.missed = [], 1, 0, 0, None

    def append(self, measurement: M) -> None:
        """Add the newest measurement; the newest is always kept, and the first.

        One made after fewer updates than the last begins a new run: see :meth:`begin`.
        """
        is_next = bool(self._measurements) and measurement.step >= self._measurements[-1].step
        if is_next and (self._seen - 1) % self._stride:
            self._bytes -= self._measurements.pop().size  # the newest so far was between two that are kept
        self._add(measurement)
        self._seen += 1
        self.missed = None
        self._make_room()

    def _add(self, measurement: M) -> None:
        """Add it as it is, in a run of its own if it goes back."""
        if self._measurements and measurement.step < self._measurements[-1].step:
            self.begin()
        self._measurements.append(measurement)
        self._bytes += measurement.size

    def _make_room(self) -> None:
        """Drop the oldest of the earlier runs, and where there are none, every second measurement but the newest."""
        while self._is_too_large():
            if self._earlier:
                del self._earlier[0]
                continue
            thinned = self._measurements[::2]
            if thinned[-1] is not self._measurements[-1]:
                thinned.append(self._measurements[-1])
            self._measurements = thinned
            self._bytes = sum(measurement.size for measurement in thinned)
            self._stride *= 2

    def _is_too_large(self) -> bool:
        runs = [*self._earlier, self]
        count, size = sum(map(len, runs)), sum(run._bytes for run in runs)
        return count > LIMIT or (size > BYTES and (len(self) > 2 or len(runs) > 1))

    def __len__(self) -> int:
        return len(self._measurements)

    def __iter__(self) -> Iterator[M]:
        return iter(self._measurements)

    @overload
    def __getitem__(self, index: int) -> M: ...

    @overload
    def __getitem__(self, index: slice) -> History[M]: ...

    def __getitem__(self, index: int | slice) -> M | History[M]:
        """One measurement; or some of them, as ``history[2:]``, as a history of its own without earlier runs."""
        if not isinstance(index, slice):
            return self._measurements[index]
        some = History(self.prefix, self.kind)
        some._measurements = self._measurements[index]
        some._seen, some._bytes = len(some), sum(measurement.size for measurement in some)
        return some

    def __repr__(self) -> str:
        count = f"{len(self)} measurement{'s' * (len(self) != 1)}"
        before = f", {self._runs_before} earlier run{'s' * (self._runs_before != 1)}" if self._runs_before else ""
        newest = f", newest {self[-1]!r}" if len(self) else ""
        return f"History({self.prefix!r}, {count}{before}{newest})"

    def values(self, name: str) -> list[float]:
        """One figure, as ``max`` or ``aelle/performance``, at every measurement; NaN where it was not known."""
        return [measurement.metrics.get(name, math.nan) for measurement in self]

    def rows(self) -> list[dict[str, Any]]:
        """A row for each measurement: ``step``, ``epoch``, ``source``, and every figure, NaN where it was not known."""
        names = dict.fromkeys(name for measurement in self for name in measurement.metrics)
        return [
            {"step": m.step, "epoch": m.epoch, "source": getattr(m, "source", "")}
            | {name: m.metrics.get(name, math.nan) for name in names}
            for m in self
        ]

    def to_pandas(self) -> Any:
        """The same as a ``pandas.DataFrame`` indexed by ``step``, so that ``frame["max"].plot()`` is over updates.

        Raises:
            ModuleNotFoundError: Without pandas; the message says how to install it.
        """
        try:
            import pandas
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "history.to_pandas needs pandas: pip install pandas. history.to_csv and history.rows() do without.",
                name=error.name,
            ) from error
        return pandas.DataFrame(self.rows(), columns=_columns(self.rows())).set_index("step")

    def to_csv(self, path: str | PathLike[str] | None = None) -> str:
        """The same as comma-separated values, with a line of names; a field is empty where a figure was not known.

        Args:
            path: File to write it to as well, UTF-8; its directory must exist.

        Returns:
            The text.
        """
        rows = self.rows()
        text = StringIO()
        writer = csv.DictWriter(text, _columns(rows), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({n: "" if isinstance(v, float) and math.isnan(v) else v for n, v in row.items()})
        if path is not None:
            Path(path).write_text(text.getvalue(), encoding="utf-8", newline="")
        return text.getvalue()

    def plot(self) -> Any:
        """The run in one picture: a ``matplotlib.figure.Figure``, which notebooks show by themselves.

        Elsewhere ``history.plot().savefig("run.png")``. All pictures there are of a run:
        :func:`lightning_lyapunov.figures.figures_of`.

        Raises:
            ModuleNotFoundError: Without Matplotlib; the message says how to install it.
            ValueError: If nothing was measured.
        """
        from lightning_lyapunov.figures.alone import run_alone

        return run_alone(self)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only, so that a checkpoint loads under ``weights_only=True``."""
        state = {
            "seen": self._seen,
            "stride": self._stride,
            "measurements": [measurement.plain() for measurement in self],
        }
        if self.missed is not None:
            state["missed"] = list(self.missed)
        if self._runs_before:
            state |= {"earlier": [run.state_dict() for run in self._earlier], "runs_before": self._runs_before}
        return state

    def load_state_dict(self, state: Any) -> list[str]:
        """Go on from :meth:`state_dict`, or from as much of it as another version wrote.

        Returns:
            What was amiss, if anything, in words.
        """
        known, amiss = read_state(state, _PARTS | _OPTIONAL, "history", optional=_OPTIONAL)
        self._clear()
        for written in known.get("earlier", []):
            run = History(self.prefix, self.kind)
            amiss += [trouble for trouble in run.load_state_dict(written) if trouble not in amiss]
            self._earlier += [one for one in (*run.earlier, run) if len(one)]
        self._runs_before = max(known.get("runs_before", 0), len(self._earlier))
        for written in known.get("measurements", []):
            kept, troubles = self.kind.restored(written, self.prefix)
            amiss += [trouble for trouble in troubles if trouble not in amiss]
            if kept is not None:
                self._add(kept)
        if [type(part) for part in known.get("missed", [])] == [int, str]:
            self.missed = known["missed"][0], known["missed"][1]
        self._stride = max(1, known.get("stride", 1))
        self._seen = max(known.get("seen", 0), len(self))
        return amiss


def _columns(rows: list[dict[str, Any]]) -> list[str]:
    """Names of the columns, also where there is no row."""
    return list(rows[0]) if rows else ["step", "epoch", "source"]


_PARTS = {"seen": int, "stride": int, "measurements": list}
_OPTIONAL = {"earlier": list, "runs_before": int, "missed": list}
"""Of a history, these where there were runs before, and where something was not measured."""
