"""What the scorer is told of a fit's optimisers. Oracles: what the optimiser was made with; gradients of the loss anew.

Rates and kinds one by one are in ``tests/monitoring/test_learning.py``.
"""

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from fits import Manual, Regressor, Resumable, Varied, loader, trainer
from lightning.pytorch.callbacks import LearningRateFinder, ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from test_scoring import Broken, Oracle, scored
from torch import Tensor, nn

from lightning_lyapunov.training import optimisation

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*num_workers.*", "ignore:.*log_every_n_steps.*", "ignore:.*LeafSpec.*", "ignore:.*val_dataloader.*"
)

RATE = 1e-2


class Norms(pl.Callback):
    """The norm of the gradient of each update as it comes out of the backward pass, at every one of them."""

    def __init__(self) -> None:
        self.after: dict[int, float] = {}

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        flat = torch.cat([p.grad.flatten() for p in pl_module.parameters() if p.grad is not None])
        self.after[trainer.global_step + 1] = float(flat.norm())


def told(oracle: Oracle, name: str) -> list[Any]:
    return [context[name] for context in oracle.told]


def same(value: float | None) -> Any:
    return None if value is None else pytest.approx(value, rel=1e-5)


# ------------------------------------------------------------------ rates


class Scheduled(Regressor):
    """With a schedule of torch's."""

    def __init__(self, schedule: Any, interval: str = "step") -> None:
        super().__init__(lr=RATE)
        self.schedule, self.interval = schedule, interval

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), self.lr)
        schedule = self.schedule(optimizer)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": self.interval, "monitor": "val_loss"},
        }


class WarmUp(Regressor):
    """With one by hand, as Lightning's pages show it."""

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        optimizer = args[2]
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (self.trainer.global_step + 1) / 100)
        super().optimizer_step(*args, **kwargs)


@pytest.mark.parametrize(
    "model",
    [
        Scheduled(lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: t / 100)),
        Scheduled(lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.1), "epoch"),
        Scheduled(lambda o: torch.optim.lr_scheduler.OneCycleLR(o, RATE, total_steps=16)),
        Scheduled(lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=1e3), "epoch"),
        WarmUp(lr=RATE),
        Manual(lr=RATE),
    ],
    ids=["warm-up", "decay", "one cycle", "plateau", "by hand", "manual"],
)
def test_it_is_the_base_rate_at_every_measurement(model: Any) -> None:
    oracle = Oracle()
    fit = trainer(scored(oracle), max_epochs=3)
    fit.fit(model, loader(), loader())
    assert told(oracle, "learning_rate") == [same(RATE)] * 4 and told(oracle, "adaptive") == [True] * 4
    assert isinstance(model, Manual) or fit.optimizers[0].param_groups[0]["lr"] < 0.9 * RATE


def test_after_a_resume_it_is_still_the_rate_that_a_plateau_has_lowered(tmp_path: Any) -> None:
    def model() -> Any:
        return Scheduled(lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=1e3), "epoch")

    first = trainer(ModelCheckpoint(tmp_path, filename="last"), enable_checkpointing=True, max_epochs=3)
    first.fit(model(), Resumable(loader()), loader())
    oracle = Oracle()
    fit = trainer(scored(oracle), max_epochs=4)
    fit.fit(model(), Resumable(loader()), loader(), ckpt_path=tmp_path / "last.ckpt")
    assert fit.optimizers[0].param_groups[0]["lr"] < 0.2 * RATE
    assert told(oracle, "learning_rate") == [same(RATE)]


def test_a_search_for_the_rate_is_not_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever rates it went through, and whatever the model was made with."""
    monkeypatch.chdir(tmp_path)
    oracle, model = Oracle(), Regressor(lr=0.9)
    finder = LearningRateFinder(min_lr=1e-5, max_lr=1e-1, num_training_steps=20)
    fit = trainer(scored(oracle), finder, enable_checkpointing=True, max_epochs=1)
    fit.fit(model, loader(sequences=200), loader())
    found = fit.optimizers[0].param_groups[0]["lr"]
    assert found < 0.1 and told(oracle, "learning_rate") == [same(found)] * 2


def test_of_several_optimisers_that_of_the_layer_counts() -> None:
    oracle = Oracle()
    trainer(scored(oracle)).fit(Varied(optimisation="several"), loader(), loader())
    assert told(oracle, "adaptive") == [True] * 3  # the other one is SGD
    assert told(oracle, "learning_rate") == [same(1e-2)] * 3


# ------------------------------------------------------------------ gradients

RUNS: dict[str, dict[str, Any]] = {
    "validation": {},
    "clipped": {"gradient_clip_val": 1e-3},
    "clipped by value": {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": "value"},
    "training": {"limit_val_batches": 0},
    "accumulated": {"accumulate_grad_batches": 3},
    "accumulated, within": {"accumulate_grad_batches": 2, "val_check_interval": 3},
    "within epochs": {"val_check_interval": 0.5},
    "across epochs": {"val_check_interval": 3, "check_val_every_n_epoch": None},
    "sparse": {"check_val_every_n_epoch": 2, "max_epochs": 3},
    "few steps": {"max_steps": 6, "max_epochs": -1},
    "within training": {"every_n_train_steps": 3},
}


@pytest.mark.parametrize("name", RUNS)
def test_it_is_the_norm_of_the_last_gradient_before_clipping(name: str) -> None:
    options, oracle, norms = dict(RUNS[name]), Oracle(), Norms()
    ours = scored(oracle, every_n_train_steps=options.pop("every_n_train_steps", None))
    trainer(ours, norms, **options).fit(Regressor(), loader(), loader())
    updates = told(oracle, "updates")
    assert len(updates) >= 3 and updates[0] == 0
    assert told(oracle, "gradient_norm") == [None, *(same(norms.after[n]) for n in updates[1:])]
    assert min(norms.after.values()) > 1e-3  # so clipping would show


@pytest.mark.parametrize("name", RUNS)
def test_it_is_taken_only_where_a_measurement_may_follow(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options, taken = dict(RUNS[name]), list[int]()
    note = optimisation.GradientNorm.note

    def counted(self: Any, optimizer: Any, step: int) -> None:
        taken.append(step + 1)
        note(self, optimizer, step)

    monkeypatch.setattr(optimisation.GradientNorm, "note", counted)
    oracle = Oracle()
    ours = scored(oracle, every_n_train_steps=options.pop("every_n_train_steps", None))
    options = {"max_epochs": 4, **options} if "max_steps" not in options else {**options, "max_steps": 60}
    trainer(ours, **options).fit(Regressor(), loader(sequences=160), loader())
    updates = told(oracle, "updates")[1:]
    assert {*updates} <= {*taken} and len(taken) <= len(updates) + 4  # the ends of epochs without validation


@pytest.mark.parametrize("optimisation", ["manual", "several", "closures"])
def test_by_hand_it_is_that_of_the_optimiser_of_the_layer(optimisation: str) -> None:
    """As the gradient is when the step is made; of a closure that is evaluated again, the last time."""
    oracle, model, seen = Oracle(), Varied(optimisation=optimisation), dict[int, float]()

    class OfLayer(pl.Callback):
        def on_before_optimizer_step(self, fit: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
            held = [p for group in optimizer.param_groups for p in group["params"]]
            if any(p is model.rnn.weight_hh_l0 for p in held):
                flat = torch.cat([p.grad.flatten() for p in held if p.grad is not None])
                seen[fit.global_step // len(fit.optimizers)] = float(flat.norm())

    fit = trainer(scored(oracle), OfLayer())
    fit.fit(model, loader(), loader())
    rounds = [n // len(fit.optimizers) for n in told(oracle, "updates")[1:]]
    assert told(oracle, "gradient_norm") == [None, *(same(seen[n - 1]) for n in rounds)]


class Scaled(MixedPrecision):
    """Scales the loss, as on a GPU."""

    def __init__(self) -> None:
        super().__init__("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))

    def autocast_context_manager(self) -> Any:
        return torch.autocast("cpu", enabled=False)


class Fused(Regressor):
    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), self.lr, fused=True)


def test_a_loss_that_is_scaled_does_not_show() -> None:
    norms = []
    for plugins in (None, Scaled()):
        torch.manual_seed(0)
        oracle = Oracle()
        trainer(scored(oracle), plugins=plugins).fit(Regressor(), loader(), loader())
        norms.append(told(oracle, "gradient_norm"))
    assert norms[1] == [None, *map(same, norms[0][1:])] and None not in norms[0][1:]
    oracle = Oracle()
    trainer(scored(oracle), plugins=Scaled()).fit(Fused(), loader(), loader())
    assert told(oracle, "gradient_norm") == [None] * 3  # which unscales within its step


def test_without_gradients_at_hand_it_is_not_told() -> None:
    """An update that nobody foresaw as the last one."""
    oracle = Oracle()

    class Stops(pl.Callback):
        def on_train_batch_end(self, fit: pl.Trainer, *_: Any) -> None:
            fit.should_stop = fit.global_step == 2

    trainer(scored(oracle), Stops(), limit_val_batches=0).fit(Regressor(), loader())
    assert told(oracle, "updates") == [0, 2] and told(oracle, "gradient_norm") == [None, None]


# ------------------------------------------------------------------ states and sequences


def test_states_and_length_are_those_of_the_sequences_seen() -> None:
    """Of all that was seen, as no more is there than is measured; the length is that of the user's."""
    oracle, model = Oracle(), Regressor(nn.GRU(3, 6, batch_first=True))
    trainer(scored(oracle, num_sequences=64), max_epochs=1).fit(model, loader(), loader())
    x = loader().dataset.tensors[0]
    outputs = model.rnn(x)[0].detach()
    last = oracle.told[-1]
    assert last["state_mean"] == pytest.approx(float(outputs.abs().mean()), rel=1e-4)
    assert last["state_spread"] == pytest.approx(float(outputs.std()), rel=1e-4)
    assert last["steps"] == 12
    oracle = Oracle()
    trainer(scored(oracle, num_steps=5), max_epochs=1).fit(model, loader(), loader())
    assert told(oracle, "steps") == [12, 12]


# ------------------------------------------------------------------ never in the way


def test_an_optimiser_that_cannot_be_read_is_told_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = Oracle()

    def refuses(*_: Any) -> Any:
        raise LookupError("none of your business")

    monkeypatch.setattr(optimisation.Learning, "of", refuses)
    with pytest.warns(UserWarning, match="not told all about the optimiser: LookupError: none of your") as record:
        trainer(scored(oracle)).fit(Regressor(), loader(), loader())
    assert len([w for w in record if "about the optimiser" in str(w.message)]) == 1
    assert told(oracle, "learning_rate") == [None] * 3 and len(oracle.said) == 3


@pytest.mark.parametrize("scorer", [None, Oracle()], ids=["none", "oracle"])
def test_without_a_scorer_nothing_is_taken(scorer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr(optimisation.GradientNorm, "note", lambda *_: taken.append(1))
    trainer(scored(scorer)).fit(Regressor(), loader(), loader())
    assert len(taken) == (0 if scorer is None else 2)


@pytest.mark.filterwarnings("ignore:LyapunovSpectrumCallback:UserWarning")
@pytest.mark.parametrize("scorer", [Oracle(), Broken()], ids=["scoring", "raising"])
@pytest.mark.parametrize("options", [{"gradient_clip_val": 0.05}, {"accumulate_grad_batches": 2}], ids=str)
def test_weights_are_those_without_it(scorer: Any, options: dict[str, Any]) -> None:
    def run(*callbacks: pl.Callback) -> dict[str, Tensor]:
        pl.seed_everything(1)
        model = Scheduled(lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=5))
        trainer(*callbacks, **options).fit(model, loader(shuffle=True), loader())
        return copy.deepcopy(model.state_dict())

    without, with_it = run(), run(scored(scorer))
    assert all(torch.equal(without[name], with_it[name]) for name in without)
