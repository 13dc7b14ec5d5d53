"""A gallery across depth: a network that learns, and four with a fault in their blocks, each told, cured and measured.

Trains small deep networks on scikit-learn's handwritten digits, draws what each block does to a gradient, prints what
the diagnosis makes of it, then does what it advises, nothing else, and trains again from the same seed.

python examples/depth_gallery.py                           the pictures and sentences of docs/depth.md: a minute
python examples/depth_gallery.py --quick --output DIR      shorter trainings, written elsewhere
"""

from __future__ import annotations

import argparse
import logging
import math
import textwrap
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_lyapunov import DepthSpectrumCallback
from lightning_lyapunov.figures.depth import figures_of_depth
from lightning_lyapunov.reading.depth_rules import findings

WIDTH, SEED, CLASSES = 32, 2, 10
Layers = Callable[[], list[nn.Module]]


class Branch(nn.Module):
    """x + f(LN(x)), f two linear layers with a ReLU between them."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.inside, self.outside = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        nn.init.normal_(self.outside.weight, std=scale / math.sqrt(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """States ``(B, WIDTH)`` one block later."""
        return x + self.outside(torch.relu(self.inside(self.norm(x))))


def plain(gain: float, depth: int = 30) -> list[nn.Module]:
    """Linear layers with weights from N(0, gain² / WIDTH) and tanh behind each, without skips or norms."""
    layers = [nn.Linear(WIDTH, WIDTH) for _ in range(depth)]
    for layer in layers:
        nn.init.normal_(layer.weight, std=gain / math.sqrt(WIDTH))
    return [nn.Sequential(layer, nn.Tanh()) for layer in layers]


def healthy() -> list[nn.Module]:
    """Twelve blocks with skips."""
    return [Branch() for _ in range(12)]


def with_a_dead_branch(block: int = 7) -> list[nn.Module]:
    """The same, one of which has units that no input switches on."""
    blocks = [Branch() for _ in range(12)]
    nn.init.constant_(blocks[block - 1].inside.bias, -20.0)
    return list(blocks)


def with_idle_blocks(deep: int = 24, loud: int = 8) -> list[nn.Module]:
    """Twenty-four, the first eight of which write so much into the state that later ones hardly change it."""
    return [Branch(8.0 if place < loud else 0.3) for place in range(deep)]


class Digits(pl.LightningModule):
    """An image of 64 pixels, a row of blocks, and the ten digits."""

    def __init__(self, layers: list[nn.Module], rate: float = 1e-3) -> None:
        super().__init__()
        self.first = nn.Linear(64, WIDTH)
        self.layers = nn.ModuleList(layers)
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES))
        self.rate = rate

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, CLASSES)`` of images ``(B, 64)``."""
        state = self.first(images)
        for layer in self.layers:
            state = layer(state)
        return self.head(state)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """One batch of images and digits."""
        images, digits = batch
        return nn.functional.cross_entropy(self(images), digits)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Share of the digits named rightly."""
        images, digits = batch
        self.log("val/accuracy", (self(images).argmax(-1) == digits).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.rate)


@dataclass(frozen=True)
class Exhibit:
    """A network, the state that the diagnosis should find, and what cures it."""

    name: str
    make: Layers
    state: str
    cure: Layers | None = None
    done: str = ""


EXHIBITS = [
    Exhibit("healthy", healthy, "passes"),
    Exhibit("exploding", lambda: plain(4.0), "explodes", lambda: plain(1.1), "the gain of the weights lowered to 1.1"),
    Exhibit("vanishing", lambda: plain(0.5), "vanishes", lambda: plain(1.1), "the gain of the weights raised to 1.1"),
    Exhibit("dead-branch", with_a_dead_branch, "dead_branch", healthy, "the block initialised anew"),
    Exhibit(
        "idle-late",
        with_idle_blocks,
        "idle_late",
        lambda: with_idle_blocks(deep=8),
        "the last sixteen blocks left out",
    ),
]


@dataclass(frozen=True)
class Run:
    """A training that is over."""

    callback: DepthSpectrumCallback
    accuracy: float
    seconds: float


def trained(make: Layers, epochs: int) -> Run:
    """Train a network and watch its blocks."""
    pl.seed_everything(SEED, verbose=False)
    model, depth = Digits(make()), DepthSpectrumCallback(max_overhead=None)
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[depth],
    )  # fmt: skip
    train, val = data()
    start = time.perf_counter()
    trainer.fit(model, train, val)
    return Run(depth, float(trainer.callback_metrics["val/accuracy"]), time.perf_counter() - start)


def data() -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Digits to learn from and others to be asked about, pixels of mean 0 and variance 1."""
    images, digits = (torch.as_tensor(values) for values in load_digits(return_X_y=True))
    images = ((images - images.mean()) / images.std()).float()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    sets = [TensorDataset(images[part], digits[part]) for part in (order[:1437], order[1437:])]
    return DataLoader(sets[0], 64, shuffle=True), DataLoader(sets[1], 360)


def lines_of(run: Run, at: int = -1) -> list[str]:
    """What the diagnosis says of a run, as it stood at one of its measurements."""
    history = list(run.callback.history)
    upto = history if at == -1 else history[: at + 1]
    return [f"[{finding.state}] {finding.text}" for finding in findings(upto)]


def main() -> None:
    """Train, draw, say, cure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="six epochs each, not fifteen")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "docs" / "depth-gallery")
    args = parser.parse_args()

    warnings.filterwarnings("ignore", ".*does not have many workers.*|.*num_workers.*|.*logging interval.*")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)  # for so small a network threads cost more than they bring
    args.output.mkdir(parents=True, exist_ok=True)
    epochs = 6 if args.quick else 15
    for exhibit in EXHIBITS:
        run = trained(exhibit.make, epochs)
        figures_of_depth(run.callback.history)["depth"].savefig(args.output / f"{exhibit.name}.png")
        first, last = lines_of(run, 0), lines_of(run)
        said = [f"accuracy {run.accuracy:.0%}, by chance {1 / CLASSES:.0%}", "before the first update:", *first]
        said += ["after training:", *last]
        if exhibit.cure is not None:
            cured = trained(exhibit.cure, epochs)
            said.append(
                f"cure: {exhibit.done}; accuracy {run.accuracy:.0%} before, {cured.accuracy:.0%} after; "
                f"{run.seconds:.0f} s of training before, {cured.seconds:.0f} s after"
            )
            said.append(lines_of(cured)[0])
        text = "\n".join(textwrap.fill(line, 78, subsequent_indent="    ") for line in said)
        (args.output / f"{exhibit.name}.txt").write_text(text + "\n", encoding="utf-8")
        print(f"\n{exhibit.name}\n{text}")
    print(f"\nPictures  {args.output}")


if __name__ == "__main__":
    main()
