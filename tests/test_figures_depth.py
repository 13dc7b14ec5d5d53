"""Pictures across depth are judged by what they hold: names, colours and marks follow from the figures put in."""

import math
from io import BytesIO
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
from made_depth import chain
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lightning_lyapunov.figures.depth import LABELS, LONGEST, blocks_now, depth_over_training, figures_of_depth
from lightning_lyapunov.figures.style import NothingToShow
from lightning_lyapunov.reading.depth_history import DepthMeasurement

INF, NAN = math.inf, math.nan
pytestmark = pytest.mark.filterwarnings("error")


def drawn(figure: Figure) -> bytes:
    """The picture as PNG: drawing fails where building does not."""
    figure.savefig(buffer := BytesIO(), format="png")
    return buffer.getvalue()


def run(count: int, depth: int = 4, **options: object) -> list[DepthMeasurement]:
    """Gains that rise with the block and the measurement, ten updates apart."""
    gains = [[0.1 * block + 0.01 * i for block in range(depth)] for i in range(count)]
    return [chain(row, step=10 * i, **options) for i, row in enumerate(gains)]  # type: ignore[arg-type]


def all_words(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


def names(figure: Figure) -> list[str]:
    """Of the blocks, from the top down."""
    (axes,) = [axes for axes in figure.axes if axes.get_ylabel().startswith("blocks")]
    return [label.get_text() for label in axes.get_yticklabels()]


def marks(figure: Figure) -> list[tuple[float, ...]]:
    """Left, top, right and bottom of what is marked as dead in the heat map, in updates and blocks."""
    patches = [patch for patch in figure.axes[1].patches if isinstance(patch, Rectangle)]
    return [(*p.get_xy(), p.get_x() + p.get_width(), p.get_y() + p.get_height()) for p in patches]


# ---------------------------------------------------------------- over training


def test_panels_hold_the_growth_of_the_chain_and_the_gains_of_its_blocks() -> None:
    figure = depth_over_training(run(3))
    assert drawn(figure).startswith(b"\x89PNG")
    above, below = figure.axes[:2]
    lines = {line.get_label(): line for line in above.lines}
    np.testing.assert_allclose(lines["at most, ln σ₁"].get_xdata(), [0, 10, 20])
    np.testing.assert_allclose(lines["at most, ln σ₁"].get_ydata(), [1.6, 1.64, 1.68], rtol=1e-6)
    np.testing.assert_allclose(lines["in a typical direction"].get_ydata(), [0.6, 0.64, 0.68], rtol=1e-6)
    heights = above.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((1.3, 1.98))
    mesh = below.collections[0]
    expected = [[0.1 * block + 0.01 * i for i in range(3)] for block in range(4)]
    np.testing.assert_allclose(mesh.get_array(), expected, atol=1e-6)
    assert mesh.norm(0.0) == 0.5 and below.get_ylim() == (4.5, 0.5)
    red, _, blue, _ = mesh.cmap(mesh.norm(0.3))
    assert red > blue
    assert names(figure) == ["layers.0", "layers.1", "layers.2", "layers.3"]
    assert {"now", "+0.02", "+0.12", "+0.22", "+0.32"} <= set(all_words(figure))


def test_the_thresholds_are_always_in_sight_with_what_they_mean() -> None:
    for total in (1.0, 30.0, -30.0):
        made = [chain([0.1] * 4, total=total, step=10 * i) for i in range(2)]
        figure = depth_over_training(made)
        drawn(figure)
        low, high = figure.axes[0].get_ylim()
        assert low < -5 and high > 10 and low < total < high
    told = all_words(depth_over_training(run(2)))
    assert "0 of 46 networks learnt" in told and "5 of 42 networks learnt" in told
    assert {"×1", "×400", "×22,000", "×1/150"} <= set(told)


def test_blocks_are_marked_where_and_as_long_as_they_are_dead() -> None:
    well, dead = [-1.0] * 4, [-1.0, -1.0, -INF, -1.0]
    made = [chain([0.1] * 4, changes, step=10 * i) for i, changes in enumerate([well, dead, dead, well, dead])]
    figure = depth_over_training(made)
    drawn(figure)
    assert marks(figure) == [(5, 2.5, 25, 3.5), (35, 2.5, 40, 3.5)]
    assert {"changes nothing of what passes", "dead"} <= set(all_words(figure))
    assert not marks(depth_over_training(run(3))) and not depth_over_training(run(3)).legends


def test_where_nothing_passes_that_is_black_and_off_the_line() -> None:
    cut = chain([0.1, -INF, 0.1, 0.1], total=-INF, gain=-INF, step=20)
    figure = depth_over_training([*run(2), cut])
    drawn(figure)
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert np.isnan(lines["at most, ln σ₁"].get_ydata()).tolist() == [False, False, True]
    assert lines["−∞: no gradient passes"].get_xdata().tolist() == [20]
    assert marks(figure) == [(15, 1.5, 20, 2.5)]
    assert {"ends here", "lets nothing pass"} <= set(all_words(figure))


def test_late_idle_blocks_are_named_so_now() -> None:
    changes = [-0.4] * 8 + [-3.0] * 4
    made = [chain([0.1] * 12, changes, step=step) for step in (90, 100)]
    figure = depth_over_training(made)
    drawn(figure)
    assert all_words(figure).count("+0.10 idle") == 4
    assert "idle" in all_words(blocks_now(made)) and "idle" not in all_words(blocks_now(made[:1]))


def test_of_changing_width_the_gain_is_per_unit_and_not_drawn_beside_what_is_not() -> None:
    figure = depth_over_training(run(2, depth=3, dimensions=[8, 16, 16, 4]))
    drawn(figure)
    assert [line.get_label() for line in figure.axes[0].lines if "typical" in str(line.get_label())] == []
    assert any("per unit" in text for text in all_words(figure))
    assert "typical" not in all_words(blocks_now(run(1, depth=3, dimensions=[8, 16, 16, 4])))


def test_what_is_of_other_data_is_a_hollow_square_and_other_blocks_are_left_out() -> None:
    first, second, third = run(3)
    first = chain([0.1] * 4, source="training")
    figure = depth_over_training([first, second, third])
    drawn(figure)
    (square,) = [line for line in figure.axes[0].lines if line.get_label() == "of training data"]
    assert square.get_xdata().tolist() == [0] and square.get_markerfacecolor() == "white"
    others = chain([0.1] * 7)
    assert depth_over_training([others, second, third]).axes[1].collections[0].get_array().shape == (4, 2)


# ---------------------------------------------------------------- now


def test_one_measurement_is_drawn_as_bars_with_their_errors() -> None:
    made = run(1, depth=3)
    figure = depth_over_training(made)
    assert drawn(figure).startswith(b"\x89PNG")
    (gains,) = [axes for axes in figure.axes if axes.get_xlabel() == "gain (nats)"]
    widths = [patch.get_width() for patch in gains.patches if isinstance(patch, Rectangle)]
    np.testing.assert_allclose(widths, [0.0, 0.1, 0.2], atol=1e-6)
    segments = gains.collections[0].get_segments()
    np.testing.assert_allclose([s[1][0] - s[0][0] for s in segments], [0.04] * 3, atol=1e-6)
    (changes,) = [axes for axes in figure.axes if axes.get_xlabel().startswith("what it changes")]
    np.testing.assert_allclose(changes.collections[-1].get_offsets()[:, 0], [100 / 3] * 3, rtol=1e-5)
    assert {"at most", "typical"} <= set(all_words(figure))
    assert figures_of_depth(made).keys() == {"depth"}


def test_a_dead_block_is_at_the_end_of_the_axis_and_said_to_be() -> None:
    figure = blocks_now([chain([0.1, 0.0, -INF, 0.1], [-1.0, -INF, NAN, -1.0], total=-INF)])
    drawn(figure)
    (changes,) = [axes for axes in figure.axes if axes.get_xlabel().startswith("what it changes")]
    places = changes.collections[-1].get_offsets()
    assert places[1, 0] == changes.get_xlim()[0] and np.ma.getmaskarray(places)[2, 0]
    assert {"dead", "lets nothing pass", "no gradient passes"} <= set(all_words(figure))


# ---------------------------------------------------------------- all sizes, all numbers


@pytest.mark.parametrize("count", [1, 2, 200])
@pytest.mark.parametrize("depth", [1, 26, 100])
def test_names_are_thinned_so_that_they_can_be_read(count: int, depth: int) -> None:
    """However many there are, no two of them overlap in the picture as it is drawn."""
    made = run(count, depth)
    if depth == 100:  # of which the dead one has its name
        made[-1].block_change[41] = -INF
    figure = depth_over_training(made)
    drawn(figure)
    assert names(figure)[0] == "layers.0" and len(names(figure)) <= LABELS
    (axes,) = [axes for axes in figure.axes if axes.get_ylabel().startswith("blocks")]
    boxes = sorted((label.get_window_extent().y0, label.get_window_extent().y1) for label in axes.get_yticklabels())
    assert all(upper[0] > lower[1] - 1.5 for lower, upper in pairwise(boxes))
    assert depth < 100 or "layers.41" in names(figure)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (["layers.0", "layers.1"], ["layers.0", "layers.1"]),
        (["model.encoder.layers.0.feed_forward", "model.encoder.layers.1.feed_forward"], ["…0…", "…1…"]),
        (["model.encoder.very.deep.blocks.0", "model.encoder.very.deep.blocks.1.mlp"], ["…0", "…1.mlp"]),
        (["model.encoder.a.quite.long.one", "top"], ["…a.quite.long.one", "top"]),
    ],
)
def test_long_names_keep_what_tells_them_apart(given: list[str], shown: list[str]) -> None:
    figure = blocks_now([chain([0.1] * 2, names=given)])
    assert names(figure) == shown and all(len(name) <= LONGEST for name in shown)


def test_names_are_no_formulas() -> None:
    made = chain([0.1] * 2, names=["model.encoder.very.deep.blocks.11.$mlp$", "$x^2$"])
    figure = blocks_now([made])
    drawn(figure)
    assert names(figure) == ["…p.blocks.11.$mlp$", "$x^2$"]


@pytest.mark.parametrize("value", [NAN, INF, -INF, 0.0])
@pytest.mark.parametrize("count", [1, 3])
def test_odd_numbers_are_drawn_too(value: float, count: int) -> None:
    made = [chain([value] * 3, [value] * 3, total=value, gain=value, step=10 * i) for i in range(count)]
    for figure in figures_of_depth(made).values():
        assert drawn(figure)


def test_two_measurements_at_one_update() -> None:
    assert drawn(depth_over_training([chain([0.1] * 3, step=5), chain([0.2] * 3, step=5)]))


def test_of_nothing_there_is_no_picture() -> None:
    assert figures_of_depth([]) == {}
    for draw in (depth_over_training, blocks_now):
        with pytest.raises(NothingToShow, match="at least one measurement"):
            draw([])
    assert figures_of_depth(run(2)).keys() == {"depth", "blocks"}
