"""What measurements say: features of a spectrum, the history of a run, what holds of it, and that in words."""

from lightning_lyapunov.reading.conditions import verdict
from lightning_lyapunov.reading.history import History, Measurement
from lightning_lyapunov.reading.rules import Finding, findings, news

__all__ = ["History", "Measurement", "Finding", "findings", "news", "verdict"]
