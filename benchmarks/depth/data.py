"""Three tasks that need no download: images, text and a table, each to be sorted into classes.

Images are scikit-learn's handwritten digits. Text is the English documentation that comes with Python, in windows of
twelve characters after which the next one is asked. The table is made by scikit-learn: clusters at the corners of a
cube, several to a class, so that no line parts them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from sklearn.datasets import load_digits, make_classification
from torch import Generator, Tensor

from lightning_lyapunov.bank.tasks.text import ALPHABETS, text

WINDOW = 12
"""Characters that the next one is told from."""


@dataclass(frozen=True)
class Task:
    """Standardised inputs, or indices of characters, with their classes."""

    name: str
    inputs: Tensor
    targets: Tensor
    held_out: tuple[Tensor, Tensor]
    """Inputs and targets of the validation."""
    classes: int

    @property
    def chance(self) -> float:
        """Accuracy of always telling the commonest class."""
        return float(self.held_out[1].bincount().max() / len(self.held_out[1]))

    def batches(self, rows: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Random rows, without end."""
        generator = Generator().manual_seed(seed)
        while True:
            for chosen in torch.randperm(len(self.inputs), generator=generator).split(rows):
                if len(chosen) == rows:
                    yield self.inputs[chosen], self.targets[chosen]


@cache
def task(name: str) -> Task:
    """``images``, ``text`` or ``tabular``."""
    return {"images": images, "text": characters, "tabular": tabular}[name]()


def images() -> Task:
    pixels, digits = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
    pixels = (pixels - pixels.mean()) / pixels.std()
    return _split("images", pixels.float().view(-1, 1, 8, 8), digits, 360)


def characters(train: int = 16_000, held_out: int = 2_000) -> Task:
    """Windows at random places, those of the validation from the last tenth of the text."""
    alphabet = ALPHABETS["prose"]
    letters = torch.tensor([alphabet.index(letter) for letter in text("prose")])
    generator, cut = Generator().manual_seed(0), len(letters) * 9 // 10
    first = torch.randint(cut - WINDOW, (train,), generator=generator)
    last = torch.randint(cut, len(letters) - WINDOW, (held_out,), generator=generator)
    windows = letters[torch.cat([last, first])[:, None] + torch.arange(WINDOW + 1)]
    whole = _split("text", windows[:, :-1], windows[:, -1], held_out, is_mixed=False)
    return Task(whole.name, whole.inputs, whole.targets, whole.held_out, len(alphabet))


def tabular(rows: int = 5_000) -> Task:
    columns, classes = make_classification(
        rows, 20, n_informative=8, n_redundant=4, n_classes=5, n_clusters_per_class=2, class_sep=1.5, flip_y=0.01,
        random_state=0,
    )  # fmt: skip
    inputs, targets = torch.from_numpy(columns).float(), torch.from_numpy(classes).long()
    return _split("tabular", (inputs - inputs.mean(0)) / inputs.std(0), targets, 1_000)


def _split(name: str, inputs: Tensor, targets: Tensor, held_out: int, is_mixed: bool = True) -> Task:
    """The first rows, after mixing, are held out."""
    order = torch.arange(len(inputs))
    if is_mixed:
        order = torch.randperm(len(inputs), generator=Generator().manual_seed(0))
    inputs, targets = inputs[order], targets[order]
    kept = inputs[:held_out], targets[:held_out]
    return Task(name, inputs[held_out:], targets[held_out:], kept, int(targets.max()) + 1)
