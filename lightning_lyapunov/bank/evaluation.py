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

from lightning_lyapunov.aelle.features import ARCHITECTURES, CELL, CONTEXT, LEVELS, Context, Rows, squash
from lightning_lyapunov.aelle.fitting import FAILED, TOOK_OFF
from lightning_lyapunov.aelle.ridge import Ridge
from lightning_lyapunov.aelle.training import Examples
from lightning_lyapunov.bank.draws import Draw
from lightning_lyapunov.bank.population import METRICS
from lightning_lyapunov.bank.probes import MEASURED
from lightning_lyapunov.bank.records import Bank
from lightning_lyapunov.bank.tasks import TASKS

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
    """Network after network, each at all its checkpoints, with everything that is known of it."""
    network: Tensor
    """(R,) number of the network in the bank."""
    updates: Tensor
    """(R,)."""
    skill: Tensor
    """(R,) final."""
    stable: Tensor
    """(R,) 1 where the trained network is not chaotic, 0 where it is, NaN where unknown."""
    change: Tensor
    """(R, 4) what training has changed of the spectrum: its top, quartile, median and mean less those at first."""
    growth: Tensor
    """(R, 2) nats: the largest growth over a sequence, and the gain of a typical gradient; NaN where not measured."""

    @staticmethod
    def of(bank: Bank) -> Table:
        """Every network at every checkpoint at which it could be measured."""
        mean = bank.measured[..., MEASURED.index("mean"), None]
        spectra = squash(torch.cat([bank.quantiles, mean], -1))
        network, checkpoint = (~bank.quantiles.isnan().all(-1)).nonzero().unbind(1)
        columns = torch.tensor([0, LEVELS // 4, LEVELS // 2, LEVELS])
        return Table(
            bank=bank,
            rows=Rows(spectra[network, checkpoint], _contexts(bank, network, checkpoint)),
            network=network,
            updates=torch.tensor(bank.checkpoints)[checkpoint],
            skill=bank.skill(bank.final)[network],
            stable=_is_stable(bank)[network],
            change=(spectra - spectra[:, :1])[network, checkpoint][:, columns],
            growth=bank.measured[network, checkpoint][:, [MEASURED.index(f"gradient_{x}") for x in ("growth", "gain")]],
        )

    @cached_property
    def groups(self) -> Tensor:
        """(R,) long: a task at one number of updates, within which networks are compared."""
        tasks = np.unique(self.column("task"), return_inverse=True)[1]
        return torch.from_numpy(tasks) * (int(self.updates.max()) + 1) + self.updates

    @cached_property
    def families(self) -> Tensor:
        """(R,) long."""
        return torch.from_numpy(np.unique(self.column("family"), return_inverse=True)[1])

    @property
    def examples(self) -> Examples:
        """What a scorer is fitted on."""
        return Examples(self.rows, self.skill, self.stable, self.weights, self.groups, self.families)

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
        how = [self.column("optimizer") == "sgd", self.column("clip"), self.column("warmup") > 0]
        logs = torch.stack([gain.log(), input_gain.log(), rate.log(), bias], 1)
        cell = self.rows.context[:, [CONTEXT.index(name) for name in CELL]]
        per_cell = (cell[:, :-1].unsqueeze(2) * torch.cat([logs, logs.square()], 1).unsqueeze(1)).flatten(1)
        return torch.cat(
            [logs, logs.square(), per_cell, kinds.float(), torch.tensor(np.stack(how, 1)).float(), cell], 1
        )


def _contexts(bank: Bank, network: Tensor, checkpoint: Tensor) -> Tensor:
    """(R, len(CONTEXT)) what is known of networks at checkpoints."""
    so_far = torch.stack([bank.skill(bank.metric("metric", updates)) for updates in bank.checkpoints], 1)
    cheap = [METRICS.index(name) for name in ("gradient_norm", "mean_abs_h", "std_h")]
    contexts = []
    for n, c in zip(network.tolist(), checkpoint.tolist(), strict=True):
        made = bank.networks[n]
        gradient, mean, spread = bank.metrics[n, c, cheap].tolist()
        context = Context(
            architecture=made["cell"],
            hidden_size=made["hidden_size"],
            updates=bank.checkpoints[c],
            skill=float(so_far[n, c]),
            learning_rate=made["learning_rate"],
            adaptive=made["optimizer"] == "adam",
            gradient_norm=gradient,
            state_mean=mean,
            state_spread=spread,
            steps=TASKS[made["task"]].steps,
        )
        contexts.append(context.values())
    return torch.stack(contexts)


def _is_stable(bank: Bank) -> Tensor:
    """(N,) 1 or 0, NaN where unknown: by the long probe at the end, or where there is none, by the usual one."""
    last = bank.leading[torch.arange(len(bank)), [bank.checkpoints.index(end) for end in bank.end.tolist()], 0]
    largest = torch.where(bank.long_leading[:, -1, 0].isnan(), last, bank.long_leading[:, -1, 0])
    return torch.where(largest.isnan(), math.nan, (largest <= 0).float())


Predictor = Callable[[Table, Table], Tensor]
"""Fits on one table and predicts the final skill, or anything that ranks like it, of another: (R,)."""


def ridge(features: Callable[[Table], Tensor], penalty: float = 30.0) -> Predictor:
    """A ridge on some features."""

    def predict(train: Table, test: Table) -> Tensor:
        fitted = Ridge.fit(features(train), train.skill.unsqueeze(1), train.weights, penalty)
        return fitted(features(test))[:, 0].sigmoid()

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
    families = [f for f in sorted(set(table.column("family"))) if f not in table.bank.set_aside]
    return table[table.where(family=families, cell=ARCHITECTURES)]


def leave_out(table: Table, key: str, predict: Predictor) -> Tensor:
    """(R,) predictions for every row by models that saw no row with its value of ``key``."""
    predicted = torch.full((len(table),), math.nan)
    values = table.column(key)
    for value in sorted(set(values)):
        inside = torch.from_numpy(values == value)
        predicted[inside] = predict(table[~inside], table[inside])
    return predicted
