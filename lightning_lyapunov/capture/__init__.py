"""What drives the layers of somebody's model: which they are, how they are called, and the inputs that reach them."""

from lightning_lyapunov.capture.adapters import register
from lightning_lyapunov.capture.adapters.scans import Scan
from lightning_lyapunov.capture.calls import Adapter, Call

__all__ = ["Adapter", "Call", "Scan", "register"]
