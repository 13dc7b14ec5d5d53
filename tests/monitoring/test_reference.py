"""A run compared with the spectra of another. Oracles: the distance by hand, of spectra by hand; the fit without it."""

import copy
import math
import pickle
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from fits import Recorder, Regressor, loader, trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ModelPruning
from made import numbers, spectrum
from torch import Tensor, nn

from lightning_lyapunov import LyapunovMonitor, LyapunovSpectrumCallback, lyapunov_spectrum
from lightning_lyapunov.engine.spectrum import LyapunovSpectrum
from lightning_lyapunov.monitoring.options import Options
from lightning_lyapunov.monitoring.reference import Reference
from lightning_lyapunov.reading.distance import spectrum_distance
from lightning_lyapunov.reading.history import History, Measurement

KEY = "lyapunov/distance"
LN2 = math.log(2)
ONE, HALF, QUARTER = (spectrum(-n * LN2, dimension=1) for n in range(3))
"""Of one direction, which grows by 1, 1/2, 1/4."""


def reference(spectra: Any, prefix: str = "lyapunov") -> tuple[Reference, list[str]]:
    said: list[str] = []
    made = Reference(spectra, prefix, lambda text, **_: said.append(text))
    made.load()
    return made, said


def history(*steps: int, source: str = "validation", prefix: str = "lyapunov") -> History:
    """One in which e^λ is the number of updates in hundreds."""
    made = History(prefix)
    for step in steps:
        exponents = numbers(math.log(step / 100) if step else -math.inf)
        made.append(Measurement(step, 0, exponents, {}, dimension=1, source=source))
    return made


# ---------------------------------------------------------------- what is compared with what


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 1.0),  # with the one at 0, which is dead
        (1, None),  # no other is near before training has begun
        (100, 0.0),
        (105, 0.0),
        (95, 0.0),
        (150, None),
        (191, 1.0),  # 200 is nearest, within a tenth
        (210, 1.0),
        (250, None),
    ],
)
def test_the_nearest_within_a_tenth_of_the_updates_counts(step: int, expected: float | None) -> None:
    compared, said = reference(history(0, 100, 200))
    assert compared.distance(ONE, step, "validation") == (None if expected is None else pytest.approx(expected))
    assert len(said) == (expected is None) and all("the nearest of the reference was measured after" in t for t in said)


def test_other_inputs_are_not_compared() -> None:
    compared, said = reference(history(100, source="training"))
    assert compared.distance(ONE, 100, "validation") is None
    assert said == ["lyapunov/distance is not logged: the reference is of training, not validation."]
    assert compared.distance(ONE, 100, "training") == 0
    assert reference(history(100, source=""))[0].distance(ONE, 100, "validation") == 0  # of an older version


def test_one_spectrum_stands_for_all_updates_and_pairs_for_theirs() -> None:
    assert [reference(HALF)[0].distance(ONE, step, "training") for step in (0, 7, 10**6)] == [pytest.approx(0.5)] * 3
    compared, _ = reference([(0, numbers(0.0)), (100, HALF), (200, QUARTER)])
    distances = [compared.distance(ONE, step, "validation") for step in (0, 100, 200, 400)]
    assert distances == [0.0, pytest.approx(0.5), pytest.approx(0.75), None]


def test_unknown_exponents_have_no_distance() -> None:
    unknown = spectrum(0.0, math.nan)
    assert reference(ONE)[0].distance(unknown, 0, "") is None
    assert reference(unknown)[0].distance(ONE, 0, "") is None


def test_without_one_nothing_is_compared_and_nothing_said() -> None:
    compared, said = reference(None)
    assert compared.distance(ONE, 0, "training") is None and said == []


# ---------------------------------------------------------------- files


def test_files_of_a_history_of_a_state_and_of_a_trainer_are_read(tmp_path: Path) -> None:
    kept = history(100).state_dict()
    key = "LyapunovSpectrumCallback{'prefix': 'lyapunov', 'module': None}"
    other = "LyapunovSpectrumCallback{'prefix': 'encoder', 'module': 'rnn'}"
    contents = {
        "history": kept,
        "state": {"history": kept, "training_seconds": 1.0},
        "trainer": {"callbacks": {key: {"history": kept}, "ModelCheckpoint": {}}, "state_dict": {}},
        "two": {"callbacks": {other: {"history": history(300).state_dict()}, key: {"history": kept}}},
    }
    for name, content in contents.items():
        torch.save(content, tmp_path / f"{name}.pt")
        for path in (tmp_path / f"{name}.pt", str(tmp_path / f"{name}.pt")):
            assert reference(path)[0].distance(HALF, 100, "validation") == pytest.approx(0.5), name
    assert reference(tmp_path / "two.pt", "encoder")[0].distance(HALF, 300, "validation") == pytest.approx(2.5)
    assert reference(tmp_path / "trainer.pt", "another")[0].distance(HALF, 100, "validation") == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "No such file"),
        ({"state_dict": {}}, "holds none"),
        ({"callbacks": {}}, "holds none"),
        ([1.0], "holds none"),
        (History().state_dict(), "holds none"),
        (
            {"callbacks": {f"LyapunovSpectrumCallback{{'prefix': '{p}'}}": {"history": {}} for p in "ab"}},
            "one of those",
        ),
    ],
)
def test_a_file_that_holds_no_history_is_told_of_once(content: Any, told: str, tmp_path: Path) -> None:
    if content is not None:
        torch.save(content, tmp_path / "dense.pt")
    compared, said = reference(tmp_path / "dense.pt")
    assert len(said) == 1 and told in said[0] and said[0].startswith("reference could not be read, lyapunov/distance")
    assert compared.distance(ONE, 0, "training") is None and len(said) == 1


@pytest.mark.parametrize(("given", "told"), [([], "at least one"), ([(0, numbers(math.nan))], "finite"), ([1], "")])
def test_what_holds_no_spectra_is_told_of(given: Any, told: str) -> None:
    _, said = reference(given)
    assert len(said) == 1 and told in said[0]


@pytest.mark.parametrize("given", [3, torch.zeros(3), {"a": 1}])
def test_other_objects_are_refused_at_once(given: Any) -> None:
    with pytest.raises(
        ValueError, match=f"reference must be the path of a .*; got an object of {type(given).__name__}"
    ):
        Options(reference=given)
    with pytest.raises(ValueError, match="reference must be"):
        LyapunovSpectrumCallback(reference=given)


# ---------------------------------------------------------------- in a fit


def callback(**options: Any) -> LyapunovSpectrumCallback:
    plain = {"k": None, "max_overhead": None, "scorer": None, "figures": False}
    return LyapunovSpectrumCallback(**{**plain, **options})


def fit(seed: int, *callbacks: pl.Callback, **options: Any) -> Regressor:
    torch.manual_seed(seed)
    model = Regressor()
    fitted = trainer(*callbacks, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted.fit(model, loader(), loader(sequences=8))
    return model


def test_a_fit_is_compared_with_the_checkpoint_of_another(tmp_path: Path) -> None:
    dense, log = callback(), Recorder()
    keep = ModelCheckpoint(tmp_path, filename="dense", save_top_k=-1, every_n_epochs=1, save_last=True)
    fit(0, dense, keep, enable_checkpointing=True)
    sparse = callback(reference=str(tmp_path / "last.ckpt"))
    fit(1, sparse, logger=log)
    assert len(dense.history) == len(sparse.history) == 3  # before training, and after both epochs
    expected = [spectrum_distance(a, b) for a, b in zip(sparse.history, dense.history, strict=True)]
    assert sparse.history.values("distance") == pytest.approx(expected, rel=1e-5) and min(expected) > 0
    assert [row[KEY] for _, row in log.rows if KEY in row] == pytest.approx(expected, rel=1e-5)


def test_the_same_run_is_at_no_distance_from_itself_and_not_touched() -> None:
    alone = callback()
    first = fit(0, alone)
    again = callback(reference=alone.history)
    second = fit(0, again)
    assert again.history.values("distance") == [pytest.approx(0, abs=1e-6)] * 3
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_reference_that_cannot_be_read_warns_and_the_rest_is_logged(tmp_path: Path) -> None:
    lost = callback(reference=tmp_path / "lost.pt")
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="reference could not be read"):
        trainer(lost, max_epochs=1).fit(Regressor(), loader(), loader(sequences=8))
    assert len(lost.history) == 2 and all("distance" not in m.metrics and "max" in m.metrics for m in lost.history)


def test_a_callback_with_a_reference_is_pickled_and_copied() -> None:
    given = callback(reference=history(100))
    for made in (pickle.loads(pickle.dumps(given)), copy.deepcopy(given)):
        assert isinstance(made.reference, History) and made.reference[0].step == 100


def test_a_monitor_takes_one_too() -> None:
    model = nn.GRU(3, 5)
    x = torch.randn(16, 4, 3)
    written: list[dict[str, float]] = []
    options: dict[str, Any] = {"k": None, "max_overhead": None, "scorer": None, "figures": False}
    with LyapunovMonitor(
        model, reference=HALF, to=lambda figures, step: written.append(dict(figures)), **options
    ) as monitor:
        with monitor.record():
            model(x)
        measured = monitor.measure(0)
    assert isinstance(measured, LyapunovSpectrum)
    assert written[0][KEY] == pytest.approx(spectrum_distance(measured, HALF))


# ---------------------------------------------------------------- what it is for


class Probed(Regressor):
    """Keeps what its layer saw in the last validation."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.seen: Tensor = batch[0]
        super().validation_step(batch, batch_idx)


def test_pruned_by_lightning_the_masked_weights_are_measured() -> None:
    """Oracle: the layer once the masks have been made permanent, by hand."""
    torch.manual_seed(0)
    model = Probed()
    weights = [(model.rnn, "weight_ih_l0"), (model.rnn, "weight_hh_l0")]
    once = {"amount": 0.5, "use_global_unstructured": False, "apply_pruning": lambda epoch: epoch == 0}
    prune = ModelPruning("random_unstructured", weights, **once)
    watch = callback(reference=ONE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(prune, watch).fit(model, loader(), loader(sequences=8))
    shares = [float((getattr(*weight) == 0).float().mean()) for weight in weights]
    assert shares == [0.5, 0.5]  # the masks of the first epoch, which the last one was trained and measured with
    by_hand = lyapunov_spectrum(model.rnn, model.seen)
    torch.testing.assert_close(watch.history[-1].exponents, by_hand.exponents.float(), rtol=0, atol=1e-5)
    assert watch.history[-1].metrics["distance"] == pytest.approx(spectrum_distance(by_hand, ONE), abs=1e-5)
