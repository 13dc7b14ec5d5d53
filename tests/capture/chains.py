"""Small networks of the usual designs, written as their authors write them, to look for chains in."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def mlp(width: int = 8, depth: int = 3) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 4))


class BasicBlock(nn.Module):
    """Of a ResNet, with the sum and the activation in place."""

    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.downsample: nn.Module | None = None
        if stride > 1 or before != after:
            self.downsample = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        if self.downsample is not None:
            shortcut = self.downsample(shortcut)
        x += shortcut
        return torch.relu_(x)


class ResNet(nn.Module):
    """Four stages of two blocks."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(2)
        widths = [width, width, 2 * width, 3 * width, 4 * width]
        for stage in range(4):
            blocks = [BasicBlock(widths[stage], widths[stage + 1], 1 if stage == 0 else 2)]
            blocks.append(BasicBlock(widths[stage + 1], widths[stage + 1]))
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[-1], 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in range(4):
            x = getattr(self, f"layer{stage + 1}")(x)
        return self.fc(self.avgpool(x).flatten(1))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None, rotary: tuple[Tensor, Tensor] | None = None) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        if rotary is not None:
            cos, sin = (table.unsqueeze(1) for table in rotary)
            q, k = (part * cos + part.roll(1, -1) * sin for part in (q, k))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.drop(self.proj(out.transpose(1, 2).reshape(batch, tokens, width)))


class Mlp(nn.Module):
    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.act, self.drop = nn.GELU(), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.act(self.fc1(x))))


class PreNorm(nn.Module):
    """A transformer's block: ``x + attn(norm(x))``, ``x + mlp(norm(x))``."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = Attention(width, dropout=dropout), Mlp(width, dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None, rotary: tuple[Tensor, Tensor] | None = None) -> Tensor:
        x = x + self.attn(self.norm1(x), mask, rotary)
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Patches, a class token, positions, dropout."""

    def __init__(self, width: int = 8, depth: int = 4, dropout: float = 0.1) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, 4, 4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, 5, width) * 0.1)
        self.pos_drop = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(PreNorm(width, dropout) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        return self.head(self.norm(self.blocks(self.pos_drop(x)))[:, 0])


class Rotary(nn.Module):
    """Layers in a list, as the large language models have them: keywords, a table of rotations, a cache."""

    def __init__(self, width: int = 8, depth: int = 3, *, cached: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.layers = nn.ModuleList(RotaryLayer(width, place) for place in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 11)
        self.cached = cached

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.embed(ids)
        angles = torch.arange(ids.shape[1]).unsqueeze(1) / 10 ** torch.arange(4.0)
        rotary = (angles.cos().expand(len(ids), -1, -1), angles.sin().expand(len(ids), -1, -1))
        self.cache = Cache() if self.cached else None
        for layer in self.layers:
            x = layer(x, attention_mask=mask, rotary=rotary, past_key_values=self.cache, use_cache=self.cached)[0]
        return self.head(self.norm(x))


class Cache:
    """Keys and values that grow with each call."""

    def __init__(self) -> None:
        self.seen: dict[int, Tensor] = {}

    def update(self, place: int, keys: Tensor) -> Tensor:
        self.seen[place] = torch.cat([self.seen[place], keys], 1) if place in self.seen else keys
        return self.seen[place]


class RotaryLayer(nn.Module):
    def __init__(self, width: int, place: int) -> None:
        super().__init__()
        self.place = place
        self.block, self.mix = PreNorm(width), nn.Linear(width, width)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        rotary: tuple[Tensor, Tensor] | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
    ) -> tuple[Tensor, ...]:
        keys = self.mix(hidden_states)
        assert use_cache == (past_key_values is not None)
        if past_key_values is not None:
            keys = past_key_values.update(self.place, keys)
        mask = None if attention_mask is None else attention_mask[:, None, None, :].bool()
        out = self.block(hidden_states, mask, rotary) + keys.cumsum(1) / 10
        return (out, keys)


class DoubleConv(nn.Sequential):
    def __init__(self, before: int, after: int) -> None:
        super().__init__(
            nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.Conv2d(after, after, 3, padding=1), nn.ReLU()
        )


class Up(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.up, self.conv = nn.ConvTranspose2d(before, after, 2, 2), DoubleConv(2 * after, after)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.conv(torch.cat([skip, self.up(x)], 1))


class UNet(nn.Module):
    """Skips as arguments of the decoder's blocks."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(4)]
        self.encoder = nn.ModuleList(DoubleConv(b, a) for b, a in zip([3, *widths], widths, strict=False))
        self.pool = nn.MaxPool2d(2)
        self.decoder = nn.ModuleList(Up(b, a) for b, a in zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level, block in enumerate(self.encoder):
            x = block(x if level == 0 else self.pool(x))
            skips.append(x)
        for block, skip in zip(self.decoder, skips[-2::-1], strict=True):
            x = block(x, skip)
        return self.head(x)


class DenseLayer(nn.Module):
    def __init__(self, before: int, growth: int) -> None:
        super().__init__()
        self.norm, self.relu = nn.BatchNorm2d(before), nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(before, growth, 3, padding=1)

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.conv(self.relu(self.norm(torch.cat(features, 1))))


class DenseBlock(nn.ModuleDict):
    def __init__(self, before: int, growth: int, layers: int) -> None:
        super().__init__()
        for layer in range(layers):
            self[f"layer{layer}"] = DenseLayer(before + layer * growth, growth)

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.values():
            features.append(layer(features))
        return torch.cat(features, 1)


class Transition(nn.Sequential):
    def __init__(self, before: int, after: int) -> None:
        super().__init__(nn.BatchNorm2d(before), nn.ReLU(inplace=True), nn.Conv2d(before, after, 1), nn.AvgPool2d(2))


class DenseNet(nn.Module):
    def __init__(self, growth: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))
        width = 4
        for stage in range(4):
            self.features.add_module(f"block{stage}", DenseBlock(width, growth, 2))
            width += 2 * growth
            if stage < 3:
                self.features.add_module(f"transition{stage}", Transition(width, width // 2))
                width //= 2
        self.classifier = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class NextBlock(nn.Module):
    """Of a ConvNeXt."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.norm(self.conv_dw(x).permute(0, 2, 3, 1))
        return self.mlp(x).permute(0, 3, 1, 2) + shortcut


class Stage(nn.Module):
    def __init__(self, before: int, after: int, depth: int) -> None:
        super().__init__()
        is_same = before == after
        self.downsample: nn.Module = (
            nn.Identity() if is_same else nn.Sequential(nn.GroupNorm(1, before), nn.Conv2d(before, after, 2, 2))
        )
        self.blocks = nn.Sequential(*(NextBlock(after) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class ConvNeXt(nn.Module):
    """Stages with a downsampling before all but the first."""

    def __init__(self, depths: tuple[int, ...] = (2, 2, 3, 2)) -> None:
        super().__init__()
        widths = [4, 4, 6, 8, 10]
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.GroupNorm(1, 4))
        self.stages = nn.Sequential(*(Stage(*widths[i : i + 2], depth) for i, depth in enumerate(depths)))
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


class SelfAttentionPart(nn.Module):
    """Of a T5: with its skip, and a bias for positions that the first layer makes for all."""

    def __init__(self, width: int, *, has_bias: bool) -> None:
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(width), Attention(width)
        self.bias = nn.Embedding(8, 2) if has_bias else None

    def forward(self, x: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if bias is None:
            places = torch.arange(x.shape[1])
            assert self.bias is not None
            bias = self.bias((places[:, None] - places).clamp(-3, 4) + 3).permute(2, 0, 1)[None]
        return x + self.attn(self.norm(x), bias), bias


class FeedForwardPart(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(width), Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))


class T5Block(nn.Module):
    def __init__(self, width: int, *, has_bias: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList([SelfAttentionPart(width, has_bias=has_bias), FeedForwardPart(width)])

    def forward(self, x: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, bias = self.layer[0](x, bias)
        return self.layer[1](x), bias


class T5(nn.Module):
    def __init__(self, width: int = 8, depth: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.block = nn.ModuleList(T5Block(width, has_bias=place == 0) for place in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, ids: Tensor) -> Tensor:
        x, bias = self.embed(ids), None
        for block in self.block:
            x, bias = block(x, bias)
        return self.norm(x)


class Residual(nn.Module):
    def forward(self, out: Tensor, skip: Tensor) -> Tensor:
        return out + skip


class SkipsOutside(nn.Module):
    """As x_transformers has them: the skip goes round a block, and is added by a module of its own."""

    def __init__(self, width: int = 8, depth: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleList([nn.LayerNorm(width), Mlp(width), Residual()]) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for norm, mlp, add in self.layers:  # type: ignore[misc]
            x = add(mlp(norm(x)), x)
        return x


class Tied(nn.Module):
    """One layer again and again, as in an ALBERT."""

    def __init__(self, width: int = 8, times: int = 4) -> None:
        super().__init__()
        self.start, self.layer, self.times = nn.Linear(width, width), PreNorm(width), times

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        for _ in range(self.times):
            x = self.layer(x)
        return x


class TwoStreams(nn.Module):
    """Blocks that hand on two states."""

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.f, self.g = Mlp(width), Mlp(width)

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            x = x + self.f(y)
            return x, y + self.g(x)

    def __init__(self, width: int = 8, depth: int = 4) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Block(width) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        one, other = x.chunk(2, -1)
        for block in self.blocks:
            one, other = block(one, other)
        return one + other


class Changing(nn.Module):
    """A block that changes its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.act, self.linear = nn.ReLU(inplace=True), nn.Linear(width, width)

        self.more = nn.Sequential(nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.more(self.linear(self.act(x))) + x


class Remembering(nn.Module):
    """A block that keeps a state of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = Mlp(width)
        self.last: Any = 0.0

    def forward(self, x: Tensor) -> Tensor:
        out = x + self.mlp(x) + self.last
        self.last = 1.0 + self.last
        return out


def encoder(width: int = 8, depth: int = 3, **options: Any) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(width, 2, 2 * width, **options)
    return nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
