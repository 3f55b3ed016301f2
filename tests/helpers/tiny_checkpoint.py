"""A tiny random checkpoint in diffusers' layout: every kind of module, no training."""

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)
from diffusers.pipelines.ltx.modeling_latent_upsampler import LTXLatentUpsamplerModel
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from filmlet.core.model_card import ModelCard

WORDS = ("a", "red", "ball", "moving", "left", "on", "white", "the")


def make_checkpoint(
    folder: Path, *, timed: bool = False, stochastic: bool = False, two_stages: bool = False
) -> Path:
    """Write the checkpoint; `timed`: the decoder takes a timestep and upsamples with residuals."""
    torch.manual_seed(0)
    pipe = LTXPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=stochastic),
        vae=make_vae(timed=timed),
        text_encoder=T5EncoderModel(
            T5Config(
                vocab_size=len(WORDS) + 3, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4,
                feed_forward_proj="gated-gelu",
            )
        ),
        tokenizer=make_tokenizer(),
        transformer=LTXVideoTransformer3DModel(
            in_channels=16, out_channels=16, num_attention_heads=2, attention_head_dim=24,
            cross_attention_dim=48, num_layers=2, caption_channels=32,
        ),
    )  # fmt: skip
    pipe.save_pretrained(folder)
    if two_stages:
        upsampler = LTXLatentUpsamplerModel(in_channels=16, mid_channels=32, num_blocks_per_stage=1)
        upsampler.save_pretrained(folder / "latent_upsampler")
    return folder


def make_vae(
    *, timed: bool = False, noisy: bool = False, causal: bool = False, down: str | None = None
) -> AutoencoderKLLTXVideo:
    """An untrained VAE, 32 x 32 x 8, of the first (plain) or the 0.9.5 (timed) kind.

    down: how the latter goes down, if not as it is trained to.
    """
    kind = "LTXVideo095DownBlock3D" if timed else "LTXVideoDownBlock3D"
    blocks = (16, 16, 32, 32) if timed else (16, 16, 32)
    vae = AutoencoderKLLTXVideo(
        latent_channels=16,
        block_out_channels=blocks,
        down_block_types=(kind,) * 3,
        spatio_temporal_scaling=(True,) * 3,
        layers_per_block=(1, 1, 1, 1),
        downsample_type=(down or "spatiotemporal",) * 3 if timed else ("conv",) * 3,
        decoder_block_out_channels=(16, 32, 64) if timed else (16, 16, 32),
        decoder_spatio_temporal_scaling=(True,) * 3,
        decoder_layers_per_block=(1, 2, 1, 1),
        decoder_inject_noise=(noisy,) * 4,
        upsample_residual=(timed,) * 3,
        upsample_factor=(2 if timed else 1,) * 3,
        timestep_conditioning=timed,
        decoder_causal=causal,
    )
    for name, weight in vae.named_parameters():
        if "per_channel_scale" in name:
            torch.nn.init.normal_(weight)
    vae.latents_mean.normal_()
    vae.latents_std.uniform_(0.5, 1.5)
    return vae.eval()


def make_tokenizer() -> PreTrainedTokenizerFast:
    table = {word: i for i, word in enumerate(("<pad>", "</s>", "<unk>", *WORDS))}
    reader = Tokenizer(models.WordLevel(table, unk_token="<unk>"))
    reader.normalizer = normalizers.Lowercase()
    reader.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\p{L}\p{N}]+"), "removed")
    reader.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=reader, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def folder_of(card: ModelCard) -> Path:
    """The folder in diffusers' layout that a card is of."""
    root = card.sources.transformer.root
    assert root
    return root
