"""monai: networks for images of medicine, in two and three dimensions."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from clients.depth.checks import Client, Model

FLAT, SOLID = (1, 32, 32), (1, 16, 16, 16)
TOKENS = {"in_channels": 1, "img_size": 16, "hidden_size": 32, "mlp_dim": 64, "num_heads": 4}
IMAGES = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}


def _client(
    name: str, shape: tuple[int, ...], chain: dict[str, int], ends: tuple[str, str], *, key: str = "x",
    is_conditional: bool = False, module: str | None = None, more: dict[str, Any] | None = None, **options: Any,
) -> Client:  # fmt: skip
    def make() -> nn.Module:
        from monai.networks import nets

        return getattr(nets, name)(**options)

    def inputs() -> dict[str, Any]:
        return {key: torch.randn(2, *shape), **(more or {})}

    return Client(make, inputs, chain, ends, module, is_conditional)


MODELS: dict[str, Model] = {
    "ViT": _client(
        "ViT", SOLID, {"TransformerBlock": 4}, ("blocks.0", "blocks.3"), patch_size=8, num_layers=4, **TOKENS
    ),
    "UNETR": _client(
        "UNETR", SOLID, {"TransformerBlock": 12}, ("vit.blocks.0", "vit.blocks.11"), key="x_in", out_channels=2,
        feature_size=4, **TOKENS,
    ),
    "UNet": _client(
        "UNet", FLAT, {"ResidualUnit": 4}, ("model.0", "model.1.submodule.1.submodule.1.submodule"), **IMAGES,
        channels=(4, 8, 16, 32), strides=(2, 2, 2), num_res_units=2,
    ),
    "BasicUNet": _client(
        "BasicUNet", FLAT, {"Down": 4}, ("down_1", "down_4"), **IMAGES, features=(4, 4, 8, 16, 32, 4)
    ),
    "AttentionUnet": _client(
        "AttentionUnet", FLAT, {"ConvBlock": 4}, ("model.0", "model.1.submodule.1.submodule.1.submodule"), **IMAGES,
        channels=(4, 8, 16, 32), strides=(2, 2, 2),
    ),
    "DynUNet": _client(
        "DynUNet", FLAT, {"UnetBasicBlock": 4}, ("input_block", "bottleneck"), **IMAGES, kernel_size=[3] * 4,
        strides=[1, 2, 2, 2], upsample_kernel_size=[2] * 3, filters=[4, 8, 16, 32],
    ),
    "FlexibleUNet": _client(
        "FlexibleUNet", FLAT, {"ResNetBlock": 8}, ("encoder.layer1.0", "encoder.layer4.1"), key="inputs", **IMAGES,
        backbone="resnet18", decoder_channels=(32, 16, 8, 8, 4),
    ),
    "SwinUNETR, its decoder": _client(
        "SwinUNETR", (1, 64, 64), {"UnetrUpBlock": 5}, ("decoder5", "decoder1"), key="x_in", is_conditional=True,
        **IMAGES, feature_size=12,
    ),
    "SegResNet": _client(
        "SegResNet", FLAT, {"ResBlock": 9, "Convolution": 3}, ("down_layers.0.1", "down_layers.3.4"),
        spatial_dims=2, in_channels=1, init_filters=8,
    ),
    "DiffusionModelUNet, the way down": _client(
        "DiffusionModelUNet", (1, 16, 16), {"DiffusionUNetResnetBlock": 6, "Convolution": 2},
        ("down_blocks.0.resnets.0", "down_blocks.2.resnets.1"), module="down_blocks",
        more={"timesteps": torch.tensor([1, 5])}, **IMAGES, num_res_blocks=2, channels=(8, 8, 16),
        attention_levels=(False, False, False), norm_num_groups=4,
    ),
    "DenseNet": _client(
        "DenseNet", FLAT, {"_DenseLayer": 10, "_Transition": 3},
        ("features.denseblock1.denselayer1", "features.denseblock4.denselayer2"), **IMAGES,
        init_features=8, growth_rate=4, block_config=(2, 3, 3, 2),
    ),
    "ResNet": _client(
        "ResNet", FLAT, {"ResNetBlock": 8}, ("layer1.0", "layer4.1"), block="basic", layers=[2, 2, 2, 2],
        block_inplanes=[8, 16, 32, 64], spatial_dims=2, n_input_channels=1, num_classes=2,
    ),
}  # fmt: skip
