"""Small deep networks in Lightning: a ViT with dropout, a ResNet with batch normalisation, one that also recurs."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

CLASSES = 3


class Attending(nn.Module):
    """A pre-LN transformer's block."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, width))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unsqueeze(1).chunk(3, -1)
        x = x + self.drop(self.proj(F.scaled_dot_product_attention(q, k, v).squeeze(1)))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Four patches of an image."""

    def __init__(self, width: int = 8, depth: int = 3, dropout: float = 0.2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(2, width, 4, 4)
        self.blocks = nn.Sequential(*(Attending(width, dropout) for _ in range(depth)))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.patches(x).flatten(2).mT).mean(1))


class Convolving(nn.Module):
    """A residual block, with the sum in place."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = nn.Conv2d(after, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)
        self.skip = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.skip(x)
        x = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        x += shortcut
        return torch.relu_(x)


class ResNet(nn.Module):
    """Three blocks, of two widths."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 3, 3, 2, padding=1), nn.BatchNorm2d(3))
        self.blocks = nn.Sequential(Convolving(3, 3), Convolving(3, 3), Convolving(3, 4))
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Recurring(nn.Module):
    """Reads the rows of an image with a GRU, and what that says with blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(16, 8, batch_first=True)
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3)))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.rnn(x.transpose(1, 2).flatten(2))[0][:, -1]))


class Classifier(pl.LightningModule):
    """Tells images apart.

    Args:
        net: A ViT if None.
        lr: Learning rate.
        noise: On the images in training, from the global generator.
    """

    def __init__(self, net: nn.Module | None = None, lr: float = 1e-2, noise: float = 0.1) -> None:
        super().__init__()
        self.net, self.lr, self.noise = net if net is not None else ViT(), lr, noise
        self.batches: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.batches.append(batch[0].clone())
        loss = self.loss((batch[0] + self.noise * torch.randn_like(batch[0]), batch[1]))
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), self.lr)


def images(count: int = 32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noise ``(count, 2, 8, 8)`` and classes."""
    x = torch.randn(count, 2, 8, 8, generator=torch.Generator().manual_seed(seed))
    return x, torch.arange(count) % CLASSES


def loader(count: int = 32, batch: int = 8, seed: int = 0, *, shuffle: bool = False) -> DataLoader[Any]:
    """Four batches in order, unless asked otherwise."""
    return DataLoader(TensorDataset(*images(count, seed)), batch_size=batch, shuffle=shuffle)
