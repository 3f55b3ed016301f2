"""The keys of LTX-2's configurations that modules are built from, and what each may be."""

from collections.abc import Mapping
from typing import Any

from filmlet.engine.schemas import (
    FLAGS,
    MAX_BLOCKS,
    WHOLES,
    Check,
    Schema,
    is_flag,
    is_list_of,
    is_none_or,
    is_number,
    is_one_of,
    is_whole,
)

MAX_SAMPLE_RATE = 192_000
ROPE_TYPE = is_one_of("split", "interleaved")
PADDING = is_one_of("zeros", "reflect", "replicate")
SAMPLING = is_list_of(is_one_of("spatial", "temporal", "spatiotemporal"))


def _is(*values: object) -> Check:
    """Return what asks whether it is one of these, of the same type."""
    return lambda value: any(type(value) is type(one) and value == one for one in values)


def _is_sample_rate(value: Any) -> bool:
    return is_whole(value) and value <= MAX_SAMPLE_RATE


def _is_rope(value: Any) -> bool:
    """Parameters of rotary embeddings; those of each kind of layer may lie one level deeper."""
    if not isinstance(value, dict) or len(value) > MAX_BLOCKS:
        return False
    return all(
        item is None
        or _is_rope_word(item)
        or is_number(item)
        or (isinstance(item, dict) and all(map(_is_rope_value, item.values())))
        for item in value.values()
    )


def _is_rope_value(value: Any) -> bool:
    return value is None or _is_rope_word(value) or is_number(value)


_is_rope_word = is_one_of("default", "linear", "proportional")


def _is_layer_config(value: Any) -> bool:
    """What single layers have otherwise, by number."""
    keys = {"head_dim", "num_key_value_heads"}
    return isinstance(value, dict) and all(
        isinstance(layer, dict) and layer.keys() <= keys and all(map(is_whole, layer.values()))
        for layer in value.values()
    )


def _video_and_audio(checks: Mapping[str, Check]) -> dict[str, Check]:
    return {f"{prefix}{key}": check for prefix in ("", "audio_") for key, check in checks.items()}


TRANSFORMER: Mapping[str, Check] = {
    **_video_and_audio(
        {
            "in_channels": is_whole,
            "out_channels": is_none_or(is_whole),
            "patch_size": _is(1),
            "patch_size_t": _is(1),
            "num_attention_heads": is_whole,
            "attention_head_dim": is_whole,
            "cross_attention_dim": is_whole,
            "pos_embed_max_pos": is_number,
            "gated_attn": is_flag,
            "cross_attn_mod": is_flag,
            "ff_bias": is_flag,
        }
    ),
    "vae_scale_factors": is_list_of(is_whole),
    "base_height": is_whole,
    "base_width": is_whole,
    "audio_scale_factor": is_whole,
    "audio_sampling_rate": _is_sample_rate,
    "audio_hop_length": is_whole,
    "num_layers": is_whole,
    "activation_fn": _is("gelu-approximate"),
    "qk_norm": _is("rms_norm_across_heads"),
    "norm_elementwise_affine": is_flag,
    "norm_eps": is_number,
    "caption_channels": is_whole,
    "attention_bias": is_flag,
    "attention_out_bias": is_flag,
    "rope_theta": is_number,
    "rope_double_precision": is_flag,
    "rope_type": ROPE_TYPE,
    "causal_offset": _is(0, 1),
    "timestep_scale_multiplier": is_number,
    "cross_attn_timestep_scale_multiplier": is_number,
    "use_prompt_embeddings": is_flag,
    "perturbed_attn": is_flag,
    "use_prompt_adaln_single": is_flag,
    "use_keyframes_abs_pos_embedding": is_flag,
}
CONNECTORS: Mapping[str, Check] = {
    "caption_channels": is_whole,
    "text_proj_in_factor": is_whole,
    **{
        f"{name}_connector_{key}": is_whole
        for name in ("video", "audio")
        for key in (
            "num_attention_heads", "attention_head_dim", "num_layers", "num_learnable_registers",
        )
    },
    "video_gated_attn": is_flag,
    "audio_gated_attn": is_flag,
    "connector_rope_base_seq_len": is_whole,
    "rope_theta": is_number,
    "rope_double_precision": is_flag,
    "causal_temporal_positioning": is_flag,
    "rope_type": ROPE_TYPE,
    "per_modality_projections": is_flag,
    "video_hidden_dim": is_whole,
    "audio_hidden_dim": is_whole,
    "proj_bias": is_flag,
}  # fmt: skip
VAE: Mapping[str, Check] = {
    "in_channels": is_whole,
    "out_channels": is_whole,
    "latent_channels": is_whole,
    "block_out_channels": WHOLES,
    "down_block_types": is_list_of(_is("LTX2VideoDownBlock3D")),
    "decoder_block_out_channels": WHOLES,
    "layers_per_block": WHOLES,
    "decoder_layers_per_block": WHOLES,
    "spatio_temporal_scaling": FLAGS,
    "decoder_spatio_temporal_scaling": FLAGS,
    "decoder_inject_noise": FLAGS,
    "downsample_type": SAMPLING,
    "upsample_type": SAMPLING,
    "upsample_residual": FLAGS,
    "upsample_factor": WHOLES,
    "timestep_conditioning": is_flag,
    "patch_size": is_whole,
    "patch_size_t": is_whole,
    "resnet_norm_eps": is_number,
    "scaling_factor": is_number,
    "encoder_causal": is_flag,
    "decoder_causal": is_flag,
    "encoder_spatial_padding_mode": PADDING,
    "decoder_spatial_padding_mode": PADDING,
    "spatial_compression_ratio": is_none_or(is_whole),
    "temporal_compression_ratio": is_none_or(is_whole),
}
AUDIO_VAE: Mapping[str, Check] = {
    "base_channels": is_whole,
    "output_channels": is_whole,
    "ch_mult": WHOLES,
    "num_res_blocks": is_whole,
    "attn_resolutions": is_none_or(WHOLES),
    "in_channels": is_whole,
    "resolution": is_whole,
    "latent_channels": is_whole,
    "norm_type": is_one_of("pixel", "group"),
    "causality_axis": is_one_of("none", "width", "height", "width-compatibility"),
    "dropout": _is(0, 0.0),
    "mid_block_add_attention": is_flag,
    "sample_rate": _is_sample_rate,
    "mel_hop_length": is_whole,
    "is_causal": is_flag,
    "mel_bins": is_whole,
    "double_z": is_flag,
}
GENERATOR: Mapping[str, Check] = {  # one stage of a vocoder
    "in_channels": is_whole,
    "hidden_channels": is_whole,
    "out_channels": is_whole,
    "upsample_kernel_sizes": WHOLES,
    "upsample_factors": WHOLES,
    "resnet_kernel_sizes": WHOLES,
    "resnet_dilations": is_list_of(WHOLES),
    "act_fn": is_one_of("snakebeta", "snake", "leaky_relu"),
    "leaky_relu_negative_slope": is_number,
    "antialias": is_flag,
    "antialias_ratio": is_whole,
    "antialias_kernel_size": is_whole,
    "final_act_fn": is_none_or(is_one_of("tanh", "clamp")),
    "final_bias": is_flag,
}
VOCODER: Mapping[str, Check] = {
    **GENERATOR,
    **{f"bwe_{key}": check for key, check in GENERATOR.items()},
    "filter_length": is_whole,
    "hop_length": is_whole,
    "window_length": is_whole,
    "num_mel_channels": is_whole,
    "input_sampling_rate": _is_sample_rate,
    "output_sampling_rate": _is_sample_rate,
}
UPSAMPLER: Mapping[str, Check] = {
    "in_channels": is_whole,
    "mid_channels": is_whole,
    "num_blocks_per_stage": is_whole,
    "dims": _is(2, 3),
    "spatial_upsample": _is(True),
    "temporal_upsample": _is(False),
    "rational_spatial_scale": _is(2, 2.0),
    "use_rational_resampler": is_flag,
}
TEXT_ENCODER: Mapping[str, Check] = {
    "model_type": is_one_of("gemma3_text", "gemma4_unified_text"),
    "vocab_size": is_whole,
    "hidden_size": is_whole,
    "intermediate_size": is_whole,
    "num_hidden_layers": is_whole,
    "num_attention_heads": is_whole,
    "num_key_value_heads": is_whole,
    "head_dim": is_whole,
    "global_head_dim": is_whole,
    "num_global_key_value_heads": is_none_or(is_whole),
    "per_layer_config": _is_layer_config,
    "hidden_activation": is_one_of("gelu_pytorch_tanh"),
    "max_position_embeddings": is_whole,
    "rms_norm_eps": is_number,
    "rope_parameters": is_none_or(_is_rope),
    "rope_theta": is_number,
    "rope_local_base_freq": is_number,
    "rope_scaling": is_none_or(_is_rope),
    "attention_bias": is_flag,
    "query_pre_attn_scalar": is_number,
    "sliding_window": is_whole,
    "sliding_window_pattern": is_whole,
    "layer_types": is_none_or(is_list_of(is_one_of("sliding_attention", "full_attention"))),
    "use_bidirectional_attention": _is(None, False, "vision"),
    "attention_k_eq_v": is_flag,
    "num_kv_shared_layers": _is(0),
    "use_double_wide_mlp": is_flag,
    "pad_token_id": is_none_or(lambda value: type(value) is int and 0 <= value < 2**20),
}
SCHEMAS = {
    "transformer": Schema(
        TRANSFORMER,
        (
            "num_layers",
            "rope_type",
            "caption_channels",
            *(
                f"{prefix}{key}"
                for prefix in ("", "audio_")
                for key in (
                    "num_attention_heads",
                    "attention_head_dim",
                    "in_channels",
                    "cross_attention_dim",
                )
            ),
        ),
    ),
    "connectors": Schema(CONNECTORS, ("caption_channels", "text_proj_in_factor", "rope_type")),
    "vae": Schema(VAE, ("latent_channels", "block_out_channels", "decoder_block_out_channels")),
    "audio_vae": Schema(AUDIO_VAE, ("base_channels", "latent_channels", "mel_bins")),
    "vocoder": Schema(VOCODER, ("upsample_factors", "output_sampling_rate")),
    "upsampler": Schema(UPSAMPLER, ("in_channels", "mid_channels", "num_blocks_per_stage")),
    "text_encoder": Schema(TEXT_ENCODER, ("model_type", "hidden_size", "num_hidden_layers")),
}
