"""What of a fit goes into a checkpoint: what was measured, how long was trained, and what watching cost."""

from __future__ import annotations

from ast import literal_eval
from collections.abc import Mapping
from typing import Any

from lightning_lyapunov.monitoring.budget import Budget
from lightning_lyapunov.monitoring.clock import Clock
from lightning_lyapunov.reading.history import History
from lightning_lyapunov.reading.kept import read_state

CALLBACK = "LyapunovSpectrumCallback"
"""Whose state in a Trainer's checkpoint holds a history of recurrent layers."""
_KINDS = {"history": object, "training_seconds": float, "budget": dict}


def state_of(history: History[Any], clock: Clock, budget: Budget) -> dict[str, Any]:
    """Tensors and plain values only, as ``torch.load(weights_only=True)`` reads them."""
    return {"history": history.state_dict(), "training_seconds": clock.trained, "budget": budget.state_dict()}


def restore(state: Mapping[str, Any], history: History[Any], clock: Clock, budget: Budget) -> str:
    """Go on from a state, with as much of it as another version of this package wrote and this one knows.

    Returns:
        What was amiss, in words, and begins anew; empty if nothing was.
    """
    known, amiss = read_state(state, _KINDS, "state")
    parts = {"history": history.load_state_dict(known.get("history", {}))}
    parts["budget"] = budget.load_state_dict(known.get("budget", {}))
    amiss += [trouble for name, troubles in parts.items() if name in known for trouble in troubles]
    clock.trained = known.get("training_seconds", 0.0)
    if not amiss:
        return ""
    return f"the checkpoint is of another version of this package ({'; '.join(amiss)}); what it lacks begins anew."


def histories_in(content: Any, callback: str = CALLBACK) -> dict[str, Any]:
    """State of each history in what a Trainer wrote, by the prefix of its callback; nothing where it holds none.

    Args:
        content: The checkpoint.
        callback: Name of the class whose histories they are.

    Raises:
        Exception: Whatever a foreign file makes the parser of keys raise.
    """
    states = content.get("callbacks") if isinstance(content, dict) else None
    return {
        str(literal_eval(key.removeprefix(callback))["prefix"]): state["history"]
        for key, state in (states or {}).items()
        if key.startswith(f"{callback}{{")
    }
