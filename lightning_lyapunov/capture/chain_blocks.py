"""The blocks of a network as links of a chain: called again with the arguments that they were given, dropout off.

Batch normalisation is a constant map here. In training a block was given the mean and variance of its batch, and these
are what it is measured with: the running ones of a network that has hardly learnt are far from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from lightning_lyapunov.capture.chain_arguments import Arguments
from lightning_lyapunov.capture.chain_paths import sample_axis
from lightning_lyapunov.capture.tokens import tensors_of
from lightning_lyapunov.engine.isolation import measuring, plain_attention


@dataclass(frozen=True, eq=False)
class Statistics:
    """What a normalisation was done with in training: ``(C,)`` both; of each sample by itself if None."""

    module: nn.Module
    mean: Tensor | None = None
    variance: Tensor | None = None

    @staticmethod
    def of(module: nn.Module, inputs: Tensor) -> Statistics | None:
        """Those of a call that is about to be made; None where it uses the running ones, as in eval mode."""
        if isinstance(module, _BatchNorm):
            if not module.training and module.running_mean is not None:
                return None
            mean, variance = _of_channels(inputs.detach().to(torch.promote_types(inputs.dtype, torch.float32)))
            return Statistics(module, mean, variance)
        is_own = isinstance(module, _InstanceNorm) and module.training and module.track_running_stats
        return Statistics(module) if is_own else None

    @contextmanager
    def used(self, dtype: torch.dtype) -> Iterator[None]:
        """Let the normalisation of a state of a floating type use them."""
        module, own = self.module, vars(self.module)
        found = {name: own[name] for name in ("_buffers", "track_running_stats", "training")}
        weight = module._parameters.get("weight")
        kind = torch.promote_types(dtype, torch.float32) if weight is None else weight.dtype
        mean, variance = (None if one is None else one.to(kind) for one in (self.mean, self.variance))
        own["_buffers"] = {**module._buffers, "running_mean": mean, "running_var": variance}
        own["track_running_stats"] = mean is not None
        own["training"] = False
        try:
            yield
        finally:
            own.update(found)


def _of_channels(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (C,) of ``(B, C, ...)``."""
    if inputs.device.type in ("cpu", "cuda"):  # by the kernel of the normalisation itself, which is much faster
        mean, variance = torch.batch_norm_update_stats(inputs, None, None, 0.0)
        return mean, variance
    variance, mean = torch.var_mean(inputs, [axis for axis in range(inputs.dim()) if axis != 1], correction=0)
    return mean, variance


@dataclass(frozen=True, eq=False)
class Step:
    """One call of a module."""

    module: nn.Module
    arguments: Arguments
    statistics: tuple[Statistics, ...] = ()

    def __call__(self, state: Tensor, copies: int = 1) -> Tensor:
        """The state after it."""
        args, kwargs = self.arguments.given(state, copies)
        with ExitStack() as stack:
            for one in self.statistics:
                stack.enter_context(one.used(state.dtype))
            output = self.module(*args, **kwargs)
        return floating(output)


@dataclass(frozen=True, eq=False)
class RecordedBlock:
    """A block with what it was given beside its state, for the samples that were kept.

    Attributes:
        name: Of the link.
        kind: Its class.
        steps: The calls that it is made of.
        rows: The axis of the samples in states of tokens; in those that it is called with here it is always the first.
    """

    name: str
    kind: str
    steps: tuple[Step, ...]
    rows: int = 0

    def __call__(self, state: Tensor, copies: int = 1) -> Tensor:
        """The states ``(B · copies, ...)`` after it; ``copies`` rows side by side are of one sample."""
        state = state.movedim(0, sample_axis(state.shape, self.rows))
        for step in self.steps:
            state = step(state, copies)
        return state.movedim(sample_axis(state.shape, self.rows), 0)

    @property
    def normalisation(self) -> str:
        """``batch`` where the statistics of the recorded batch normalise it, ``running`` where running ones do."""
        if any(one.mean is not None for step in self.steps for one in step.statistics):
            return "batch"
        parts = (part for step in self.steps for part in step.module.modules())
        return "running" if any(isinstance(part, _BatchNorm) for part in parts) else ""

    @property
    def is_doubtful(self) -> bool:
        """Whether what it is given can be understood in two ways."""
        return any(step.arguments.is_doubtful for step in self.steps)

    def settled(self, *, as_tables: bool) -> RecordedBlock:
        """Understood in one of them."""
        return self.with_arguments(lambda arguments: arguments.settled(as_tables=as_tables))

    def of(self, index: Tensor) -> RecordedBlock:
        """For some of the samples."""
        return self.with_arguments(lambda arguments: arguments.of(index))

    def with_arguments(self, function: Callable[[Arguments], Arguments]) -> RecordedBlock:
        """The same with other arguments."""
        steps = tuple(replace(step, arguments=function(step.arguments)) for step in self.steps)
        return replace(self, steps=steps)

    def joined(self, others: Sequence[RecordedBlock]) -> RecordedBlock | None:
        """With the samples of other batches behind its own; None where they differ in more than their samples."""
        rows = [self, *others]
        if len({len(one.steps) for one in rows}) > 1 or any(step.statistics for one in rows for step in one.steps):
            return None
        steps = []
        for place, step in enumerate(self.steps):
            arguments = step.arguments.joined([other.steps[place].arguments for other in others])
            if arguments is None:
                return None
            steps.append(replace(step, arguments=arguments))
        return replace(self, steps=tuple(steps))


def floating(output: Any) -> Tensor:
    """The first floating tensor of what a module returned.

    Raises:
        ValueError: If there is none.
    """
    for tensor in tensors_of(output).values():
        if tensor.is_floating_point():
            return tensor
    raise ValueError("a block must return a floating tensor, or a tuple or dict whose first one is the state.")


@contextmanager
def measuring_blocks(
    blocks: Sequence[RecordedBlock], dtype: torch.dtype | None, device: torch.device
) -> Iterator[None]:
    """Everything that a measurement of blocks needs around it, undone afterwards whatever happens.

    Eval mode, hooks and compiled versions at rest, plain attention, no autocast, full precision, the global random
    state kept, and weights of another floating type than asked for as copies of that type.

    Args:
        blocks: All of the chain.
        dtype: In which to measure; of the weights as they are if None.
        device: Of the states.
    """
    modules = nn.ModuleList(dict.fromkeys(step.module for block in blocks for step in block.steps))
    with modes_of_scripts(modules), measuring(modules, device), plain_attention():
        cast = _Cast(dtype)
        for part in modules.modules():
            vars(part).pop("_compiled_call_impl", None)
            vars(part)["_parameters"] = cast(part._parameters)
            vars(part)["_buffers"] = cast(part._buffers)
        yield


@contextmanager
def modes_of_scripts(module: nn.Module) -> Iterator[None]:
    """Give scripted parts, which hold it out of sight, their training mode back."""
    found = [(part, part.training) for part in module.modules() if isinstance(part, torch.jit.ScriptModule)]
    try:
        yield
    finally:
        for part, training in found:
            part.training = training


class _Cast:
    """Tensors of a module in another floating type, each once; those that have it are the same."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        self._dtype = dtype
        self._made: dict[Tensor, Tensor] = {}

    def __call__(self, found: dict[str, Any]) -> dict[str, Any]:
        return {name: self._tensor(value) if isinstance(value, Tensor) else value for name, value in found.items()}

    def _tensor(self, tensor: Tensor) -> Tensor:
        if self._dtype is None or not tensor.is_floating_point() or tensor.dtype == self._dtype:
            return tensor
        if tensor not in self._made:
            self._made[tensor] = tensor.detach().to(self._dtype)
        return self._made[tensor]
