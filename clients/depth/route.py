"""Singular values between two points of a model the slow way: its own forward pass, and plain autograd in float64.

The package is not used. The state before one module is replaced, that after another is read, and whatever the model
does between the two is differentiated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

DENSE = 400
"""Width of the last state up to which the whole Jacobian is written down."""
MOST = 3000
"""Steps of the power iteration at most."""


def log_singular_values(model: nn.Module, call: Callable[[], Any], first: str, last: str, most: int = 4) -> Tensor:
    """Leading values ``(B, k)`` in nats, sample by sample; the largest alone where the states are wide.

    Args:
        model: In float64 and eval mode.
        call: Calls it.
        first: Name of the module before which the state is replaced, the first time that it is called.
        last: Name of the module after which it is read, the last time that it is called.
        most: Values to compute.
    """
    with torch.no_grad(), _between(model, first, last) as told:
        call()
    state = told["before"].clone().requires_grad_()
    # Kernels of attention in one piece have no second derivative.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), _between(model, first, last, state) as told:
        call()
        after = told["after"]
        if after[0].numel() <= DENSE:
            return _dense(state, after)[:, :most].log()
        return _power_iteration(state, after).log().unsqueeze(1)


def _dense(state: Tensor, after: Tensor) -> Tensor:
    """All singular values, largest first; one row of every sample's Jacobian at a time."""
    outputs = after.flatten(1).sum(0)
    rows = [torch.autograd.grad(one, state, retain_graph=True)[0].flatten(1) for one in outputs]
    return torch.linalg.svdvals(torch.stack(rows, 1))


def _power_iteration(state: Tensor, after: Tensor) -> Tensor:
    """The largest: of JᵀJ, with J by differentiating its own transpose."""
    weights = torch.zeros_like(after, requires_grad=True)
    (pulled,) = torch.autograd.grad(after, state, weights, create_graph=True)
    vector = torch.randn(state.shape, generator=torch.Generator().manual_seed(0), dtype=state.dtype)
    value, still = torch.zeros(len(state), dtype=state.dtype), 0
    for _ in range(MOST):
        vector = vector / _norm(vector)
        (pushed,) = torch.autograd.grad(pulled, weights, vector, retain_graph=True)
        found = _norm(pushed).flatten()
        still = still + 1 if bool((found / value - 1 < 1e-7).all()) else 0
        if still == 10:
            return found
        value = found
        (vector,) = torch.autograd.grad(after, state, pushed, retain_graph=True)
    raise RuntimeError(f"the power iteration has not settled within {MOST} steps")


def _norm(states: Tensor) -> Tensor:
    return states.flatten(1).norm(dim=1).view(-1, *[1] * (states.dim() - 1))


@contextmanager
def _between(model: nn.Module, first: str, last: str, state: Tensor | None = None) -> Iterator[dict[str, Tensor]]:
    """Note the states before one module and after another; the one before is another if given."""
    told: dict[str, Tensor] = {}

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if "before" in told:
            return None
        places = [("args", i) for i, value in enumerate(args) if _is_state(value)]
        places += [("kwargs", name) for name, value in kwargs.items() if _is_state(value)]
        kind, place = places[0]
        told["before"] = (args if kind == "args" else kwargs)[place]  # type: ignore[index]
        if state is None:
            return None
        given = state * 1  # blocks may write into it, and a leaf may not be written into
        if kind == "args":
            return (*args[:place], given, *args[place + 1 :]), kwargs  # type: ignore[operator]
        return args, {**kwargs, place: given}

    def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not isinstance(output, Tensor):
            output = next(value for value in output if _is_state(value))
        told["after"] = output * 1

    handles = [
        model.get_submodule(first).register_forward_pre_hook(before, with_kwargs=True),
        model.get_submodule(last).register_forward_hook(after),
    ]
    try:
        yield told
    finally:
        for handle in handles:
            handle.remove()


def _is_state(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
