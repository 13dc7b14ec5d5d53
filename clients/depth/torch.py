"""torch: its own Transformer layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from clients.depth.checks import Client, Model

LAYER = {"d_model": 32, "nhead": 4, "dim_feedforward": 64, "batch_first": True}
TOKENS, SHORT, OTHERS = 7, 4, 5
"""Tokens of a sequence, of the second one where it is padded, and of the sequence that is written."""
ENDS = "layers.0", "layers.3"


def _encoder(**more: Any) -> Callable[[], nn.Module]:
    return lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(**LAYER, **more), 4, enable_nested_tensor=False)


def _decoder() -> nn.Module:
    return nn.TransformerDecoder(nn.TransformerDecoderLayer(**LAYER), 4)


def _both() -> nn.Module:
    return nn.Transformer(num_encoder_layers=4, num_decoder_layers=4, **LAYER)


def _read() -> dict[str, Any]:
    return {"src": torch.randn(2, TOKENS, 32)}


def _padded() -> dict[str, Any]:
    mask = torch.zeros(2, TOKENS, dtype=torch.bool)
    mask[1, SHORT:] = True
    return {**_read(), "src_key_padding_mask": mask}


def _alone(inputs: dict[str, Any]) -> Sequence[dict[str, Any]]:
    return [{"src": inputs["src"][:1]}, {"src": inputs["src"][1:, :SHORT]}]


def _written() -> dict[str, Any]:
    return {"tgt": torch.randn(2, OTHERS, 32), "memory": torch.randn(2, TOKENS, 32)}


def _read_and_written() -> dict[str, Any]:
    return {**_read(), "tgt": torch.randn(2, OTHERS, 32)}


_ENCODER = Client(_encoder(), _read, {"TransformerEncoderLayer": 4}, ENDS)
_BOTH = Client(
    _both, _read_and_written, {"TransformerEncoderLayer": 4}, ("encoder.layers.0", "encoder.layers.3")
)  # fmt: skip
MODELS: dict[str, Model] = {
    "TransformerEncoder": _ENCODER,
    "TransformerEncoder, norm first": replace(_ENCODER, make=_encoder(norm_first=True)),
    "TransformerEncoder, padded": replace(_ENCODER, inputs=_padded, alone=_alone),
    "TransformerDecoder": Client(_decoder, _written, {"TransformerDecoderLayer": 4}, ENDS),
    "Transformer": _BOTH,
    "Transformer, its decoder": replace(
        _BOTH,
        chain={"TransformerDecoderLayer": 4},
        ends=("decoder.layers.0", "decoder.layers.3"),
        module="decoder.layers",
    ),
}
