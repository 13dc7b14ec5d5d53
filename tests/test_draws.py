"""Draws against the shares and ranges they are promised to have."""

import dataclasses
import math

import pytest

from lightning_lyapunov.bank.draws import Draw, draw
from lightning_lyapunov.bank.population import Population

FIVE = Population("adding-20", "gru", 8, (0, 1, 2, 3, 4))
MANY = [draw(str(n), "lstm") for n in range(3000)]


def test_a_draw_depends_on_its_own_number_alone() -> None:
    drawn = FIVE.networks
    alone = [dataclasses.replace(FIVE, draws=(number,), seed=7).networks[0] for number in (4, 3, 2, 1, 0)]
    assert alone[::-1] == drawn
    assert len(set(drawn)) == 5
    for other in ({"task": "recall-6"}, {"cell": "lstm"}, {"hidden_size": 9}, {"layers": 2}):
        assert dataclasses.replace(FIVE, **other).networks[0] not in drawn  # type: ignore[arg-type]


def test_draws_cover_the_useful_range_and_some_of_the_rest() -> None:
    useful = sum(d.is_useful for d in MANY) / len(MANY)
    # log-uniform: of the three tenths from afar, so much of the gains and of the rates is useful
    far = math.log(2.5 / 0.3) / math.log(160) * math.log(10) / math.log(300)
    assert useful == pytest.approx(0.7 + 0.3 * far, abs=0.03)
    assert {d.init for d in MANY} == {"normal", "uniform", "orthogonal"}
    assert {d.memory_bias for d in MANY} == {0.0, 1.0, 2.0}
    for values, low, high in (
        ([d.gain for d in MANY], 0.05, 8.0),
        ([d.learning_rate for d in MANY if d.optimizer == "adam"], 1e-4, 3e-2),
        ([d.learning_rate for d in MANY if d.optimizer == "sgd"], 1e-3, 3e-1),
        ([d.input_gain for d in MANY], 0.3, 3.0),
    ):
        assert low <= min(values) < 1.3 * low
        assert high / 1.3 < max(values) <= high
    assert {draw(str(n), "rnn").memory_bias for n in range(50)} == {0.0}


def test_optimisers_clipping_and_warmup_have_their_shares() -> None:
    shares = {
        "adam": sum(d.optimizer == "adam" for d in MANY),
        "clip": sum(d.clip for d in MANY),
        "warmup": sum(d.warmup == 40 for d in MANY),
        "adam, clip and warmup": sum(d.optimizer == "adam" and d.clip and d.warmup == 40 for d in MANY),
    }
    expected = {"adam": 0.75, "clip": 0.7, "warmup": 0.25, "adam, clip and warmup": 0.75 * 0.7 * 0.25}
    assert {key: count / len(MANY) for key, count in shares.items()} == pytest.approx(expected, abs=0.03)
    assert {d.optimizer for d in MANY} == {"adam", "sgd"}
    assert {d.warmup for d in MANY} == {0, 40}


def test_numbers_have_four_digits() -> None:
    for how in MANY[:100]:
        for value in (how.gain, how.input_gain, how.learning_rate):
            assert value == float(f"{value:.4g}")


@pytest.mark.parametrize(
    ("gain", "rate", "useful"),
    [(0.3, 1e-3, True), (2.5, 1e-2, True), (0.29, 3e-3, False), (2.6, 3e-3, False), (1, 9e-4, False), (1, 2e-2, False)],
)
def test_useful_range(gain: float, rate: float, useful: bool) -> None:
    assert Draw("normal", gain, 1.0, 0.0, rate).is_useful is useful
    assert Draw("normal", gain, 1.0, 0.0, 10 * rate, optimizer="sgd").is_useful is useful
