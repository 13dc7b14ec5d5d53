"""segmentation-models-pytorch: an encoder, and a decoder that is given the encoder's states as skips."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from clients.depth.checks import Client, Model, Refusal

WIDTHS = (64, 32, 16, 8, 8)


def _model(name: str, encoder: str = "resnet18", **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import segmentation_models_pytorch as smp

        return getattr(smp, name)(encoder, encoder_weights=None, **options)

    return make


def _images(size: int = 32) -> Callable[[], dict[str, Any]]:
    return lambda: {"x": torch.randn(2, 3, size, size)}


_UNET = Client(
    _model("Unet", decoder_channels=WIDTHS), _images(), {"BasicBlock": 8}, ("encoder.layer1.0", "encoder.layer4.1")
)
MODELS: dict[str, Model] = {
    "Unet": _UNET,
    "Unet, its decoder": replace(
        _UNET, chain={"UnetDecoderBlock": 5}, ends=("decoder.blocks.0", "decoder.blocks.4"), module="decoder.blocks",
        is_conditional=True,
    ),
    "UnetPlusPlus": replace(_UNET, make=_model("UnetPlusPlus", decoder_channels=WIDTHS)),
    "FPN": replace(_UNET, make=_model("FPN", decoder_pyramid_channels=32, decoder_segmentation_channels=32)),
    "DeepLabV3Plus": replace(_UNET, make=_model("DeepLabV3Plus", decoder_channels=16)),
    "Segformer of mit_b0": Refusal(
        _model("Segformer", "mit_b0"), lambda _: _images(64)(), "Between encoder.block1.1 and encoder.block2.0 some"
    ),
    "Segformer of mit_b0, a stage": Client(
        _model("Segformer", "mit_b0"), _images(64), {"Block": 2}, ("encoder.block3.0", "encoder.block3.1"),
        "encoder.block3",
    ),
}  # fmt: skip
