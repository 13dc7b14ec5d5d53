"""torchvision: image models, each on small images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from clients.depth.checks import Client, Model


def _client(make: Callable[[Any], nn.Module], size: int, chain: dict[str, int], ends: tuple[str, str]) -> Client:
    def made() -> nn.Module:
        import torchvision

        return make(torchvision.models)

    return Client(made, lambda: {"x": torch.randn(2, 3, size, size)}, chain, ends)


def _convnext(models: Any) -> nn.Module:
    of = models.convnext.CNBlockConfig
    return models.convnext.ConvNeXt([of(8, 16, 2), of(16, 32, 3), of(32, None, 3)], num_classes=5)


MODELS: dict[str, Model] = {
    "resnet18": _client(lambda models: models.resnet18(), 32, {"BasicBlock": 8}, ("layer1.0", "layer4.1")),
    "DenseNet": _client(
        lambda models: models.DenseNet(4, (3, 4, 6, 4), 8), 32, {"_DenseBlock": 4, "_Transition": 3},
        ("features.denseblock1", "features.denseblock4"),
    ),
    "ViT": _client(
        lambda models: models.VisionTransformer(32, 8, 4, 4, 32, 64), 32, {"EncoderBlock": 4},
        ("encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_3"),
    ),
    "Swin": _client(
        lambda models: models.SwinTransformer([4, 4], 16, [2, 2, 4], [2, 2, 4], [4, 4]), 32,
        {"SwinTransformerBlock": 8, "PatchMerging": 2}, ("features.1.0", "features.5.3"),
    ),
    "ConvNeXt": _client(_convnext, 32, {"CNBlock": 8, "Sequential": 2}, ("features.1.0", "features.5.2")),
    "mobilenet_v2": _client(
        lambda models: models.mobilenet_v2(width_mult=0.25), 32, {"InvertedResidual": 17},
        ("features.1", "features.17"),
    ),
}  # fmt: skip
