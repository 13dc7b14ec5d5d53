"""Finding recurrent layers: by what they are, by name, and what is said of those that are not found.

The oracle is the model that each test builds: which of its modules are recurrent, and whose step they make.
"""

import sys
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_lyapunov.capture.adapters import adapter_of, register
from lightning_lyapunov.capture.calls import Adapter, Call
from lightning_lyapunov.capture.conventions import ByFunction
from lightning_lyapunov.capture.finding import architecture_of, find


def named(**modules: nn.Module) -> nn.Module:
    model = nn.Module()
    for name, module in modules.items():
        model.add_module(name, module)
    return model


def scripted(module: nn.Module) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls scripting deprecated
        return torch.jit.script(module)


class Own(nn.Module):
    """A cell of the user's."""

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        return x + state


class Still(Adapter):
    def read(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Call:
        return Call.of_step(args[0], None, (output,))

    def step(self, module: nn.Module, x: Tensor, state: Any) -> Any:
        return state


# ---------------------------------------------------------------------- torch's own


def test_every_kind_is_found_in_lists_and_nested_modules() -> None:
    stack = nn.ModuleList([nn.GRU(3, 4), nn.LSTM(4, 4)])
    model = named(encoder=named(stack=stack, cell=nn.LSTMCell(3, 4)), head=nn.Linear(4, 1), rnn=nn.RNN(3, 4))
    found, unsupported = find(model)
    assert list(found) == ["encoder.stack.0", "encoder.stack.1", "encoder.cell", "rnn"]
    assert found["encoder.stack.1"].module is stack[1] and found["rnn"].adapter is None
    assert unsupported == []


def test_compiled_wrappers_are_seen_through() -> None:
    inner = nn.LSTM(3, 4)
    block = named(rnn=torch.compile(inner, backend="eager"), head=nn.Linear(4, 1))
    for model in (
        named(block=torch.compile(block, backend="eager")),
        torch.compile(named(block=block), backend="eager"),
    ):
        found, unsupported = find(model)
        assert list(found) == ["block.rnn"] and found["block.rnn"].module is inner and unsupported == []
        assert find(model, "block.rnn")[0]["block.rnn"].module is inner


def test_shared_module_is_measured_once_and_has_both_names() -> None:
    shared = nn.GRU(3, 4)
    model = named(encoder=shared, decoder=shared)
    assert list(find(model)[0]) == ["encoder"]
    assert find(model, "decoder")[0]["decoder"].module is shared


# ---------------------------------------------------------------------- by name


def test_names_are_taken_in_their_order() -> None:
    model = named(a=nn.GRU(3, 4), b=nn.LSTM(3, 4), own=Own())
    assert find(model, "own")[0]["own"].module is model.own
    assert list(find(model, ["b", "a"])[0]) == ["b", "a"]


def test_mapping_gives_an_adapter_or_a_step_to_a_name() -> None:
    model, adapter = named(a=nn.GRU(3, 4), own=Own(), other=Own()), Still()
    found, _ = find(model, {"own": adapter, "other": lambda module, x, state: x, "a": None})
    assert found["own"].adapter is adapter and isinstance(found["other"].adapter, ByFunction)
    assert found["a"].adapter is None
    with pytest.raises(ValueError, match=r"an Adapter or a function step\(module, x, state\) -> state; got int"):
        find(model, {"own": 3})  # type: ignore[dict-item]


def test_unknown_name_lists_what_there_is() -> None:
    model = named(encoder=nn.GRU(3, 4), head=nn.Linear(4, 1))
    with pytest.raises(ValueError, match=r"the model has no 'rnn'; it has encoder \(GRU\), head \(Linear\)\."):
        find(model, "rnn")
    for nothing in ([], {}):
        with pytest.raises(ValueError, match=r"must name at least one layer; got none\. The model has encoder \(GRU\)"):
            find(model, nothing)


# ---------------------------------------------------------------------- subclasses of torch's


class Handed(nn.LSTM):
    """Takes lengths and hands on, as pytorch-forecasting's."""

    def forward(self, x: Tensor, hx: Any = None, lengths: Any = None) -> Any:  # type: ignore[override]
        return super().forward(x, hx)


class Anew(nn.RNNBase):
    """Written anew, as torchrl's."""

    def __init__(self, mode: str = "GRU") -> None:
        super().__init__("GRU", 3, 4)
        self.mode = mode

    def forward(self, x: Tensor, hx: Any = None) -> Any:
        return x, hx


class Normalised(nn.GRUCell):
    """pytorch#11335."""

    def __init__(self) -> None:
        super().__init__(3, 4)
        self.norm, self.inner = nn.LayerNorm(4), nn.GRUCell(4, 4)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:  # type: ignore[override]
        return self.norm(super().forward(x, h))


class WithCell(nn.LSTM):
    """A layer with a forward pass of its own, and cells inside it."""

    def __init__(self) -> None:
        super().__init__(3, 4)
        self.cell, self.own, self.plain = nn.LSTMCell(3, 4), Normalised(), nn.GRU(3, 4)

    def forward(self, x: Tensor, hx: Any = None) -> Any:  # type: ignore[override]
        return super().forward(x, hx)


def test_subclasses_of_torchs_layers_are_candidates() -> None:
    found, unsupported = find(named(a=Handed(3, 4), b=Anew(), c=Anew("LIQUID")))
    assert list(found) == ["a", "b"] and all(one.adapter is None for one in found.values())
    assert unsupported == ["c: Anew is of none of torch's kinds, LSTM, GRU, RNN_TANH, RNN_RELU"]


def test_subclass_of_torchs_cell_is_a_cell_and_what_is_in_it_a_part() -> None:
    model = named(cell=Normalised(), rnn=nn.RNN(3, 4))
    assert list(find(model)[0]) == ["cell", "rnn"]
    assert find(model, "cell")[0]["cell"].adapter is None


def test_cell_of_its_own_inside_a_candidate_is_not_counted_twice() -> None:
    assert list(find(named(layer=WithCell()))[0]) == ["layer", "layer.cell", "layer.plain"]


# ---------------------------------------------------------------------- registered classes


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Still:
    adapter, module = Still(), sys.modules[adapter_of.__module__]
    monkeypatch.setattr(module, "_ADAPTERS", dict(module._ADAPTERS))
    register(f"{__name__}.Liquid", adapter)
    register(f"{__name__}.LiquidCell", adapter)
    return adapter


class LiquidCell(nn.Module):
    pass


class Liquid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.memory = LiquidCell(), nn.LSTMCell(3, 4)


class MyLiquid(Liquid):
    pass


def test_registered_classes_are_found_and_what_is_in_them_is_a_part(registered: Still) -> None:
    model = named(liquid=Liquid(), mine=MyLiquid(), cell=LiquidCell(), gru=nn.GRU(3, 4))
    found, unsupported = find(model)
    assert list(found) == ["liquid", "mine", "cell", "gru"] and unsupported == []
    assert found["mine"].adapter is registered and found["gru"].adapter is None
    assert find(model, "liquid.cell")[0]["liquid.cell"].adapter is registered
    other = Still()
    assert find(model, {"liquid": other})[0]["liquid"].adapter is other


def test_registration_checks_what_it_is_given() -> None:
    with pytest.raises(ValueError, match=r"in full, as 'package\.module\.Class'; got 'CfC'"):
        register("CfC", Still())
    with pytest.raises(ValueError, match="adapter must be an Adapter; got function"):
        register("a.B", lambda: None)  # type: ignore[arg-type]
    assert adapter_of(nn.GRU(3, 4)) is None


# ---------------------------------------------------------------------- what is not measured


def test_model_without_recurrence_lists_a_few_modules() -> None:
    with pytest.raises(ValueError, match=r"the model has no nn\.RNN, .*The model has head \(Linear\)\."):
        find(named(head=nn.Linear(4, 1)))
    with pytest.raises(ValueError, match="The model has no submodules"):
        find(nn.Linear(3, 3))
    with pytest.raises(ValueError, match=r"0 \(Tanh\), .*7 \(Tanh\) and 22 more\."):
        find(nn.Sequential(*[nn.Tanh() for _ in range(30)]))


@pytest.mark.parametrize(
    "name",
    [
        "CfC",
        "LTC",
        "Leaky",
        "RLeaky",
        "Mamba",
        "Mamba2",
        "S4D",
        "RWKV_TimeMix",
        "xLSTMBlock",
        "RetNet",
        "minGRU",
        "LMU",
    ],
)
def test_what_is_called_recurrent_is_named_before_the_modules(name: str) -> None:
    model = named(**{f"norm{i}": nn.LayerNorm(3) for i in range(20)}, mixer=type(name, (nn.Module,), {})())
    with pytest.raises(ValueError, match=rf"not measurable: mixer: {name} is .*The model has mixer \({name}\), norm0"):
        find(model)


def test_what_only_sounds_alike_is_not() -> None:
    model = named(rnn=nn.GRU(3, 4), act=nn.LeakyReLU(), drop=nn.AlphaDropout(), act2=nn.ReLU())
    assert find(model)[1] == []


class TextRNN(nn.Module):
    """Named like a recurrent layer, and only holds one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


class SlimGRU(nn.Module):
    """Named like a recurrent layer, but of the user's own making."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(3, 3)


def test_lookalikes_are_told_rather_than_measured() -> None:
    model = TextRNN(named(good=nn.GRU(3, 4), slim=SlimGRU()))
    found, unsupported = find(model)
    assert list(found) == ["inner.good"]
    (line,) = unsupported
    assert line == (
        "inner.slim: SlimGRU is none of the recurrent layers that are known; "
        "a cell is measured when it is named, module='inner.slim'"
    )
    assert find(model, "inner.slim")[0]["inner.slim"].module is model.get_submodule("inner.slim")  # what it says
    with pytest.raises(ValueError, match="Found but not measurable: the model: SlimGRU is"):
        find(SlimGRU())


def test_scripted_layer_is_told_with_what_to_do() -> None:
    model = named(rnn=scripted(nn.LSTM(3, 4)), good=nn.GRU(3, 4))
    found, (line,) = find(model)
    assert list(found) == ["good"] and line.startswith("rnn: the nn.LSTM is scripted or traced")
    assert line.endswith("torch.jit.script(model)")
    with pytest.raises(ValueError, match=r"module: 'rnn': the nn\.LSTM is scripted or traced.*Train the plain layer"):
        find(model, "rnn")
    model.rnn = nn.LSTM(3, 4)  # what it says
    assert set(find(model)[0]) == {"good", "rnn"}
    scripted(model.rnn)


def test_scripted_cell_is_told_of_and_taken_by_name() -> None:
    model = named(cell=scripted(nn.GRUCell(3, 4)), good=nn.GRU(3, 4))
    assert find(model)[1] == ["cell: GRUCell is scripted or traced; a cell is measured when it is named, module='cell'"]
    assert find(model, "cell")[0]["cell"].module is model.cell


def test_cell_inside_a_scripted_model_is_out_of_sight() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRUCell(3, 4)

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return self.cell(x, h)

    with pytest.raises(ValueError, match=r"'block\.cell' is inside block, which is scripted"):
        find(named(block=scripted(Around())), "block.cell")
    with pytest.raises(ValueError, match="'cell' is inside the model, which is scripted"):
        find(scripted(Around()), "cell")


# ---------------------------------------------------------------------- what scorers are told


def test_architecture_is_that_of_torch_or_the_names_of_classes() -> None:
    assert architecture_of([nn.GRU(3, 4), nn.GRUCell(3, 4)]) == "gru"
    assert architecture_of([Normalised()]) == "Normalised"
    assert architecture_of([nn.RNN(3, 4), nn.RNNCell(3, 4)]) == "rnn"
    assert architecture_of([nn.RNN(3, 4, nonlinearity="relu"), nn.RNNCell(3, 4, nonlinearity="relu")]) == "rnn_relu"
    assert architecture_of([nn.RNN(3, 4), nn.RNN(3, 4, nonlinearity="relu")]) == "RNN"
    assert architecture_of([nn.GRU(3, 4), nn.LSTM(3, 4)]) == "GRU+LSTM"
    assert architecture_of([Liquid(), LiquidCell()]) == "Liquid+LiquidCell"
    assert architecture_of([Handed(3, 4)]) == "lstm" and architecture_of([Anew()]) == "gru"
