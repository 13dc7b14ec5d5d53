"""Files are there whole or not at all. Oracle: what a reader sees at any moment is one of the contents written."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightning_lyapunov.files import write_whole

SIZE = 2**22
WRITER = """
import sys
from pathlib import Path
from lightning_lyapunov.files import write_whole
letters = sys.argv[2].encode()
while True:
    for i in range(len(letters)):
        write_whole(Path(sys.argv[1]), letters[i : i + 1] * {size})
"""


def is_whole(content: bytes) -> bool:
    return len(content) == SIZE and content == content[:1] * SIZE


def test_content_and_directory_are_there(tmp_path: Path) -> None:
    path = write_whole(tmp_path / "a" / "b" / "file.bin", b"content")
    assert path.read_bytes() == b"content"
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]


def test_what_was_there_stays_where_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_whole(tmp_path / "file.bin", b"old")

    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, b"new content")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file.bin"]


@pytest.mark.skipif(os.name == "nt", reason="signals are those of POSIX")
def test_killed_writers_leave_a_whole_file(tmp_path: Path) -> None:
    """Two processes write in turn to one path, and each is killed at some moment."""
    path, script = tmp_path / "file.bin", WRITER.format(size=SIZE)
    writers = [subprocess.Popen([sys.executable, "-c", script, str(path), letters]) for letters in ("abc", "xyz")]
    while not path.exists():
        time.sleep(0.01)
    for writer, pause in zip(writers, (0.05, 0.33), strict=True):
        for _ in range(10):
            assert is_whole(path.read_bytes())
        time.sleep(pause)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        assert is_whole(path.read_bytes())
