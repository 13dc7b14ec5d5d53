"""Cells against torch.nn, against their formulas written out, and against themselves network by network."""

import math

import pytest
import torch
from systems import flat, jacobian_by_autograd, noise
from torch import Generator, Tensor, nn

from lightning_lyapunov import lyapunov_spectrum
from lightning_lyapunov.bank.cell import Cell, Initial, State, Weights
from lightning_lyapunov.bank.cells import CELLS, UNKNOWN_CELLS

INPUT, HIDDEN, STEPS, BATCH, NETWORKS = 3, 6, 6, 4, 3
EXACT = {"rtol": 0.0, "atol": 1e-12}
TORCH = {"rnn": nn.RNN, "rnn_relu": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
HOW = Initial("normal", gain=1.5, input_gain=1.0, memory_bias=1.0)

every_cell = pytest.mark.parametrize("cell", CELLS.values(), ids=list(CELLS))
torch_cells = pytest.mark.parametrize("name", TORCH)


def weights(cell: Cell, seed: int = 0, inputs: int = INPUT) -> dict[str, Tensor]:
    """Weights of one network in float64, their biases drawn too."""
    drawn = cell.initial(inputs, HIDDEN, HOW, Generator().manual_seed(seed))
    biases = {key: w + noise(*w.shape, seed=seed).float() for key, w in drawn.items() if "bias" in key}
    return {key: weight.double() for key, weight in (drawn | biases).items()}


def unroll(cell: Cell, weights: Weights, inputs: Tensor) -> Tensor:
    """All states ``(T, ..., B, D)`` that inputs ``(T, ..., B, I)`` lead through."""
    weights = cell.prepared(weights)
    bias = weights["bias"].unsqueeze(-2)
    state: State = (inputs.new_zeros(*inputs.shape[1:-1], HIDDEN),) * cell.parts
    visited = []
    for x in inputs:
        state = cell.step(weights, x @ weights["ih"].mT + bias, state)
        visited.append(torch.cat(state, -1))
    return torch.stack(visited)


def read(cell: Cell, weights: Weights, inputs: Tensor) -> Tensor:
    """What the read-out sees of one network or several, step by step."""
    states = unroll(cell, weights, inputs)
    seen = [cell.seen(cell.prepared(weights), state) for state in states[..., :HIDDEN]]
    return torch.cat([torch.stack(seen), states[..., HIDDEN:]], -1)


def with_gradients(outputs: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    outputs.sin().sum().backward()
    return [outputs.detach(), *[p.grad for p in parameters if p.grad is not None]]


@every_cell
def test_stacked_networks_equal_each_alone(cell: Cell) -> None:
    alone = [weights(cell, seed) for seed in range(NETWORKS)]
    stacked = {key: torch.stack([one[key] for one in alone]).requires_grad_() for key in alone[0]}
    inputs = noise(STEPS, BATCH, INPUT)
    states, *gradients = with_gradients(
        read(cell, stacked, inputs.unsqueeze(1).expand(-1, NETWORKS, -1, -1)), list(stacked.values())
    )
    for n, one in enumerate(alone):
        parameters = [weight.requires_grad_() for weight in one.values()]
        expected, *slopes = with_gradients(read(cell, one, inputs), parameters)
        torch.testing.assert_close(states[:, n], expected, **EXACT)
        torch.testing.assert_close([gradient[n] for gradient in gradients], slopes, **EXACT)


@torch_cells
def test_step_and_gradient_equal_torch(name: str) -> None:
    cell = CELLS[name]
    ours = {key: weight.requires_grad_() for key, weight in weights(cell).items()}
    module = cell.module(ours).double()  # the weights were born in float32: nothing is lost
    assert type(module) is TORCH[name]
    inputs = noise(STEPS, BATCH, INPUT)
    theirs = [module.weight_ih_l0, module.weight_hh_l0, module.bias_ih_l0]
    expected = with_gradients(module(inputs)[0], theirs)
    states = unroll(cell, ours, inputs)[..., :HIDDEN]  # what the read-out sees
    torch.testing.assert_close(with_gradients(states, list(ours.values())), expected, **EXACT)


def test_two_layers_equal_torch() -> None:
    for name, kind in TORCH.items():
        cell = CELLS[name]
        below, above = weights(cell), weights(cell, seed=1, inputs=HIDDEN)
        module = cell.module(below, above).double()
        assert type(module) is kind and module.num_layers == 2
        inputs = noise(STEPS, BATCH, INPUT)
        states = unroll(cell, above, unroll(cell, below, inputs)[..., :HIDDEN])[..., :HIDDEN]
        torch.testing.assert_close(module(inputs)[0].detach(), states, **EXACT)


def test_mingru_step_by_its_formula() -> None:
    """With the paper's own gate z, which is one less what is kept."""
    w, (x, h) = weights(CELLS["mingru"]), (noise(INPUT, seed=1), noise(HIDDEN, seed=2))
    kept, candidate = (w["ih"] @ x + w["bias"]).chunk(2)
    z = 1 - 1 / (1 + (-kept).exp())
    by_hand = (1 - z) * h + z * candidate
    torch.testing.assert_close(CELLS["mingru"].module(w)(x[None], h[None]), by_hand[None], **EXACT)


def test_diagonal_layer_by_its_formula() -> None:
    """In complex numbers, as the paper has it."""
    cell = CELLS["diagonal"]
    w, (x, h) = weights(cell), (noise(INPUT, seed=1), noise(HIDDEN, seed=2))
    eigenvalues = torch.exp(-w["decay"].exp() + 1j * w["angle"])
    half = HIDDEN // 2
    driven = torch.complex(*(w["ih"] @ x + w["bias"]).split(half))
    after = eigenvalues * torch.complex(*h.split(half)) + (1 - eigenvalues.abs() ** 2).sqrt() * driven
    by_hand = torch.cat([after.real, after.imag])
    torch.testing.assert_close(cell.module(w)(x[None], h[None]), by_hand[None], **EXACT)
    a = w["mix"] @ by_hand + w["mix_bias"]
    seen = a * (1 + torch.erf(a / math.sqrt(2))) / 2
    torch.testing.assert_close(cell.seen(cell.prepared(w), by_hand[None]), seen[None], **EXACT)


def test_exponents_of_a_diagonal_layer_are_its_decays() -> None:
    cell = CELLS["diagonal"]
    w = weights(cell)
    spectrum = lyapunov_spectrum(cell.module(w).double(), noise(800, 1, INPUT), transient=400, dtype=torch.float64)
    decays = -w["decay"].exp().sort().values
    torch.testing.assert_close(spectrum.exponents, decays.repeat_interleave(2), rtol=0, atol=2e-3)


def test_antisymmetric_step_by_its_formula() -> None:
    cell = CELLS["antisymmetric"]
    w, (x, h) = weights(cell), (noise(INPUT, seed=1), noise(HIDDEN, seed=2))
    coupling = w["hh"] - w["hh"].T - 0.01 * torch.eye(HIDDEN, dtype=torch.float64)
    by_hand = h + 0.3 * torch.tanh(coupling @ h + w["ih"] @ x + w["bias"])
    torch.testing.assert_close(cell.module(w)(x[None], h[None]), by_hand[None], **EXACT)


def test_oscillator_step_by_its_formula() -> None:
    cell = CELLS["oscillator"]
    w, (x, y, z) = weights(cell), (noise(INPUT, seed=1), noise(HIDDEN, seed=2), noise(HIDDEN, seed=3))
    velocity = z + 0.25 * (torch.tanh(w["hh"] @ y + w["ih"] @ x + w["bias"]) - 1.0 * y - 0.5 * z)
    by_hand = (y + 0.25 * velocity)[None], velocity[None]
    torch.testing.assert_close(cell.module(w)(x[None], (y[None], z[None])), by_hand, **EXACT)


def test_cfc_step_by_its_formula() -> None:
    w, (x, h) = weights(CELLS["cfc"]), (noise(INPUT, seed=1), noise(HIDDEN, seed=2))
    shared = torch.tanh(w["hh"] @ h + w["ih"] @ x + w["bias"])
    f, g, k = (w["heads"] @ shared + w["heads_bias"]).chunk(3)
    gate = torch.sigmoid(-f)
    by_hand = gate * torch.tanh(g) + (1 - gate) * torch.tanh(k)
    torch.testing.assert_close(CELLS["cfc"].module(w)(x[None], h[None]), by_hand[None], **EXACT)


@every_cell
def test_spectrum_of_the_module_sums_to_the_log_determinant(cell: Cell) -> None:
    w, inputs, transient = weights(cell), noise(20, 2, INPUT), 5
    spectrum = lyapunov_spectrum(cell.module(w).double(), inputs, transient=transient, dtype=torch.float64)
    prepared = cell.prepared(w)
    state = torch.zeros(2, HIDDEN * cell.parts, dtype=torch.float64)
    logarithms = []
    for x in inputs:
        drive = x @ prepared["ih"].T + prepared["bias"]

        def step(state: Tensor, drive: Tensor = drive) -> Tensor:
            return flat(cell.step(prepared, drive, state.chunk(cell.parts, -1)))

        logarithms.append(torch.linalg.slogdet(jacobian_by_autograd(step, state)).logabsdet)
        state = step(state)
    assert spectrum.exponents.shape == (HIDDEN * cell.parts,)
    assert float(spectrum.exponents.sum()) == pytest.approx(float(torch.stack(logarithms[transient:]).mean()), abs=1e-7)


@every_cell
def test_a_module_starts_at_zero_keeps_its_weights_and_draws_nothing(cell: Cell) -> None:
    w, inputs = weights(cell), noise(1, 2, INPUT)
    before = torch.get_rng_state()
    module = cell.module(w).double()
    assert torch.equal(torch.get_rng_state(), before)
    after = module(inputs)[1] if isinstance(module, nn.RNNBase) else module(inputs[0], None)
    parts = after if isinstance(after, tuple) else (after,)
    expected = unroll(cell, w, inputs)[0]
    for weight in w.values():
        weight.zero_()
    torch.testing.assert_close(torch.cat([part.view(2, HIDDEN) for part in parts], -1), expected, **EXACT)
    again = module(inputs)[1] if isinstance(module, nn.RNNBase) else module(inputs[0], None)
    torch.testing.assert_close(again, after, **EXACT)


@pytest.mark.parametrize("kind", ["normal", "uniform", "orthogonal"])
@pytest.mark.parametrize("name", [name for name in CELLS if name not in ("mingru", "diagonal")])
def test_gain_is_the_spectral_radius_of_each_block(name: str, kind: str) -> None:
    size, cell = 96, CELLS[name]
    drawn = cell.initial(24, size, Initial(kind, 1.7, 0.6, 0.0), Generator().manual_seed(0))
    blocks = drawn["hh"].view(cell.gates, size, size)
    assert float(blocks.std() * math.sqrt(size)) == pytest.approx(1.7, rel=0.03)
    assert torch.linalg.eigvals(blocks).abs().amax(1).tolist() == pytest.approx([1.7] * cell.gates, rel=0.15)
    assert float(drawn["ih"].std() * math.sqrt(24)) == pytest.approx(0.6, rel=0.05)
    if kind == "uniform":
        assert float(blocks.abs().max()) == pytest.approx(1.7 * math.sqrt(3 / size), rel=1e-3)
    if kind == "orthogonal":
        torch.testing.assert_close(blocks.mT @ blocks, 1.7**2 * torch.eye(size).expand_as(blocks), rtol=0, atol=1e-4)


def test_gain_of_cells_without_a_recurrent_weight() -> None:
    """It scales the weights of minGRU's gate and the speed of a diagonal layer's decay, .01 to 1 nat at gain 1."""
    gate, candidate = CELLS["mingru"].initial(24, 96, Initial("normal", 1.7, 0.6, 0.0), Generator())["ih"].chunk(2)
    assert float(gate.std() * math.sqrt(24)) == pytest.approx(1.7, rel=0.05)
    assert float(candidate.std() * math.sqrt(24)) == pytest.approx(0.6, rel=0.05)
    drawn = CELLS["diagonal"].initial(24, 2000, Initial("orthogonal", 1.7, 0.6, 0.0), Generator().manual_seed(0))
    decay = drawn["decay"].exp() / 1.7
    assert 0.01 <= float(decay.min()) < 0.0105 and 0.95 < float(decay.max()) <= 1
    assert float(decay.log().mean()) == pytest.approx(math.log(0.1), rel=0.03)
    assert float(drawn["ih"].std() * math.sqrt(24)) == pytest.approx(0.6, rel=0.05)


@pytest.mark.parametrize("name", ["gru", "lstm", "mingru"])
def test_memory_bias_sets_what_is_kept(name: str) -> None:
    """Without recurrent weights or input, cells keep σ(bias) of their memory."""
    module = CELLS[name].module(CELLS[name].initial(1, 4, Initial("normal", 0.0, 0.0, 1.3), Generator()))
    memory = torch.ones(1, 2, 4)
    if name == "mingru":
        kept = module(torch.zeros(2, 1), memory[0])[None]
    else:
        after = module(torch.zeros(1, 2, 1), (torch.zeros_like(memory), memory) if name == "lstm" else memory)[1]
        kept = after[1] if name == "lstm" else after
    torch.testing.assert_close(kept, torch.sigmoid(torch.tensor(1.3)).expand_as(memory))


@pytest.mark.parametrize("name", ["rnn", "rnn_relu", *UNKNOWN_CELLS[1:]])
def test_without_a_memory_gate_there_is_no_bias(name: str) -> None:
    assert not CELLS[name].initial(2, 4, Initial("normal", 1.0, 1.0, 2.0), Generator())["bias"].any()


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"kind must be 'normal', 'uniform' or 'orthogonal'; got 'cauchy'\."):
        CELLS["rnn"].initial(2, 4, Initial("cauchy", 1.0, 1.0, 0.0), Generator())
