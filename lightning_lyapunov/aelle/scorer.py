"""The scorer: from a spectrum to a prediction, its interval, and how far it is to be believed."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_lyapunov.aelle.autoencoder import HEADS, RANKED
from lightning_lyapunov.aelle.calibration import BINS, COMMON, Familiarity, Intervals, Worth
from lightning_lyapunov.aelle.features import LEVELS, Context, Rows, quantiles
from lightning_lyapunov.aelle.heads import FAILURE, SKILL, STABILITY, TAKEOFF, Heads
from lightning_lyapunov.aelle.knowledge import KNOTS, RUNGS, STATES, is_whole, limited
from lightning_lyapunov.engine.spectrum import LyapunovSpectrum
from lightning_lyapunov.files import reading, require, write_tensors

FORMAT = "lightning_lyapunov.aelle/2"
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
    """The predicted performance without the spectrum, from all else that is known: what the spectrum must beat."""
    baseline_failure_probability: float = math.nan
    """The same of :attr:`failure_probability`."""
    baseline_takeoff_probability: float = math.nan
    """The same of :attr:`takeoff_probability`."""
    speaks: tuple[str, ...] = ()
    """Of what the spectrum says more than all else that is known, as found on families of tasks that were left out, by
    more than twice the standard error: of ``"rank"``, ``"failure"``, ``"takeoff"``. Of the rest the baseline speaks."""
    unfamiliar: tuple[str, ...] = ()
    """What lowers the familiarity, in words, the strangest first: as ``"updates: 1,000,000 (known: 0 to 2,000)"``."""

    def __repr__(self) -> str:
        strange = f", unfamiliar in {'; '.join(self.unfamiliar)}" if self.unfamiliar else ""
        return (
            f"AeLLEScore(performance {self.performance:.3g}, 80 % interval {self.low:.3g} to {self.high:.3g}, without "
            f"the spectrum {self.baseline:.3g}, failure {self.failure_probability:.0%}, take-off "
            f"{self.takeoff_probability:.0%}, familiarity {self.familiarity:.2f}{strange})"
        )


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
    """``(R, len(HEADS))`` without the spectrum."""
    speaks: Tensor
    """``(R, RANKED)`` bool: whether the spectrum adds to it."""


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
        intervals: Intervals,
        familiarity: Familiarity,
        worth: Worth,
        average: Tensor,
        card: Mapping[str, Any],
    ) -> None:
        self.heads, self.intervals, self.familiarity, self.worth = heads, intervals, familiarity, worth
        self.average, self.card = average, dict(card)

    def __repr__(self) -> str:
        worst, best = self.performance_range
        networks, kinds = self.card.get("networks"), ", ".join(self.card["kinds"])
        fitted = f"fitted on {networks:,} networks ({kinds})" if isinstance(networks, int) else f"of {kinds}"
        return f"{type(self).__name__}({fitted}, performance from {worst:g} to {best:g})"

    # ---------------------------------------------------------------- scoring

    def score(
        self,
        spectrum: LyapunovSpectrum | Tensor,
        *,
        architecture: str | None = None,
        hidden_size: int | None = None,
        updates: int | None = None,
        performance: float | None = None,
        learning_rate: float | None = None,
        adaptive: bool | None = None,
        gradient_norm: float | None = None,
        state_mean: float | None = None,
        state_spread: float | None = None,
        steps: int | None = None,
    ) -> AeLLEScore:
        """Score one spectrum. What is not told is not used: every argument but the first may be left out.

        Args:
            spectrum: A spectrum, whole or its leading part, or exponents ``(K,)`` of a whole one in the unit that the
                scorer was fitted on (nats per step for the general one).
            architecture: Kind of cell: ``"rnn"``, ``"rnn_relu"``, ``"gru"``, ``"lstm"``; any other name is an unknown
                kind, which lowers the familiarity.
            hidden_size: Units H.
            updates: Updates made so far.
            performance: Performance so far, in the unit that the scorer was fitted on: the skill in [0, 1] for the
                general one.
            learning_rate: Of the optimiser, where it is not warming up or decaying.
            adaptive: Whether the optimiser divides by a running size of the gradient, as Adam does; SGD does not.
            gradient_norm: Of the gradient of the whole network on a batch, before clipping.
            state_mean: Mean absolute value of the units over the states that the network visits.
            state_spread: Standard deviation of the units over them.
            steps: Length of the sequences.

        Raises:
            ValueError: If an argument is out of range, or no exponent is known.
        """
        context = Context(
            architecture,
            hidden_size,
            updates,
            None if performance is None else self._to_skill(performance),
            learning_rate,
            adaptive,
            gradient_norm,
            state_mean,
            state_spread,
            steps,
        )
        _require_facts(context, performance)
        row = self._row(spectrum, context)
        unknown = architecture is not None and not self._knows(architecture)
        said = self.predict(row, torch.tensor([unknown]))
        worst, best = self.performance_range
        names = ("rank", "failure", "takeoff")
        return AeLLEScore(
            performance=worst + float(said.performance) * (best - worst),
            low=worst + float(said.low) * (best - worst),
            high=worst + float(said.high) * (best - worst),
            failure_probability=float(said.failure),
            takeoff_probability=float(said.takeoff),
            stability=float(said.stability),
            familiarity=float(said.familiarity),
            latent=said.latent[0],
            baseline=worst + float(said.baseline[0, SKILL]) * (best - worst),
            baseline_failure_probability=float(said.baseline[0, FAILURE]),
            baseline_takeoff_probability=float(said.baseline[0, TAKEOFF]),
            speaks=tuple(name for name, does in zip(names, said.speaks[0].tolist(), strict=True) if does),
            unfamiliar=self._unfamiliar(row, said, context, performance),
        )

    def _row(self, spectrum: LyapunovSpectrum | Tensor, context: Context) -> Rows:
        """One row of a spectrum and what else is known."""
        return Rows(self._quantiles(spectrum).unsqueeze(0), context.values().unsqueeze(0))

    def _unfamiliar(self, row: Rows, said: Predictions, context: Context, performance: float | None) -> tuple[str, ...]:
        """What lowers the familiarity of one row, in words, the strangest first."""
        if float(said.familiarity) == 1:
            return ()
        scale = float(self.card["scale"])
        parts = self.heads.ranges.in_words(row, context, performance, scale, self.performance_range)
        alone, kind = float(said.ordinary), context.architecture
        if kind is not None and not self._knows(kind):
            parts[f"architecture: {kind} (known: {', '.join(self.card['kinds'])})"], alone = 0.25, 4 * alone
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
        ordinary = self.familiarity(self.heads.completed(seen), is_unknown_kind)
        share = self.heads.ranges.share(rows)
        # Of a spectrum unlike any known, no more is said than of an average network.
        belief = (ordinary / STRANGE).clamp(max=1.0)
        heads = torch.lerp(self.average.expand(len(rows), -1), self.heads(seen), belief.unsqueeze(1))
        # Nor is anything likelier to fail than an average network because a formula goes on where nothing was seen.
        failure = self._cautious(heads[:, FAILURE], share)
        baseline = self.heads(limited(seen, part="none"))
        blind = self.heads.ranges.share(limited(rows, part="none"))
        baseline[:, FAILURE] = self._cautious(baseline[:, FAILURE], blind)
        performance = heads[:, SKILL]
        low, high = self.intervals(performance, seen, ordinary, share)
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
            # A spectrum that is believed less than entirely, or that is a part, was not compared.
            speaks=self.worth.speaks(seen) & ((belief == 1) & (share == 1) & is_whole(seen)).unsqueeze(1),
        )

    def _cautious(self, failure: Tensor, share: Tensor) -> Tensor:
        """(R,) probabilities of failure: beyond what was seen, not above that of an average network."""
        return torch.lerp(torch.minimum(failure, self.average[FAILURE]), failure, share)

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
        learning_rate: float | Sequence[float | None] | None = None,
        adaptive: bool | Sequence[bool | None] | None = None,
        gradient_norm: Sequence[float | None] | None = None,
        state_mean: Sequence[float | None] | None = None,
        state_spread: Sequence[float | None] | None = None,
        steps: int | Sequence[int | None] | None = None,
        groups: Sequence[object] | None = None,
    ) -> AeLLEScorer:
        """Fit a scorer to networks of one's own, in milliseconds.

        Plain predictors on the spectra, and what the pretrained scorer says of them, are weighed by how well they
        predict networks left out, and shrunk towards the pretrained scorer alone, which below 30 networks says as much
        as anything fitted to them. Nothing needs tuning, and nothing is random; the card tells what was chosen and why.

        Args:
            spectra: Exponents of each network, ``(K,)`` of any lengths, whole spectra in any one unit.
            performance: How well each did in the end; any unit, larger is better.
            architecture: Kind of cell, of all or of each; this and what follows as in :meth:`score`.
            hidden_size: Units, of all or of each.
            updates: Updates made when the spectrum was taken, of all or of each.
            metric: Performance so far, when the spectrum was taken, in the unit of ``performance``.
            learning_rate: Of all or of each.
            adaptive: Whether the optimiser is of Adam's kind, of all or of each.
            gradient_norm: Of each.
            state_mean: Of each.
            state_spread: Of each.
            steps: Length of the sequences, of all or of each.
            groups: The network that each spectrum is of, if some are of the same: they are kept together in splits.

        Raises:
            ValueError: If there are fewer than 8 spectra, lengths differ, performances are not finite or all the same.
        """
        from lightning_lyapunov.aelle.own import fit_own

        return fit_own(
            spectra,
            performance,
            metric=metric,
            groups=groups,
            architecture=architecture,
            hidden_size=hidden_size,
            updates=updates,
            learning_rate=learning_rate,
            adaptive=adaptive,
            gradient_norm=gradient_norm,
            state_mean=state_mean,
            state_spread=state_spread,
            steps=steps,
        )

    # ---------------------------------------------------------------- files

    def save(self, path: str | Path) -> None:
        """Write one safetensors file: weights, calibration, and the card as JSON in its metadata; no pickle."""
        tensors = self.heads.tensors("heads") | {"average": self.average}
        for name, part in self._calibration().items():
            tensors |= part.tensors(name)
        write_tensors(Path(path), tensors, {FORMAT: json.dumps(self.card)})

    def _calibration(self) -> dict[str, Intervals | Familiarity | Worth]:
        return {"intervals": self.intervals, "familiarity": self.familiarity, "worth": self.worth}

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
        with reading(path, FORMAT) as (tensors, metadata):
            found = hashlib.sha256(path.read_bytes()).hexdigest()
            if sha256 not in (None, found):
                raise ValueError(f"its content has the sha256 {found}, not {sha256}")
            if len(metadata) > 1:
                raise ValueError(f"its metadata must be the card alone; got {', '.join(metadata)}")
            require(tensors, {key: (torch.float32, shape) for key, shape in _shapes(tensors).items()})
            _require_possible(tensors)
            card = _card(metadata[FORMAT])
            general = AeLLEScorer(
                Heads.of("heads", tensors),
                Intervals.of("intervals", tensors),
                Familiarity.of("familiarity", tensors),
                Worth.of("worth", tensors),
                tensors["average"],
                card,
            )
            if not _is_own(tensors):
                return general
            from lightning_lyapunov.aelle.own import OwnScorer

            return OwnScorer.of(general, tensors, card)

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


def _require_facts(context: Context, performance: float | None) -> None:
    """Refuse what no network can have."""
    if context.hidden_size is not None and context.hidden_size < 1:
        raise ValueError(f"hidden_size must be at least 1; got {context.hidden_size}.")
    if context.updates is not None and context.updates < 0:
        raise ValueError(f"updates must not be negative; got {context.updates}.")
    if context.steps is not None and context.steps < 1:
        raise ValueError(f"steps must be at least 1; got {context.steps}.")
    if performance is not None and not math.isfinite(performance):
        raise ValueError(f"performance must be finite, or None where it is not known; got {performance}.")
    if context.learning_rate is not None and not 0 < context.learning_rate < math.inf:
        raise ValueError(
            f"learning_rate must be above 0 and finite, or None where it is not known; got {context.learning_rate}."
        )
    for name in ("gradient_norm", "state_mean", "state_spread"):
        value = getattr(context, name)
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"{name} must be at least 0 and finite, or None where it is not known; got {value}.")


# ------------------------------------------------------------------ what a file holds


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """What the shapes of a scorer's tensors must be, given those from which its own sizes are read."""
    seen, knots = LEVELS + 1, len(KNOTS)
    worth = (2, len(RUNGS), knots, RANKED)
    references, components = tensors["familiarity.reference"].shape
    own = {}
    if _is_own(tensors):
        from lightning_lyapunov.aelle.own import Own

        own = Own.shapes("own", tensors)
    return {
        **own,
        "intervals.quantiles": (STATES, knots, BINS, 2),
        "intervals.spread": (2,),
        "familiarity.centre": (seen,),
        "familiarity.components": (seen, components),
        "familiarity.reference": (references, components),
        "familiarity.distances": (tensors["familiarity.distances"].numel(),),
        "worth.gain": worth,
        "worth.error": worth,
        "average": (len(HEADS),),
        **Heads.shapes("heads", tensors),
    }


def _is_own(tensors: Mapping[str, Tensor]) -> bool:
    return "own.skill" in tensors


def _require_possible(tensors: Mapping[str, Tensor]) -> None:
    """Refuse numbers that no fit leaves: a head may be unknown, and a range without end, but no weight."""
    for key, value in tensors.items():
        what = key.rpartition(".")[2]
        if value.numel() == 0 and not key.startswith("heads.ridge.nothing"):
            raise ValueError(f"{key} must hold something")
        if what in ("average", "coefficients", "table", "gain", "error") or key.startswith("own."):
            continue
        if value.isnan().any() or (value.isinf().any() and what not in ("spread", "distances", "low", "high")):
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
