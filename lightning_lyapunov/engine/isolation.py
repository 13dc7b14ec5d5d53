"""Looking without touching: the arithmetic a measurement runs in, and everything put back as it was found."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module in eval mode, its hooks at rest, and give every submodule its own attributes back.

    So a frozen part stays frozen, hooks that record the user's activations see none of ours, and what a forward pass
    notes on its module is as it was. Pre-hooks stay: those of weight normalisation and pruning compute the weights.
    """
    found = [(part, dict(vars(part))) for part in module.modules()]
    try:
        for part, _ in found:
            part.training = False
            part._forward_hooks = OrderedDict()
            part._backward_hooks = OrderedDict()
            part._backward_pre_hooks = OrderedDict()
        yield
    finally:
        for part, attributes in found:
            vars(part).clear()
            vars(part).update(attributes)


@contextmanager
def full_precision() -> Iterator[None]:
    """Products of float32 matrices in float32, whatever the run allows itself (TF32, bfloat16)."""
    finer = _ieee_products() if hasattr(torch.backends, "fp32_precision") else nullcontext()
    with _cudnn_off(), finer, _highest_products():
        yield


@contextmanager
def _cudnn_off() -> Iterator[None]:
    # Its TF32 is on by default, and once touched that default cannot be set back. Torch's own kernels stand in; they
    # also know forward-mode derivatives, which cuDNN's recurrent layers do not.
    found = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = found


@contextmanager
def _ieee_products() -> Iterator[None]:
    # The finer switches of torch 2.9. The older one writes to several of them at once, so that setting it back need
    # not restore what was found; and some kernels refuse to run where old and new contradict each other.
    mkldnn = torch.backends.mkldnn
    switches = [torch.backends.cuda.matmul, mkldnn.matmul, mkldnn.conv, mkldnn.rnn]  # type: ignore[attr-defined]
    found = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "ieee"
        yield
    finally:
        for switch, precision in zip(switches, found, strict=True):
            switch.fp32_precision = "none"  # as the switch above it says: where it said so before, it stays so
            if switch.fp32_precision != precision:
                switch.fp32_precision = precision


@contextmanager
def _highest_products() -> Iterator[None]:
    found = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(found)


@contextmanager
def untouched_random_state(device: torch.device) -> Iterator[None]:
    """Give the global random state back as it was, on the CPU and on ``device``."""
    devices = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


@contextmanager
def plain_attention() -> Iterator[None]:
    """Attention by products of matrices, which can be differentiated forward and twice; fused kernels cannot."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel([SDPBackend.MATH]):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@contextmanager
def measuring(system: object, device: torch.device) -> Iterator[None]:
    """Everything a measurement needs around it: no graph, no autocast, full precision, eval mode, own random state."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(full_precision())
        stack.enter_context(untouched_random_state(device))
        module = getattr(system, "__self__", system)  # a bound method speaks for its module
        if isinstance(module, nn.Module):
            stack.enter_context(evaluating(module))
        yield
