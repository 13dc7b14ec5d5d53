"""Conventions of cells, recognised in their calls.

The cells here are torch's own behind another signature, so that what is to be read and measured is known: the inputs
and states of the loop that called them, and the spectrum that the engine has for torch's cell, by formulas of its own.
"""

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from lightning_lyapunov import lyapunov_spectrum
from lightning_lyapunov.capture.calls import Adapter, Call
from lightning_lyapunov.capture.conventions import (
    ByFunction,
    RawCall,
    Recognised,
    adapted,
    as_adapter,
    keep,
    needs_raw_calls,
    read_calls,
    signature_of,
    undisturbed,
    watch_forward,
)
from lightning_lyapunov.engine.maps.cell import as_parts
from tests.capture.brute import by_qr
from tests.systems import flat, jacobian_by_autograd, noise

STEPS, ROWS, INPUT, HIDDEN = 12, 5, 3, 4


def core(kind: Callable[..., Any], *size: int, seed: int = 0) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(*(size or (INPUT, HIDDEN))).double()


class Recorder:
    """Keeps the calls of a module, as a hook sees them; those of scripted ones, which take no hooks, by a watch."""

    def __init__(self, module: nn.Module, most: int = 1000) -> None:
        self.batch: list[RawCall] = []
        signature = signature_of(module)

        def on_call(args: Any, kwargs: Any, output: Any) -> None:
            self.batch.append(keep(module, args, kwargs, output, most, signature))

        self._handle: Any
        if isinstance(module, torch.jit.ScriptModule):
            self._handle = watch_forward(module, on_call)
        else:
            self._handle = module.register_forward_hook(lambda _, *call: on_call(*call), with_kwargs=True)

    def __enter__(self) -> list[RawCall]:
        return self.batch

    def __exit__(self, *_: Any) -> None:
        self._handle.remove()


def read(module: nn.Module, *runs: Callable[[], Any], most: int = 1000) -> tuple[Adapter, list[list[Call]]]:
    batches = []
    for run in runs:
        with Recorder(module, most) as batch:
            run()
        batches.append(batch)
    return read_calls(module.eval(), batches)


def measured(module: nn.Module, adapter: Adapter, calls: list[Call]) -> Tensor:
    """The spectrum along the calls of one sequence of rows."""
    first = calls[0]
    parts = tuple(torch.zeros_like(part) for part in first.after) if first.before is None else first.before
    is_single = getattr(adapter, "is_single", True)
    state = parts[0] if is_single else parts
    inputs = torch.cat([call.inputs for call in calls])
    return lyapunov_spectrum(adapted(module, adapter), inputs, state=state, transient=0).exponents


# ---------------------------------------------------------------------- cells of torch's behind other signatures


class Plain(nn.Module):
    """(x, state) -> state."""

    def __init__(self) -> None:
        super().__init__()
        self.core = core(nn.GRUCell)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        return self.core(x, state)


class WithOutput(Plain):
    """(x, state) -> (output, state)."""

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h = self.core(x, state)
        return 2 * h, h


class TwiceTheSame(Plain):
    """(x, state) -> (h, h)."""

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        h = self.core(x, state)
        return h, h


class StateFirst(Plain):
    """(state, x) -> (state, output), as where a scan carries the state."""

    def forward(self, h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.core(x, h)
        return h, 2 * h


class Pair(nn.Module):
    """(x, (h, c)) -> (h, c)."""

    def __init__(self) -> None:
        super().__init__()
        self.core = core(nn.LSTMCell)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return self.core(x, state)


class Separate(Pair):
    """(x, h, c) -> (h, c)."""

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return self.core(x, (h, c))


class SeparateWithOutput(Pair):
    """(x, h, c) -> (output, h, c)."""

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, c = self.core(x, (h, c))
        return h.tanh(), h, c


class Nested(Pair):
    """(x, (h, c)) -> (h, (h, c)), as neuralforecast's ResLSTM cell."""

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, c = self.core(x, state)
        return h, (h, c)


class Memory(NamedTuple):
    h: Tensor
    c: Tensor


class Named(Pair):
    """(x, memory) -> memory, a named tuple."""

    def forward(self, x: Tensor, memory: Memory) -> Memory:
        return Memory(*self.core(x, tuple(memory)))


@dataclass
class Cache:
    h: Tensor
    c: Tensor
    age: int = 0


class WithDataclass(Pair):
    """(x, cache=) -> (output, cache), whose constructor checks what it is given."""

    def forward(self, x: Tensor, *, cache: Cache) -> tuple[Tensor, Cache]:
        h, c = self.core(x, (cache.h, cache.c))
        return h, Cache(h, c)


class InDict(Pair):
    """(x, **state) -> {"h": …, "c": …}."""

    def forward(self, x: Tensor, **state: Tensor) -> dict[str, Tensor]:
        h, c = self.core(x, (state["h"], state["c"]))
        return {"h": h, "c": c}


class LayersFirst(Pair):
    """(x, state) -> state, of shape (2, B, H)."""

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        return torch.stack(self.core(x, (state[0], state[1])))


def zeros(count: int = 1) -> Any:
    parts = tuple(torch.zeros(ROWS, HIDDEN, dtype=torch.float64) for _ in range(count))
    return parts if count > 1 else parts[0]


def x_of(t: int, seed: int = 0) -> Tensor:
    return noise(STEPS, ROWS, INPUT, seed=seed)[t]


def run_plain(cell: nn.Module) -> None:
    h = zeros()
    for t in range(STEPS):
        h = cell(x_of(t), h)


def run_output(cell: nn.Module) -> None:
    h = zeros()
    for t in range(STEPS):
        _, h = cell(x_of(t), h)


def run_lazily(cell: nn.Module) -> None:
    h = None
    for t in range(STEPS):
        _, h = cell(x_of(t), h)


def run_absent(cell: nn.Module) -> None:
    _, h = cell(x_of(0))
    for t in range(1, STEPS):
        _, h = cell(x_of(t), state=h)


def run_state_first(cell: nn.Module) -> None:
    h = zeros()
    for t in range(STEPS):
        h, _ = cell(h, x_of(t))


def run_pair(cell: nn.Module) -> None:
    state = zeros(2)
    for t in range(STEPS):
        state = cell(x_of(t), state)


def run_separate(cell: nn.Module) -> None:
    h, c = zeros(2)
    for t in range(STEPS):
        *_, h, c = cell(x_of(t), h, c)


def run_separate_named(cell: nn.Module) -> None:
    h, c = zeros(2)
    for t in range(STEPS):
        *_, h, c = cell(c=c, x=x_of(t), h=h)


def run_nested(cell: nn.Module) -> None:
    state = zeros(2)
    for t in range(STEPS):
        _, state = cell(x_of(t), state)


def run_named(cell: nn.Module) -> None:
    memory = Memory(*zeros(2))
    for t in range(STEPS):
        memory = cell(x_of(t), memory)


def run_dataclass(cell: nn.Module) -> None:
    cache = Cache(*zeros(2))
    for t in range(STEPS):
        _, cache = cell(x_of(t), cache=cache)


def run_dict(cell: nn.Module) -> None:
    h, c = zeros(2)
    state = {"h": h, "c": c}
    for t in range(STEPS):
        state = cell(x_of(t), **state)


def run_layers_first(cell: nn.Module) -> None:
    state = torch.stack(zeros(2))
    for t in range(STEPS):
        state = cell(x_of(t), state)


@pytest.mark.parametrize(
    ("kind", "run"),
    [
        (Plain, run_plain),
        (WithOutput, run_output),
        (WithOutput, run_lazily),
        (WithOutput, run_absent),
        (TwiceTheSame, run_output),
        (StateFirst, run_state_first),
        (Pair, run_pair),
        (Separate, run_separate),
        (SeparateWithOutput, run_separate_named),
        (Nested, run_nested),
        (Named, run_named),
        (WithDataclass, run_dataclass),
        (InDict, run_dict),
        (LayersFirst, run_layers_first),
    ],
)
def test_convention_is_recognised_and_measured_as_torchs_cell(
    kind: type[nn.Module], run: Callable[[nn.Module], None]
) -> None:
    cell: Any = kind()
    adapter, (calls,) = read(cell, lambda: run(cell))
    assert [call.inputs.shape for call in calls] == [(1, ROWS, INPUT)] * STEPS
    assert torch.equal(torch.cat([call.inputs for call in calls]), noise(STEPS, ROWS, INPUT))
    state: Any = zeros(2) if isinstance(cell, Pair) else zeros()
    for t, call in enumerate(calls):
        if call.before is not None and not isinstance(cell, LayersFirst):
            assert torch.equal(flat(call.before), flat(state))
        state = cell.core(x_of(t), state)
        assert torch.equal(flat(call.after), flat(state))
    expected = lyapunov_spectrum(cell.core, noise(STEPS, ROWS, INPUT), transient=0).exponents
    torch.testing.assert_close(measured(cell, adapter, calls), expected, rtol=0, atol=1e-8)


def test_state_made_at_the_first_step_from_zeros_is_read_as_none() -> None:
    cell = WithOutput()
    _, (calls,) = read(cell, lambda: run_lazily(cell))
    assert calls[0].before is None and all(call.before is not None for call in calls[1:])


class LearntStart(Plain):
    """Begins where it has learnt to."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(noise(HIDDEN, seed=7))

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h = self.core(x, self.start.expand(len(x), -1) if state is None else state)
        return 2 * h, h


def test_state_made_at_the_first_step_from_elsewhere_begins_a_step_later() -> None:
    cell = LearntStart()
    _, (calls,) = read(cell, lambda: run_lazily(cell))
    assert len(calls) == STEPS - 1
    start = cell.core(x_of(0), cell.start.expand(ROWS, -1))
    assert calls[0].before is not None and torch.equal(calls[0].before[0], start)
    assert torch.equal(calls[0].inputs[0], x_of(1))


def test_first_state_may_have_an_axis_more() -> None:
    """neuralforecast's ResLSTM is begun with (1, B, H), which its cell squeezes, and goes on with (B, H)."""

    class Squeezing(Nested):
        def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            return super().forward(x, (state[0].squeeze(0), state[1].squeeze(0)))

    cell = Squeezing()

    def run() -> None:
        h = noise(1, ROWS, HIDDEN, seed=8)
        state = (h, h.cos())
        for t in range(STEPS):
            _, state = cell(x_of(t), state)

    adapter, (calls,) = read(cell, run)
    assert len(calls) == STEPS and calls[0].before is not None
    assert torch.equal(calls[0].before[0], noise(ROWS, HIDDEN, seed=8))
    state = calls[0].before
    expected = lyapunov_spectrum(cell.core, noise(STEPS, ROWS, INPUT), state=state, transient=0).exponents
    torch.testing.assert_close(measured(cell, adapter, calls), expected, rtol=0, atol=1e-8)


class Normalised(nn.GRUCell):
    """A subclass of torch's cell with a step of its own."""

    def __init__(self) -> None:
        super().__init__(INPUT, HIDDEN)
        self.norm = nn.LayerNorm(HIDDEN)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:  # type: ignore[override]
        return self.norm(super().forward(x, h))


def test_subclass_of_torchs_cell_is_measured_by_its_own_step() -> None:
    """A layer-normalised GRU cell [pytorch#11335], against float64 Jacobians of its own forward."""
    cell = core(lambda *_: Normalised())
    states = [noise(ROWS, HIDDEN, seed=1)]

    def run() -> None:
        for t in range(STEPS):
            states.append(cell(x_of(t), states[-1]))

    adapter, (calls,) = read(cell, run)
    jacobians = [jacobian_by_autograd(lambda h, t=t: cell(x_of(t), h), states[t].detach()) for t in range(STEPS)]
    exponents, expected = measured(cell, adapter, calls), by_qr(jacobians)
    torch.testing.assert_close(exponents[:-1], expected[:-1], rtol=0, atol=1e-8)
    assert exponents[-1] < -10 and expected[-1] < -10  # a normalised state has no mean


def test_only_the_first_rows_are_kept_and_nothing_of_the_graph() -> None:
    cell = LayersFirst()
    with Recorder(cell, most=2) as batch:
        run_layers_first(cell)
    state = batch[3].given["state"]
    assert state.values.shape == (2, 2, HIDDEN) and state.axis == 1 and not state.values.requires_grad
    adapter, (calls,) = read(cell, lambda: run_layers_first(cell), most=2)
    expected = lyapunov_spectrum(cell.core, noise(STEPS, ROWS, INPUT)[:, :2], transient=0).exponents
    torch.testing.assert_close(measured(cell, adapter, calls), expected, rtol=0, atol=1e-8)


def test_rows_are_on_the_axis_that_most_batches_say() -> None:
    """A batch of two rows leaves it open which axis of (2, B, H) they are on."""
    cell = LayersFirst()

    def run(rows: int) -> None:
        state = torch.zeros(2, rows, HIDDEN, dtype=torch.float64)
        for t in range(STEPS):
            state = cell(x_of(t)[:rows], state)

    _, (wide, narrow) = read(cell, lambda: run(4), lambda: run(2))
    for calls, rows in ((wide, 4), (narrow, 2)):
        assert calls[1].before is not None and calls[1].before[0].shape == (rows, 2, HIDDEN)


def test_state_first_with_its_rows_on_another_axis() -> None:
    class StackFirst(Pair):
        def forward(self, state: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            state = torch.stack(self.core(x, (state[0], state[1])))
            return state, state[0]

    cell = StackFirst()

    def run() -> None:
        state = torch.stack(zeros(2))
        for t in range(STEPS):
            state, _ = cell(state, x_of(t))

    adapter, (calls,) = read(cell, run)
    expected = lyapunov_spectrum(cell.core, noise(STEPS, ROWS, INPUT), transient=0).exponents
    torch.testing.assert_close(measured(cell, adapter, calls), expected, rtol=0, atol=1e-8)


def test_calls_of_another_kind_and_without_rows_are_left_out() -> None:
    """A state that begins as one tensor, where it is a pair later; and a batch whose rows have all ended."""

    class Splitting(Pair):
        def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Tensor]:
            return self.core(x, (state, state) if isinstance(state, Tensor) else state)

    cell = Splitting()

    def run() -> None:
        state = noise(ROWS, HIDDEN)
        for t in range(STEPS):
            state = cell(x_of(t), state)
        cell(x_of(0)[:0], (state[0][:0], state[1][:0]))

    _, (calls,) = read(cell, run)
    assert len(calls) == STEPS - 1 and torch.equal(calls[0].inputs[0], x_of(1))


class Timed(nn.Module):
    """A cell that is also told the time since the last step, a symbol, and whether it is observed."""

    def __init__(self) -> None:
        super().__init__()
        self.core = core(nn.GRUCell)

    def forward(self, x: Tensor, h: Tensor, since: Any, symbol: Tensor, seen: Tensor, scale: float = 1.0) -> Any:
        assert symbol.dtype == torch.long and seen.dtype == torch.bool
        low = (symbol % 7).to(x.dtype).unsqueeze(1)
        h = h + scale * since * torch.where(seen.unsqueeze(1), self.core(x + low, h) - h, -h)
        return h, h


BIG = 2**40 + 1


def timed_inputs(t: int) -> tuple[Tensor, Tensor, Tensor]:
    since = noise(STEPS, ROWS, 1, seed=5)[t].abs()
    symbol = torch.arange(ROWS) * BIG + t
    return since, symbol, torch.arange(ROWS) != t % ROWS


def test_further_arguments_with_rows_are_drive_of_any_type() -> None:
    cell, states = Timed(), [noise(ROWS, HIDDEN, seed=1)]

    def run() -> None:
        for t in range(STEPS):
            states.append(cell(x_of(t), states[-1], *timed_inputs(t), scale=0.5)[1])

    adapter, (calls,) = read(cell, run)
    assert calls[0].inputs.shape == (1, ROWS, INPUT + 3) and calls[0].inputs.dtype == torch.float64
    system = adapted(cell, adapter)
    for t, call in enumerate(calls):
        assert torch.equal(system(call.inputs[0], states[t]), states[t + 1])  # symbols beyond float32 among them
    jacobians = [
        jacobian_by_autograd(lambda s, t=t: cell(x_of(t), s, *timed_inputs(t), scale=0.5)[1], states[t].detach())
        for t in range(STEPS)
    ]
    torch.testing.assert_close(measured(cell, adapter, calls), by_qr(jacobians), rtol=0, atol=1e-8)


def test_number_that_is_another_at_each_call_is_drive() -> None:
    cell, states = Timed(), [noise(ROWS, HIDDEN, seed=1)]

    def run() -> None:
        for t in range(STEPS):
            _, *rest = timed_inputs(t)
            states.append(cell(x_of(t), states[-1], 0.1 + 0.05 * t, *rest)[1])

    adapter, (calls,) = read(cell, run)
    for t, call in enumerate(calls):
        torch.testing.assert_close(adapter.step(cell, call.inputs[0], states[t]), states[t + 1], rtol=0, atol=1e-14)


def test_indices_alone_stay_indices() -> None:
    class Symbols(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(9, INPUT).double()

        def forward(self, x: Tensor, state: Tensor) -> Tensor:  # type: ignore[override]
            return self.core(self.table(x), state)

    class Two(Symbols):
        def forward(self, x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            a = self.core(self.table(x), a)
            return a, 0.5 * (a + b)

    cell, two = Symbols(), Two()

    def run() -> None:
        h = zeros()
        for t in range(STEPS):
            h = cell((torch.arange(ROWS) + t) % 9, h)

    def run_two() -> None:
        a, b = zeros(2)
        for t in range(STEPS):
            a, b = two((torch.arange(ROWS) + t) % 9, a, b)

    _, (calls,) = read(cell, run)
    assert calls[2].inputs.dtype == torch.long and calls[2].inputs.shape == (1, ROWS)
    _, (calls,) = read(two, run_two)  # the first of floating numbers is no input here
    assert calls[2].inputs.dtype == torch.long and len(calls[2].after) == 2


class PerStep(Plain):
    def forward(self, x: Tensor, state: Tensor, t: int) -> Tensor:  # type: ignore[override]
        return self.core(x, state) * (t + 1)


def test_index_that_changes_from_call_to_call_is_refused() -> None:
    cell = PerStep()

    def run() -> None:
        h = zeros()
        for t in range(STEPS):
            h = cell(x_of(t), h, t)

    with pytest.raises(ValueError, match=r"PerStep\.forward is given another t at each call \(0, 1, 2, \.\.\.\)"):
        read(cell, run)


def test_temperature_that_changes_between_batches_is_the_last() -> None:
    cell = PerStep()

    def run(t: int) -> None:
        h = zeros()
        for step in range(STEPS):
            h = cell(x_of(step), h, t)

    adapter, _ = read(cell, lambda: run(3), lambda: run(1))
    h = noise(ROWS, HIDDEN)
    assert torch.equal(adapter.step(cell, x_of(0), h), cell(x_of(0), h, 1))  # type: ignore[arg-type]


class Decoder(Plain):
    """Is given what it said as its next input: that is what drives it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = core(nn.Linear, HIDDEN, INPUT)

    def forward(self, y: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = self.core(y, h)
        return self.head(h), h


def test_output_fed_back_as_input_is_no_state() -> None:
    cell = Decoder()

    def run() -> None:
        y, h = x_of(0), zeros()
        for _ in range(STEPS):
            y, h = cell(y, h)

    _, (calls,) = read(cell, run)
    assert calls[3].inputs.shape == (1, ROWS, INPUT) and len(calls[3].after) == 1
    assert calls[3].after[0].shape == (ROWS, HIDDEN)


def test_of_two_places_that_hold_the_state_the_last_is_taken() -> None:
    """An output comes first; it may be dropped out, where the state is not."""
    cell = TwiceTheSame()
    adapter, _ = read(cell, lambda: run_output(cell))
    assert isinstance(adapter, Recognised) and adapter.returned == ((1,),)


def test_zeros_that_come_out_and_go_in_are_no_state() -> None:
    """A silent spiking output, and an argument that is zero at every step."""

    class Silent(Plain):
        def forward(self, x: Tensor, state: Tensor, current: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            h = self.core(x, state) + current
            return torch.zeros_like(h), h

    cell = Silent()

    def run() -> None:
        h = noise(ROWS, HIDDEN, seed=1)
        for t in range(STEPS):
            _, h = cell(x_of(t), h, zeros())

    _, (calls,) = read(cell, run)
    assert len(calls[0].after) == 1 and calls[0].inputs.shape == (1, ROWS, INPUT + HIDDEN)


def test_context_that_came_from_the_cell_itself_is_drive() -> None:
    class Attending(Plain):
        def forward(self, x: Tensor, state: Tensor, context: Tensor) -> Tensor:  # type: ignore[override]
            return self.core(x, state) + 0.1 * context

    cell = Attending()

    def run() -> None:
        h, nothing = zeros(), zeros()
        for t in range(STEPS):
            h = cell(x_of(t), h, nothing)
        context = h
        for t in range(STEPS):
            h = cell(x_of(t, seed=3), h, context)

    adapter, (calls,) = read(cell, run)
    assert calls[0].inputs.shape == (1, ROWS, INPUT + HIDDEN) and len(calls[0].after) == 1
    assert len(as_parts(adapter.step(cell, calls[0].inputs[0], zeros()))) == 1


def test_rows_that_begin_anew_or_end_do_not_hide_the_others() -> None:
    """Resets as in stable-baselines, and rows that are finished, as in caption decoders."""
    cell = Separate()

    def run() -> None:
        h, c = zeros(2)
        for t in range(STEPS):
            rows = ROWS - t // 4
            keep = torch.ones(rows, 1, dtype=torch.float64)
            keep[t % rows] = 0
            h, c = cell(x_of(t)[:rows], h[:rows] * keep, c[:rows] * keep)

    _, (calls,) = read(cell, run)
    assert [call.inputs.shape[1] for call in calls] == [ROWS - t // 4 for t in range(STEPS)]
    assert calls[1].before is not None and len(calls[1].before) == 2


class Complex(nn.Module):
    """h' = λh + x, |λ| = 0.9, as in a linear recurrent unit."""

    def __init__(self) -> None:
        super().__init__()
        self.angle = nn.Parameter(noise(HIDDEN))

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = 0.9 * torch.polar(torch.ones_like(self.angle), self.angle) * h + x[:, :1]
        return h.real, h


def test_complex_state_is_measured_as_pairs_of_numbers() -> None:
    cell = Complex()

    def run() -> None:
        h = torch.zeros(ROWS, HIDDEN, dtype=torch.complex128)
        for t in range(STEPS):
            _, h = cell(x_of(t), h)

    adapter, (calls,) = read(cell, run)
    assert calls[1].before is not None and calls[1].before[0].shape == (ROWS, HIDDEN, 2)
    exponents = measured(cell, adapter, calls)
    torch.testing.assert_close(exponents, torch.full((2 * HIDDEN,), 0.9, dtype=torch.float64).log())


def test_map_without_inputs() -> None:
    class Free(nn.Module):
        def forward(self, state: Tensor) -> Tensor:
            return 3.9 * state * (1 - state)

    cell = Free()

    def run() -> None:
        state = noise(ROWS, 1).sigmoid()
        for _ in range(STEPS):
            state = cell(state)

    adapter, (calls,) = read(cell, run)
    assert calls[0].inputs.shape == (1, ROWS, 0)
    assert calls[0].before is not None
    states = torch.cat([call.before[0] for call in calls if call.before is not None])
    expected = (3.9 * (1 - 2 * states)).abs().log().mean()
    torch.testing.assert_close(measured(cell, adapter, calls)[0], expected, rtol=0, atol=1e-8)


# ---------------------------------------------------------------------- calls that tell little


def test_state_changed_between_all_calls_is_the_second_argument() -> None:
    cell = WithOutput()

    def run() -> None:
        h = zeros()
        for t in range(STEPS):
            _, h = cell(x_of(t), 0.9 * h)

    adapter, (calls,) = read(cell, run)
    assert calls[2].before is not None and len(calls) == STEPS
    h = noise(ROWS, HIDDEN)
    assert torch.equal(adapter.step(cell, x_of(0), h), cell(x_of(0), h)[1])  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [WithOutput, Nested, Pair])
def test_single_call_without_a_state_is_tried_out(kind: type[nn.Module]) -> None:
    class Optional(kind):  # type: ignore[misc, valid-type]
        def forward(self, x: Tensor, state: Any = None) -> Any:
            if state is None:
                state = zeros(2) if isinstance(self, Pair) else zeros()
            return super().forward(x, state)

    cell: Any = Optional()
    adapter, (calls,) = read(cell, lambda: cell(x_of(0)))
    (call,) = calls
    assert call.before is None and len(call.after) == (2 if isinstance(cell, Pair) else 1)
    state: Any = zeros(2) if isinstance(cell, Pair) else zeros()
    assert torch.equal(flat(call.after), flat(cell.core(x_of(0), state)))
    assert torch.equal(flat(adapter.step(cell, x_of(0), state)), flat(call.after))


def test_module_without_a_state_is_refused() -> None:
    cell = core(nn.Linear)
    with pytest.raises(ValueError, match=r"Linear\.forward must take \(x, state\), x a tensor; it takes \['input'\]"):
        read(cell, lambda: cell(x_of(0)))


def test_state_that_is_not_returned_is_refused() -> None:
    class Lossy(Plain):
        def forward(self, x: Tensor, state: Tensor) -> Tensor:
            return super().forward(x, state)[:, :2]

    cell = Lossy()
    with pytest.raises(ValueError, match=r"state has parts of shape \[\(4,\)\] for each row; it returned \[\(2,\)\]"):
        read(cell, lambda: cell(x_of(0), zeros()))


def test_what_holds_unknown_things_is_refused() -> None:
    class Unknown:
        pass

    class WithUnknown(Plain):
        def forward(self, x: Tensor, state: Tensor, cache: Any) -> Tensor:  # type: ignore[override]
            return super().forward(x, state)

    cell = WithUnknown()
    with pytest.raises(ValueError, match="is given cache, a Unknown: what it holds is not known"):
        read(cell, lambda: cell(x_of(0), zeros(), Unknown()))


def test_calls_that_are_no_steps_are_refused_where_they_are_made() -> None:
    cell = Plain()
    signature = signature_of(cell)
    with pytest.raises(ValueError, match=r"given packed sequences \(x\)"):
        keep(cell, (pack_sequence([x_of(0)]), None), {}, zeros(), 9, signature)
    with pytest.raises(ValueError, match="must be given a tensor with a row per sequence"):
        keep(cell, (3, "h"), {}, zeros(), 9, signature)


def test_argument_that_is_there_at_times_is_refused() -> None:
    class Sometimes(Plain):
        def forward(self, x: Tensor, state: Tensor, context: Tensor | None = None) -> Tensor:
            return super().forward(x if context is None else x + context, state)

    cell = Sometimes()

    def run() -> None:
        h = zeros()
        for t in range(STEPS):
            h = cell(x_of(t), h, x_of(0) if t % 2 else None)

    with pytest.raises(ValueError, match="is given context in some calls and not in others"):
        read(cell, run)


# ---------------------------------------------------------------------- running a module apart


class Counting(nn.Module):
    """Normalises by statistics that it keeps, counts its calls and drops out: another module after each call."""

    def __init__(self) -> None:
        super().__init__()
        self.core, self.norm, self.calls = core(nn.GRUCell), nn.BatchNorm1d(HIDDEN).double(), 0
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        self.calls += 1
        self.seen += 1
        return nn.functional.dropout(self.norm(self.core(x, h)), 0.5, self.training)


def test_reading_leaves_module_and_random_state_as_they_were() -> None:
    cell = Counting()
    with Recorder(cell) as batch:
        h = cell(x_of(0))
        for t in range(1, STEPS):
            h = cell(x_of(t), h)
    before, attributes, luck = copy.deepcopy(cell.state_dict()), dict(vars(cell)), torch.get_rng_state()
    read_calls(cell, [batch])
    assert vars(cell) == attributes and cell.training and cell.norm.training and cell.calls == STEPS
    assert all(torch.equal(value, before[name]) for name, value in cell.state_dict().items())
    assert torch.equal(torch.get_rng_state(), luck)
    with pytest.raises(ZeroDivisionError):
        undisturbed(cell, lambda: 1 // 0)
    assert vars(cell) == attributes and cell.norm.training


def test_adapted_cell_has_the_mode_of_its_module_and_its_weights() -> None:
    cell = WithOutput().eval()
    adapter, _ = read(cell, lambda: run_output(cell))
    system = adapted(cell, adapter)
    assert isinstance(system, nn.Module) and not system.training
    assert dict(system.named_parameters())["module.core.weight_hh"] is cell.core.weight_hh


# ---------------------------------------------------------------------- scripted cells


def scripted(module: nn.Module) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls scripting deprecated
        return torch.jit.script(module)


@pytest.mark.parametrize(("kind", "run"), [(Plain, run_plain), (WithOutput, run_lazily), (Separate, run_separate)])
def test_scripted_cell_is_measured_as_the_plain_one(kind: type[nn.Module], run: Callable[[nn.Module], None]) -> None:
    cell: Any = kind()
    script = scripted(cell)
    adapter, (calls,) = read(script, lambda: run(script))
    assert len(calls) == STEPS and not isinstance(adapted(script, adapter), nn.Module)
    expected = lyapunov_spectrum(cell.core, noise(STEPS, ROWS, INPUT), transient=0).exponents
    torch.testing.assert_close(measured(script, adapter, calls), expected, rtol=0, atol=1e-8)


def test_scripted_torch_cell_is_measured_as_the_plain_one() -> None:
    cell = core(nn.GRUCell)
    script = scripted(cell)
    adapter, (calls,) = read(script, lambda: run_plain(script))
    expected = lyapunov_spectrum(cell, noise(STEPS, ROWS, INPUT), transient=0).exponents
    torch.testing.assert_close(measured(script, adapter, calls), expected, rtol=0, atol=1e-8)


# ---------------------------------------------------------------------- a function in place of an adapter


def test_function_is_the_step_of_calls_that_are_recognised() -> None:
    cell = Nested()
    with Recorder(cell) as batch:
        run_nested(cell)
    adapter = as_adapter(lambda module, x, state: module.core(x, state))
    assert isinstance(adapter, ByFunction) and needs_raw_calls(adapter) and needs_raw_calls(None)
    read_adapter, (calls,) = read_calls(cell, [batch], adapter)
    assert read_adapter is adapter and len(calls) == STEPS
    state = calls[0].before
    assert state is not None
    exponents = lyapunov_spectrum(
        adapted(cell.eval(), adapter), torch.cat([call.inputs for call in calls]), state=state, transient=0
    ).exponents
    expected = lyapunov_spectrum(cell.core, noise(STEPS, ROWS, INPUT), transient=0).exponents
    torch.testing.assert_close(exponents, expected, rtol=0, atol=1e-8)


def test_adapter_is_one_already() -> None:
    class Own(Adapter):
        def read(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Call:
            return Call.of_step(args[0], None, (output,))

        def step(self, module: nn.Module, x: Tensor, state: Any) -> Any:
            return state

    own = Own()
    assert as_adapter(own) is own and not needs_raw_calls(own)
    with pytest.raises(ValueError, match="must be an Adapter or a function step"):
        as_adapter("cell")  # type: ignore[arg-type]


# ---------------------------------------------------------------------- cells called as cell.forward(...)


def test_calls_of_forward_are_seen_while_watched_and_leave_nothing() -> None:
    cell, seen = Separate(), list[tuple[Any, ...]]()
    attributes, kind = dict(vars(cell)), type(cell)
    h, c = zeros(2)
    handle = watch_forward(cell, lambda args, kwargs, output: seen.append((args, kwargs, output)))
    h, c = cell.forward(x_of(0), h, c=c)
    cell(x_of(1), h, c)
    with pytest.raises(TypeError):
        cell()
    assert vars(cell) == attributes and isinstance(cell, kind) and signature_of(cell) == signature_of(Separate())
    handle.remove()
    handle.remove()
    cell.forward(x_of(2), h, c)
    assert len(seen) == 1  # hooks see the call of the cell itself
    assert len(seen[0][0]) == 2 and list(seen[0][1]) == ["c"] and torch.equal(seen[0][2][0], h)
    assert vars(cell) == attributes and type(cell) is kind


def test_copies_of_a_watched_module_are_clean() -> None:
    cell, seen = Separate(), list[Any]()
    handle = watch_forward(cell, lambda *call: seen.append(call))
    saved = io.BytesIO()
    torch.save(cell, saved)
    saved.seek(0)
    again = pickle.loads(pickle.dumps(cell)), torch.load(saved, weights_only=False)
    for twin in (copy.deepcopy(cell), copy.copy(cell), *again):
        assert type(twin) is Separate and "forward" not in vars(twin)
        twin.forward(x_of(0), *zeros(2))
    handle.remove()
    assert seen == [] and type(cell) is Separate


def test_two_watches_and_a_failing_cell() -> None:
    cell, seen = Plain(), list[str]()
    one = watch_forward(cell, lambda *_: seen.append("one"))
    two = watch_forward(cell, lambda *_: seen.append("two"))
    with pytest.raises(TypeError):
        cell.forward()  # type: ignore[call-arg]
    cell.forward(x_of(0), zeros())
    assert seen == ["one", "two"]
    one.remove()
    two.remove()
    assert type(cell) is Plain


def test_compiled_modules_and_those_with_a_forward_of_their_own_are_left_alone() -> None:
    compiled = torch.compile(Plain(), backend="eager")
    patched = Plain()
    patched.forward = lambda x, state: state  # type: ignore[method-assign]
    for module in (compiled, patched):
        kind, attributes = type(module), dict(vars(module))
        watch_forward(module, lambda *_: None).remove()
        assert type(module) is kind and vars(module) == attributes
