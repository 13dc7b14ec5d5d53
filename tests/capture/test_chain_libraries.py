"""Designs met in other libraries, against what their authors call blocks; the libraries are in ``make clients``."""

from itertools import pairwise

import pytest
import torch
from test_chain_finder import found
from torch import Tensor, nn

from lightning_lyapunov import depth_spectrum

IMAGE, TOKENS = (2, 3, 16, 16), (2, 6, 8)


class Wrapped(nn.Sequential):
    """A convolution with its norm and activation, as monai's Convolution."""

    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__(nn.Conv2d(before, after, 3, stride, 1), nn.InstanceNorm2d(after, affine=True), nn.PReLU())


class Plain(nn.Module):
    """Two of them without a skip, as DynUNet's block."""

    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.one, self.two = Wrapped(before, after, stride), Wrapped(after, after)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x))


class Around(nn.Module):
    """Two of them with a skip, as SegResNet's block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = Wrapped(width, width), Wrapped(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(self.one(x))


class Features(nn.Module):
    """Returns a list that begins with the state of its own stem, as the encoder of FlexibleUNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act, self.pool = nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2)
        self.layers = nn.ModuleList(Around(4) for _ in range(3))

    def forward(self, x: Tensor) -> list[Tensor]:
        states = [self.act(self.stem(x))]
        x = self.pool(states[0])
        for layer in self.layers:
            x = layer(x)
            states.append(x)
        return states


class Decoding(nn.Module):
    """A network around such an encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = Features(), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, *_, last = self.encoder(x)
        return self.head(torch.cat([first, nn.functional.interpolate(last, scale_factor=2)], 1))


class Staged(nn.Module):
    """Stages of two blocks on tokens, between which images are made of them, as in Segformer."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, 4, 8, 16]
        self.embed = nn.ModuleList(nn.Conv2d(*pair, 2, 2) for pair in pairwise(widths))
        self.stages = nn.ModuleList(nn.Sequential(*(Token(width) for _ in range(2))) for width in widths[1:])

    def forward(self, x: Tensor) -> Tensor:
        for embed, stage in zip(self.embed, self.stages, strict=True):
            x = embed(x)
            x = stage(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)
        return x


class Token(nn.Module):
    """A block of tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.mid = nn.Linear(2 * width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.mid(self.up(self.norm(x))))


class Again(nn.Module):
    """A projection, and one layer in a group called four times, as in ALBERT."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.group = nn.Linear(8, 4), nn.Sequential(Token(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(x)
        for _ in range(4):
            x = self.group(x)
        return x


class Up(nn.Module):
    """A block of a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.mix(torch.cat([x, skip], 1))


class Skipping(nn.Module):
    """A decoder whose skips pass a norm outside any module on their way, as in SwinUNETR."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.blocks = nn.ModuleList(Up() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        skip = nn.functional.layer_norm(x, x.shape[1:])
        x = self.down(x)
        for block in self.blocks:
            x = block(x, skip)
        return x


def test_layers_in_a_wrapping_are_no_blocks_beside_blocks() -> None:
    bodies = [Wrapped(3, 4), Around(4), Wrapped(4, 8, 2), Around(8), Wrapped(8, 8, 2), Around(8), Wrapped(8, 2)]
    plan = found(nn.Sequential(*bodies), IMAGE)
    assert plan.names == ["1", "2", "3", "4", "5"]
    assert plan.kinds == ["Around", "Wrapped", "Around", "Wrapped", "Around"]
    assert [link.is_block for link in plan.links] == [True, False, True, False, True]


def test_two_layers_in_a_wrapping_are_no_stage() -> None:
    assert found(nn.Sequential(Plain(3, 4), Plain(4, 8, 2), Plain(8, 8, 2)), IMAGE).names == ["0", "1", "2"]


def test_rows_of_layers_in_a_wrapping_are_a_chain() -> None:
    stages = [nn.Sequential(Wrapped(3, 4), Wrapped(4, 4)), nn.Sequential(Wrapped(4, 4), Wrapped(4, 4))]
    assert found(nn.Sequential(*stages), IMAGE).names == ["0.0", "0.1", "1.0", "1.1"]


@pytest.mark.parametrize("mode", ["training", "evaluating"])
def test_an_encoder_that_returns_its_own_states_is_seen_through(mode: str) -> None:
    plan = found(Decoding(), IMAGE, mode=mode)
    assert plan.names == ["encoder.layers.0", "encoder.layers.1", "encoder.layers.2"]


def test_layers_inside_blocks_are_no_chain_where_the_blocks_are_none() -> None:
    with pytest.raises(ValueError, match=r"etween stages.0.1 and stages.1.0 something outside any module changes"):
        found(Staged(), IMAGE)
    ends = nn.Sequential(nn.Conv2d(16, 8, 1), nn.Flatten(2), Token(4), Token(4))  # layers, but made of such blocks
    with pytest.raises(ValueError, match=r"found no three blocks in a row"):
        found(nn.Sequential(Staged(), ends), IMAGE)
    assert found(Staged(), IMAGE, "stages.1").names == ["stages.1.0", "stages.1.1"]


def test_a_layer_called_again_and_again_keeps_its_last_call() -> None:
    for name in ("", "group", "group.0"):
        plan = found(nn.Sequential(Again()), TOKENS, f"0.{name}".rstrip("."))
        assert len(plan.names) == 4 and plan.names[-1].endswith("#4")


@pytest.mark.parametrize("mode", ["training", "evaluating", "inference"])
def test_skips_of_unknown_origin_are_told(mode: str) -> None:
    plan = found(Skipping(), IMAGE, "blocks", mode=mode)
    assert plan.names == list(plan.conditional) == ["blocks.0", "blocks.1", "blocks.2"]


def test_a_chain_of_layers_is_kept_at_once_beside_blocks_of_a_kind() -> None:
    """Three blocks side by side do not keep the trunk before them from being recorded."""

    class Trunk(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.Sequential(*(part for _ in range(4) for part in (nn.Linear(32, 32), nn.Tanh())))
            self.heads = nn.ModuleList(nn.Sequential(nn.Linear(32, 2), nn.Tanh(), nn.Linear(2, 2)) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.trunk(x)
            return sum(head(x) for head in self.heads)

    spectrum = depth_spectrum(Trunk(), torch.randn(2, 32))
    assert spectrum.names[:4] == ("trunk.0", "trunk.2", "trunk.4", "trunk.6")


def test_a_cache_that_matters_is_named() -> None:
    class Cache:
        def __init__(self) -> None:
            self.held = torch.ones(2, 6, 8)

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor, cache: Cache) -> Tensor:
            return x + self.down(self.up(x + cache.held))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Layer() for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            cache = Cache()
            for layer in self.layers:
                x = layer(x, cache)
            return x

    with pytest.raises(ValueError, match=r"layers\.0 \(Layer\) cannot be called again .*, leaving out Cache: "):
        depth_spectrum(Net(), torch.randn(TOKENS))
