"""What is kept of a measurement across depth is what was measured, and comes back from a checkpoint as it was."""

import io
import math
from dataclasses import fields

import pytest
import torch
from made_depth import Dense, Residual, chain, jacobians
from torch import Tensor, nn

from lightning_lyapunov.engine.depth import DepthSettings, measure_depth
from lightning_lyapunov.engine.maps.blocks import Function
from lightning_lyapunov.names import selected, selection
from lightning_lyapunov.names_depth import DEPTH, LOGGED, MEASURED, OF_A_BLOCK, QUANTITIES
from lightning_lyapunov.reading.depth_history import DepthMeasurement, depth_features, evenly
from lightning_lyapunov.reading.history import History


def spectrum(depth: int = 3, width: int = 6) -> Dense:
    blocks = nn.ModuleList([Residual(width) for _ in range(depth)]).double()
    return Dense(jacobians(list(blocks), torch.randn(5, width, dtype=torch.float64)))


def test_figures_are_those_of_the_dense_product() -> None:
    made = spectrum()
    kept = DepthMeasurement.of(made, step=7, epoch=2, metrics={"seconds": 0.5}, kinds=["Residual"] * 3)  # type: ignore[arg-type]
    whole = made.jacobians[2] @ made.jacobians[1] @ made.jacobians[0]
    values = torch.linalg.svdvals(whole)
    total = float(values[:, 0].log().mean())
    assert kept.metrics["total"] == pytest.approx(total) and kept.total[0] == pytest.approx(total, abs=1e-6)
    assert kept.metrics["max"] == pytest.approx(total / 3)
    gain = float((0.5 * (values.square().sum(1) / 6).log()).mean())
    assert kept.gain[0] == pytest.approx(gain) and kept.metrics["anisotropy"] == pytest.approx(total - gain)
    assert float(kept.contributions.sum()) == pytest.approx(total, abs=1e-5)
    gains = [kept.metrics[f"layers.{i}/gain"] for i in range(3)]
    assert (max(gains), min(gains)) == (kept.metrics["block_gain_max"], kept.metrics["block_gain_min"])
    assert (kept.step, kept.epoch, kept.depth, kept.samples, kept.metrics["seconds"]) == (7, 2, 3, 5, 0.5)


def test_the_engine_and_brute_force_keep_the_same() -> None:
    """The names of the engine's ``DepthSpectrum`` and its numbers, against dense Jacobians in float64."""
    blocks = [Residual(8).double() for _ in range(4)]
    state = torch.randn(3, 8, dtype=torch.float64)
    links = [Function(block, f"layers.{i}") for i, block in enumerate(blocks)]
    measured = DepthMeasurement.of(measure_depth(links, state, DepthSettings(tolerance=1e-9)), kinds=["Residual"] * 4)
    expected = DepthMeasurement.of(Dense(jacobians(blocks, state)), kinds=["Residual"] * 4)  # type: ignore[arg-type]
    loose = {"state_growth", "typical", "total_error"}
    for name in measured.metrics.keys() - loose:
        assert measured.metrics[name] == pytest.approx(expected.metrics[name], abs=1e-6), name
    assert measured.metrics.keys() == expected.metrics.keys()
    for name in ("log_singular_values", "block_gain", "block_gain_error", "contributions"):
        torch.testing.assert_close(getattr(measured, name), getattr(expected, name), rtol=0, atol=1e-5)
    # The engine looks at what reaches a block, which is everything at the first alone.
    torch.testing.assert_close(measured.block_change[0], expected.block_change[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(measured.block_change, expected.block_change, rtol=0, atol=0.2)
    for name in ("names", "dimensions", "samples", "conditional", "normalisation"):
        assert getattr(measured, name) == getattr(expected, name)


def test_what_is_beyond_the_rank_is_counted_and_unknown_gains_are_no_extremes() -> None:
    made = spectrum()
    made.log_singular_values = torch.tensor([1.0, -100.5, -math.inf])
    made.block_gain = torch.tensor([0.5, math.nan, -math.inf])
    figures = depth_features(made)  # type: ignore[arg-type]
    assert figures["floored"] == 2
    assert (figures["block_gain_max"], figures["block_gain_min"]) == (0.5, -math.inf)


def test_of_many_blocks_those_of_64_are_logged() -> None:
    figures = depth_features(spectrum(depth=100, width=3))  # type: ignore[arg-type]
    logged = [name for name in figures if name.endswith("/gain")]
    assert len(logged) == 64 and (logged[0], logged[-1]) == ("layers.0/gain", "layers.99/gain")


@pytest.mark.parametrize(("count", "most"), [(1, 5), (5, 5), (6, 5), (200, 64)])
def test_places_are_evenly_chosen_with_both_ends(count: int, most: int) -> None:
    places = evenly(count, most)
    assert len(places) == min(count, most) and places == sorted(set(places))
    assert (places[0], places[-1]) == (0, count - 1)


def test_a_checkpoint_brings_back_what_was_kept() -> None:
    made: History[DepthMeasurement] = History("depth", DepthMeasurement)
    made.append(
        chain([0.1, -math.inf, math.nan], total=-math.inf, gain=-math.inf, conditional="up", masked=0.25, seen=32)
    )
    made.append(chain([0.2, 0.1, 0.3], step=50, samples=None, normalisation="batch"))
    torch.save(made.state_dict(), buffer := io.BytesIO())
    buffer.seek(0)
    again: History[DepthMeasurement] = History("depth", DepthMeasurement)
    assert again.load_state_dict(torch.load(buffer, weights_only=True)) == []
    assert len(again) == 2
    for before, after in zip(made, again, strict=True):
        for name in (f.name for f in fields(DepthMeasurement)):
            one, other = getattr(before, name), getattr(after, name)
            if isinstance(one, Tensor):
                torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
            else:
                assert one == other, name


# ---------------------------------------------------------------- the table of names


def test_every_figure_has_its_row_and_every_row_its_figure() -> None:
    given = {"seconds", "overhead", "verdict"}  # by whoever measures
    assert {DEPTH.row_of(name) for name in depth_features(spectrum())} | given == set(QUANTITIES)  # type: ignore[arg-type]
    assert {*MEASURED, OF_A_BLOCK} == set(QUANTITIES) and set(LOGGED) <= set(MEASURED)


def test_each_is_explained() -> None:
    for name, quantity in QUANTITIES.items():
        assert name == quantity.name and quantity.title and quantity.meaning and quantity.advice
        assert not quantity.meaning.endswith(".") and not quantity.advice.endswith(".")


def test_what_is_logged_is_chosen_as_for_recurrent_layers() -> None:
    assert selection("default", "depth", DEPTH) == LOGGED
    chosen = selection(["depth/gain", "layers.1/gain"], "depth", DEPTH)
    assert selected(chain([0.1, 0.2]).metrics | {"layers.1/gain": 0.2}, chosen, DEPTH) == {
        "gain": pytest.approx(0.3), "layers.1/gain": 0.2,
    }  # fmt: skip
    with pytest.raises(ValueError, match="such as total"):
        selection(["totals"], "depth", DEPTH)
