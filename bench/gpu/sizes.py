"""What Lightricks' models are built from, at their true sizes, and tiny twins of the same parts."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bench.optimizations import SIZES
from filmlet.core.model_card import ModelFamily
from filmlet.core.shape import VideoShape

Config = Mapping[str, Any]
SHAPE = "768x512x121"
OTHER_SHAPE = "704x480x121"
DRAFT_SHAPE = "384x256x121"  # of the first of two stages
TINY_SHAPE = "64x64x9"


def video_shape(text: str) -> VideoShape:
    """The shape of `width x height x frames`, at 24 frames a second."""
    width, height, frames = map(int, text.split("x"))
    return VideoShape(width, height, frames, 24.0, width, height, frames)


@dataclass(frozen=True)
class ModelSize:
    """One model. transformer: key of SIZES, of LTX-Video alone. card: its name in the registry.

    shape, other_shape, draft_shape: width x height x frames. configs: of its parts, by name.
    padded, words: tokens of a prompt, with its padding and without.
    """

    name: str
    card: str
    configs: Mapping[str, Config]
    transformer: str = ""
    padded: int = 128
    words: int = 16
    shape: str = SHAPE
    other_shape: str = OTHER_SHAPE
    draft_shape: str = DRAFT_SHAPE

    @property
    def family(self) -> ModelFamily:
        return ModelFamily.LTX_VIDEO if self.transformer else ModelFamily.LTX2

    @property
    def prompt_channels(self) -> int:
        """Of what the transformer is told of a prompt."""
        if self.transformer:
            return SIZES[self.transformer][3]
        config = self.configs["connectors"]
        return int(config["video_hidden_dim"] + config["audio_hidden_dim"])


def ltx_transformer(size: str) -> Config:
    heads, head, layers, captions = SIZES[size]
    return {
        "num_attention_heads": heads, "attention_head_dim": head, "num_layers": layers,
        "cross_attention_dim": heads * head, "caption_channels": captions,
    }  # fmt: skip


# The kind since 0.9.5: the decoder takes a timestep and upsamples with residuals.
LTX_VAE: Config = {
    "block_out_channels": (128, 256, 512, 1024, 2048),
    "down_block_types": ("LTXVideo095DownBlock3D",) * 4,
    "spatio_temporal_scaling": (True,) * 4,
    "layers_per_block": (4, 6, 6, 2, 2),
    "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
    "decoder_block_out_channels": (256, 512, 1024),
    "decoder_spatio_temporal_scaling": (True,) * 3,
    "decoder_layers_per_block": (5, 5, 5, 5),
    "decoder_inject_noise": (False,) * 4,
    "upsample_residual": (True,) * 3,
    "upsample_factor": (2, 2, 2),
    "timestep_conditioning": True,
    "decoder_causal": False,
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}
TINY_LTX_VAE: Config = {
    **LTX_VAE,
    "block_out_channels": (16, 16, 32, 32, 32),
    "layers_per_block": (1,) * 5,
    "decoder_block_out_channels": (16, 32, 64),
    "decoder_layers_per_block": (1,) * 4,
}
T5_XXL: Config = {
    "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24,
    "num_heads": 64, "feed_forward_proj": "gated-gelu",
}  # fmt: skip
LTX_UPSAMPLER: Config = {"in_channels": 128, "mid_channels": 512, "num_blocks_per_stage": 4}
TINY_UPSAMPLER: Config = {"in_channels": 128, "mid_channels": 32, "num_blocks_per_stage": 1}

GATED = {
    "gated_attn": True, "cross_attn_mod": True, "audio_gated_attn": True,
    "audio_cross_attn_mod": True, "perturbed_attn": True, "use_prompt_embeddings": False,
    "rope_type": "split", "rope_double_precision": True,
    "cross_attn_timestep_scale_multiplier": 1000,
}  # fmt: skip
TINY_LTX2_TRANSFORMER = {
    **GATED,
    "num_attention_heads": 2, "attention_head_dim": 16, "cross_attention_dim": 32,
    "audio_num_attention_heads": 2, "audio_attention_head_dim": 8, "audio_cross_attention_dim": 16,
    "num_layers": 2, "caption_channels": 16, "audio_in_channels": 16, "audio_out_channels": 16,
}  # fmt: skip
CONNECTORS = {
    "caption_channels": 3840, "text_proj_in_factor": 49, "per_modality_projections": True,
    "proj_bias": True, "rope_type": "split", "rope_double_precision": True,
    "video_hidden_dim": 4096, "video_gated_attn": True, "video_connector_num_layers": 8,
    "video_connector_num_attention_heads": 32, "video_connector_attention_head_dim": 128,
    "video_connector_num_learnable_registers": 128,
    "audio_hidden_dim": 2048, "audio_gated_attn": True, "audio_connector_num_layers": 8,
    "audio_connector_num_attention_heads": 32, "audio_connector_attention_head_dim": 64,
    "audio_connector_num_learnable_registers": 128,
}  # fmt: skip
TINY_CONNECTORS = {
    **CONNECTORS,
    "caption_channels": 16, "text_proj_in_factor": 3,
    "video_hidden_dim": 32, "video_connector_num_layers": 1,
    "video_connector_num_attention_heads": 2, "video_connector_attention_head_dim": 16,
    "video_connector_num_learnable_registers": 8,
    "audio_hidden_dim": 16, "audio_connector_num_layers": 1,
    "audio_connector_num_attention_heads": 2, "audio_connector_attention_head_dim": 8,
    "audio_connector_num_learnable_registers": 8,
}  # fmt: skip
LTX2_VAE: Config = {
    "latent_channels": 128,
    "block_out_channels": (256, 512, 1024, 1024),
    "layers_per_block": (4, 6, 4, 2, 2),
    "decoder_block_out_channels": (256, 512, 512, 1024),
    "decoder_layers_per_block": (4, 6, 4, 2, 2),
    "decoder_spatio_temporal_scaling": (True,) * 4,
    "decoder_inject_noise": (False,) * 5,
    "upsample_type": ("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
    "upsample_residual": (False,) * 4,
    "upsample_factor": (2, 2, 1, 2),
    "timestep_conditioning": False,
    "decoder_causal": False,
    "decoder_spatial_padding_mode": "zeros",
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}
TINY_LTX2_VAE: Config = {
    **LTX2_VAE,
    "block_out_channels": (8, 16, 32, 32),
    "layers_per_block": (1,) * 5,
    "decoder_block_out_channels": (8, 16, 16, 32),
    "decoder_layers_per_block": (1,) * 5,
}
LTX2_UPSAMPLER: Config = {
    "in_channels": 128, "mid_channels": 1024, "num_blocks_per_stage": 4,
    "use_rational_resampler": False,
}  # fmt: skip
VOCODER: Config = {}  # diffusers' defaults are those of 2.3
TINY_VOCODER: Config = {
    "in_channels": 64, "hidden_channels": 64, "resnet_kernel_sizes": [3],
    "resnet_dilations": [[1, 3, 5]], "num_mel_channels": 32,
    "bwe_in_channels": 64, "bwe_hidden_channels": 32, "bwe_resnet_kernel_sizes": [3],
    "bwe_resnet_dilations": [[1, 3, 5]],
}  # fmt: skip
GEMMA_3_12B: Config = {
    "vocab_size": 262_208, "hidden_size": 3840, "intermediate_size": 15_360,
    "num_hidden_layers": 48, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256,
    "query_pre_attn_scalar": 256, "sliding_window": 1024,
}  # fmt: skip

LTX_2B = ModelSize(
    "LTX-Video 0.9.8 2B",
    "ltxv-2b-0.9.8-distilled",
    {
        "transformer": ltx_transformer("2b"),
        "vae": LTX_VAE,
        "upsampler": LTX_UPSAMPLER,
        "text_encoder": T5_XXL,
    },
    transformer="2b",
)
LTX_13B = replace(
    LTX_2B,
    name="LTX-Video 0.9.8 13B",
    card="ltxv-13b-0.9.8-distilled",
    configs={**LTX_2B.configs, "transformer": ltx_transformer("13b")},
    transformer="13b",
)
LTX_2_3 = ModelSize(
    "LTX-2.3",
    "ltx-2.3-22b-distilled",
    {
        "transformer": GATED,
        "vae": LTX2_VAE,
        "upsampler": LTX2_UPSAMPLER,
        "connectors": CONNECTORS,
        "audio_vae": {},  # diffusers' defaults
        "vocoder": VOCODER,
        "text_encoder": GEMMA_3_12B,
    },
    padded=1024,
    words=32,
)
SIZES_AT_FULL = (LTX_2B, LTX_13B, LTX_2_3)

TINY_LTX = replace(
    LTX_2B,
    name="tiny LTX-Video",
    configs={
        "transformer": ltx_transformer("tiny"),
        "vae": TINY_LTX_VAE,
        "upsampler": TINY_UPSAMPLER,
        "text_encoder": {
            **T5_XXL,
            "vocab_size": 64, "d_model": 64, "d_kv": 8, "d_ff": 64, "num_layers": 1,
            "num_heads": 4,
        },
    },
    transformer="tiny",
    shape=TINY_SHAPE,
    other_shape="96x64x9",
    draft_shape="64x32x9",
)  # fmt: skip
TINY_LTX2 = replace(
    LTX_2_3,
    name="tiny LTX-2",
    configs={
        "transformer": TINY_LTX2_TRANSFORMER,
        "vae": TINY_LTX2_VAE,
        "upsampler": {**TINY_UPSAMPLER, "use_rational_resampler": False},
        "connectors": TINY_CONNECTORS,
        "audio_vae": {
            "base_channels": 16, "num_res_blocks": 1, "latent_channels": 2, "mel_bins": 32,
            "resolution": 32,
        },
        "vocoder": TINY_VOCODER,
        "text_encoder": {
            **GEMMA_3_12B,
            "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
        },
    },
    padded=1024,
    words=8,
    shape=TINY_SHAPE,
    other_shape="96x64x9",
    draft_shape="64x32x9",
)  # fmt: skip
TINY_SIZES = (TINY_LTX, TINY_LTX, TINY_LTX2)
