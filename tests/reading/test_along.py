"""Where memory is lost. Oracles: gates that are closed at known steps, blocks made by hand."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from made import measured
from made import spectrum as made_spectrum
from torch import Tensor, nn

from lightning_lyapunov import lyapunov_spectrum
from lightning_lyapunov.engine.spectrum import LocalExponents
from lightning_lyapunov.reading.along import most_of, stretches, where_lost
from lightning_lyapunov.reading.history import History, Measurement


def kept(rates: Sequence[float], spread: float = 0.0, sequences: int = 9, size: int = 1, start: int = 0) -> Measurement:
    """Blocks of a size with these rates, each with a spread between sequences; of the whole the same spread."""
    edges = [start + size * i for i in range(len(rates) + 1)]
    whole = sum(rates) / len(rates)
    columns = [[*edges[:-1], start], [*edges[1:], edges[-1]], [*rates, whole], [spread] * (len(rates) + 1)]
    return replace(measured(-0.1), along=torch.tensor(columns), sequences=sequences)


def test_what_a_measurement_keeps_is_that_of_its_spectrum() -> None:
    torch.manual_seed(0)
    spectrum = lyapunov_spectrum(nn.RNN(3, 6), torch.randn(20, 5, 3))
    blocks, local = stretches(Measurement.of(spectrum)), spectrum.local
    assert blocks is not None and local is not None and blocks.layer == ""
    assert (blocks.starts, blocks.ends) == (local.starts.tolist(), local.ends.tolist())
    assert blocks.rates == pytest.approx(local.push.tolist()) and blocks.spreads == pytest.approx(
        local.push_spread.tolist()
    )
    totals = ((local.ends - local.starts).unsqueeze(1) * local.pushes).sum(0)
    assert blocks.whole == pytest.approx((float(totals.mean()), 2.776445 * float(totals.std()) / 5**0.5), rel=1e-5)


def test_of_several_layers_it_is_the_one_with_the_largest_exponent() -> None:
    def layer(exponent: float) -> object:
        rates = torch.tensor([[exponent, exponent]])
        local = LocalExponents(torch.tensor([0]), torch.tensor([4]), rates[:, :1], rates)
        return made_spectrum(exponent, local=local)

    union = type(made_spectrum(0.0)).union({"a": layer(-0.5), "b": layer(-0.1), "c": layer(math.nan)})  # type: ignore[dict-item]
    measurement = Measurement.of(union)
    blocks = stretches(measurement)
    assert blocks is not None and blocks.layer == "b" and blocks.rates == pytest.approx([-0.1])
    assert "of b before step 1" in where_lost(measurement)


def test_it_goes_through_a_checkpoint_and_older_ones_do_not_miss_it() -> None:
    history = History()
    history.append(kept([-1.0, -2.0]))
    state = history.state_dict()
    restored = History()
    assert restored.load_state_dict(state) == [] and stretches(restored[0]) == stretches(history[0])
    for name in ("along", "along_of"):
        del state["measurements"][0][name]
    assert restored.load_state_dict(state) == [] and stretches(restored[0]) is None and where_lost(restored[0]) == ""


# ------------------------------------------------------------------ where


class Gated(nn.Module):
    """A state that is multiplied by e to the power of its input."""

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        return state * x.exp()


def test_a_gate_that_closes_is_found_where_it_closes() -> None:
    """All but nothing is lost but in steps 13 and 14, which are a block: 1.5 nats in each, 0.38 in all the others."""
    rates = torch.full((40, 6, 1), -0.01, dtype=torch.float64)
    rates[12:14] = -1.5
    spectrum = lyapunov_spectrum(Gated(), rates, state=torch.ones(6, 1).double(), interval=1)
    push, half = where_lost(Measurement.of(spectrum)).split("; ")
    assert push == "A push to the state before step 1 shrinks to 1/29 by step 40"
    assert half == "half of the loss falls in steps 13 to 14."


@pytest.mark.parametrize(
    ("rates", "where"),
    [
        ([-0.1] * 6 + [-3.0] + [-0.1] * 5, (7, 7)),
        ([-2.0, -2.0] + [-0.1] * 10, (1, 2)),
        ([0.1] * 9 + [2.0, 2.0, 0.0], (10, 11)),
        ([-0.5] * 12, None),
        ([-1.0] * 4 + [-0.4] * 8, None),  # half of it in four steps of twelve
        ([0.0] * 12, None),
        ([math.nan] + [-1.0] * 11, None),
        ([-math.inf] * 12, None),
    ],
)
def test_half_of_it_in_a_quarter_of_the_steps_or_less(rates: list[float], where: tuple[int, int] | None) -> None:
    for size, start in ((1, 0), (5, 20)):
        blocks = stretches(kept(rates, size=size, start=start))
        assert blocks is not None
        expected = None if where is None else (start + size * (where[0] - 1) + 1, start + size * where[1])
        assert most_of(blocks) == expected


def test_not_where_chance_may_have_made_it_so() -> None:
    """One step of twelve loses 3 nats, give or take."""
    rates = [-0.1] * 6 + [-3.0] + [-0.1] * 5
    for spread, sequences, is_told in ((1.0, 9, True), (5.0, 9, False), (1.0, 2, False), (0.0, 1, False)):
        one = kept(rates, spread, sequences)
        assert one.along is not None
        one.along[3, -1] = 0.01  # the whole is known better than its parts
        blocks = stretches(one)
        assert blocks is not None and (most_of(blocks) is not None) == is_told, (spread, sequences)


@pytest.mark.parametrize(
    ("rates", "spread", "told"),
    [
        ([-0.5] * 12, 0.01, "A push to the state before step 1 shrinks to 1/400 by step 12."),
        ([0.5] * 12, 0.01, "A push to the state before step 1 grows 400-fold by step 12."),
        ([-0.1] * 11 + [-0.8], 0.0, "A push to the state before step 1 shrinks to 1/6.7 by step 12."),
        ([-2.1, -1.9] + [0.0] * 10, 0.0, "by step 12; half of the loss falls in step 1."),
        ([-1.9, -0.05] + [0.0] * 10, 0.0, "A push to the state before step 1 shrinks to 1/7.0 by step 12."),
        ([-2.1, -1.9] + [0.0] * 10, 2.0, "A push to the state before step 1 shrinks to 1/55 by step 12."),
        ([-0.1, -math.inf, -math.inf], 0.0, "Of a push to the state before step 1 nothing is left after step 2."),
        ([-0.1] * 11 + [-4.0], 0.0, "by step 12; half of the loss falls in step 12."),
        ([2.0, 2.0] + [0.1] * 10, 0.0, "by step 12; half of the growth falls in steps 1 to 2."),
    ],
)
def test_sentences(rates: list[float], spread: float, told: str) -> None:
    assert where_lost(kept(rates, spread)).endswith(told)
