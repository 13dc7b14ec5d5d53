"""Tasks of text, which is read letter by letter: the next one is asked."""

from __future__ import annotations

import hashlib
import importlib.util
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn.functional import one_hot

from lightning_lyapunov.bank.tasks.sequences import at_the_end, followed_by_nothing, windows
from lightning_lyapunov.bank.tasks.task import Batch

Source = Literal["prose", "code"]
"""Which text: English documentation that comes with Python, or source code of its library."""

ALPHABETS: dict[Source, str] = {
    "prose": " abcdefghijklmnopqrstuvwxyz.,-",
    "code": "\n abcdefghijklmnopqrstuvwxyz()[]:=_.,#'",
}
"""The characters that are kept."""

MODULES = ("argparse", "difflib", "doctest", "pdb", "tarfile", "typing")
"""Whose source is read."""


@cache
def text(source: Source) -> str:
    """What the tasks ``chars`` read, in lower case; every run of spaces and of other characters is one space.

    It changes a little from one Python to the next.
    """
    if source == "prose":
        from pydoc_data.topics import topics

        raw = " ".join(topics[key] for key in sorted(topics))
    else:
        specs = [importlib.util.find_spec(module) for module in MODULES]
        files = [Path(spec.origin) for spec in specs if spec is not None and spec.origin is not None]
        raw = "\n".join(file.read_text(encoding="utf-8") for file in files)
    kept = "".join(letter if letter in ALPHABETS[source] else " " for letter in raw.lower())
    return " ".join(part for part in kept.split(" ") if part)


def text_sha256(source: Source) -> str:
    """Hash of :func:`text`, which tells whether two banks read the same one."""
    return hashlib.sha256(text(source).encode()).hexdigest()


def chars(batch: int, generator: Generator, held_out: bool, *, source: Source, steps: int, wait: int = 0) -> Batch:
    """Characters of a text; the next one is asked at every step.

    Or only once, after a ``wait`` of so many steps in which nothing comes in.
    """
    window = windows(_letters(source), steps + 1, batch, generator, held_out)[..., 0].long()
    inputs = followed_by_nothing(one_hot(window[:-1], len(ALPHABETS[source])).float(), wait)
    return Batch(inputs, at_the_end(window[-1], steps + wait) if wait else window[1:])


@cache
def _letters(source: Source) -> Tensor:
    """The text as indices into its alphabet, ``(L, 1, 1)``."""
    place = {letter: index for index, letter in enumerate(ALPHABETS[source])}
    return torch.tensor([place[letter] for letter in text(source)], dtype=torch.uint8)[:, None, None]
