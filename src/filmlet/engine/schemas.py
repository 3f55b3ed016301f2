"""The keys of a component's config.json that modules are built from, and what each may be."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filmlet.errors import CheckpointCorrupt

MAX_SIDE = 2**20  # of a layer
MAX_BLOCKS = 64
Check = Callable[[Any], bool]


def _is_whole(value: Any) -> bool:
    return type(value) is int and 0 < value <= MAX_SIDE


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and 0 < value < 1e9


def _is_flag(value: Any) -> bool:
    return type(value) is bool


def _is_list_of(check: Check) -> Check:
    return lambda value: (
        isinstance(value, (list, tuple)) and 0 < len(value) <= MAX_BLOCKS and all(map(check, value))
    )


def _is_one_of(*words: str) -> Check:
    return lambda value: isinstance(value, str) and value in words


def _is_none_or(check: Check) -> Check:
    return lambda value: value is None or check(value)


WHOLES, FLAGS = _is_list_of(_is_whole), _is_list_of(_is_flag)
SCHEMAS: Mapping[str, Mapping[str, Check]] = {
    "transformer": {
        "in_channels": _is_whole,
        "out_channels": _is_none_or(_is_whole),
        "patch_size": lambda value: value == 1,
        "patch_size_t": lambda value: value == 1,
        "num_attention_heads": _is_whole,
        "attention_head_dim": _is_whole,
        "cross_attention_dim": _is_whole,
        "num_layers": _is_whole,
        "activation_fn": _is_one_of("gelu-approximate"),
        "qk_norm": _is_one_of("rms_norm_across_heads"),
        "norm_elementwise_affine": _is_flag,
        "norm_eps": _is_number,
        "caption_channels": _is_whole,
        "attention_bias": _is_flag,
        "attention_out_bias": _is_flag,
    },
    "vae": {
        "in_channels": _is_whole,
        "out_channels": _is_whole,
        "latent_channels": _is_whole,
        "block_out_channels": WHOLES,
        "down_block_types": _is_list_of(
            _is_one_of("LTXVideoDownBlock3D", "LTXVideo095DownBlock3D")
        ),
        "decoder_block_out_channels": WHOLES,
        "layers_per_block": WHOLES,
        "decoder_layers_per_block": WHOLES,
        "spatio_temporal_scaling": FLAGS,
        "decoder_spatio_temporal_scaling": FLAGS,
        "decoder_inject_noise": FLAGS,
        "downsample_type": _is_list_of(_is_one_of("conv", "spatial", "temporal", "spatiotemporal")),
        "upsample_residual": FLAGS,
        "upsample_factor": WHOLES,
        "timestep_conditioning": _is_flag,
        "patch_size": _is_whole,
        "patch_size_t": _is_whole,
        "resnet_norm_eps": _is_number,
        "scaling_factor": _is_number,
        "encoder_causal": _is_flag,
        "decoder_causal": _is_flag,
        "spatial_compression_ratio": _is_none_or(_is_whole),
        "temporal_compression_ratio": _is_none_or(_is_whole),
    },
    "text_encoder": {
        "vocab_size": _is_whole,
        "d_model": _is_whole,
        "d_kv": _is_whole,
        "d_ff": _is_whole,
        "num_layers": _is_whole,
        "num_heads": _is_whole,
        "relative_attention_num_buckets": _is_whole,
        "relative_attention_max_distance": _is_whole,
        "layer_norm_epsilon": _is_number,
        "feed_forward_proj": _is_one_of(
            "relu", "gelu", "gelu_new", "gated-relu", "gated-gelu", "gated-gelu_new"
        ),
        "tie_word_embeddings": _is_flag,
    },
    "upsampler": {
        "in_channels": _is_whole,
        "mid_channels": _is_whole,
        "num_blocks_per_stage": _is_whole,
        "dims": lambda value: type(value) is int and value in (2, 3),
        "spatial_upsample": _is_flag,
        "temporal_upsample": _is_flag,
    },
}
NEEDED = {
    "transformer": (
        "in_channels", "out_channels", "num_attention_heads", "attention_head_dim", "num_layers",
        "cross_attention_dim", "caption_channels",
    ),
    "vae": ("latent_channels", "block_out_channels", "down_block_types"),
    "text_encoder": ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads"),
    "upsampler": ("in_channels", "mid_channels", "num_blocks_per_stage"),
}  # fmt: skip
COUNTED = ("num_layers", "layers_per_block", "decoder_layers_per_block", "num_blocks_per_stage")


def select_config(
    component: str, given: Mapping[str, Any], place: Path, tensors: int
) -> dict[str, Any]:
    """What of a configuration is used. tensors: in the component's files, more than layers.

    Raises CheckpointCorrupt that names the key.
    """
    if missing := [key for key in NEEDED[component] if key not in given]:
        raise CheckpointCorrupt(f"{place}: its configuration lacks {', '.join(missing)}.")
    schema = SCHEMAS[component]
    config = {key: value for key, value in given.items() if key in schema}
    for key, value in config.items():
        layers = _count(value) if key in COUNTED and schema[key](value) else 0
        if not schema[key](value) or layers > tensors:
            raise CheckpointCorrupt(
                f"{place}: its configuration cannot have {str(value)[:60]!r} as {key}."
            )
    return config


def _count(value: Any) -> int:
    return int(sum(value)) if isinstance(value, (list, tuple)) else int(value)
