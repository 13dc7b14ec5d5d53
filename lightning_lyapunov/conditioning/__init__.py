"""Acting on a spectrum before training: weights that let a layer hold what its task asks it to hold."""

from lightning_lyapunov.conditioning.condition import condition
from lightning_lyapunov.conditioning.report import Conditioning

__all__ = ["Conditioning", "condition"]
