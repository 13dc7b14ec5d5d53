"""The callback across depth in real fits: right numbers, fresh for whoever monitors it, and no trace of it.

Oracles: depth_spectrum by hand on the weights of the moment; the same run without the callback; one process for two.
"""

import copy
import io
import math
import os
import pickle
import random
import re
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from deep import Classifier, Recurring, ResNet, ViT, images, loader
from fits import Recorder, Regressor, trainer
from fits import loader as sequences
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from ranks import ddp, on_ranks
from switches import precision
from test_no_trace import Raises, differences
from torch import nn

from lightning_lyapunov import (
    DepthSpectrum,
    DepthSpectrumCallback,
    LyapunovEarlyStopping,
    LyapunovSpectrumCallback,
    depth_spectrum,
)
from lightning_lyapunov.capture import chain_measure
from lightning_lyapunov.monitoring import blocks
from lightning_lyapunov.monitoring.budget import GRACE_SECONDS, Plan
from lightning_lyapunov.monitoring.depth_options import DepthOptions
from lightning_lyapunov.names_depth import LOGGED, MEASURED, QUANTITIES
from lightning_lyapunov.reading.depth_history import DepthMeasurement

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*num_workers.*", "ignore:.*log_every_n_steps.*", "ignore:.*LeafSpec.*", "ignore:.*val_dataloader.*",
    "ignore:.*does not have many workers.*", "ignore:.*was called without a model.*",
)  # fmt: skip


def across(module: Any = None, **options: Any) -> DepthSpectrumCallback:
    """One that measures always, and the same whatever the clock says."""
    return DepthSpectrumCallback(module, **{"max_overhead": None, "figures": False, **options})


def seeded(net: type[nn.Module] = ViT, **options: Any) -> Classifier:
    torch.manual_seed(0)
    return Classifier(net(), **options)


def with_its_settings(net: nn.Module, x: torch.Tensor) -> DepthSpectrum:
    """By hand, with as much effort as the callback makes."""
    with mock.patch("lightning_lyapunov.capture.depth_by_hand.DepthSettings", lambda **_: DepthOptions().settings):
        return depth_spectrum(net, x)


def by_hand(net: nn.Module, count: int = 8, seed: int = 0) -> DepthSpectrum:
    return with_its_settings(net, images(seed=seed)[0][:count])


def assert_close(measured: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(measured.double(), expected.double(), rtol=0, atol=tolerance)


def without_costs(measurement: Any) -> dict[str, float]:
    return {name: value for name, value in measurement.metrics.items() if name not in ("seconds", "overhead")}


def told(record: Any) -> list[str]:
    return [str(w.message) for w in record if str(w.message).startswith(("DepthSpectrum", "LyapunovSpectrum"))]


# ------------------------------------------------------------------ right numbers


@pytest.mark.parametrize("net", [ViT, Recurring])
def test_it_measures_before_training_and_once_per_set_of_weights(net: type[nn.Module]) -> None:
    """Oracle: by hand on the initial and on the final weights, and the first samples of validation."""
    model, ours = seeded(net), across()
    initial = copy.deepcopy(model.net)
    fit = trainer(ours)
    fit.fit(model, loader(), loader(seed=1))
    assert [(m.step, m.source) for m in ours.history] == [(step, "validation") for step in (0, 4, 8)]
    for network, measured in ((initial, ours.history[0]), (model.net, ours.history[-1])):
        expected = by_hand(network, seed=1)
        assert_close(measured.log_singular_values, expected.log_singular_values)
        assert_close(measured.block_gain, expected.block_gain)
        assert measured.metrics["gain"] == pytest.approx(expected.gain, abs=1e-5)
    assert ours.spectrum is not None and ours.spectrum.names == tuple(f"net.{name}" for name in expected.names)
    assert {f"depth/{name}" for name in MEASURED} | {f"depth/{name}/gain" for name in ours.spectrum.names} == {
        key for key in fit.callback_metrics if key.startswith("depth/")
    }
    assert float(fit.callback_metrics["depth/total"]) == pytest.approx(float(ours.spectrum.log_singular_values[0]))


@pytest.mark.parametrize(
    ("options", "fitting", "steps"),
    [
        ({"every_n_epochs": 2}, {"max_epochs": 5}, [0, 4, 12, 20]),
        ({"every_n_train_steps": 3}, {}, [0, 3, 6, 8]),
        ({}, {"limit_val_batches": 0}, [0, 4, 8]),
        ({}, {"val_check_interval": 0.5}, [0, 2, 4, 6, 8]),
        ({}, {"num_sanity_val_steps": 0}, [0, 4, 8]),
        ({}, {"accumulate_grad_batches": 2}, [0, 2, 4]),
    ],
    ids=str,
)
def test_when_it_measures(options: dict[str, Any], fitting: dict[str, Any], steps: list[int]) -> None:
    ours = across(**options)
    trainer(ours, **fitting).fit(seeded(), loader(), loader())
    assert [m.step for m in ours.history] == steps
    by_training = "every_n_train_steps" in options or "limit_val_batches" in fitting
    assert {m.source for m in ours.history} == (
        {"training"}
        if by_training
        else {"training", "validation"}
        if "num_sanity_val_steps" in fitting
        else {"validation"}
    )


def test_what_was_found_is_told_once_and_kept(caplog: pytest.LogCaptureFixture) -> None:
    ours = across(num_samples=3)
    with caplog.at_level("INFO"):
        trainer(ours).fit(seeded(), loader(), loader())
    assert caplog.text.count("DepthSpectrumCallback: measures 3 blocks net.blocks.0 ... net.blocks.2 (Attending).") == 1
    newest = ours.history[-1]
    assert newest.kinds == ["Attending"] * 3 and newest.dimensions == [32] * 4
    assert (newest.samples, newest.seen, newest.fewer) == (3, 8, "3 of 8 samples (num_samples=3)")
    assert (newest.normalisation, newest.conditional, newest.masked) == ("", "", 0.0)


def test_a_container_or_blocks_are_measured_by_name() -> None:
    whole, few = across("net.blocks"), across(["net.blocks.1", "net.blocks.2"], prefix="few")
    trainer(whole, few).fit(seeded(), loader(), loader())
    assert whole.spectrum is not None and few.spectrum is not None
    assert whole.spectrum.names[1:] == few.spectrum.names
    assert_close(whole.spectrum.block_gain[1:], few.spectrum.block_gain, 0.2)


@pytest.mark.parametrize("net", [ViT, ResNet])
def test_half_precision_of_the_run_does_not_reach_it(net: type[nn.Module]) -> None:
    """Oracle: the run in single precision; its weights stay as they are."""

    def measured(precision: str) -> DepthMeasurement:
        ours = across(tolerance=1e-3)
        trainer(ours, max_epochs=1, precision=precision).fit(seeded(net, lr=0.0), loader(), loader())
        return ours.history[0]

    true, mixed = measured("32-true"), measured("bf16-mixed")
    for name in ("total", "gain"):
        assert mixed.metrics[name] == pytest.approx(true.metrics[name], abs=1e-2), name
    for name in ("block_gain_max", "block_gain_min"):  # of two random gradients, where a unit may have switched
        assert mixed.metrics[name] == pytest.approx(true.metrics[name], abs=3e-2), name


# ------------------------------------------------------------------ batch normalisation


def with_statistics_of(net: nn.Module, x: torch.Tensor) -> nn.Module:
    """A copy whose running statistics are those of one batch, which it goes through in training."""
    found = copy.deepcopy(net).train()
    for part in found.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1.0
    found(x)
    return found.eval()


def test_before_training_batch_normalisation_is_that_of_a_training_batch() -> None:
    """Oracle: running statistics set to those of that batch. In eval mode they are 0 and 1, and the gain another."""
    model, ours = seeded(ResNet), across(num_samples=8)
    initial = copy.deepcopy(model.net)
    trainer(ours, max_epochs=1).fit(model, loader(), loader(seed=1))
    first = ours.history[0]
    assert (first.step, first.source, first.normalisation) == (0, "training", "batch")
    expected = by_hand(with_statistics_of(initial, model.batches[0]))
    depth, true = expected.depth, expected.gain
    assert abs(first.metrics["gain"] - true) / depth < 0.02
    assert abs(by_hand(initial.eval()).gain - true) / depth > 0.1


def test_running_statistics_count_once_they_have_seen_enough_data() -> None:
    """Oracle: a counter of batches, of which 50 are enough at a momentum of a tenth."""
    model, ours = seeded(ResNet), across()
    trainer(ours, max_epochs=14).fit(model, loader(), loader(seed=1))
    how = [(m.source, m.normalisation) for m in ours.history]
    assert how == [("training", "batch")] * 13 + [("validation", "running")] * 2  # after 52 and 56
    expected = by_hand(model.net.eval(), seed=1)
    assert ours.history[-1].metrics["total"] == pytest.approx(float(expected.log_singular_values[0]), abs=1e-4)


# ------------------------------------------------------------------ without a trace


def run(net: type[nn.Module], *callbacks: pl.Callback, **options: Any) -> dict[str, Any]:
    """Three epochs, and everything about them that anybody could notice."""
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    model, logger = Classifier(net()), Recorder()
    fit = trainer(*callbacks, logger=logger, log_every_n_steps=1, **{"max_epochs": 3, **options})
    fit.fit(model, loader(shuffle=True), loader(seed=1))
    parts = dict(model.named_modules())
    theirs = [
        {k: v for k, v in row.items() if not k.startswith(("depth", "lyapunov", "aelle"))} for _, row in logger.rows
    ]
    return {
        "weights and buffers": dict(model.state_dict()),
        "gradients": {name: value.grad for name, value in model.named_parameters()},
        "learning": {name: value.requires_grad for name, value in model.named_parameters()},
        "optimisers": [optimizer.state_dict() for optimizer in fit.optimizers],
        "random states": [random.getstate(), [*np.random.get_state()], torch.get_rng_state()],
        "logged": [row for row in theirs if row.keys() - {"epoch"}],
        "data": model.batches,
        "modes": {name: part.training for name, part in parts.items()},
        "attributes": {name: [*vars(part)] for name, part in parts.items()},
        "hooks": {
            name: [len(vars(part)[kind]) for kind in vars(part) if "hooks" in kind] for name, part in parts.items()
        },
        "precision": precision(),
        "attention": [torch.backends.cuda.flash_sdp_enabled(), torch.backends.mha.get_fastpath_enabled()],
        "contexts": [torch.is_grad_enabled(), torch.is_inference_mode_enabled()],
        "progress": [fit.global_step, fit.current_epoch, fit.should_stop],
    }


@pytest.mark.parametrize("net", [ViT, ResNet, Recurring])
@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2, "num_sanity_val_steps": 0}], ids=str)
def test_nothing_tells_whether_it_was_there(net: type[nn.Module], options: dict[str, Any]) -> None:
    """Weights, running statistics and their counters, gradients, random states, modes and hooks, to the bit."""
    ours = across(prog_bar=True, metrics="all")
    assert differences(run(net, **options), run(net, ours, **options)) == []
    assert len(ours.history) == 4


def test_nor_do_pictures_and_a_page(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    ours = across(figures=True, report=str(tmp_path))
    assert differences(run(ViT, max_epochs=1), run(ViT, ours, max_epochs=1)) == []
    assert "net.blocks.0" in (tmp_path / "depth.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("error", [RuntimeError("in the middle of it"), KeyboardInterrupt()], ids=repr)
def test_nor_does_a_measurement_that_breaks_off(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: without; and where Ctrl-C ends the run, Ctrl-C at the same hook."""
    is_interrupt = isinstance(error, KeyboardInterrupt)
    monkeypatch.setattr("signal.signal", lambda *_: None)  # Lightning ignores Ctrl-C from then on
    measure, calls = chain_measure.measure_depth, [0]

    def breaks(*args: Any, **options: Any) -> Any:
        measure(*args, **options)
        calls[0] += 1
        if calls[0] == 2:
            raise error
        return measure(*args, **options)

    def ended(*callbacks: pl.Callback) -> dict[str, Any]:
        if not is_interrupt:
            return run(ResNet, *callbacks)
        monkeypatch.setattr(Classifier, "left", None, raising=False)
        models: list[Any] = []
        monkeypatch.setattr(Classifier, "on_fit_start", lambda model: models.append(model))
        with pytest.raises(SystemExit):
            run(ResNet, *callbacks)
        (model,) = models
        hooks = [len(vars(part)[kind]) for part in model.modules() for kind in vars(part) if "hooks" in kind]
        modes = [part.training for part in model.modules()]
        return {"weights": dict(model.state_dict()), "hooks": hooks, "modes": modes, "random": torch.get_rng_state()}

    without = ended(*([Raises("on_validation_epoch_end", error)] if is_interrupt else []))
    monkeypatch.setattr(chain_measure, "measure_depth", breaks)
    ours = across()
    if is_interrupt:
        assert differences(without, ended(ours)) == []
    else:
        with pytest.warns(UserWarning) as record:
            assert differences(without, ended(ours)) == []
        (text,) = told(record)
        assert "the spectrum across depth could not be measured" in text and "in the middle of it" in text
    assert len(ours.history) == (1 if is_interrupt else 3)


def test_what_cannot_be_measured_is_told_once_and_trained() -> None:
    class Shallow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(128, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.flatten(1))

    ours = across()
    with pytest.warns(UserWarning) as record:
        fit = trainer(ours)
        fit.fit(seeded(Shallow), loader(), loader())
    (text,) = told(record)
    assert text.startswith("DepthSpectrumCallback: the spectrum across depth could not be measured, training goes on")
    assert fit.current_epoch == 2 and len(ours.history) == 0
    assert not any(key.startswith("depth/") for key in fit.callback_metrics)


@pytest.mark.parametrize("name", ["net.layers", ["net.blocks.0", "net.bricks"]])
def test_a_name_that_is_not_there_is_told_of(name: Any) -> None:
    with pytest.warns(UserWarning, match=r"training goes on without it: module: the model has no 'net\."):
        trainer(across(name)).fit(seeded(), loader(), loader())


def test_a_model_without_recurrence_is_told_of_it_by_the_recurrent_callback() -> None:
    with pytest.warns(UserWarning, match="not recurrent there is DepthSpectrumCallback"):
        trainer(LyapunovSpectrumCallback(scorer=None)).fit(seeded(), loader(), loader())


# ------------------------------------------------------------------ who monitors it


def test_stoppers_and_checkpoints_read_the_value_of_the_current_weights(tmp_path: Path) -> None:
    ours, checkpoint = across(), ModelCheckpoint(tmp_path, monitor="depth/total", save_top_k=-1, mode="max")
    stopper = EarlyStopping("depth/total", patience=2, min_delta=1e6)
    fit = trainer(stopper, checkpoint, ours, max_epochs=9, enable_checkpointing=True)
    fit.fit(seeded(), loader(), loader())
    assert fit.current_epoch == 3  # a first value, and two that are no better
    measured = [m.metrics["total"] for m in ours.history][1:]
    assert sorted(map(float, checkpoint.best_k_models.values())) == pytest.approx(sorted(measured))


def test_our_own_stopper_counts_its_measurements() -> None:
    stopper = LyapunovEarlyStopping(monitor="depth/total", patience=2, min_delta=1e6, prefix="depth")
    fit = trainer(stopper, ours := across(every_n_epochs=2), max_epochs=19)
    fit.fit(seeded(), loader(), loader())
    assert [m.step for m in ours.history] == [0, 4, 12, 20] and fit.global_step == 20
    assert stopper.reason is not None and stopper.reason.startswith("depth/total has not improved on ")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: LyapunovEarlyStopping("chaotic", prefix="depth"), "judges what a LyapunovSpectrumCallback measures"),
        (lambda: LyapunovEarlyStopping(monitor="depth/distance", prefix="depth"), "does not measure that"),
        (
            lambda: LyapunovSpectrumCallback(prefix="depth"),
            "A DepthSpectrumCallback and a LyapunovSpectrumCallback use",
        ),
    ],
)
def test_what_belongs_to_the_other_callback_is_refused(made: Any, message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        trainer(across(), made()).fit(seeded(Recurring), loader(), loader())


def test_others_may_act_on_a_measurement() -> None:
    class Acts(pl.Callback):
        def __init__(self) -> None:
            self.seen: list[tuple[int, bool]] = []

        def on_depth_measurement(self, trainer: pl.Trainer, callback: DepthSpectrumCallback) -> None:
            self.seen.append((trainer.global_step, callback.spectrum is not None))

    trainer(acts := Acts(), across()).fit(seeded(), loader(), loader())
    assert acts.seen == [(0, True), (4, True), (8, True)]


def test_loggers_get_what_was_asked_for() -> None:
    for metrics, names in {"default": LOGGED, "all": MEASURED}.items():
        logger = Recorder()
        trainer(across(metrics=metrics), logger=logger).fit(seeded(), loader(), loader())
        (*_, row) = [row for _, row in logger.rows if "depth/total" in row]
        assert {key for key in row if not key.endswith("/gain")} == {*(f"depth/{name}" for name in names), "epoch"} - {
            "depth/gain"
        }
        assert ("depth/net.blocks.0/gain" in row) == (metrics == "all")
    with pytest.raises(ValueError, match="metrics must be 'default', 'all' or names such as total"):
        DepthSpectrumCallback(metrics=["totals"])


def test_pictures_are_drawn_for_loggers_that_take_them() -> None:
    pytest.importorskip("matplotlib")
    logger = Recorder()
    trainer(across(figures=True), logger=logger, max_epochs=1).fit(seeded(), loader(), loader())
    assert set(logger.pictures) == {"depth_figures/depth", "depth_figures/blocks"}


# ------------------------------------------------------------------ beside the recurrent one


def test_both_callbacks_stand_side_by_side_in_one_model(tmp_path: Path) -> None:
    """Oracle for either: a fit with it alone."""

    def fitted(*guests: Any) -> Any:
        fit = trainer(*guests)
        fit.fit(seeded(Recurring), loader(), loader())
        return fit

    def recurrent() -> LyapunovSpectrumCallback:
        return LyapunovSpectrumCallback(max_overhead=None, scorer=None, figures=False)

    both, alone = (recurrent(), across()), (recurrent(), across())
    fit = fitted(*both)
    for guest, other in zip(both, alone, strict=True):
        fitted(other)
        assert [without_costs(m) for m in guest.history] == [without_costs(m) for m in other.history]
    assert {"lyapunov/max", "depth/total"} <= fit.callback_metrics.keys()
    fit.save_checkpoint(tmp_path / "c.ckpt")
    saved = torch.load(tmp_path / "c.ckpt", weights_only=True)["callbacks"]
    for guest in both:
        assert differences(saved[guest.state_key], guest.state_dict()) == []


# ------------------------------------------------------------------ resumed, pickled, configured


def test_a_run_resumed_ends_as_the_one_that_was_not(tmp_path: Path) -> None:
    """Oracle: the run that was not broken off, of a network that draws nothing at random; but for what it cost."""

    def model() -> Classifier:
        torch.manual_seed(0)
        return Classifier(ViT(dropout=0.0), noise=0.0)

    whole, keep = across(), ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    trainer(whole, keep, max_epochs=4, enable_checkpointing=True).fit(model(), loader(), loader())
    for epoch in (0, 2):
        resumed = across()
        trainer(resumed, max_epochs=4).fit(model(), loader(), loader(), ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
        assert [m.step for m in resumed.history] == [m.step for m in whole.history] == [0, 4, 8, 12, 16]
        for ours, theirs in zip(whole.history, resumed.history, strict=True):
            assert type(theirs) is DepthMeasurement and ours.names == theirs.names
            assert without_costs(theirs) == pytest.approx(without_costs(ours), abs=1e-6)


def test_a_state_of_another_version_is_told_of_and_used_as_far_as_it_goes() -> None:
    ours = across()
    trainer(ours).fit(seeded(), loader(), loader())
    buffer = io.BytesIO()
    torch.save(ours.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    for measurement in state["history"]["measurements"]:
        measurement["smell"] = 1.0
    with pytest.warns(UserWarning, match="of another version of this package .*smell of a measurement is not known"):
        (again := across()).load_state_dict(state)
    assert [m.step for m in again.history] == [0, 4, 8]
    assert torch.equal(again.history[-1].contributions, ours.history[-1].contributions)


def test_it_is_pickled_with_its_history() -> None:
    ours = across(["net.blocks.0", "net.blocks.1"], num_samples=2)
    trainer(ours).fit(seeded(), loader(), loader())
    again = pickle.loads(pickle.dumps(ours))
    assert (again.module, again.num_samples, again.spectrum) == (["net.blocks.0", "net.blocks.1"], 2, None)
    assert again.state_key == "DepthSpectrumCallback{'prefix': 'depth', 'module': ['net.blocks.0', 'net.blocks.1']}"
    assert [m.metrics for m in again.history] == [m.metrics for m in ours.history]
    assert again.verdict is not None and again.verdict.number in (0, 1, 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"k": 0}, "k must be at least 1; got 0"),
        ({"num_samples": 0}, "num_samples must be at least 1; got 0"),
        ({"tolerance": 0.0}, "tolerance must be above 0"),
        ({"tolerance": None}, "tolerance must be a number; got None"),
        ({"dtype": "float16"}, "dtype must be 'float32', 'float64' or None"),
        ({"max_overhead": 0}, "max_overhead must be above 0, or None"),
        ({"prefix": "/a"}, "prefix must be a name without slashes"),
        ({"every_n_epochs": 0}, "every_n_epochs must be at least 1"),
    ],
)
def test_arguments_out_of_range_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DepthSpectrumCallback(**given)


def test_the_docstring_has_all_keys_with_their_units() -> None:
    """Oracle: the table of names."""
    (table,) = re.findall(r"=+(?: +=+)+\n(.*?)\n *=+(?: +=+)+$", DepthSpectrumCallback.__doc__ or "", re.M | re.S)
    rows = dict(re.findall(r"^ *``(\S+?)`` +(.+?)  ", table, re.M))
    assert rows == {name: quantity.unit for name, quantity in QUANTITIES.items()}


# ------------------------------------------------------------------ what it costs


class Clock:
    """Moves only when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A measurement takes a fifth of a second and as much again for each sample, whatever k is."""
    clock, spectrum = Clock(), blocks.Blocks.spectrum

    def takes_time(self: Any, ranks: Any, preferred: Any, samples: int, *rest: Any) -> Any:
        clock.now += 0.2 + 0.2 * samples
        return spectrum(self, ranks, preferred, samples, *rest)

    monkeypatch.setattr(blocks.Blocks, "spectrum", takes_time)
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


class Works(pl.Callback):
    """A batch takes its time."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self.clock, self.seconds = clock, seconds

    def on_train_batch_start(self, *_: Any) -> None:
        self.clock.now += self.seconds


@pytest.mark.parametrize("seconds", [0.5, 2.0, 20.0])
def test_the_share_holds_over_a_run_and_samples_are_saved_first(seconds: float, clock: Clock) -> None:
    """Oracle: the clock. What is promised, at the beginning and the end, is cut, but never to nothing."""
    ours = DepthSpectrumCallback(max_overhead=0.1, figures=False)
    trainer(ours, Works(clock, seconds), max_epochs=20).fit(seeded(), loader(), loader())
    trained = 80 * seconds
    first = 0.4 + 1.8  # the pilot, of one sample, and the first measurement
    assert ours._budget.spent - first <= max(0.1 * trained, GRACE_SECONDS) + 1e-9
    assert {m.log_singular_values.numel() for m in ours.history} == {2}  # k is as asked for
    counts = [m.samples for m in ours.history]
    assert all(count in (1, 2, 4, 8) for count in counts)
    assert (min(counts[1:]) < 8) == (seconds < 20.0) and counts[0] == 1  # it takes a second at most, in any case
    assert all(bool(m.fewer) == (m.samples < 8) for m in ours.history)


def test_a_pilot_is_of_one_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    plans, spectrum = [], blocks.Blocks.spectrum

    def noted(self: Any, ranks: Any, preferred: Any, samples: int, settings: Any, dtype: Any) -> Any:
        plans.append(Plan(samples, 1, settings.k))
        return spectrum(self, ranks, preferred, samples, settings, dtype)

    monkeypatch.setattr(blocks.Blocks, "spectrum", noted)
    trainer(DepthSpectrumCallback(k=8, max_overhead=0.9), max_epochs=1).fit(seeded(), loader(), loader())
    assert plans[0] == Plan(1, 1, 2) and plans[1].sequences in (1, 2, 4, 8)


# ------------------------------------------------------------------ several ranks


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    """The process that ranks are forked from, with all imports done."""
    here = os.path.dirname(__file__)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = here if before is None else f"{here}{os.pathsep}{before}"
    try:
        context = get_context("forkserver")
        context.set_forkserver_preload(["ranks", "test_depth_callback"])
        process = context.Process(target=int)
        process.start()
        process.join()
        yield
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def on_a_rank(rank: int, world: int, net: type[nn.Module], measured: bool, breaks: int) -> dict[str, Any]:
    if rank == breaks:
        chain_measure.measure_depth = lambda *_, **__: 1 / 0
    ours = across(num_samples=6)
    fit = ddp(world, *([ours] if measured else []))
    model = seeded(net)
    fit.fit(model, loader(16, seed=rank), loader(8 if rank == 0 else 2, seed=10 + rank))
    state = {name: value.tolist() for name, value in model.state_dict().items()}
    if not measured or ours.spectrum is None:
        return {"state": state, "kept": len(ours.history), "epochs": fit.current_epoch}
    return {
        "state": state,
        "per sample": ours.spectrum.per_sample.tolist(),
        "logged": {key: float(value) for key, value in fit.callback_metrics.items() if key.startswith("depth/")},
        "kept": [m.step for m in ours.history],
        "seen": [m.seen for m in ours.history],
        "epochs": fit.current_epoch,
    }


@pytest.mark.usefixtures("server")
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
class TestRanks:
    def test_each_measures_its_own_samples_and_all_get_all(self, tmp_path: Path) -> None:
        """Oracle: by hand, on the same samples in one process; and the weights of a fit without the callback."""
        first, second = on_ranks(2, on_a_rank, tmp_path / "with", ViT, True, -1)
        assert isinstance(first, dict) and isinstance(second, dict), (first, second)
        assert first["logged"] == second["logged"] and first["per sample"] == second["per sample"]
        assert (first["kept"], second["kept"], first["seen"]) == ([0, 2, 4], [], [10, 10, 10])
        net = ViT()
        net.load_state_dict({name.removeprefix("net."): torch.tensor(v) for name, v in first["state"].items()})
        x = torch.cat([images(8, 10)[0][:4], images(2, 11)[0]])  # 4 of 8, and the 2 there are
        expected = with_its_settings(net, x).per_sample
        assert_close(torch.tensor(first["per sample"]), expected, 0.05)  # each rank ends its iteration by itself
        without = on_ranks(2, on_a_rank, tmp_path / "without", ViT, False, -1)
        assert [rank["state"] for rank in without] == [first["state"], second["state"]]

    def test_trouble_on_one_is_told_and_nobody_waits(self, tmp_path: Path) -> None:
        said = on_ranks(2, on_a_rank, tmp_path, ResNet, True, 1)
        assert [(rank["kept"], rank["epochs"]) for rank in said] == [(0, 2), (0, 2)]


def test_a_recurrent_network_alone_has_no_chain_and_is_measured_along_time() -> None:
    ours = LyapunovSpectrumCallback(max_overhead=None, scorer=None, figures=False)
    with pytest.warns(UserWarning) as record:
        trainer(across(), ours).fit(Regressor(), sequences(), sequences())
    assert len(ours.history) == 3 and all(map(math.isfinite, ours.history.values("max")))
    (text,) = told(record)
    assert text.startswith("DepthSpectrumCallback")
