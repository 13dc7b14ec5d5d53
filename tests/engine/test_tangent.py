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
from lightning_lyapunov.engine.chain import Steps
from lightning_lyapunov.engine.frames import random_frames
from lightning_lyapunov.engine.precision import SLACK
from lightning_lyapunov.engine.system import trajectories
from lightning_lyapunov.engine.tangent import Growth, carry

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
    options: dict[str, Any] = {"interval": 1, "dtype": torch.float64, "transient": 0}
    ours = lyapunov_spectrum(system, inputs, state=state, **options).per_sequence
    for b in range(BATCH):
        rates = ours[b].sort(descending=True).values
        along = list(jacobians[:, b])
        torch.testing.assert_close(rates, dense_rates(along, place=b), rtol=0.0, atol=1e-10)
        for wrong in (along[::-1], [j.mT for j in along], [j.mT for j in along[::-1]]):
            assert (rates - dense_rates(wrong, place=b)).abs().max() > 1e-3


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("name", SYSTEMS)
def test_a_partial_frame_equals_one_qr_of_torchs_dense_product(name: str, k: int) -> None:
    """Two columns more than asked for are pushed, and the leading ones of all are told."""
    system, inputs = SYSTEMS[name](), noise(STEPS, 1, INPUT)
    jacobians = torchs_jacobians(system, inputs, initial(system, 1))
    options: dict[str, Any] = {"k": k, "interval": 1, "transient": 0, "growth": 0}
    ours = lyapunov_spectrum(system, inputs, state=initial(system, 1), **options).exponents
    torch.testing.assert_close(ours, dense_rates(list(jacobians[:, 0]), k + 2)[:k], rtol=0.0, atol=1e-10)


# ------------------------------------------------------------------ pushing


class Matrices(Steps):
    """Jacobians ``(T, B, D', D)`` as they are given."""

    def __init__(self, matrices: Tensor) -> None:
        self.matrices = matrices

    def __len__(self) -> int:
        return len(self.matrices)

    def push(self, t: int, tangents: Tensor) -> Tensor:
        return self.matrices[t, : len(tangents)] @ tangents

    def pull(self, t: int, cotangents: Tensor) -> Tensor:
        return self.matrices[t, : len(cotangents)].mT @ cotangents


def scaled(rates: Tensor, running: list[int] | None = None, interval: int = 1, **options: Any) -> tuple[Tensor, Growth]:
    """Push the unit vectors of a plane along rates ``(T, B, 2)``, nats per step."""
    frame = torch.eye(2).double().expand(rates.shape[1], 2, 2)
    running = running or [rates.shape[1]] * len(rates)
    return carry(Matrices(rates.exp().diag_embed()), running, frame, interval, **options)


@pytest.mark.parametrize("interval", [1, 2, 3, 7, 100])
def test_growth_is_the_sum_of_the_rates(interval: int) -> None:
    rates = 0.1 * noise(7, 3, 2)
    frame, growth = scaled(rates, interval=interval)
    torch.testing.assert_close(growth.log.sum(0), rates.sum(0))
    torch.testing.assert_close(frame.abs(), torch.eye(2).double().expand(3, 2, 2))
    assert len(growth.ends) == math.ceil(7 / interval) and sum(growth.spans) == growth.ends[-1] == 7


def test_gap_is_what_a_direction_fell_behind_within_one_interval() -> None:
    rates = torch.tensor([[0.0, -1.0], [0.0, -2.0], [3.0, 0.0], [0.0, -0.5]]).double().unsqueeze(1)
    torch.testing.assert_close(scaled(rates, interval=1)[1].gap, torch.tensor([[0.0, 3.0]]).double())
    torch.testing.assert_close(scaled(rates, interval=2)[1].gap, torch.tensor([[0.0, 3.5]]).double())
    torch.testing.assert_close(scaled(rates, interval=4)[1].gap, torch.tensor([[0.0, 6.5]]).double())
    torch.testing.assert_close(scaled(-rates, interval=4)[1].gap, torch.tensor([[6.5, 0.0]]).double())


@pytest.mark.parametrize("in_blocks", [False, True])
@pytest.mark.parametrize("k", [2, 1])
def test_gap_is_told_by_the_length_of_the_tangents(in_blocks: bool, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fastest direction all but dies, and the other is long, but in its span: rounding is that of the long one."""
    monkeypatch.setattr("lightning_lyapunov.engine.tangent.prefers_blocks", lambda frame: in_blocks)
    matrix = torch.tensor([[[[1e-3, 1.0], [0.0, 1e-4]]]]).double()
    growth = carry(Matrices(matrix), [1], torch.eye(2)[None, :, :k].double(), 1)[1]
    lengths = torch.tensor([1e-3, 1e-4])[:k].double()
    torch.testing.assert_close(growth.log[0, 0], lengths.log())
    longest = math.sqrt((1e-6 + 1.0 + 1e-8) / 2) if k == 2 else 1e-3
    torch.testing.assert_close(growth.gap[0], math.log(longest) - lengths.log())


def test_a_lost_direction_leaves_the_gap_of_the_others_known() -> None:
    rates = torch.tensor([[0.0, -30.0], [0.0, -30.0]]).double().unsqueeze(1)
    growth = scaled(rates, interval=2)[1]
    assert growth.log[0, 0, 0] == 0 and growth.log[0, 0, 1].isnan()
    assert growth.gap[0, 0] == 0 and growth.gap[0, 1].isnan()


@pytest.mark.parametrize("interval", [1, 3, 100])
def test_a_sequence_that_has_ended_grows_no_more(interval: int) -> None:
    rates = 0.1 * noise(6, 3, 2)
    frame, growth = scaled(rates, running=[3, 3, 2, 2, 2, 1], interval=interval)
    expected = torch.stack([rates[:6, 0].sum(0), rates[:5, 1].sum(0), rates[:2, 2].sum(0)])
    torch.testing.assert_close(growth.log.sum(0), expected)
    torch.testing.assert_close(frame.abs(), torch.eye(2).double().expand(3, 2, 2))


def test_frame_moves_by_the_product_of_torchs_jacobians() -> None:
    """In exact arithmetic the pushed frame spans the image of the initial one."""
    system, inputs = SYSTEMS["lstm"](), noise(STEPS, BATCH, INPUT)
    (path,) = trajectories(system, inputs, initial(system), None, None).values()
    start = random_frames(range(BATCH), 2 * HIDDEN, 2, torch.device("cpu"))
    frame, _ = carry(path.follow(STEPS).steps(2, torch.float64), path.running, start, 1)
    image = start
    for jacobian in torchs_jacobians(system, inputs, initial(system)):
        image = jacobian @ image
    torch.testing.assert_close(frame @ (frame.mT @ image), image, rtol=0.0, atol=1e-12)
    assert (frame.mT @ image)[:, 1, 0].abs().max() < 1e-12


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
        frame = random_frames(range(BATCH), path.size, path.size, device)
        recurrence, factors = path.recurrence, path.factors(STEPS)

        def carried(running: list[int]) -> None:
            steps = recurrence.steps(tuple([*factors]), path.size, torch.float64)  # another tuple: nothing is kept
            for back in (False, True):
                carry(steps, running, frame, 2, back=back, cuts={3}, with_triangles=True)

        carried(path.running)  # the first one may load libraries, and try how a cell is differentiated
        with nothing_is_read(device):
            carried([2, 2, 2, 2, 1, 1])


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


def operators(system: Any, k: int, interval: int, steps: int, *, back: bool = False) -> int:
    """How many it takes to push k of 8 sequences along so many steps, their Jacobians ready."""
    with torch.no_grad():
        (path,) = trajectories(system, noise(steps, 8, INPUT), None, None, None).values()
        ready = path.follow(steps).steps(k, torch.float64)
        frame = random_frames(range(8), path.size, k, torch.device("cpu"))
        carry(ready, path.running, frame, interval, back=back)  # dense ones are formed when they are first wanted
        with Counted() as counted:
            carry(ready, path.running, frame, interval, back=back)
    return counted.count


@pytest.mark.parametrize(
    ("kind", "size", "k", "pushed", "pulled"),
    [
        *(("tanh", 16, 4, 1, 1), ("gru", 16, 4, 1, 1)),  # dense: a single product
        *(("tanh", 64, 4, 2, 2), ("gru", 64, 4, 4, 5), ("lstm", 64, 4, 7, 6)),
        *(("tanh", 64, 32, 2, 2), ("gru", 64, 32, 4, 4), ("lstm", 64, 32, 8, 8)),
    ],
)
def test_operators_per_step_are_few(kind: str, size: int, k: int, pushed: int, pulled: int) -> None:
    """The difference of 8 and 16 steps, with one reorthonormalisation at the end of each."""
    system = network(kind, INPUT, size)
    for back, per_step in ((False, pushed), (True, pulled)):
        many, few = (operators(system, k, 99, steps, back=back) for steps in (16, 8))
        assert (many - few) / 8 == per_step


def test_operators_of_a_reorthonormalisation_are_few() -> None:
    """One block: Gram matrix, Cholesky, its check, the diagonal out of it and into place, the solve, and back; and two
    lengths, by which a pivot that is nothing but rounding is known."""
    system = network("tanh", INPUT, 40)
    each = (operators(system, 32, 1, 16) - operators(system, 32, 2, 16)) / 8
    assert each <= 14


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("over_time", [False, True])
@pytest.mark.parametrize("kind", ["tanh", "gru", "lstm", "lstm projected", "any cell"])
@pytest.mark.parametrize("k", [2, 20])
def test_nothing_is_made_on_another_device(kind: str, k: int, over_time: bool, back: bool) -> None:
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
        factors = path.factors(STEPS)
        recurrence = path.recurrence
        for name, value in vars(recurrence).items():
            if isinstance(value, Tensor):
                setattr(recurrence, name, value.to("meta"))
        if isinstance(system, Leaky):
            recurrence._tensors = {name: value.to("meta") for name, value in recurrence._tensors.items()}
            recurrence.over_time = over_time  # what a trial would have to look at values to know
        frame = torch.empty(8, recurrence.state_size, k, dtype=torch.float64, device="meta")
        steps = recurrence.steps(tuple(f.to("meta") for f in factors), k, torch.float64)
        after, growth = carry(steps, path.running, frame, 2, back=back, with_triangles=True)
    tensors = [after, growth.log, growth.gap, growth.failed, *growth.triangles]
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
        return carry(Matrices(rates.exp().diag_embed()), [sequences], frame, 1, **options)[1]

    assert bool(pushed(-math.inf).failed) == by_blocks
    assert bool(pushed(-16.0).failed) == by_blocks  # positive definite, and yet beyond what Cholesky sees
    assert pushed(-8.0).gap[0].tolist() == pytest.approx([0.0, 2 * 8.0 - SLACK if by_blocks else 8.0])


# ------------------------------------------------------------------ interval by interval


def test_every_interval_is_told_by_itself() -> None:
    rates = 0.1 * noise(7, 3, 2)
    growth = scaled(rates, interval=4)[1]
    assert growth.ends == [4, 7] and growth.spans == [4, 3]
    torch.testing.assert_close(growth.log, torch.stack([rates[:4].sum(0), rates[4:].sum(0)]))


@pytest.mark.parametrize("interval", [1, 2, 5, 100])
def test_a_cut_ends_an_interval_wherever_it_falls(interval: int) -> None:
    """After so many steps counted as they are made, in either direction; the sums do not change."""
    rates = 0.1 * noise(9, 3, 2)
    for back in (False, True):
        growth = scaled(rates, interval=interval, cuts={4, 7}, back=back)[1]
        assert {4, 7, 9} <= set(growth.ends) and max(growth.spans) <= interval
        torch.testing.assert_close(growth.log.sum(0), rates.sum(0))
        first = growth.log[: growth.ends.index(4) + 1].sum(0)
        torch.testing.assert_close(first, (rates.flip(0) if back else rates)[:4].sum(0))


@pytest.mark.parametrize("in_blocks", [False, True])
@pytest.mark.parametrize("interval", [1, 2, 3])
@pytest.mark.parametrize("back", [False, True])
def test_triangles_and_frame_are_the_product_of_the_jacobians(
    back: bool, interval: int, in_blocks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M Q = Q' R_N ... R_1, forward with J and back with its transpose; two of three sequences end early."""
    monkeypatch.setattr("lightning_lyapunov.engine.tangent.prefers_blocks", lambda frame: in_blocks)
    size, k, running = 40, 36, [3, 3, 2, 2, 1, 1]
    matrices = torch.eye(size).double() + 0.3 / math.sqrt(size) * noise(6, 3, size, size)
    start = random_frames(range(3), size, k, torch.device("cpu"))
    frame, growth = carry(Matrices(matrices), running, start, interval, back=back, with_triangles=True)
    for row, length in enumerate((6, 4, 2)):
        image, product = start[row], torch.eye(k).double()
        for t in range(length)[:: -1 if back else 1]:
            image = (matrices[t, row].mT if back else matrices[t, row]) @ image
        for triangle in growth.triangles:
            if row < len(triangle):
                product = triangle[row] @ product
        torch.testing.assert_close(frame[row] @ product, image, rtol=0.0, atol=1e-12)
        assert torch.equal(product.tril(-1), torch.zeros_like(product))
        torch.testing.assert_close(growth.log[:, row].sum(0), product.diagonal().abs().log(), rtol=0.0, atol=1e-12)


def test_width_of_the_state_may_change_from_step_to_step() -> None:
    """A chain 3 → 5 → 2 wide: the plane that is left spans the image of the start."""
    first, last = noise(1, 1, 5, 3), noise(1, 1, 2, 5, seed=1)

    class Widths(Steps):
        def __len__(self) -> int:
            return 2

        def push(self, t: int, tangents: Tensor) -> Tensor:
            return (first if t == 0 else last)[0] @ tangents

        def pull(self, t: int, cotangents: Tensor) -> Tensor:
            return (first if t == 0 else last)[0].mT @ cotangents

    start = random_frames([0], 3, 2, torch.device("cpu"))
    frame, growth = carry(Widths(), [1, 1], start, 1)
    image = last[0] @ first[0] @ start
    assert frame.shape == (1, 2, 2)
    torch.testing.assert_close(growth.log.sum(), torch.linalg.slogdet(image[0]).logabsdet)
    back, growth = carry(Widths(), [1, 1], frame, 1, back=True)
    pulled = (first[0].mT @ last[0].mT @ frame)[0]
    assert back.shape == (1, 3, 2)
    torch.testing.assert_close(growth.log.sum(), (pulled.mT @ pulled).logdet() / 2)
