"""Which blocks are found in small networks of the usual designs, against what their authors call their layers."""

from collections.abc import Callable, Sequence
from typing import Any

import chains
import pytest
import torch
from torch import Tensor, nn

from lightning_lyapunov.capture.chain_finder import ChainPlan, find_chain
from lightning_lyapunov.capture.chain_plan import runs_of
from lightning_lyapunov.capture.flow import Flow, FlowWatch, watchable

IMAGE, TOKENS, IDS, ROWS = (2, 3, 32, 32), (2, 6, 8), "ids", (2, 8)
MODES = ("training", "evaluating", "inference")


def inputs_of(shape: Any) -> Tensor:
    torch.manual_seed(1)
    return torch.randint(0, 11, (2, 6)) if shape == IDS else torch.randn(shape)


def flow_of(model: nn.Module, run: Callable[[], Any], mode: str = "training") -> Flow:
    modules, is_compiled = watchable(model)
    watch = FlowWatch(modules, is_compiled=is_compiled)
    model.train(mode == "training")
    watch.start()
    try:
        with torch.inference_mode(mode == "inference"), torch.set_grad_enabled(mode == "training"):
            run()
    finally:
        watch.stop()
    assert watch.trouble is None
    return watch.flow


def found(
    model: nn.Module, shape: Any, module: str | Sequence[str] | None = None, *, mode: str = "training", rows: int = 0
) -> ChainPlan:
    x = inputs_of(shape)
    flow = flow_of(model, lambda: model(x.clone()), mode)
    plan = find_chain(flow, module, rows=rows)
    (run,) = runs_of(flow, plan)
    assert [row[0].module for row in run] == [link.modules[0] for link in plan.links]
    return plan


class Whole(nn.Module):
    """A network inside another, as in a LightningModule."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.loss = nn.MSELoss()

    def forward(self, x: Tensor) -> Tensor:
        y = self.net(x)
        return self.loss(y, torch.zeros_like(y))


class Glued(nn.Module):
    """With something between its blocks that no module does."""

    def __init__(self, between: Callable[[Tensor], Tensor] = torch.tanh, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.ModuleList(chains.PreNorm(width) for _ in range(4))
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.between(layer(x))
        return x


DESIGNS: dict[str, tuple[Callable[[], nn.Module], Any, str]] = {
    "mlp": (chains.mlp, ROWS, "3 blocks 0 ... 4 (Linear)"),
    "mlp of five": (lambda: chains.mlp(depth=5), ROWS, "5 blocks 0 ... 8 (Linear)"),
    "mlp of pairs": (
        lambda: nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4)), nn.Linear(8, 2)),
        ROWS,
        "4 blocks 0 ... 3 (Sequential)",
    ),
    "resnet": (chains.ResNet, IMAGE, "8 blocks layer1.0 ... layer4.1 (BasicBlock)"),
    "vit": (chains.ViT, (2, 3, 8, 8), "4 blocks blocks.0 ... blocks.3 (PreNorm)"),
    "convnext": (
        chains.ConvNeXt,
        IMAGE,
        "9 blocks stages.0.blocks.0 ... stages.3.blocks.1 (NextBlock) and 3 links between them",
    ),
    "densenet": (
        chains.DenseNet,
        IMAGE,
        "4 blocks features.block0 ... features.block3 (DenseBlock) and 3 links between them",
    ),
    "unet": (
        chains.UNet,
        IMAGE,
        "4 blocks encoder.0 ... encoder.3 (DoubleConv) and 3 links between them",
    ),
    "language model": (chains.Rotary, IDS, "3 blocks layers.0 ... layers.2 (RotaryLayer)"),
    "with a cache": (lambda: chains.Rotary(cached=True), IDS, "3 blocks layers.0 ... layers.2 (RotaryLayer)"),
    "t5": (chains.T5, IDS, "4 blocks block.0 ... block.3 (T5Block)"),
    "torch's encoder": (
        lambda: chains.encoder(batch_first=True),
        TOKENS,
        "3 blocks layers.0 ... layers.2 (TransformerEncoderLayer)",
    ),
    "changing": (
        lambda: nn.Sequential(*(chains.Changing(8) for _ in range(3))),
        TOKENS,
        "3 blocks 0 ... 2 (Changing)",
    ),
    "in a module": (
        lambda: Whole(chains.ViT()),
        (2, 3, 8, 8),
        "4 blocks net.blocks.0 ... net.blocks.3 (PreNorm)",
    ),
    "convolutions": (
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(676, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2), nn.Softmax(-1)),
        ),
        IMAGE,
        "4 blocks 0 ... 9 (Conv2d, Linear)",
    ),
    "begins with a norm": (
        lambda: nn.Sequential(nn.BatchNorm1d(8), *chains.mlp()),
        ROWS,
        "3 blocks 1 ... 5 (Linear)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("design", list(DESIGNS))
def test_the_right_blocks_are_found(design: str, mode: str) -> None:
    make, shape, words = DESIGNS[design]
    assert found(make(), shape, mode=mode).words == words


def test_a_plan_tells_names_kinds_modules_and_shapes() -> None:
    net = chains.ConvNeXt((1, 2, 1, 1))
    plan = found(net, IMAGE)
    assert plan.names[:3] == ["stages.0.blocks.0", "stages.1.downsample", "stages.1.blocks.0"]
    assert plan.kinds[:2] == ["NextBlock", "Sequential"] and [link.is_block for link in plan.links[:2]] == [True, False]
    assert plan.modules[0] is net.stages[0].blocks[0] and len(plan.shapes) == len(plan.links) + 1
    assert plan.shapes[0] == (2, 4, 16, 16) and plan.shapes[-1] == (2, 10, 2, 2) and plan.conditional == ()


def test_a_residual_network_is_never_read_as_a_row_of_convolutions() -> None:
    """Even its downsampling blocks are whole: what is added in place is not what the convolution returned."""
    for mode in MODES:
        plan = found(chains.ResNet(), IMAGE, mode=mode)
        assert set(plan.kinds) == {"BasicBlock"} and not any("conv" in name for name in plan.names)


def test_an_own_branch_that_is_added_to_in_place_is_no_block() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.Tanh()), nn.Sequential(nn.Linear(8, 8)))

        def forward(self, x: Tensor) -> Tensor:
            y = self.branch(x)
            y += x
            return y

    for mode in MODES:
        plan = found(nn.Sequential(*(Block() for _ in range(3))), ROWS, mode=mode)
        assert plan.names == ["0", "1", "2"] and set(plan.kinds) == {"Block"}


def test_dropout_between_blocks_goes_with_the_block_before_in_any_mode() -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(chains.PreNorm(8) for _ in range(3))
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = self.drop(layer(x))
            return x

    net, x = Dropping(), inputs_of(TOKENS)
    flows = {mode: flow_of(net, lambda: net(x), mode) for mode in ("training", "evaluating")}
    for flow in flows.values():
        plan = find_chain(flow)
        assert plan.names == ["layers.0", "layers.1", "layers.2"]
        assert all(len(runs_of(other, plan)) == 1 for other in flows.values())


def test_skips_are_found_where_the_block_takes_the_sum_and_the_skip() -> None:
    """As in a BERT, whose inner parts are given the skip: the layer is the block."""

    class Output(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)

        def forward(self, x: Tensor, skip: Tensor) -> Tensor:
            return self.norm(self.dense(x) + skip)

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.output = chains.Attention(8), Output()
            self.mlp, self.output2 = chains.Mlp(8), Output()

        def forward(self, x: Tensor) -> Tensor:
            x = self.output(self.attention(x), x)
            return self.output2(self.mlp(x), x)

    for mode in MODES:
        plan = found(nn.Sequential(*(Layer() for _ in range(4))), TOKENS, mode=mode)
        assert plan.names == ["0", "1", "2", "3"] and set(plan.kinds) == {"Layer"}


def test_what_is_inside_the_last_block_is_no_part_of_the_chain() -> None:
    """Where a block is made of layers of a kind that also leads into the chain."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.act = nn.Sequential(nn.Linear(8, 8)), nn.Tanh()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.linear(x))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Sequential(Layer(), Layer())

        def forward(self, x: Tensor) -> Tensor:
            return x + self.layer(x)

    net = nn.Sequential(Layer(), *(Block() for _ in range(4)))
    assert found(net, ROWS).names == ["1", "2", "3", "4"]


def test_the_largest_of_several_chains_is_taken_and_decoders_count_half() -> None:
    class Two(nn.Module):
        def __init__(self, small: int, large: int) -> None:
            super().__init__()
            self.small = nn.Sequential(*(chains.PreNorm(8) for _ in range(small)))
            self.decoder = nn.ModuleList(nn.TransformerDecoderLayer(8, 2, 16, batch_first=True) for _ in range(large))

        def forward(self, x: Tensor) -> Tensor:
            memory, y = self.small(x), x.flip(1)
            for layer in self.decoder:
                y = layer(y, memory)
            return y

    for mode in MODES:
        assert found(Two(4, 4), TOKENS, mode=mode).names[0] == "small.0"
        assert found(Two(3, 9), TOKENS, mode=mode).names == [f"decoder.{place}" for place in range(9)]


def test_heads_that_branch_off_are_left_out() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(chains.PreNorm(8) for _ in range(5))
            self.heads = nn.ModuleList(chains.Mlp(8) for _ in range(5))

        def forward(self, x: Tensor) -> Tensor:
            out = torch.zeros(())
            for block, head in zip(self.blocks, self.heads, strict=True):
                x = block(x)
                out = out + head(x)
            return out

    assert found(Deep(), TOKENS).names == [f"blocks.{place}" for place in range(5)]


def test_two_passes_through_the_same_blocks_are_two_runs_and_no_repetition() -> None:
    net, x = chains.ViT(), inputs_of((2, 3, 8, 8))
    flow = flow_of(net, lambda: (net(x), net(x + 1)))
    plan = find_chain(flow)
    assert plan.names == [f"blocks.{place}" for place in range(4)] and len(runs_of(flow, plan)) == 2


def test_runs_through_a_layer_that_is_called_again_do_not_overlap() -> None:
    net, x = chains.Tied(), inputs_of(TOKENS)
    flow = flow_of(net, lambda: net(x))
    runs = runs_of(flow, find_chain(flow, ["layer", "layer"]))
    assert len(runs) == 2 and runs[0][1][0].after == runs[1][0][0].before


def test_passes_side_by_side_are_told_apart() -> None:
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(chains.PreNorm(8) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            y = x.flip(1)
            for block in self.blocks:
                x, y = block(x), block(y)
            return x + y

    net, x = Siamese(), inputs_of(TOKENS)
    flow = flow_of(net, lambda: net(x))
    runs = runs_of(flow, find_chain(flow))
    assert len(runs) == 2 and all(run[0][0].after == run[1][0].before for run in runs)


# ---------------------------------------------------------------------- by name


@pytest.mark.parametrize("mode", MODES)
def test_a_decoder_is_measured_by_name_and_says_that_it_hangs_on_skips(mode: str) -> None:
    plan = found(chains.UNet(), IMAGE, "decoder", mode=mode)
    assert plan.names == list(plan.conditional) == ["decoder.0", "decoder.1", "decoder.2"]
    assert plan.words == (
        "3 blocks decoder.0 ... decoder.2 (Up), conditional on skips into decoder.0, decoder.1, decoder.2"
    )


def test_containers_and_blocks_can_be_named() -> None:
    vit, shape = chains.ViT(), (2, 3, 8, 8)
    assert found(vit, shape, "blocks").names == [f"blocks.{place}" for place in range(4)]
    assert found(vit, shape, "blocks.1").words == "1 block blocks.1 (PreNorm)"
    assert found(vit, shape, ["blocks.1", "blocks.2"]).words == "2 blocks blocks.1 ... blocks.2 (PreNorm)"
    assert found(chains.ViT(depth=2), shape, "blocks").names == ["blocks.0", "blocks.1"]
    assert found(chains.Rotary(depth=2), IDS, "layers").names == ["layers.0", "layers.1"]
    assert found(chains.ResNet(), IMAGE, "layer2").names == ["layer2.0", "layer2.1"]
    assert found(chains.mlp(depth=2), ROWS, "").names == ["0", "2"]
    assert found(nn.Sequential(chains.DoubleConv(3, 4)), IMAGE, "0").names == ["0.0", "0.2"]
    assert found(chains.ResNet(), IMAGE, ["conv1", "bn1", "relu", "maxpool", "layer1.0"]).kinds[-1] == "BasicBlock"


@pytest.mark.parametrize("mode", MODES)
def test_a_layer_that_is_called_again_and_again_is_measured_call_by_call_when_named(mode: str) -> None:
    plan = found(chains.Tied(), TOKENS, "layer", mode=mode)
    assert plan.names == ["layer", "layer#2", "layer#3", "layer#4"] and len(plan.modules) == 1
    assert found(chains.Tied(), TOKENS, ["start", "layer", "layer"], mode=mode).names == ["start", "layer", "layer#2"]


def test_modules_without_weights_may_repeat() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(8, 8) for _ in range(3))
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.act(self.b(self.act(self.a(x)))))

    assert found(Plain(), ROWS).names == ["a", "b", "c"]


def test_weights_that_are_computed_make_no_other_kind() -> None:
    """Torch gives each such module a class of its own, and modules inside that take weights."""
    plain = nn.Sequential(*(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)) for _ in range(3)))
    assert found(plain, ROWS).words == "3 blocks 0 ... 2 (Linear)"
    vit = chains.ViT()
    for block in vit.blocks:
        nn.utils.parametrizations.weight_norm(block.mlp.fc1)
        nn.utils.parametrizations.orthogonal(block.attn.proj)
    assert found(vit, (2, 3, 8, 8)).words == "4 blocks blocks.0 ... blocks.3 (PreNorm)"
    pairs = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3)))
    for pair in pairs:
        nn.utils.parametrizations.weight_norm(pair[0])
    assert found(pairs, ROWS).words == "3 blocks 0 ... 2 (Sequential)"


def test_samples_may_be_on_the_second_axis() -> None:
    plan = found(chains.encoder(), (6, 2, 8), rows=1)
    assert plan.names == ["layers.0", "layers.1", "layers.2"] and plan.shapes[0] == (6, 2, 8)


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize("mode", MODES)
def test_a_skip_that_goes_round_a_block_is_refused(mode: str) -> None:
    for module in (None, "layers"):
        with pytest.raises(ValueError, match=r"layers.0.2 \(Residual\) is given the state before layers.0.0") as error:
            found(chains.SkipsOutside(), TOKENS, module, mode=mode)
        assert "would miss that way round" in str(error.value) and "depth_spectrum" in str(error.value)
    names = [f"layers.{layer}.{part}" for layer in range(2) for part in range(3)]
    with pytest.raises(ValueError, match=r"layers.0.2 \(Residual\) is given"):
        found(chains.SkipsOutside(), TOKENS, names, mode=mode)


def test_layers_inside_a_block_are_not_taken_where_the_blocks_are_refused() -> None:
    net = chains.SkipsOutside()
    for place in range(4):
        net.layers[place][1] = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3)))
    with pytest.raises(ValueError, match=r"layers.0.2 \(Residual\) is given"):
        found(net, TOKENS)


def test_a_skip_that_has_been_worked_on_is_seen_by_the_graph_of_gradients() -> None:
    class Add(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = chains.Mlp(8)

        def forward(self, x: Tensor, skip: Tensor) -> Tensor:
            return self.mlp(x) + skip

    class Worked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(8, 8)
            self.blocks = nn.ModuleList(Add() for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            for block in self.blocks:
                x = block(x, 2 * x.tanh())
            return x

    with pytest.raises(ValueError, match="what was computed from its own state as another argument"):
        found(Worked(), TOKENS)


@pytest.mark.parametrize("mode", MODES)
def test_blocks_that_hand_on_two_states_are_refused(mode: str) -> None:
    with pytest.raises(ValueError, match=r"blocks.1 \(Block\) is given"):
        found(chains.TwoStreams(4), TOKENS, mode=mode)


def test_what_a_block_hands_on_beside_its_state_is_no_skip_if_it_does_not_depend_on_it() -> None:
    """T5's first block makes a bias for positions that all are given."""
    for mode in MODES:
        assert found(chains.T5(), IDS, mode=mode).conditional == ()


@pytest.mark.parametrize("mode", MODES)
def test_a_layer_called_again_and_again_must_be_named(mode: str) -> None:
    with pytest.raises(ValueError, match="layer is called 4 times: name it to measure it call by call, module='layer'"):
        found(chains.Tied(), TOKENS, mode=mode)


def test_what_happens_outside_any_module_is_told() -> None:
    words = r"etween layers.0 and layers.1 something outside any module changes the state \(2, 6, 8\) -> \(2, 6, 8\)"
    for module in (None, ["layers.0", "layers.1"]):
        with pytest.raises(ValueError, match=words) as error:
            found(Glued(), TOKENS, module)
        assert "wrap it in a module, or give callables to depth_spectrum" in str(error.value)
    with pytest.raises(ValueError, match=r"\(2, 6, 8\) -> \(2, 3, 8\)"):
        found(Glued(lambda x: x[:, ::2]), TOKENS)


def test_a_network_without_a_chain_is_told_what_it_has() -> None:
    with pytest.raises(ValueError, match="found no three blocks in a row; the model has 0 ") as error:
        found(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), ROWS)
    assert "module='encoder.layers'" in str(error.value) and "callables to depth_spectrum" in str(error.value)


def test_a_chain_cannot_begin_with_integers() -> None:
    with pytest.raises(ValueError, match=r"the model \(Rotary\) is given integers.*begin behind the embedding"):
        found(chains.Rotary(depth=1), IDS, [""])
    with pytest.raises(ValueError, match=r"embed \(Embedding\) is given integers"):
        found(chains.Rotary(), IDS, ["embed", "layers.0"])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_scripted_blocks_are_refused_by_name() -> None:
    net = nn.Sequential(*(torch.jit.script(chains.Mlp(8)) for _ in range(3)))
    with pytest.raises(ValueError, match=r"0 .* is scripted or traced"):
        found(net, ROWS)
    with pytest.raises(ValueError, match=r"1 .* is scripted or traced"):
        found(net, ROWS, ["1", "2"])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused_but_where_torchs_encoder_makes_them() -> None:
    padding = torch.tensor([[False] * 6, [False] * 4 + [True] * 2])
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 3)
    flow = flow_of(net, lambda: net(inputs_of(TOKENS), src_key_padding_mask=padding), "evaluating")
    plan = find_chain(flow)
    assert plan.names == ["layers.0", "layers.1", "layers.2"] and plan.shapes[1] == (2, 6, 8)
    own = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8)) for _ in range(3)))
    flow = flow_of(own, lambda: own(torch.nested.nested_tensor([torch.zeros(3, 8), torch.zeros(2, 8)])))
    with pytest.raises(ValueError, match="Nested tensors are no states of a chain"):
        find_chain(flow)
    with pytest.raises(ValueError, match=r"0 \(Sequential\) is given a nested tensor, which is no state"):
        find_chain(flow, ["0", "1"])


def test_what_is_not_reached_is_told() -> None:
    flow = flow_of(net := chains.ViT(), lambda: net.norm(inputs_of(TOKENS)))
    for module in ("blocks", ["blocks.0"]):
        with pytest.raises(ValueError, match="nothing reached 'blocks"):
            find_chain(flow, module)
    with pytest.raises(ValueError, match="no module of the model was called"):
        find_chain(Flow())
    with pytest.raises(ValueError, match="at least one block"):
        find_chain(flow, [])
    with pytest.raises(ValueError, match=r"nothing reached 'blocks.0' in the forward pass after 'norm'"):
        find_chain(flow, ["norm", "blocks.0"])


def test_states_whose_samples_are_not_rows_are_refused() -> None:
    class Merging(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.flatten(0, 1))

    net = nn.Sequential(Merging(), chains.Mlp(8))
    with pytest.raises(ValueError, match=r"0 \(Merging\) takes \(2, 6, 8\) to \(12, 8\), which are not states"):
        found(net, TOKENS, ["0", "1"])


def test_a_part_that_is_compiled_as_a_whole_is_told_of() -> None:
    net = nn.Sequential(nn.Identity(), torch.compile(chains.ViT(), backend="eager"))
    flow = flow_of(net, lambda: net(inputs_of((2, 3, 8, 8))))
    with pytest.raises(ValueError, match=r"compiled as a whole.*compile its blocks one by one"):
        find_chain(flow)
    torch._dynamo.reset()
