"""Objects that draw themselves: the curve is the exponents, and without Matplotlib the message says what to install."""

import math
import sys

import numpy as np
import pytest
import torch
from made import course, spectrum
from made_depth import chain
from matplotlib.figure import Figure
from torch import nn

from lightning_lyapunov import depth_spectrum
from lightning_lyapunov.reading.depth_history import DepthMeasurement
from lightning_lyapunov.reading.history import History


def test_a_spectrum_draws_its_exponents_and_no_update() -> None:
    figure = spectrum(0.1, -0.2, -math.inf).plot()
    assert isinstance(figure, Figure)
    curves = [line.get_ydata() for axes in figure.axes for line in axes.get_lines()]
    assert any(len(curve) == 3 and np.allclose(curve[:2], [0.1, -0.2]) for curve in curves)
    told = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert "now" in told and not any("update" in text for text in told)


def test_a_chain_and_runs_draw_themselves() -> None:
    blocks = (nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3))
    deep = depth_spectrum(nn.Sequential(*blocks), torch.ones(2, 4))
    across: History[DepthMeasurement] = History("depth", DepthMeasurement)
    for step in (0, 100):
        across.append(chain([0.1, -0.2, 0.3], step=step))
    for drawn in (deep.plot(), course(-0.1, 0.2).plot(), across.plot()):
        assert isinstance(drawn, Figure) and drawn.axes


def test_nothing_measured_is_nothing_to_show() -> None:
    with pytest.raises(ValueError, match="at least one measurement"):
        History().plot()


def test_without_matplotlib_its_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("matplotlib", "lightning_lyapunov.figures"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for one in (spectrum(0.1), course(0.1)):
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-lyapunov\[plot\]'"):
            one.plot()
