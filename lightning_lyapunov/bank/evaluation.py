"""How well a network's end can be told from its spectrum: splits, predictors and scores, fixed before any is read off.

The unit is a task family. A predictor is fitted on all other families, ranks the networks of each task of the family
left out, and its scores are averaged over the tasks of a family; what is reported is the mean over families and its
standard error. Networks are only ever compared within a task, or within one kind of cell of a task ("in cell"), where
knowing that gated cells do better does not count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from lightning_lyapunov.aelle.features import ARCHITECTURES, CONTEXT, LEVELS, Rows, context, quantiles
from lightning_lyapunov.aelle.fitting import FAILED, TOOK_OFF, Ridge
from lightning_lyapunov.bank.population import CHECKPOINTS, Draw
from lightning_lyapunov.bank.records import Bank
from lightning_lyapunov.bank.tasks import SET_ASIDE

REPORTED = (0, 40, 160)
"""Updates that figures are given for: before training, after one epoch and after four."""
FEWEST = 3
"""Networks of each kind that an AUC needs; fewer say nothing."""
SCORES = (
    "rho",
    "rho in cell",
    "rho in cell and size",
    "fail",
    "fail in cell",
    "take-off",
    "take-off in cell",
    "top quarter",
)
"""Spearman's ρ with the final skill; areas under the ROC curve."""


@dataclass(frozen=True, eq=False)
class Table:
    """The networks of a bank as rows, one for each network and checkpoint, with what the predictors may see."""

    bank: Bank
    rows: Rows
    """Network after network, each at all its checkpoints; the skill so far is in the context."""
    network: Tensor
    """(R,) number of the network in the bank."""
    updates: Tensor
    """(R,)."""
    skill: Tensor
    """(R,) final."""
    stable: Tensor
    """(R,) 1 where the trained network is not chaotic, 0 where it is, NaN where unknown."""

    spread: Tensor
    """(R, 3) logarithms of the standard errors of the exponents: largest, median, and of the largest exponent."""
    change: Tensor
    """(R, 4) what training has changed of the spectrum: its top, quartile, median and mean less those at first."""
    cheap: Tensor
    """(R, 3) logarithms of what costs nothing to know: mean of the absolute state, its spread, gradient norm."""

    @staticmethod
    def of(bank: Bank) -> Table:
        """Every network at every checkpoint at which it could be measured."""
        final = bank.skill(bank.final)
        so_far = torch.stack([bank.skill(bank.metric("metric", u)) for u in CHECKPOINTS], 1)
        spectra, contexts, where, errors, changes = [], [], [], [], []
        columns = torch.tensor([0, LEVELS // 4, LEVELS // 2, LEVELS])
        for n, made in enumerate(bank.networks):
            first = torch.full((LEVELS + 1,), math.nan)
            for c, updates in enumerate(CHECKPOINTS):
                if bank.spectra[n][c].isnan().all():
                    continue
                spectra.append(quantiles(bank.spectra[n][c], made["dimension"]))
                contexts.append(context(made["cell"], made["hidden_size"], updates, float(so_far[n, c])))
                where.append((n, c))
                errors.append(bank.stderr[n][c])
                first = spectra[-1] if c == 0 else first
                changes.append((spectra[-1] - first)[columns])
        network, checkpoint = torch.tensor(where).T
        largest = torch.stack([s[-1, 0] for s in bank.spectra])
        stable = torch.where(largest.isnan(), math.nan, (largest <= 0).float())
        return Table(
            bank=bank,
            rows=Rows(torch.stack(spectra), torch.stack(contexts)),
            network=network,
            updates=torch.tensor(CHECKPOINTS)[checkpoint],
            skill=final[network],
            stable=stable[network],
            spread=torch.stack(errors).clamp(min=1e-6).log(),
            change=torch.stack(changes),
            cheap=bank.metrics[network, checkpoint][:, 3:6].clamp(min=1e-6).log(),
        )

    def __getitem__(self, keep: Tensor) -> Table:
        chosen = {f.name: getattr(self, f.name)[keep] for f in fields(self) if f.name != "bank"}
        return Table(bank=self.bank, **chosen)

    def __len__(self) -> int:
        return len(self.network)

    def column(self, key: str) -> np.ndarray:
        """(R,) how each row's network was made."""
        return np.array(self.bank.column(key))[self.network.numpy()]

    def where(self, **wanted: Sequence[object]) -> Tensor:
        """(R,) bool: rows whose network was made with one of the values wanted."""
        keep = np.ones(len(self), dtype=bool)
        for key, values in wanted.items():
            keep &= np.isin(self.column(key), np.array(list(values)))
        return torch.from_numpy(keep)

    @cached_property
    def weights(self) -> Tensor:
        """(R,) such that every family counts the same, and every task within a family."""
        tasks, families = self.column("task"), self.column("family")
        count = dict(zip(*np.unique(tasks, return_counts=True), strict=True))
        variants = {family: len(set(tasks[families == family])) for family in set(families)}
        return torch.tensor([1 / count[t] / variants[f] for t, f in zip(tasks, families, strict=True)]).float()

    @cached_property
    def is_useful(self) -> Tensor:
        """(R,) bool: made with hyperparameters that somebody might try."""
        fields = Draw.__dataclass_fields__
        useful = [Draw(**{k: v for k, v in made.items() if k in fields}).is_useful for made in self.bank.networks]
        return torch.tensor(useful)[self.network]

    def hyperparameters(self) -> Tensor:
        """(R, F) what was chosen before training: gains, rate, bias, kind of initialisation, and some squares."""
        gain, input_gain, rate, bias = (
            torch.tensor(self.column(key)).float() for key in ("gain", "input_gain", "learning_rate", "memory_bias")
        )
        kinds = torch.tensor(np.stack([self.column("init") == kind for kind in ("normal", "uniform", "orthogonal")], 1))
        logs = torch.stack([gain.log(), input_gain.log(), rate.log(), bias], 1)
        kinds_of_cell = self.rows.context[:, : len(ARCHITECTURES)]
        per_cell = (kinds_of_cell.unsqueeze(2) * torch.cat([logs, logs.square()], 1).unsqueeze(1)).flatten(1)
        return torch.cat([logs, logs.square(), per_cell, kinds.float(), self.rows.context[:, :4]], 1)


Predictor = Callable[[Table, Table], Tensor]
"""Fits on one table and predicts the final skill, or anything that ranks like it, of another: (R,)."""


def ridge(features: Callable[[Table], Tensor], penalty: float = 30.0) -> Predictor:
    """A ridge on some features."""

    def predict(train: Table, test: Table) -> Tensor:
        fitted = Ridge.fit(features(train), train.skill.unsqueeze(1), train.weights, penalty)
        return fitted(features(test))[:, 0]

    return predict


def boosted(features: Callable[[Table], Tensor]) -> Predictor:
    """Boosted trees on some features, which find interactions that a ridge cannot."""

    def predict(train: Table, test: Table) -> Tensor:
        from sklearn.ensemble import HistGradientBoostingRegressor

        model = HistGradientBoostingRegressor(
            max_iter=60, learning_rate=0.1, max_leaf_nodes=8, max_bins=63, random_state=0
        )
        weights = (train.weights / train.weights.mean()).numpy()
        model.fit(features(train).numpy(), train.skill.numpy(), sample_weight=weights)
        return torch.from_numpy(model.predict(features(test).numpy())).float()

    return predict


def area(score: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive scores above a negative; NaN with fewer than :data:`FEWEST` of either."""
    from scipy.stats import rankdata

    good, bad = int(positive.sum()), int((~positive).sum())
    if min(good, bad) < FEWEST:
        return math.nan
    ranks = rankdata(score)
    return float((ranks[positive].sum() - good * (good + 1) / 2) / (good * bad))


def correlation(score: np.ndarray, skill: np.ndarray) -> float:
    """Spearman's rank correlation; NaN where there is nothing to rank, 0 for a score that ranks nothing."""
    from scipy.stats import spearmanr

    if len(skill) < 5 or np.ptp(skill) < 1e-6:
        return math.nan
    return 0.0 if np.ptp(score) < 1e-9 else float(spearmanr(score, skill).statistic)


def scores(table: Table, predicted: Tensor, extra: dict[str, Tensor] | None = None) -> dict[str, dict[str, float]]:
    """Scores of predictions for the networks of one checkpoint, by family: family to score to value.

    Args:
        table: Rows of one checkpoint.
        predicted: (R,) larger for better networks.
        extra: Predictions for ``"fail"`` (larger for better too) and ``"take-off"``, where a predictor has its own.
    """
    extra = extra or {}
    skill, so_far = table.skill.numpy(), table.rows.context[:, CONTEXT.index("skill")].numpy()
    tasks, families, cells, sizes = (table.column(key) for key in ("task", "family", "cell", "hidden_size"))
    rank, fail, take = (extra.get(key, predicted).numpy() for key in ("rho", "fail", "take-off"))
    result: dict[str, dict[str, float]] = {}
    for family in sorted(set(families)):
        values: dict[str, list[float]] = {name: [] for name in SCORES}
        for task in sorted(set(tasks[families == family])):
            inside = tasks == task
            groups = {"": [inside], " in cell": [inside & (cells == cell) for cell in sorted(set(cells[inside]))]}
            for cell in sorted(set(cells[inside])):
                for size in sorted(set(sizes[inside])):
                    alike = inside & (cells == cell) & (sizes == size)
                    values["rho in cell and size"].append(correlation(rank[alike], skill[alike]))
            for suffix, members in groups.items():
                for m in members:
                    waiting = m & (so_far < FAILED)
                    values["rho" + suffix].append(correlation(rank[m], skill[m]))
                    values["fail" + suffix].append(area(fail[m], skill[m] >= FAILED))
                    values["take-off" + suffix].append(area(take[waiting], skill[waiting] > TOOK_OFF))
            cut = np.quantile(skill[inside], 0.75)
            values["top quarter"].append(area(rank[inside], skill[inside] > cut))
        result[family] = {name: _mean(v) for name, v in values.items()}
    return result


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan


def summary(by_family: dict[str, dict[str, float]], score: str) -> tuple[float, float, int]:
    """Mean over families, its standard error, and the number of families that say anything."""
    values = np.array([family[score] for family in by_family.values()])
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return math.nan, math.nan, len(values)
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))), len(values)


def development(table: Table) -> Table:
    """The rows that choices may be based on: known cells, families not set aside."""
    families = [f for f in sorted(set(table.column("family"))) if f not in SET_ASIDE]
    return table[table.where(family=families, cell=ARCHITECTURES)]


def leave_out(table: Table, key: str, predict: Predictor) -> Tensor:
    """(R,) predictions for every row by models that saw no row with its value of ``key``."""
    predicted = torch.full((len(table),), math.nan)
    values = table.column(key)
    for value in sorted(set(values)):
        inside = torch.from_numpy(values == value)
        predicted[inside] = predict(table[~inside], table[inside])
    return predicted
