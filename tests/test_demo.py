"""What a newcomer runs first: the demo, and the code of the README."""

import importlib
import logging
import math
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from fits import trainer
from terminal import Screen, terminal
from torch.utils.data import DataLoader

from lightning_lyapunov import LyapunovEarlyStopping, LyapunovMonitor, LyapunovSpectrumCallback, demo
from lightning_lyapunov.demo import Look
from lightning_lyapunov.reading import findings
from lightning_lyapunov.reading.conditions import largest
from lightning_lyapunov.reading.verdict import Verdict

ROOT = Path(__file__).parents[1]


# ---------------------------------------------------------------- the story


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Screen:
    """The demo on a terminal, of eight updates in place of 800."""
    fewer = partial(LyapunovSpectrumCallback, figures=False)  # in TensorBoard, which take most of the time
    for name, value in {"EPOCH": 8, "BATCH": 4, "LyapunovSpectrumCallback": fewer}.items():
        monkeypatch.setattr(demo, name, value)
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    with terminal(80, monkeypatch) as screen:
        page = demo.run(tmp_path)
    assert page.read_text("utf-8").startswith("<!DOCTYPE html>") and log.level == level
    return screen


@pytest.mark.filterwarnings("ignore:.*familiarity is.*", "ignore:.*logging interval.*")
def test_the_story_is_told_in_lines_that_do_not_wrap(shown: Screen) -> None:
    """A header and five rows for either network, above the bar; every column is explained before."""
    lines = [line for line in shown.lines if line]
    heads = [
        i for i, line in enumerate(lines) if line.split() == ["updates", "loss", "accuracy", "gradient", "verdict"]
    ]
    assert len(heads) == 2
    rows = [line.split() for line in lines if re.match(r" +[02468] .*(healthy|watch|act)$", line)]
    assert [row[0] for row in rows] == ["0", "2", "4", "6", "8"] * 2
    assert [len(row) for row in rows] == [4, 6, 6, 6, 6] * 2
    for column in ("updates", "loss", "accuracy", "gradient", "verdict"):
        assert any(line.startswith(f"{column}  ") for line in lines[: heads[0]])
    end = next(i for i, line in enumerate(lines) if line.startswith("Report "))  # then what is to be copied, as it is
    assert all(len(line) < shown.columns for line in lines[:end] if "%|" not in line and "lyapunov.html" not in line)
    told = "".join(lines[end:])
    assert "as-made/version_0/lyapunov.html" in told and "tensorboard.main --logdir" in told


def test_the_change_that_is_made_is_the_one_that_is_advised() -> None:
    """Oracle: the finding on the network as it is made, before its first update and after it, names that line."""
    task, model = demo.TASK, demo.Reader()
    inputs = task.sample(16, torch.Generator().manual_seed(0)).inputs.transpose(0, 1)
    monitor = LyapunovMonitor(model, max_overhead=None)
    with monitor.record():
        model(inputs)
    monitor.measure(0)
    monitor.measure(600)
    advice = [finding.advice for finding in findings(monitor.history) if finding.state == "forgetting"]
    assert len(advice) == 1 and demo.ADVISED in advice[0] and "begin again" in advice[0]


def test_the_moral_is_in_the_numbers_of_the_tables() -> None:
    act, healthy = Verdict("act", ""), Verdict("healthy", "")
    made = [
        Look(0, math.nan, math.nan, -20, healthy),
        Look(200, 1.384, 0.27, -20, healthy),
        Look(400, 1.3, 0.2, -20, act),
    ]
    advised = [
        Look(0, math.nan, math.nan, 0, healthy),
        Look(200, 1.379, 0.4, 0, healthy),
        Look(400, 0.1, 0.99, 0, healthy),
    ]
    told = demo.moral(made, advised)
    for number in ("1.384", "1.379", "1.386", "act after 400", "20%", "99%"):
        assert number in told
    assert "act not once" in demo.moral(made[:2], advised)


# ---------------------------------------------------------------- the digits


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The digits, one epoch long, and the directory they wrote to."""
    directory = tmp_path_factory.mktemp("demo")
    command = [sys.executable, ROOT / "examples" / "digits.py", "--epochs=1", "--hidden=16", "--cell=rnn", "--gain=3"]
    done = subprocess.run(
        [*command, "--logdir", directory], cwd=directory, capture_output=True, encoding="utf-8", timeout=300
    )
    assert done.returncode == 0, done.stderr
    return directory, done


def test_digits_leave_picture_and_events(digits: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    directory, _ = digits
    run = directory / "rnn-gain-3" / "version_0"
    assert (run / "spectrum.png").read_bytes().startswith(b"\x89PNG")
    assert list(run.glob("events.out.tfevents.*"))


def test_digits_close_with_a_table_and_where_to_look(digits: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    directory, done = digits
    # Of 8 steps 4 are measured, which settle nothing: what is told is growth, and never chaos.
    row = r" +[+-]\d+\.\d+ ± \d+\.\d+ +(\d+)-fold, at most (\d+)-fold .* (growing|mild growth)$"
    before, after = (re.search(f"^{when}{row}", done.stdout, re.M) for when in ("before", "after"))
    assert before and before[3] == "growing" and 7 < int(before[1]) <= int(before[2]) and after
    assert all(len(line.rstrip()) < 80 for line in done.stdout[: after.end()].splitlines() if "%|" not in line)
    assert str(directory / "rnn-gain-3" / "version_0" / "spectrum.png") in done.stdout
    assert f"tensorboard.main --logdir {directory}" in done.stdout


def test_digits_warn_of_nothing(digits: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    assert "Warning" not in digits[1].stderr


def test_make_demo_runs_the_story_or_the_digits() -> None:
    """Oracle: what make says it would run."""
    for told, runs in {
        "": "-m lightning_lyapunov demo",
        "--seed 3": "-m lightning_lyapunov demo --seed 3",
        "--task digits --cell rnn --gain 3": "examples/digits.py --cell rnn --gain 3",
    }.items():
        words = ["make", "-n", "--no-print-directory", "demo", f"ARGS={told}", "DISPLAY=", "WAYLAND_DISPLAY="]
        made = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        assert made.stdout.rstrip().endswith(runs)


# ---------------------------------------------------------------- the README


@pytest.mark.filterwarnings("ignore:.*many workers.*", "ignore:.*LeafSpec.*", "ignore:.*familiarity is.*")
def test_the_recipe_of_the_readme_lets_the_demos_network_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """An LSTM on the digits, whose largest exponent over 8 steps is above 0 and settles nothing, does well."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    digits = importlib.import_module("digits")
    pl.seed_everything(0, verbose=False)
    train, val = digits.read_digits()
    ours = LyapunovSpectrumCallback(
        k=None, max_overhead=None, num_sequences=32, figures=None, performance="val/accuracy",
        performance_range=(0.1, 1.0),
    )  # fmt: skip
    stopper = LyapunovEarlyStopping(["chaotic", "predicted_to_fail"], patience=3)
    fit = trainer(ours, stopper, max_epochs=6)
    fit.fit(digits.DigitReader(), DataLoader(train, 32, shuffle=True), DataLoader(val, 297))
    readings = [largest(measurement) for measurement in list(ours.history)[1:]]
    assert sum(value - error > 0 for value, error in readings) >= 3  # so a rate that were believed would end it
    assert stopper.reason is None and fit.current_epoch == 6
    assert float(fit.callback_metrics["val/accuracy"]) > 0.85


def test_code_of_the_readme_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 4
    monkeypatch.chdir(tmp_path)
    exec("\n".join(blocks), {})


def test_picture_of_the_readme_is_there_and_small() -> None:
    for picture in re.findall(r"!\[[^]]*\]\((.*?)\)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert (ROOT / picture).stat().st_size < 200_000
