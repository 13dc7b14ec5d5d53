"""Pictures of a run, made of its history alone. They leave pyplot alone and can be read on light and dark pages."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

try:
    from matplotlib.figure import Figure
except ModuleNotFoundError as error:
    needed = "lightning_lyapunov.figures needs matplotlib: pip install 'lightning-lyapunov[plot]'"
    raise ModuleNotFoundError(needed, name=error.name) from error

from lightning_lyapunov.figures import latent
from lightning_lyapunov.figures.along import growth_along
from lightning_lyapunov.figures.latent import LatentMap, latent_map
from lightning_lyapunov.figures.layers import layers_over_training
from lightning_lyapunov.figures.overview import overview
from lightning_lyapunov.figures.prediction import prediction_over_training
from lightning_lyapunov.figures.spectrum import spectrum_now
from lightning_lyapunov.figures.style import NothingToShow
from lightning_lyapunov.figures.training import spectrum_over_training
from lightning_lyapunov.reading.history import History
from lightning_lyapunov.reading.verdict import verdict

__all__ = [
    # all that there is data for
    "figures_of",
    # one by one
    "overview",
    "growth_along",
    "spectrum_now",
    "spectrum_over_training",
    "prediction_over_training",
    "latent_map",
    "LatentMap",
    "layers_over_training",
    # what they raise, a ValueError
    "NothingToShow",
]


def figures_of(history: History, latent_map: LatentMap | None = None) -> dict[str, Figure]:
    """Draw every figure that a history holds the data for.

    Args:
        history: Measurements of a run: :attr:`LyapunovSpectrumCallback.history`.
        latent_map: The map of the scorer that scored it, :meth:`LatentMap.of_bank`; no latent map if None.

    Returns:
        By name ``overview``, ``along``, ``spectrum``, ``training``, ``prediction``, ``latent``, ``layers``, those that
        can be drawn; none of an empty history. The title of each begins with the verdict.
    """
    said = verdict(history)
    drawers: dict[str, Callable[[], Figure]] = {
        "overview": lambda: overview(history, said),
        "along": lambda: growth_along(history, said),
        "spectrum": lambda: spectrum_now(history, said),
        "training": lambda: spectrum_over_training(history, said),
        "prediction": lambda: prediction_over_training(history, said),
        **({} if latent_map is None else {"latent": lambda: latent.latent_map(history, latent_map, said)}),
        "layers": lambda: layers_over_training(history, said),
    }
    figures = {}
    for name, draw in drawers.items():
        with suppress(NothingToShow):
            figures[name] = draw()
    return figures
