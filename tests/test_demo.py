"""What a newcomer runs first: the demo, and the code of the README."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
from fits import trainer
from torch.utils.data import DataLoader

from lightning_lyapunov import LyapunovEarlyStopping, LyapunovSpectrumCallback
from lightning_lyapunov.reading.conditions import largest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The demo, one epoch long, and the directory it wrote to."""
    directory = tmp_path_factory.mktemp("demo")
    command = [sys.executable, ROOT / "examples" / "digits.py", "--epochs=1", "--hidden=16", "--cell=rnn", "--gain=3"]
    done = subprocess.run(
        [*command, "--logdir", directory], cwd=directory, capture_output=True, encoding="utf-8", timeout=300
    )
    assert done.returncode == 0, done.stderr
    return directory, done


def test_demo_leaves_picture_and_events(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    directory, _ = demo
    run = directory / "rnn-gain-3" / "version_0"
    assert (run / "spectrum.png").read_bytes().startswith(b"\x89PNG")
    assert list(run.glob("events.out.tfevents.*"))


def test_demo_closes_with_a_table_and_where_to_look(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    directory, done = demo
    # Of 8 steps 4 are measured, which settle nothing: what is told is growth, and never chaos.
    row = r" +[+-]\d+\.\d+ ± \d+\.\d+ +no +(\d+)-fold, at most (\d+)-fold .* (growing|mild growth)$"
    before, after = (re.search(f"^{when} training{row}", done.stdout, re.M) for when in ("before", "after"))
    assert before and before[3] == "growing" and 7 < int(before[1]) <= int(before[2]) and after
    assert str(directory / "rnn-gain-3" / "version_0" / "spectrum.png") in done.stdout
    assert f"tensorboard.main --logdir {directory}" in done.stdout


def test_demo_warns_of_nothing(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    assert "Warning" not in demo[1].stderr


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
