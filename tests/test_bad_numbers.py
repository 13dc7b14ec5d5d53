"""Numbers that are not, networks that overflow or die, the smallest sizes, and odd ways to call a layer.

Nothing false is ever logged: in a fit, a measurement that cannot be made warns once and the fit goes on; by hand, it is
a ValueError that names what was given, or exponents that are NaN.
"""

import math
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from fits import Looped, Recorder, Regressor, loader, trainer
from systems import linear, network, noise, orthogonal
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence
from torch.utils.data import DataLoader

from lightning_lyapunov import LyapunovSpectrum, LyapunovSpectrumCallback, lyapunov_spectrum, spectrum_features
from lightning_lyapunov.engine.maps.cell import CellMap

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*num_workers.*", "ignore:.*log_every_n_steps.*", "ignore:.*LeafSpec.*", "ignore:.*val_dataloader.*"
)
KINDS = ["tanh", "relu", "gru", "lstm"]
FAMILIES = {"tanh": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


def measure_always(module: str | None = None, **options: Any) -> LyapunovSpectrumCallback:
    return LyapunovSpectrumCallback(
        module, **{"max_overhead": None, "k": None, "scorer": None, "figures": None, **options}
    )


def fit(model: pl.LightningModule, *loaders: Any, told: str | None = None, **options: Any) -> LyapunovSpectrumCallback:
    """Two epochs to the end with the callback, which says no more than it is ``told``, and logs finite numbers only."""
    ours, logged = measure_always(**options), Recorder()
    run = trainer(ours, logger=logged)
    loaders = loaders or (loader(), loader())
    if told is None:
        run.fit(model, *loaders)
    else:
        with pytest.warns(UserWarning) as warned:
            run.fit(model, *loaders)
        (text,) = [str(w.message) for w in warned if str(w.message).startswith("LyapunovSpectrumCallback")]
        assert told in text
    assert run.current_epoch == 2
    values = {key: value for _, row in logged.rows for key, value in row.items() if key.split("/")[0] in PREFIXES}
    values |= {key: float(value) for key, value in run.callback_metrics.items() if key.split("/")[0] in PREFIXES}
    assert all(map(math.isfinite, values.values())), values
    assert bool(values) == bool(len(ours.history))
    assert all(math.isfinite(value) for m in ours.history for value in m.metrics.values())
    return ours


PREFIXES = ("lyapunov", "aelle")

# ------------------------------------------------------------------ NaN and infinity in a fit


class Sabotage(Regressor):
    """From the first epoch on something is not a number."""

    def __init__(self, rnn: nn.Module, what: str, value: float) -> None:
        super().__init__(rnn)
        self.what, self.value = what, value

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx) if self.what == "inputs" else None

    def on_train_epoch_start(self) -> None:
        if self.what == "weights":
            with torch.no_grad():
                self.rnn.weight_hh_l0[0, 0] = self.value

    def forward(self, x: Tensor) -> Tensor:
        if self.what == "inputs" and not self.trainer.sanity_checking:
            x = x.masked_fill(torch.arange(x.shape[1])[:, None] == 5, self.value)
        return super().forward(x)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("what", ["weights", "inputs"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_what_is_no_number_is_told_once_and_the_fit_goes_on(kind: str, what: str, value: float) -> None:
    """The measurement before training is the only one."""
    # Where the inputs are NaN, an update makes the weights NaN before anything is measured.
    ours = fit(Sabotage(FAMILIES[kind](3, 6, batch_first=True), what, value), told="NaN or infinite values")
    assert [m.step for m in ours.history] == [0]


def test_activations_above_the_layer_are_none_of_its_business() -> None:
    class Above(Regressor):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * math.nan

        def training_step(self, batch: Any, batch_idx: int) -> None:
            self(batch[0])

    assert len(fit(Above()).history) == 3


def test_a_state_that_is_no_number_is_told() -> None:
    class Given(Regressor):
        def forward(self, x: Tensor) -> Tensor:
            state = torch.full((1, len(x), 6), math.nan)
            return self.out(self.rnn(x, (state, state))[0][:, -1])

        def training_step(self, batch: Any, batch_idx: int) -> None:
            self(batch[0])

    assert len(fit(Given(), told="state holds NaN or infinite values").history) == 0


# ------------------------------------------------------------------ overflow


def overflowing() -> nn.RNN:
    rnn = nn.RNN(3, 6, nonlinearity="relu", batch_first=True)
    nn.init.constant_(rnn.weight_hh_l0, 1e35)
    return rnn


@pytest.mark.parametrize("first", [True, False])
def test_a_healthy_layer_does_not_speak_for_one_that_overflows(first: bool) -> None:
    """The largest exponent of both is unknown, though one of the two is known."""

    class Two(Regressor):
        def __init__(self) -> None:
            super().__init__(overflowing() if first else None)
            self.other = nn.LSTM(3, 6, batch_first=True) if first else overflowing()

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 0 * self.other(x)[0].sum().nan_to_num(0, 0, 0)

        def training_step(self, batch: Any, batch_idx: int) -> None:
            self(batch[0])

    fit(Two(), told="the largest exponent is NaN: the states of the network overflow")


def test_the_largest_of_a_union_is_unknown_if_that_of_a_part_is() -> None:
    parts = {
        "known": lyapunov_spectrum(network("tanh", 3, 4), noise(40, 2, 3)),
        "not": lyapunov_spectrum(network("relu", 3, 4, gain=1e30), noise(40, 2, 3)),
    }
    for union in (parts, dict(reversed(parts.items()))):
        features = spectrum_features(LyapunovSpectrum.union(union))
        shares = {name: features.pop(name) for name in ("trusted_fraction", "settled_fraction")}
        assert all(map(math.isnan, features.values())) and set(shares.values()) == {0.5}


@pytest.mark.parametrize("lacking", [[], ["_goes_over_time"], ["_goes_over_time", "_works"]], ids=str)
def test_states_of_a_cell_that_overflow_are_unknown(lacking: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the derivative of a relu at infinity, or at what is no number, may be one; by each way to differentiate.

    Steps at once, then each by forward mode, then each by as many backward passes as it has entries.
    """
    for way in lacking:
        monkeypatch.setattr(CellMap, way, lambda *_: False)
    matrix = 1e4 * orthogonal(4)
    start = {"state": torch.ones(2, 4).double()}
    for cell in (linear(matrix), lambda _, h: torch.relu(1e4 * h), lambda _, h: torch.tanh(h * math.inf)):
        spectrum = lyapunov_spectrum(cell, None, **start, steps=100)
        assert spectrum.exponents.isnan().all() and not spectrum.trusted.any() and math.isnan(spectrum.volume_rate)
        assert math.isnan(spectrum.gain) and spectrum.log_singular_values.isnan().all() and not spectrum.settled.any()
    short = lyapunov_spectrum(linear(matrix), None, **start, steps=50)  # until then it is what it is
    torch.testing.assert_close(short.exponents, torch.full((4,), math.log(1e4)).double())


def test_one_sequence_that_overflows_leaves_the_others_known_by_themselves() -> None:
    module, inputs = network("relu", 3, 4, gain=2.0), noise(60, 3, 3).abs()
    with torch.no_grad():
        module.weight_hh_l0.abs_().mul_(1e6)
        module.weight_ih_l0.abs_()
        module.bias_ih_l0.zero_(), module.bias_hh_l0.zero_()
    inputs[:, [0, 2]] *= -1  # all units of these are off
    spectrum = lyapunov_spectrum(module, inputs)
    assert spectrum.exponents.isnan().all()
    assert (spectrum.per_sequence[[0, 2]] == -math.inf).all() and spectrum.per_sequence[1].isnan().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.0, 1e-320, 1e-200, 1e20, 1e200])
def test_weights_of_any_size_give_exponents_that_are_sorted_and_trusted_only_where_finite(
    kind: str, dtype: torch.dtype | None, size: float
) -> None:
    module, inputs = network(kind, 3, 4), noise(12, 2, 3)
    with torch.no_grad():
        module.weight_hh_l0.mul_(size)
    spectrum = lyapunov_spectrum(module, inputs, dtype=dtype)
    known = spectrum.exponents[~spectrum.exponents.isnan()]
    assert not known.isposinf().any() and torch.equal(known, known.sort(descending=True).values)
    assert spectrum.exponents[spectrum.trusted].isfinite().all()
    if size == 0.0:
        assert (spectrum.exponents.isneginf().sum() == {"tanh": 4, "relu": 4, "gru": 0, "lstm": 4}[kind]).item()
    if size == 1e-200 and kind == "tanh" and dtype != torch.float32:
        assert -470 < spectrum.exponents[0] < -450


# ------------------------------------------------------------------ dead relu


def test_dead_relu_layers_are_floored_and_counted_in_a_fit() -> None:
    rnn = nn.RNN(3, 6, nonlinearity="relu", batch_first=True)
    nn.init.constant_(rnn.bias_ih_l0, -100.0)
    for measurement in fit(Regressor(rnn)).history:
        assert measurement.metrics["floored"] == 6 and measurement.metrics["max"] == -100
        assert measurement.metrics["trusted_fraction"] == 0
        assert "max_stderr" not in measurement.metrics and "max_error" not in measurement.metrics
        # Nothing is left of a gradient: that is -inf nats, after none of the steps.
        assert measurement.metrics["gradient_gain"] == measurement.metrics["gradient_growth"] == -1e6
        assert measurement.metrics["gradient_horizon"] == 0 and measurement.metrics["settled_fraction"] == 0


def matrices(x: Tensor, state: Tensor) -> Tensor:
    """A cell that is linear in its state, by whatever matrix it is given."""
    return (x @ state.unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("interval", [None, 1])
@pytest.mark.parametrize("tiny", [1e-2, 1e-4, 1e-6, 1e-8, 1e-10])
def test_a_direction_that_dies_while_the_fastest_all_but_does_is_dead(tiny: float, interval: int | None) -> None:
    """What rounding leaves of it is small beside the tangents, though not beside what is left of the fastest."""
    plain = [torch.eye(2).double(), torch.diag(torch.tensor([1.0, 1e-3])).double()]
    singular = torch.tensor([[tiny, 1.0], [0.5 * tiny, 0.5]]).double()
    inputs = torch.stack([*plain[1:] * 4, singular, *plain[:1] * 3]).unsqueeze(1)
    spectrum = lyapunov_spectrum(matrices, inputs, state=torch.zeros(1, 2).double(), interval=interval)
    assert spectrum.exponents[1] == -math.inf and spectrum.trusted.tolist() == [True, False]


@pytest.mark.parametrize("seed", range(8))
def test_such_a_direction_is_seen_in_blocks_too(seed: int) -> None:
    """The last of 11 falls, at the end, into the span of the others: half the time, Cholesky sees nothing."""
    settle = torch.diag(torch.tensor([1.0] * 10 + [1e-3]).double())
    singular = torch.zeros(11, 11).double()
    singular[:10, :10], singular[:10, 10] = 1e-6 * torch.eye(10), noise(10, seed=seed)
    one = torch.stack([*[settle] * 5, singular])
    every, state = one.unsqueeze(1).expand(-1, 16, -1, -1), torch.zeros(16, 11).double()
    spectrum = lyapunov_spectrum(matrices, every, state=state)
    assert spectrum.exponents[10] == -math.inf and not spectrum.trusted[10]
    assert spectrum.exponents[:10].isfinite().all()


def test_what_comes_after_a_direction_that_died_is_not_trusted() -> None:
    """Rounding has chosen what takes its place, and so what is left for the next one."""
    settle = torch.diag(torch.tensor([1.0, 1e-2, 1e-4, 1e-4]).double())
    kill = torch.diag(torch.tensor([1.0, 0.0, 1.0, 1.0]).double())
    inputs = torch.stack([*[settle] * 9, kill]).unsqueeze(1)
    spectrum = lyapunov_spectrum(matrices, inputs, state=torch.zeros(1, 4).double())
    assert spectrum.exponents[1].isfinite() and spectrum.exponents[2:].isneginf().all()
    assert spectrum.trusted.tolist() == [True, False, False, False]


def test_what_dies_in_the_transient_is_not_trusted_after_it() -> None:
    """Rounding has chosen what takes its place."""
    inputs = torch.eye(3).double().repeat(12, 1, 1, 1)
    inputs[2, 0] = torch.diag(torch.tensor([1.0, 1.0, 0.0]))
    inputs[5:] = torch.diag(torch.tensor([2.0, 1.0, 0.5])).double()
    start = {"state": torch.zeros(1, 3).double()}
    assert lyapunov_spectrum(matrices, inputs, **start, transient=4).trusted.tolist() == [True, True, False]
    assert lyapunov_spectrum(matrices, inputs[3:], **start, transient=1).trusted.all()


# ------------------------------------------------------------------ the smallest sizes


@pytest.mark.parametrize("kind", [*KINDS, "tanh cell", "relu cell", "gru cell", "lstm cell"])
@pytest.mark.parametrize("hidden", [1, 3])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("batch", [1, 2])
def test_smallest_sizes(kind: str, hidden: int, steps: int, batch: int) -> None:
    """Oracle: one hidden unit grows by the product of its derivatives; any, by the sum rule.

    The exponent is that of the second half of the steps, the gain that of all.
    """
    system, inputs = network(kind, 1, hidden), noise(steps, batch, 1)
    spectrum = lyapunov_spectrum(system, inputs, dtype=torch.float64)
    parts = 2 if "lstm" in kind else 1
    assert spectrum.exponents.shape == (parts * hidden,) and spectrum.per_sequence.shape == (batch, parts * hidden)
    assert spectrum.stderr.isnan().all() == (batch == 1 or bool(spectrum.exponents.isinf().all()))
    if "relu" not in kind:
        assert spectrum.exponents.isfinite().all() and spectrum.trusted.all()
        assert abs(spectrum.sum_rule_error) < 1e-9
    if hidden == 1 and parts == 1:
        cell, rates, gains = system if isinstance(system, nn.RNNCellBase) else None, [], []
        for row in inputs.unbind(1):
            h, logs = torch.zeros(1, 1).double(), []
            for x in row:
                h = h.detach().requires_grad_()
                new = cell(x[None], h) if cell else system(x[None, None], h[None])[1][0]
                logs.append(float(torch.autograd.grad(new.sum(), h)[0].abs().log()))
                h = new
            rates.append(sum(logs[steps // 2 :]) / (steps - steps // 2))
            gains.append(sum(logs))
        assert spectrum.per_sequence[:, 0].tolist() == pytest.approx(rates, abs=1e-12)
        assert spectrum.growth.gain_per_sequence.tolist() == pytest.approx(gains, abs=1e-12)
        assert spectrum.growth.per_sequence[:, 0].tolist() == pytest.approx(gains, abs=1e-12)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("hidden", [1, 2])
def test_smallest_sizes_in_a_fit(hidden: int, steps: int, batch: int) -> None:
    data = loader(sequences=2, batch=batch, steps=steps)
    ours = fit(Regressor(nn.LSTM(3, hidden, batch_first=True)), data, data)
    assert len(ours.history) == 3
    measured = ours.spectrum
    assert (measured.dimension, measured.sequences, measured.steps) == (2 * hidden, 2, steps - steps // 2)


# ------------------------------------------------------------------ packed sequences without steps


def test_torch_refuses_to_pack_a_sequence_without_steps() -> None:
    with pytest.raises(RuntimeError, match="greater than 0"):
        pack_padded_sequence(noise(4, 2, 3), torch.tensor([4, 0]))


@pytest.mark.parametrize("system", [nn.GRU(3, 4), nn.LSTMCell(3, 4), lambda x, h: torch.tanh(h)])
@pytest.mark.parametrize("sizes", [[], [0], [2, 3], [2, 2], [3, 3], [2, 2, 1, 0], [[3, 2]], "indices"])
def test_packed_sequences_that_torch_would_not_make_are_refused(system: Any, sizes: Any) -> None:
    packed = pack_sequence([noise(3, 3), noise(2, 3)])
    if sizes == "indices":  # of a third sequence, that has no step
        packed = PackedSequence(packed.data, packed.batch_sizes, torch.arange(3), torch.arange(3))
    else:
        packed = PackedSequence(packed.data, torch.tensor(sizes, dtype=torch.long))
    state = None if isinstance(system, nn.Module) else torch.zeros(2, 4).double()
    with pytest.raises(ValueError, match=r"inputs: the batch_sizes of a PackedSequence must fall .* 5 rows .* got"):
        lyapunov_spectrum(system, packed, state=state)


def test_a_packed_sequence_made_by_hand_is_the_one_that_torch_makes() -> None:
    module, rows = network("gru", 3, 4), [noise(3, 3), noise(2, 3)]
    data = torch.stack([rows[0][0], rows[1][0], rows[0][1], rows[1][1], rows[0][2]])
    made = PackedSequence(data, torch.tensor([2, 2, 1]))
    assert torch.equal(
        lyapunov_spectrum(module, made).exponents, lyapunov_spectrum(module, pack_sequence(rows)).exponents
    )


# ------------------------------------------------------------------ long


@pytest.mark.parametrize(("kind", "batch"), [("tanh", 1), ("gru", 3), ("lstm", 1)])
def test_ten_thousand_steps_keep_the_sum_rule(kind: str, batch: int) -> None:
    spectrum = lyapunov_spectrum(network(kind, 1, 3, gain=1.2), noise(10_000, batch, 1))
    assert spectrum.steps == 10_000 - 64 and spectrum.trusted.all()
    assert abs(spectrum.sum_rule_error) < 1e-5


# ------------------------------------------------------------------ odd ways to call a layer


class Odd(Regressor):
    """Calls its layer, ``self.rnn``, as its ``way`` says."""

    def __init__(self, way: Callable[[Any, Tensor], Tensor], rnn: nn.Module | None = None) -> None:
        super().__init__(rnn)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.way(self, x)[:, -1])


def detached(model: Any, x: Tensor) -> Tensor:
    """Truncated backpropagation within a forward pass: the state goes on, the gradient does not."""
    state, outputs = None, []
    for chunk in x.split(4, 1):
        output, state = model.rnn(chunk, state)
        state = tuple(part.detach() for part in state)
        outputs.append(output)
    return torch.cat(outputs, 1)


def one_by_one(model: Any, x: Tensor) -> Tensor:
    state, outputs = None, []
    for t in range(x.shape[1]):
        output, state = model.rnn(x[:, t : t + 1], state)
        outputs.append(output)
    return torch.cat(outputs, 1)


def without_gradient(model: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.rnn(x)[0]


def flipped(model: Any, x: Tensor) -> Tensor:
    return model.rnn(x.flip(1))[0]


@pytest.mark.parametrize("way", [detached, one_by_one, without_gradient, flipped])
def test_the_way_it_is_called_does_not_matter(way: Callable[[Any, Tensor], Tensor]) -> None:
    """Oracle: the layer along the same inputs, by hand."""
    model = Odd(way)
    ours = fit(model)
    x = next(iter(loader(batch=16)))[0]
    by_hand = lyapunov_spectrum(model.rnn, x.flip(1) if way is flipped else x)
    torch.testing.assert_close(ours.spectrum.exponents, by_hand.exponents, rtol=0.0, atol=1e-6)


def test_outputs_fed_back_are_inputs_like_others() -> None:
    """A closed loop by the user's own doing: what drives the layer is what it said before."""

    def feeds_back(model: Any, x: Tensor) -> Tensor:
        state, said, outputs = None, x[:, :1], []
        for _ in range(x.shape[1]):
            output, state = model.rnn(said, state)
            said = output[..., :3]
            outputs.append(output)
        return torch.cat(outputs, 1)

    model = Odd(feeds_back)
    ours = fit(model)
    x = next(iter(loader(batch=16)))[0]
    with torch.no_grad():
        driving = torch.cat([x[:, :1], feeds_back(model, x)[:, :-1, :3]], 1)
    by_hand = lyapunov_spectrum(model.rnn, driving)
    torch.testing.assert_close(ours.spectrum.exponents, by_hand.exponents, rtol=0.0, atol=1e-5)


def test_rows_reversed_between_two_calls_go_on_in_each_others_place() -> None:
    """Oracle: the sequences that result, by hand."""

    def reverses(model: Any, x: Tensor) -> Tensor:
        first, (h, c) = model.rnn(x[:, :6])
        return torch.cat([first, model.rnn(x[:, 6:], (h.flip(1), c.flip(1)))[0]], 1)

    model = Odd(reverses)
    ours = fit(model, num_sequences=8, transient=0)
    x = next(iter(loader(batch=8)))[0]
    by_hand = lyapunov_spectrum(model.rnn, torch.cat([x[:, :6], x[:, 6:].flip(0)], 1), transient=0)
    assert ours.spectrum.sequences == 8 and ours.spectrum.steps == 12
    torch.testing.assert_close(ours.spectrum.exponents, by_hand.exponents, rtol=0.0, atol=1e-5)


def test_a_state_changed_at_each_step_is_told() -> None:
    class Changed(Looped):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            state = x.new_zeros(len(x), 6)
            for t in range(x.shape[1]):
                state = self.cell(x[:, t], state.flip(-1))
            return (self.out(state) - y).square().mean()

    assert len(fit(Changed(nn.GRUCell(3, 6)), loader(), told="it is changed in between").history) == 0


def test_a_layer_used_twice_in_a_forward_pass_is_measured_along_both() -> None:
    def twice(model: Any, x: Tensor) -> Tensor:
        return model.rnn(x)[0] + model.rnn(2 * x)[0]

    model = Odd(twice)
    ours = fit(model)
    x = next(iter(loader(batch=8)))[0]
    by_hand = lyapunov_spectrum(model.rnn, torch.cat([x, 2 * x]))
    torch.testing.assert_close(ours.spectrum.exponents, by_hand.exponents, rtol=0.0, atol=1e-6)


def test_a_layer_shared_by_two_parents_is_measured_once() -> None:
    class Parent(nn.Module):
        def __init__(self, rnn: nn.Module) -> None:
            super().__init__()
            self.rnn = rnn

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x)[0]

    class Shared(Regressor):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = Parent(self.rnn), Parent(self.rnn)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.left(x)[:, -1] + self.right(x.flip(1))[:, -1])

    model = Shared()
    for name in (None, "right.rnn"):
        ours = fit(model, module=name)
        x = next(iter(loader(batch=8)))[0]
        by_hand = lyapunov_spectrum(model.rnn, torch.cat([x, x.flip(1)]))
        assert not ours.spectrum.parts and ours.spectrum.dimension == 12
        torch.testing.assert_close(ours.spectrum.exponents, by_hand.exponents, rtol=0.0, atol=1e-6)


def test_layers_that_share_their_weights_are_measured_each_along_its_inputs() -> None:
    class Tied(Regressor):
        def __init__(self) -> None:
            super().__init__()
            self.second = nn.LSTM(3, 6, batch_first=True)
            for name in list(self.second._flat_weights_names):
                setattr(self.second, name, getattr(self.rnn, name))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.out(self.second(3 * x)[0][:, -1])

    model = Tied()
    ours = fit(model)
    x = next(iter(loader(batch=16)))[0]
    assert list(ours.spectrum.parts) == ["rnn", "second"]
    for part, driving in zip(ours.spectrum.parts.values(), (x, 3 * x), strict=True):
        by_hand = lyapunov_spectrum(model.rnn, driving)
        torch.testing.assert_close(part.exponents, by_hand.exponents, rtol=0.0, atol=1e-6)


def test_batches_of_different_sizes_and_lengths_are_joined() -> None:
    """Oracle: all five sequences by hand, packed."""

    class Sets(torch.utils.data.Dataset[Any]):
        shapes = ((2, 12), (1, 5), (2, 9))

        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            rows, steps = self.shapes[index]
            return noise(rows, steps, 3, seed=index, dtype=torch.float32), torch.zeros(rows, 1)

    model = Regressor()
    data = DataLoader(Sets(), batch_size=None)
    ours = fit(model, data, data, transient=2)
    rows = [row for i in range(3) for row in Sets()[i][0]]
    by_hand = lyapunov_spectrum(model.rnn, pack_sequence(rows, enforce_sorted=False), transient=2)
    assert ours.spectrum.sequences == 5
    torch.testing.assert_close(ours.spectrum.exponents, by_hand.exponents, rtol=0.0, atol=1e-6)


# ------------------------------------------------------------------ whole numbers


@pytest.mark.parametrize("kind", ["tanh", "gru", "lstm", "tanh cell", "gru cell", "lstm cell"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.int64])
def test_whole_numbers_are_refused_by_layers_that_cannot_take_them(kind: str, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=f"inputs must be of a floating type; got {dtype}"):
        lyapunov_spectrum(network(kind, 3, 4), torch.ones(5, 2, 3, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_whole_numbers_reach_a_cell_of_ones_own_as_they_are(dtype: torch.dtype) -> None:
    """Oracle: the same cell on numbers, for it makes such of them itself."""
    inputs, state = noise(9, 2, 4) > 0, {"state": torch.zeros(2, 4).double()}
    seen = set()

    def cell(x: Tensor, h: Tensor) -> Tensor:
        seen.add(x.dtype)
        return torch.tanh(0.9 * h + x)

    found = lyapunov_spectrum(cell, inputs.to(dtype), **state)
    assert seen == {dtype}
    assert torch.equal(found.exponents, lyapunov_spectrum(cell, inputs.double(), **state).exponents)
