"""AeLLE: what a Lyapunov spectrum says about how well a network will do."""

from lightning_lyapunov.aelle.autoencoder import AeLLE
from lightning_lyapunov.aelle.scorer import AeLLEScore, AeLLEScorer

__all__ = ["AeLLE", "AeLLEScore", "AeLLEScorer"]
