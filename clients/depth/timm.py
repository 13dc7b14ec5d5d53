"""timm: image models, each on small images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from clients.depth.checks import Client, Model


def _named(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import timm

        return timm.create_model(name, num_classes=5, **options)

    return make


def _vgg() -> nn.Module:
    from timm.models.vgg import VGG

    widths = (8, "M", 16, "M", 32, 32, "M", 64, 64, "M", 64, 64, "M")
    return VGG(widths, num_classes=5, mlp_ratio=0.01, norm_layer=nn.BatchNorm2d)


def _mixer() -> nn.Module:
    from timm.models.mlp_mixer import MlpMixer

    return MlpMixer(num_classes=5, img_size=32, patch_size=8, num_blocks=4, embed_dim=32)


def _client(make: Callable[[], nn.Module], size: int, chain: dict[str, int], ends: tuple[str, str]) -> Client:
    return Client(make, lambda: {"x": torch.randn(2, 3, size, size)}, chain, ends)


MODELS: dict[str, Model] = {
    "resnet18": _client(
        _named("resnet18", channels=(8, 16, 32, 64)), 32, {"BasicBlock": 8}, ("layer1.0", "layer4.1")
    ),
    "resnet50": _client(
        _named("resnet50", channels=(4, 8, 16, 32)), 32, {"Bottleneck": 16}, ("layer1.0", "layer4.2")
    ),
    "convnext_atto": _client(
        _named("convnext_atto", dims=(8, 16, 32, 64)), 64, {"ConvNeXtBlock": 12, "Sequential": 3},
        ("stages.0.blocks.0", "stages.3.blocks.1"),
    ),
    "densenet121": _client(
        _named("densenet121", growth_rate=4, block_config=(3, 4, 6, 4)), 32, {"DenseBlock": 4, "DenseTransition": 3},
        ("features.denseblock1", "features.denseblock4"),
    ),
    "tinynet_e": _client(_named("tinynet_e"), 32, {"InvertedResidual": 9}, ("blocks.1.0", "blocks.6.0")),
    "vgg11_bn": _client(_vgg, 32, {"Conv2d": 8, "ConvMlp": 1, "Linear": 1}, ("features.0", "head.fc")),
    "vit_tiny": _client(
        _named("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=4, embed_dim=48), 32, {"Block": 4},
        ("blocks.0", "blocks.3"),
    ),
    "swin_tiny": _client(
        _named("swin_tiny_patch4_window7_224", img_size=32, window_size=4, embed_dim=24, depths=(2, 2, 4),
               num_heads=(2, 4, 8)),
        32, {"SwinTransformerBlock": 8, "PatchMerging": 2}, ("layers.0.blocks.0", "layers.2.blocks.3"),
    ),
    "mixer": _client(_mixer, 32, {"MixerBlock": 4}, ("blocks.0", "blocks.3")),
}  # fmt: skip
