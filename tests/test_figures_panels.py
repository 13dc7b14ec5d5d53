"""The panels of a dashboard: what they draw follows from the history put in; odd histories are drawn too."""

import math
import subprocess
import sys
from collections.abc import Sequence
from io import BytesIO
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from made import layer
from matplotlib.figure import Figure
from matplotlib.text import Text

from lightning_lyapunov import AeLLEScorer
from lightning_lyapunov.aelle.atlas import known_networks
from lightning_lyapunov.aelle.features import Rows, exponents_of
from lightning_lyapunov.figures import (
    LatentMap,
    figures_of,
    latent_map,
    layers_over_training,
    prediction_over_training,
    spectrum_now,
    spectrum_over_training,
)
from lightning_lyapunov.reading.history import History, Measurement

INF, NAN = math.inf, math.nan
SAID = {
    "performance": 0.6,
    "performance_low": 0.4,
    "performance_high": 0.7,
    "baseline": 0.5,
    "failure_probability": 0.2,
    "familiarity": 0.9,
}
pytestmark = pytest.mark.filterwarnings("error")


def measurement(step: int, exponents: Sequence[float], **known: Any) -> Measurement:
    """Exponents with standard errors of 0.01; ``said`` is what the scorer said."""
    said = {f"aelle/{name}": value for name, value in known.pop("said", {}).items()}
    stderr = torch.full((len(exponents),), 0.01)
    return Measurement(step, 0, torch.tensor(exponents), said, **{"stderr": stderr, **known})


def history(*measurements: Measurement, prefix: str = "lyapunov") -> History:
    made = History(prefix)
    for one in measurements:
        made.append(one)
    return made


def drawn(figure: Figure) -> bytes:
    """The picture as PNG: drawing fails where building does not."""
    figure.savefig(buffer := BytesIO(), format="png")
    return buffer.getvalue()


def lines(figure: Figure, panel: int = 0) -> dict[str, np.ndarray]:
    """What each line with a name in the legend shows."""
    return {line.get_label(): line.get_ydata() for line in figure.axes[panel].lines}


def written(figure: Figure) -> str:
    """All words on the axes and in the legends."""
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    texts = [text for axes in figure.axes for text in axes.texts] + [t for one in legends for t in one.get_texts()]
    return "\n".join(text.get_text() for text in texts)


@pytest.fixture(scope="module")
def scorer() -> AeLLEScorer:
    return AeLLEScorer.from_pretrained()


@pytest.fixture(scope="module")
def bank(scorer: AeLLEScorer) -> LatentMap:
    return LatentMap.of_bank(scorer, networks=40)


# ---------------------------------------------------------------- the spectrum now


def test_spectrum_is_drawn_now_and_at_the_first_and_two_between() -> None:
    figure = spectrum_now(history(*(measurement(10 * i, [-0.1 * i, -1.0]) for i in range(10))))
    drawn(figure)
    shown = lines(figure)
    np.testing.assert_allclose(shown["now, update 90"], [-0.9, -1.0], rtol=1e-6)
    earlier = {name: values[0] for name, values in shown.items() if name.startswith("update")}
    assert earlier == pytest.approx({"update 0": 0.0, "update 30": -0.3, "update 60": -0.6})


def test_band_of_the_spectrum_is_the_error_either_way() -> None:
    figure = spectrum_now(history(measurement(0, [0.5, -1.0], error=torch.tensor([0.2, 0.4]))))
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    at_second = band[band[:, 0] == 2, 1]
    assert (at_second.min(), at_second.max()) == pytest.approx((-1.4, -0.6))


def test_exponents_that_are_not_trusted_are_hollow_and_off_the_solid_line() -> None:
    figure = spectrum_now(history(measurement(0, [0.1, -1.0, -2.0], trusted=torch.tensor([True, True, False]))))
    solid = lines(figure)["now, update 0"]
    np.testing.assert_array_equal(np.isnan(solid), [False, False, True])
    hollow = next(line for line in figure.axes[0].lines if "not to be trusted" in line.get_label())
    assert hollow.get_ydata().tolist() == [-2.0]
    assert hollow.get_markerfacecolor() == "white"
    assert "not to be trusted" in written(figure)
    assert "not to be trusted" not in written(spectrum_now(history(measurement(0, [0.1]))))


def test_exponents_that_have_not_settled_are_pale() -> None:
    known = {"trusted": torch.tensor([True, True, False]), "settled": torch.tensor([True, False, False])}
    figure = spectrum_now(history(measurement(0, [0.1, -1.0, -2.0], **known)))
    (pale,) = (line for line in figure.axes[0].lines if "not settled" in line.get_label())
    assert pale.get_ydata().tolist() == [-1.0]  # what is not to be trusted is hollow
    assert "not settled" in written(figure)
    for settled in (None, torch.tensor([True])):
        assert "not settled" not in written(spectrum_now(history(measurement(0, [0.1], settled=settled))))


def test_dead_directions_are_counted_and_leave_the_axis_alone() -> None:
    figure = spectrum_now(history(measurement(0, [0.1, -1.0, -500.0, -INF, NAN])))
    assert drawn(figure)
    assert "2 dead (−∞)" in written(figure)
    assert "1 unknown" in written(figure)
    bottom, top = figure.axes[0].get_ylim()
    assert -2 < bottom < -1
    assert top > 0.12


def test_few_very_negative_exponents_take_less_than_half_of_the_axis() -> None:
    axes = spectrum_now(history(measurement(0, [0.1, -0.1, -1.0, -50.0]))).axes[0]
    height = axes.transScale + axes.transLimits
    assert height.transform((0, -1.0))[1] < 0.5  # on a linear axis 0.95


def test_partial_spectrum_says_of_how_many() -> None:
    assert "2 of 64" in spectrum_now(history(measurement(0, [0.1, -1.0], dimension=64))).axes[0].get_xlabel()
    assert "of" not in spectrum_now(history(measurement(0, [0.1, -1.0], dimension=2))).axes[0].get_xlabel()


# ---------------------------------------------------------------- the prediction


def test_prediction_shows_what_was_said_and_what_was_reached() -> None:
    early = measurement(0, [-0.1], said=SAID)
    late = measurement(9, [-0.1], said={**SAID, "performance": 0.65}, reached=0.3)
    figure = prediction_over_training(history(early, late))
    assert drawn(figure)
    shown = lines(figure) | lines(figure, 1)
    np.testing.assert_allclose(shown["predicted"], [0.6, 0.65])
    np.testing.assert_allclose(shown["reached so far"], [NAN, 0.3])
    np.testing.assert_allclose(shown["without the spectrum"], [0.5, 0.5])
    np.testing.assert_allclose(shown["probability of failure"], [0.2, 0.2])
    np.testing.assert_allclose(shown["familiarity"], [0.9, 0.9])
    band = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (0.4, 0.7)
    assert "unfamiliar" not in written(figure)


def test_unfamiliar_stretches_are_greyed_out_from_midway_to_midway() -> None:
    familiarities = [0.9, 0.1, 0.29, 0.3]
    figure = prediction_over_training(
        history(*(measurement(10 * i, [0.1], said={**SAID, "familiarity": f}) for i, f in enumerate(familiarities)))
    )
    drawn(figure)
    spans = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in figure.axes[0].patches]
    assert spans == [(5, 25)]
    assert written(figure).count("unfamiliar: a guess") == 1


def test_performance_in_another_unit_has_an_axis_of_its_own() -> None:
    said = {**SAID, "performance": -40.0, "performance_low": -90.0, "performance_high": -10.0, "baseline": -60.0}
    bottom, top = prediction_over_training(history(measurement(0, [0.1], said=said))).axes[0].get_ylim()
    assert bottom < -90
    assert top < 10


# ---------------------------------------------------------------- the latent map


def test_path_lies_in_the_space_of_the_map(scorer: AeLLEScorer, bank: LatentMap) -> None:
    """A network of the bank, scored as in a fit, lands on its own point: the first, and the last after training."""
    spectra, skill = known_networks()
    for moment, number, point in ((0, 0, 0), (1, -1, -1)):
        exponents = exponents_of(spectra[moment, number, :-1])
        code = scorer.score(exponents, architecture="lstm", hidden_size=32, updates=0).latent
        # Its mean exponent is that of the network, the one of a list of exponents that of the list.
        torch.testing.assert_close(bank.place(code), bank.points[point], rtol=0.05, atol=0.05)
        assert bank.skill[point] == skill[number]
    rows = Rows(spectra[0, :1], Rows.unknown(1).context)
    code = scorer.predict(rows).latent[0]
    torch.testing.assert_close(bank.place(code), bank.points[0], rtol=1e-4, atol=1e-4)


def test_map_is_of_principal_directions(bank: LatentMap) -> None:
    """Uncorrelated coordinates, the first of the larger spread, each of the spread that the directions explain."""
    assert bank.points.shape == (80, 2)
    assert bank.skill.shape == (80,)
    torch.testing.assert_close(bank.projection.T @ bank.projection, torch.eye(2, dtype=torch.float64))
    covariance = bank.points.T.cov()
    assert abs(covariance[0, 1]) < 1e-6 * covariance[0, 0]
    assert covariance[0, 0] > covariance[1, 1]


def test_map_is_reproducible_and_draws_nothing_random(scorer: AeLLEScorer, bank: LatentMap) -> None:
    state = torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()
    again = LatentMap.of_bank(scorer, networks=40)
    drawn(latent_map(history(measurement(0, [0.1], latent=bank.centre.float())), again))
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()
    assert torch.equal(again.points, bank.points)


def test_map_is_the_same_in_a_process_of_float64(scorer: AeLLEScorer, bank: LatentMap) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        again = LatentMap.of_bank(scorer, networks=40)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(again.points, bank.points) and again.skill.dtype == torch.float32


def test_latent_map_shows_the_path_and_how_familiar_it_is(bank: LatentMap) -> None:
    codes = [bank.centre.float(), bank.centre.float() + bank.projection[:, 0].float()]
    made = history(*(measurement(7 * i, [0.1], latent=code, said=SAID) for i, code in enumerate(codes)))
    figure = latent_map(made, bank)
    assert drawn(figure)
    axes = figure.axes[0]
    np.testing.assert_allclose(np.stack(axes.lines[0].get_data(), 1), [[0, 0], [1, 0]], atol=1e-5)
    np.testing.assert_allclose(axes.collections[0].get_array(), bank.skill)
    assert axes.get_title() == "update 0 to 7; familiarity now 0.90"
    assert {text.get_text() for text in axes.texts} == {"start", "now"}
    strange = history(measurement(0, [0.1], latent=codes[0], said={**SAID, "familiarity": 0.05}))
    assert "its place is a guess" in latent_map(strange, bank).axes[0].get_title()


def test_codes_of_another_scorer_are_left_out(bank: LatentMap) -> None:
    made = history(measurement(0, [0.1], latent=torch.zeros(3)))
    with pytest.raises(ValueError, match="codes of 8 values"):
        latent_map(made, bank)
    assert "latent" not in figures_of(made, bank)


@pytest.mark.parametrize("size", [2, 5])
def test_scorer_with_codes_of_another_size_has_a_map(scorer: AeLLEScorer, size: int) -> None:
    code = LatentMap.of_bank(_scorer_with_codes_of(scorer, size), networks=10)
    assert code.points.shape == (20, 2)
    assert code.centre.shape == (size,)


def test_impossible_maps_are_refused(scorer: AeLLEScorer) -> None:
    with pytest.raises(ValueError, match="at least 2 values"):
        LatentMap.of_bank(_scorer_with_codes_of(scorer, 1), networks=10)
    with pytest.raises(ValueError, match="networks must be at least 1; got 0"):
        LatentMap.of_bank(scorer, networks=0)


def _scorer_with_codes_of(scorer: AeLLEScorer, size: int) -> AeLLEScorer:
    """The general one with an autoencoder of another size; only its encoder matters here."""
    from dataclasses import replace

    from lightning_lyapunov.aelle.autoencoder import AeLLE

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        heads = replace(scorer.heads, models=[AeLLE(size).eval()])
    calibration = scorer.intervals, scorer.familiarity, scorer.worth, scorer.average, scorer.card
    return AeLLEScorer(heads, *calibration)


# ---------------------------------------------------------------- layers


def test_layers_are_named_by_what_becomes_of_them() -> None:
    known = {"up": (0.5, 0.02), "down": (-0.5, 0.02), "unsure": (0.01, 0.04), "gone": (-INF, NAN), "later": (NAN, NAN)}
    layers = {name: layer(largest, error=error) for name, (largest, error) in known.items()}
    figure = layers_over_training(history(measurement(0, [0.5], layers=layers)))
    assert drawn(figure)
    said = {text.get_text().split("  ")[0]: text for text in figure.axes[0].texts}
    assert said["up"].get_text() == "up  +0.50 grows"
    assert said["down"].get_text() == "down  −0.50 fades"
    assert said["unsure"].get_text() == "unsure  +0.01 ± 0.04"
    assert said["gone"].get_text() == "gone  dead"
    assert said["later"].get_text() == "later  not measured"
    assert len({said[name].get_color() for name in ("up", "down", "unsure")}) == 3


@pytest.mark.parametrize("count", [2, 8, 40])
def test_names_of_layers_do_not_overlap_and_are_not_cut(count: int) -> None:
    """Also where all curves end at one place, and where the names are long."""
    names = [f"encoder.blocks.{i}.recurrent.module.layer" for i in range(count)]
    layers = {name: layer(-0.2 + 1e-4 * i) for i, name in enumerate(names)}
    figure = layers_over_training(history(*(measurement(i, [0.5], layers=layers) for i in (0, 9))))
    drawn(figure)
    boxes = sorted((Text.get_window_extent(text) for text in figure.axes[0].texts), key=lambda box: box.y0)
    assert len(boxes) == min(count, 8)
    assert all(lower.y1 <= upper.y0 for lower, upper in pairwise(boxes))
    assert all(box.x1 <= figure.bbox.x1 and box.y0 >= 0 and box.y1 <= figure.bbox.y1 for box in boxes)
    told = {text.get_text() for text in figure.axes[0].texts}
    assert len(told) == len(boxes)
    assert any(f"…{count - 1}…" in text for text in told)  # the highest is among them


# ---------------------------------------------------------------- all of them


LAYERS = {"a": layer(0.3), "b": layer(-INF, error=NAN)}
ODD = {
    "one measurement": [measurement(0, [0.1, -1.0], said=SAID, layers=LAYERS, latent=torch.zeros(8))],
    "one exponent": [measurement(0, [0.1], said=SAID, layers={"a": layer(-0.2)}, latent=torch.zeros(8))],
    "two at one step": [measurement(5, [v, -1.0], said=SAID, layers=LAYERS, latent=torch.ones(8)) for v in (0.1, -0.1)],
    "all dead": [measurement(s, [-INF, -INF], said=SAID, layers=LAYERS, latent=torch.zeros(8)) for s in (0, 4)],
    "all unknown": [measurement(s, [NAN], said=SAID, layers={"a": layer(NAN)}, latent=torch.zeros(8)) for s in (0, 4)],
    "K changes": [
        measurement(0, [0.1, -1.0, -3.0], layers={"a": layer(0.1)}, said=SAID, latent=torch.zeros(8)),
        measurement(
            3, [0.2], layers={"b": layer(0.1, error=NAN)}, said={"performance": 0.3}, latent=torch.full((8,), NAN)
        ),
        measurement(9, [0.1, NAN], stderr=torch.tensor([NAN, 0.1]), dimension=40, latent=torch.ones(8)),
    ],
    "an old checkpoint": [
        measurement(s, [0.1, -1.0], stderr=None, layers=LAYERS, said=SAID, latent=torch.ones(8)) for s in (0, 4)
    ],
}


@pytest.mark.parametrize("name", ODD)
def test_odd_histories_are_drawn(name: str, bank: LatentMap) -> None:
    figures = figures_of(history(*ODD[name]), bank)
    assert list(figures) == ["overview", "spectrum", "training", "prediction", "latent", "layers"]
    for figure in figures.values():
        assert drawn(figure).startswith(b"\x89PNG")


def test_only_figures_with_data_are_made(bank: LatentMap) -> None:
    bare = history(measurement(0, [0.1, -1.0]))
    assert list(figures_of(bare, bank)) == ["overview", "spectrum", "training"]
    assert list(figures_of(history(measurement(0, [0.1], latent=torch.zeros(8))))) == [
        "overview",
        "spectrum",
        "training",
    ]
    assert figures_of(History(), bank) == {}


def test_figures_of_another_prefix_are_found_by_the_same_names() -> None:
    made = history(measurement(0, [0.1], said=SAID), prefix="mine")
    np.testing.assert_allclose(lines(figures_of(made)["prediction"])["predicted"], [0.6])


def test_a_long_run_of_a_large_network_makes_small_pictures(bank: LatentMap) -> None:
    """256 measurements, more than a history keeps of 512 exponents each; under 150 kB each."""
    generator = torch.Generator().manual_seed(0)
    made = History()
    made._measurements = [
        measurement(
            100 * i,
            torch.linspace(0.2, -9.0, 512).tolist(),
            said={**SAID, "familiarity": 0.5 + 0.5 * math.sin(i / 9)},
            layers={f"block.{j}": layer(0.1 * (j - 6) * i / 256) for j in range(12)},
            trusted=torch.arange(512) < 300,
            latent=torch.randn(8, generator=generator) * 0.05 * i,
            reached=i / 256,
        )
        for i in range(256)
    ]
    sizes = {name: len(drawn(figure)) for name, figure in figures_of(made, bank).items()}
    assert len(sizes) == 6
    assert max(sizes.values()) < 150_000, sizes


@pytest.mark.parametrize("draw", [spectrum_now, spectrum_over_training, prediction_over_training, layers_over_training])
def test_nothing_measured_is_refused(draw: Any) -> None:
    with pytest.raises(ValueError, match="at least one measurement; got none"):
        draw(History())


@pytest.mark.parametrize("draw", [prediction_over_training, layers_over_training])
def test_figures_without_their_data_are_refused(draw: Any) -> None:
    with pytest.raises(ValueError, match=r"history holds no (prediction|layers)"):
        draw(history(measurement(0, [0.1])))


def squares(figure: Figure, panel: int = 0) -> list[tuple[str, list[float], list[float]]]:
    """Label, updates and values of the hollow squares."""
    found = [one for one in figure.axes[panel].lines if one.get_marker() == "s"]
    assert all(one.get_markerfacecolor() == "white" for one in found)
    return [(one.get_label(), one.get_xdata().tolist(), one.get_ydata().tolist()) for one in found]


def test_what_other_data_drove_is_hollow_in_every_series_over_updates() -> None:
    """The point before training, of a run without a sanity check; in the spectrum its line is named."""
    layers = {"below": layer(0.5), "above": layer(-0.5)}
    run = [
        measurement(10 * i, [0.5, -1.0], source="validation" if i else "training", layers=layers, said=SAID)
        for i in range(3)
    ]
    figures = figures_of(history(*run))
    assert all(map(drawn, figures.values()))
    known = "driven by training data"
    assert squares(figures["training"]) == [(known, [0], [0.5])]
    assert squares(figures["prediction"]) == [(known, [0], [0.6])] and known in written(figures["prediction"])
    assert [values for _, _, values in squares(figures["prediction"], 1)] == [[0.2], [0.9]]
    assert [(x, y) for _, x, y in squares(figures["layers"])] == [([0], [0.5]), ([0], [-0.5])]
    assert written(figures["layers"]).count(known) == 1
    for name in ("training", "prediction", "layers"):
        first = [one.get_ydata()[0] for one in figures[name].axes[0].lines if len(one.get_ydata()) == 3]
        assert first and sum(math.isnan(value) for value in first) >= 1
    assert np.isnan(lines(figures["prediction"])["predicted"]).tolist() == [True, False, False]
    assert "update 0\n(training data)" in lines(figures["spectrum"])


def test_exponents_of_layers_are_per_step_of_each() -> None:
    figure = layers_over_training(history(measurement(0, [0.1], layers={"a": layer(0.1), "b": layer(-0.1)})))
    assert figure.axes[0].get_ylabel().startswith("nats per step of the layer")


def test_figures_are_of_the_last_of_several_fits() -> None:
    made = history(*(measurement(10 * i, [-0.1]) for i in range(9)))
    made.begin()
    for step in (0, 4):
        made.append(measurement(step, [-0.1 * step, -1.0]))
    alone = history(*made)
    assert {name: drawn(f) for name, f in figures_of(made).items()} == {
        name: drawn(f) for name, f in figures_of(alone).items()
    }


def test_missing_matplotlib_is_told_with_its_remedy() -> None:
    code = "import sys; sys.modules['matplotlib'] = None; import lightning_lyapunov.figures"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 1
    assert "needs matplotlib: pip install 'lightning-lyapunov[plot]'" in ran.stderr.splitlines()[-1]
