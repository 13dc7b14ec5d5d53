"""Pictures can be read: at 300 pixels, on a phone, in the dark, by the colour-blind; and say what the verdict says.

Oracles: sizes of words in pixels, contrasts by WCAG, deuteranopia by the matrix of Machado et al. (2009), measurements
put in.
"""

import math
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from made import history, layer, measured
from made_depth import chain
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from lightning_lyapunov.figures import NothingToShow, figures_of, growth_along, overview
from lightning_lyapunov.figures.depth import figures_of_depth
from lightning_lyapunov.figures.style import FADES, GROWS, QUIET, VERDICTS
from lightning_lyapunov.reading.along import where_lost
from lightning_lyapunov.reading.history import History, Measurement
from lightning_lyapunov.reading.verdict import SIGNS, Verdict

pytestmark = pytest.mark.filterwarnings("error")
SCORES = {"performance": 0.6, "performance_low": 0.4, "performance_high": 0.7, "familiarity": 0.9}
LONG = Verdict(
    "act", "Gradients explode: " + "of 91 networks told this, none learnt their task. " * 6, "Do this. " * 40
)
RATES = [-0.5, -2.0, -0.25, 0.1]


def along(rates: list[float], spread: float = 0.2) -> torch.Tensor:
    """Blocks of two steps."""
    starts = [2.0 * i for i in range(len(rates))]
    whole = [[0.0], [2.0 * len(rates)], [sum(rates) / len(rates)], [spread]]
    columns = [starts, [start + 2 for start in starts], rates, [spread] * len(rates)]
    return torch.tensor([column + last for column, last in zip(columns, whole, strict=True)])


def everything(count: int = 3, **options: Any) -> History:
    """A run that holds the data for every figure."""
    layers = {f"a.long.name.of.a.module.rnn{i}": layer(0.1 * i - 0.2) for i in range(3)}
    known: dict[str, Any] = {"scores": SCORES, "layers": layers, "sequences": 9, "along": along(RATES), "reached": 0.4}
    run = (
        measured(0.05 * i, step=1000 * i, metrics={"verdict": float(i % 3)}, **known | options) for i in range(count)
    )
    return history(*run)


def all_figures() -> dict[str, Figure]:
    depth = [chain([0.1, -INF, 0.3, 0.2], [-1.0, -INF, -4.0, -4.0], step=100 * i) for i in range(3)]
    return figures_of(everything()) | figures_of_depth(depth)


INF = math.inf


def texts(figure: Figure) -> list[Text]:
    """All that is written in it; matplotlib has more numbers at hand than those in sight."""
    figure.canvas.draw()
    hidden = {
        label
        for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis))
        for tick in axis.get_major_ticks()
        for label in (tick.label1, tick.label2)
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }
    shown = [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]
    return [text for text in shown if text not in hidden]


def line(figure: Figure, panel: int, label: str) -> np.ndarray:
    (one,) = [one for one in figure.axes[panel].lines if one.get_label() == label]
    return np.asarray(one.get_ydata())


def luminance(colour: Any) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def contrast(one: Any, other: Any) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def deuteranope(colour: Any) -> np.ndarray:
    """What somebody without green cones sees."""
    matrix = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    seen = np.clip(np.array(matrix) @ linear, 0, 1)
    return np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)


# ---------------------------------------------------------------- can it be read


def test_words_are_nine_pixels_on_a_phone_and_the_overview_ten_of_300() -> None:
    figures = all_figures()
    assert figures.keys() == {"overview", "along", "spectrum", "training", "prediction", "layers", "depth", "blocks"}
    for name, figure in figures.items():
        width, least = (300, 10.0) if name == "overview" else (340, 9.0)
        for text in texts(figure):
            pixels = text.get_fontsize() / 72 / figure.get_size_inches()[0] * width
            assert pixels >= least, (name, text.get_text(), pixels)


def test_no_word_is_cut_off_and_none_of_the_overview_lies_on_another() -> None:
    figures = all_figures() | {"long": overview(everything(along_of="a.long.name"), LONG)}
    for name, figure in figures.items():
        boxes = [(text.get_text(), text.get_window_extent()) for text in texts(figure)]
        for said, box in boxes:
            assert box.x0 > -1 and box.x1 < figure.bbox.width + 1 and box.y0 > -1 and box.y1 < figure.bbox.height + 1, (
                name,
                said,
            )
        if name in ("overview", "long"):
            for (one, a), (other, b) in combinations(boxes, 2):
                across = min(a.x1, b.x1) - max(a.x0, b.x0)
                assert across < 2 or min(a.y1, b.y1) - max(a.y0, b.y0) < 3, (name, one, other)


def test_colours_stand_out_in_light_and_dark_and_for_those_who_see_no_green() -> None:
    named = [*VERDICTS.values(), GROWS, FADES, QUIET]
    for colour in named:
        inverted = 1 - np.array(to_rgb(colour))
        assert contrast(colour, "white") > 3.5 and contrast(inverted, "black") > 2.5
        assert contrast(deuteranope(colour), "white") > 3.5
    apart = np.abs(deuteranope(GROWS) - deuteranope(FADES)).max()
    assert apart > 0.3
    assert len(set(SIGNS.values())) == 3  # which of the verdicts it is, no one has to tell by its colour


# ---------------------------------------------------------------- does it say what the verdict says


@pytest.mark.parametrize("word", VERDICTS)
def test_the_title_of_every_figure_is_the_verdict_in_its_colour(word: Any) -> None:
    said = Verdict(word, "")
    run = everything()
    made = {"overview": overview(run, said), "along": growth_along(run, said)}
    for figure in made.values():
        title = next(text for text in figure.texts if said.sign in text.get_text())
        assert title.get_text().startswith(f"{said.sign} {word}") and to_hex(title.get_color()) == VERDICTS[word]
    for figure in all_figures().values():
        assert any(text.get_text().split()[0] in SIGNS.values() for text in figure.texts)


def test_a_healthy_run_that_is_chaotic_is_not_called_so_in_any_picture() -> None:
    """As a run of 94 % accuracy whose gradients grow a little: the text says mild."""
    run = history(*(measured(0.3, step=10 * i, gain=1.0, metrics={"verdict": 0.0}, skill=0.9) for i in range(4)))
    for figure in figures_of(run).values():
        told = " ".join(text.get_text() for text in texts(figure))
        assert "✓ healthy" in told and not any(word in told for word in ("chaotic", "act", "watch"))


# ---------------------------------------------------------------- what it shows


def test_the_overview_comes_first_and_says_what_to_do() -> None:
    figures = figures_of(everything())
    assert next(iter(figures)) == "overview"
    told = [
        text.get_text() for text in texts(overview(everything(), Verdict("watch", "It explodes.", "Clip gradients.")))
    ]
    assert {"⚠ watch", "It explodes.", "→ Clip gradients.", "update 2,000"} <= set(told)


def test_the_overview_shows_the_gain_in_powers_of_ten_with_its_bar_the_skill_and_the_push() -> None:
    run = history(*(measured(0.0, gain=g, gain_error=0.5, step=10 * i, scores=SCORES, along=along(RATES), reached=0.3)
                    for i, g in enumerate([-2.0, 1.0, math.inf])))  # fmt: skip
    figure = overview(run)
    figure.canvas.draw()
    top, skill, push = figure.axes
    np.testing.assert_allclose(top.containers[0].lines[0].get_ydata(), np.array([-2.0, 1.0, math.nan]) / math.log(10))
    band = top.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((-2.5 / math.log(10), 1.5 / math.log(10)))
    assert top.get_xlim() == skill.get_xlim() == (0, 20) and skill.get_ylim() == (0, 1)
    assert any(np.array_equal(one.get_ydata(), [0.6] * 3) for one in skill.lines)
    values = [patch.get_data().values for patch in push.patches if hasattr(patch, "get_data")]
    assert any(np.allclose(one, RATES) for one in values)


def test_a_stretched_axis_is_announced() -> None:
    for gain, is_stretched in ((-10.0, False), (-200.0, True)):
        figure = overview(history(*(measured(-0.1, gain=gain, step=i) for i in range(2))))
        assert any("stretched" in text.get_text() for text in texts(figure)) == is_stretched
        assert (figure.axes[0].get_yscale() == "symlog") == is_stretched
        low, high = figure.axes[0].get_ylim()
        assert low < gain / math.log(10) < high
    for name in ("spectrum", "layers"):
        (axes,) = figures_of(everything())[name].axes
        assert axes.get_yscale() == "symlog" and "stretched" in axes.get_ylabel()


@pytest.mark.parametrize("gain", [-math.inf, math.nan])
def test_the_overview_of_the_dead_and_of_older_versions(gain: float) -> None:
    for settled in (True, None):
        run = history(*(measured(-0.1 * i, gain=gain, step=i, settled=settled, metrics={}) for i in range(2)))
        figure = overview(run)
        assert len(figure.axes) == 1 and texts(figure)
    with pytest.raises(NothingToShow):
        overview(history())


def test_growth_along_is_what_was_measured_its_spread_and_what_is_left() -> None:
    run = everything()
    figure = growth_along(run)
    figure.canvas.draw()
    above, below = figure.axes
    drawn = {patch.get_label(): patch.get_data() for patch in above.patches if hasattr(patch, "get_data")}
    now = drawn["mean now, update 2,000"]
    np.testing.assert_allclose(now.values, RATES, rtol=1e-6)
    np.testing.assert_allclose(now.edges, [0, 2, 4, 6, 8])
    band = drawn["spread between sequences"]
    np.testing.assert_allclose(band.values, np.array(RATES) + 0.2, rtol=1e-6)
    np.testing.assert_allclose(band.baseline, np.array(RATES) - 0.2, rtol=1e-6)
    red, blue = (
        next(p for p in above.patches if p.get_fill() and to_hex(p.get_facecolor()) == colour)
        for colour in (GROWS, FADES)
    )
    np.testing.assert_allclose(red.get_data().values, [0, 0, 0, 0.1], rtol=1e-6)
    np.testing.assert_allclose(blue.get_data().values, [-0.5, -2.0, -0.25, 0], rtol=1e-6)
    left = below.lines[1].get_ydata()
    np.testing.assert_allclose(left, np.cumsum([0, *(2 * rate for rate in RATES)]) / math.log(10), rtol=1e-5)
    assert above.get_title(loc="left").replace("\n", " ") == where_lost(run[-1])
    assert [(p.get_x(), p.get_width()) for p in above.patches if not hasattr(p, "get_data")] == [(2, 2)]


def test_where_nothing_is_left_is_hatched_and_older_runs_have_no_such_picture() -> None:
    figure = growth_along(everything(along=along([-0.5, -INF, -INF, -INF])))
    figure.canvas.draw()
    assert [(p.get_x(), p.get_width()) for p in figure.axes[0].patches if not hasattr(p, "get_data")] == [(2, 6)]
    old = history(*(measured(0.1, step=i) for i in range(2)))
    with pytest.raises(NothingToShow, match="growth along the sequence"):
        growth_along(old)
    assert "along" not in figures_of(old)


def test_the_first_of_the_same_data_is_drawn_beside() -> None:
    first, second, third = everything(source="validation")
    run = history(replace(first, source="training"), replace(second, along=along([0.1] * 4)), third)
    labels = growth_along(run).axes[0].get_legend_handles_labels()[1]
    assert "update 1,000" in labels and "update 0" not in labels
    assert isinstance(run[0], Measurement)
