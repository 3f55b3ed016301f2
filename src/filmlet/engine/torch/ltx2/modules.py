"""diffusers' and transformers' modules of LTX-2, built from a checkpoint's files without memory."""

from collections.abc import Iterable

import torch
from diffusers.models import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder, LTX2VocoderWithBWE, UpSample1d
from torch import nn
from transformers import (
    Gemma3TextConfig,
    Gemma3TextModel,
    Gemma4UnifiedTextConfig,
    Gemma4UnifiedTextModel,
    PreTrainedModel,
)

from filmlet.engine.state_dict import CheckpointWeights
from filmlet.engine.torch.loader import build_on_meta

MODEL_CLASSES = {
    "transformer": LTX2VideoTransformer3DModel,
    "connectors": LTX2TextConnectors,
    "vae": AutoencoderKLLTX2Video,
    "audio_vae": AutoencoderKLLTX2Audio,
    "upsampler": LTX2LatentUpsamplerModel,
}
TEXT_CLASSES = {
    "gemma3_text": (Gemma3TextConfig, Gemma3TextModel),
    "gemma4_unified_text": (Gemma4UnifiedTextConfig, Gemma4UnifiedTextModel),
}
FLOAT32_COMPONENTS = ("vocoder",)  # in bfloat16 its sound is off by a third
LTX2_BLOCKS = {  # that run one after the other, in this order
    "transformer": ("transformer_blocks",),
    "text_encoder": ("layers",),
    "connectors": (
        "text_proj_in", "video_text_proj_in", "audio_text_proj_in",
        "video_connector.transformer_blocks", "audio_connector.transformer_blocks",
    ),
}  # fmt: skip


def build_ltx2_module(name: str, weights: CheckpointWeights) -> nn.Module:
    """A module of LTX-2 on the meta device; what its files do not hold is computed.

    The text encoder is Gemma's language model alone.
    """
    if name == "text_encoder":
        return _build_language_model(weights.config)
    if name == "vocoder":
        return _build_vocoder(weights)
    return build_on_meta(MODEL_CLASSES[name], weights.config)


def list_blocks(module: nn.Module, names: Iterable[str]) -> list[nn.Module]:
    """The parts of a module by name, those of a list one by one; absent ones are left out."""
    blocks: list[nn.Module] = []
    for name in names:
        parent, _, leaf = name.rpartition(".")
        part = getattr(module.get_submodule(parent), leaf, None)
        if isinstance(part, nn.ModuleList):
            blocks += part
        elif part is not None:
            blocks.append(part)
    return blocks


def _build_language_model(config: dict[str, object]) -> PreTrainedModel:
    config_class, model_class = TEXT_CLASSES[str(config["model_type"])]
    settings = {name: value for name, value in config.items() if name != "model_type"}
    with torch.device("meta"):
        model: PreTrainedModel = model_class(config_class(**settings))
    with torch.no_grad():
        for layer in model.modules():
            computed = layer._non_persistent_buffers_set
            for name in computed:
                setattr(layer, name, torch.empty_like(getattr(layer, name), device="cpu"))
            if computed:
                model._init_weights(layer)
    return model


def _build_vocoder(weights: CheckpointWeights) -> nn.Module:
    config = weights.config
    if "mel_stft.mel_basis" not in weights.shapes:
        return build_on_meta(LTX2Vocoder, config)
    vocoder = build_on_meta(LTX2VocoderWithBWE, config)
    ratio = config["output_sampling_rate"] // config["input_sampling_rate"]
    vocoder.resampler = UpSample1d(ratio=ratio, window_type="hann", persistent=False)
    return vocoder
