"""torchvision as it comes from the package index, beside a torch that was built for the CPU alone."""

from __future__ import annotations

import sys

import torch

_operators: torch.library.Library | None = None
"""Kept, as they go with it."""


def prepare() -> None:
    """Let torchvision be imported: operators of its own are missing then, and no model here uses one."""
    global _operators
    try:
        import torchvision
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        _operators = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):  # what its import asks for
            _operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401
