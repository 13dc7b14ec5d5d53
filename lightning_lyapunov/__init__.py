"""Lyapunov spectra of recurrent networks, by hand or while they train in PyTorch Lightning."""

from typing import TYPE_CHECKING

from lightning_lyapunov.aelle import AeLLE, AeLLEScore, AeLLEScorer
from lightning_lyapunov.capture.by_hand import lyapunov_spectrum
from lightning_lyapunov.capture.depth_by_hand import depth_spectrum
from lightning_lyapunov.conditioning import Conditioning, condition
from lightning_lyapunov.engine.depth_spectrum import DepthSpectrum
from lightning_lyapunov.engine.differentiable import lyapunov_exponents, lyapunov_growth
from lightning_lyapunov.engine.spectrum import LyapunovSpectrum
from lightning_lyapunov.reading.distance import spectrum_distance
from lightning_lyapunov.reading.features import kaplan_yorke_dimension, kolmogorov_sinai_entropy, spectrum_features
from lightning_lyapunov.reading.times import predictability_time

if TYPE_CHECKING:
    from lightning_lyapunov.monitoring.depth_monitor import DepthMonitor
    from lightning_lyapunov.monitoring.monitor import LyapunovMonitor
    from lightning_lyapunov.training.callback import LyapunovSpectrumCallback
    from lightning_lyapunov.training.conditioning import LyapunovConditioning
    from lightning_lyapunov.training.depth import DepthSpectrumCallback
    from lightning_lyapunov.training.stopping import LyapunovEarlyStopping

__version__ = "0.1.0.dev0"

__all__ = [
    # in training
    "LyapunovSpectrumCallback",
    "DepthSpectrumCallback",
    "LyapunovEarlyStopping",
    "LyapunovMonitor",
    "DepthMonitor",
    "LyapunovConditioning",
    # by hand
    "LyapunovSpectrum",
    "lyapunov_spectrum",
    "kaplan_yorke_dimension",
    "kolmogorov_sinai_entropy",
    "spectrum_features",
    "spectrum_distance",
    "predictability_time",
    # across depth
    "DepthSpectrum",
    "depth_spectrum",
    # to act on
    "Conditioning",
    "condition",
    "lyapunov_exponents",
    "lyapunov_growth",
    # what it predicts
    "AeLLE",
    "AeLLEScore",
    "AeLLEScorer",
]


def __getattr__(name: str) -> object:
    """Import Lightning only when its callbacks are asked for: the mathematics needs torch alone."""
    if name == "LyapunovSpectrumCallback":
        from lightning_lyapunov.training.callback import LyapunovSpectrumCallback

        return LyapunovSpectrumCallback
    if name == "DepthSpectrumCallback":
        from lightning_lyapunov.training.depth import DepthSpectrumCallback

        return DepthSpectrumCallback
    if name == "LyapunovEarlyStopping":
        from lightning_lyapunov.training.stopping import LyapunovEarlyStopping

        return LyapunovEarlyStopping
    if name == "LyapunovMonitor":
        from lightning_lyapunov.monitoring.monitor import LyapunovMonitor

        return LyapunovMonitor
    if name == "DepthMonitor":
        from lightning_lyapunov.monitoring.depth_monitor import DepthMonitor

        return DepthMonitor
    if name == "LyapunovConditioning":
        from lightning_lyapunov.training.conditioning import LyapunovConditioning

        return LyapunovConditioning
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
