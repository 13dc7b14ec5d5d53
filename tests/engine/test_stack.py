"""Growth through the layers of one module against autograd through the whole of torch's own."""

from typing import Any

import pytest
import torch
from systems import network, noise
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from lightning_lyapunov import LyapunovSpectrum, lyapunov_spectrum
from lightning_lyapunov.engine.spectrum import SequenceGrowth
from lightning_lyapunov.engine.stack import Stack
from lightning_lyapunov.engine.system import trajectories

INPUT, BATCH = 3, 2
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "tanh": ("tanh", {}),
    "relu": ("relu", {}),
    "gru": ("gru", {}),
    "lstm": ("lstm", {}),
    "lstm projected": ("lstm", {"proj_size": 2}),
    "no bias": ("gru", {"bias": False}),
}
of_every_kind = pytest.mark.parametrize("name", OPTIONS)
of_two_and_three_layers = pytest.mark.parametrize("layers", [2, 3])


def module_of(name: str, layers: int, size: int = 4, **options: Any) -> Any:
    kind, own = OPTIONS[name]
    return network(kind, INPUT, size, gain=1.4, num_layers=layers, **own, **options)


def product(module: nn.RNNBase, inputs: Tensor) -> Tensor:
    """The Jacobian ``(D, D)`` of the last states of all layers by the first ones, along one sequence ``(T, I)``.

    States of the top layer come first, h of all before c of all.
    """
    sizes = [module.proj_size or module.hidden_size, *([module.hidden_size] if isinstance(module, nn.LSTM) else [])]
    widths = [module.num_layers * size for size in sizes]

    def last(flat: Tensor) -> Tensor:
        parts = [
            part.view(module.num_layers, 1, size).flip(0).contiguous()
            for part, size in zip(flat.split(widths), sizes, strict=True)
        ]
        after = module(inputs[:, None], tuple(parts) if len(parts) == 2 else parts[0])[1]
        after = after if isinstance(after, tuple) else (after,)
        return torch.cat([part.flip(0).flatten() for part in after])

    return torch.autograd.functional.jacobian(last, torch.zeros(sum(widths)).double())


def growth_of(spectrum: LyapunovSpectrum) -> SequenceGrowth:
    assert spectrum.growth is not None
    return spectrum.growth


@of_two_and_three_layers
@of_every_kind
@pytest.mark.parametrize("steps", [1, 7, 20])
def test_growth_of_a_stack_is_that_of_the_whole_module(name: str, layers: int, steps: int) -> None:
    """Singular values of the whole state; the gain of what is seen of it, the h of the top layer."""
    module, inputs = module_of(name, layers), noise(steps, BATCH, INPUT)
    dimension = lyapunov_spectrum(module, inputs).dimension
    growth = growth_of(lyapunov_spectrum(module, inputs, growth=dimension, dtype=torch.float64))
    visible = module.proj_size or module.hidden_size
    for row in range(BATCH):
        whole = product(module, inputs[:, row])
        expected = torch.linalg.svdvals(whole)
        known = expected > 1e-7 * expected[0]
        found = growth.per_sequence[row]
        torch.testing.assert_close(found[known], expected[known].log(), rtol=0.0, atol=1e-6)
        seen = whole[:visible].square().sum() / visible
        torch.testing.assert_close(growth.gain_per_sequence[row], seen.log() / 2, rtol=0.0, atol=1e-9)


@pytest.mark.parametrize(("name", "layers"), [("tanh", 3), ("gru", 2), ("lstm", 2), ("lstm projected", 2)])
def test_leading_growth_of_a_wide_stack_is_that_of_the_whole_module(name: str, layers: int) -> None:
    """The frame is a part of the space: .05 nats on average, .1 for the gain."""
    module, inputs = module_of(name, layers, size=16), noise(10, 4, INPUT)
    growth = growth_of(lyapunov_spectrum(module, inputs, k=4, dtype=torch.float64))
    wholes = torch.stack([product(module, row) for row in inputs.unbind(1)])
    expected = torch.linalg.svdvals(wholes).log()[:, :4]
    assert float((growth.per_sequence - expected).mean(0).abs().max()) < 0.05
    visible = module.proj_size or module.hidden_size
    gains = (wholes[:, :visible].square().sum((1, 2)) / visible).log() / 2
    assert float((growth.gain_per_sequence - gains).mean().abs()) < 0.1


@pytest.mark.parametrize("name", ["tanh", "gru", "lstm"])
def test_packed_sequences_of_a_stack_grow_as_each_alone(name: str) -> None:
    module, lengths = module_of(name, 2), [5, 12, 1, 8]
    inputs = noise(12, 4, INPUT)
    packed = pack_padded_sequence(inputs, torch.tensor(lengths), enforce_sorted=False)
    growth = growth_of(lyapunov_spectrum(module, packed, dtype=torch.float64))
    assert growth.lengths.tolist() == lengths
    for row, length in enumerate(lengths):
        expected = torch.linalg.svdvals(product(module, inputs[:length, row]))[: growth.per_sequence.shape[1]]
        known = expected > 1e-7 * expected[0]
        torch.testing.assert_close(growth.per_sequence[row][known], expected[known].log(), rtol=0.0, atol=1e-6)


@of_two_and_three_layers
@of_every_kind
def test_push_and_pull_of_a_stack_are_transposes_and_those_of_the_module(name: str, layers: int) -> None:
    """Of every step, by the unit vectors; of fewer rows too, as where sequences have ended."""
    module, inputs = module_of(name, layers).eval(), noise(4, BATCH, INPUT)
    with torch.no_grad():
        stack = Stack(list(trajectories(module, inputs, None, None, torch.float64).values()))
        steps = stack.follow(4).steps(stack.size, torch.float64)
        eye = torch.eye(stack.size).double().expand(BATCH, -1, -1)
        pushed = [steps.push(t, eye) for t in range(4)]
        for t in range(4):
            torch.testing.assert_close(steps.pull(t, eye), pushed[t].mT, rtol=0.0, atol=1e-12)
            torch.testing.assert_close(steps.push(t, eye[:1]), pushed[t][:1], rtol=0.0, atol=1e-12)
            torch.testing.assert_close(steps.pull(t, eye[:1]), pushed[t][:1].mT, rtol=0.0, atol=1e-12)
    assert len(steps) == 4
    together = pushed[3] @ pushed[2] @ pushed[1] @ pushed[0]
    for row in range(BATCH):
        expected = torch.linalg.svdvals(product(module, inputs[:, row]))
        torch.testing.assert_close(torch.linalg.svdvals(together[row]), expected, rtol=0.0, atol=1e-11)


def test_a_stack_can_be_followed_again_from_where_it_was() -> None:
    module, inputs = module_of("lstm", 3), noise(9, BATCH, INPUT)
    with torch.no_grad():
        stack = Stack(list(trajectories(module, inputs, None, None, torch.float64).values()))
        stack.skip(4)
        state = stack.state
        eye = torch.eye(stack.size).double().expand(BATCH, -1, -1)
        once = stack.follow(9).steps(stack.size, torch.float64).push(3, eye)
        end = stack.state
        stack.rewind(4, state)
        assert stack.time == 4
        again = stack.follow(9).steps(stack.size, torch.float64).push(3, eye)
    torch.testing.assert_close(once, again, rtol=0.0, atol=1e-14)
    torch.testing.assert_close(end, stack.state, rtol=0.0, atol=1e-14)
    assert stack.visible == 4 and stack.dtype == torch.float64 and stack.is_pure and stack.can_narrow


def test_layers_keep_their_own_growth_beside_that_of_the_whole() -> None:
    module, inputs = module_of("gru", 2), noise(10, BATCH, INPUT)
    spectrum = lyapunov_spectrum(module, inputs, dtype=torch.float64)
    first = network("gru", INPUT, 4)
    with torch.no_grad():
        for name, weight in first.named_parameters():
            weight.copy_(getattr(module, name))
    alone = lyapunov_spectrum(first, inputs, dtype=torch.float64)
    found = growth_of(spectrum.layers["l0"]).per_sequence
    torch.testing.assert_close(found, growth_of(alone).per_sequence, rtol=0.0, atol=1e-9)
    assert growth_of(spectrum).per_sequence.shape == (BATCH, 8)


@pytest.mark.parametrize("options", [{"bidirectional": True}, {"bidirectional": True, "num_layers": 2}])
def test_directions_have_no_growth_together(options: dict[str, Any]) -> None:
    """They run against each other: the largest layer speaks instead."""
    spectrum = lyapunov_spectrum(network("gru", INPUT, 4, **options), noise(10, BATCH, INPUT))
    assert spectrum.growth is None and spectrum.gain != spectrum.gain
    assert all(layer.growth is not None for layer in spectrum.layers.values())


def test_a_stack_without_growth_has_none() -> None:
    spectrum = lyapunov_spectrum(module_of("gru", 2), noise(10, BATCH, INPUT), growth=0)
    assert spectrum.growth is None and all(layer.growth is None for layer in spectrum.layers.values())
