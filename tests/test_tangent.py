"""Tangent vectors against the dense Jacobians of torch's own modules."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from systems import Wrapped, dense_rates, flat, jacobian_by_autograd, network, noise
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_lyapunov import lyapunov_spectrum
from lightning_lyapunov.orthonormal import SLACK
from lightning_lyapunov.recurrence import Recurrence
from lightning_lyapunov.tangent import Growth, push_along, random_frame
from lightning_lyapunov.trajectory import trajectories

INPUT, HIDDEN, STEPS, BATCH = 3, 5, 6, 2


class Leaky(nn.Module):
    """A cell of nobody's family."""

    def __init__(self) -> None:
        super().__init__()
        self.recur, self.gate = nn.Parameter(1.5 * noise(HIDDEN, HIDDEN)), nn.Parameter(noise(HIDDEN, HIDDEN, seed=1))
        self.input = nn.Parameter(noise(INPUT, HIDDEN, seed=2))

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        return 0.7 * state + torch.sigmoid(state @ self.gate) * torch.tanh(state @ self.recur + x @ self.input)


SYSTEMS: dict[str, Callable[[], Any]] = {
    "tanh": lambda: network("tanh", INPUT, HIDDEN, gain=1.5),
    "gru": lambda: network("gru", INPUT, HIDDEN, gain=1.5),
    "lstm": lambda: network("lstm", INPUT, HIDDEN, gain=1.5),
    "lstm projected": lambda: network("lstm", INPUT, HIDDEN, gain=1.5, proj_size=3),
    "any cell": Leaky,
}


def initial(system: Any, rows: int = BATCH) -> Any:
    if not isinstance(system, nn.LSTM):
        return noise(rows, HIDDEN, seed=5) if not isinstance(system, nn.RNNBase) else noise(1, rows, HIDDEN, seed=5)
    return noise(1, rows, system.proj_size or HIDDEN, seed=5), noise(1, rows, HIDDEN, seed=6)


def torchs_step(system: Any, x: Tensor) -> Callable[[Tensor], Tensor]:
    """One step of torch's own module as a map of flat states ``(B, D)``."""

    def step(s: Tensor) -> Tensor:
        if not isinstance(system, nn.RNNBase):
            return system(x, s)
        if not isinstance(system, nn.LSTM):
            return system(x[None], s[None])[1][0]
        width = system.proj_size or HIDDEN
        h, c = s[None, :, :width].contiguous(), s[None, :, width:].contiguous()
        return torch.cat(system(x[None], (h, c))[1], -1)[0]

    return step


def torchs_jacobians(system: Any, inputs: Tensor, state: Any) -> Tensor:
    """Of every step ``(T, B, D, D)``, at the states torch itself runs through."""
    s = flat(state) if not isinstance(system, nn.RNNBase) else torch.cat(state if len(state) == 2 else [state], -1)[0]
    result = []
    for x in inputs:
        step = torchs_step(system, x)
        result.append(jacobian_by_autograd(step, s))
        s = step(s).detach()
    return torch.stack(result)


@pytest.mark.parametrize("name", SYSTEMS)
def test_six_steps_equal_one_qr_of_torchs_dense_product(name: str) -> None:
    """Oracle 2. The transposed and the time-reversed product have other rates: this test can tell."""
    system, inputs = SYSTEMS[name](), noise(STEPS, BATCH, INPUT)
    state = initial(system)
    jacobians = torchs_jacobians(system, inputs, state)
    ours = lyapunov_spectrum(system, inputs, state=state, interval=1, dtype=torch.float64).per_sequence
    for b in range(BATCH):
        rates = ours[b].sort(descending=True).values
        along = list(jacobians[:, b])
        torch.testing.assert_close(rates, dense_rates(along), rtol=0.0, atol=1e-10)
        for wrong in (along[::-1], [j.mT for j in along], [j.mT for j in along[::-1]]):
            assert (rates - dense_rates(wrong)).abs().max() > 1e-3


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("name", SYSTEMS)
def test_a_partial_frame_equals_one_qr_of_torchs_dense_product(name: str, k: int) -> None:
    system, inputs = SYSTEMS[name](), noise(STEPS, 1, INPUT)
    jacobians = torchs_jacobians(system, inputs, initial(system, 1))
    ours = lyapunov_spectrum(system, inputs, state=initial(system, 1), k=k, interval=1).exponents
    torch.testing.assert_close(ours, dense_rates(list(jacobians[:, 0]), k), rtol=0.0, atol=1e-10)


# ------------------------------------------------------------------ pushing


class Scale(Recurrence):
    """Each direction of a plane grows by what the drive says."""

    state_size = output_size = 2
    dtype = torch.float64

    def run(self, inputs: Tensor, drive: Tensor, state: Tensor) -> Tensor:
        raise NotImplementedError

    def linearise(self, states: Tensor, drive: Tensor) -> tuple[Tensor, ...]:
        return (drive,)

    def push_forward(self, factors: tuple[Tensor, ...], tangents: Tensor) -> Tensor:
        return factors[0].unsqueeze(-1) * tangents

    def to(self, dtype: torch.dtype) -> Recurrence:
        return self


def scaled(rates: Tensor, running: list[int] | None = None, interval: int = 1) -> Any:
    """Push the unit vectors of a plane along rates ``(T, B, 2)``, nats per step."""
    frame = torch.eye(2).double().expand(rates.shape[1], 2, 2)
    return push_along(Scale(), (rates.exp(),), running or [rates.shape[1]] * len(rates), frame, interval)


@pytest.mark.parametrize("interval", [1, 2, 3, 7, 100])
def test_growth_is_the_sum_of_the_rates(interval: int) -> None:
    rates = 0.1 * noise(7, 3, 2)
    frame, growth = scaled(rates, interval=interval)
    torch.testing.assert_close(growth.log, rates.sum(0))
    torch.testing.assert_close(frame.abs(), torch.eye(2).double().expand(3, 2, 2))
    assert growth.intervals == math.ceil(7 / interval)


def test_gap_is_what_a_direction_fell_behind_within_one_interval() -> None:
    rates = torch.tensor([[0.0, -1.0], [0.0, -2.0], [3.0, 0.0], [0.0, -0.5]]).double().unsqueeze(1)
    torch.testing.assert_close(scaled(rates, interval=1)[1].gap, torch.tensor([[0.0, 3.0]]).double())
    torch.testing.assert_close(scaled(rates, interval=2)[1].gap, torch.tensor([[0.0, 3.5]]).double())
    torch.testing.assert_close(scaled(rates, interval=4)[1].gap, torch.tensor([[0.0, 6.5]]).double())
    torch.testing.assert_close(scaled(-rates, interval=4)[1].gap, torch.tensor([[6.5, 0.0]]).double())


class Matrices(Scale):
    """Whatever the drive is, as matrices."""

    def push_forward(self, factors: tuple[Tensor, ...], tangents: Tensor) -> Tensor:
        return factors[0] @ tangents


@pytest.mark.parametrize("in_blocks", [False, True])
@pytest.mark.parametrize("k", [2, 1])
def test_gap_is_told_by_the_length_of_the_tangents(in_blocks: bool, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fastest direction all but dies, and the other is long, but in its span: rounding is that of the long one."""
    monkeypatch.setattr("lightning_lyapunov.tangent.prefers_blocks", lambda frame: in_blocks)
    matrix = torch.tensor([[[[1e-3, 1.0], [0.0, 1e-4]]]]).double()
    growth = push_along(Matrices(), (matrix,), [1], torch.eye(2)[None, :, :k].double(), 1)[1]
    lengths = torch.tensor([1e-3, 1e-4])[:k].double()
    torch.testing.assert_close(growth.log[0], lengths.log())
    longest = math.sqrt((1e-6 + 1.0 + 1e-8) / 2) if k == 2 else 1e-3
    torch.testing.assert_close(growth.gap[0], math.log(longest) - lengths.log())


def test_a_lost_direction_leaves_the_gap_of_the_others_known() -> None:
    rates = torch.tensor([[0.0, -30.0], [0.0, -30.0]]).double().unsqueeze(1)
    growth = scaled(rates, interval=2)[1]
    assert growth.log[0, 0] == 0 and growth.log[0, 1].isnan()
    assert growth.gap[0, 0] == 0 and growth.gap[0, 1].isnan()


@pytest.mark.parametrize("interval", [1, 3, 100])
def test_a_sequence_that_has_ended_grows_no_more(interval: int) -> None:
    rates = 0.1 * noise(6, 3, 2)
    frame, growth = scaled(rates, running=[3, 3, 2, 2, 2, 1], interval=interval)
    expected = torch.stack([rates[:6, 0].sum(0), rates[:5, 1].sum(0), rates[:2, 2].sum(0)])
    torch.testing.assert_close(growth.log, expected)
    torch.testing.assert_close(frame.abs(), torch.eye(2).double().expand(3, 2, 2))


def test_frame_moves_by_the_product_of_torchs_jacobians() -> None:
    """In exact arithmetic the pushed frame spans the image of the initial one."""
    system, inputs = SYSTEMS["lstm"](), noise(STEPS, BATCH, INPUT)
    (path,) = trajectories(system, inputs, initial(system), None, None).values()
    factors = path.recurrence.linearise(path.states[:-1], path.drive)
    start = random_frame(2 * HIDDEN, 2, torch.device("cpu"), None).expand(BATCH, -1, -1)
    frame, _ = push_along(path.recurrence, factors, path.running, start, 1)
    image = start
    for jacobian in torchs_jacobians(system, inputs, initial(system)):
        image = jacobian @ image
    torch.testing.assert_close(frame @ (frame.mT @ image), image, rtol=0.0, atol=1e-12)
    assert (frame.mT @ image)[:, 1, 0].abs().max() < 1e-12


# ------------------------------------------------------------------ frames


def test_frame_is_orthonormal_nested_and_the_same_every_time() -> None:
    cpu = torch.device("cpu")
    before = torch.random.get_rng_state()
    whole, part = random_frame(6, 6, cpu, None), random_frame(6, 2, cpu, None)
    torch.testing.assert_close(whole.mT @ whole, torch.eye(6).double())
    torch.testing.assert_close(whole[:, :2], part)
    assert torch.equal(random_frame(6, 6, cpu, None), whole)
    assert torch.equal(torch.random.get_rng_state(), before)
    other = random_frame(6, 6, cpu, torch.Generator().manual_seed(1))
    assert not torch.equal(other, whole)


# ------------------------------------------------------------------ what a GPU would wait for


class NothingIsRead(TorchDispatchMode):
    """Refuses every operator whose result the processor must wait for."""

    READS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique", "bincount")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        indexed_by_mask = name == "index" and any(t is not None and t.dtype == torch.bool for t in args[1])
        if indexed_by_mask or name in self.READS:
            raise AssertionError(f"{func} reads from the device")
        return func(*args, **(kwargs or {}))


@contextmanager
def nothing_is_read(device: torch.device) -> Iterator[None]:
    """On a GPU its own driver tells as well."""
    with ExitStack() as stack:
        if device.type == "cuda":
            stack.callback(torch.cuda.set_sync_debug_mode, torch.cuda.get_sync_debug_mode())
            torch.cuda.set_sync_debug_mode("error")
        stack.enter_context(NothingIsRead())
        yield


FAMILIES_AND_A_WRAPPED_CELL = SYSTEMS | {"wrapped gru cell": lambda: Wrapped(nn.GRUCell(INPUT, HIDDEN).double())}


@pytest.mark.parametrize("name", FAMILIES_AND_A_WRAPPED_CELL)
def test_nothing_is_read_from_the_device_on_the_way(name: str, device: torch.device) -> None:
    system = FAMILIES_AND_A_WRAPPED_CELL[name]().to(device)
    state = initial(system)
    state = tuple(part.to(device) for part in state) if isinstance(state, tuple) else state.to(device)
    with torch.no_grad():
        (path,) = trajectories(system, noise(STEPS, BATCH, INPUT).to(device), state, None, None).values()
        factors = path.recurrence.linearise(path.states[:-1], path.drive)
        size = path.recurrence.state_size
        frame = random_frame(size, size, device, None).expand(BATCH, -1, -1)
        push_along(path.recurrence, factors, path.running, frame, 2)  # the first one may load libraries
        with nothing_is_read(device):
            push_along(path.recurrence, factors, [2, 2, 2, 2, 1, 1], frame, 2)


class Counted(TorchDispatchMode):
    """Counts operators that compute: each is at least one kernel on a GPU. Views cost none."""

    VIEWS = (
        *("view", "_unsafe_view", "as_strided", "alias", "detach", "transpose", "t", "permute", "unsqueeze", "squeeze"),
        *("select", "slice", "split", "unbind", "expand", "diagonal"),
    )

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.__name__.split(".")[0] not in self.VIEWS
        return func(*args, **(kwargs or {}))


def operators(system: Any, k: int, interval: int, steps: int) -> int:
    """How many it takes to push k of 8 sequences along so many steps."""
    with torch.no_grad():
        (path,) = trajectories(system, noise(steps, 8, INPUT), None, None, None).values()
        factors = path.follow(steps)
        size = path.recurrence.state_size
        frame = random_frame(size, k, torch.device("cpu"), None).expand(8, -1, -1)
        with Counted() as counted:
            push_along(path.recurrence, factors, path.running, frame, interval)
    return counted.count


@pytest.mark.parametrize(
    ("kind", "k", "per_step"),
    [("tanh", 4, 2), ("tanh", 32, 2), ("gru", 4, 4), ("gru", 32, 4), ("lstm", 4, 7), ("lstm", 32, 8)],
)
def test_operators_per_step_are_few(kind: str, k: int, per_step: int) -> None:
    """The difference of 8 and 16 steps, with one reorthonormalisation at the end of each."""
    system = network(kind, INPUT, 40)
    assert (operators(system, k, 99, 16) - operators(system, k, 99, 8)) / 8 == per_step


def test_operators_of_a_reorthonormalisation_are_few() -> None:
    """One block: Gram matrix, Cholesky, its check, the diagonal out of it and into place, the solve, and back; and two
    lengths, by which a pivot that is nothing but rounding is known."""
    system = network("tanh", INPUT, 40)
    each = (operators(system, 32, 1, 16) - operators(system, 32, 2, 16)) / 8
    assert each <= 14


@pytest.mark.parametrize("kind", ["tanh", "gru", "lstm", "lstm projected", "any cell"])
@pytest.mark.parametrize("k", [2, 20])
def test_nothing_is_made_on_another_device(kind: str, k: int) -> None:
    """On the meta device, where an operator that met a tensor of another device would refuse."""
    system = network("lstm", INPUT, 24, proj_size=20) if "proj" in kind else SYSTEMS.get(kind, Leaky)()
    if kind in ("tanh", "gru", "lstm"):
        system = network(kind, INPUT, 24)
    k = min(k, HIDDEN) if kind == "any cell" else k
    state = initial(system) if kind == "any cell" else None
    with torch.no_grad():
        (path,) = trajectories(
            system, noise(STEPS, 8, INPUT), state if state is None else noise(8, HIDDEN), None, None
        ).values()
        factors = path.follow(STEPS)
        recurrence = path.recurrence
        for name, value in vars(recurrence).items():
            if isinstance(value, Tensor):
                setattr(recurrence, name, value.to("meta"))
        if isinstance(system, Leaky):
            recurrence._tensors = {name: value.to("meta") for name, value in recurrence._tensors.items()}
        frame = torch.empty(8, recurrence.state_size, k, dtype=torch.float64, device="meta")
        after, growth = push_along(recurrence, tuple(f.to("meta") for f in factors), path.running, frame, 2)
    tensors = [after, growth.log, growth.gap, growth.last, growth.failed]
    assert all(tensor.device.type == "meta" for tensor in tensors)


def test_reading_from_the_device_would_be_seen() -> None:
    values = noise(3)
    reads: list[Callable[[], Any]] = [
        lambda: float(values.max()),
        lambda: bool((values > 0).any()),
        lambda: values[values > 0],
        lambda: values.nonzero(),
        lambda: torch.equal(values, values),
    ]
    for read in reads:
        with pytest.raises(AssertionError, match="reads from the device"), NothingIsRead():
            read()


# ------------------------------------------------------------------ which way


@pytest.mark.parametrize(
    ("sequences", "options", "by_blocks"), [(64, {}, True), (63, {}, False), (64, {"may_use_blocks": False}, False)]
)
def test_blocks_are_used_where_they_may_be_and_pay(sequences: int, options: dict[str, bool], by_blocks: bool) -> None:
    """Told by what only Cholesky cannot do, a direction that vanishes, and by the gaps, in which blocks act squared."""
    frame = torch.eye(2).double().expand(sequences, 2, 2)

    def pushed(rate: float) -> Growth:
        rates = torch.tensor([0.0, rate]).double().expand(1, sequences, 2)
        return push_along(Scale(), (rates.exp(),), [sequences], frame, 1, **options)[1]

    assert bool(pushed(-math.inf).failed) == by_blocks
    assert bool(pushed(-16.0).failed) == by_blocks  # positive definite, and yet beyond what Cholesky sees
    assert pushed(-8.0).gap[0].tolist() == pytest.approx([0.0, 2 * 8.0 - SLACK if by_blocks else 8.0])


def test_frame_is_made_where_it_is_wanted() -> None:
    assert random_frame(6, 2, torch.device("meta"), None).device.type == "meta"


def test_the_last_interval_is_told_by_itself() -> None:
    rates = 0.1 * noise(7, 3, 2)
    growth = scaled(rates, interval=4)[1]
    assert growth.last_steps == 3
    torch.testing.assert_close(growth.last, rates[4:].sum((0, 2)))
