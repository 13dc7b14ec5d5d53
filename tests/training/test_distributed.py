"""Several ranks on this machine (gloo): nobody waits for ever, all say the same, and it is the spectrum of all inputs.

Oracles: the same measurement in one process; the weights of a fit without the callback.
"""

import os
import warnings
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from fits import Regressor
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from packaging.version import Version
from ranks import batches, ddp, measuring, on_ranks, rows, seeded
from test_scoring import Oracle
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from lightning_lyapunov import (
    LyapunovEarlyStopping,
    LyapunovSpectrum,
    LyapunovSpectrumCallback,
    lyapunov_spectrum,
    spectrum_features,
)
from lightning_lyapunov.monitoring import layers
from lightning_lyapunov.monitoring.ranks import share_out
from lightning_lyapunov.monitoring.sharding import why_not
from lightning_lyapunov.names import key_of

pytestmark = [
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


@pytest.fixture(scope="module", autouse=True)
def server() -> None:
    """The process that ranks are forked from, with all imports done."""
    here = os.path.dirname(__file__)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = here if before is None else f"{here}{os.pathsep}{before}"
    try:
        context = get_context("forkserver")
        context.set_forkserver_preload(["ranks", "test_distributed"])
        process = context.Process(target=int)
        process.start()
        process.join()
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


CAREFUL: dict[str, Any] = {"dtype": torch.float64, "interval": 1}


def figures(spectrum: LyapunovSpectrum) -> dict[str, Any]:
    """All that a spectrum holds, and that of its layers."""
    arrays = {
        "exponents": spectrum.exponents,
        "stderr": spectrum.stderr,
        "error": spectrum.error,
        "per sequence": spectrum.per_sequence,
        "settled": spectrum.settled,
        "trusted": spectrum.trusted,
        "log singular values": spectrum.log_singular_values,
    }
    found = {name: values.cpu().numpy() for name, values in arrays.items()}
    found |= {"gain": spectrum.gain, "steps measured": spectrum.steps, "sequences": spectrum.sequences}
    found |= {"dimension": spectrum.dimension, "volume rate": spectrum.volume_rate}
    if spectrum.growth is not None:
        found |= {"growth error": spectrum.growth.error.numpy(), "gain error": spectrum.growth.gain_error}
        found |= {"gains": spectrum.growth.gain_per_sequence.numpy(), "lengths": spectrum.growth.lengths.numpy()}
    for layer, part in spectrum.parts.items():
        found |= {f"{layer.removeprefix('rnn.')}: {name}": values for name, values in figures(part).items()}
    return found


def close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return torch.allclose(a.double(), b.double(), rtol=0, atol=tolerance, equal_nan=True)


# ------------------------------------------------------------------ all say the same, of all inputs

RECORDED = [5, 2, 0]
"""Validation sequences of each rank: none on the last."""


def network(hidden: int) -> nn.GRU:
    return nn.GRU(3, hidden, num_layers=2, batch_first=True)


def fit_and_tell(
    rank: int, world: int, counts: list[int], options: dict[str, Any], hidden: int = 6, steps: tuple[int, ...] = ()
) -> dict[str, Any]:
    """Train on this rank, and tell what was measured and logged.

    Args:
        rank: This one.
        world: Ranks there are.
        counts: Validation sequences of each.
        options: Of the callback.
        hidden: Units of each layer.
        steps: Of the validation sequences of each rank.
    """
    ours = measuring(**options)
    model = seeded(lambda: Regressor(network(hidden)))
    stock = EarlyStopping("lyapunov/max", patience=100)
    fit = ddp(world, stock, ours, num_sanity_val_steps=1)
    validation = batches(counts[rank], 10 + rank, steps=steps[rank] if steps else 12)
    fit.fit(model, batches(16, rank), validation)
    keys = ("lyapunov/", "aelle/")
    return {
        "logged": {key: float(value) for key, value in fit.callback_metrics.items() if key.startswith(keys)},
        "weights": {key: value.numpy() for key, value in model.rnn.state_dict().items()},
        **figures(ours.spectrum),
        "steps": [m.step for m in ours.history],
        "epochs": fit.current_epoch,
    }


@pytest.mark.parametrize("world", [2, 3])
def test_all_ranks_log_the_spectrum_of_all_their_sequences(world: int, tmp_path: Path) -> None:
    """Oracle: one process, on the same sequences and weights; a shorter rank and an empty one count as they are."""
    said = on_ranks(world, fit_and_tell, tmp_path, RECORDED, {"transient": 3, "scorer": "general"})
    assert all(isinstance(rank, dict) for rank in said), said
    for rank in said[1:]:
        assert rank["logged"] == said[0]["logged"] and rank["epochs"] == said[0]["epochs"] == 2
        assert rank["exponents"].tolist() == said[0]["exponents"].tolist()
    assert said[0]["steps"] == [0, 2, 4] and said[1]["steps"] == []  # rank zero keeps the history
    assert {"lyapunov/max", "lyapunov/rnn.l1/max", "aelle/performance"} <= said[0]["logged"].keys()

    x = [row for rank in range(world) for row in rows(RECORDED[rank], 10 + rank)[0]]
    assert_is_that_of_one_process(said[0], x, transient=3)


def assert_is_that_of_one_process(said: dict[str, Any], x: list[Tensor], hidden: int = 6, **options: Any) -> None:
    """Everything that a rank tells of the spectrum; its sequences are those of the ranks, one rank after another."""
    rnn = network(hidden)
    rnn.load_state_dict({key: torch.from_numpy(value) for key, value in said["weights"].items()})
    alone = lyapunov_spectrum(rnn, pack_sequence(x, enforce_sorted=False), **CAREFUL, **options)
    expected = figures(alone)
    assert expected.keys() <= said.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(said[name], values, rtol=0, atol=1e-6, err_msg=name)
    features = spectrum_features(alone)
    logged = {key: said["logged"][key_of(key)] for key in features if key_of(key) in said["logged"]}
    assert len(logged) > 10
    assert logged == pytest.approx({key: features[key] for key in logged}, abs=1e-5)


def test_sequences_are_shared_out_evenly_as_far_as_they_are_there(tmp_path: Path) -> None:
    said = on_ranks(2, fit_and_tell, tmp_path, [8, 8], {"num_sequences": 6, "transient": 0})
    assert said[0]["sequences"] == 6
    x = [row for rank in range(2) for row in rows(8, 10 + rank)[0][:3]]
    assert_is_that_of_one_process(said[0], x, transient=0)


@pytest.mark.parametrize(
    ("hidden", "k", "steps"),
    [(6, None, (40, 12)), (24, 3, (40, 12)), (24, 3, (20, 12))],
    ids=str,
)
def test_ranks_whose_sequences_are_of_different_lengths(
    hidden: int, k: int | None, steps: tuple[int, int], tmp_path: Path
) -> None:
    """Each sequence has its own transient, and as many passes for its growth as it would have in one process."""
    said = on_ranks(2, fit_and_tell, tmp_path, [3, 4], {"k": k}, hidden, steps)
    assert all(isinstance(rank, dict) for rank in said), said
    x = [row for rank, count in enumerate((3, 4)) for row in rows(count, 10 + rank, steps[rank])[0]]
    assert_is_that_of_one_process(said[0], x, hidden, k=k)


@pytest.mark.parametrize(
    ("wanted", "there_are", "shares"),
    [(16, [16], [16]), (6, [8, 8], [3, 3]), (5, [8, 8], [3, 2]), (9, [0, 2, 20], [0, 2, 7]), (4, [1, 1], [1, 1])],
)
def test_shares_worked_by_hand(wanted: int, there_are: list[int], shares: list[int]) -> None:
    assert share_out(wanted, there_are) == shares


# ------------------------------------------------------------------ what the scorer is told


class Ranks(Regressor):
    """Logs its rank, reduced over all of them."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.log("rank", float(self.global_rank), on_step=False, on_epoch=True, sync_dist=True)
        return self.loss(batch)


def scored_by_rank(rank: int, world: int) -> tuple[float, list[float | None]]:
    oracle = Oracle()
    fit = ddp(world, measuring(scorer=oracle, performance="rank"), limit_val_batches=0)
    fit.fit(seeded(Ranks), batches(16, rank))
    return float(fit.callback_metrics["aelle/performance"]), [told["performance"] for told in oracle.told]


def test_two_processes_read_the_metric_together(tmp_path: Path) -> None:
    """A metric is reduced over the ranks when it is read: read by one of them alone, the run would hang.

    What is told is the mean over the ranks; only rank zero scores, after 0, 2 and 4 updates.
    """
    said = on_ranks(2, scored_by_rank, tmp_path)
    assert said == [(pytest.approx(1 / 6), [None, 0.5, 0.5]), (pytest.approx(1 / 6), [])], said


class Norms(pl.Callback):
    """The norm of each gradient, which ranks have averaged by then."""

    def __init__(self) -> None:
        self.all: list[float] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        self.all.append(float(torch.cat([p.grad.flatten() for p in pl_module.parameters()]).norm()))


def told_of_optimiser(rank: int, world: int) -> tuple[list[float], list[list[Any]]]:
    oracle, norms = Oracle(), Norms()
    ddp(world, measuring(scorer=oracle), norms, gradient_clip_val=1e-3).fit(
        seeded(Regressor), batches(16, rank), batches(8, 10 + rank)
    )
    return norms.all, [[told[name] for told in oracle.told] for name in ("learning_rate", "gradient_norm")]


def test_rank_zero_tells_the_rate_and_the_gradient_of_all_ranks(tmp_path: Path) -> None:
    (first, told), (second, nothing) = on_ranks(2, told_of_optimiser, tmp_path)
    assert first == pytest.approx(second) and nothing == [[], []]
    rates, norms = told
    assert rates == [pytest.approx(1e-2)] * len(rates) and len(rates) == 3
    assert norms == [None, *(pytest.approx(first[n], rel=1e-5) for n in (len(first) // 2 - 1, len(first) - 1))]


# ------------------------------------------------------------------ training is as it was, and ends together


def stop_when_chaotic(rank: int, world: int) -> dict[str, Any]:
    stopper = LyapunovEarlyStopping("chaotic", patience=2, min_updates=0)
    model = seeded(lambda: Regressor(nn.RNN(3, 32, batch_first=True), lr=0.0))
    nn.init.normal_(model.rnn.weight_hh_l0, std=4 / 32**0.5, generator=torch.Generator().manual_seed(0))
    fit = ddp(world, stopper, measuring(), max_epochs=10)
    fit.fit(model, batches(16, rank), batches(8, 10 + rank, steps=40))  # long enough for exponents to settle
    return {"epochs": fit.current_epoch, "reason": stopper.reason}


def test_all_ranks_stop_together_and_for_one_reason(tmp_path: Path) -> None:
    first, second = on_ranks(2, stop_when_chaotic, tmp_path)
    assert first == second and first["epochs"] == 2 and first["reason"].startswith("chaotic:")


def weights_after(rank: int, world: int, measured: bool) -> list[list[float]]:
    callbacks = [measuring(scorer="general"), LyapunovEarlyStopping("chaotic", patience=99)] if measured else []
    torch.manual_seed(rank)  # of dropout; DDP copies the weights of rank zero
    model = Regressor(nn.LSTM(3, 6, 2, dropout=0.3, batch_first=True), dropout=0.2)
    ddp(world, *callbacks).fit(model, batches(16, rank), batches(8, 10 + rank))
    return [p.flatten().tolist() for p in model.parameters()] + [torch.get_rng_state().tolist()]


def test_weights_and_random_state_are_bit_identical_with_and_without(tmp_path: Path) -> None:
    without = on_ranks(2, weights_after, tmp_path / "without", False)
    assert on_ranks(2, weights_after, tmp_path / "with", True) == without and isinstance(without[0], list)


# ------------------------------------------------------------------ trouble on one rank


class Breaks(Regressor):
    """Fails in training, on one rank."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.global_rank == 1 and self.global_step == 2:
            raise ArithmeticError("somebody else's mistake")
        return super().training_step(batch, batch_idx)


def with_a_measurement_that_raises(rank: int, world: int, kind: type[BaseException]) -> dict[str, Any]:
    measure = layers.measure_layers

    def breaks(*args: Any, **kwargs: Any) -> Any:
        if rank == 1:
            raise kind("broken")
        return measure(*args, **kwargs)

    layers.measure_layers = breaks
    ours = measuring()
    fit = ddp(world, ours)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit.fit(seeded(), batches(16, rank), batches(8, 10 + rank))
    told = [str(warning.message) for warning in caught if "could not be measured" in str(warning.message)]
    return {"told": told, "epochs": fit.current_epoch, "logged": [*fit.callback_metrics], "kept": len(ours.history)}


def test_a_measurement_that_fails_on_one_rank_is_told_once_and_training_goes_on(tmp_path: Path) -> None:
    first, second = on_ranks(2, with_a_measurement_that_raises, tmp_path, RuntimeError)
    assert [rank["epochs"] for rank in (first, second)] == [2, 2]
    assert len(first["told"]) == 1 and "broken (on rank 1)" in first["told"][0] and second["told"] == []
    assert first["kept"] == 0 and not [key for key in first["logged"] if key.startswith("lyapunov")]


def test_ctrl_c_on_one_rank_within_a_measurement_ends_both(tmp_path: Path) -> None:
    """Oracle: nobody hangs; the other one's collective ends because its peer has left."""
    said = on_ranks(2, with_a_measurement_that_raises, tmp_path, KeyboardInterrupt)
    assert all(isinstance(rank, str) for rank in said), said


def train_what_breaks(rank: int, world: int) -> None:
    ddp(world, measuring(report=None), LyapunovEarlyStopping("chaotic")).fit(
        seeded(Breaks), batches(16, rank), batches(8, 10 + rank)
    )


def test_an_exception_of_the_users_on_one_rank_ends_both_and_is_told_as_it_was(tmp_path: Path) -> None:
    first, second = on_ranks(2, train_what_breaks, tmp_path)
    assert second.startswith("ArithmeticError: somebody else's mistake") and isinstance(first, str)


# ------------------------------------------------------------------ sharded parameters


class Sharded(Regressor):
    """Its recurrent layer is sharded by FSDP2."""

    def configure_model(self) -> None:
        from torch.distributed.fsdp import fully_shard

        if not hasattr(self.rnn.weight_hh_l0, "full_tensor"):
            fully_shard(self.rnn, mesh=self.device_mesh["data_parallel"])
            fully_shard(self, mesh=self.device_mesh["data_parallel"])


def fit_sharded(rank: int, world: int, measured: bool) -> dict[str, Any]:
    strategy = ModelParallelStrategy(data_parallel_size=world, tensor_parallel_size=1, process_group_backend="gloo")
    ours = measuring(transient=3)
    fit = ddp(world, *([ours] if measured else []), strategy=strategy)
    model = seeded(Sharded)
    fit.fit(model, batches(16, rank), batches(4, 10 + rank))
    weights = {key: value.full_tensor().detach().tolist() for key, value in model.rnn.named_parameters()}
    told = {"weights": weights, "kinds": [type(p).__name__ for p in model.rnn.parameters()]}
    return {**told, "exponents": ours.spectrum.exponents.tolist()} if measured else told


@pytest.mark.skipif(Version(torch.__version__) < Version("2.6"), reason="FSDP2 needs a GPU before torch 2.6")
def test_parameters_sharded_by_fsdp2_are_put_together(tmp_path: Path) -> None:
    """Oracle: the whole weights and all sequences, in one process; and the weights of a fit without the callback."""
    said = on_ranks(2, fit_sharded, tmp_path / "with", True)
    assert all(isinstance(rank, dict) for rank in said), said
    rnn = nn.LSTM(3, 6, batch_first=True)
    rnn.load_state_dict({key: torch.tensor(value) for key, value in said[0]["weights"].items()})
    x = torch.cat([rows(4, 10 + rank)[0] for rank in range(2)])
    alone = lyapunov_spectrum(rnn, x, transient=3, **CAREFUL)
    assert close(torch.tensor(said[0]["exponents"]), alone.exponents, 1e-6)
    without = on_ranks(2, fit_sharded, tmp_path / "without", False)
    assert [rank["weights"] for rank in without] == [rank["weights"] for rank in said]


def test_parameters_in_flat_pieces_are_refused_before_the_fit() -> None:
    strategy = FSDPStrategy()
    assert "ModelParallelStrategy" in str(why_not(strategy)) and why_not(SimpleNamespace()) is None
    assert "DDPStrategy" in str(why_not(SimpleNamespace(zero_stage_3=True)))
    fit = SimpleNamespace(strategy=strategy, callbacks=[])
    with pytest.raises(MisconfigurationException, match="FSDPStrategy keeps parameters in flat pieces"):
        LyapunovSpectrumCallback().setup(fit, pl.LightningModule(), "fit")
