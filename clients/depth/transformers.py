"""Hugging Face transformers: tiny configurations, random weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from clients.depth.checks import Client, Model, Refusal

WORDS, TOKENS, SHORT = 50, 7, 4
"""Words that there are; tokens of a sequence; those of the second one where it is padded."""
SMALL = {
    "vocab_size": WORDS, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": 4,
}  # fmt: skip
FEW = {"num_key_value_heads": 2, **SMALL}
BOTH = {
    "vocab_size": WORDS, "d_model": 32, "encoder_layers": 4, "decoder_layers": 4, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
}  # fmt: skip
T5 = {"vocab_size": WORDS, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 4, "num_heads": 4}


def example() -> None:
    """What the page shows."""
    # --8<-- [start:page]
    import lightning.pytorch as pl
    import torch
    from torch.utils.data import DataLoader
    from transformers import GPT2Config, GPT2LMHeadModel

    from lightning_lyapunov import DepthSpectrumCallback

    class Language(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=4, n_head=4))

        def training_step(self, words, _):
            return self.model(input_ids=words, labels=words).loss

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), 1e-3)

    depth = DepthSpectrumCallback()
    trainer = pl.Trainer(max_epochs=3, callbacks=[depth])
    trainer.fit(Language(), DataLoader(torch.randint(50, (64, 12)), batch_size=16))
    print(depth.spectrum, depth.verdict)
    # --8<-- [end:page]
    assert depth.spectrum is not None, "nothing was measured"


def _model(kind: str, of: str = "AutoModel", **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        config = transformers.AutoConfig.for_model(kind, **options)
        chosen = getattr(transformers, of)
        return chosen.from_config(config) if of.startswith("Auto") else chosen(config)

    return make


def _words() -> dict[str, Any]:
    return {"input_ids": torch.randint(3, WORDS, (2, TOKENS))}


def _two_texts() -> dict[str, Any]:
    return {**_words(), "decoder_input_ids": torch.randint(3, WORDS, (2, 5))}


def _padded() -> dict[str, Any]:
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[1, SHORT:] = 0
    return {**_words(), "attention_mask": mask}


def _alone(inputs: dict[str, Any]) -> Sequence[dict[str, Any]]:
    words = inputs["input_ids"]
    return [{"input_ids": words[:1]}, {"input_ids": words[1:, :SHORT]}]


def _with_cache() -> dict[str, Any]:
    from transformers import DynamicCache

    return {**_words(), "use_cache": True, "past_key_values": DynamicCache()}


def _without_cache(inputs: dict[str, Any]) -> Sequence[dict[str, Any]]:
    return [{"input_ids": inputs["input_ids"], "use_cache": False}]


def _after_others(model: nn.Module) -> dict[str, Any]:
    inputs = _with_cache()
    model(**inputs)
    return inputs


def _images(size: int = 32) -> Callable[[], dict[str, Any]]:
    return lambda: {"pixel_values": torch.randn(2, 3, size, size)}


def _listened() -> dict[str, Any]:
    return {"input_features": torch.randn(2, 8, 40), "decoder_input_ids": torch.randint(3, WORDS, (2, 5))}


def _text(kind: str, block: str, ends: tuple[str, str] = ("layers.0", "layers.3"), **options: Any) -> Client:
    return Client(_model(kind, **options), _words, {block: 4}, ends)


_GPT2 = _text("gpt2", "GPT2Block", ("h.0", "h.3"), vocab_size=WORDS, n_embd=32, n_layer=4, n_head=4, n_positions=16)
_LLAMA = _text("llama", "LlamaDecoderLayer", **FEW)
_BERT = _text("bert", "BertLayer", ("encoder.layer.0", "encoder.layer.3"), **SMALL)
_T5 = Client(_model("t5", **T5), _two_texts, {"T5Block": 4}, ("encoder.block.0", "encoder.block.3"))
_ALBERT = _model("albert", **SMALL, embedding_size=16)
_SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2, 4], "num_heads": [2, 2, 4]}
_VISION = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
_WHISPER = {"num_mel_bins": 8, "max_source_positions": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
MODELS: dict[str, Model] = {
    "the page's code": example,
    "GPT-2": _GPT2,
    "GPT-2, with a cache": replace(_GPT2, inputs=_with_cache, alone=_without_cache),
    "GPT-2, padded": replace(_GPT2, inputs=_padded, alone=_alone),
    "GPT-2, after other tokens": Refusal(_GPT2.make, _after_others, "leaving out DynamicCache"),
    "Llama": _LLAMA,
    "Llama, with a cache": replace(_LLAMA, inputs=_with_cache, alone=_without_cache),
    "Llama, padded": replace(_LLAMA, inputs=_padded, alone=_alone),
    "Llama, for causal language": replace(
        _LLAMA, make=_model("llama", "AutoModelForCausalLM", **FEW), ends=("model.layers.0", "model.layers.3")
    ),
    "Mixtral": _text("mixtral", "MixtralDecoderLayer", **FEW, num_local_experts=4, experts_implementation="eager"),
    "Gemma 2": _text("gemma2", "Gemma2DecoderLayer", **FEW, head_dim=8, sliding_window=4),
    "BERT": _BERT,
    "BERT, padded": replace(_BERT, inputs=_padded, alone=_alone),
    "ModernBERT": _text("modernbert", "ModernBertEncoderLayer", **SMALL, pad_token_id=0),
    "ALBERT": Refusal(_ALBERT, lambda _: _words(), "is called 4 times: name it"),
    "ALBERT, its layer": Client(
        _ALBERT, _words, {"AlbertLayer": 4}, ("encoder.albert_layer_groups.0.albert_layers.0",) * 2,
        "encoder.albert_layer_groups.0.albert_layers.0",
    ),
    "T5": _T5,
    "T5, its decoder": replace(_T5, ends=("decoder.block.0", "decoder.block.3"), module="decoder.block"),
    "T5, encoder alone": replace(_T5, make=_model("t5", "T5EncoderModel", **T5), inputs=_words),
    "T5, encoder alone, padded": replace(
        _T5, make=_model("t5", "T5EncoderModel", **T5), inputs=_padded, alone=_alone
    ),
    "BART, its decoder": Client(
        _model("bart", **BOTH), _two_texts, {"BartDecoderLayer": 4}, ("decoder.layers.0", "decoder.layers.3"),
        "decoder.layers",
    ),
    "Whisper": Client(
        _model("whisper", **BOTH, **_WHISPER, decoder_start_token_id=1), _listened, {"WhisperEncoderLayer": 4},
        ("encoder.layers.0", "encoder.layers.3"),
    ),
    "Mamba": _text("mamba", "MambaBlock", vocab_size=WORDS, hidden_size=32, state_size=4, num_hidden_layers=4),
    "ViT": Client(
        _model("vit", **_VISION, intermediate_size=64), _images(), {"ViTLayer": 4}, ("layers.0", "layers.3")
    ),
    "Swin": Client(
        _model("swin", **_SWIN, window_size=4), _images(), {"SwinLayer": 8, "SwinPatchMerging": 2},
        ("encoder.layers.0.blocks.0", "encoder.layers.2.blocks.3"),
    ),
    "ConvNeXt": Client(
        _model("convnext", hidden_sizes=[8, 16, 32, 64], depths=[2, 2, 3, 2]), _images(64),
        {"ConvNextLayer": 9, "ConvNextLayerNorm": 3, "Conv2d": 3},
        ("encoder.stages.0.layers.0", "encoder.stages.3.layers.1"),
    ),
}  # fmt: skip
