"""The scorer: from a spectrum to a prediction, its interval, and how far it is to be believed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_lyapunov.aelle.autoencoder import HEADS
from lightning_lyapunov.aelle.calibration import BINS, COMMON, KNOTS, Familiarity, Gate, Intervals
from lightning_lyapunov.aelle.features import LEVELS, Rows, context, quantiles
from lightning_lyapunov.aelle.heads import (
    FAILURE,
    STABILITY,
    TAKEOFF,
    Heads,
    predicted_performance,
    without_spectrum,
)
from lightning_lyapunov.aelle.single import ends
from lightning_lyapunov.engine.spectrum import LyapunovSpectrum
from lightning_lyapunov.files import reading, require, write_tensors

FORMAT = "lightning_lyapunov.aelle/1"
SIZES = "familiarity.sizes"
"""Smallest and largest logarithm of the size, in files of older versions."""
STRANGE = 0.1
"""Familiarity of a spectrum below which predictions fade to what is said of an average network."""


@dataclass(frozen=True, eq=False)
class AeLLEScore:
    """What a spectrum says about how well its network will do."""

    performance: float
    """Predicted final skill, in the unit of what the scorer was fitted on: for the general one the share of the way
    from chance to the best, in [0, 1]."""
    low: float
    """Lower end of the 80 % interval of that prediction."""
    high: float
    """Upper end."""
    failure_probability: float
    """That the network never learns its task: final skill below 0.1."""
    takeoff_probability: float
    """That its final skill is above 0.3: for a network that still sits at chance, that it will take off."""
    stability: float
    """Probability that the trained network is not chaotic: its final largest exponent is not above 0; NaN from a scorer
    that was never told."""
    familiarity: float
    """In [0, 1]; low where spectrum, kind of cell, size, updates or performance so far are unlike what the scorer was
    fitted on."""
    latent: Tensor
    """(L,) the code of the spectrum."""
    baseline: float
    """The same prediction without the spectrum: what it must beat."""
    unfamiliar: tuple[str, ...] = ()
    """What lowers the familiarity, in words, the strangest first: as ``"updates: 1,000,000 (known: 0 to 800)"``."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """The fields of :class:`AeLLEScore` for R networks, skills and probabilities in [0, 1]."""

    performance: Tensor
    low: Tensor
    high: Tensor
    failure: Tensor
    takeoff: Tensor
    stability: Tensor
    familiarity: Tensor
    ordinary: Tensor
    """The familiarity of spectrum and kind of cell alone."""
    latent: Tensor
    baseline: Tensor


class AeLLEScorer:
    """Predicts from a spectrum, and what else is known of a network, how it will end.

    Use :meth:`from_pretrained` for the one that comes with the package, :meth:`fit` for one of your own.

    Attributes:
        heads: Raw predictions.
        average: ``(len(HEADS),)`` what the heads should say of the networks fitted on, on average.
        card: What the scorer was fitted on, and how: plain values.
    """

    def __init__(
        self,
        heads: Heads,
        gate: Gate,
        baseline_gate: Gate,
        intervals: Intervals,
        familiarity: Familiarity,
        average: Tensor,
        card: Mapping[str, Any],
    ) -> None:
        self.heads, self.gate, self.baseline_gate = heads, gate, baseline_gate
        self.intervals, self.familiarity, self.average, self.card = intervals, familiarity, average, dict(card)

    # ---------------------------------------------------------------- scoring

    def score(
        self,
        spectrum: LyapunovSpectrum | Tensor,
        *,
        architecture: str | None = None,
        hidden_size: int | None = None,
        updates: int | None = None,
        performance: float | None = None,
    ) -> AeLLEScore:
        """Score one spectrum.

        Args:
            spectrum: A spectrum, whole or its leading part, or exponents ``(K,)`` of a whole one in the unit that the
                scorer was fitted on (nats per step for the general one).
            architecture: Kind of cell: ``"rnn"``, ``"gru"``, ``"lstm"``; any other name is an unknown kind, which
                lowers the familiarity. None: not told.
            hidden_size: Units H.
            updates: Updates made so far.
            performance: Performance so far, in the unit that the scorer was fitted on: the skill in [0, 1] for the
                general one.

        Raises:
            ValueError: If an argument is out of range, or no exponent is known.
        """
        if hidden_size is not None and hidden_size < 1:
            raise ValueError(f"hidden_size must be at least 1; got {hidden_size}.")
        if updates is not None and updates < 0:
            raise ValueError(f"updates must not be negative; got {updates}.")
        if performance is not None and not math.isfinite(performance):
            raise ValueError(f"performance must be finite, or None where it is not known; got {performance}.")
        skill = None if performance is None else self._to_skill(performance)
        row = Rows(
            self._quantiles(spectrum).unsqueeze(0),
            context(architecture, hidden_size, updates, skill).unsqueeze(0),
        )
        unknown = architecture is not None and not self._knows(architecture)
        said = self.predict(row, torch.tensor([unknown]))
        worst, best = self.performance_range
        return AeLLEScore(
            performance=worst + float(said.performance) * (best - worst),
            low=worst + float(said.low) * (best - worst),
            high=worst + float(said.high) * (best - worst),
            failure_probability=float(said.failure),
            takeoff_probability=float(said.takeoff),
            stability=float(said.stability),
            familiarity=float(said.familiarity),
            latent=said.latent[0],
            baseline=worst + float(said.baseline) * (best - worst),
            unfamiliar=self._unfamiliar(
                row, said, {"hidden size": hidden_size, "updates": updates, "performance": performance}, architecture
            ),
        )

    def _unfamiliar(
        self, row: Rows, said: Predictions, told: Mapping[str, float | None], architecture: str | None
    ) -> tuple[str, ...]:
        """What lowers the familiarity of one row, in words, the strangest first."""
        if float(said.familiarity) == 1:
            return ()
        parts = self.heads.ranges.in_words(row, told, float(self.card["scale"]), self.performance_range)
        alone = float(said.ordinary)
        if architecture is not None and not self._knows(architecture):
            parts[f"architecture: {architecture} (known: {', '.join(self.card['kinds'])})"], alone = 0.25, 4 * alone
        if alone < 1:
            parts[f"spectrum: {alone * COMMON:.1%} of those known lie as far from the others"] = alone
        return tuple(sorted(parts, key=parts.__getitem__))

    def _knows(self, architecture: str) -> bool:
        return architecture.lower() in self.card["kinds"]

    def predict(self, rows: Rows, is_unknown_kind: Tensor | None = None) -> Predictions:
        """The same for R rows at once.

        Args:
            rows: R rows.
            is_unknown_kind: (R,) bool: known to be of a kind of cell that is none of those known; none if None.
        """
        if is_unknown_kind is None:
            is_unknown_kind = torch.zeros(len(rows), dtype=torch.bool)
        seen = self.heads.ranges.clamped(rows)
        whole = torch.where(rows.spectrum.isnan(), self.heads.completed(seen).spectrum, rows.spectrum)
        ordinary = self.familiarity(Rows(whole, rows.context), is_unknown_kind)
        share = self.heads.ranges.share(rows)
        baseline, _ = predicted_performance(self.heads, self.baseline_gate, without_spectrum(seen))
        # Of a spectrum unlike any known, no more is said than of an average network.
        belief = (ordinary / STRANGE).clamp(max=1.0)
        performance, heads = predicted_performance(self.heads, self.gate, seen, self.average, belief)
        if len(rows) == 1:
            low, high = ends(self.intervals, performance, seen, ordinary, share)
        else:
            low, high = self.intervals(performance, seen, ordinary, share)
        failure = heads[:, FAILURE]
        return Predictions(
            performance=performance,
            low=low,
            high=high,
            failure=failure,
            takeoff=torch.minimum(heads[:, TAKEOFF], 1 - failure),
            stability=heads[:, STABILITY],
            familiarity=ordinary * share,
            ordinary=ordinary,
            latent=self.heads.codes(rows),
            baseline=baseline,
        )

    @property
    def performance_range(self) -> tuple[float, float]:
        """Performances that count as skill 0 and 1."""
        worst, best = self.card["performance_range"]
        return worst, best

    def _to_skill(self, performance: float) -> float:
        worst, best = self.performance_range
        return (performance - worst) / (best - worst)

    def _quantiles(self, spectrum: LyapunovSpectrum | Tensor) -> Tensor:
        scale = float(self.card["scale"])
        if isinstance(spectrum, Tensor):
            return quantiles(spectrum, scale=scale)
        rate = spectrum.volume_rate / spectrum.dimension
        # One dead direction makes the rate -inf; a whole spectrum is seen with it at the floor, this one with no mean.
        mean = None if spectrum.complete or not math.isfinite(rate) else rate
        return quantiles(spectrum.exponents, spectrum.dimension, mean, scale=scale)

    # ---------------------------------------------------------------- fitting

    @classmethod
    def fit(
        cls,
        spectra: Sequence[Tensor],
        performance: Sequence[float] | Tensor,
        *,
        architecture: str | Sequence[str | None] | None = None,
        hidden_size: int | Sequence[int | None] | None = None,
        updates: int | Sequence[int | None] | None = None,
        metric: Sequence[float | None] | None = None,
        groups: Sequence[object] | None = None,
        seed: int = 0,
    ) -> AeLLEScorer:
        """Train a scorer on spectra of one's own.

        Nothing needs tuning: penalties, and whether an autoencoder of its own or the pretrained one is used, follow
        from how well networks left out are predicted. The same seed gives the same scorer.

        Args:
            spectra: Exponents of each network, ``(K,)`` of any lengths, whole spectra in any one unit.
            performance: How well each did in the end; any unit, larger is better.
            architecture: Kind of cell, of all or of each.
            hidden_size: Units, of all or of each.
            updates: Updates made when the spectrum was taken, of all or of each.
            metric: Performance so far, when the spectrum was taken, in the unit of ``performance``.
            groups: The network that each spectrum is of, if some are of the same: they are kept together in splits.
            seed: Of everything random.

        Raises:
            ValueError: If there are fewer than 8 spectra, lengths differ, performances are not finite or all the same.
        """
        from lightning_lyapunov.aelle.training import fit_own

        return fit_own(spectra, performance, architecture, hidden_size, updates, metric, groups, seed)

    # ---------------------------------------------------------------- files

    def save(self, path: str | Path) -> None:
        """Write one safetensors file: weights, calibration, and the card as JSON in its metadata; no pickle."""
        tensors = self.heads.tensors("heads") | {"average": self.average}
        for name, part in self._calibration().items():
            tensors |= part.tensors(name)
        write_tensors(Path(path), tensors, {FORMAT: json.dumps(self.card)})

    def _calibration(self) -> dict[str, Gate | Intervals | Familiarity]:
        return {
            "gate": self.gate,
            "baseline_gate": self.baseline_gate,
            "intervals": self.intervals,
            "familiarity": self.familiarity,
        }

    @classmethod
    def load(cls, path: str | Path) -> AeLLEScorer:
        """A scorer from a file that :meth:`save` wrote; draws nothing from any random state.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is no scorer, or not as it was written.
        """
        return cls._load(Path(path))

    @classmethod
    def _load(cls, path: Path, sha256: str | None = None) -> AeLLEScorer:
        if not path.is_file():
            raise FileNotFoundError(f"path must be a file that AeLLEScorer.save wrote; there is no {path}.")
        with reading(path, FORMAT, sha256) as (tensors, metadata):
            if len(metadata) > 1:
                raise ValueError(f"its metadata must be the card alone; got {', '.join(metadata)}")
            require(tensors, {key: (torch.float32, shape) for key, shape in _shapes(tensors).items()})
            _require_possible(tensors)
            heads, card = Heads.of("heads", tensors), _card(metadata[FORMAT])
            if SIZES in tensors:  # of an older version, which knew no other range
                ranges = heads.ranges.narrowed(sizes=tensors[SIZES], updates=card.get("checkpoints"))
                heads = replace(heads, ranges=ranges)
            return cls(
                heads,
                Gate.of("gate", tensors),
                Gate.of("baseline_gate", tensors),
                Intervals.of("intervals", tensors),
                Familiarity.of("familiarity", tensors),
                tensors["average"],
                card,
            )

    @classmethod
    def from_pretrained(cls, name: str = "general") -> AeLLEScorer:
        """A scorer that comes with the package: no network, no pickle, no random state.

        Raises:
            ValueError: If there is none of this name, or it is not the one that its card tells of.
        """
        folder = files("lightning_lyapunov.aelle") / "weights"
        if not (folder / f"{name}.safetensors").is_file():
            found = [f.name for f in folder.iterdir()] if folder.is_dir() else []
            there = sorted(f.removesuffix(".safetensors") for f in found if f.endswith(".safetensors"))
            raise ValueError(f"name must be one of {', '.join(there)}; got {name!r}.")
        told = re.search("sha256 `([0-9a-f]{64})`", (folder / f"{name}.md").read_text("utf-8"))
        with as_file(folder / f"{name}.safetensors") as path:
            return cls._load(path, told and told[1])


# ------------------------------------------------------------------ what a file holds


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """What the shapes of a scorer's tensors must be, given those from which its own sizes are read."""
    seen, knots = LEVELS + 1, len(KNOTS)
    references, components = tensors["familiarity.reference"].shape
    return {
        **{f"{gate}.{part.name}": (knots,) for gate in ("gate", "baseline_gate") for part in fields(Gate)},
        "intervals.quantiles": (8, knots, BINS, 2),
        "intervals.spread": (2,),
        "familiarity.centre": (seen,),
        "familiarity.components": (seen, components),
        "familiarity.reference": (references, components),
        "familiarity.distances": (tensors["familiarity.distances"].numel(),),
        **({} if "heads.ranges.low" in tensors else {SIZES: (2,)}),
        "average": (len(HEADS),),
        **Heads.shapes("heads", tensors),
    }


def _require_possible(tensors: Mapping[str, Tensor]) -> None:
    """Refuse numbers that no fit leaves: a head may be unknown, and a range without end, but no weight."""
    for key, value in tensors.items():
        what = key.rpartition(".")[2]
        if value.numel() == 0:
            raise ValueError(f"{key} must hold something")
        if what in ("average", "coefficients", "trust", "offset", "slope"):
            continue
        if value.isnan().any() or (value.isinf().any() and what not in ("spread", "sizes", "distances", "low", "high")):
            raise ValueError(f"{key} must hold finite numbers")
        if what == "low" and (value > tensors[key.removesuffix(what) + "high"]).any():
            raise ValueError(f"{key} must not lie above what ends there")


def _card(text: str) -> dict[str, Any]:
    """A card with what scores are made from."""
    card = json.loads(text)
    worst, best = card["performance_range"]
    is_known = all(type(n) in (int, float) and math.isfinite(n) for n in (worst, best, card["scale"]))
    if not is_known or not 0 < best - worst < math.inf or card["scale"] <= 0:
        raise ValueError("its card must give a performance_range of two numbers that rise, and a scale above 0")
    updates = card.get("checkpoints", [])
    if not isinstance(updates, list) or not all(type(n) is int and n >= 0 for n in updates):
        raise ValueError("its card must give checkpoints as a list of numbers of updates")
    if not isinstance(card["kinds"], list) or not all(isinstance(kind, str) for kind in card["kinds"]):
        raise ValueError("its card must give kinds as a list of names")
    return dict(card)
