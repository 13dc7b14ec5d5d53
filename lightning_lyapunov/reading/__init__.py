"""What measurements say: features of a spectrum, the history of a run, what holds of it, and that in words."""

from lightning_lyapunov.reading.conditions import state_of
from lightning_lyapunov.reading.history import History, Measurement
from lightning_lyapunov.reading.rules import Finding, findings, news
from lightning_lyapunov.reading.verdict import Verdict, verdict

__all__ = ["History", "Measurement", "Finding", "Verdict", "findings", "news", "state_of", "verdict"]
