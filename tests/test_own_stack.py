"""The stack: ridges against fits that were made without a group, weights against another solver, the prior's rights."""

import pytest
import torch
from scipy.optimize import nnls
from torch import Tensor

from lightning_lyapunov.aelle import stack as module
from lightning_lyapunov.aelle.stack import (
    FEWEST,
    KEPT,
    LEAST_SLOPE,
    PENALTIES,
    PRIOR,
    WORTH,
    Groups,
    Ridge,
    Stack,
    components,
    line,
    standardised,
    weights,
)

NAMES = torch.tensor([3, 0, 0, 7, 1, 1, 1, 3, 9, 2, 2, 8, 5, 6, 6, 6])
"""Of 16 rows: groups of one, two and three, in no order."""


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def without(x: Tensor, y: Tensor, penalty: float, group: Tensor, towards: float = 0.0) -> Tensor:
    """What a ridge says of a group that never saw it, by the normal equations; its level is not penalised."""
    known = ~group
    design = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    penalties = torch.diag(torch.tensor([penalty] * x.shape[1] + [0.0], dtype=x.dtype))
    alike = design[known].mT @ design[known] + penalties
    slopes = torch.linalg.solve(alike, design[known].mT @ y[known] + penalties @ torch.full_like(alike[0], towards))
    return design[group] @ slopes


# ------------------------------------------------------------------ ridges


@pytest.mark.parametrize("penalty", [1e-3, 1.0, 50.0])
@pytest.mark.parametrize("columns", [2, 40])
def test_what_is_said_of_a_group_is_what_a_fit_without_it_says(penalty: float, columns: int) -> None:
    x, y = drawn(16, columns), drawn(16, seed=1)
    fit = Ridge.fit(x, torch.eye(columns, dtype=x.dtype), y, Groups.of(NAMES), torch.tensor([penalty]).double())
    for name in NAMES.unique():
        group = name == NAMES
        torch.testing.assert_close(fit.left_out[group], without(x, y, penalty, group), rtol=1e-7, atol=1e-7)


def test_a_group_says_nothing_about_itself() -> None:
    """Change how its rows end: what is said of them, with any one penalty, stays."""
    x, y = drawn(16, 5), drawn(16, seed=1)
    changed = torch.where(NAMES == 1, y + 10, y)
    ours, theirs = (
        Ridge.fit(x, standardised(x), ends, Groups.of(NAMES), PENALTIES[6:7]).left_out for ends in (y, changed)
    )
    torch.testing.assert_close(ours[NAMES == 1], theirs[NAMES == 1])
    assert not torch.allclose(ours[NAMES != 1], theirs[NAMES != 1])


def test_the_penalty_is_the_one_that_predicts_best_what_is_left_out() -> None:
    x = drawn(16, 3)
    for y in (x @ torch.tensor([1.0, -2.0, 0.5]).double(), x[:, 0] + 3 * drawn(16, seed=2), drawn(16, seed=3)):
        fit = Ridge.fit(x, torch.eye(3, dtype=x.dtype), y, Groups.of(NAMES))
        errors = [
            sum(
                float((without(x, y, penalty, name == NAMES) - y[name == NAMES]).square().sum())
                for name in NAMES.unique()
            )
            for penalty in PENALTIES.tolist()
        ]
        chosen, tied = PENALTIES.tolist().index(fit.penalty), min(errors) * (1 + module.TIED)
        assert errors[chosen] <= tied and all(error > tied for error in errors[chosen + 1 :])


def test_a_ridge_is_the_solution_of_its_normal_equations_and_never_goes_beyond_what_it_saw() -> None:
    x, y = drawn(16, 3), drawn(16, seed=1)
    fit = Ridge.fit(x, torch.eye(3, dtype=x.dtype), y, Groups.of(NAMES), torch.tensor([2.0]).double())
    inside = 0.5 * x[:4] + 0.5 * x[4:8]
    nobody = torch.tensor([False] * 16 + [True] * 4)
    expected = without(torch.cat([x, inside]), torch.cat([y, y[:4]]), 2.0, nobody)
    torch.testing.assert_close(fit(inside), expected)
    torch.testing.assert_close(fit(100 * x[:1].sign()), fit(torch.where(x[:1] > 0, x.amax(0), x.amin(0))))


def test_columns_share_a_variance_of_one_and_what_never_varies_has_none() -> None:
    x = torch.cat([100 * drawn(30, 2), torch.full((30, 1), 0.3).double()], 1)
    seen = (x - x.mean(0)) @ standardised(x)
    torch.testing.assert_close(seen.var(0, correction=0), torch.tensor([0.5, 0.5, 0.0]).double())
    assert (standardised(torch.full((30, 2), 5.0).double()) == 0).all()


def test_components_are_the_directions_of_most_variance() -> None:
    """Of columns that are independent and of different sizes: these columns, the largest first."""
    x = torch.linalg.qr(drawn(40, 12) - drawn(40, 12).mean(0))[0] * torch.arange(12, 0, -1)
    x = x - x.mean(0)
    found = components(x)
    assert found.shape == (12, KEPT)
    seen = x @ found
    covariance = seen.mT @ seen / 40
    torch.testing.assert_close(covariance, torch.diag(covariance.diag()), rtol=0, atol=1e-12)
    assert float(covariance.trace()) == pytest.approx(1.0) and (covariance.diag().diff() < 0).all()
    most = torch.linalg.eigvalsh(x.mT @ x / 40).flip(0)[:KEPT]
    torch.testing.assert_close(covariance.diag(), most / most.sum())
    assert (components(torch.ones(9, 4).double()) == 0).all()


# ------------------------------------------------------------------ the prior


def test_the_prior_is_moved_to_the_level_of_ones_own() -> None:
    """By least squares, with a slope that is worth as much as three rows of 1; without each group, by refits."""
    prior, y = drawn(16, 1).sigmoid(), 0.4 * drawn(16, seed=1)
    fit = line(prior, y, Groups.of(NAMES))
    worth = WORTH * float(prior.var(correction=0))
    for name in NAMES.unique():
        group = name == NAMES
        torch.testing.assert_close(fit.left_out[group], without(prior, y, worth, group, towards=1.0))
    assert float(fit(prior).mean()) == pytest.approx(float(y.mean()))


def test_the_prior_may_be_flattened_but_not_turned_round() -> None:
    prior = torch.linspace(0.1, 0.9, 16).double().unsqueeze(1)
    fit = line(prior, -prior[:, 0], Groups.of(NAMES))
    assert float(fit.slopes) == LEAST_SLOPE
    same = line(torch.full((16, 1), 0.4).double(), drawn(16), Groups.of(NAMES))
    assert same(torch.full((2, 1), 0.4).double()).isfinite().all()


# ------------------------------------------------------------------ weights


@pytest.mark.parametrize("seed", range(6))
def test_weights_are_those_of_another_solver(seed: int) -> None:
    """Least squares with the penalty as further rows, by the active sets of Lawson and Hanson."""
    said, y = drawn(20, 6, seed=seed), drawn(20, seed=100 + seed)
    said, y = said - said.mean(0), y - y.mean()
    root = (WORTH * y.square().mean()).sqrt()
    rows = torch.cat([said, root * torch.eye(6, dtype=y.dtype)])
    expected, _ = nnls(rows.numpy(), torch.cat([y, root * torch.eye(6, dtype=y.dtype)[0]]).numpy())
    torch.testing.assert_close(weights(said, y), torch.from_numpy(expected))
    assert (weights(said, y) == 0).any()


def test_candidates_that_say_nothing_leave_the_prior_its_weight() -> None:
    y = drawn(400)
    y = y - y.mean()
    said = torch.stack([y, *drawn(3, 400, seed=1)], 1)
    torch.testing.assert_close(weights(said - said.mean(0), y)[0], torch.tensor(1.0).double(), rtol=0, atol=0.01)


# ------------------------------------------------------------------ the stack


def views(count: int, seed: int = 0) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Networks that end as the first of their numbers says, of which the prior knows nothing."""
    x = drawn(count, 4, seed=seed)
    y = (x[:, 0] + 0.1 * drawn(count, seed=seed + 50)).sigmoid()
    noise = drawn(count, 1, seed=seed + 99).sigmoid()
    return {PRIOR: noise, "numbers": x, "raw components": x, "none": x[:, :0]}, x[:, 3:], y


def test_below_thirty_networks_the_prior_stands_alone() -> None:
    for count in (FEWEST - 1, FEWEST):
        seen, context, y = views(count)
        stack = Stack.fit(seen, context, y, Groups.of(torch.arange(count)))
        assert (list(stack.candidates) == [PRIOR]) == (count < FEWEST)
    few, context, y = views(FEWEST - 1)
    said = Stack.fit(few, context, y, Groups.of(torch.arange(FEWEST - 1)))(few, context)
    assert torch.equal(said.argsort(), few[PRIOR][:, 0].argsort())


def test_networks_are_counted_and_not_their_rows() -> None:
    seen, context, y = views(2 * FEWEST)
    twins = Groups.of(torch.arange(2 * FEWEST) // 3)
    assert list(Stack.fit(seen, context, y, twins).candidates) == [PRIOR]


def test_what_ones_own_networks_say_overrules_the_prior() -> None:
    seen, context, y = views(60)
    stack = Stack.fit(seen, context, y, Groups.of(torch.arange(60)))
    assert list(stack.candidates) == [PRIOR, "numbers", "raw components"]  # a view without a column makes none
    fresh, beside, truth = views(100, seed=7)
    said = stack(fresh, beside)
    assert float(torch.corrcoef(torch.stack([said, truth]))[0, 1]) > 0.95
    parts = torch.stack(list(stack.parts(fresh, beside).values()), 1)
    torch.testing.assert_close(said, stack.level + (parts - stack.centre) @ stack.weights)


def test_residuals_are_about_as_large_as_the_errors_to_come() -> None:
    seen, context, y = views(60)
    stack = Stack.fit(seen, context, y, Groups.of(torch.arange(60)))
    fresh, beside, truth = views(400, seed=7)
    errors = (truth - stack(fresh, beside)).square().mean().sqrt()
    assert 0.8 * errors < stack.residuals.square().mean().sqrt() < 1.4 * errors


def test_the_order_of_networks_does_not_matter() -> None:
    seen, context, y = views(48)
    names, order = torch.arange(48) // 1.5, torch.randperm(48, generator=torch.Generator().manual_seed(0))
    shuffled = {name: view[order] for name, view in seen.items()}
    one = Stack.fit(seen, context, y, Groups.of(names.floor()))
    two = Stack.fit(shuffled, context[order], y[order], Groups.of(names.floor()[order]))
    fresh, beside, _ = views(9, seed=7)
    torch.testing.assert_close(one(fresh, beside), two(fresh, beside), rtol=0, atol=1e-9)
    torch.testing.assert_close(one.residuals[order], two.residuals, rtol=0, atol=1e-9)


def test_folds_keep_groups_together_and_are_even() -> None:
    names = torch.arange(50) % 23
    folds = Groups.of(names).folds()
    assert folds.unique().tolist() == list(range(module.FOLDS))
    assert all(len(folds[names == name].unique()) == 1 for name in names.unique())
    held = [len(names[folds == fold].unique()) for fold in range(module.FOLDS)]
    assert max(held) - min(held) <= 1
    assert Groups.of(torch.tensor([4.0, 4.0, 1.0])).folds().unique().tolist() == [0, 1]
