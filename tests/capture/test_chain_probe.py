"""What is kept of the blocks of a network: called again they are what they were, and the network is left as it was."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import chains
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_lyapunov.capture import chain_replay
from lightning_lyapunov.capture.chain_blocks import RecordedBlock, measuring_blocks
from lightning_lyapunov.capture.chain_probe import ChainProbe, KnownChain

MODES = ("training", "evaluating", "inference")


def image(batch: int = 4, size: int = 16) -> Tensor:
    return torch.randn(batch, 3, size, size)


def tokens(batch: int = 4, length: int = 6, width: int = 8) -> Tensor:
    return torch.randn(batch, length, width)


def ids(batch: int = 4, length: int = 6) -> Tensor:
    return torch.randint(0, 11, (batch, length))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def passed(model: nn.Module, run: Callable[[], Any], mode: str = "training") -> Any:
    """One forward pass as a training or a validation makes it."""
    model.train(mode == "training")
    with torch.inference_mode(mode == "inference"), torch.set_grad_enabled(mode == "training"):
        return run()


def record(probe: ChainProbe, model: nn.Module, *runs: Callable[[], Any], mode: str = "training") -> ChainProbe:
    for run in runs:
        probe.begin_batch(keep_latest=mode == "training")
        passed(model, run, mode)
        probe.end_turn(is_again=True)
        probe.end_batch()
    return probe


def probe_of(
    model: nn.Module, *runs: Callable[[], Any], module: Any = None, mode: str = "training", samples: int = 3
) -> ChainProbe:
    """A probe that watched some batches, each a forward pass."""
    return record(ChainProbe(model, module, samples), model, *runs, mode=mode)


def through(blocks: list[RecordedBlock], state: Tensor, copies: int = 1) -> Tensor:
    """The state after all blocks."""
    with measuring_blocks(blocks, state.dtype, state.device):
        for block in blocks:
            state = block(state, copies)
    return state


def last_state(model: nn.Module, module: nn.Module, run: Callable[[], Any], mode: str = "evaluating") -> Tensor:
    """What a module returns in a pass."""
    found: list[Tensor] = []
    handle = module.register_forward_hook(
        lambda _, args, output: found.append((output if isinstance(output, Tensor) else output[0]).clone())
    )
    passed(model, run, mode)
    handle.remove()
    return found[-1]


# ---------------------------------------------------------------------- blocks as they were


DESIGNS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], Any, str]] = {
    "mlp": (chains.mlp, lambda: torch.randn(4, 8), None, "4"),
    "resnet": (chains.ResNet, image, None, "layer4.1"),
    "vit": (chains.ViT, lambda: image(4, 8), None, "blocks.3"),
    "rotary": (chains.Rotary, ids, None, "layers.2"),
    "cached": (lambda: chains.Rotary(cached=True), ids, None, "layers.2"),
    "unet": (chains.UNet, image, None, "encoder.3"),
    "decoder": (chains.UNet, image, "decoder", "decoder.2"),
    "densenet": (chains.DenseNet, image, None, "features.block3"),
    "convnext": (chains.ConvNeXt, lambda: image(4, 32), None, "stages.3.blocks.1"),
    "t5": (chains.T5, ids, None, "block.3"),
    "tied": (chains.Tied, tokens, "layer", "layer"),
    "encoder": (lambda: chains.encoder(batch_first=True), tokens, None, "layers.2"),
    "encoder, tokens first": (chains.encoder, lambda: torch.randn(6, 4, 8), None, "layers.2"),
    "changing": (lambda: nn.Sequential(*(chains.Changing(8) for _ in range(3))), tokens, None, "2"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("design", list(DESIGNS))
def test_blocks_called_again_come_to_where_the_network_came(design: str, mode: str) -> None:
    """Of a training batch only where nothing was dropped: that is in other tests."""
    make, inputs, module, last = DESIGNS[design]
    net, x = make(), inputs()
    for part in net.modules():
        if isinstance(part, nn.Dropout | nn.MultiheadAttention):
            setattr(part, "p" if isinstance(part, nn.Dropout) else "dropout", 0.0)
    run = lambda: net(x.clone())  # noqa: E731
    expected = last_state(net, net.get_submodule(last), run, mode)
    probe = probe_of(net, run, module=module, mode=mode)
    blocks, state, alive = probe.states()
    axis = 1 if design.endswith("first") else 0
    assert len(state) == 3 and alive is None and not state.is_inference() and not probe.known.proof.open
    torch.testing.assert_close(through(blocks, state), expected.movedim(axis, 0)[:3].clone(), rtol=1e-3, atol=1e-4)
    twice = through(blocks, state.repeat_interleave(2, 0), copies=2)
    torch.testing.assert_close(twice[::2], twice[1::2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(twice[::2], through(blocks, state), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_derivatives_are_those_of_the_network(mode: str) -> None:
    """The Jacobian of the chain against that of the network between the same two states."""
    net, x = chains.Rotary().double(), ids()
    probe = probe_of(net, lambda: net(x), mode=mode)
    blocks, state, _ = probe.states()
    with measuring_blocks(blocks, state.dtype, state.device), torch.enable_grad():
        state = state.requires_grad_()
        after = state
        for block in blocks:
            after = block(after)
        (pulled,) = torch.autograd.grad(after, state, torch.ones_like(after))
    given = net.embed(x[:3]).detach().requires_grad_()
    net.embed.register_forward_hook(lambda module, args, output: given)
    net.norm.register_forward_pre_hook(lambda module, args: ends.append(args[0]))
    ends: list[Tensor] = []
    net.eval()(x[:3])
    (expected,) = torch.autograd.grad(ends[0], given, torch.ones_like(ends[0]))
    torch.testing.assert_close(pulled, expected)


def test_a_state_that_is_given_several_times_is_one_state() -> None:
    """As in attention(x, x, x): it is moved everywhere."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = chains.Mlp(8)

        def forward(self, x: Tensor, *, keys: list[Tensor]) -> Tensor:
            return self.mlp(x) * keys[0]

    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Twice() for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x, keys=[x, torch.ones(())])
            return x

    net, x = Doubled(), tokens()
    blocks, state, _ = probe_of(net, lambda: net(x)).states()
    other = torch.randn_like(state)
    torch.testing.assert_close(through(blocks, other), net(other).detach())


def test_a_cache_is_left_out_and_not_touched() -> None:
    plain, cached = chains.Rotary(), chains.Rotary(cached=True)
    cached.load_state_dict(plain.state_dict())
    x = ids()
    states = []
    for net in (plain, cached):
        probe = probe_of(net, lambda net=net: net(x))
        blocks, state, _ = probe.states()
        before = {} if net.cache is None else dict(net.cache.seen)
        states.append(through(blocks, state))
        assert net.cache is None or all(net.cache.seen[place] is keys for place, keys in before.items())
    assert torch.equal(*states)
    assert cached.cache.seen[0].shape == (4, 6, 8)  # a call again with the cache would make it longer


def test_a_block_that_changes_its_input_leaves_the_states_intact() -> None:
    net, x = nn.Sequential(*(chains.Changing(8) for _ in range(3))), tokens()
    expected = x[:3].clone()
    blocks, state, _ = probe_of(net, lambda: net(x.clone())).states()
    assert torch.equal(state, expected) and torch.equal(blocks[0](state.clone()), blocks[0](state.clone()))


@pytest.mark.parametrize(("length", "heads"), [(6, True), (4, True), (4, False)])
def test_tables_and_rows_are_told_apart_also_where_they_have_the_same_size(length: int, heads: bool) -> None:
    """A mask (T, T) that is the same for all, one for each head of each sample, and a batch of as many samples."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            if heads:
                mask = mask.repeat(2 * len(x), 1, 1).logical_and(torch.arange(2 * len(x))[:, None, None] < 4)
            for layer in self.layers:
                x = layer(x, mask)
            return x

    net, x = Masked(), tokens(4, length)
    blocks, state, alive = probe_of(net, lambda: net(x)).states()
    assert alive is None
    torch.testing.assert_close(through(blocks, state), net(x)[:3].detach(), rtol=1e-4, atol=1e-5)
    pairs = through(blocks, state.repeat_interleave(2, 0), copies=2)
    torch.testing.assert_close(pairs[::2], net(x)[:3].detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_weights_of_another_type_are_measured_in_the_one_asked_for(mode: str) -> None:
    net = chains.ViT(dropout=0.0).bfloat16()
    x = image(4, 8).bfloat16()
    blocks, state, _ = probe_of(net, lambda: net(x), mode=mode).states()
    assert state.dtype == torch.float32
    kinds = {parameter.dtype for parameter in net.parameters()}
    after = through(blocks, state.double())
    assert after.dtype == torch.float64 and {parameter.dtype for parameter in net.parameters()} == kinds
    exact = copy.deepcopy(net).double().eval()
    torch.testing.assert_close(after, exact.blocks(state.double()), rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------------- normalisation


def _make_biased(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
    """The variance that torch normalises with, where it keeps the unbiased one."""
    if module.training:
        count = args[0].numel() // args[0].shape[1]
        module.running_var.mul_((count - 1) / count)


def test_in_training_the_statistics_of_the_batch_are_constants() -> None:
    """Against the network with these put in by hand; with its own, untrained ones it comes to something else."""
    net, x = chains.ResNet(), image()
    probe = probe_of(net, lambda: net(x.clone()), samples=2)
    blocks, state, _ = probe.states()
    assert {block.normalisation for block in blocks} == {"batch"}
    by_hand = copy.deepcopy(net).train()
    for part in by_hand.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1.0
            part.register_forward_hook(_make_biased)
    by_hand(x.clone())  # whose running statistics are now those of the batch
    expected = last_state(by_hand, by_hand.layer4[1], lambda: by_hand(x.clone()))
    torch.testing.assert_close(through(blocks, state), expected[:2], rtol=1e-3, atol=1e-4)
    untrained = last_state(net, net.layer4[1], lambda: net(x.clone()))
    assert (through(blocks, state) - untrained[:2]).norm() > 0.5 * expected[:2].norm()


def test_what_was_recorded_stays_what_it_was_when_the_network_goes_on() -> None:
    """In eval mode by then, its running statistics moved."""
    net, x = chains.ResNet(), image()
    probe = probe_of(net, lambda: net(x.clone()))
    before = through(*probe.states()[:2])
    passed(net, lambda: net(image() * 5))
    net.eval()
    assert torch.equal(through(*probe.states()[:2]), before) and not net.training


def test_in_validation_the_running_ones_count() -> None:
    net, x = chains.ResNet(), image()
    passed(net, lambda: net(x.clone()))
    blocks, state, _ = probe_of(net, lambda: net(x.clone()), mode="inference").states()
    assert {block.normalisation for block in blocks} == {"running"}
    torch.testing.assert_close(through(blocks, state), last_state(net, net.layer4[1], lambda: net(x.clone()))[:3])


@pytest.mark.parametrize(
    "norm",
    [
        lambda: nn.BatchNorm1d(8, track_running_stats=False),
        lambda: nn.BatchNorm1d(8, affine=False),
        lambda: nn.InstanceNorm1d(8, track_running_stats=True),
        lambda: nn.InstanceNorm1d(8),
        lambda: nn.GroupNorm(2, 8),
    ],
)
@pytest.mark.parametrize("mode", ["training", "evaluating"])
def test_normalisations_of_any_kind_are_replayed(norm: Callable[[], nn.Module], mode: str) -> None:
    net = nn.Sequential(*(nn.Sequential(nn.Conv1d(8, 8, 3, padding=1), norm(), nn.Tanh()) for _ in range(3)))
    x = torch.randn(5, 8, 6) * 3 + 1
    buffers = {name: value.clone() for name, value in net.named_buffers()}
    probe = probe_of(net, lambda: net(x), mode=mode)
    buffers = buffers if mode == "evaluating" else {name: value.clone() for name, value in net.named_buffers()}
    blocks, state, _ = probe.states()
    through(blocks, state)
    assert not probe.known.proof.open
    assert all(torch.equal(value, buffers[name]) for name, value in net.named_buffers())


# ---------------------------------------------------------------------- proof


def test_a_block_that_keeps_a_state_of_its_own_is_refused_by_name() -> None:
    net = nn.Sequential(*(chains.Remembering(8) for _ in range(3)))
    probe = probe_of(net, lambda: net(tokens()))
    for _ in range(2):
        assert probe.has_recorded
        with pytest.raises(ValueError, match=r"0 \(Remembering\) called again .* differs by .* a state of its own"):
            probe.states()
        record(probe, net, lambda: net(tokens()))  # it stays refused, and nothing is recorded any more


class Mixing(nn.Module):
    """Takes something from the other rows."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.mlp = chains.Mlp(8, dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(x - x.mean(0))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_block_that_mixes_the_samples_is_refused(dropout: float) -> None:
    net = nn.Sequential(*(Mixing(dropout) for _ in range(3)))
    with pytest.raises(ValueError, match=r"0 \(Mixing\) called again .* mix the samples"):
        probe_of(net, lambda: net(tokens())).states()


class Noisy(nn.Module):
    """Draws random numbers, in eval mode too."""

    def __init__(self, *, always: bool) -> None:
        super().__init__()
        self.mlp, self.always = chains.Mlp(8), always

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.randn_like(x) if self.training or self.always else 0.0
        return x + self.mlp(x) + noise


@pytest.mark.parametrize("mode", ["training", "evaluating"])
def test_a_block_that_is_random_in_eval_mode_is_refused(mode: str) -> None:
    net = nn.Sequential(*(Noisy(always=True) for _ in range(3)))
    with pytest.raises(ValueError, match=r"0 \(Noisy\) called again .* draw random numbers in eval mode"):
        probe_of(net, lambda: net(tokens()), mode=mode).states()


def test_what_is_drawn_in_training_is_proved_from_the_random_state_of_later_batches() -> None:
    net, x = chains.ViT(dropout=0.4), image(4, 8)
    probe = probe_of(net, lambda: net(x))
    assert probe.known.proof.open == {0, 1, 2, 3} and len(probe.states()[0]) == 4  # and can be measured at once
    for left in (3, 2, 1, 0):
        before = torch.get_rng_state()
        passed(net, lambda: net(x))
        expected = torch.get_rng_state()
        torch.set_rng_state(before)
        record(probe, net, lambda: net(x))
        assert torch.equal(torch.get_rng_state(), expected)
        assert len(probe.known.proof.open) == left and probe.known.refusal is None


def test_what_a_pass_in_training_writes_down_is_as_it_was_before_for_the_replay() -> None:
    """As the iteration of a spectral norm."""
    blocks = [nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Tanh()) for _ in range(3)]
    for block in blocks:
        nn.utils.parametrizations.spectral_norm(block[0])
    net = nn.Sequential(*blocks)
    probe = probe_of(net, lambda: net(tokens()))
    assert probe.known.proof.open == {0, 1, 2}
    proved = []
    for place in range(3):
        for block in blocks:
            block[0].parametrizations.weight.original.data.normal_()  # to which a single iteration does not come
        record(probe, net, lambda: net(tokens()))
        proved += [place] if place not in probe.known.proof.open else []
    assert proved == [0, 1, 2] and probe.known.refusal is None


def test_the_random_state_shows_what_keeps_a_state_of_its_own() -> None:
    class Secret(chains.Remembering):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(nn.functional.dropout(x, 0.3, self.training))
            return out if self.training else out - self.last + 1.0  # which eval mode hides

    net = nn.Sequential(*(Secret(8) for _ in range(3)))
    probe = probe_of(net, lambda: net(tokens()))
    probe.states()
    record(probe, net, lambda: net(tokens()))
    with pytest.raises(ValueError, match=r"0 \(Secret\) called again"):
        probe.states()


def test_a_difference_is_found_that_is_small_but_no_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides of the tolerance."""

    class Drifting(nn.Module):
        def __init__(self, by: float) -> None:
            super().__init__()
            self.mlp, self.by, self.count = chains.Mlp(8), by, 0

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            return (x + self.mlp(x)) * (1 + self.by * self.count)

    for by, is_refused in ((1e-6, False), (1e-3, True)):
        net = nn.Sequential(*(Drifting(by) for _ in range(3)))
        probe = probe_of(net, lambda net=net: net(tokens()))
        assert (probe.known.refusal is not None) == is_refused


def test_weights_that_have_learnt_meanwhile_are_no_difference() -> None:
    """Where the update is in the batch that is recorded, and nobody says when it comes."""
    net, x = chains.mlp(), torch.randn(4, 8)
    optimizer = torch.optim.SGD(net.parameters(), 1.0)
    probe = ChainProbe(net, num_samples=2)
    for _ in range(8):
        probe.begin_batch(keep_latest=True)
        net(x).square().sum().backward()
        optimizer.step()
        probe.end_batch()
        assert probe.known.refusal is None
    assert torch.equal(probe.states()[1], x[:2])
    assert not probe.known.proof.open  # it is no longer tried


def test_a_chain_that_is_not_passed_as_before_is_told_of_and_looked_for_again() -> None:
    class Skipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(chains.PreNorm(8) for _ in range(5))
            self.left_out = -1

        def forward(self, x: Tensor) -> Tensor:
            for place, layer in enumerate(self.layers):
                x = x if place == self.left_out else layer(x)
            return x

    net, x = Skipping(), tokens()
    probe = probe_of(net, lambda: net(x))
    probe.forget()
    net.left_out = 2
    record(probe, net, lambda: net(x))
    with pytest.raises(ValueError, match=r"5 blocks layers.0 ... layers.4 .* not passed from end to end"):
        probe.states()
    record(probe, net, lambda: net(x))
    assert [block.name for block in probe.states()[0]] == [f"layers.{place}" for place in (0, 1, 3, 4)]


def test_where_there_is_no_room_the_blocks_are_kept_once_they_are_known() -> None:
    net, x = chains.ViT(dropout=0.0), image(4, 8)
    probe = record(ChainProbe(net, num_samples=3, most=1000), net, lambda: net(x))
    assert not probe.has_recorded and probe.plan.names == [f"blocks.{place}" for place in range(4)]
    record(probe, net, lambda: net(x))
    blocks, state, _ = probe.states()
    torch.testing.assert_close(through(blocks, state), net.eval().blocks(state))
    assert probe.known.proof.open  # there was no room for all states either: they are proved one by one
    record(probe, net, *[lambda: net(x)] * 4)
    assert not probe.known.proof.open and probe.known.refusal is None


# ---------------------------------------------------------------------- the run around it


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_autocast_is_as_it_was_in_the_replay_and_off_in_the_measurement(kind: torch.dtype) -> None:
    net, x = chains.ViT(dropout=0.0), image(4, 8)

    def run() -> Tensor:
        with torch.autocast("cpu", kind):
            return net(x)

    probe = probe_of(net, run)
    blocks, state, _ = probe.states()
    assert not probe.known.proof.open and state.dtype == torch.float32
    torch.testing.assert_close(through(blocks, state), net.eval().blocks(state), rtol=1e-5, atol=1e-6)
    plain = chains.mlp()  # whose states are of that type

    def run_plain() -> Tensor:
        with torch.autocast("cpu", kind):
            return plain(torch.ones(4, 8))

    probe = probe_of(plain, run_plain, module=["2", "3", "4"])
    assert probe.states()[1].dtype == torch.float32 and not probe.known.proof.open


def test_a_replay_within_autocast_leaves_nothing_in_its_cache() -> None:
    """Weights cast where no gradient is recorded would get none later."""
    net, x = chains.ViT(dropout=0.0), image(4, 8)
    probe = ChainProbe(net, num_samples=2)
    with torch.autocast("cpu", torch.bfloat16):
        probe.begin_batch(keep_latest=True)
        net(x)
        torch.clear_autocast_cache()
        assert probe.has_recorded and not probe.known.proof.open
        loss = net(x).square().mean()
    loss.backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_blocks_that_are_computed_again_in_the_backward_pass_are_recorded_once(use_reentrant: bool) -> None:
    class Saving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(chains.PreNorm(8) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = checkpoint(layer, x, use_reentrant=use_reentrant)
            return x

    net, x = Saving(), tokens().requires_grad_()
    probe = ChainProbe(net, num_samples=2)
    for _ in range(2):
        probe.begin_batch(keep_latest=True)
        net(x).sum().backward()
        probe.end_batch()
        blocks, state, _ = probe.states()
        assert torch.equal(state, x[:2].detach()) and len(blocks) == 3 and probe.extent.samples == 4
    torch.testing.assert_close(through(blocks, state), net.eval()(x)[:2].detach())


def test_compiled_blocks_are_measured_as_they_are_without() -> None:
    runs = []

    def backend(graph: Any, inputs: Any) -> Any:
        return lambda *args: (runs.append(1), graph.forward(*args))[1]

    net, x = chains.ViT(dropout=0.0), image(4, 8)
    for place in (0, 1):
        net.blocks[place] = torch.compile(net.blocks[place], backend=backend)
    net.blocks[2].compile(backend=backend)
    probe = probe_of(net, lambda: net(x))
    blocks, state, _ = probe.states()
    assert [block.name for block in blocks] == [f"blocks.{place}" for place in range(4)]
    assert {block.kind for block in blocks} == {"PreNorm"} and not probe.known.proof.open
    assert len(runs) == 3  # of the pass, and none of the replay
    after = through(blocks, state)
    assert len(runs) == 3
    torch.testing.assert_close(after, net.eval().blocks(state))
    assert vars(net.blocks[2]).get("_compiled_call_impl") is not None
    torch._dynamo.reset()


def test_a_model_compiled_as_a_whole_is_refused_with_what_to_do() -> None:
    for compiled in (torch.compile(chains.ViT(), backend="eager"), chains.ViT()):
        if isinstance(compiled, chains.ViT):
            compiled.compile(backend="eager")
        with pytest.raises(ValueError, match=r"compiled as a whole.*compile its blocks one by one"):
            ChainProbe(compiled)


def test_names_that_are_not_there_are_told_at_once() -> None:
    with pytest.raises(ValueError, match=r"the model has no 'layers'; it has blocks, blocks.0, "):
        ChainProbe(chains.ViT(), "layers")
    with pytest.raises(ValueError, match="at least one block; got none"):
        ChainProbe(chains.ViT(), [])


def test_nothing_reached_is_told() -> None:
    probe = ChainProbe(chains.ViT())
    assert not probe.has_recorded and probe.batches_needed == 1 and probe.extent.samples == 0
    with pytest.raises(ValueError, match="nothing reached the blocks in the forward pass"):
        probe.states()


# ---------------------------------------------------------------------- no trace


def trained(*, watched: bool, mode: str = "hooks") -> tuple[list[Tensor], Tensor]:
    """Some steps of training with dropout, batch normalisation, hooks and a validation: weights and random state."""
    torch.manual_seed(0)
    net = nn.ModuleList([chains.ViT(dropout=0.3), chains.ResNet()])
    seen: list[int] = []
    for part in net.modules():
        part.register_forward_hook(lambda module, args, output: seen.append(1))
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    known = [KnownChain(), KnownChain()]
    probes = [[ChainProbe(one, num_samples=2, known=known[place]) for place, one in enumerate(net)] for _ in ("t", "v")]
    for step in range(5):
        x = image(4, 8)
        if watched:
            for probe in probes[0]:
                probe.begin_batch(keep_latest=True)
        loss = net[0](x).square().mean() + net[1](x).square().mean()
        if watched:
            for probe in probes[0]:
                assert probe.has_recorded
                probe.pause()
                through(*probe.states()[:2])
                probe.go_on()
                probe.end_turn(is_again=True)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        for probe in probes[0]:
            probe.end_batch()
        if step % 2:
            net.eval()
            with torch.inference_mode():
                for place, probe in enumerate(probes[1]):
                    if watched:
                        probe.begin_batch(keep_latest=False)
                    seen.append(float(net[place](x).sum()))
                    probe.end_batch()
            net.train()
    for probe in [*probes[0], *probes[1]]:
        probe.remove()
    state = [*net.parameters(), *net.buffers(), torch.tensor(seen)]
    state += [torch.tensor([len(part._forward_hooks) + len(part._forward_pre_hooks) for part in net.modules()])]
    assert all("_compiled_call_impl" not in vars(part) and part.training for part in net.modules())
    return [one.detach().clone() for one in state], torch.get_rng_state()


def test_training_is_the_same_to_the_last_bit() -> None:
    """Weights, running statistics and their counters, hooks and what they saw, validation, the random state."""
    (plain, plain_random), (watched, random) = trained(watched=False), trained(watched=True)
    assert len(plain) == len(watched) and all(map(torch.equal, plain, watched)) and torch.equal(plain_random, random)


@pytest.mark.parametrize("fails", [False, True])
def test_a_measurement_undoes_everything_it_sets(fails: bool) -> None:
    net, x = chains.ViT(dropout=0.0), image(4, 8)
    blocks, state, _ = probe_of(net, lambda: net(x)).states()
    net.blocks[1].eval()
    net.blocks[0].register_forward_hook(print)
    attributes = [
        {name: dict(value) if isinstance(value, dict) else value for name, value in vars(part).items()}
        for part in net.modules()
    ]
    torch.backends.cuda.enable_math_sdp(False)
    torch.backends.mha.set_fastpath_enabled(True)
    try:
        flags = (torch.backends.cuda.math_sdp_enabled(), torch.backends.cuda.flash_sdp_enabled())
        try:
            with measuring_blocks(blocks, torch.float64, state.device):
                assert torch.backends.cuda.math_sdp_enabled() and not torch.backends.cuda.flash_sdp_enabled()
                assert not torch.backends.mha.get_fastpath_enabled() and not net.blocks[0].attn.training
                if fails:
                    raise KeyError
        except KeyError:
            assert fails
        assert flags == (torch.backends.cuda.math_sdp_enabled(), torch.backends.cuda.flash_sdp_enabled())
        assert torch.backends.mha.get_fastpath_enabled() and torch.is_grad_enabled()
    finally:
        torch.backends.cuda.enable_math_sdp(True)
    assert attributes == [
        {name: dict(value) if isinstance(value, dict) else value for name, value in vars(part).items()}
        for part in net.modules()
    ]


def test_attention_is_measured_by_products_that_have_forward_derivatives() -> None:
    net, x = chains.ViT(dropout=0.0), image(4, 8)
    blocks, state, _ = probe_of(net, lambda: net(x)).states()
    with measuring_blocks(blocks, state.dtype, state.device):
        _, moved = torch.func.jvp(blocks[0], (state,), (torch.ones_like(state),))
    assert moved.isfinite().all()
    with pytest.raises(NotImplementedError):
        torch.func.jvp(net.blocks[0], (state,), (torch.ones_like(state),))


def test_the_network_can_be_copied_and_pickled_while_it_is_recorded() -> None:
    net, x = chains.ViT(), image(4, 8)
    probe = ChainProbe(net, num_samples=2)
    probe.begin_batch(keep_latest=True)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        other(x)
    assert not probe.has_recorded
    net(x)
    assert probe.has_recorded


def test_a_pass_that_fails_leaves_the_network_as_it_was() -> None:
    net = chains.ViT()
    probe = ChainProbe(net, num_samples=2)
    probe.begin_batch(keep_latest=True)
    with pytest.raises(RuntimeError):
        net(torch.randn(2, 5))
    probe.remove()
    assert all("_compiled_call_impl" not in vars(part) for part in net.modules())
    assert record(probe, net, lambda: net(image(4, 8))).has_recorded


def test_calls_of_a_measurement_are_not_recorded() -> None:
    net, x = chains.mlp(), torch.randn(4, 8)
    probe = ChainProbe(net, num_samples=8)
    probe.begin_batch(keep_latest=True)
    net(x)
    probe.pause()
    net(x + 1)
    probe.go_on()
    net(x + 2)
    probe.end_batch()
    torch.testing.assert_close(probe.states()[1], torch.cat([x, x + 2]))


# ---------------------------------------------------------------------- batches


def test_of_training_the_latest_batches_count_and_of_validation_the_first() -> None:
    net = chains.mlp()
    batches = [torch.full((2, 8), float(value)) for value in range(4)]
    latest = probe_of(net, *[lambda x=x: net(x) for x in batches], samples=4)
    assert latest.states()[1][:, 0].tolist() == [3, 3, 2, 2] and latest.batches_needed == 2
    first = probe_of(net, *[lambda x=x: net(x) for x in batches], samples=4, mode="inference")
    assert sorted(first.states()[1][:, 0].tolist()) == [0, 0, 1, 1] and first.extent.samples == 4
    assert len(first.states(3)[1]) == 3
    first.forget()
    assert not first.has_recorded and first.plan.names == ["0", "2", "4"]
    few = probe_of(net, lambda: net(batches[0]), samples=1)
    assert len(few.states()[1]) == 1 and few.extent.samples == 2 and few.batches_needed == 1


def test_samples_normalised_by_different_batches_are_not_mixed() -> None:
    net = chains.ResNet()
    probe = probe_of(net, *[lambda: net(image(2)) for _ in range(3)], samples=4)
    assert len(probe.states()[1]) == 2 and probe.batches_needed == 1
    probe = probe_of(net, *[lambda: net(image(2)) for _ in range(3)], samples=4, mode="evaluating")
    assert len(probe.states()[1]) == 4


def test_batches_of_different_lengths_are_not_laid_side_by_side() -> None:
    net = chains.Rotary()
    probe = probe_of(net, lambda: net(ids(2, 6)), lambda: net(ids(3, 5)), lambda: net(ids(2, 6)), samples=8)
    assert probe.states()[1].shape == (4, 6, 8) or probe.states()[1].shape == (3, 5, 8)
    assert len(through(*probe.states()[:2])) == len(probe.states()[1])


def test_images_of_different_sizes_are_not_laid_side_by_side() -> None:
    net = chains.ResNet()
    probe = probe_of(net, lambda: net(image(2, 16)), lambda: net(image(1, 32)), samples=4, mode="evaluating")
    assert probe.states()[1].shape == (2, 4, 8, 8) and probe.extent.samples == 3


def test_masks_go_with_their_samples_from_batch_to_batch() -> None:
    net = chains.Rotary()
    masks = [torch.tensor([[1] * length + [0] * (6 - length)]) for length in (6, 4, 5)]
    x = ids(3)
    runs = [lambda row=row, mask=mask: net(x[row : row + 1], mask) for row, mask in enumerate(masks)]
    blocks, state, alive = probe_of(net, *runs, samples=3, mode="evaluating").states()
    assert alive is not None and sorted(alive.sum(1).tolist()) == [4, 5, 6]
    order = [{6: 0, 4: 1, 5: 2}[count] for count in alive.sum(1).tolist()]
    expected = last_state(net, net.layers[-1], lambda: net(x, torch.cat(masks)))[order]
    torch.testing.assert_close(through(blocks, state), expected)


def test_another_pass_over_the_same_rows_takes_the_place_of_the_first() -> None:
    net = chains.mlp()
    probe = ChainProbe(net, num_samples=8)
    for is_again in (True, False):
        probe.begin_batch(keep_latest=True)
        for value in (1.0, 2.0):
            net(torch.full((2, 8), value))
            probe.end_turn(is_again=is_again)
        probe.end_batch()
        values = probe.states()[1][:, 0].tolist()
        assert values == ([2, 2] if is_again else [1, 1, 2, 2, 2, 2])
    assert probe.seconds > 0


def test_what_one_probe_has_found_out_another_knows() -> None:
    net, known = chains.ViT(dropout=0.5), KnownChain()
    training, validation = (ChainProbe(net, num_samples=2, known=known) for _ in range(2))
    record(validation, net, lambda: net(image(4, 8)), mode="inference")
    assert not known.proof.open and training.plan is validation.plan
    record(training, net, lambda: net(image(4, 8)))
    assert len(training.states()[0]) == 4 and training.extent.samples == 4


# ---------------------------------------------------------------------- tokens behind a mask


def rows_of_lengths(*lengths: int, total: int = 6) -> Tensor:
    """True where a token counts."""
    return torch.arange(total) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("kind", ["bool", "float", "both"])
@pytest.mark.parametrize("batch_first", [True, False])
def test_padding_of_torchs_encoder_is_told(kind: str, batch_first: bool) -> None:
    net = chains.encoder(batch_first=batch_first, dropout=0.0)
    alive = rows_of_lengths(6, 3, 5, 6)
    mask = ~alive if kind == "bool" else torch.zeros(4, 6).masked_fill(~alive, -torch.inf)
    causal = nn.Transformer.generate_square_subsequent_mask(6) if kind == "both" else None
    x = tokens(4) if batch_first else tokens(4).transpose(0, 1)
    blocks, state, found = probe_of(net, lambda: net(x, causal, mask), samples=4).states()
    assert state.shape == (4, 6, 8) and torch.equal(found, alive) and len(blocks) == 3


@pytest.mark.parametrize("form", ["rows", "keys", "causal", "added", "left", "window"])
def test_padding_is_told_by_masks_of_any_form(form: str) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(self.Layer() for _ in range(3))

        class Layer(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.block = chains.PreNorm(8)

            def forward(self, x: Tensor, *, attention_mask: Tensor) -> Tensor:
                mask = attention_mask[:, None, None].bool() if attention_mask.dim() == 2 else attention_mask
                return self.block(x, mask)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x, attention_mask=mask)
            return x

    alive = rows_of_lengths(6, 3, 5, 6)
    causal = torch.ones(6, 6, dtype=torch.bool).tril()
    keys = alive[:, None, None, :]
    if form == "left":  # padded queries look at everything, so that no row is empty
        alive = alive.flip(1)
        mask = causal & alive[:, None, None, :]
        mask = mask | ~mask.any(-1, keepdim=True)
    elif form == "window":
        mask = causal & causal.T.roll(2, 0).tril(6) & keys | torch.eye(6, dtype=torch.bool) & keys
    else:
        mask = {"rows": alive.long(), "keys": keys, "causal": causal & keys, "added": keys}[form]
    mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo().min) if form == "added" else mask
    net, x = Masked(), tokens(4)
    probe = probe_of(net, lambda: net(x, mask), samples=4)
    assert torch.equal(probe.states()[2], alive)
    _, state, found = probe.states(2)  # those without padding first
    assert found is None and torch.equal(state, x[[0, 3]])
    assert probe_of(net, lambda: net(x, torch.ones(4, 6)), samples=4).states()[2] is None


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("mode", ["evaluating", "inference"])
def test_nested_tensors_that_torchs_encoder_makes_are_laid_out_with_a_mask(mode: str) -> None:
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 3)
    x, alive = tokens(4), rows_of_lengths(6, 3, 5, 6)
    run = lambda: net(x, src_key_padding_mask=~alive)  # noqa: E731
    expected = passed(net, run, mode)
    probe = probe_of(net, run, mode=mode, samples=4)
    blocks, state, found = probe.states()
    assert torch.equal(found, alive) and not probe.known.proof.open
    assert torch.equal(state, x * alive[..., None])
    after = through(blocks, state) * alive[..., None]
    torch.testing.assert_close(after, expected.clone(), rtol=1e-4, atol=1e-5)


def test_a_mask_of_other_tokens_says_nothing_of_these() -> None:
    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.TransformerDecoderLayer(8, 2, 16, 0.0, batch_first=True) for _ in range(3))

        def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x, memory, memory_key_padding_mask=mask)
            return x

    net = Crossed()
    x, memory, mask = tokens(4), tokens(4), ~rows_of_lengths(6, 3, 5, 6)
    blocks, state, alive = probe_of(net, lambda: net(x, memory, mask)).states()
    assert alive is None
    torch.testing.assert_close(through(blocks, state), net(x, memory, mask)[:3].detach(), rtol=1e-4, atol=1e-5)


def test_float32_products_in_fewer_digits_have_room_in_the_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    precisions = {"highest": 1e-4, "high": 5e-3, "medium": 5e-2}
    net, x = chains.mlp(), torch.randn(4, 8)
    found = torch.get_float32_matmul_precision()
    probe = ChainProbe(net)
    probe.begin_batch(keep_latest=True)
    net(x)
    assert probe._watch is not None
    call = probe._watch.flow.calls[1]
    try:
        for precision, tolerance in precisions.items():
            torch.set_float32_matmul_precision(precision)
            assert chain_replay._tolerance([call], x) == tolerance
    finally:
        torch.set_float32_matmul_precision(found)


def test_a_block_under_several_names_is_known_by_each() -> None:
    shared = chains.PreNorm(8)
    net, x = nn.Sequential(nn.Linear(8, 8), shared, shared, shared), tokens()
    with pytest.raises(ValueError, match=r"1 is called 3 times: name it .* module='1'"):
        probe_of(net, lambda: net(x)).states()
    for module in ("2", ["1", "2", "3"]):
        probe = probe_of(net, lambda: net(x), module=module)
        assert [block.name for block in probe.states()[0]] == ["1", "1#2", "1#3"]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_a_scripted_part_of_a_block_is_no_obstacle() -> None:
    class Scripted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.mlp = torch.jit.script(nn.GELU()), chains.Mlp(8)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.mlp(self.act(x))

    net, x = nn.Sequential(*(Scripted() for _ in range(3))), tokens()
    blocks, state, _ = probe_of(net, lambda: net(x)).states()
    torch.testing.assert_close(through(blocks, state), net(x)[:3].detach())
    assert net[0].act.training
