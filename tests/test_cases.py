"""What people do in the field that once gave a wrong number or a false sentence, as they do it.

The oracle cuts the sequences by hand, steps the user's module in float64, takes Jacobians by autograd and Householder
QR after every step: none of the package's code. See :func:`by_hand`.
"""

import copy
import math
import re
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from fits import loader, trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_lyapunov import LyapunovEarlyStopping, LyapunovSpectrumCallback, lyapunov_spectrum
from lightning_lyapunov.reading.rules import findings

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*num_workers.*", "ignore:.*log_every_n_steps.*", "ignore:.*LeafSpec.*", "ignore:.*val_dataloader.*"
)

Step = Callable[[Tensor, Tensor], Tensor]


def by_hand(step: Step, pieces: Sequence[tuple[Tensor, Tensor]], seed: int = 0) -> Tensor:
    """Exponents (D,) of a step ``(x (F,), h (D,)) -> (D,)`` over pieces of inputs ``(T, F)`` and states (D,).

    Each piece settles for half of its steps, at most 64, from a random frame; the rest of all pieces counts alike.
    """
    generator = torch.Generator().manual_seed(seed)
    total, count = 0.0, 0
    for inputs, state in pieces:
        size = len(state)
        frame = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator)).Q
        h, transient = state.double(), min(len(inputs) // 2, 64)
        for t, x in enumerate(inputs.double()):
            jacobian = torch.autograd.functional.jacobian(lambda s, x=x: step(x, s), h)
            h = step(x, h).detach()
            frame, r = torch.linalg.qr(jacobian @ frame)
            if t >= transient:
                total, count = total + r.diagonal().abs().log(), count + 1
    return (total / count).sort(descending=True).values


def stepped(layer: nn.Module) -> Step:
    """One step of a layer or cell of torch's with a single tensor as state, by itself and in float64."""
    layer = copy.deepcopy(layer).double().eval()
    if isinstance(layer, nn.RNNBase):
        return lambda x, h: layer(x.view(1, 1, -1), h.view(1, 1, -1))[1].flatten()
    return lambda x, h: layer(x.unsqueeze(0), h.unsqueeze(0))[0]


class Loop(pl.LightningModule):
    """A model around a function of layers and batch; it does not learn, so that what is measured stays what it is."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], lr: float = 0.0, **layers: nn.Module) -> None:
        super().__init__()
        self.run, self.lr = run, lr
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.bias = nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return (self.run(self, batch[0]) + self.bias).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), self.lr)


def batches(x: Tensor, size: int | None = None) -> DataLoader:
    return DataLoader(TensorDataset(x), batch_size=size or len(x))


def measured(model: pl.LightningModule, x: Tensor, *others: pl.Callback, **options: Any) -> LyapunovSpectrumCallback:
    """The callback after a fit of one epoch on one batch, by training inputs unless there is validation."""
    fit = {name: options.pop(name) for name in ("max_epochs", "val", "size", "num_sanity_val_steps") if name in options}
    val, size = fit.pop("val", None), fit.pop("size", None)
    callback = LyapunovSpectrumCallback(**{"max_overhead": None, "scorer": None, "k": None, **options})
    run = trainer(callback, *others, **{"max_epochs": 1, **fit})
    run.fit(model, batches(x, size), None if val is None else batches(val))
    return callback


def rnn(gain: float, units: int = 8, inputs: int = 3, seed: int = 0, **options: Any) -> nn.RNN:
    torch.manual_seed(seed)
    layer = nn.RNN(inputs, units, batch_first=True, **options)
    with torch.no_grad():
        layer.weight_hh_l0.mul_(gain)
    return layer


# ---------------------------------------------------------------- A1: rows live separate lives


@pytest.mark.parametrize("resets", ["one", "at random"])
def test_an_environment_is_reset_inside_the_rollout(resets: str) -> None:
    """stable-baselines#1022, sb3-contrib#169, pytorch-a2c-ppo#193: a row's state is set to zero when it is done."""
    layer, x = rnn(3.0), 0.3 * torch.randn(16, 40, 3)
    done = torch.zeros(40, 16, dtype=torch.bool)
    if resets == "one":
        done[2, 0] = True
    else:
        done = torch.rand(40, 16) < 0.05
        done[0] = False

    def rollout(model: Any, x: Tensor) -> Tensor:
        h = None
        for t in range(40):
            if h is not None:
                h = h * (~done[t]).view(1, -1, 1)
            o, h = model.rnn(x[:, t : t + 1], h)
        return o

    callback = measured(Loop(rollout, rnn=layer), x, num_sequences=16)
    pieces = []
    for row in range(16):
        cuts = [0, *done[:, row].nonzero().flatten().tolist(), 40]
        pieces += [(x[row, a:b], torch.zeros(8)) for a, b in pairwise(cuts)]
    long = [piece for piece in sorted(pieces, key=lambda piece: -len(piece[0])) if len(piece[0]) >= 8]
    spectrum = callback.spectrum
    assert spectrum is not None and spectrum.sequences == 16
    exact = by_hand(stepped(layer), long[:16] if resets == "one" else long)
    assert float((spectrum.exponents - exact).abs()[0]) < float(spectrum.error[0])
    assert ("pieces of" in callback.history[-1].fewer) is True
    assert callback.history[-1].length == 40
    assert spectrum.steps > 15  # and not the one or two up to the first reset


@pytest.mark.parametrize("how", ["fall off", "masked"])
def test_captions_end_one_after_the_other(how: str) -> None:
    """Decoders that drop the rows that are finished, ``h[:n]``, or hold their state by a mask."""
    torch.manual_seed(0)
    cell, lengths = nn.RNNCell(3, 8), torch.tensor([60] * 14 + [5, 2])
    with torch.no_grad():
        cell.weight_hh.mul_(2)
    x = torch.randn(16, 60, 3)

    def decode(model: Any, x: Tensor) -> Tensor:
        h = x.new_zeros(16, 8)
        for t in range(60):
            rows = lengths > t
            if how == "fall off":
                h = model.cell(x[: int(rows.sum()), t], h[: int(rows.sum())])
            else:
                h = torch.where(rows.unsqueeze(1), model.cell(x[:, t], h), h)
        return h

    callback = measured(Loop(decode, cell=cell), x)
    exact = by_hand(stepped(cell), [(x[b, :n], torch.zeros(8)) for b, n in enumerate(lengths.tolist())])
    spectrum = callback.spectrum
    assert spectrum is not None and spectrum.sequences == 16
    assert float((spectrum.exponents - exact).abs()[0]) < float(spectrum.error[0])
    assert callback.history[-1].length == 60


# ---------------------------------------------------------------- A2: the length is that of the sequence


def test_a_layer_called_step_by_step_is_told_as_one_called_once() -> None:
    """Rollouts and decoders: ``o, h = self.rnn(x[:, t:t+1], h)``."""
    layer, x = rnn(1.0), torch.randn(16, 40, 3)

    def one_by_one(model: Any, x: Tensor) -> Tensor:
        h = None
        for t in range(x.shape[1]):
            o, h = model.rnn(x[:, t : t + 1], h)
        return o

    told = []
    for run in (lambda model, x: model.rnn(x)[0], one_by_one):
        callback = measured(Loop(run, rnn=layer), x)
        assert callback.history[-1].length == 40
        told.append([finding.text for finding in findings(callback.history)])
    assert told[0] == told[1]
    assert "40 steps" in " ".join(told[0]) and not re.search(r"\b1[- ]steps?\b", " ".join(told[1]))


def test_a_loop_longer_than_what_is_measured_is_as_long_as_it_is() -> None:
    layer, x = rnn(1.0), torch.randn(4, 200, 3)

    def one_by_one(model: Any, x: Tensor) -> Tensor:
        h = None
        for t in range(x.shape[1]):
            o, h = model.rnn(x[:, t : t + 1], h)
        return o

    callback = measured(Loop(one_by_one, rnn=layer), x, num_steps=30)
    assert callback.history[-1].length == 200
    assert "the first 30 of 200 steps (num_steps=30)" in callback.history[-1].fewer


# ---------------------------------------------------------------- A3: a row counts once


def test_one_sequence_over_six_epochs_is_one_sequence() -> None:
    layer, x = rnn(1.5), torch.randn(1, 40, 3)
    callback = measured(Loop(lambda model, x: model.rnn(x)[0], rnn=layer), x, max_epochs=6)
    assert [m.sequences for m in callback.history] == [1] * len(callback.history)


def test_overfitting_one_batch_does_not_narrow_the_error() -> None:
    """``overfit_batches=1`` with a layer below that learns, so that the same rows come in other values."""
    torch.manual_seed(0)
    layer, x = rnn(1.5), torch.randn(4, 40, 3)
    model = Loop(lambda model, x: model.rnn(model.below(x))[0], 0.1, below=nn.Linear(3, 3), rnn=layer)
    callback = LyapunovSpectrumCallback(max_overhead=None, scorer=None)
    trainer(callback, max_epochs=5, overfit_batches=1, limit_val_batches=0).fit(model, batches(x))
    assert {m.sequences for m in callback.history} == {4}


@pytest.mark.parametrize("optimiser", ["LBFGS", "R-Drop"])
def test_several_passes_over_a_batch_count_once(optimiser: str) -> None:
    torch.manual_seed(0)
    layer, x = rnn(1.5), torch.randn(4, 40, 3)

    class Twice(Loop):
        def configure_optimizers(self) -> Any:
            if optimiser == "LBFGS":
                return torch.optim.LBFGS(self.parameters(), 1e-3, max_iter=4)
            return super().configure_optimizers()

    def run(model: Any, x: Tensor) -> Tensor:
        out = model.rnn(model.below(x))[0]
        return out if optimiser == "LBFGS" else out - model.rnn(model.below(x))[0]

    below = nn.Linear(3, 3) if optimiser == "LBFGS" else nn.Dropout(0.3)
    callback = measured(Twice(run, below=below, rnn=layer), x, max_epochs=3)
    assert {m.sequences for m in callback.history} == {4}


def test_two_different_sequences_of_a_batch_are_two() -> None:
    """Siamese networks: the same layer is called for either side."""
    layer, x = rnn(1.5), torch.randn(4, 40, 6)
    callback = measured(Loop(lambda m, x: m.rnn(x[..., :3])[0] - m.rnn(x[..., 3:])[0], rnn=layer), x)
    assert callback.history[-1].sequences == 8


# ---------------------------------------------------------------- A4: weights that a parent writes


class WeightDrop(nn.Module):
    """Drops recurrent weights out, as AWD-LSTM does: awd-lstm-lm#120, pytorch#32346, fastai#2591."""

    def __init__(self, layer: nn.RNN) -> None:
        super().__init__()
        self.rnn, self.raw = layer, nn.Parameter(layer.weight_hh_l0.detach().clone())
        del layer._parameters["weight_hh_l0"]
        self.rnn.weight_hh_l0 = self.raw.detach().clone()

    def forward(self, x: Tensor) -> Tensor:
        dropped = nn.functional.dropout(self.raw, 0.5) if self.training else self.raw.clone()
        self.rnn.weight_hh_l0 = dropped
        return self.rnn(x)[0]


def dropped_out() -> tuple[Loop, nn.RNN, Tensor]:
    torch.manual_seed(0)
    plain, x = rnn(1.5), torch.randn(16, 40, 3)
    return Loop(lambda model, x: model.net(x), net=WeightDrop(copy.deepcopy(plain))), plain, x


def test_dropped_out_weights_are_measured_as_in_eval_mode() -> None:
    model, plain, x = dropped_out()
    callback = measured(model, x, val=x)
    exact = by_hand(stepped(plain), [(row, torch.zeros(8)) for row in x])
    assert callback.spectrum is not None
    assert float((callback.spectrum.exponents - exact).abs()[0]) < float(callback.spectrum.error[0])


def test_without_validation_it_is_said_that_they_are_dropped_out() -> None:
    model, _, x = dropped_out()
    with pytest.warns(UserWarning, match=r"net\.rnn: another module writes its weights.* of that draw"):
        measured(model, x)


# ---------------------------------------------------------------- A5: a series has one source


@pytest.mark.parametrize("how", ["every second epoch", "by updates"])
def test_training_and_validation_do_not_take_turns(how: str) -> None:
    """``check_val_every_n_epoch=2``, or ``every_n_train_steps`` beside validation: weights that do not move."""
    torch.manual_seed(0)
    layer, x, y = rnn(1.5), torch.randn(8, 40, 3), 3 * torch.randn(8, 40, 3)
    model = Loop(lambda model, x: model.rnn(nn.functional.dropout(x, 0.5, model.training))[0], rnn=layer)
    by_updates = how == "by updates"
    callback = LyapunovSpectrumCallback(
        max_overhead=None, scorer=None, every_n_train_steps=1 if by_updates else None, num_sequences=8
    )
    options = {} if by_updates else {"check_val_every_n_epoch": 2}
    trainer(callback, max_epochs=6, **options).fit(model, batches(x), batches(y))
    expected = ["training"] * 7 if by_updates else ["validation"] * 4
    assert [m.source for m in callback.history] == expected
    if not by_updates:
        assert [m.step for m in callback.history] == [0, 2, 4, 6]
        assert len({float(m.exponents[0]) for m in callback.history}) == 1
        assert not any("changing" in finding.text for finding in findings(callback.history))


def test_without_a_sanity_check_the_first_point_is_told_apart() -> None:
    layer, x, y = rnn(1.5), torch.randn(8, 40, 3), 3 * torch.randn(8, 40, 3)
    model = Loop(lambda model, x: model.rnn(x)[0], rnn=layer)
    callback = measured(model, x, val=y, num_sanity_val_steps=0, max_epochs=3)
    assert [m.source for m in callback.history] == ["training", *["validation"] * 3]
    stopper = LyapunovEarlyStopping("converged", patience=3, min_updates=0)
    measured(copy.deepcopy(model), x, stopper, val=y, num_sanity_val_steps=0, max_epochs=3)
    assert stopper.reason is None  # three measurements of one source; the fourth is of another


# ---------------------------------------------------------------- A6: several fits


def test_folds_of_a_cross_validation_are_kept_apart(tmp_path: Any) -> None:
    callback = LyapunovSpectrumCallback(max_overhead=None, scorer=None, report=str(tmp_path))
    for seed in range(3):
        model = Loop(lambda model, x: model.rnn(x)[0], rnn=rnn(1.5, seed=seed))
        trainer(callback, max_epochs=2).fit(model, loader(), loader())
        assert [m.step for m in callback.history] == [0, 4, 8]
    assert callback.history.runs_before == 2
    assert [[m.step for m in run] for run in callback.history.earlier] == [[0, 4, 8]] * 2


def test_a_second_model_without_recurrence_has_no_spectrum() -> None:
    callback = LyapunovSpectrumCallback(max_overhead=None)
    trainer(callback, max_epochs=1).fit(Loop(lambda m, x: m.rnn(x)[0], rnn=rnn(1.5)), loader())
    assert callback.spectrum is not None and callback.score is not None
    for _ in range(2):  # the warning comes once a fit
        with pytest.warns(UserWarning, match="no nn.RNN"):
            trainer(callback, max_epochs=1).fit(Loop(lambda m, x: m.lin(x), lin=nn.Linear(3, 3)), loader())
        assert callback.spectrum is None and callback.score is None and len(callback.history) == 0


# ---------------------------------------------------------------- B1, B2: refusals


class LN(nn.GRUCell):
    """A cell whose class inherits from torch's: pytorch#11335."""

    def __init__(self, *size: int) -> None:
        super().__init__(*size)
        self.n = nn.LayerNorm(size[1])

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.n(super().forward(x, h))


def looped(model: Any, x: Tensor) -> Tensor:
    h = x.new_zeros(len(x), 8)
    for now in x.unbind(1):
        h = model.cell(now, h)
    return h


@pytest.mark.parametrize("module", [None, "cell"])
def test_a_subclass_of_a_cell_is_a_cell(module: str | None) -> None:
    torch.manual_seed(0)
    cell, x = LN(3, 8), torch.randn(8, 30, 3)
    callback = measured(Loop(looped, cell=cell), x, module=module)
    exact = by_hand(stepped(cell), [(row, torch.zeros(8)) for row in x])
    assert callback.spectrum is not None
    assert float((callback.spectrum.exponents - exact).abs()[0]) < float(callback.spectrum.error[0])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
def test_a_scripted_cell_is_measured_when_it_is_named() -> None:
    """pytorch#48474."""
    torch.manual_seed(0)
    cell, x = nn.GRUCell(3, 8), torch.randn(8, 30, 3)
    callback = measured(Loop(looped, cell=torch.jit.script(cell)), x, module="cell")
    exact = by_hand(stepped(cell), [(row, torch.zeros(8)) for row in x])
    assert callback.spectrum is not None
    assert float((callback.spectrum.exponents - exact).abs()[0]) < float(callback.spectrum.error[0])
    assert math.isfinite(callback.history[-1].gain)


# ---------------------------------------------------------------- subclasses of torch's layers


class Padded(nn.LSTM):
    """Takes lengths, packs, and hands on to torch's: as forecasting libraries wrap their layers."""

    def forward(self, x: Tensor, hx: Any = None, lengths: Any = None, enforce_sorted: bool = True) -> Any:  # type: ignore[override]
        if lengths is None:
            return super().forward(x, hx)
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, True, enforce_sorted)
        outputs, state = super().forward(packed, hx)
        return nn.utils.rnn.pad_packed_sequence(outputs, True)[0], state


class Lens(nn.GRU):
    """The commonest signature of all: what follows the inputs is their lengths, and not the state."""

    def forward(self, x: Tensor, lens: Tensor) -> Any:  # type: ignore[override]
        packed = nn.utils.rnn.pack_padded_sequence(x, lens, self.batch_first, enforce_sorted=False)
        outputs, h = super().forward(packed)
        return nn.utils.rnn.pad_packed_sequence(outputs, self.batch_first)[0], h


class OutputsOnly(nn.GRU):
    def forward(self, x: Tensor, lens: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)[0]


class Apart(nn.LSTM):
    """Takes and returns h and c one by one."""

    def forward(self, x: Tensor, h0: Any = None, c0: Any = None) -> Any:  # type: ignore[override]
        outputs, (h, c) = super().forward(x, None if h0 is None else (h0, c0))
        return outputs, h, c


@pytest.mark.parametrize("kind", [Lens, OutputsOnly, Apart])
def test_subclasses_of_every_signature_are_measured(kind: Any) -> None:
    torch.manual_seed(0)
    layer, x = kind(3, 4, batch_first=True), torch.randn(8, 30, 3)
    lens = torch.arange(23, 31) if kind is Lens else torch.full((8,), 30)

    def run(model: Any, x: Tensor) -> Tensor:
        out = model.rnn(x) if kind is Apart else model.rnn(x, lens)
        return out[0] if isinstance(out, tuple) else out

    callback = measured(Loop(run, rnn=layer), x)
    plain = (nn.LSTM if kind is Apart else nn.GRU)(3, 4, batch_first=True)
    plain.load_state_dict(layer.state_dict())
    packed = nn.utils.rnn.pack_padded_sequence(x, lens, True, enforce_sorted=False)
    exact = lyapunov_spectrum(plain, packed)
    assert callback.spectrum is not None
    torch.testing.assert_close(callback.spectrum.exponents, exact.exponents, rtol=0, atol=1e-9)


class Transposed(nn.GRU):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x.transpose(0, 1))[0]


def test_a_subclass_whose_outputs_lie_otherwise_is_told_their_shape() -> None:
    model = Loop(lambda model, x: model.rnn(x), rnn=Transposed(3, 4))
    with pytest.warns(UserWarning, match=r"returned outputs of shape \(30, 8, 4\), time first, where torch's are"):
        measured(model, torch.randn(8, 30, 3))


class Halved(nn.LSTM):
    def forward(self, x: Tensor, hx: Any = None) -> Any:  # type: ignore[override]
        outputs, state = super().forward(x, hx)
        return 0.5 * outputs, state


def test_a_subclass_that_hands_on_to_torchs_layer_is_that_layer() -> None:
    torch.manual_seed(0)
    layer, x, lengths = Padded(3, 4, batch_first=True), torch.randn(8, 30, 3), torch.arange(23, 31)
    run = lambda model, x: model.rnn(x, None, lengths, False)[0]  # noqa: E731
    callback = measured(Loop(run, rnn=layer), x)
    plain = nn.LSTM(3, 4, batch_first=True)
    plain.load_state_dict(layer.state_dict())
    plain.double()

    def step(x: Tensor, state: Tensor) -> Tensor:
        h, c = plain(x.view(1, 1, -1), tuple(part.view(1, 1, -1) for part in state.split(4)))[1]
        return torch.cat([h.flatten(), c.flatten()])

    exact = by_hand(step, [(row[:n], torch.zeros(8)) for row, n in zip(x, lengths.tolist(), strict=True)])
    assert callback.spectrum is not None
    assert float((callback.spectrum.exponents - exact).abs()[0]) < float(callback.spectrum.error[0])


def test_a_subclass_that_does_something_else_is_told_by_how_much_and_the_advice_works() -> None:
    torch.manual_seed(0)
    layer, x = Halved(3, 4, batch_first=True), torch.randn(8, 30, 3)
    run = lambda model, x: model.rnn(x)[0]  # noqa: E731
    with pytest.warns(UserWarning, match=r"differs from torch's step with its weights by 0\.\d+.*{'name': step}"):
        assert measured(Loop(run, rnn=layer), x).spectrum is None

    def step(module: nn.Module, x: Tensor, state: Any) -> Any:
        h, c = state
        _, (h, c) = nn.LSTM.forward(module, x.unsqueeze(1), (h.unsqueeze(0), c.unsqueeze(0)))  # type: ignore[arg-type]
        return h[0], c[0]

    callback = measured(Loop(run, rnn=layer), x, module={"rnn": step})
    assert callback.spectrum is not None and callback.spectrum.dimension == 8


# ---------------------------------------------------------------- what others do with the model meanwhile


class Exports(pl.Callback):
    """Somebody else's, who copies, saves and scripts the model when validation ends."""

    def __init__(self, path: Any) -> None:
        self.path, self.done = path, 0

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        torch.jit.script(pl_module.rnn)
        again = copy.deepcopy(pl_module.rnn)
        torch.jit.script(again)
        torch.save(again, self.path)
        assert b"lightning_lyapunov" not in self.path.read_bytes()
        self.done += 1


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
def test_the_model_is_exported_during_the_fit(tmp_path: Any) -> None:
    exports, x = Exports(tmp_path / "rnn.pt"), torch.randn(8, 20, 3)
    callback = measured(Loop(lambda m, x: m.rnn(x)[0], rnn=rnn(1.0)), x, exports, val=x, max_epochs=2)
    assert exports.done == 3 and len(callback.history) == 3


def test_gradients_are_accumulated_by_hand_over_parts_of_a_batch() -> None:
    torch.manual_seed(0)
    layer, x = rnn(1.5), torch.randn(16, 30, 3)

    class ByHand(Loop):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            for part in batch[0].chunk(4):
                self.manual_backward((self.run(self, part) + self.bias).square().mean())
            self.optimizers().step()

    callback = measured(ByHand(lambda m, x: m.rnn(x)[0], rnn=layer), x)
    assert [m.sequences for m in callback.history][1:] == [16]
    assert callback.history[0].source == "partial training"  # of the first part alone, and compared with no other


def test_batches_of_one_sequence_are_enough_of_them() -> None:
    torch.manual_seed(0)
    callback = measured(Loop(lambda m, x: m.rnn(x)[0], rnn=rnn(1.5)), torch.randn(32, 20, 3), size=1)
    assert [m.sequences for m in callback.history] == [1, 16]


@pytest.mark.parametrize("validates", [True, False])
def test_a_run_measured_by_updates_resumes_on_training_data(validates: bool, tmp_path: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(32, 20, 3)
    loaders = (batches(x, 8), batches(x) if validates else None)
    model = Loop(lambda m, x: m.rnn(x)[0], rnn=rnn(1.5))
    options = {"every_n_train_steps": 3, "max_overhead": None, "scorer": None}
    first = trainer(LyapunovSpectrumCallback(**options), max_epochs=2)
    first.fit(model, *loaders)
    first.save_checkpoint(tmp_path / "c.ckpt")
    callback = LyapunovSpectrumCallback(**options)
    trainer(callback, max_epochs=3).fit(model, *loaders, ckpt_path=tmp_path / "c.ckpt")
    assert {m.source for m in callback.history} == {"training"}
    assert [m.step for m in callback.history] == [0, 3, 6, 8, 9, 12]


class Stacked(nn.Module):
    """A cell of two levels whose state is ``(2, B, H)``."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList([nn.GRUCell(3, 4), nn.GRUCell(4, 4)])

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        new = []
        for level, h in zip(self.levels, state, strict=True):
            new.append(x := level(x, h))
        return torch.stack(new)


def test_as_many_levels_as_rows() -> None:
    torch.manual_seed(0)
    cell, x = Stacked(), torch.randn(2, 30, 3)

    def run(model: Any, x: Tensor) -> Tensor:
        state = x.new_zeros(2, len(x), 4)
        for now in x.unbind(1):
            state = model.cell(now, state)
        return state

    callback = measured(Loop(run, cell=cell), x, module="cell")
    plain = copy.deepcopy(cell).double()
    step: Step = lambda x, h: plain(x.unsqueeze(0), h.view(2, 1, 4)).flatten()  # noqa: E731
    exact = by_hand(step, [(row, torch.zeros(8)) for row in x])
    assert callback.spectrum is not None and callback.spectrum.dimension == 8
    assert float((callback.spectrum.exponents - exact).abs()[0]) < float(callback.spectrum.error[0])


class Compiled(nn.Module):
    """A step that is a compiled function over a cell."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.graphs = nn.GRUCell(3, 8), list[Any]()
        self.run = torch.compile(self._run, backend=self.count, fullgraph=True)

    def count(self, graph: Any, _: Any) -> Any:
        self.graphs.append(graph)
        return graph.forward

    def _run(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), 8)
        for now in x.unbind(1):
            h = self.cell(now, h)
        return h


def test_a_step_that_is_a_compiled_function_is_not_compiled_again() -> None:
    def graphs(*callbacks: pl.Callback) -> int:
        torch._dynamo.reset()
        torch.manual_seed(0)
        net, x = Compiled(), torch.randn(32, 6, 3)
        model = Loop(lambda model, x: model.net.run(x), net=net)
        trainer(*callbacks, max_epochs=3).fit(model, batches(x, 8), batches(x, 8))
        return len(net.graphs)

    without = graphs()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert graphs(LyapunovSpectrumCallback(max_overhead=None, scorer=None)) == without > 0


class Graph(nn.Module):
    """A graph's recurrent cell: rows are nodes, and act on each other."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.mix = nn.Linear(5, 2), nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.mix @ self.inner(torch.cat([x, h], 1)))


def test_rows_that_act_on_each_other_are_told() -> None:
    torch.manual_seed(0)

    def run(model: Any, x: Tensor) -> Tensor:
        h = x.new_zeros(8, 2)
        for now in x.unbind(1):
            h = model.cell(now, h)
        return h

    with pytest.warns(UserWarning, match="Graph: rows act on each other"):
        assert measured(Loop(run, cell=Graph()), torch.randn(8, 20, 3), module="cell").spectrum is None


class Masked(nn.GRU):
    def forward(self, x: Tensor, mask: Tensor) -> Any:  # type: ignore[override]
        packed = nn.utils.rnn.pack_padded_sequence(x, mask.sum(1).cpu(), True, enforce_sorted=False)
        outputs, h = super().forward(packed)
        return nn.utils.rnn.pad_packed_sequence(outputs, True)[0], h


def test_a_mask_tells_the_lengths() -> None:
    torch.manual_seed(0)
    layer, x, lengths = Masked(3, 4, batch_first=True), torch.randn(8, 30, 3), torch.arange(23, 31)
    mask = torch.arange(30) < lengths.unsqueeze(1)
    callback = measured(Loop(lambda model, x: model.rnn(x, mask)[0], rnn=layer), x)
    plain = nn.GRU(3, 4, batch_first=True)
    plain.load_state_dict(layer.state_dict())
    exact = lyapunov_spectrum(plain, nn.utils.rnn.pack_padded_sequence(x, lengths, True, enforce_sorted=False))
    assert callback.spectrum is not None
    torch.testing.assert_close(callback.spectrum.exponents, exact.exponents, rtol=0, atol=1e-9)
