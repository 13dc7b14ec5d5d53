"""Measuring across depth by hand: blocks that are given, or those of a network on what reaches them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_lyapunov.capture.chain_arguments import STATE, Arguments
from lightning_lyapunov.capture.chain_blocks import RecordedBlock, Statistics, Step, measuring_blocks
from lightning_lyapunov.capture.chain_finder import BlockNames
from lightning_lyapunov.capture.chain_measure import measure_recorded
from lightning_lyapunov.capture.chain_probe import ChainProbe
from lightning_lyapunov.capture.stepping import class_name
from lightning_lyapunov.engine.depth import DepthSettings, measure_depth
from lightning_lyapunov.engine.depth_spectrum import DepthSpectrum
from lightning_lyapunov.engine.frames import seed_of
from lightning_lyapunov.engine.isolation import measuring
from lightning_lyapunov.engine.maps.blocks import Block, Function


def depth_spectrum(
    blocks: nn.Module | Callable[[Tensor], Tensor] | Sequence[Callable[[Tensor], Tensor]],
    inputs: Any,
    k: int = 4,
    *,
    module: BlockNames | None = None,
    samples: int | None = None,
    dtype: torch.dtype | None = None,
    tolerance: float = 1e-3,
    probes: int = 16,
    generator: torch.Generator | None = None,
) -> DepthSpectrum:
    r"""Singular values of a chain of blocks, from the state before the first to that after the last.

    .. math:: J = J_D \cdots J_1, \qquad \ln\sigma_i(J), \qquad \text{gain} = \tfrac12 \ln(\|J\|_F^2 / n_D)

    For each sample by itself, so that rows must not act on each other: batch normalisation is measured as a constant
    map, by the statistics of ``inputs`` where it is in training mode, by its running ones else. Dropout is off, and
    everything is left as it was.

    Args:
        blocks: A sequence of callables, each taking a state ``(B, ...)`` to the next, whose width may change; an
            ``nn.Sequential`` or ``nn.ModuleList``, whose children are the blocks; one callable; or a whole network,
            whose chain of blocks is found by what flows between its modules.
        inputs: The state before the first block, floating, ``(B, ...)``. For a network what its forward takes: a batch,
            or a tuple or a dict of arguments.
        k: Leading singular values.
        module: Of a network, where the chain is: the name of what holds the blocks, or the names of the blocks in
            order.
        samples: How many rows of the inputs to measure, the first ones; all if None.
        dtype: ``torch.float32`` or ``torch.float64``, to which weights and states are converted for it; as they are if
            None, but float32 at least. float32 is right to 1e-4 in leading values.
        tolerance: Nats to which :math:`\ln\sigma_1` is found, the others to ten times that.
        probes: Random gradients that tell the gain of each block, which is exact for blocks that are no wider.
        generator: Source of the seed of all random vectors; seed 0 if None.

    Returns:
        Singular values and gains, of the whole and of each block, with their errors, sample by sample.

    Raises:
        ValueError: If an argument does not fit; if a block is not a function of its state alone, cannot be
            differentiated, or makes its rows act on each other; or if no chain is found. The message names what it is
            and what would do.

    Source:
        Schoenholz et al., arXiv:1611.01232, and Pennington, Schoenholz, Ganguli, arXiv:1711.04735, for what the values
        say; Golub, Luk, Overton, ACM TOMS 7 (1981) 149-169, for the method.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_lyapunov import depth_spectrum
        >>> turn = nn.Linear(8, 8, bias=False)
        >>> _ = nn.init.orthogonal_(turn.weight, gain=2)
        >>> spectrum = depth_spectrum([turn] * 3, torch.randn(4, 8))
        >>> [round(float(v), 2) for v in spectrum.log_singular_values], round(spectrum.gain, 2)
        ([2.08, 2.08, 2.08, 2.08], 2.08)
    """
    settings = DepthSettings(k=k, tolerance=tolerance, probes=probes, seed=seed_of(generator))
    if dtype not in (None, torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float32, torch.float64 or None; got {dtype}.")
    if samples is not None and samples < 1:
        raise ValueError(f"samples must be at least 1, or None for all; got {samples}.")
    if isinstance(blocks, nn.Module) and (module is not None or not isinstance(blocks, nn.Sequential | nn.ModuleList)):
        return _of_network(blocks, inputs, module, samples, dtype, settings)
    if module is not None:
        raise ValueError(f"module names blocks inside a network; blocks is no nn.Module but {type(blocks).__name__}.")
    return _of_blocks(_named(blocks), inputs, samples, dtype, settings)


# ---------------------------------------------------------------------- blocks that are given


def _named(blocks: Any) -> dict[str, Callable[[Tensor], Tensor]]:
    """The blocks by name."""
    if isinstance(blocks, nn.Module):
        return dict(blocks.named_children())
    several = list(blocks) if isinstance(blocks, Sequence) else [blocks]
    return {f"block {place}": block for place, block in enumerate(several, 1)}


def _of_blocks(
    named: Mapping[str, Callable[[Tensor], Tensor]],
    inputs: Any,
    samples: int | None,
    dtype: torch.dtype | None,
    settings: DepthSettings,
) -> DepthSpectrum:
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point() or inputs.dim() < 2:
        told = f"{inputs.dtype} {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else type(inputs).__name__
        raise ValueError(f"inputs must be the state before the first block, floating, (B, ...); got {told}.")
    state = inputs.detach().to(dtype or torch.promote_types(inputs.dtype, torch.float32))
    normalising = [
        part for block in named.values() if isinstance(block, nn.Module) for part in block.modules() if _by_batch(part)
    ]
    made: list[Block] = [_block(name, block, inputs.dtype) for name, block in named.items()]
    recorded = [block for block in made if isinstance(block, RecordedBlock)]
    with measuring_blocks(recorded, state.dtype, state.device):
        if normalising:
            made = _with_statistics(made, normalising, state)
        _check_rows(made, state)
        first = state if samples is None else state[:samples]
        spectrum = measure_depth(made, first, settings)
    normalisation = next((b.normalisation for b in made if isinstance(b, RecordedBlock) and b.normalisation), "")
    return replace(spectrum, normalisation=normalisation)


def _block(name: str, block: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Block:
    if not isinstance(block, nn.Module):
        return Function(block, name)
    return RecordedBlock(name, class_name(block), (Step(block, Arguments((STATE,), {}, dtype)),))


def _by_batch(part: nn.Module) -> bool:
    return isinstance(part, _BatchNorm) and (part.training or part.running_mean is None)


def _with_statistics(blocks: Sequence[Block], normalising: Sequence[nn.Module], state: Tensor) -> list[Block]:
    """The blocks with the batch statistics that the states bring about, held fixed."""
    found: dict[nn.Module, Statistics] = {}
    with ExitStack() as stack, torch.no_grad():

        def note(part: nn.Module, args: tuple[Any, ...]) -> None:
            variance, mean = torch.var_mean(args[0], [a for a in range(args[0].dim()) if a != 1], correction=0)
            if part in found:
                return  # called again: the first time counts, as there is one set of statistics for a module
            found[part] = Statistics(part, mean, variance)
            stack.enter_context(found[part].used(args[0].dtype))

        with _hooked(normalising, note):
            for block in blocks:
                state = block(state)
    return [
        replace(block, steps=tuple(replace(s, statistics=_of(s.module, found)) for s in block.steps))
        if isinstance(block, RecordedBlock)
        else block
        for block in blocks
    ]


def _of(module: nn.Module, found: Mapping[nn.Module, Statistics]) -> tuple[Statistics, ...]:
    return tuple(found[part] for part in module.modules() if part in found)


@contextmanager
def _hooked(modules: Sequence[nn.Module], hook: Callable[..., None]) -> Iterator[None]:
    handles = [module.register_forward_pre_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check_rows(blocks: Sequence[Block], state: Tensor) -> None:
    """Change one row, and see whether another does.

    Raises:
        ValueError: If one does; the block is named.
    """
    if len(state) < 2:
        return
    with torch.no_grad():
        for block in blocks:
            after, other = block(state.clone()), state.clone()
            other[0] = state[1]
            if _acts_on_others(after, block(other)):
                raise ValueError(
                    f"{block.name}: what it makes of one row depends on another row, so that no sample has a "
                    "Jacobian of its own. Normalise over features or groups, or with statistics that are fixed."
                )
            state = after


def _acts_on_others(after: Tensor, moved: Tensor) -> bool:
    """Whether other rows than the first have moved; of what is no state of rows the engine speaks."""
    if not after.is_floating_point() or after.dim() < 2 or after.shape != moved.shape:
        return False
    return bool((moved[1:] - after[1:]).abs().amax() > 1e-3 * after[1:].abs().amax())


# ---------------------------------------------------------------------- blocks of a network


def _of_network(
    network: nn.Module,
    inputs: Any,
    module: BlockNames | None,
    samples: int | None,
    dtype: torch.dtype | None,
    settings: DepthSettings,
) -> DepthSpectrum:
    """The chain inside a network, on what reaches it in one forward pass."""
    is_several = isinstance(inputs, tuple) and not hasattr(inputs, "_fields")
    args = inputs if is_several else () if isinstance(inputs, Mapping) else (inputs,)
    kwargs = dict(inputs) if isinstance(inputs, Mapping) else {}
    probe = ChainProbe(network, module, samples or 1 << 30, most=None)
    try:
        with _left_alone(network):
            probe.begin_batch(keep_latest=True)
            network(*args, **kwargs)
            probe.end_batch()
        spectrum, _ = measure_recorded(probe, samples, settings, dtype)
    except TypeError as error:
        raise ValueError(
            f"inputs must be what {type(network).__name__}.forward takes, several in a tuple or by name in a dict; one "
            f"that is itself a tuple or a dict in a tuple, (batch,). It said: {error}"
        ) from error
    finally:
        probe.remove()
    return spectrum


@contextmanager
def _left_alone(network: nn.Module) -> Iterator[None]:
    """Dropout off, batch normalisation as it is; modes, buffers and the random state as they were afterwards."""
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    by_batch = [part for part in network.modules() if _by_batch(part)]
    with measuring(network, device), torch.no_grad():
        for part in network.modules():
            vars(part)["_buffers"] = dict(part._buffers)
        for part in by_batch:
            part.training = True
            for name, value in part._buffers.items():
                part._buffers[name] = None if value is None else value.clone()
        yield
