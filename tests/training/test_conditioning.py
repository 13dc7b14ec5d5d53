"""The callback that conditions layers before training: what it changes, when, and that it leaves the rest alone.

Oracles: :func:`condition` by hand on the same rows; the run without the callback, bit by bit; a task that is learnt
with it and not without.
"""

import copy
import io
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from fits import Leaky, Looped, Manual, Recorder, Regressor, loader, trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import callbacks as of_lightning
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.tuner import Tuner
from ranks import batches, ddp, on_ranks, rows, seeded
from test_distributed import server  # noqa: F401
from test_no_trace import BUSY, PLAIN, differences, left_by, run
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_lyapunov import LyapunovConditioning, LyapunovSpectrumCallback, lyapunov_spectrum
from lightning_lyapunov.conditioning import Conditioning, condition
from lightning_lyapunov.training import conditioning as module

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*num_workers.*", "ignore:.*log_every_n_steps.*", "ignore:.*LeafSpec.*", "ignore:.*val_dataloader.*",
    "ignore:.*callbacks used to create the checkpoint.*", "ignore:.*sync_dist.*", "ignore:.*does not have many.*",
    "ignore:.*fast_dev_run.*", "ignore:.*in eval mode at the start.*",
)  # fmt: skip

LAG = 40.0
Weights = dict[str, Tensor]


def plain(seed: int = 0, **options: Any) -> Regressor:
    torch.manual_seed(seed)
    return Regressor(nn.RNN(3, 16, batch_first=True, **options))


def weights_of(model: nn.Module) -> Weights:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def changed(one: Weights, other: Weights) -> list[str]:
    return [name for name in one if not torch.equal(one[name], other[name])]


def is_orthogonal(weights: Tensor) -> bool:
    """Which no initial weights of torch's are: what conditioning makes of a tanh layer."""
    return bool((weights @ weights.T - torch.eye(len(weights))).abs().max() < 1e-4)


class Watch(pl.Callback):
    """Keeps the weights at a hook: of its first call in training."""

    def __init__(self, hook: str = "on_train_start") -> None:
        self.weights: Weights = {}
        self.step = -1
        setattr(self, hook, self._keep)

    def _keep(self, fit: pl.Trainer, model: pl.LightningModule, *_: Any) -> None:
        if not self.weights:
            self.weights, self.step = weights_of(model), fit.global_step


@contextmanager
def told() -> Iterator[list[str]]:
    """What is warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        texts: list[str] = []
        yield texts
    texts += [text for w in caught if "LyapunovConditioning: " in (text := str(w.message))]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said without a warning."""
    texts: list[str] = []
    monkeypatch.setattr(module, "inform", texts.append)
    return texts


def in_order(*callbacks: pl.Callback, model: pl.LightningModule | None = None, **options: Any) -> pl.LightningModule:
    """An epoch of four batches."""
    model = plain() if model is None else model
    trainer(*callbacks, **{"max_epochs": 1, **options}).fit(model, loader(), loader())
    return model


# ------------------------------------------------------------------ what it is for


class Recall(pl.LightningModule):
    """Names the symbol that was shown 40 steps ago."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(layer.hidden_size, 4)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.head(self.layer(batch[0])[0][:, -1]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        right = self.head(self.layer(batch[0])[0][:, -1]).argmax(-1) == batch[1]
        self.log("accuracy", right.float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def symbols(size: int, seed: int) -> TensorDataset:
    """A symbol of four, then 40 steps of noise."""
    generator = torch.Generator().manual_seed(seed)
    asked = torch.randint(4, (size,), generator=generator)
    shown = 0.1 * torch.randn(size, 41, 4, generator=generator)
    shown[:, 0] += nn.functional.one_hot(asked, 4)
    return TensorDataset(shown, asked)


def strong() -> nn.RNN:
    layer = nn.RNN(4, 32, batch_first=True)
    nn.init.normal_(layer.weight_hh_l0, std=3 / 32**0.5)
    return layer


NETWORKS: dict[str, Callable[[], nn.RNNBase]] = {
    "RNN": lambda: nn.RNN(4, 32, batch_first=True),
    "RNN of gain 3": strong,
    "GRU": lambda: nn.GRU(4, 32, batch_first=True),
    "LSTM": lambda: nn.LSTM(4, 32, batch_first=True),
}


def recalled(network: str, seed: int, epochs: int, *callbacks: pl.Callback) -> float:
    """The share of symbols that is named rightly in the end; a guess is right in a quarter."""
    torch.manual_seed(seed)
    model = Recall(NETWORKS[network]())
    fit = trainer(*callbacks, max_epochs=epochs)
    fit.fit(model, DataLoader(symbols(2048, seed), 64, shuffle=True), DataLoader(symbols(512, -1), 512))
    return float(fit.callback_metrics["accuracy"])


@pytest.mark.parametrize("network", ["RNN", pytest.param("LSTM", marks=pytest.mark.slow)])
def test_what_was_shown_40_steps_ago_is_learnt_with_it_alone(network: str) -> None:
    assert recalled(network, 0, 2, LyapunovConditioning(lag=LAG)) >= 0.95
    assert recalled(network, 0, 2) <= 0.5


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("network", NETWORKS)
def test_what_was_shown_40_steps_ago_is_learnt_with_it_alone_by_all(network: str, seed: int) -> None:
    assert recalled(network, seed, 6, LyapunovConditioning(lag=LAG)) >= 0.95
    assert recalled(network, seed, 6) <= 0.5


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("network", ["RNN", "RNN of gain 3", "GRU"])
def test_flossing_teaches_it_too(network: str, seed: int) -> None:
    ours = LyapunovConditioning(lag=LAG, method="flossing", max_seconds=600)
    assert recalled(network, seed, 6, ours) >= 0.95


# ------------------------------------------------------------------ what it changes, and when


def by_hand(model: Regressor, x: Tensor, **options: Any) -> Weights:
    """The weights of a conditioned copy."""
    twin = copy.deepcopy(model)
    condition(twin.rnn, x, lag=LAG, **options)
    return weights_of(twin)


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_layers_are_set_as_by_hand_on_the_rows_of_the_sanity_check(kind: Any) -> None:
    model = Regressor(kind(3, 8, 2, batch_first=True))
    expected = by_hand(model, loader().dataset.tensors[0][:16])
    watch, ours = Watch(), LyapunovConditioning(lag=LAG)
    in_order(ours, watch, model=model)
    assert changed(watch.weights, expected) == [] and watch.step == 0
    assert ours.report.applied and ours.report.rms_after < ours.report.rms_before


class Loops(Looped):
    """Calls its cell in validation too."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.training_step(batch, batch_idx)


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.GRUCell, nn.LSTMCell])
def test_cells_are_set_along_the_sequences_of_a_loop(kind: Any) -> None:
    """Oracle: by hand, on the rows time first."""
    model = Loops(kind(3, 6))
    twin = copy.deepcopy(model.cell)
    condition(twin, loader().dataset.tensors[0][:16].transpose(0, 1), lag=LAG)
    watch = Watch()
    in_order(LyapunovConditioning(lag=LAG), watch, LyapunovSpectrumCallback(scorer=None), model=model)
    for name, value in twin.named_parameters():
        assert torch.allclose(watch.weights[f"cell.{name}"], value, atol=1e-6), name


def test_the_state_that_a_layer_is_given_counts() -> None:
    """Oracle: by hand, with it."""

    class Begun(Regressor):
        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.rnn(x, torch.full((1, len(x), 16), 0.9))[0][:, -1])

    torch.manual_seed(0)
    model, watch = Begun(nn.RNN(3, 16, batch_first=True)), Watch()
    x = loader().dataset.tensors[0][:16]
    expected = by_hand(model, x, state=torch.full((1, 16, 16), 0.9))
    assert changed(expected, by_hand(model, x)) != []
    in_order(LyapunovConditioning(lag=LAG), watch, model=model)
    assert changed(watch.weights, expected) == []


@pytest.mark.parametrize("accumulate", [1, 3])
def test_without_a_sanity_check_it_is_the_first_update_after_which(accumulate: int, said: list[str]) -> None:
    """So that no gradient is half of other weights. Oracle: the weights without it, until then."""
    first, after, without = (Watch("on_train_batch_start"), Watch("on_before_zero_grad"), Watch("on_before_zero_grad"))

    class Second(Watch):
        def _keep(self, fit: pl.Trainer, model: pl.LightningModule, *_: Any) -> None:
            if fit.global_step == 1:
                super()._keep(fit, model)

    after, without = Second("on_train_batch_end"), Second("on_train_batch_end")
    options = {"num_sanity_val_steps": 0, "accumulate_grad_batches": accumulate}
    in_order(without, **options)
    in_order(first, ours := LyapunovConditioning(lag=LAG), after, **options)
    twin = plain()
    twin.load_state_dict(without.weights)
    x = loader().dataset.tensors[0][: 16 if accumulate > 1 else 8]
    x = x if accumulate == 1 else loader().dataset.tensors[0][8:24]  # the latest rows
    assert changed(after.weights, by_hand(twin, x)) == []
    assert sorted(changed(after.weights, without.weights)) == sorted(
        f"rnn.{n}" for n in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    )
    assert len(said) == 2 and "after the first update" in said[1] and ours.report.applied


class ByClosure(Regressor):
    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), 1e-2, max_iter=2)


class Past(Manual):
    """Steps past the Trainer, which then counts no update."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()


@pytest.mark.parametrize("kind", [Manual, ByClosure, Past])
@pytest.mark.parametrize("sanity", [0, 2])
def test_however_the_updates_are_made(kind: Any, sanity: int, said: list[str]) -> None:
    watch = Watch("on_train_batch_end" if sanity == 0 else "on_train_start")
    ours, model = LyapunovConditioning(lag=LAG), kind(rnn=nn.RNN(3, 16, batch_first=True))
    fit = trainer(ours, watch, max_epochs=1, num_sanity_val_steps=sanity)
    fit.fit(model, loader(), loader())
    assert is_orthogonal(watch.weights["rnn.weight_hh_l0"])
    fit.fit_loop.max_epochs = 2
    fresh = LyapunovConditioning(lag=LAG, prefix="again")
    fit.callbacks.append(fresh)
    before = model.rnn.weight_hh_l0.detach().clone()
    fit.callbacks.append(again := Watch())
    fit.fit(model, loader(), loader())
    assert torch.equal(again.weights["rnn.weight_hh_l0"], before) and fresh.report is None
    assert "a network that has been trained is not conditioned" in said[-1]


@pytest.mark.parametrize("first", [True, False])
def test_the_spectrum_before_training_is_that_of_the_order_in_the_list(first: bool) -> None:
    """Oracle: the spectrum by hand of the weights before, and after."""
    ours, lyapunov = LyapunovConditioning(lag=LAG), LyapunovSpectrumCallback(scorer=None, figures=False, transient=3)
    watch = Watch("on_fit_start" if not first else "on_train_start")
    in_order(*([ours, lyapunov] if first else [lyapunov, ours]), watch)
    model = plain()
    model.load_state_dict(watch.weights)
    spectrum = lyapunov_spectrum(model.rnn, loader().dataset.tensors[0][:16], transient=3)
    assert float(lyapunov.history[0].metrics["max"]) == pytest.approx(float(spectrum.exponents[0]), abs=1e-5)
    assert ours.report.applied and lyapunov.history[1].metrics["max"] > -0.2  # it is conditioned in either order


# ------------------------------------------------------------------ a guest


class Notes(pl.Callback):
    """All that anybody could notice, at a hook."""

    def __init__(self, hook: str) -> None:
        self.left: Any = None
        setattr(self, hook, self._note)

    def _note(self, fit: pl.Trainer, model: Any, *_: Any) -> None:
        if self.left is None and (fit.global_step > 0 or fit.num_sanity_val_steps > 0):
            left = left_by(fit, model, fit.logger)
            del left["logged"], left["metrics"]  # where its figures go
            self.hooks = left.pop("hooks")
            self.left = copy.deepcopy(left)


@pytest.mark.parametrize("sanity", [True, False])
@pytest.mark.parametrize("cell", ["RNN", "loop", "subclass"])
def test_nothing_but_the_weights_of_the_layer_is_touched(cell: str, sanity: bool) -> None:
    """Gradients, optimisers, random state, modes, hooks and all: as they were just before it."""
    hook = "on_train_start" if sanity else "on_train_batch_end"
    before, after = Notes(hook), Notes(hook)
    case = {**PLAIN, "data": "shuffled", "frozen": True, "cell": cell, "sanity check": sanity}
    run(case, before, LyapunovConditioning(lag=LAG), after)
    assert (before.left["gradients"]["out.weight"] is None) == sanity
    places = differences(before.left, after.left)
    assert places and all(place.startswith("/weights/rnn.") for place in places)
    assert sum(after.hooks["rnn"]) == 0  # its own is gone by then


def test_two_runs_are_the_same_bit_by_bit() -> None:
    one, other = (run(BUSY, LyapunovConditioning(lag=LAG)) for _ in range(2))
    for left in (one, other):
        for row in [*(row for _, row in left["logged"]), left["metrics"][1]]:
            row.pop("conditioning/seconds", None)
    assert differences(one, other) == []


def breaking(kind: type[BaseException]) -> Callable[..., Any]:
    """Conditioning that raises when the weights are set."""

    def breaks(*args: Any, **kwargs: Any) -> Any:
        assert condition(*args, **kwargs).applied
        raise kind("in the middle of it")

    return breaks


@pytest.mark.parametrize("sanity", [True, False])
def test_an_exception_in_the_middle_leaves_everything_as_found(sanity: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "condition", breaking(RuntimeError))
    case = {**BUSY, "sanity check": sanity}
    with told() as texts:
        left = run(case, LyapunovConditioning(lag=LAG))
    assert differences(run(case), left) == []
    assert len(texts) == 1 and "rnn is left as it was: in the middle of it" in texts[0]


def test_ctrl_c_in_the_middle_leaves_the_weights_as_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "condition", breaking(KeyboardInterrupt))
    model = plain()
    before = weights_of(model)
    with pytest.raises((KeyboardInterrupt, SystemExit)), monkeypatch.context() as patch:
        patch.setattr("signal.signal", lambda *_: None)  # Lightning ignores Ctrl-C from then on, in our process too
        in_order(LyapunovConditioning(lag=LAG), model=model)
    assert changed(before, weights_of(model)) == [] and not model.rnn._forward_hooks


def no_better(layer: nn.Module, *args: Any, **kwargs: Any) -> Conditioning:
    """Conditioning that is taken back."""
    return replace(condition(copy.deepcopy(layer), *args, **kwargs), reason="it is no better")


@pytest.mark.parametrize("options", [{}, {"method": "flossing", "learning_rate": 0.0, "steps": 20}], ids=str)
def test_what_does_not_help_leaves_everything_as_found(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flossing at a rate of 0 does nothing, so it is no better. Oracle: the run without."""
    if not options:
        monkeypatch.setattr(module, "condition", no_better)
    logger, ours = Recorder(), LyapunovConditioning(lag=LAG, **options)
    with told() as texts:
        left = run(BUSY, ours, logger=logger)
    without = run(BUSY)
    for one in (left, without):
        del one["logged"], one["metrics"]  # what was tried is logged
    assert differences(without, left) == []
    assert len(texts) == 1 and "rnn: left as it was, as" in texts[0] and not ours.report.applied
    assert sum("conditioning/max_before" in row for _, row in logger.rows) == 1


@pytest.mark.parametrize(
    "options",
    [{"fast_dev_run": True}, {"barebones": True, "logger": None}, {"limit_train_batches": 0}, {"max_epochs": 0}],
    ids=str,
)
def test_runs_that_are_no_training_are_left_alone(options: dict[str, Any]) -> None:
    ours, model = LyapunovConditioning(lag=LAG), plain()
    before, watch = weights_of(model), Watch()
    with told() as texts:
        if "barebones" in options:
            fit = pl.Trainer(max_epochs=1, accelerator="cpu", barebones=True, callbacks=[ours, watch])
            fit.fit(model, loader(), loader())
        else:
            in_order(ours, watch, model=model, **options)
    assert changed(before, watch.weights or weights_of(model)) == [] and ours.report is None and texts == []
    assert not model.rnn._forward_hooks


def test_validation_alone_is_left_alone() -> None:
    ours, model = LyapunovConditioning(lag=LAG), plain()
    before = weights_of(model)
    trainer(ours).validate(model, loader(), verbose=False)
    assert changed(before, weights_of(model)) == [] and ours.report is None


def test_somebody_elses_exception_leaves_no_hooks() -> None:
    class Breaks(pl.Callback):
        def on_sanity_check_end(self, *_: Any) -> None:
            raise ArithmeticError

    model = plain()
    with pytest.raises(ArithmeticError):
        in_order(LyapunovConditioning(lag=LAG), Breaks(), model=model)
    assert not model.rnn._forward_hooks


# ------------------------------------------------------------------ which layers


class Two(pl.LightningModule):
    """A layer that reads, and one that reads what it says."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lower, self.upper = nn.RNN(3, 8, batch_first=True), nn.GRU(8, 8, batch_first=True)
        self.out = nn.Linear(8, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return (self.out(self.upper(self.lower(batch[0])[0])[0][:, -1]) - batch[1]).square().mean()

    validation_step = training_step

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 1e-2)


def test_of_two_layers_the_one_that_is_named_is_set() -> None:
    model, watch, ours = Two(), Watch(), LyapunovConditioning("upper", lag=LAG)
    before = weights_of(model)
    in_order(ours, watch, model=model)
    assert {name.split(".")[0] for name in changed(before, watch.weights)} == {"upper"}
    assert not isinstance(ours.report, dict) and ours.report.applied


def test_several_layers_are_set_on_what_reached_them_before() -> None:
    """Oracle: each by hand, along what the lower one gave as it was made."""
    model, watch, ours, logger = Two(), Watch(), LyapunovConditioning(lag=LAG), Recorder()
    twin, x = copy.deepcopy(model), loader().dataset.tensors[0][:16]
    with torch.no_grad():
        between = twin.lower(x)[0]
    condition(twin.lower, x, lag=LAG)
    condition(twin.upper, between, lag=LAG)
    in_order(ours, watch, model=model, logger=logger)
    assert changed(watch.weights, weights_of(twin)) == []
    assert isinstance(ours.report, dict) and [*ours.report] == ["lower", "upper"]
    row = next(row for _, row in logger.rows if "conditioning/lower/max_before" in row)
    assert "conditioning/upper/rms_after" in row and "conditioning/max_before" not in row


def test_one_layers_trouble_is_not_anothers() -> None:
    model, watch, ours = Two(), Watch(), LyapunovConditioning(lag=LAG)
    model.lower.requires_grad_(False)
    before = weights_of(model)
    with told() as texts:
        in_order(ours, watch, model=model)
    assert {name.split(".")[0] for name in changed(before, watch.weights)} == {"upper"}
    assert len(texts) == 1 and "lower is left as it was" in texts[0] and "frozen" in texts[0]
    assert [*ours.report] == ["upper"]


@pytest.mark.parametrize("frozen", [["weight_hh_l0"], ["bias_ih_l0"], None], ids=str)
def test_frozen_parameters_are_left_alone(frozen: list[str] | None) -> None:
    model, watch = plain(), Watch()
    for name, parameter in model.rnn.named_parameters():
        parameter.requires_grad_(frozen is not None and name not in frozen)
    before = weights_of(model)
    with told() as texts:
        in_order(LyapunovConditioning(lag=LAG), watch, model=model)
    assert changed(before, watch.weights) == []
    assert len(texts) == 1 and "rnn is left as it was" in texts[0] and "frozen" in texts[0]


@pytest.mark.parametrize(
    ("made", "names", "text"),
    [
        (lambda: Regressor(nn.RNN(3, 6, batch_first=True).to(torch.bfloat16)), None, "bfloat16"),
        (lambda: Loops(Leaky()), "cell", "flossing"),
        (plain, "nowhere", "the model has no 'nowhere'"),
    ],
    ids=["half precision", "a cell of one's own", "no such name"],
)
def test_what_cannot_be_set_is_told_once_and_the_fit_goes_on(made: Any, names: Any, text: str) -> None:
    options = {"precision": "bf16-true"} if text == "bfloat16" else {}
    model, watch = made(), Watch()
    fit = trainer(LyapunovConditioning(names, lag=LAG), watch, max_epochs=1, **options)
    before = weights_of(model)
    with told() as texts:
        fit.fit(model, loader(), loader())
    assert len(texts) == 1 and text in texts[0] and fit.global_step == 4
    before = {name: value.to(watch.weights[name].dtype) for name, value in before.items()}
    assert changed(before, watch.weights) == []


def test_a_cell_of_ones_own_is_flossed_where_it_is_named() -> None:
    watch = Watch()
    ours = LyapunovConditioning("cell", lag=LAG, method="flossing", steps=3, num_steps=12, transient=2)
    model = Loops(Leaky())
    before = weights_of(model)
    in_order(ours, watch, model=model)
    assert {name.split(".")[0] for name in changed(before, watch.weights)} == {"cell"}
    assert ours.report.applied and ours.report.steps == 3
    assert ours.report.rms_after < ours.report.rms_before


@pytest.mark.parametrize("first", [True, False])
def test_another_that_records_the_cell_records_none_of_its_calls(first: bool) -> None:
    """Oracle: the twelve steps of the batch; the cell is run to be flossed while the batch is still recorded."""
    ours = LyapunovConditioning("cell", lag=LAG, method="flossing", steps=1, num_steps=12, transient=2)
    lyapunov = LyapunovSpectrumCallback("cell", scorer=None, figures=False, every_n_train_steps=1, max_overhead=None)
    in_order(*([ours, lyapunov] if first else [lyapunov, ours]), model=Loops(Leaky()), num_sanity_val_steps=0)
    assert [m.length for m in lyapunov.history] == [12] * 5 and ours.report.steps == 1


def test_a_layer_that_is_not_reached_is_told() -> None:
    class Passes(Two):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return (self.out(self.lower(batch[0])[0][:, -1]) - batch[1]).square().mean()

        validation_step = training_step

    ours = LyapunovConditioning(lag=LAG)
    with told() as texts:
        in_order(ours, model=Passes())
    assert len(texts) == 1 and "upper is left as it was: inputs: none reached the layer" in texts[0]
    assert [*ours.report] == ["lower"]


# ------------------------------------------------------------------ whoever else holds the weights


def test_shared_weights_are_told() -> None:
    class Tied(Regressor):
        def __init__(self) -> None:
            super().__init__(nn.RNN(3, 16, batch_first=True))
            self.same = nn.Linear(3, 16, bias=False)
            self.same.weight = self.rnn.weight_ih_l0

    with told() as texts:
        in_order(LyapunovConditioning(lag=LAG), model=Tied())
    assert len(texts) == 1 and "rnn shares weights that were set with same.weight." in texts[0]


class Target(Regressor):
    """With a copy of its layer, as in learning from one's own guesses."""

    def __init__(self, kind: Callable[..., nn.RNNBase]) -> None:
        super().__init__(kind(3, 16, batch_first=True))
        self.target = copy.deepcopy(self.rnn)


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])  # of the latter two biases alone are set
def test_a_copy_of_the_layer_is_told(kind: Callable[..., nn.RNNBase]) -> None:
    with told() as texts:
        in_order(LyapunovConditioning("rnn", lag=LAG), model=Target(kind))
    assert len(texts) == 1 and "still held by target.weight_ih_l0, target.weight_hh_l0." in texts[0]


class Twins(Regressor):
    """A stack of modules that began as copies of one."""

    def __init__(self) -> None:
        super().__init__(nn.GRU(3, 3, batch_first=True))
        self.above = copy.deepcopy(self.rnn)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.above(x)[0])


def test_layers_that_are_conditioned_themselves_are_no_copies() -> None:
    ours = LyapunovConditioning(lag=LAG)
    with told() as texts:
        in_order(ours, model=Twins())
    assert ours.report["above"].applied and ours.report["rnn"].applied and not texts


class Shadow(pl.Callback):
    """An average of one's own, that begins when the fit does, or when training does."""

    def __init__(self, hook: str) -> None:
        setattr(self, hook, self._begin)

    def _begin(self, fit: pl.Trainer, model: pl.LightningModule) -> None:
        self.shadow = weights_of(model)


AVERAGES: dict[str, tuple[Callable[[], pl.Callback], bool, bool, bool]] = {
    "begun at the start of the fit": (lambda: Shadow("on_fit_start"), False, True, True),
    "begun before, at the start of training": (lambda: Shadow("on_train_start"), True, True, True),
    "begun behind, at the start of training": (lambda: Shadow("on_train_start"), False, True, False),
}
if hasattr(of_lightning, "EMAWeightAveraging"):
    AVERAGES |= {
        f"Lightning's, {'before' if before else 'behind'}{', no sanity check' * (not sanity)}": (
            lambda: of_lightning.EMAWeightAveraging(decay=0.5), before, sanity, before and not sanity,
        )
        for before in (True, False)
        for sanity in (True, False)
    }  # fmt: skip


@pytest.mark.parametrize("case", AVERAGES)
def test_an_average_that_began_with_other_weights_is_told(case: str) -> None:
    make, is_before, sanity, is_stale = AVERAGES[case]
    ours, average = LyapunovConditioning(lag=LAG), make()
    with told() as texts:
        in_order(*([average, ours] if is_before else [ours, average]), num_sanity_val_steps=2 if sanity else 0)
    assert ours.report.applied
    assert [type(average).__name__ in text for text in texts] == [True] * is_stale


def test_an_average_of_lightnings_holds_the_conditioned_weights() -> None:
    """Oracle: at a decay of 0.5 over 4 updates 1/8 is left of what the average began with."""
    if not hasattr(of_lightning, "EMAWeightAveraging"):
        pytest.skip("before Lightning 2.6 there is none")
    watches = [Watch("on_train_batch_end"), Watch("on_train_end")]
    last: Weights = {}

    class Sums(pl.Callback):
        """The average, by hand."""

        def on_train_batch_end(self, fit: pl.Trainer, model: pl.LightningModule, *_: Any) -> None:
            now = weights_of(model)
            last.update(now if not last else {name: 0.5 * last[name] + 0.5 * now[name] for name in now})

    model = in_order(of_lightning.EMAWeightAveraging(decay=0.5), LyapunovConditioning(lag=LAG), Sums(), *watches)
    for name, value in model.state_dict().items():
        assert torch.allclose(value, last[name], atol=1e-6), name


# ------------------------------------------------------------------ once, also after a resume


def saved(path: Path, *callbacks: pl.Callback) -> Path:
    """A checkpoint after one epoch."""
    model = plain()
    fit = trainer(*callbacks, max_epochs=1)
    fit.fit(model, loader(), loader())
    fit.save_checkpoint(path / "last.ckpt")
    return path / "last.ckpt"


def test_a_run_that_is_resumed_is_the_one_that_was_not(tmp_path: Path, said: list[str]) -> None:
    whole = in_order(LyapunovConditioning(lag=LAG), max_epochs=2)
    path = saved(tmp_path, LyapunovConditioning(lag=LAG))
    resumed, ours = plain(seed=1), LyapunovConditioning(lag=LAG)
    fit = trainer(ours, max_epochs=2)
    said.clear()
    fit.fit(resumed, loader(), loader(), ckpt_path=path)
    assert fit.global_step == 8 and changed(weights_of(whole), weights_of(resumed)) == []
    assert ours.report is None and len(said) == 1 and "done before" in said[0] and "made orthogonal" in said[0]
    state = torch.load(path, weights_only=True)["callbacks"][ours.state_key]
    assert ours.state_dict() == state and state["rnn"]["applied"] is True
    assert state["rnn"]["figures"]["rms_after"] < state["rnn"]["figures"]["rms_before"]


def test_a_network_that_was_trained_without_it_is_not_conditioned(tmp_path: Path, said: list[str]) -> None:
    whole, path = in_order(max_epochs=2), saved(tmp_path)
    resumed, ours = plain(seed=1), LyapunovConditioning(lag=LAG)
    trainer(ours, max_epochs=2).fit(resumed, loader(), loader(), ckpt_path=path)
    assert changed(weights_of(whole), weights_of(resumed)) == [] and ours.report is None
    assert len(said) == 1 and "after 4 updates" in said[0]


@pytest.mark.parametrize("state", [{}, {"rnn": None}, {"rnn": {}}, {"rnn": {"figures": {"max_before": 1.0}}}], ids=str)
def test_states_of_other_versions_are_loaded(state: dict[str, Any]) -> None:
    ours = LyapunovConditioning(lag=LAG)
    ours.load_state_dict(state)
    torch.save(ours.state_dict(), io.BytesIO())


def test_a_second_fit_of_the_same_model_is_not_conditioned_again(said: list[str]) -> None:
    """In the same Trainer, and in another; another model is."""
    ours, model, watch = LyapunovConditioning(lag=LAG), plain(), Watch()
    fit = trainer(ours, max_epochs=1)
    fit.fit(model, loader(), loader())
    report = ours.report
    for again in (fit, trainer(ours, watch := Watch(), max_epochs=1)):
        before = weights_of(model)
        again.fit_loop.max_epochs = 2
        again.fit(model, loader(), loader())
        assert ours.report is report
    assert changed(before, watch.weights) == []
    assert len(said) == 3 and all("done before" in text for text in said[1:])
    in_order(ours, watch := Watch(), model=plain(seed=5))
    assert is_orthogonal(watch.weights["rnn.weight_hh_l0"]) and ours.report is not report


class Tunable(Regressor):
    def __init__(self) -> None:
        super().__init__(nn.RNN(3, 16, batch_first=True))


@pytest.mark.parametrize("by", ["callback", "tuner"])
def test_a_search_for_the_learning_rate_comes_before_it_and_takes_nothing_back(
    by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning trains some steps, and loads the weights of before: an older callback is used again."""
    monkeypatch.chdir(tmp_path)
    ours, watch = LyapunovConditioning(lag=LAG), Watch()
    in_order(ours)  # whose state is not this model's
    model = Tunable()
    with told() as texts:
        if by == "callback":
            finder = of_lightning.LearningRateFinder(num_training_steps=8, update_attr=False)
            in_order(finder, ours, watch, model=model)
        else:
            fit = trainer(ours, watch, max_epochs=1)
            before = weights_of(model)
            Tuner(fit).lr_find(model, loader(), loader(), num_training=8, update_attr=False)
            assert changed(before, weights_of(model)) == []
            fit.fit(model, loader(), loader())
    assert watch.step == 0 and is_orthogonal(watch.weights["rnn.weight_hh_l0"]) and ours.report.applied
    assert len(texts) == 1 and "LearningRateFinder tries learning rates on the network as it was made" in texts[0]


def test_the_callback_is_pickled_and_copied_with_arguments_and_plain_values() -> None:
    ours = LyapunovConditioning(["lower"], lag=7, prefix="mine", seed=3)
    in_order(ours, model=Two())
    ours.mine = 1  # type: ignore[attr-defined]
    for twin in (pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours)):
        assert (twin.module, twin.lag, twin.prefix, twin.seed, twin.mine) == (["lower"], 7, "mine", 3, 1)
        assert twin.state_dict() == ours.state_dict() != {} and twin.state_key == ours.state_key
        in_order(twin, watch := Watch(), model=Two())  # another model
        assert is_orthogonal(watch.weights["lower.weight_hh_l0"])
    buffer = io.BytesIO()
    torch.save(ours, buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True).lag == 7


# ------------------------------------------------------------------ what is logged


def test_figures_go_once_to_each_logger_and_to_monitors(said: list[str]) -> None:
    """Oracle: the report."""
    loggers, ours = [Recorder(), Recorder()], LyapunovConditioning(lag=LAG, prefix="made")
    model = plain()
    fit = trainer(ours, logger=loggers, max_epochs=1)
    fit.fit(model, loader(), loader())
    report = ours.report
    expected = {
        "made/max_before": float(report.before.exponents[0]),
        "made/max_after": float(report.after.exponents[0]),
        "made/rms_before": report.rms_before,
        "made/rms_after": report.rms_after,
        "made/reach_before": report.reach_before,
        "made/reach_after": report.reach_after,
        "made/steps": 0.0,
        "made/seconds": report.seconds,
    }
    for logger in loggers:
        (found,) = [(step, row) for step, row in logger.rows if any(key.startswith("made/") for key in row)]
        assert found == (0, {**expected, "epoch": 0})
    monitored = {key: float(value) for key, value in fit.callback_metrics.items() if key.startswith("made/")}
    assert monitored == pytest.approx(expected)
    assert said == [f"LyapunovConditioning: rnn: {report}"]


def test_a_logger_that_refuses_is_told_and_ends_nothing() -> None:
    class Refuses(Recorder):
        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            if any(key.startswith("conditioning") for key in metrics):
                raise ConnectionError("down")

    with told() as texts:
        in_order(LyapunovConditioning(lag=LAG), logger=Refuses())
    assert len(texts) == 1 and "Refuses refused the figures (ConnectionError: down)" in texts[0]


# ------------------------------------------------------------------ other ways to run


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_the_precision_of_the_run_does_not_reach_it(precision: str) -> None:
    """Oracle: by hand, in the type of the parameters."""
    model, watch = plain(), Watch()
    is_double = precision == "64-true"
    x = loader().dataset.tensors[0][:16]
    expected = by_hand(copy.deepcopy(model).double() if is_double else model, x.double() if is_double else x)
    in_order(LyapunovConditioning(lag=LAG), watch, model=model, precision=precision)
    for name, value in expected.items():
        assert torch.allclose(watch.weights[name], value, atol=1e-6), name


def test_a_layer_that_is_compiled_is_found_inside() -> None:
    model, watch = plain(), Watch()
    expected = by_hand(model, loader().dataset.tensors[0][:16])
    size = model.rnn.hidden_size
    model.rnn = torch.compile(model.rnn, backend="eager")
    assert size == 16
    ours = LyapunovConditioning("rnn", lag=LAG)
    in_order(ours, watch, model=model)
    assert torch.equal(watch.weights["rnn._orig_mod.weight_hh_l0"], expected["rnn.weight_hh_l0"])
    assert ours.report.applied and not model.rnn._orig_mod._forward_hooks


@pytest.mark.filterwarnings("ignore")
def test_command_line_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jsonargparse")
    from lightning.pytorch.cli import LightningCLI

    monkeypatch.chdir(tmp_path)
    name = "--trainer.callbacks+=LyapunovConditioning"
    options = ["--trainer.callbacks.lag=40", "--trainer.callbacks.module=[rnn]", "--trainer.callbacks.k=4"]
    ours = LightningCLI(Regressor, run=False, args=[name, *options]).trainer.callbacks[0]
    assert isinstance(ours, LyapunovConditioning) and (ours.lag, ours.module, ours.k) == (40, ["rnn"], 4)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"lag": 0}, "lag must be"),
        ({"shape": "flat"}, "shape must be 'hold' or 'spread'"),
        ({"method": "prayer"}, "method must be 'scaling' or 'flossing'"),
        ({"k": 0}, "k must be at least 1"),
        ({"transient": 55}, r"transient must lie in \[0, 54\]"),
        ({"max_seconds": -1.0}, "max_seconds must be a number, at least 0"),
        ({"num_sequences": 0}, "num_sequences must be a whole number, at least 1; got 0"),
        ({"num_sequences": "8"}, "num_sequences must be a whole number, at least 1; got '8'"),
        ({"module": []}, "module must name at least one layer"),
        ({"prefix": "a/"}, "prefix must be a name without slashes"),
    ],
)
def test_arguments_are_checked_at_construction(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        LyapunovConditioning(**{"lag": 40, **options})


def test_two_of_one_prefix_are_refused_and_two_of_two_are_not() -> None:
    with pytest.raises(MisconfigurationException, match="Two LyapunovConditionings use the prefix 'conditioning'"):
        in_order(LyapunovConditioning("lower", lag=LAG), LyapunovConditioning("upper", lag=LAG), model=Two())
    one, other = LyapunovConditioning("lower", lag=LAG), LyapunovConditioning("upper", lag=LAG, prefix="upper")
    in_order(one, other, model=Two())
    assert one.report.applied and other.report.applied


def test_pieces_of_weights_are_refused_before_the_fit() -> None:
    class DeepSpeedStrategy: ...

    for strategy in (FSDPStrategy(), DeepSpeedStrategy()):
        fit = type("Fit", (), {"strategy": strategy, "callbacks": []})()
        with pytest.raises(MisconfigurationException, match=f"{type(strategy).__name__} trains weights in pieces"):
            LyapunovConditioning(lag=LAG).setup(fit, pl.LightningModule(), "fit")


# ------------------------------------------------------------------ several ranks


def fit_on_rank(rank: int, world: int, counts: list[int], breaks: bool) -> dict[str, Any]:
    """Train on this rank, and tell what became of its weights."""
    if breaks and rank == 0:
        module.condition = breaking(RuntimeError)
    ours, watch = LyapunovConditioning(lag=LAG), Watch("on_train_start" if counts[0] else "on_train_batch_end")
    lyapunov = LyapunovSpectrumCallback(scorer=None, figures=False)
    model = seeded(lambda: Regressor(nn.RNN(3, 16, batch_first=True)))
    fit = ddp(world, ours, watch, lyapunov, num_sanity_val_steps=1, max_epochs=1)
    with told() as texts:
        fit.fit(model, batches(16, rank), batches(counts[rank], 10 + rank))
    last = weights_of(model)
    metrics = {key: float(value) for key, value in fit.callback_metrics.items() if key.startswith("conditioning/")}
    return {
        "first": {name: value.numpy() for name, value in watch.weights.items()},
        "last": {name: value.numpy() for name, value in last.items()},
        "texts": texts,
        "metrics": metrics,
        "state": ours.state_dict(),
        "reported": ours.report is not None,
        "steps": fit.global_step,
    }


ranked = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")


def agree(said: list[Any], what: str) -> bool:
    return all((said[0][what][name] == said[1][what][name]).all() for name in said[0][what])


@ranked
def test_two_ranks_get_the_weights_of_rank_zero(tmp_path: Path) -> None:
    """Oracle: by hand, on the rows that rank zero validates."""
    said = on_ranks(2, fit_on_rank, tmp_path, [8, 5], False)
    assert all(isinstance(rank, dict) for rank in said), said
    assert agree(said, "first") and agree(said, "last")
    expected = by_hand(seeded(lambda: Regressor(nn.RNN(3, 16, batch_first=True))), rows(8, 10)[0])
    for name, value in expected.items():
        assert torch.allclose(torch.from_numpy(said[0]["first"][name]), value, atol=1e-6), name
    assert said[0]["metrics"] == said[1]["metrics"] != {} and said[0]["state"] == said[1]["state"]
    assert [rank["reported"] for rank in said] == [True, False]


@ranked
def test_nobody_hangs_where_rank_zero_fails(tmp_path: Path) -> None:
    said = on_ranks(2, fit_on_rank, tmp_path, [8, 5], True)
    assert all(isinstance(rank, dict) for rank in said), said
    assert agree(said, "first") and agree(said, "last") and [rank["steps"] for rank in said] == [2, 2]
    assert [len(rank["texts"]) for rank in said] == [1, 0] and said[0]["metrics"] == {}
    made = weights_of(seeded(lambda: Regressor(nn.RNN(3, 16, batch_first=True))))
    assert all((said[0]["first"][name] == value.numpy()).all() for name, value in made.items())


@ranked
def test_where_rank_zero_validates_nothing_a_training_batch_of_its_own_serves(tmp_path: Path) -> None:
    said = on_ranks(2, fit_on_rank, tmp_path, [0, 5], False)
    assert all(isinstance(rank, dict) for rank in said), said
    assert agree(said, "first") and agree(said, "last") and said[0]["metrics"] == said[1]["metrics"] != {}
    assert is_orthogonal(torch.from_numpy(said[1]["first"]["rnn.weight_hh_l0"]))


def test_ddp_of_one_process(tmp_path: Path) -> None:
    (said,) = on_ranks(1, fit_on_rank, tmp_path, [8], False)
    assert isinstance(said, dict) and is_orthogonal(torch.from_numpy(said["first"]["rnn.weight_hh_l0"])), said
