"""What a newcomer runs first: the demo, and the code of the README."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

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
    assert re.search(r"^before training +\+0\.\d+ ± .* chaotic$", done.stdout, re.MULTILINE)
    assert re.search(r"^after training .* (stable|chaotic|undecided)$", done.stdout, re.MULTILINE)
    assert str(directory / "rnn-gain-3" / "version_0" / "spectrum.png") in done.stdout
    assert f"tensorboard.main --logdir {directory}" in done.stdout


def test_demo_warns_of_nothing(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    assert "Warning" not in demo[1].stderr


def test_code_of_the_readme_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 4
    monkeypatch.chdir(tmp_path)
    exec("\n".join(blocks), {})


def test_picture_of_the_readme_is_there_and_small() -> None:
    for picture in re.findall(r"!\[[^]]*\]\((.*?)\)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert (ROOT / picture).stat().st_size < 200_000
