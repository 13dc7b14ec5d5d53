"""The command line in a real terminal: what the Tab key completes in bash, and messages that fit its width."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from terminal import Command

from lightning_lyapunov.cli import main


@pytest.fixture
def script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    pytest.importorskip("shtab")
    assert main(["completion", "bash"]) == 0
    (tmp_path / "complete.sh").write_text(capsys.readouterr().out, encoding="utf-8")
    (tmp_path / "zeros.npy").touch()
    (tmp_path / "last.ckpt").touch()
    return tmp_path / "complete.sh"


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_tab_completes_commands_options_choices_and_files(script: Path) -> None:
    shell = Command(["bash", "--norc", "--noprofile", "-i"], cwd=script.parent, env={"PS1": "> ", "HOME": "/"})
    shell.read("> $")
    shell.type("source complete.sh\n")
    shell.read("> $")
    for typed, completed in {
        "sp": "spectrum ",
        "bank bu": "bank build ",
        "score --perf": "score --performance ",
        "spectrum --trust": "spectrum --trust-pickle ",
        "spectrum --format j": "spectrum --format json ",
        "spectrum last.ckpt ze": "spectrum last.ckpt zeros.npy ",
        "report last.ckpt ze": "report last.ckpt zeros.npy ",
        "completion z": "completion zsh ",
    }.items():
        shell.type(f"lightning-lyapunov {typed}\t")
        assert shell.read(f"{completed}$", seconds=30).endswith(f"lightning-lyapunov {completed}"), shell.seen
        shell.type("\x15")  # away with the line
        shell.read("> $", seconds=2)
    shell.type("exit\n")
    shell.read()
    assert shell.close() == 0


def test_messages_fit_the_terminal_and_end_as_sentences(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(json.dumps([-0.1, -0.5]), encoding="utf-8")
    words = [sys.executable, "-m", "lightning_lyapunov", "score", "list.json", "--updates", "1000000"]
    score = Command(words, columns=60, cwd=tmp_path)
    lines = score.read().splitlines()
    assert score.close() == 0
    told = lines[next(i for i, line in enumerate(lines) if line.startswith("lightning-lyapunov: ")) :]
    assert max(map(len, told)) <= 60
    sentences = " ".join(line.strip() for line in told).split("lightning-lyapunov: ")[1:]
    assert [sentence.strip()[-1] for sentence in sentences] == [".", "."]
    assert "do not rely" in sentences[0] and "--performance" in sentences[1]


def test_without_shtab_its_install_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert capsys.readouterr().err.endswith("pip install shtab brings it.\n")
