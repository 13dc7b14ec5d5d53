"""Files are there whole or not at all. Oracle: what a reader sees at any moment is one of the contents written."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lightning_lyapunov.files import ABANDONED, write_whole

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


def test_content_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a power failure could leave the name with half of it."""
    order: list[str] = []
    sync, rename = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        order.append(f"{os.fstat(descriptor).st_size} bytes")
        sync(descriptor)

    def named(path: Path, target: Path) -> Path:
        order.append("named")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", named)
    write_whole(tmp_path / "file.bin", b"content")
    assert order == ["7 bytes", "named"]


def test_what_killed_writers_left_is_removed_an_hour_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not sooner, for it may be in work; and nothing else that is hidden."""
    (tmp_path / ".hidden").touch()
    os.utime(tmp_path / ".hidden", (0, 0))
    with monkeypatch.context() as patch:  # a killed writer neither renames nor tidies up
        patch.setattr(Path, "replace", lambda path, target: path)
        patch.setattr(Path, "unlink", lambda path, missing_ok=False: None)
        write_whole(tmp_path / "killed.bin", b"content")
    (left,) = set(os.listdir(tmp_path)) - {".hidden"}
    for age, expected in ((0.0, {left}), (ABANDONED - 60, {left}), (ABANDONED + 60, set())):
        os.utime(tmp_path / left, (time.time() - age,) * 2)
        write_whole(tmp_path / "other.bin", b"content")
        assert set(os.listdir(tmp_path)) == {".hidden", "other.bin"} | expected


@pytest.mark.skipif(os.name == "nt", reason="links and pipes are those of POSIX")
def test_links_and_pipes_stay(tmp_path: Path) -> None:
    """Whoever writes to /dev/null must not replace it by a file."""
    (tmp_path / "link").symlink_to(tmp_path / "to" / "file.bin")
    assert write_whole(tmp_path / "link", b"content") == tmp_path / "link"
    assert (tmp_path / "link").is_symlink() and (tmp_path / "to" / "file.bin").read_bytes() == b"content"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_whole(tmp_path / "pipe", b"content")
    assert os.read(reader, 99) == b"content"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo() and len(os.listdir(tmp_path)) == 3


def test_threads_that_write_one_path_do_not_mix(tmp_path: Path) -> None:
    contents = [bytes([65 + i]) * 2**16 for i in range(4)]

    def write(content: bytes) -> None:
        for _ in range(25):
            write_whole(tmp_path / "file.bin", content)
            assert (tmp_path / "file.bin").read_bytes() in contents

    with ThreadPoolExecutor(len(contents)) as pool:
        list(pool.map(write, contents))
    assert os.listdir(tmp_path) == ["file.bin"]


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
