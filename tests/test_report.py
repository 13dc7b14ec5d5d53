"""What the report concludes: constructed scores, twins and intervals whose answer is known."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_evaluation import bank_of

from lightning_lyapunov.aelle.autoencoder import HEADS
from lightning_lyapunov.aelle.calibration import KNOTS, Shares
from lightning_lyapunov.aelle.scorer import AeLLEScorer
from lightning_lyapunov.bank import report
from lightning_lyapunov.bank.evaluation import SCORES, Table
from lightning_lyapunov.bank.report import (
    PREDICTORS,
    SCORER,
    Evaluation,
    against_ridge,
    card,
    coverage,
    markdown,
    noise_ceiling,
    paired,
    per_task,
    verdict,
)


def tables_of(families: int, ours: float, others: float) -> dict[tuple[str, int], Any]:
    """Every score of every predictor the same in all families but for a little spread; ours apart from the others'."""
    spread = np.linspace(-0.01, 0.01, families)
    table = {
        name: {
            f"family {i}": dict.fromkeys(SCORES, (ours if name == "cell + size + spectrum, AeLLE" else others) + s)
            for i, s in enumerate(spread)
        }
        for name in (*PREDICTORS, *SCORER)
    }
    return {(name, 0): table for name in ("useful", "wide")}


@pytest.mark.parametrize(
    ("families", "ours", "others", "holds"),
    [(12, 0.9, 0.7, True), (11, 0.9, 0.7, False), (16, 0.7, 0.7, False), (16, 0.7, 0.9, False)],
    ids=["clear", "too few families", "no better", "worse"],
)
def test_hypothesis_holds_only_beyond_two_errors_over_twelve_families(
    families: int, ours: float, others: float, holds: bool
) -> None:
    said = verdict(tables_of(families, ours, others))[0]
    assert ("**holds on this bank**" in said) == holds
    assert ("**is not shown on this bank**" in said) == (not holds)


def test_paired_differences_are_family_by_family() -> None:
    one = {"a": {"rho": 0.5}, "b": {"rho": 0.9}, "c": {"rho": math.nan}}
    other = {"a": {"rho": 0.4}, "b": {"rho": 0.6}, "c": {"rho": 0.1}}
    mean, error, count = paired(one, other, "rho")
    assert (mean, error, count) == (pytest.approx(0.2), pytest.approx(0.1), 2)


def test_tables_have_a_row_for_each_predictor_and_a_dash_for_what_is_not_known() -> None:
    families = {f: dict.fromkeys(SCORES, 0.5) | {"fail": math.nan} for f in "ab"}
    lines = markdown({"one": families, "two": families}).splitlines()
    assert len(lines) == 4
    cells = lines[2].split(" | ")
    assert cells[0] == "| one" and cells[1 + SCORES.index("fail")] == "–" and cells[1] == "0.50 ± 0.00"
    assert all("+0.20 ± 0.00" in line for line in against_ridge(tables_of(3, 0.9, 0.7))[4:6])


def test_noise_ceiling_is_the_correlation_of_twins() -> None:
    """Two tasks, six draws each from three seeds: in the one they end alike, in the other one seed reverses them."""
    kinds, finals, networks = [], [], []
    for task, signs in (("adding-20", (1, 1, 1)), ("xor-11", (1, 1, -1))):
        for seed, sign in enumerate(signs):
            for number in range(6):
                kinds.append((task, "gru"))
                finals.append(0.7 + 0.04 * sign * (number - 2.5))
                networks.append({"seed": seed, "number": number})
    bank = bank_of(kinds, finals)
    for made, more in zip(bank.networks, networks, strict=True):
        made.update(more)
    mean, _, count = noise_ceiling(bank)
    assert count == 2
    assert mean == pytest.approx((1 + (1 - 1 - 1) / 3) / 2)


def test_coverage_counts_every_family_the_same() -> None:
    """All of 12 networks of one family inside, none of 3 of the other: half."""
    kinds = [("adding-20", "gru")] * 12 + [("xor-11", "gru")] * 3
    table = Table.of(bank_of(kinds, [0.8] * 15))
    inside = torch.from_numpy(table.column("family") == "adding")
    low, high = (torch.where(inside, table.skill + shift, 2.0) for shift in (-0.1, 0.1))
    evaluation = Evaluation(table, low={"it": low}, high={"it": high})
    assert coverage(evaluation, "it", torch.ones(len(table), dtype=torch.bool)) == pytest.approx(0.5)


def test_models_of_one_task_are_judged_on_networks_left_out() -> None:
    """A predictor that knows the skill of every network but those it was fitted on has R² 1; their mean has none."""
    finals = np.linspace(0.6, 0.95, 30).tolist()
    table = Table.of(bank_of([("xor-11", "gru")] * 30, finals))
    seen: list[set[int]] = []

    def told(train: Table, test: Table) -> torch.Tensor:
        assert not set(train.network.tolist()) & set(test.network.tolist())
        seen.append(set(test.network.tolist()))
        return test.skill

    assert per_task(table, 0, told) == (pytest.approx(1.0), pytest.approx(1.0))
    assert set.union(*seen) == set(range(30)) and sum(map(len, seen)) == 30
    r2, _ = per_task(table, 0, lambda train, test: train.skill.mean().expand(len(test)))
    assert -0.5 < r2 < 0


def test_card_names_the_shares_of_whole_spectra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Means over knots, with and without the skill so far; the other states of knowledge are not in it."""
    monkeypatch.setattr(report, "against_skill", lambda by_family: ["the evaluation"])
    weights = Path(report.__file__).parents[1] / "aelle" / "weights" / "general.safetensors"
    scorer = AeLLEScorer.load(weights)
    table = torch.ones(6, len(KNOTS), len(HEADS))
    table[2] = torch.tensor([0.0, 0.25, 0.5, 1.0])
    table[5] = torch.tensor([0.5, 0.25, 0.0, 0.5])
    table[5, 0, 0] = 1.0  # a tenth of what the mean is over
    scorer.heads = replace(scorer.heads, shares=Shares(table))
    file = tmp_path / "own.safetensors"
    file.write_bytes(b"weights")
    written = card(
        scorer, file, ["in short"], Evaluation(Table.of(bank_of([("xor-11", "gru")], [0.5])), {}, {}), "a page"
    )
    assert "For whole spectra: skill 0.30, failure 0.25, takeoff 0.25, stability 0.75." in written
    assert "in short" in written and "the evaluation" in written and "`own.safetensors`" in written
