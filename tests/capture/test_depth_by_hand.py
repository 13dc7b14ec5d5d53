"""Across depth by hand: blocks as they are given, and those of a network, against dense products (float64)."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap

from lightning_lyapunov import depth_spectrum


def dense_gain(function, state: Tensor) -> Tensor:
    """(B,) of a function of one row."""
    jacobian = vmap(jacrev(lambda row: function(row.unsqueeze(0))[0].flatten()))(state).flatten(2)
    return (jacobian.square().sum((1, 2)) / jacobian.shape[1]).log() / 2


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, width)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(torch.relu(self.linear(self.norm(x))))


class Network(nn.Module):
    def __init__(self, width: int = 12, depth: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, width)
        self.layers = nn.ModuleList(Residual(width) for _ in range(depth))
        self.head = nn.Linear(width, 3)

    def forward(self, tokens: Tensor, scale: float = 1.0) -> Tensor:
        x = self.embed(tokens) * scale
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network().double()


TOKENS = torch.tensor([0, 1, 2, 3, 4, 1])


def test_the_same_blocks_in_every_form(network: Network) -> None:
    state = network.embed(TOKENS).detach()
    true = depth_spectrum([layer.eval() for layer in network.layers], state)
    network.train()
    given = [network.layers, list(network.layers), nn.Sequential(*network.layers), nn.Sequential(*network.layers)[:]]
    for blocks in given:
        found = depth_spectrum(blocks, state)
        assert torch.equal(found.per_sample, true.per_sample) and found.depth == 4
    assert depth_spectrum(network.layers, state).names == ("0", "1", "2", "3")
    assert depth_spectrum([torch.sin, torch.sin], state).names == ("block 1", "block 2")
    whole = depth_spectrum(lambda x: nn.Sequential(*network.layers).eval()(x), state)
    assert torch.allclose(whole.per_sample, true.per_sample, atol=1e-4) and whole.depth == 1
    assert torch.allclose(true.gain_per_sample, dense_gain(nn.Sequential(*network.layers).eval(), state))


@pytest.mark.parametrize("module", [None, "layers", ["layers.0", "layers.1", "layers.2", "layers.3"]])
def test_the_blocks_of_a_network_on_what_reaches_them(network: Network, module: object) -> None:
    true = depth_spectrum(network.layers, network.embed(TOKENS).detach())
    network.train()
    found = depth_spectrum(network, TOKENS, module=module)
    assert found.names == ("layers.0", "layers.1", "layers.2", "layers.3")
    assert torch.allclose(found.per_sample, true.per_sample, atol=1e-9)
    few = depth_spectrum(network, (TOKENS, 2.0), module=module, samples=2)
    doubled = depth_spectrum(network, {"tokens": TOKENS, "scale": 2.0}, module=module)
    assert few.samples == 2 and torch.allclose(few.per_sample, doubled.per_sample[:2], atol=1e-9)


def test_everything_is_left_as_it_was(network: Network) -> None:
    model = nn.Sequential(nn.Conv1d(3, 4, 3, padding=1), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.5)).double()
    state = torch.randn(6, 3, 8, dtype=torch.float64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    handle = model[0].register_forward_hook(lambda *_: pytest.fail("the user's hook sees ours"))
    depth_spectrum(model, state)
    with pytest.raises(ValueError, match=r"derivative|differentiated|rows"):
        depth_spectrum([model, lambda x: x.sum()], state)
    handle.remove()
    network.train()
    depth_spectrum(network, TOKENS)
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(part.training for part in (*model.modules(), *network.modules()))
    assert all(p.grad is None and p.requires_grad for p in (*model.parameters(), *network.parameters()))


def test_batch_normalisation_is_a_constant_map() -> None:
    """With the statistics of the inputs in training mode, with the running ones in eval mode; conv, BN, relu × 6."""
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv1d(4, 4, 3, padding=1, bias=False), nn.BatchNorm1d(4), nn.ReLU()) for _ in range(6)]
    model, state = nn.Sequential(*blocks).double(), torch.randn(16, 4, 8, dtype=torch.float64)
    by_batch = depth_spectrum(model, state)
    constants, x = [], state
    for block in model:
        y = block[0](x)
        mean, deviation = y.mean((0, 2), keepdim=True), (y.var((0, 2), correction=0, keepdim=True) + 1e-5).sqrt()
        constants.append((block[0], mean, deviation))
        x = torch.relu((y - mean) / deviation)

    def explicit(x: Tensor) -> Tensor:
        for convolution, mean, deviation in constants:
            x = torch.relu((convolution(x) - mean) / deviation)
        return x

    true = dense_gain(explicit, state)
    assert by_batch.normalisation == "batch"
    assert torch.allclose(by_batch.gain_per_sample, true, atol=0.02)
    running = depth_spectrum(model.eval(), state)
    assert running.normalisation == "running"
    assert (running.gain_per_sample - true).abs().min() > 1.0  # mean 0 and variance 1 are far from what it sees


def test_rows_that_act_on_each_other_are_refused() -> None:
    state = torch.randn(4, 6)
    with pytest.raises(ValueError, match="block 2: what it makes of one row depends on another row"):
        depth_spectrum([torch.tanh, lambda x: x - x.mean(0)], state)
    with pytest.raises(ValueError, match="derivatives forward and back differ"):  # of one alone by its copies
        depth_spectrum([torch.tanh, lambda x: x - x.mean(0)], state[:1])


def test_types(network: Network) -> None:
    narrow = network.float()
    state = narrow.embed(TOKENS).detach()
    one, other = depth_spectrum(narrow.layers, state), depth_spectrum(narrow.layers, state, dtype=torch.float64)
    assert (one.dtype, other.dtype) == (torch.float32, torch.float64)
    assert torch.allclose(one.per_sample, other.per_sample, atol=1e-4)
    assert next(narrow.parameters()).dtype == torch.float32
    half = depth_spectrum(narrow.bfloat16().layers, state.bfloat16())
    assert half.dtype == torch.float32 and half.trusted.all()
    assert next(narrow.parameters()).dtype == torch.bfloat16
    assert (half.per_sample - one.per_sample).abs().median() < 0.01  # some unit may switch


def test_generator_and_tolerance() -> None:
    torch.manual_seed(0)
    blocks, state = [nn.Linear(64, 64) for _ in range(3)], torch.randn(2, 64)
    one, again = (depth_spectrum(blocks, state, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one.per_sample, again.per_sample)
    assert depth_spectrum(blocks, state, tolerance=0.3).passes < one.passes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ([torch.sin], TOKENS),
            r"inputs must be the state before the first block, floating, \(B, ...\); got torch.int64",
        ),
        (([torch.sin], "x"), "inputs must be the state before the first block.* got str"),
        (([], torch.zeros(2, 3)), "blocks must hold at least one block"),
        (([3], torch.zeros(2, 3)), "blocks must be callables that take a state to the next; got 3 for block 1"),
        (([torch.sin], torch.zeros(2, 3), 0), "k must be at least 1; got 0"),
        ((nn.Linear(3, 3), torch.zeros(2, 3)), "module: found no three blocks in a row"),
    ],
)
def test_refusals(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        depth_spectrum(*arguments)


def test_refusals_of_options(network: Network) -> None:
    state = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"module names blocks inside a network; blocks is no nn.Module but list"):
        depth_spectrum([torch.sin], state, module="layers")
    with pytest.raises(ValueError, match=r"dtype must be torch.float32, torch.float64 or None"):
        depth_spectrum([torch.sin], state, dtype=torch.float16)
    with pytest.raises(ValueError, match="samples must be at least 1, or None for all; got 0"):
        depth_spectrum([torch.sin], state, samples=0)
    with pytest.raises(ValueError, match="module: the model has no 'nothing'"):
        depth_spectrum(network, TOKENS, module="nothing")
    with pytest.raises(ValueError, match=r"inputs must be what Network.forward takes"):
        depth_spectrum(network, (TOKENS, 1.0, 2.0, 3.0))


def test_its_words() -> None:
    spectrum = depth_spectrum([lambda x: 2 * x] * 3, torch.randn(5, 4))
    assert math.isclose(spectrum.gain, 3 * math.log(2), abs_tol=1e-6)
    assert repr(spectrum).startswith("DepthSpectrum(3 blocks, ln σ₁ +2.079 ± 0.000 nats, gain +2.079")
