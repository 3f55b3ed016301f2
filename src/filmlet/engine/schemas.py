"""The keys of a component's config.json that modules are built from, and what each may be."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filmlet.errors import CheckpointCorrupt

MAX_SIDE = 2**20  # of a layer
MAX_BLOCKS = 64
Check = Callable[[Any], bool]


def is_whole(value: Any) -> bool:
    """Whether it can be a size."""
    return type(value) is int and 0 < value <= MAX_SIDE


def is_number(value: Any) -> bool:
    """Whether it is a number above 0."""
    return type(value) in (int, float) and math.isfinite(value) and 0 < value < 1e9


def is_flag(value: Any) -> bool:
    """Whether it is true or false."""
    return type(value) is bool


def is_list_of(check: Check) -> Check:
    """Return what asks it of each of some values."""
    return lambda value: (
        isinstance(value, (list, tuple)) and 0 < len(value) <= MAX_BLOCKS and all(map(check, value))
    )


def is_one_of(*words: str) -> Check:
    """Return what asks whether it is one of these words."""
    return lambda value: isinstance(value, str) and value in words


def is_none_or(check: Check) -> Check:
    """Return what asks it of all but None."""
    return lambda value: value is None or check(value)


@dataclass(frozen=True)
class Schema:
    """What a configuration may say, by key, and what it must say."""

    checks: Mapping[str, Check]
    required: tuple[str, ...] = ()


WHOLES, FLAGS = is_list_of(is_whole), is_list_of(is_flag)
CHECKS: Mapping[str, Mapping[str, Check]] = {
    "transformer": {
        "in_channels": is_whole,
        "out_channels": is_none_or(is_whole),
        "patch_size": lambda value: value == 1,
        "patch_size_t": lambda value: value == 1,
        "num_attention_heads": is_whole,
        "attention_head_dim": is_whole,
        "cross_attention_dim": is_whole,
        "num_layers": is_whole,
        "activation_fn": is_one_of("gelu-approximate"),
        "qk_norm": is_one_of("rms_norm_across_heads"),
        "norm_elementwise_affine": is_flag,
        "norm_eps": is_number,
        "caption_channels": is_whole,
        "attention_bias": is_flag,
        "attention_out_bias": is_flag,
    },
    "vae": {
        "in_channels": is_whole,
        "out_channels": is_whole,
        "latent_channels": is_whole,
        "block_out_channels": WHOLES,
        "down_block_types": is_list_of(is_one_of("LTXVideoDownBlock3D", "LTXVideo095DownBlock3D")),
        "decoder_block_out_channels": WHOLES,
        "layers_per_block": WHOLES,
        "decoder_layers_per_block": WHOLES,
        "spatio_temporal_scaling": FLAGS,
        "decoder_spatio_temporal_scaling": FLAGS,
        "decoder_inject_noise": FLAGS,
        "downsample_type": is_list_of(is_one_of("conv", "spatial", "temporal", "spatiotemporal")),
        "upsample_residual": FLAGS,
        "upsample_factor": WHOLES,
        "timestep_conditioning": is_flag,
        "patch_size": is_whole,
        "patch_size_t": is_whole,
        "resnet_norm_eps": is_number,
        "scaling_factor": is_number,
        "encoder_causal": is_flag,
        "decoder_causal": is_flag,
        "spatial_compression_ratio": is_none_or(is_whole),
        "temporal_compression_ratio": is_none_or(is_whole),
    },
    "text_encoder": {
        "vocab_size": is_whole,
        "d_model": is_whole,
        "d_kv": is_whole,
        "d_ff": is_whole,
        "num_layers": is_whole,
        "num_heads": is_whole,
        "relative_attention_num_buckets": is_whole,
        "relative_attention_max_distance": is_whole,
        "layer_norm_epsilon": is_number,
        "feed_forward_proj": is_one_of(
            "relu", "gelu", "gelu_new", "gated-relu", "gated-gelu", "gated-gelu_new"
        ),
        "tie_word_embeddings": is_flag,
    },
    "upsampler": {
        "in_channels": is_whole,
        "mid_channels": is_whole,
        "num_blocks_per_stage": is_whole,
        "dims": lambda value: type(value) is int and value in (2, 3),
        "spatial_upsample": is_flag,
        "temporal_upsample": is_flag,
    },
}
REQUIRED = {
    "transformer": (
        "in_channels", "out_channels", "num_attention_heads", "attention_head_dim", "num_layers",
        "cross_attention_dim", "caption_channels",
    ),
    "vae": ("latent_channels", "block_out_channels", "down_block_types"),
    "text_encoder": ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads"),
    "upsampler": ("in_channels", "mid_channels", "num_blocks_per_stage"),
}  # fmt: skip
SCHEMAS = {name: Schema(checks, REQUIRED[name]) for name, checks in CHECKS.items()}
LAYER_COUNTS = (
    "num_layers", "layers_per_block", "decoder_layers_per_block", "num_blocks_per_stage",
    "num_res_blocks", "num_hidden_layers", "video_connector_num_layers",
    "audio_connector_num_layers",
)  # fmt: skip


def select_config(
    given: Mapping[str, Any], schema: Schema, place: Path, tensors: int
) -> dict[str, Any]:
    """Return the used keys of a configuration. tensors: in its files, more than layers.

    Raises CheckpointCorrupt that names the key.
    """
    if missing := [key for key in schema.required if key not in given]:
        raise CheckpointCorrupt(f"{place}: its configuration lacks {', '.join(missing)}.")
    config = {key: value for key, value in given.items() if key in schema.checks}
    for key, value in config.items():
        is_valid = schema.checks[key](value)
        layers = _count(value) if key in LAYER_COUNTS and is_valid else 0
        if not is_valid or layers > tensors:
            raise CheckpointCorrupt(
                f"{place}: its configuration cannot have {str(value)[:60]!r} as {key}."
            )
    return config


def _count(value: Any) -> int:
    return int(sum(value)) if isinstance(value, (list, tuple)) else int(value)
