"""Whether the components of LTX-2 fit each other, before a library builds from them."""

import math
from collections.abc import Mapping
from typing import Any

from filmlet.core.model_card import ComponentFiles
from filmlet.engine.state_dict import CheckpointWeights, require_equal, require_shape
from filmlet.errors import CheckpointCorrupt
from filmlet.models.ltx2_key_mapping import detect_version

MEL_STRIDE = 4  # mel frames, and bins, that one latent stands for
GEMMA = {"2.0": "gemma3_text", "2.3": "gemma3_text", "2.5": "gemma4_unified_text"}


def check_ltx2_components(files: ComponentFiles) -> None:
    """That the components of an LTX-2 checkpoint fit each other. Raises CheckpointCorrupt."""
    all_weights = {
        name: CheckpointWeights.from_files(files, name)
        for name in (
            "transformer", "text_encoder", "connectors", "vae", "audio_vae", "vocoder",
        )
    }  # fmt: skip
    transformer = all_weights["transformer"]
    _check_transformer(transformer)
    _check_vae(all_weights["vae"], transformer.config["in_channels"])
    _check_audio(all_weights["audio_vae"], all_weights["vocoder"], transformer)
    _check_text(all_weights["text_encoder"], all_weights["connectors"], transformer)
    if files.upsampler:
        upsampler = CheckpointWeights.from_files(files, "upsampler")
        found = upsampler.config["in_channels"], require_shape(upsampler, "initial_conv.weight")[1]
        require_equal(upsampler, "in_channels", found, (transformer.config["in_channels"],) * 2)


def _check_transformer(weights: CheckpointWeights) -> None:
    config = weights.config
    for prefix in ("", "audio_"):
        width = config[f"{prefix}num_attention_heads"] * config[f"{prefix}attention_head_dim"]
        channels = config[f"{prefix}in_channels"]
        name = f"{prefix}proj_in.weight"
        require_equal(weights, f"shape of {name}", require_shape(weights, name), (width, channels))
        outputs = require_shape(weights, f"{prefix}proj_out.weight")[0]
        require_equal(weights, f"{prefix}out_channels", outputs, channels)
    heads = config["num_attention_heads"]
    require_equal(weights, "audio_num_attention_heads", config["audio_num_attention_heads"], heads)


def _check_vae(vae: CheckpointWeights, channels: int) -> None:
    config = vae.config
    for name in ("latents_mean", "latents_std"):
        require_equal(vae, name, require_shape(vae, name), (channels,))
    for name in ("in_channels", "out_channels"):
        require_equal(vae, name, config.get(name, 3), 3)
    patch = 3 * config.get("patch_size", 4) ** 2 * config.get("patch_size_t", 1)
    inputs = require_shape(vae, "encoder.conv_in.conv.weight")[1]
    outputs = require_shape(vae, "decoder.conv_out.conv.weight")[0]
    require_equal(vae, "patch_size", (inputs, outputs), (patch, patch))
    ratios = (
        config.get("spatial_compression_ratio") or 32,
        config.get("temporal_compression_ratio") or 8,
    )
    require_equal(vae, "compression", ratios, (32, 8))


def _check_audio(
    audio_vae: CheckpointWeights, vocoder: CheckpointWeights, transformer: CheckpointWeights
) -> None:
    config = audio_vae.config
    bins, channels = config["mel_bins"], transformer.config["audio_in_channels"]
    require_equal(audio_vae, "mel_bins", config["latent_channels"] * bins // MEL_STRIDE, channels)
    for name in ("latents_mean", "latents_std"):
        require_equal(audio_vae, name, require_shape(audio_vae, name), (channels,))
    mel_rate = config.get("sample_rate", 16000) / config.get("mel_hop_length", 160)
    sounds = config.get("output_channels", 2)
    _check_generator(vocoder, "", sounds * bins, mel_rate)


def _check_generator(weights: CheckpointWeights, part: str, inputs: int, rate: float) -> None:
    """A vocoder, or its second stage; rate: mel frames a second that it is given."""
    config = weights.config
    has_second = "mel_stft.mel_basis" in weights.shapes
    stage = {"": "vocoder." if has_second else "", "bwe_": "bwe_generator."}[part]
    require_equal(
        weights, f"{part}in_channels", require_shape(weights, f"{stage}conv_in.weight")[1], inputs
    )
    factors, kernels = (
        config.get(f"{part}{key}", ()) for key in ("upsample_factors", "upsample_kernel_sizes")
    )
    if len(factors) != len(kernels):
        raise CheckpointCorrupt(f"{weights.path}: its vocoder has not one factor for each kernel.")
    is_first_of_two = has_second and not part
    key = "input_sampling_rate" if is_first_of_two else "output_sampling_rate"
    require_equal(
        weights, f"{part}upsample_factors", math.prod(factors) * rate, _whole(config, key)
    )
    if is_first_of_two:
        bins = 2 * _whole(config, "num_mel_channels")
        rate = _whole(config, "input_sampling_rate") / _whole(config, "hop_length")
        _check_generator(weights, "bwe_", bins, rate)


def _whole(config: Mapping[str, Any], key: str) -> int:
    number: int = config.get(key, 0)
    if not number:
        raise CheckpointCorrupt(f"the vocoder's configuration lacks {key}.")
    return number


def _check_text(
    text: CheckpointWeights, connectors: CheckpointWeights, transformer: CheckpointWeights
) -> None:
    config, captions = text.config, connectors.config["caption_channels"]
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    require_equal(text, "hidden_size", require_shape(text, "embed_tokens.weight")[1], captions)
    require_equal(text, "hidden_size", hidden, captions)
    require_equal(connectors, "layers read", connectors.config["text_proj_in_factor"], layers + 1)
    version = detect_version(transformer.shapes)
    if config["model_type"] != GEMMA[version]:
        raise CheckpointCorrupt(
            f"{text.path} does not fit the rest: LTX-{version} reads "
            f"{'Gemma 4' if version == '2.5' else 'Gemma 3'}, and it is another."
        )
    if not connectors.config.get("per_modality_projections"):
        require_equal(
            transformer, "caption_channels", transformer.config["caption_channels"], captions
        )
    for name, prefix in (("video", ""), ("audio", "audio_")):
        width = require_shape(connectors, f"{name}_connector.learnable_registers")[1]
        wanted = transformer.config[f"{prefix}cross_attention_dim"]
        is_projected = f"{prefix}caption_projection.linear_1.weight" in transformer.shapes
        require_equal(connectors, f"width of {name}", width, captions if is_projected else wanted)
