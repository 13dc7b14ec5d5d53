"""The dashboard as a person sees it: TensorBoard on a run with the callback, in a real browser."""

import functools
import io
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import matplotlib.image
import numpy as np
import pytest
import torch
from fits import Regressor, loader, trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from lightning_lyapunov import LyapunovSpectrumCallback

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRAWN = ("along", "spectrum", "training", "prediction", "latent", "layers")
FIGURES = {"lyapunov/overview", *(f"lyapunov_figures/{name}" for name in DRAWN)}
RUN = "run/version_0"
EPOCHS = 3

pytestmark = pytest.mark.filterwarnings("ignore")
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to open the dashboard with")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a TensorBoard that serves a run of a stack of two layers, of which all there is was logged."""
    directory = tmp_path_factory.mktemp("board")
    torch.manual_seed(0)
    ours = LyapunovSpectrumCallback(k=None, max_overhead=None, metrics="all")
    fit = trainer(ours, logger=TensorBoardLogger(directory, name="run"), max_epochs=EPOCHS)
    fit.fit(Regressor(nn.LSTM(3, 12, 2, batch_first=True)), loader(), loader())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", directory, "--host", "127.0.0.1", "--port", port]
    with subprocess.Popen([str(c) for c in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_for_data(address)
            yield address
        finally:
            process.terminate()


def _wait_for_data(address: str) -> None:
    for _ in range(120):
        try:
            if asked(address, "images/tags").get(RUN):
                return
        except OSError:
            pass
        time.sleep(0.5)
    raise TimeoutError(f"no TensorBoard with data at {address}")


def asked(address: str, what: str) -> Any:
    with urllib.request.urlopen(f"{address}/data/plugin/{what}", timeout=30) as answer:
        return json.load(answer)


@pytest.fixture(scope="module")
def seen(server: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], np.ndarray]:
    """Screenshots of tabs, each taken once: ``(height, width, 3)``."""
    path = tmp_path_factory.mktemp("seen")
    return functools.cache(lambda tab: _screenshot(server, tab, path))


def _screenshot(address: str, tab: str, path: Path) -> np.ndarray:
    assert CHROMIUM is not None
    picture = path / f"{tab}.png"
    subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            f"--user-data-dir={path / 'profile'}", "--virtual-time-budget=10000", "--window-size=1400,2400",
            f"--screenshot={picture}", f"{address}/#{tab}",
        ],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    return matplotlib.image.imread(picture)[..., :3]


def test_every_picture_is_served_and_drawn(server: str) -> None:
    """Oracle: the tags that the callback promises; drawn at the first two measurements and the fourth, the last."""
    assert set(asked(server, "images/tags")[RUN]) == FIGURES
    for tag in FIGURES:
        shown = asked(server, f"images/images?run={quote(RUN)}&tag={quote(tag)}&sample=0")
        assert [s["step"] for s in shown] == [0, 3, 11]
        with urllib.request.urlopen(f"{server}/data/plugin/images/individualImage?{shown[-1]['query']}") as answer:
            height, width, _ = matplotlib.image.imread(io.BytesIO(answer.read()), "png").shape
        assert width > 400 and height > 250


def test_custom_scalars_show_no_error(server: str) -> None:
    """Oracle: TensorBoard's own answer for the chart that is strict about steps, and tags that match the others."""
    layout = asked(server, "custom_scalars/layout")
    charts = [chart for category in layout["category"] for chart in category["chart"]]
    tags = set(asked(server, "scalars/tags")[RUN])
    (margin,) = [chart["margin"] for chart in charts if "margin" in chart]
    series = margin["series"][0]
    assert {series["value"], series["lower"], series["upper"]} <= tags
    for chart in charts:
        for pattern in chart.get("multiline", {}).get("tag", []):
            answer = asked(server, f"custom_scalars/scalars?run={quote(RUN)}&tag={quote(pattern)}")
            assert answer["regex_valid"], pattern
    largest = asked(server, f"custom_scalars/scalars?run={quote(RUN)}&tag={quote('^lyapunov/max$')}")
    assert len(largest["tag_to_events"]["lyapunov/max"]) == 1 + EPOCHS


def ink(page: np.ndarray) -> float:
    """Share of a page, without the bars that every tab has, that is not of its most frequent colour."""
    colours = (page[150:, 420:] * 16).astype(int).reshape(-1, 3) @ (1, 32, 1024)
    return 1 - np.bincount(colours).max() / len(colours)


@in_a_browser
@pytest.mark.parametrize("tab", ["images", "custom_scalars", "histograms"])
def test_tab_is_not_empty_in_a_browser(seen: Callable[[str], np.ndarray], tab: str) -> None:
    """Oracle: the same dashboard's tab for audio, of which there is none, and which says so."""
    assert ink(seen(tab)) > max(3 * ink(seen("audio")), 0.05)


@in_a_browser
def test_no_chart_is_an_error(seen: Callable[[str], np.ndarray]) -> None:
    """TensorBoard shows a chart whose tags do not fit as a box of this red."""
    page = (seen("custom_scalars") * 255).round()
    red = (abs(page - (244, 67, 54)) < 12).all(-1)
    assert red.mean() < 1e-3
