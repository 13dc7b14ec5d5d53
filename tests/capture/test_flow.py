"""The flow between modules, against networks whose states are written down by hand; they are left as they were."""

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import chains
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_lyapunov.capture.flow import Flow, FlowWatch, ModuleCall, watchable


def watched(model: nn.Module, run: Callable[[], Any], keeper: Any = None) -> FlowWatch:
    """A watch over one pass."""
    modules, is_compiled = watchable(model)
    watch = FlowWatch(modules, keeper, is_compiled=is_compiled)
    watch.start()
    try:
        run()
    finally:
        watch.stop()
    return watch


def flow_of(model: nn.Module, *inputs: Any) -> Flow:
    watch = watched(model, lambda: model(*inputs))
    assert watch.trouble is None
    return watch.flow


def by_name(flow: Flow) -> dict[str, ModuleCall]:
    return {call.name: call for call in flow.calls}


def everything_of(model: nn.Module) -> list[dict[str, Any]]:
    """The attributes of all modules; a copy of those that hold others."""
    return [
        {name: dict(value) if isinstance(value, dict) else value for name, value in vars(part).items()}
        for part in model.modules()
    ]


# ---------------------------------------------------------------------- states


def test_a_sequence_is_a_row_of_states() -> None:
    flow = flow_of(net := chains.mlp(), torch.randn(2, 8))
    root, *layers = flow.calls
    assert [call.name for call in layers] == [name for name, _ in net.named_children()]
    assert [call.parent for call in layers] == [root] * 5 and root.inner == layers
    assert all(one.after == other.before for one, other in pairwise(layers))
    assert (root.before, root.after) == (layers[0].before, layers[-1].after)
    assert layers[0].shapes == (torch.Size([2, 8]), torch.Size([2, 8])) and layers[-1].shapes[1] == (2, 4)


@pytest.mark.parametrize("inference", [False, True])
def test_what_is_added_in_place_is_another_state(inference: bool) -> None:
    """``x += shortcut`` keeps the tensor: the block does not end in what its last convolution returned."""
    block = chains.BasicBlock(3, 3).eval()
    with torch.inference_mode(inference):
        calls = by_name(flow_of(nn.Sequential(block), torch.randn(2, 3, 4, 4)))
    assert calls["0.bn2"].after != calls["0"].after
    if not inference:
        assert calls["0.bn2"].after[0] == calls["0"].after[0]  # the same tensor, written to since
    assert calls["0.conv2"].before == calls["0.relu"].after != calls["0.bn1"].after


def test_what_passes_a_state_on_is_no_step() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.Identity(), nn.Linear(3, 3))
    calls = by_name(flow_of(net.eval(), torch.randn(2, 3)))
    assert not calls["1"].moves and not calls["2"].moves and calls["3"].before == calls["0"].after
    assert by_name(flow_of(net.train(), torch.randn(2, 3)))["1"].moves


def test_a_tensor_at_the_address_of_another_that_is_gone_is_another_state() -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step = nn.Tanh()

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(50):
                self.step(x.clone())
            return x

    with torch.no_grad():
        flow = flow_of(Many(), torch.randn(3, 3))
    steps = [call for call in flow.calls if call.name == "step"]
    assert len({call.before for call in steps}) == len({call.after for call in steps}) == 50


class Talkative(nn.Module):
    """Takes a state by name, behind integers, and returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, ids: Tensor, *, hidden: dict[str, Tensor], other: Tensor) -> dict[str, Any]:
        return {"loss": None, "ids": ids, "hidden": (self.linear(hidden["x"]), other)}


def test_the_state_is_the_first_floating_tensor_however_it_is_given() -> None:
    x, other = torch.randn(2, 4), torch.randn(2, 4)
    net = Talkative()
    watch = watched(net, lambda: net(torch.arange(2), hidden={"x": x}, other=other))
    root, linear = watch.flow.calls
    assert root.where == (1, "hidden", "x") and root.before == linear.before
    assert list(root.given) == [(1, "hidden", "x"), (1, "other")]
    assert root.after == linear.after and list(root.returned.values())[1] == root.given[1, "other"]


@pytest.mark.parametrize(("inputs", "obstacle"), [(torch.zeros(2, dtype=torch.long), "integers"), (3, "no tensor")])
def test_what_is_no_state_is_said(inputs: Any, obstacle: str) -> None:
    class Anything(nn.Module):
        def forward(self, x: Any) -> Tensor:
            return torch.zeros(2)

    (call,) = flow_of(Anything(), inputs).calls
    assert call.obstacle == obstacle and call.before is None and not call.moves


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_no_states() -> None:
    layer = nn.Linear(3, 3)
    nested = torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(1, 3)])
    assert flow_of(layer, nested).calls[0].obstacle == "a nested tensor"


def test_what_an_argument_comes_from_is_told_by_the_graph_of_gradients() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.aside = nn.Linear(3, 3), nn.Linear(3, 3)
            self.gate = nn.Bilinear(3, 3, 3)

        def forward(self, x: Tensor, free: Tensor) -> Tensor:
            y = self.first(x)
            return self.gate(torch.relu(y), (y.sigmoid() * 2).sin()) + self.gate(y.tanh(), self.aside(free).exp())

    calls = flow_of(Gated(), torch.randn(2, 3), torch.randn(2, 3)).calls
    first, gated, aside, free = calls[1:]
    assert gated.depends[0, 1] == {first.after}
    assert gated.depends[gated.where] == {first.after}  # of the state too, where no module has made it
    assert free.depends[0, 1] == {aside.after}


# ---------------------------------------------------------------------- which calls


def test_calls_that_a_backward_pass_repeats_are_not_noted() -> None:
    for use_reentrant in (True, False):

        class Saving(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layers = nn.ModuleList(nn.Sequential(nn.Linear(3, 3), nn.Tanh()) for _ in range(2))

            def forward(self, x: Tensor, again: bool = use_reentrant) -> Tensor:
                for layer in self.layers:
                    x = checkpoint(layer, x, use_reentrant=again)
                return x

        net = Saving()
        watch = watched(net, lambda net=net: net(torch.randn(2, 3, requires_grad=True)).sum().backward())
        names = [call.name for call in watch.flow.calls]
        assert names.count("layers.0") == names.count("layers.1.0") == 1
        calls = by_name(watch.flow)
        assert calls["layers.0"].after == calls["layers.1"].before


def test_calls_that_are_broken_off_leave_those_around_them_in_order() -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.good, self.bad = nn.Linear(3, 3), nn.Sequential(nn.Linear(2, 2))

        def forward(self, x: Tensor) -> Tensor:
            try:
                return self.bad(x)
            except RuntimeError:
                return self.good(x)

    net = Failing()
    calls = by_name(flow_of(net, torch.randn(2, 3)))
    assert calls["good"].parent is calls[""] and calls["bad.0"].parent is calls["bad"]
    assert not calls["bad"].has_ended and not calls["bad"].moves and calls[""].has_ended
    before = everything_of(net)
    with pytest.raises(RuntimeError, match="shapes"):
        watched(net, lambda: net.bad(torch.randn(2, 3)))
    assert everything_of(net) == before


def test_calls_of_a_paused_watch_pass_unnoted() -> None:
    net = chains.mlp()

    def run() -> None:
        watch.is_paused = True
        net(torch.randn(2, 8))
        watch.is_paused = False
        net(torch.randn(2, 8))

    watch = FlowWatch(watchable(net)[0])
    watch.start()
    run()
    watch.stop()
    assert len(watch.flow.calls) == 6 and watch.seconds > 0


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_a_scripted_module_is_one_call() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Linear(3, 3), nn.ReLU()))
    flow = flow_of(nn.Sequential(nn.Linear(3, 3), scripted), torch.randn(2, 3))
    assert [call.name for call in flow.calls] == ["", "0", "1"] and flow.calls[-1].moves


@pytest.mark.parametrize("way", ["wrapped", "in place"])
def test_compiled_blocks_are_seen_and_not_compiled_again(way: str) -> None:
    compiled = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    torch._dynamo.reset()
    block = chains.PreNorm(8)
    if way == "wrapped":
        net = nn.Sequential(torch.compile(block, backend=backend), nn.Linear(8, 8))  # type: ignore[arg-type]
    else:
        block.compile(backend=backend)
        net = nn.Sequential(block, nn.Linear(8, 8))
    x = torch.randn(2, 3, 8)
    expected, count = net(x), len(compiled)
    watch = watched(net, lambda: net(x))
    assert count > 0 and len(compiled) == count
    assert [call.name for call in watch.flow.calls] == ["", "0", "1"] and watch.flow.is_compiled
    assert watch.flow.calls[1].module is block
    assert torch.equal(net(x), expected) and len(compiled) == count
    torch._dynamo.reset()


# ---------------------------------------------------------------------- no trace


def test_the_network_is_as_it_was_and_computes_the_same() -> None:
    net, x = chains.ViT(dropout=0.3), torch.randn(2, 3, 8, 8)
    before = everything_of(net)
    torch.manual_seed(0)
    expected = net(x)
    torch.manual_seed(0)
    found: list[Tensor] = []
    watched(net, lambda: found.append(net(x)))
    assert torch.equal(found[0], expected) and everything_of(net) == before


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_transformer_layers_take_the_route_they_would_take() -> None:
    """In eval mode torch's take a fused one, on nested tensors even, unless there is a hook: then they fail."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    net = nn.TransformerEncoder(layer, 2).eval()
    x, mask = torch.randn(3, 5, 8), torch.arange(5) >= torch.tensor([[5], [3], [2]])
    found: list[Tensor] = []
    with torch.no_grad():
        expected = net(x, src_key_padding_mask=mask)
        watch = watched(net, lambda: found.append(net(x, src_key_padding_mask=mask)))
    assert torch.equal(found[0], expected)
    calls = by_name(watch.flow)
    assert calls["layers.1"].before == calls["layers.0"].after and calls["layers.1"].shapes[0] == (3, 5, 8)
    assert list(calls) == ["", "layers.0", "layers.1"]  # what is inside a layer is not called


def test_nothing_is_kept_of_what_flows() -> None:
    net = chains.mlp(64)
    alive: list[weakref.ref[Tensor]] = []
    net[0].register_forward_hook(lambda module, args, output: alive.append(weakref.ref(output)))
    watch = watched(net, lambda: net(torch.randn(4, 64)).sum().backward())
    gc.collect()
    assert alive and all(one() is None for one in alive) and watch.flow.calls


def test_copies_and_pickles_made_meanwhile_know_nothing_of_it() -> None:
    net = chains.mlp()
    made: list[nn.Module] = []

    def run() -> None:
        made.append(copy.deepcopy(net))
        made.append(pickle.loads(pickle.dumps(net)))
        torch.save(net, file := io.BytesIO())
        file.seek(0)
        made.append(torch.load(file, weights_only=False))

    watch = watched(net, run)
    for other in made:
        other(torch.randn(2, 8))
        assert all(vars(part).get("_compiled_call_impl") is None for part in other.modules())
    assert not watch.flow.calls


@pytest.mark.parametrize("first", [0, 1])
def test_watches_that_end_in_any_order_leave_nothing(first: int) -> None:
    net = chains.mlp()
    before = everything_of(net)
    watches = [FlowWatch(watchable(net)[0]) for _ in range(2)]
    for watch in watches:
        watch.start()
    net(torch.randn(2, 8))
    watches[first].stop()
    net(torch.randn(2, 8))
    watches[1 - first].stop()
    assert everything_of(net) == before
    assert [len(watch.flow.calls) for watch in watches] == [6 * (1 + (place != first)) for place in range(2)]


def test_what_whoever_watches_along_raises_goes_no_further() -> None:
    class Failing:
        def begin(self, call: ModuleCall, args: Any, kwargs: Any) -> None:
            raise RuntimeError("no room")

        def end(self, call: ModuleCall, output: Any) -> None:
            raise KeyError(call.name)

    net = chains.mlp()
    watch = watched(net, lambda: net(torch.randn(2, 8)), Failing())
    assert "no room" in str(watch.trouble) and len(watch.flow.calls) == 6
    assert watch.flow.calls[0].has_ended
