"""Pictures are judged by what they hold: colours, lines and words that follow from the exponents put in."""

import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from lightning_lyapunov.figures import spectrum_over_training
from lightning_lyapunov.figures.style import FEW, VERDICTS
from lightning_lyapunov.reading.history import History, Measurement
from lightning_lyapunov.reading.verdict import Verdict, verdict


def history(
    *spectra: Sequence[float], steps: Sequence[int] | None = None, error: float = 0.02, settled: Sequence[bool] = ()
) -> History:
    """A history of these spectra, ten updates apart, which have settled unless it is said that they have not."""
    made = History()
    for i, spectrum in enumerate(spectra):
        step = 10 * i if steps is None else steps[i]
        errors = torch.full((len(spectrum),), error)
        marks = torch.full((len(spectrum),), settled[i] if settled else True)
        made.append(Measurement(step, i, torch.tensor(spectrum), {}, error=errors, settled=marks))
    return made


def drawn(figure: Figure) -> bytes:
    """The picture as PNG: drawing fails where building does not."""
    figure.savefig(buffer := BytesIO(), format="png")
    return buffer.getvalue()


def shown_colours(figure: Figure) -> np.ma.MaskedArray:
    """Values of the heat map ``(K, measurements)``."""
    return figure.axes[1].collections[0].get_array()


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def test_panels_hold_the_spectra_and_the_largest_exponent() -> None:
    figure = spectrum_over_training(history([-0.5, -1.0], [-0.2, -3.0], steps=[0, 47]))
    assert drawn(figure).startswith(b"\x89PNG")
    np.testing.assert_allclose(shown_colours(figure), [[-0.5, -0.2], [-1.0, -3.0]], rtol=1e-6)
    steps, largest = figure.axes[0].containers[0].lines[0].get_data()
    np.testing.assert_allclose(steps, [0, 47])
    np.testing.assert_allclose(largest, [-0.5, -0.2], rtol=1e-6)
    assert figure.axes[0].get_xlim() == (0, 47)


def test_zero_is_the_middle_of_the_colours() -> None:
    figure = spectrum_over_training(history([0.3, -9.0], [0.1, -2.0]))
    drawn(figure)
    mesh = figure.axes[1].collections[0]
    assert mesh.norm(0.0) == 0.5
    red, _, blue, _ = mesh.cmap(mesh.norm(0.3))
    assert red > blue
    red, _, blue, _ = mesh.cmap(mesh.norm(-9.0))
    assert blue > red


def test_band_is_the_error_either_way() -> None:
    figure = spectrum_over_training(history([0.5], [0.5], error=0.2))
    drawn(figure)
    heights = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert heights.min() == pytest.approx(0.3)
    assert heights.max() == pytest.approx(0.7)


def judged(*numbers: float) -> History:
    """A history whose verdicts were these numbers; the network is chaotic at every measurement."""
    again = History()
    for one, number in zip(history(*[[0.3]] * len(numbers)), numbers, strict=True):
        again.append(replace(one, metrics={"verdict": number}))
    return again


def test_marks_are_the_verdicts_of_the_time_and_the_last_is_that_of_the_title() -> None:
    """Chaos or not: what was healthy stands on white, and nothing but a verdict marks."""
    figure = spectrum_over_training(judged(2, 2, 0, math.nan, 1), Verdict("healthy", ""))
    drawn(figure)
    spans = [(p.get_x(), p.get_x() + p.get_width(), to_hex(p.get_facecolor())) for p in figure.axes[0].patches]
    assert spans == [(0, 15, VERDICTS["act"])]
    edge = {tuple(line.get_xdata()): line.get_color() for line in figure.axes[0].lines if line.get_linewidth() == 4}
    assert edge == {(0, 15): VERDICTS["act"], (15, 25): VERDICTS["healthy"], (35, 40): VERDICTS["healthy"]}
    assert words(figure) == ["✖ act", "✓ healthy", "✓"]
    assert figure.texts[0].get_text() == "✓ healthy · Lyapunov spectrum in training"
    assert "chaotic" not in " ".join(text.get_text() for text in figure.findobj(Text))


def test_what_has_not_settled_is_hollow() -> None:
    figure = spectrum_over_training(history([0.1], [0.2], [0.3], settled=[False, True, False]))
    drawn(figure)
    (hollow,) = (line for line in figure.axes[0].lines if line.get_label() == "not settled")
    assert hollow.get_xdata().tolist() == [0, 20] and hollow.get_markerfacecolor() == "white"
    assert figure.axes[0].get_legend() is not None
    assert spectrum_over_training(history([0.1], [0.2])).axes[0].get_legend() is None


def driven(*sources: str, **options: Any) -> History:
    """A history that these drove; exponents −.1, −.2, ..."""
    made = history(*([-0.1 * (i + 1), -1.0] for i in range(len(sources))), **options)
    again = History()
    for one, source in zip(made, sources, strict=True):
        again.append(replace(one, source=source))
    return again


@pytest.mark.parametrize("count", [3, FEW + 5])
def test_the_point_that_training_data_drove_is_hollow_and_off_the_line(count: int) -> None:
    """However many there are; its column of the heat map is hatched."""
    figure = spectrum_over_training(driven("training", *["validation"] * (count - 1)))
    drawn(figure)
    line = figure.axes[0].containers[0].lines[0].get_ydata()
    assert np.isnan(line).tolist() == [True] + [False] * (count - 1)
    (hollow,) = (one for one in figure.axes[0].lines if one.get_label() == "driven by training data")
    assert (hollow.get_xdata().tolist(), hollow.get_marker(), hollow.get_markerfacecolor()) == ([0], "s", "white")
    assert hollow.get_ydata() == pytest.approx([-0.1])
    assert "driven by training data" in [t.get_text() for t in figure.axes[0].get_legend().get_texts()]
    (hatched,) = figure.axes[1].patches
    assert (hatched.get_x(), hatched.get_width()) == (0, 5)


def test_two_sources_in_turn_are_no_zigzag_and_one_source_is_as_it_was() -> None:
    figure = spectrum_over_training(driven("validation", "training", "", "training", settled=[False] * 4))
    drawn(figure)
    hollow = {one.get_label(): one.get_xdata().tolist() for one in figure.axes[0].lines if one.get_marker() in "so"}
    assert hollow["driven by validation data"] == [0] and hollow["driven by other data"] == [20]
    assert hollow["not settled"] == [10, 30]
    alike = spectrum_over_training(driven("training", "training"))
    assert drawn(alike) == drawn(spectrum_over_training(driven("", ""))) and not alike.axes[1].patches


@pytest.mark.parametrize("value", [0.4, -0.4, -math.inf, math.nan])
def test_one_measurement(value: float) -> None:
    figure = spectrum_over_training(history([value, -1.0]))
    assert drawn(figure)
    said = verdict(history([value, -1.0]))
    assert said is not None and words(figure) == [f"{said.sign} {said.word}"]


def test_two_measurements_at_one_step() -> None:
    assert drawn(spectrum_over_training(history([0.1, -1.0], [-0.1, -1.0], steps=[5, 5])))


def test_dead_directions_are_as_blue_as_it_gets() -> None:
    figure = spectrum_over_training(history([-0.5, -2.0, -math.inf], [-0.5, -math.inf, -math.inf]))
    drawn(figure)
    mesh, colours = figure.axes[1].collections[0], shown_colours(figure)
    assert not np.ma.is_masked(colours)
    assert colours[2, 0] == mesh.norm.vmin


def test_all_dead_or_all_unknown() -> None:
    for value in (-math.inf, math.nan):
        assert drawn(spectrum_over_training(history([value, value], [value, value])))


def test_unknown_exponents_are_left_out() -> None:
    figure = spectrum_over_training(history([0.1, -1.0], [math.nan, math.nan], [0.1, -1.0]))
    drawn(figure)
    assert np.ma.getmaskarray(shown_colours(figure)).tolist() == [[False, True, False]] * 2


def test_number_of_exponents_may_change() -> None:
    figure = spectrum_over_training(history([0.1, -1.0, -2.0], [0.1]))
    drawn(figure)
    assert np.ma.getmaskarray(shown_colours(figure)).tolist() == [[False, False], [False, True], [False, True]]


def test_unknown_error_draws_the_line_alone() -> None:
    assert drawn(spectrum_over_training(history([0.1], [0.2], error=math.nan)))
    assert drawn(spectrum_over_training([Measurement(0, 0, torch.tensor([0.1]), {})]))


def test_nothing_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one measurement"):
        spectrum_over_training(History())


def test_pyplot_is_left_alone() -> None:
    code = "import sys, lightning_lyapunov.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
