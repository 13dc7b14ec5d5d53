"""Trajectories against the module unrolled, and every way in which arguments can fail to fit."""

import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from systems import CELLS, FAMILIES, Wrapped, at_place, flat, henon, logistic, network, noise
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_lyapunov import lyapunov_spectrum
from lightning_lyapunov.engine.system import device_of, trajectories, unwrap
from lightning_lyapunov.engine.trajectory import Trajectory

INPUT, HIDDEN, STEPS, BATCH = 3, 5, 7, 3
EXACT = {"rtol": 0.0, "atol": 1e-12}


def run(system: Any, inputs: Any, state: Any = None, steps: int | None = None, dtype: Any = None) -> Trajectory:
    """The trajectory of a system of a single layer."""
    (path,) = trajectories(system, inputs, state, steps, dtype).values()
    return path


def lengths_of(path: Trajectory) -> list[int]:
    """Steps of each sequence, in the user's rows."""
    running = [sum(row < rows for rows in path.running) for row in range(path.states.shape[1])]
    return running if path.order is None else [running[i] for i in path.order.argsort().tolist()]


def rows_of(path: Trajectory) -> Tensor:
    """The states in the user's rows."""
    return path.states if path.order is None else path.states[:, path.order.argsort()]


# ------------------------------------------------------------------ the module unrolled


@pytest.mark.parametrize("kind", [*FAMILIES, *CELLS])
def test_two_halves_joined_equal_the_whole(kind: str) -> None:
    system, inputs = network(kind, INPUT, HIDDEN, gain=1.5), noise(STEPS, BATCH, INPUT)
    whole = run(system, inputs)
    first = run(system, inputs[:3])
    middle = first.states[-1] if kind in CELLS else first.states[-1:]
    state: Any = tuple(middle.chunk(2, -1)) if "lstm" in kind else middle
    second = run(system, inputs[3:], state)
    torch.testing.assert_close(torch.cat([first.states, second.states[1:]]), whole.states, **EXACT)


@pytest.mark.parametrize("kind", [*FAMILIES, *CELLS])
def test_steps_cut_the_inputs(kind: str) -> None:
    system, inputs = network(kind, INPUT, HIDDEN), noise(STEPS, BATCH, INPUT)
    assert torch.equal(run(system, inputs, steps=4).states, run(system, inputs[:4]).states)


@pytest.mark.parametrize("kind", [*FAMILIES, *CELLS])
def test_no_inputs_are_zero_inputs(kind: str) -> None:
    system = network(kind, INPUT, HIDDEN)
    parts = [noise(BATCH, HIDDEN, seed=seed) for seed in range(2 if "lstm" in kind else 1)]
    parts = parts if kind in CELLS else [part[None] for part in parts]
    state: Any = tuple(parts) if "lstm" in kind else parts[0]
    silent = torch.zeros(STEPS, BATCH, INPUT, dtype=torch.float64)
    assert torch.equal(run(system, None, state, STEPS).states, run(system, silent, state).states)
    assert run(system, None, None, STEPS).states.shape[1] == 1


def test_a_single_sequence_of_a_cell_needs_no_batch() -> None:
    cell, inputs, start = network("gru cell", INPUT, HIDDEN), noise(STEPS, INPUT), noise(HIDDEN)
    state = start
    path = run(cell, inputs, start)
    for t in range(STEPS):
        state = cell(inputs[t], state)
        torch.testing.assert_close(path.states[t + 1, 0], state.detach(), **EXACT)
    assert torch.equal(run(cell, None, start, STEPS).states[0, 0], start)


def test_autonomous_map_is_iterated() -> None:
    state = noise(BATCH, 2) * 0.1
    path = run(henon, None, state, 5)
    for t in range(5):
        assert torch.equal(path.states[t], state)
        state = henon(None, state)
    assert torch.equal(
        run(logistic, None, noise(BATCH).sigmoid(), 2).states[1, :, 0], logistic(None, noise(BATCH).sigmoid())
    )


def test_autonomous_module_is_called_with_none() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x: None, state: Tensor) -> Tensor:
            assert x is None
            return torch.tanh(self.linear(state))

    cell, state = Own().double(), noise(BATCH, 2)
    torch.testing.assert_close(run(cell, None, state, 3).states[1], cell(None, state).detach(), **EXACT)


class Embedded(nn.Module):
    """Tokens in, several trailing axes inside."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.cell = nn.Embedding(10, INPUT), nn.GRUCell(INPUT, 4)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        h, trace = state or (
            torch.zeros(len(x), 4).to(self.embedding.weight),
            torch.zeros(len(x), 2, 4).to(self.embedding.weight),
        )
        h = self.cell(self.embedding(x), h)
        return h, 0.5 * trace + h[:, None]


LENGTHS = [2, 5, 3]


@pytest.mark.parametrize("name", ["embedded tokens", "wrapped lstm cell", "callable", "torch cell"])
@pytest.mark.parametrize("form", ["unsorted", "sorted", "batch first"])
def test_packed_inputs_of_a_cell_are_its_sequences_one_by_one(name: str, form: str) -> None:
    lengths = sorted(LENGTHS, reverse=True) if form == "sorted" else LENGTHS
    inner = network("lstm cell", INPUT, HIDDEN, gain=1.5)
    pair = (noise(3, HIDDEN), noise(3, HIDDEN, seed=1))
    system, state = {
        "embedded tokens": (Embedded().double(), (noise(3, 4), noise(3, 2, 4))),
        "wrapped lstm cell": (Wrapped(inner), pair),
        "callable": (lambda x, s: inner(x, s), pair),
        "torch cell": (inner, pair),
    }[name]
    values: Any = torch.arange(15).reshape(5, 3) % 10 if name == "embedded tokens" else noise(5, 3, INPUT)
    if form == "batch first":
        packed = pack_padded_sequence(
            values.movedim(0, 1), torch.tensor(lengths), batch_first=True, enforce_sorted=False
        )
    else:
        packed = pack_padded_sequence(values, torch.tensor(lengths), enforce_sorted=form == "sorted")
    path = run(system, packed, state)
    assert lengths_of(path) == lengths
    for row, length in enumerate(lengths):
        own: Any = tuple(part[row : row + 1] for part in state)
        for t in range(length):
            torch.testing.assert_close(rows_of(path)[t, row], flat(own)[0].detach(), **EXACT)
            own = system(values[t, row : row + 1], own)
        torch.testing.assert_close(rows_of(path)[length, row], flat(own)[0].detach(), **EXACT)


def test_packed_sequences_are_measured_in_the_users_rows() -> None:
    module = network("gru", INPUT, HIDDEN, gain=1.5, num_layers=2, bidirectional=True)
    sequences = [noise(length, INPUT, seed=length) for length in (9, 20, 14)]
    spectrum = lyapunov_spectrum(module, pack_sequence(sequences, enforce_sorted=False), interval=1)
    for row, sequence in enumerate(sequences):
        alone = at_place(module, sequence, row, interval=1)
        for name, layer in spectrum.layers.items():
            own = layer.per_sequence[row].sort(descending=True).values
            torch.testing.assert_close(own, alone[name].exponents, rtol=0.0, atol=1e-10)


def test_packed_inputs_are_cut_after_steps() -> None:
    packed = pack_sequence([noise(length, INPUT, seed=length) for length in LENGTHS], enforce_sorted=False)
    assert lengths_of(run(network("gru", INPUT, HIDDEN), packed, steps=3)) == [2, 3, 3]


@pytest.mark.parametrize("kind", ["tanh", "gru cell", "wrapped", "callable"])
def test_type_of_the_run(kind: str) -> None:
    """float64 unless asked; a bare callable runs in the type of its state."""
    cell = network("gru cell", INPUT, HIDDEN).float()
    system: Any = {"wrapped": Wrapped(cell), "callable": lambda x, s: cell(x, s)}.get(kind)
    system = system or network(kind, INPUT, HIDDEN).float()
    inputs = noise(STEPS, BATCH, INPUT, dtype=torch.float32)
    path = run(system, inputs)
    assert path.states.dtype == path.recurrence.dtype == (torch.float32 if kind == "callable" else torch.float64)
    narrow = run(system, inputs, dtype=torch.float32)
    assert narrow.states.dtype == narrow.recurrence.dtype == torch.float32
    torch.testing.assert_close(narrow.states.double(), path.states.double(), rtol=0.0, atol=1e-5)


def test_constants_that_a_module_does_not_register_keep_it_wide() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.matrix = nn.Linear(2, 2).double(), noise(2, 2)

        def forward(self, x: Tensor, state: Tensor) -> Tensor:
            return torch.tanh(self.linear(state) @ self.matrix + x)

    spectrum = lyapunov_spectrum(Constant(), noise(50, 2, 2), state=torch.zeros(2, 2))
    assert spectrum.dtype == torch.float64 and spectrum.exponents.isfinite().all()


def test_the_time_loop_reads_nothing_from_the_device() -> None:
    reading = {
        "aten._local_scalar_dense",
        "aten.nonzero",
        "aten.equal",
        "aten.item",
        "aten.is_nonzero",
        "aten._to_copy",
    }

    class Forbidden(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            assert str(func.overloadpacket) not in reading, func
            Forbidden.calls += 1
            return func(*args, **(kwargs or {}))

    def watch(system: Any, inputs: Any, state: Any = None, steps: int | None = None) -> None:
        (path,) = trajectories(system, inputs, state, steps, None).values()
        once = path.states  # what is made once is made
        with Forbidden():
            again = path.recurrence.run(path.inputs, path.drive, path.initial)
        assert torch.equal(once, again)

    packed = pack_sequence([noise(length, INPUT) for length in LENGTHS], enforce_sorted=False)
    with torch.no_grad():
        for kind in (*FAMILIES, *CELLS):
            watch(network(kind, INPUT, HIDDEN), packed)
        watch(Wrapped(network("gru cell", INPUT, HIDDEN)), packed)
        watch(henon, None, torch.zeros(1, 2), 5)
    assert Forbidden.calls > 100


# ------------------------------------------------------------------ wrappers


def test_compiled_module_is_unwrapped() -> None:
    module = network("lstm", INPUT, HIDDEN)
    compiled = torch.compile(module, backend="eager")
    assert unwrap(compiled) is module
    inputs = noise(STEPS, BATCH, INPUT)
    assert torch.equal(lyapunov_spectrum(compiled, inputs).exponents, lyapunov_spectrum(module, inputs).exponents)
    module.compile(backend="eager")  # in place: the very same object
    assert unwrap(module) is module
    assert lyapunov_spectrum(module, inputs).complete


@pytest.fixture
def one_process() -> Iterator[None]:
    """A process group of this process alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = torch.distributed.TCPStore("127.0.0.1", port, 1, is_master=True, wait_for_workers=False)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
@pytest.mark.skipif(os.name == "nt", reason="gloo")
def test_data_parallel_wrappers_are_unwrapped(one_process: None) -> None:
    module = network("gru", INPUT, HIDDEN)
    wrapped = nn.parallel.DistributedDataParallel(module)
    assert unwrap(wrapped) is module
    assert unwrap(torch.compile(wrapped, backend="eager")) is module
    assert unwrap(nn.DataParallel(module)) is module
    inputs = noise(STEPS, BATCH, INPUT)
    assert torch.equal(lyapunov_spectrum(wrapped, inputs).exponents, lyapunov_spectrum(module, inputs).exponents)


def test_unwrap_leaves_everything_else_alone() -> None:
    model = nn.ModuleDict({"module": nn.GRU(2, 2)})
    assert unwrap(model) is model and unwrap(henon) is henon and unwrap(None) is None


def test_device_is_that_of_the_weights_else_the_inputs_else_the_state() -> None:
    meta = torch.zeros(2, 2, 2, device="meta")
    assert device_of(nn.GRU(2, 2), meta, None).type == "cpu"
    assert device_of(henon, meta, torch.zeros(2)).type == "meta"
    assert device_of(henon, None, (meta,)).type == "meta"
    assert device_of(nn.Identity(), None, None).type == "cpu"
    assert device_of(henon, pack_sequence([torch.zeros(2, 2)]), None).type == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_inputs_and_state_follow_the_weights() -> None:
    inputs, state = noise(STEPS, BATCH, INPUT), noise(1, BATCH, HIDDEN)
    packed = pack_sequence([noise(length, INPUT, seed=length) for length in LENGTHS], enforce_sorted=False)
    for given in (inputs, packed):
        ours = run(network("gru", INPUT, HIDDEN).cuda(), given, state).states
        torch.testing.assert_close(ours.cpu(), run(network("gru", INPUT, HIDDEN), given, state).states, **EXACT)


# ------------------------------------------------------------------ arguments that do not fit


class Model(nn.Module):
    """A whole model, where a layer is meant."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"rnn": nn.GRU(INPUT, HIDDEN)})
        self.cell = nn.LSTMCell(INPUT, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        return x


class Overridden(nn.GRU):
    def forward(self, x: Tensor, h: Any = None) -> Any:
        return super().forward(2 * x, h)


class OverriddenCell(nn.GRUCell):
    def forward(self, x: Tensor, h: Any = None) -> Any:
        return super().forward(2 * x, h)


class Narrow(nn.Module):
    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        return torch.tanh(state).float()


def broken(module: nn.Module, name: str, value: float = torch.nan) -> nn.Module:
    with torch.no_grad():
        getattr(module, name).view(-1)[1] = value
    return module


def patched() -> nn.Module:
    module = nn.GRU(INPUT, HIDDEN)
    module.forward = lambda *args: None  # type: ignore[method-assign]
    return module


def with_one(value: float, *shape: int) -> Tensor:
    tensor = noise(*shape)
    tensor.view(-1)[2] = value
    return tensor


GRU, LSTM, CELL = nn.GRU(INPUT, HIDDEN), nn.LSTM(INPUT, HIDDEN, 2), nn.GRUCell(INPUT, HIDDEN)
OWN, TWO = Wrapped(CELL), lambda x, s: s
X, H = noise(STEPS, BATCH, INPUT), noise(BATCH, HIDDEN)
PAIR = (noise(2, BATCH, HIDDEN), noise(2, BATCH, HIDDEN))
BATCH_FIRST = nn.GRU(INPUT, HIDDEN, batch_first=True)
EMPTY_STEPS, EMPTY_BATCH = noise(0, BATCH, INPUT), noise(STEPS, 0, INPUT)

BAD: dict[str, tuple[Any, Any, dict[str, Any], list[str]]] = {
    # steps
    "no step": (GRU, X, {"steps": 0}, ["steps must be at least 1", "got 0"]),
    "negative steps": (henon, None, {"steps": -1}, ["steps must be at least 1", "got -1"]),
    "more steps than inputs": (GRU, X, {"steps": 8}, ["steps must not exceed the 7 steps of inputs", "got 8"]),
    "more steps, cell": (OWN, X, {"steps": 8, "state": H}, ["steps must not exceed the 7", "got 8"]),
    "steps of an autonomous module": (GRU, None, {}, ["steps must say how many", "inputs is None", "got None"]),
    "steps of an autonomous map": (henon, None, {"state": H}, ["steps must say how many", "got None"]),
    # inputs
    "width": (GRU, noise(STEPS, BATCH, 4), {}, ["inputs must be 3 wide", "got 4"]),
    "width, batch first": (BATCH_FIRST, noise(BATCH, STEPS, 2), {}, ["inputs must be 3 wide", "got 2"]),
    "width, cell": (CELL, noise(STEPS, BATCH, 4), {}, ["inputs must be 3 wide", "got 4"]),
    "width, packed": (GRU, pack_sequence([noise(2, 5)]), {}, ["inputs must be 3 wide", "got 5"]),
    "axes": (GRU, noise(2, STEPS, BATCH, INPUT), {}, ["inputs must have shape (T, B, I)", "got (2, 7, 3, 3)"]),
    "axes, batch first": (BATCH_FIRST, noise(INPUT), {}, ["inputs must have shape (B, T, I)", "got (3,)"]),
    "axes, cell": (CELL, noise(INPUT), {}, ["inputs must have shape (T, B, I)", "got (3,)"]),
    "axes, own cell": (OWN, noise(INPUT), {"state": H}, ["inputs of a cell must have shape (T, B, ...)", "got (3,)"]),
    "integers": (GRU, X.long(), {}, ["inputs must be of a floating type", "got torch.int64"]),
    "complex": (CELL, X.cfloat(), {}, ["inputs must be of a floating type", "got torch.complex64"]),
    "a list": (GRU, [1.0, 2.0], {}, ["inputs must be a tensor, a PackedSequence or None", "got list"]),
    "an array": (OWN, X.numpy(), {"state": H}, ["inputs must be a tensor", "got ndarray"]),
    "NaN": (GRU, with_one(torch.nan, STEPS, BATCH, INPUT), {}, ["inputs hold NaN or infinite values"]),
    "infinity": (CELL, with_one(torch.inf, STEPS, BATCH, INPUT), {}, ["inputs hold NaN or infinite values"]),
    "NaN, packed": (GRU, pack_sequence([with_one(torch.nan, 2, 3)]), {}, ["inputs hold NaN"]),
    "NaN, own cell": (OWN, with_one(torch.nan, STEPS, BATCH, INPUT), {"state": H}, ["inputs hold NaN"]),
    "overflow": (GRU, with_one(1e300, STEPS, BATCH, INPUT), {"dtype": torch.float32}, ["inputs hold", "torch.float32"]),
    "no steps": (GRU, EMPTY_STEPS, {}, ["inputs must hold at least one step and one sequence", "got (0, 3)"]),
    "no sequences": (GRU, EMPTY_BATCH, {}, ["inputs must hold at least one step", "got (7, 0)"]),
    "no sequences, batch first": (BATCH_FIRST, EMPTY_STEPS, {}, ["inputs must hold at least one", "got (3, 0)"]),
    "no steps, cell": (CELL, EMPTY_STEPS, {}, ["inputs must hold at least one step", "got (0, 3)"]),
    "no steps, own cell": (OWN, EMPTY_STEPS, {"state": H}, ["inputs must hold at least one step", "got (0, 3)"]),
    # state
    "state of one for two": (LSTM, X, {"state": PAIR[0]}, ["state must be a pair (h, c)", "LSTM", "got torch.float64"]),
    "state of two for one": (
        GRU,
        X,
        {"state": PAIR},
        ["state must be a floating tensor", "GRU", "got torch.float64, "],
    ),
    "state of a number": (GRU, X, {"state": 5}, ["state must be a floating tensor", "got int"]),
    "state of a number, silent": (GRU, None, {"state": 5, "steps": 2}, ["state must be a floating tensor", "got int"]),
    "state of nothing": (LSTM, X, {"state": ()}, ["state must be a pair", "got nothing"]),
    "state of integers": (GRU, X, {"state": torch.ones(1, 3, 5).long()}, ["state must be", "got torch.int64"]),
    "state batch first": (
        LSTM,
        X,
        {"state": tuple(p.mT for p in PAIR)},
        ["state must have shape (2, 3, 5)", "got (2, 5, 3)"],
    ),
    "state rows": (LSTM, X, {"state": tuple(p[:, :2] for p in PAIR)}, ["state must have shape (2, 3, 5)", "(2, 2, 5)"]),
    "state of rows for layers": (
        nn.GRU(INPUT, HIDDEN, 2),
        X,
        {"state": noise(3, 2, 5)},
        ["state must have shape (2, 3, 5)", "got (3, 2, 5)"],
    ),
    "state of a projection": (
        nn.LSTM(INPUT, HIDDEN, proj_size=2),
        X,
        {"state": (noise(1, BATCH, HIDDEN), noise(1, BATCH, HIDDEN))},
        ["state must have shape (1, 3, 2)", "got (1, 3, 5)"],
    ),
    "state of a cell": (CELL, X, {"state": noise(2, HIDDEN)}, ["state must have shape (3, 5)", "got (2, 5)"]),
    "state without axes": (GRU, X, {"state": torch.tensor(1.0)}, ["state must have shape (1, 3, 5)", "got ()"]),
    "state NaN": (GRU, X, {"state": with_one(torch.nan, 1, BATCH, HIDDEN)}, ["state holds NaN or infinite"]),
    "state NaN, own cell": (OWN, X, {"state": with_one(torch.nan, BATCH, HIDDEN)}, ["state holds NaN or infinite"]),
    "state rows, own cell": (OWN, X, {"state": noise(2, HIDDEN)}, ["state must have 3 rows", "got 2"]),
    "state parts of unequal rows": (
        TWO,
        X,
        {"state": (H, H[:2])},
        ["state must have a row per sequence", "got [3, 2]"],
    ),
    "no rows": (henon, None, {"state": noise(0, 2), "steps": 2}, ["state must have a row", "got [0] rows"]),
    "state integers, own": (TWO, X, {"state": H.long()}, ["state must be a floating tensor (B, ...)", "torch.int64"]),
    "state without axes, own": (
        TWO,
        X,
        {"state": torch.tensor(1.0)},
        ["state must be a floating", "got () torch.float32"],
    ),
    "state string, own": (TWO, X, {"state": "zeros"}, ["state must be a floating tensor", "got str"]),
    "state nothing, own": (TWO, X, {"state": ()}, ["state must be a floating tensor", "got nothing"]),
    "state missing, autonomous": (henon, None, {"steps": 2}, ["state must be given for henon", "got None"]),
    "state missing, driven": (
        lambda x, s: torch.tanh(s + x),
        X,
        {},
        ["state must be given for <lambda>", "calling it with None", "TypeError"],
    ),
    "state not told": (lambda x, s: s, X, {}, ["state must be given for <lambda>", "got None"]),
    # weights
    "weights": (broken(nn.GRU(INPUT, HIDDEN), "weight_hh_l0"), X, {}, ["system: its weight weight_hh_l0 holds NaN"]),
    "weights infinite": (broken(nn.GRUCell(INPUT, HIDDEN), "bias_ih", torch.inf), X, {}, ["its weight bias_ih holds"]),
    "weights, own cell": (
        Wrapped(broken(nn.GRUCell(INPUT, HIDDEN), "weight_ih")),
        X,
        {"state": H},
        ["system: its weight inner.weight_ih holds NaN"],
    ),
    # system
    "a string": ("gru", X, {}, ["system must be an nn.RNN, nn.GRU or nn.LSTM", "got str"]),
    "nothing": (None, X, {}, ["system must be an nn.RNN", "got NoneType"]),
    "overridden": (Overridden(INPUT, HIDDEN), X, {}, ["system: Overridden replaces the forward pass of nn.GRU"]),
    "overridden cell": (
        OverriddenCell(INPUT, HIDDEN),
        X,
        {},
        ["OverriddenCell replaces the forward pass of nn.GRUCell"],
    ),
    "patched": (patched(), X, {}, ["system: GRU replaces the forward pass of nn.GRU"]),
    "bare base": (nn.RNNBase("GRU", INPUT, HIDDEN), X, {}, ["system: RNNBase is none of nn.RNN", "nn.LSTMCell"]),
    "whole model": (
        Model(),
        X,
        {},
        ["state must be given for Model", "to measure a layer inside it, pass one of: encoder.rnn, cell"],
    ),
    "whole model, state given": (
        Model(),
        X,
        {"state": H},
        [
            "system: calling Model(x, state) with inputs (3, 3) torch.float64",
            "[(3, 5)]",
            "pass one of: encoder.rnn, cell",
        ],
    ),
    "autonomous cell that fails": (
        lambda x, s: x + s,
        None,
        {"state": H, "steps": 2},
        ["system: calling <lambda>(x, state) with no inputs", "TypeError", "It must be a cell(x, state) -> state."],
    ),
    "returns another shape": (
        lambda x, s: s[:, :1],
        X,
        {"state": H},
        ["system must return the next state as it takes it", "[(3, 5)]", "returned [(3, 1)]"],
    ),
    "returns fewer rows": (lambda x, s: s[:1], X, {"state": H}, ["[(3, 5)]", "returned [(1, 5)]"]),
    "returns outputs too": (lambda x, s: (s, s), X, {"state": H}, ["[(3, 5)]", "returned [(3, 5), (3, 5)]"]),
    "returns one of two": (lambda x, s: s[0], X, {"state": (H, H)}, ["[(3, 5), (3, 5)]", "returned [(3, 5)]"]),
    "returns a dict": (lambda x, s: {"h": s}, X, {"state": H}, ["system must return", "returned ['dict']"]),
    "returns half of it": (
        Narrow(),
        X,
        {"state": H},
        ["system must return its state in", "float64", "returned torch.float32"],
    ),
    # dtype
    "dtype of a callable": (
        henon,
        None,
        {"state": noise(1, 2), "steps": 2, "dtype": torch.float32},
        ["dtype of a callable is that of its state, torch.float64", "got torch.float32"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_arguments_that_do_not_fit_are_named(name: str) -> None:
    system, inputs, options, told = BAD[name]
    with pytest.raises(ValueError) as caught:
        lyapunov_spectrum(system, inputs, **options)
    for words in told:
        assert words in str(caught.value)


def test_a_state_of_half_the_type_is_told_how_to_be_measured() -> None:
    spectrum = lyapunov_spectrum(Narrow(), X.float(), state=H, dtype=torch.float32)
    assert spectrum.dtype == torch.float32 and spectrum.exponents.isfinite().all()


def test_a_whole_model_with_nothing_recurrent_lists_nothing() -> None:
    with pytest.raises(ValueError) as caught:
        lyapunov_spectrum(nn.Linear(INPUT, HIDDEN), X)
    assert "state must be given for Linear" in str(caught.value) and "pass one of" not in str(caught.value)


FITTING: dict[str, Callable[[], tuple[Any, Any, Any, int]]] = {
    "batch of one, unbatched state": lambda: (GRU, noise(STEPS, 1, INPUT), noise(1, HIDDEN), 1),
    "unbatched, batched state": lambda: (GRU, noise(STEPS, INPUT), noise(1, 1, HIDDEN), 1),
    "float32 state": lambda: (LSTM, X, tuple(part.float() for part in PAIR), BATCH),
    "list for a pair": lambda: (LSTM, X, list(PAIR), BATCH),
    "half inputs": lambda: (CELL, X.half(), None, BATCH),
    "state that needs a gradient": lambda: (OWN, X, H.clone().requires_grad_(), BATCH),
    "list state of a callable": lambda: (lambda x, s: [0.5 * part for part in s], X, [H, H], BATCH),
    "inputs that need a gradient": lambda: (GRU, X.clone().requires_grad_(), None, BATCH),
    "strided inputs": lambda: (GRU, noise(BATCH, INPUT, STEPS).permute(2, 0, 1), None, BATCH),
}


@pytest.mark.parametrize("name", FITTING)
def test_what_fits_is_taken(name: str) -> None:
    system, inputs, state, sequences = FITTING[name]()
    spectrum = lyapunov_spectrum(system, inputs, state=state)
    assert spectrum.sequences == sequences and spectrum.exponents.isfinite().all()
    assert not spectrum.per_sequence.requires_grad
