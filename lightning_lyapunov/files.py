"""Files that are there whole or not at all, and tensors that are read as they were written or refused."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

ABANDONED = 3600.0
"""Seconds after which an unfinished file is taken for that of a writer that was killed: none takes nearly as long."""
LARGEST = 2**28
"""Bytes of a file of tensors at most, forty times the bank that ships: a larger one is not even read."""
_UNFINISHED, _DIGEST = ".lightning_lyapunov-", "sha256"


def write_whole(path: Path, content: bytes) -> Path:
    """Write a file, its directory too if need be.

    Whoever looks sees what was there before or all of what is there now, also where the process is killed meanwhile.
    The content is on the disk before it gets its name, so the same holds where the power fails; what was written in
    the last moments before may then be gone, but not in part. Threads, processes and machines that write the same path
    do not mix: the last one stays. One that is killed leaves a hidden file beside it, which a later write into the
    directory removes once it is an hour old: before, it may be that of another machine that shares the disk. Links
    stay, and what they lead to is written; so do devices and pipes, such as ``/dev/null``.

    Returns:
        The path.
    """
    place = path.resolve()
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists() and not place.is_file():
        place.write_bytes(content)
        return path
    _sweep(place.parent)
    unfinished = place.with_name(f"{_UNFINISHED}{uuid.uuid4().hex}")
    try:
        unfinished.write_bytes(content)
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        unfinished.replace(place)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _sweep(directory: Path) -> None:
    for unfinished in directory.glob(f"{_UNFINISHED}*"):
        with contextlib.suppress(OSError):  # somebody else was faster, or it is not ours to remove
            if time.time() - unfinished.stat().st_mtime > ABANDONED:
                unfinished.unlink()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """Write one safetensors file, the same bytes for the same content, with a sha256 of the content in its metadata.

    Returns:
        The path.
    """
    # Cloned, since safetensors refuses tensors that share memory.
    header, data = _parts(save({key: value.contiguous().clone() for key, value in tensors.items()}))
    whole = {"__metadata__": {**metadata, _DIGEST: _digest(metadata, header, data)}, **header}
    text = json.dumps(whole, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    return write_whole(path, len(text).to_bytes(8, "little") + text + data)


@contextlib.contextmanager
def reading(path: Path, format: str, sha256: str | None = None) -> Iterator[tuple[dict[str, Tensor], dict[str, str]]]:
    """Tensors and metadata that :func:`write_tensors` wrote; nothing in the file is executed.

    Whatever is wrong with them, here or found in the body of the ``with``, is told as a ``ValueError`` that names the
    file, and no more memory is taken than a few times the size of the file.

    Args:
        path: The file.
        format: What its metadata must say, under ``"format"`` or as a key.
        sha256: Digest of the whole file, if known; asked of files that hold none, which older versions wrote.

    Raises:
        OSError: If there is no such file, or it cannot be read.
        ValueError: If the file is of another format, or not as it was written.
    """
    size = path.stat().st_size
    try:
        if size > LARGEST:
            raise ValueError(f"{size:,} bytes are more than the {LARGEST:,} of any such file")
        content = path.read_bytes()
        tensors = load(content)
        header, data = _parts(content)
        metadata = header.pop("__metadata__", {})
        if format not in (metadata.get("format"), *metadata):
            raise ValueError(f"it says {metadata.get('format') or ', '.join(metadata) or 'nothing'}")
        digest = metadata.pop(_DIGEST, None)
        if digest is None:
            written, found = sha256, hashlib.sha256(content).hexdigest()
        else:
            written, found = digest, _digest(metadata, header, data)
        if written not in (None, found):
            raise ValueError(f"its content has the sha256 {found}, not {written}")
        yield tensors, metadata
    except OSError:
        raise
    except Exception as error:  # whatever a hostile file makes a parser raise
        raise ValueError(
            f"path must be a file of format {format}; {path} is none, or not as it was written: {error}. "
            "Copy it again from where it came, or make it anew."
        ) from error


def require(tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
    """Refuse tensors that are not exactly those expected.

    Raises:
        ValueError: Naming the first that is missing, not expected, or of another type or shape.
    """
    found = {key: (value.dtype, tuple(value.shape)) for key, value in tensors.items()}
    for key in sorted(found.keys() | expected.keys()):
        if found.get(key) != expected.get(key):
            raise ValueError(f"{key} must be {expected.get(key, 'left out')}; got {found.get(key, 'nothing')}")


def _parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end], object_pairs_hook=_unique), content[end:]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; of a key that comes twice, parsers see one or the other."""
    if len(keys := dict(pairs)) < len(pairs):
        raise ValueError("a key of its header comes twice")
    return keys


def _digest(metadata: Mapping[str, str], header: Mapping[str, Any], data: bytes) -> str:
    """Of what is said, however it is spelt."""
    said = json.dumps([metadata, header], sort_keys=True).encode()
    return hashlib.sha256(said + data).hexdigest()
