"""Tiny random twins of LTX-2.0, 2.3 and 2.5 in diffusers' layout: every module, no training."""

from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    FlowMatchEulerDiscreteScheduler,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2 import (
    LTX2LatentUpsamplerModel,
    LTX2TextConnectors,
    LTX2Vocoder,
    LTX2VocoderWithBWE,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

Module = TypeVar("Module", bound=nn.Module)
VERSIONS = ("2.0", "2.3", "2.5")
MAX_TOKENS = 64  # a multiple of the registers
SENTENCES = (
    "a red ball is moving left on a white background",
    "the cat sees the moon from a small boat, and the sea is calm",
    "a woman is singing in the rain while a train passes by",
    "waves roll over the sand and a bell rings twice",
)


def make_ltx2(folder: Path, version: str) -> Path:
    """Write the twin of a version, in float32: what it is compared with is exact."""
    torch.manual_seed(100 + int(version.replace(".", "")))
    tokenizer = make_tokenizer(version)
    pipe = LTX2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=False, shift_terminal=None),
        vae=make_vae(version),
        audio_vae=make_audio_vae(),
        text_encoder=make_text_encoder(version, len(tokenizer)),
        tokenizer=tokenizer,
        connectors=make_connectors(version),
        transformer=make_transformer(version),
        vocoder=make_vocoder(version),
    )
    pipe.save_pretrained(folder)
    make_upsampler(version).save_pretrained(folder / "latent_upsampler")
    return folder


def make_tokenizer(version: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE with Gemma's special tokens; Gemma 4's puts no <bos> before the text."""
    reader = Tokenizer(models.BPE(unk_token="<unk>"))
    reader.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    reader.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<eos>", "<bos>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    reader.train_from_iterator(SENTENCES, trainer)
    if version != "2.5":
        reader.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", 2)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=reader, padding_side="left", model_max_length=1024,
        pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>",
    )  # fmt: skip


def make_text_encoder(version: str, vocabulary: int) -> PreTrainedModel:
    """The whole multimodal class, as the published folders hold it."""
    text: dict[str, Any] = {
        "vocab_size": vocabulary, "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
        "sliding_window": 1024, "max_position_embeddings": 2048,
    }  # fmt: skip
    if version != "2.5":
        config = Gemma3Config(
            text_config=text | {"query_pre_attn_scalar": 8},
            vision_config={
                "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 32,
                "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
            },
            mm_tokens_per_image=4, image_token_index=vocabulary - 1,
            boi_token_index=vocabulary - 2, eoi_token_index=vocabulary - 3,
        )  # fmt: skip
        return randomize(Gemma3ForConditionalGeneration(config))
    from transformers import Gemma4UnifiedConfig, Gemma4UnifiedForConditionalGeneration

    names = ("boi", "eoi", "image", "video", "boa", "eoa", "audio")
    ids = {f"{name}_token_id": vocabulary - 1 - i for i, name in enumerate(names)}
    ids["eoa_token_index"] = ids.pop("eoa_token_id")
    wide = Gemma4UnifiedConfig(
        text_config=text | {"layer_types": ["sliding_attention", "full_attention"]},
        vision_config={
            "mm_embed_dim": 16, "mm_posemb_size": 8, "output_proj_dims": 16, "patch_size": 4,
            "pooling_kernel_size": 1,
        },
        audio_config={"audio_embed_dim": 8},
        **ids,
    )  # fmt: skip
    return randomize(Gemma4UnifiedForConditionalGeneration(wide))


def make_transformer(version: str) -> LTX2VideoTransformer3DModel:
    is_later = version != "2.0"
    transformer = LTX2VideoTransformer3DModel(
        in_channels=16, out_channels=16, num_attention_heads=2, attention_head_dim=16,
        cross_attention_dim=32, audio_in_channels=16, audio_out_channels=16,
        audio_num_attention_heads=2, audio_attention_head_dim=8, audio_cross_attention_dim=16,
        num_layers=2, caption_channels=16, rope_type="split", rope_double_precision=True,
        cross_attn_timestep_scale_multiplier=1000,
        gated_attn=is_later, cross_attn_mod=is_later, audio_gated_attn=is_later,
        audio_cross_attn_mod=is_later, perturbed_attn=is_later, use_prompt_embeddings=not is_later,
        ff_bias=version != "2.5", use_keyframes_abs_pos_embedding=version == "2.5",
    )  # fmt: skip
    return randomize(transformer)


def make_connectors(version: str) -> LTX2TextConnectors:
    is_later = version != "2.0"
    heads: dict[str, Any] = {
        "video_connector_num_attention_heads": 2, "audio_connector_num_attention_heads": 2,
        "video_connector_attention_head_dim": 16 if is_later else 8,
        "audio_connector_attention_head_dim": 8,
        "video_connector_num_layers": 2, "audio_connector_num_layers": 2,
        "video_connector_num_learnable_registers": 8, "audio_connector_num_learnable_registers": 8,
    }  # fmt: skip
    connectors = LTX2TextConnectors(
        caption_channels=16, text_proj_in_factor=3, rope_type="split", rope_double_precision=True,
        video_gated_attn=is_later, audio_gated_attn=is_later, per_modality_projections=is_later,
        proj_bias=is_later, video_hidden_dim=32, audio_hidden_dim=16, **heads,
    )  # fmt: skip
    return randomize(connectors)


def make_vae(version: str) -> AutoencoderKLLTX2Video:
    is_later = version != "2.0"
    layers = 5 if is_later else 4
    ups = ("spatiotemporal", "spatiotemporal", "temporal", "spatial")
    vae = AutoencoderKLLTX2Video(
        latent_channels=16,
        block_out_channels=(8, 16, 32, 32) if is_later else (8, 16, 32, 64),
        decoder_block_out_channels=(8, 16, 16, 32) if is_later else (8, 16, 32),
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * layers,
        decoder_spatio_temporal_scaling=(True,) * (layers - 1),
        decoder_inject_noise=(False,) * layers,
        upsample_type=ups if is_later else ("spatiotemporal",) * 3,
        upsample_residual=(not is_later,) * (layers - 1),
        upsample_factor=(2, 2, 1, 2) if is_later else (2, 2, 2),
        decoder_causal=False,
        decoder_spatial_padding_mode="zeros" if is_later else "reflect",
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
    )
    return randomize(vae)


def make_audio_vae() -> AutoencoderKLLTX2Audio:
    audio_vae = AutoencoderKLLTX2Audio(
        base_channels=16, output_channels=2, ch_mult=(1, 1, 2), num_res_blocks=1, in_channels=2,
        resolution=32, latent_channels=2, mel_bins=32,
    )  # fmt: skip
    return randomize(audio_vae)


def make_vocoder(version: str) -> LTX2Vocoder | LTX2VocoderWithBWE:
    small: dict[str, Any] = {
        "in_channels": 64, "hidden_channels": 64, "resnet_kernel_sizes": [3],
        "resnet_dilations": [[1, 3, 5]],
    }  # fmt: skip
    if version == "2.0":
        return randomize(LTX2Vocoder(**small | {"hidden_channels": 32}))
    wide = LTX2VocoderWithBWE(
        **small, bwe_in_channels=64, bwe_hidden_channels=32, bwe_resnet_kernel_sizes=[3],
        bwe_resnet_dilations=[[1, 3, 5]], num_mel_channels=32,
    )  # fmt: skip
    wide.mel_stft.mel_basis.uniform_(0, 0.1)
    for basis in (wide.mel_stft.stft_fn.forward_basis, wide.mel_stft.stft_fn.inverse_basis):
        basis.normal_(std=0.05)
    return randomize(wide)


def make_upsampler(version: str) -> LTX2LatentUpsamplerModel:
    upsampler = LTX2LatentUpsamplerModel(
        in_channels=16, mid_channels=32, num_blocks_per_stage=1,
        use_rational_resampler=version == "2.0",
    )  # fmt: skip
    return randomize(upsampler)


def randomize(module: Module) -> Module:
    """What a fresh module has as zeros or ones becomes random: leaving it out must be visible.

    Values become those of bfloat16, as in the published files; tables of modulation are float32.
    """
    for name, tensor in module.state_dict().items():
        if name.endswith("latents_std"):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith("latents_mean"):
            tensor.normal_()
        elif tensor.is_floating_point() and tensor.unique().numel() == 1:
            tensor.add_(torch.randn_like(tensor) * 0.1)
        if tensor.is_floating_point() and "scale_shift_table" not in name:
            tensor.copy_(tensor.to(torch.bfloat16))
    return module.eval()
