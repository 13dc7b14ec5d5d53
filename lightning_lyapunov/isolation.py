"""Looking without touching: the arithmetic a measurement runs in, and everything put back as it was found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module in eval mode and give every submodule its own flag back, so that a frozen part stays frozen."""
    modes = [(part, part.training) for part in module.modules()]
    for part, _ in modes:
        part.training = False
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def full_precision() -> Iterator[None]:
    """Products of float32 matrices in float32, whatever the run allows itself (TF32, bfloat16)."""
    try:
        allowed = torch.get_float32_matmul_precision()
    except RuntimeError:  # torch refuses to read the old switch once a user has set the new, finer ones
        with _full_precision_by_backend():
            yield
        return
    if allowed == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(allowed)


@contextmanager
def _full_precision_by_backend() -> Iterator[None]:
    backends = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]  # type: ignore[attr-defined]
    found = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        for backend, value in zip(backends, found, strict=True):
            backend.fp32_precision = value


@contextmanager
def untouched_random_state(device: torch.device) -> Iterator[None]:
    """Give the global random state back as it was, on the CPU and on ``device``."""
    devices = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


@contextmanager
def measuring(system: object, device: torch.device) -> Iterator[None]:
    """Everything a measurement needs around it: no graph, no autocast, full precision, eval mode, own random state."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(full_precision())
        stack.enter_context(untouched_random_state(device))
        if isinstance(system, nn.Module):
            stack.enter_context(evaluating(system))
        yield
