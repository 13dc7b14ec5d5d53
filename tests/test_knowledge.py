"""What is known of rows, and where they lie among the knots: rows made by hand, and sums worked by hand."""

import itertools
import math
from typing import Any

import pytest
import torch
from scored import EVERYTHING, everything, flat, mixed, uniform

from lightning_lyapunov.aelle.features import CONTEXT, LEVELS, Rows
from lightning_lyapunov.aelle.knowledge import (
    KNOTS,
    PARTS,
    RUNGS,
    SKILL,
    STATES,
    UNKNOWN_TIME,
    between,
    cut,
    limited,
    near_knots,
    place,
    rung,
    state,
)

NAN = math.nan
KIND = {"architecture": "gru", "hidden_size": 32}
RATE = {"learning_rate": 3e-3, "adaptive": True}
CHEAP = {"gradient_norm": 1.0, "state_mean": 0.5, "state_spread": 0.4}


# ------------------------------------------------------------------ states


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({}, 0),
        ({"updates": 40, "skill": 0.3, "steps": 32}, 0),  # none of which a rung is made of
        ({"architecture": "gru"}, 0),
        ({"hidden_size": 32}, 0),
        (KIND, 1),
        ({"learning_rate": 3e-3, **CHEAP}, 0),  # of what lies between two rungs, the lower counts
        (KIND | CHEAP, 1),
        ({"hidden_size": 32, **RATE}, 2),
        ({"hidden_size": 32, "learning_rate": 3e-3}, 2),  # whether it is adaptive is not needed
        ({"hidden_size": 32, "adaptive": True}, 0),
        (KIND | RATE, 3),
        ({"hidden_size": 32, **RATE, **CHEAP}, 4),
        ({"hidden_size": 32, **RATE, "state_spread": 0.4}, 4),  # one of what is cheap is enough
        (KIND | RATE | {"gradient_norm": 1.0}, 5),
        (EVERYTHING, 5),
        (EVERYTHING | {"architecture": "mamba"}, 4),
    ],
)
def test_the_highest_rung_that_is_known(known: dict[str, Any], expected: int) -> None:
    assert rung(flat(**known)).tolist() == [expected]


def with_part(rows: Rows, part: str) -> Rows:
    """Rows of whose spectra so much is known."""
    spectrum = rows.spectrum.clone()
    spectrum[:, {"none": 0, "part": 5, "all": LEVELS}[part] :] = NAN  # the mean is not needed
    return Rows(spectrum, rows.context)


def test_each_state_of_knowledge_has_a_number_of_its_own() -> None:
    """Counted by hand: rungs fastest, then how much of the spectrum, then the skill."""
    found = []
    for skill in (False, True):
        for part in PARTS:
            for height in range(len(RUNGS)):
                rows = with_part(limited(everything(2), rung=height, skill=skill), part)
                assert state(rows).tolist() == [len(found)] * 2
                found.append(int(state(rows)[0]))
    assert found == list(range(STATES))


def test_limited_knows_what_its_rung_says_and_no_more() -> None:
    rows = mixed(12)
    for height, names in enumerate(RUNGS):
        left = limited(rows, rung=height)
        kept = [name in names or name in ("log_updates", "skill", "log_steps") for name in CONTEXT]
        assert (~left.context.isnan()).tolist() == [kept] * 12
        assert torch.equal(left.context[:, kept], rows.context[:, kept])
        assert rung(left).tolist() == [height] * 12
        assert torch.equal(left.spectrum, rows.spectrum)


@pytest.mark.parametrize(("part", "left"), [("none", False), ("part", True), ("all", True)])
def test_limited_hides_the_skill_and_the_spectrum_where_it_is_told_to(part: str, left: bool) -> None:
    rows = mixed(6)
    found = limited(rows, part=part, skill=False)
    assert found.context[:, SKILL].isnan().all() and not rows.context.isnan().any()
    assert (~found.spectrum.isnan()).all() == left and not rows.spectrum.isnan().any()


def test_limited_to_everything_changes_nothing() -> None:
    rows, left = mixed(6), limited(mixed(6))
    assert torch.equal(left.spectrum, rows.spectrum) and torch.equal(left.context, rows.context)


def test_cut_leaves_the_leading_part_of_each_spectrum() -> None:
    rows = mixed(2000)
    left = cut(rows, torch.Generator().manual_seed(0))
    hidden = left.spectrum.isnan()
    assert (hidden[:, 1:LEVELS] >= hidden[:, : LEVELS - 1]).all()  # once hidden, hidden to the end
    assert hidden[:, LEVELS].all() and not hidden[:, 0].any()
    assert torch.equal(left.spectrum[~hidden], rows.spectrum[~hidden])
    assert torch.equal(left.context, rows.context)
    share = (~hidden[:, :LEVELS]).float().mean(1)
    assert 0.08 < float(share.min()) < 0.12 and 0.88 < float(share.max()) < 0.92  # a tenth of it to nine
    assert float(share.mean()) == pytest.approx(0.5, abs=0.02)
    assert state(left).unique().tolist() == [(len(PARTS) + PARTS.index("part")) * len(RUNGS) + len(RUNGS) - 1]
    again = cut(rows, torch.Generator().manual_seed(0)).spectrum
    assert torch.equal(again.isnan(), hidden)


# ------------------------------------------------------------------ places


def at(updates: float | None) -> float:
    rows = flat()
    rows.context[:, CONTEXT.index("log_updates")] = NAN if updates is None else math.log1p(updates / 10)
    return float(place(rows))


def test_places_are_knots_and_logarithmic_between_them() -> None:
    """Half way between the logarithms of 1 + updates / 10 of two knots lies the middle."""
    assert [at(knot) for knot in KNOTS] == pytest.approx(range(len(KNOTS)), abs=1e-5)
    halves = [10 * (math.sqrt((1 + a / 10) * (1 + b / 10)) - 1) for a, b in itertools.pairwise(KNOTS)]
    assert [at(updates) for updates in halves] == pytest.approx([i + 0.5 for i in range(len(KNOTS) - 1)], abs=1e-5)


def test_places_end_with_the_last_knot_and_are_one_epoch_where_not_known() -> None:
    assert at(1e9) == len(KNOTS) - 1
    assert at(None) == pytest.approx(UNKNOWN_TIME) and KNOTS[UNKNOWN_TIME] == 40


def test_values_between_knots_lie_on_a_line() -> None:
    """By the formula of a line, of values of each row, of any more dimensions."""
    by_knot = uniform(9, len(KNOTS), 3, 2)
    where = torch.tensor([0.0, 0.25, 1.0, 1.5, 3.75, 5.0, 6.5, 8.999, 9.0])
    found = between(by_knot, where)
    assert found.shape == (9, 3, 2)
    for r, share in enumerate(where.tolist()):
        low = min(int(share), len(KNOTS) - 2)
        expected = by_knot[r, low] * (low + 1 - share) + by_knot[r, low + 1] * (share - low)
        torch.testing.assert_close(found[r], expected)
    assert torch.equal(between(by_knot[..., 0, 0], where), found[:, 0, 0])


PLACES = torch.tensor([0.0, 0.2, 0.4, 2.0, 2.1, 5.6, 6.0, 6.1, 6.2])


@pytest.mark.parametrize(
    ("fewest", "expected"),
    [
        # Of two knots as near, the earlier; a knot serves those that have too few.
        (2, {0: ([0, 1, 2], [0, 1]), 2: ([3, 4], [2, 3, 4]), 6: ([5, 6, 7, 8], [5, 6, 7, 8, 9])}),
        (3, {0: ([0, 1, 2], [0, 1, 2, 3]), 6: ([5, 6, 7, 8], [4, 5, 6, 7, 8, 9])}),
        (4, {6: ([5, 6, 7, 8], list(range(10)))}),
        (5, {0: (list(range(9)), list(range(10)))}),  # nowhere are there enough: all
    ],
)
def test_rows_near_knots_and_the_knots_that_they_serve(fewest: int, expected: dict[int, tuple[list[int], ...]]) -> None:
    assert len(KNOTS) == 10
    found = [(rows.tolist(), knots) for rows, knots in near_knots(PLACES, fewest)]
    assert found == list(expected.values())
