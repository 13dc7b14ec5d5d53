"""What the probe records, against the inputs the layer was really given."""

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from systems import noise
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from lightning_lyapunov import lyapunov_spectrum
from lightning_lyapunov.capture.finding import Found, find
from lightning_lyapunov.capture.probe import Probe, driven_by
from lightning_lyapunov.engine.sequences import Sequences

INPUT, HIDDEN, STEPS, BATCH = 3, 5, 9, 4
MODULES = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
CELLS = {"rnn": nn.RNNCell, "gru": nn.GRUCell, "lstm": nn.LSTMCell}


def layer_of(kind: str = "lstm", **options: Any) -> Any:
    return MODULES[kind](INPUT, HIDDEN, **options).double()


def recorded(
    layer: nn.Module, *batches: Callable[[], Any], sequences: int = 16, steps: int = 64, keep_latest: bool = False
) -> Probe:
    """A probe that watched some batches, each a forward pass."""
    probe = Probe(layer, sequences, steps)
    for batch in batches:
        probe.begin_batch(keep_latest=keep_latest)
        batch()
        probe.end_batch()
    return probe


def rows(sequences: Sequences) -> list[Tensor]:
    """Each sequence by itself, in the order they were given."""
    assert sequences.order is None
    return [sequences.values[:n, b] for b, n in enumerate(sequences.lengths)]


def assert_rows(sequences: Sequences, expected: list[Tensor]) -> None:
    found = rows(sequences)
    assert [tuple(row.shape) for row in found] == [tuple(row.shape) for row in expected]
    assert all(map(torch.equal, found, expected))


def unrolled(cell: nn.Module, x: Tensor, state: Any = None, **options: Any) -> Any:
    """A cell in a Python loop."""
    for x_t in x:
        state = cell(x_t, state)
    return state


class Gate(nn.Module):
    """A cell of the user's own, with a tuple of two parts of different size as state."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(INPUT + 6, 6).double()

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor], *, gain: float = 1.0) -> tuple[Tensor, Tensor]:
        h, m = state
        both = torch.tanh(gain * self.mix(torch.cat([x, h, m], -1)))
        return both[:, :4], 0.9 * m + 0.1 * both[:, 4:]


# ---------------------------------------------------------------- the forms in which a module is called


def given_batch_first() -> tuple[Any, Callable[[], Any], list[Tensor], Any]:
    layer, x = layer_of(batch_first=True), noise(BATCH, STEPS, INPUT)
    return layer, lambda: layer(x), list(x), None


def given_time_first() -> tuple[Any, Callable[[], Any], list[Tensor], Any]:
    layer, x = layer_of("gru"), noise(STEPS, BATCH, INPUT)
    return layer, lambda: layer(x), list(x.transpose(0, 1)), None


def given_keywords() -> tuple[Any, Callable[[], Any], list[Tensor], Any]:
    layer, x = layer_of(), noise(STEPS, BATCH, INPUT)
    state = noise(1, BATCH, HIDDEN, seed=1), noise(1, BATCH, HIDDEN, seed=2)
    return layer, lambda: layer(hx=state, input=x), list(x.transpose(0, 1)), state


def given_state_by_keyword() -> tuple[Any, Callable[[], Any], list[Tensor], Any]:
    layer, x, state = layer_of("rnn"), noise(STEPS, BATCH, INPUT), noise(1, BATCH, HIDDEN, seed=1)
    return layer, lambda: layer(x, hx=state), list(x.transpose(0, 1)), state


def given_packed() -> tuple[Any, Callable[[], Any], list[Tensor], Any]:
    layer, x, lengths = layer_of(), noise(STEPS, BATCH, INPUT), [4, 9, 1, 6]
    state = noise(1, BATCH, HIDDEN, seed=1), noise(1, BATCH, HIDDEN, seed=2)
    packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
    return layer, lambda: layer(packed, state), [x[:n, b] for b, n in enumerate(lengths)], state


def given_unbatched() -> tuple[Any, Callable[[], Any], list[Tensor], Any]:
    layer, x = layer_of(batch_first=True), noise(STEPS, INPUT)
    state = noise(1, HIDDEN, seed=1), noise(1, HIDDEN, seed=2)
    return layer, lambda: layer(x, state), [x], tuple(part.unsqueeze(1) for part in state)


def given_stack() -> tuple[Any, Callable[[], Any], list[Tensor], Any]:
    layer, x = layer_of(num_layers=2, bidirectional=True, proj_size=2), noise(STEPS, BATCH, INPUT)
    state = noise(4, BATCH, 2, seed=1), noise(4, BATCH, HIDDEN, seed=2)
    return layer, lambda: layer(x, state), list(x.transpose(0, 1)), state


def given_explicit_none() -> tuple[Any, Callable[[], Any], list[Tensor], Any]:
    layer, x = layer_of("rnn"), noise(STEPS, BATCH, INPUT)
    return layer, lambda: layer(x, None), list(x.transpose(0, 1)), None


FORMS = [
    given_batch_first,
    given_time_first,
    given_keywords,
    given_state_by_keyword,
    given_packed,
    given_unbatched,
    given_stack,
    given_explicit_none,
]


def assert_states(found: Any, expected: Any) -> None:
    if expected is None:
        assert found is None
        return
    assert isinstance(found, tuple) == isinstance(expected, tuple)
    pairs = zip(found, expected, strict=True) if isinstance(expected, tuple) else [(found, expected)]
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


@pytest.mark.parametrize("form", FORMS)
def test_records_what_a_module_was_given(form: Callable[[], Any]) -> None:
    layer, call, sequences, state = form()
    inputs, initial, dimension = recorded(layer, call).sequences()
    assert_rows(inputs, sequences)
    assert_states(initial, state)
    assert dimension == lyapunov_spectrum(layer, inputs, state=initial).dimension


@pytest.mark.parametrize("form", FORMS)
def test_recorded_inputs_measure_as_the_given_ones(form: Callable[[], Any]) -> None:
    layer, call, sequences, state = form()
    inputs, initial, _ = recorded(layer, call).sequences()
    ours = lyapunov_spectrum(layer, inputs, state=initial)
    lengths = torch.tensor([len(row) for row in sequences])
    given = pack_padded_sequence(nn.utils.rnn.pad_sequence(sequences), lengths, enforce_sorted=False)
    theirs = lyapunov_spectrum(layer, given, state=state)
    assert torch.allclose(ours.exponents, theirs.exponents, rtol=0, atol=1e-12)


@pytest.mark.parametrize("packed", [False, True])
def test_is_bounded_by_sequences_and_steps(packed: bool) -> None:
    layer, x = layer_of(), noise(STEPS, BATCH, INPUT)
    lengths = torch.tensor([2, 9, 5, 7])
    given = pack_padded_sequence(x, lengths, enforce_sorted=False) if packed else x
    state = noise(1, BATCH, HIDDEN, seed=1), noise(1, BATCH, HIDDEN, seed=2)
    inputs, initial, _ = recorded(layer, lambda: layer(given, state), sequences=3, steps=4).sequences()
    assert_rows(inputs, [x[: min(4, n) if packed else 4, b] for b, n in enumerate(lengths[:3].tolist())])
    assert_states(initial, tuple(part[:, :3] for part in state))


def test_memory_is_bounded_whatever_the_model_does() -> None:
    layer, cell = layer_of(), CELLS["rnn"](INPUT, HIDDEN).double()

    def windows() -> None:
        for seed in range(50):  # a fresh sequence each time
            layer(noise(STEPS, BATCH, INPUT, seed=seed))

    def one_by_one() -> None:
        for seed in range(50):
            unrolled(cell, noise(STEPS, 1, INPUT, seed=seed))

    def long_loop() -> None:
        h = torch.zeros(BATCH, HIDDEN).double()
        for _ in range(200):
            h = cell(torch.zeros(BATCH, INPUT).double(), hx=h)

    for watched, call in [(layer, windows), (cell, one_by_one), (cell, long_loop)]:
        for keep_latest in (False, True):
            probe = recorded(watched, *[call] * 12, sequences=6, steps=5, keep_latest=keep_latest)
            held = sum(c.inputs.numel() // INPUT for batch in probe._batches for c in batch.calls)
            assert held <= 3 * 6 * 5
            inputs, _, _ = probe.sequences()
            assert len(inputs) <= 6 and max(inputs.lengths) == len(inputs.values) <= 5
            probe.remove()


def test_small_batches_are_joined_up_to_the_number_wanted() -> None:
    layer = layer_of()
    batches = [noise(steps, 2, INPUT, seed=steps) for steps in (4, 7, 5, 3)]
    probe = recorded(layer, *[lambda x=x: layer(x) for x in batches], sequences=5)
    given = [row for x in batches for row in x.transpose(0, 1)]
    for most, rows in ((None, 5), (3, 3), (9, 5)):
        inputs, state, _ = probe.sequences(most)
        assert_rows(inputs, given[:rows])
        assert state is None


def test_latest_batches_are_kept_where_asked_for() -> None:
    layer = layer_of()
    batches = [noise(STEPS, 2, INPUT, seed=seed) for seed in range(6)]
    calls = [lambda x=x: layer(x) for x in batches]
    inputs, _, _ = recorded(layer, *calls, sequences=4, keep_latest=True).sequences()
    assert_rows(inputs, [row for x in batches[-2:] for row in x.transpose(0, 1)])
    single, _, _ = recorded(layer, *calls, sequences=2, keep_latest=True).sequences()
    assert_rows(single, list(batches[-1].transpose(0, 1)))


def test_first_batches_are_forgotten_when_the_latest_are_wanted() -> None:
    layer, x, y = layer_of(), noise(STEPS, 2, INPUT), noise(STEPS, 2, INPUT, seed=1)
    probe = recorded(layer, lambda: layer(x))
    probe.begin_batch(keep_latest=True)
    layer(y)
    probe.end_batch()
    layer(x)  # outside any batch: not recorded
    assert_rows(probe.sequences()[0], list(y.transpose(0, 1)))


def test_records_a_copy_that_later_writes_do_not_reach() -> None:
    layer, x = layer_of(), noise(STEPS, BATCH, INPUT)
    state = noise(1, BATCH, HIDDEN, seed=1), noise(1, BATCH, HIDDEN, seed=2)
    given, before = x.clone(), tuple(part.clone() for part in state)
    probe = recorded(layer, lambda: layer(x, state))
    x.zero_()
    for part in state:
        part.zero_()
    inputs, initial, _ = probe.sequences()
    assert_rows(inputs, list(given.transpose(0, 1)))
    assert_states(initial, before)


# ---------------------------------------------------------------- cells in a loop, and state carried on


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("start", ["none", "given"])
def test_cell_in_a_loop_is_one_sequence(kind: str, start: str) -> None:
    cell, x = CELLS[kind](INPUT, HIDDEN).double(), noise(STEPS, BATCH, INPUT)
    h, c = noise(BATCH, HIDDEN, seed=1), noise(BATCH, HIDDEN, seed=2)
    state = None if start == "none" else (h, c) if kind == "lstm" else h
    inputs, initial, dimension = recorded(cell, lambda: unrolled(cell, x, state)).sequences()
    assert_rows(inputs, list(x.transpose(0, 1)))
    assert_states(initial, state)
    assert dimension == HIDDEN * (1 + (kind == "lstm"))
    ours = lyapunov_spectrum(cell, inputs, state=initial).exponents
    assert torch.allclose(ours, lyapunov_spectrum(cell, x, state=state).exponents, rtol=0, atol=1e-12)


def test_unbatched_cell_is_one_sequence() -> None:
    cell, x = CELLS["lstm"](INPUT, HIDDEN).double(), noise(STEPS, INPUT)
    inputs, initial, _ = recorded(cell, lambda: unrolled(cell, x)).sequences()
    assert_rows(inputs, [x])
    assert initial is None


@pytest.mark.parametrize("by_keyword", [False, True])
def test_custom_cell_with_a_tuple_as_state(by_keyword: bool) -> None:
    cell, x = Gate(), noise(STEPS, BATCH, INPUT)
    start = noise(BATCH, 4, seed=1), noise(BATCH, 2, seed=2)

    def loop() -> None:
        state = start
        for x_t in x:
            state = cell(state=state, x=x_t) if by_keyword else cell(x_t, state)

    inputs, initial, dimension = recorded(cell, loop).sequences()
    assert_rows(inputs, list(x.transpose(0, 1)))
    assert_states(initial, start)
    assert dimension == 6
    ours = lyapunov_spectrum(cell, inputs, state=initial).exponents
    assert torch.allclose(ours, lyapunov_spectrum(cell, x, state=start).exponents, rtol=0, atol=1e-12)


def test_module_called_step_by_step_is_one_sequence() -> None:
    layer, x = layer_of(batch_first=True), noise(BATCH, STEPS, INPUT)

    def loop() -> None:
        state = None
        for t in range(STEPS):
            _, state = layer(x[:, t : t + 1], state)

    inputs, initial, _ = recorded(layer, loop).sequences()
    assert_rows(inputs, list(x))
    assert initial is None


def test_loops_of_different_lengths_are_packed() -> None:
    cell = CELLS["gru"](INPUT, HIDDEN).double()
    batches = [noise(steps, 2, INPUT, seed=steps) for steps in (3, 8, 5)]
    inputs, _, _ = recorded(cell, *[lambda x=x: unrolled(cell, x) for x in batches]).sequences()
    assert_rows(inputs, [row for x in batches for row in x.transpose(0, 1)])


def test_state_carried_between_batches_starts_each() -> None:
    layer = layer_of()
    chunks = [noise(STEPS, BATCH, INPUT, seed=seed) for seed in range(3)]
    states: list[Any] = [None]

    def step(x: Tensor) -> None:
        states.append(tuple(part.detach() for part in layer(x, states[-1])[1]))

    inputs, initial, _ = recorded(layer, *[lambda x=x: step(x) for x in chunks]).sequences()
    assert_rows(inputs, [row for x in chunks for row in x.transpose(0, 1)])
    zeros = torch.zeros(1, BATCH, HIDDEN).double()
    assert_states(initial, tuple(torch.cat([zeros, states[1][i], states[2][i]], 1) for i in range(2)))


def test_encoder_and_decoder_of_one_cell_are_one_sequence() -> None:
    cell, x, y = CELLS["gru"](INPUT, HIDDEN).double(), noise(6, BATCH, INPUT), noise(3, BATCH, INPUT, seed=1)
    inputs, _, _ = recorded(cell, lambda: unrolled(cell, y, unrolled(cell, x))).sequences()
    assert_rows(inputs, list(torch.cat([x, y]).transpose(0, 1)))


def test_packed_encoder_goes_on_where_each_row_ended() -> None:
    layer, x, y, lengths = layer_of(), noise(6, BATCH, INPUT), noise(3, BATCH, INPUT, seed=1), [2, 6, 4, 5]
    packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
    inputs, _, _ = recorded(layer, lambda: layer(y, layer(packed)[1]), steps=8).sequences()
    assert_rows(inputs, [torch.cat([x[:n, b], y[:, b]])[:8] for b, n in enumerate(lengths)])


def test_cell_called_for_two_separate_sequences_in_a_batch() -> None:
    cell, x, y = CELLS["lstm"](INPUT, HIDDEN).double(), noise(6, 2, INPUT), noise(3, 2, INPUT, seed=1)

    def twice() -> None:
        unrolled(cell, x)
        unrolled(cell, y)

    inputs, _, _ = recorded(cell, twice).sequences()
    assert_rows(inputs, [*x.transpose(0, 1), *y.transpose(0, 1)])


def test_two_levels_that_share_a_cell_and_take_turns() -> None:
    cell, x = nn.GRUCell(HIDDEN, HIDDEN).double(), noise(STEPS, 2, HIDDEN)
    lower: list[Tensor] = []

    def turns() -> None:
        h = g = torch.full((2, HIDDEN), 0.5).double()
        g = g + 0.1
        for x_t in x:
            h = cell(x_t, h)
            g = cell(h, g)
            lower.append(h.detach())

    inputs, _, _ = recorded(cell, turns).sequences()
    assert_rows(inputs, [*x.transpose(0, 1), *torch.stack(lower).transpose(0, 1)])


def test_state_changed_between_calls_is_refused() -> None:
    cell, x = CELLS["rnn"](INPUT, HIDDEN).double(), noise(STEPS, BATCH, INPUT)

    def damped() -> None:
        h = None
        for x_t in x:
            h = 0.5 * cell(x_t, h)

    with pytest.raises(ValueError, match="RNNCell is called step by step, but the state it is given is never the one"):
        recorded(cell, damped).sequences()


def test_nothing_recorded_is_refused() -> None:
    probe = recorded(layer_of())
    assert not probe.has_recorded
    with pytest.raises(ValueError, match="none reached the layer in the forward pass"):
        probe.sequences()


def test_module_that_is_no_cell_is_refused_outside_the_forward_pass() -> None:
    plain = nn.Linear(3, 3)
    probe = recorded(plain, lambda: plain(torch.zeros(2, 3)))
    assert probe.has_recorded
    with pytest.raises(ValueError, match=r"Linear\.forward must take \(x, state\).*\['input'\]"):
        probe.sequences()


# ---------------------------------------------------------------- being a guest


@pytest.mark.parametrize("kind", MODULES)
def test_keeps_no_graph_alive(kind: str) -> None:
    layer, x = layer_of(kind), noise(STEPS, BATCH, INPUT).requires_grad_()
    plain = nn.Linear(INPUT, 2).double()  # whose recording fails

    def forward() -> list[weakref.ref[Any]]:
        hidden, doubled = layer(x)[0], x * 2
        loss = hidden.square().sum() + plain(doubled).sum()
        return [weakref.ref(hidden), weakref.ref(doubled), weakref.ref(loss)]

    probes = [Probe(layer, 16, 64), Probe(plain, 16, 64)]
    for probe in probes:
        probe.begin_batch(keep_latest=False)
    references = forward()
    gc.collect()
    assert [reference() for reference in references] == [None] * 3
    assert all(probe.has_recorded for probe in probes)
    inputs, _, _ = probes[0].sequences()
    assert not inputs.values.requires_grad


def test_records_under_inference_mode() -> None:
    cell, layer, x = CELLS["lstm"](INPUT, HIDDEN).double(), layer_of(), noise(STEPS, BATCH, INPUT)
    with torch.inference_mode():
        given = x.clone()
        probes = [
            recorded(layer, lambda: layer(given, layer(given)[1])),
            recorded(cell, lambda: unrolled(cell, given)),
        ]
    for probe, system, whole in zip(probes, [layer, cell], [torch.cat([x, x]), x], strict=True):
        inputs, state, _ = probe.sequences()
        assert_rows(inputs, list(whole.transpose(0, 1)))
        ours = lyapunov_spectrum(system, inputs, state=state).exponents
        assert torch.allclose(ours, lyapunov_spectrum(system, whole).exponents, rtol=0, atol=1e-12)


def hooks_of(module: nn.Module) -> int:
    return len(module._forward_hooks) + len(module._forward_hooks_with_kwargs)


def test_copies_of_a_watched_module_are_not_watched() -> None:
    layer, x = layer_of(), noise(STEPS, BATCH, INPUT)
    plain, keys = layer(x)[0], list(layer.state_dict())
    probe = Probe(layer, 16, 64)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(buffer, weights_only=False)]
    probe.begin_batch(keep_latest=False)
    for copied in copies:
        assert torch.equal(copied(x)[0], plain)
    assert not probe.has_recorded
    layer(x)
    assert probe.has_recorded
    assert list(layer.state_dict()) == keys


def test_removed_without_a_trace() -> None:
    layer, x = layer_of(), noise(STEPS, BATCH, INPUT)
    probe = recorded(layer, lambda: layer(x))
    probe.begin_batch(keep_latest=False)
    probe.remove()
    layer(x)
    assert hooks_of(layer) == 0
    assert not probe.has_recorded


def test_forgotten_probe_leaves_an_inert_hook() -> None:
    layer, x = layer_of(), noise(STEPS, BATCH, INPUT)
    probe = Probe(layer, 16, 64)
    gone = weakref.ref(probe)
    del probe
    gc.collect()
    assert gone() is None
    layer(x)


# ---------------------------------------------------------------- a whole network at once


def test_what_drives_the_layers_of_a_network_is_measured_as_by_hand() -> None:
    """The second layer is driven by the outputs of the first; what the forward pass goes by is left out."""
    first, second, idle = layer_of("gru"), nn.LSTM(HIDDEN, 2).double(), layer_of()
    network = nn.ModuleDict({"first": first, "second": second, "idle": idle})
    network.forward = lambda x: second(first(x)[0])[0]  # type: ignore[method-assign]
    x = noise(STEPS, BATCH, INPUT)
    driven = driven_by(network, {name: Found(layer) for name, layer in network.items()}, x)
    assert list(driven) == ["first", "second"]
    assert [part.dimension for part in driven.values()] == [HIDDEN, 4]
    assert_rows(driven["first"].inputs, list(x.transpose(0, 1)))
    assert_rows(driven["second"].inputs, list(first(x)[0].detach().transpose(0, 1)))
    assert all(hooks_of(layer) == 0 for layer in network.values())


# ---------------------------------------------------------------- compiled modules


def test_compiled_layer_is_recorded() -> None:
    layer, x = layer_of(), noise(STEPS, BATCH, INPUT)
    model = nn.ModuleDict({"rnn": torch.compile(layer, backend="eager")})
    inputs, _, _ = recorded(find(model)[0]["rnn"].module, lambda: model["rnn"](x)).sequences()
    assert_rows(inputs, list(x.transpose(0, 1)))


def test_compiled_cell_says_why_it_cannot_be_watched() -> None:
    cell, x = Gate(), noise(1, BATCH, INPUT)
    compiled = torch.compile(cell, backend="eager")
    start = noise(BATCH, 4, seed=1), noise(BATCH, 2, seed=2)
    with pytest.raises(ValueError, match="a compiled cell cannot be watched"):
        recorded(cell, lambda: unrolled(compiled, x, start)).sequences()
