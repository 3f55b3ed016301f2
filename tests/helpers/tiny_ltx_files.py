"""Tiny twins of Lightricks' files: their names and layouts, random weights, no training."""

import io
import re
from pathlib import Path

import sentencepiece
import torch
from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel
from diffusers.pipelines.ltx.modeling_latent_upsampler import LTXLatentUpsamplerModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import T5Config, T5EncoderModel

from filmlet.models.ltx_key_mapping import HEADS
from tests.helpers.tiny_checkpoint import make_vae

SENTENCES = "a red ball is moving left on a white background, and the cat sees it from the moon. "


def make_twin(root: Path) -> Path:
    """Every file that the catalogue names of `Lightricks/LTX-Video`, small."""
    root.mkdir(parents=True)
    torch.manual_seed(0)
    text_encoder = T5EncoderModel(
        T5Config(
            vocab_size=200, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
            feed_forward_proj="gated-gelu",
        )
    )  # fmt: skip
    text_encoder.save_pretrained(root / "text_encoder", max_shard_size="30KB")
    make_tokenizer(root / "tokenizer")
    both = as_one(make_transformer(), make_vae(timed=True))
    for name in (
        "ltxv-2b-0.9.6-distilled-04-25", "ltxv-2b-0.9.6-dev-04-25", "ltxv-2b-0.9.8-distilled",
        "ltxv-13b-0.9.7-distilled", "ltxv-13b-0.9.8-distilled", "ltxv-13b-0.9.8-dev",
    ):  # fmt: skip
        save_file(both, root / f"{name}.safetensors", {"name": name})
    for name in ("ltxv-2b-0.9.8-distilled-fp8", "ltxv-13b-0.9.8-distilled-fp8"):
        save_file(
            {n: in_8_bits(n, t) for n, t in both.items()},
            root / f"{name}.safetensors",
            {"name": name},
        )
    upsampler = LTXLatentUpsamplerModel(in_channels=16, mid_channels=32, num_blocks_per_stage=1)
    save_file(upsampler.state_dict(), root / "ltxv-spatial-upscaler-0.9.8.safetensors")
    (root / "README.md").write_text("not needed")
    (root / "text_encoder" / "pytorch_model.bin").write_bytes(b"a pickle, not needed")
    return root


def make_transformer() -> LTXVideoTransformer3DModel:
    return LTXVideoTransformer3DModel(
        in_channels=16, out_channels=16, num_attention_heads=HEADS, attention_head_dim=4,
        cross_attention_dim=128, num_layers=2, caption_channels=32,
    )  # fmt: skip


def make_tokenizer(folder: Path) -> None:
    """As Lightricks' is: a sentencepiece model and its settings, no tokenizer.json."""
    folder.mkdir(parents=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([SENTENCES] * 50), model_writer=model, vocab_size=34,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    (folder / "spiece.model").write_bytes(model.getvalue())
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "T5Tokenizer", "extra_ids": 100, "model_max_length": 128,'
        ' "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}'
    )


def as_one(
    transformer: LTXVideoTransformer3DModel, vae: AutoencoderKLLTXVideo
) -> dict[str, Tensor]:
    """Both in one table, in bfloat16, under Lightricks' names."""
    ours = {
        f"model.diffusion_model.{_of_transformer(n)}": t
        for n, t in transformer.state_dict().items()
    }
    blocks = len(vae.encoder.down_blocks)
    ours |= {f"vae.{of_vae(n, blocks)}": t for n, t in vae.state_dict().items()}
    ours["vae.per_channel_statistics.channel"] = torch.zeros(16)
    return {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in ours.items()}


def in_8_bits(name: str, tensor: Tensor) -> Tensor:
    """The large matrices of the transformer's blocks in float8."""
    is_large = "transformer_blocks" in name and name.endswith("weight") and tensor.ndim == 2
    return tensor.to(torch.float8_e4m3fn) if is_large else tensor


def _of_transformer(name: str) -> str:
    for ours, theirs in (
        ("proj_in", "patchify_proj"), ("time_embed", "adaln_single"),
        ("norm_q", "q_norm"), ("norm_k", "k_norm"),
    ):  # fmt: skip
        name = name.replace(ours, theirs)
    return name


def of_vae(name: str, blocks: int) -> str:
    """Diffusers' name of a VAE's weight in Lightricks' numbering; blocks: of the encoder."""
    if name in ("latents_mean", "latents_std"):
        return f"per_channel_statistics.{name.removeprefix('latents_')}-of-means"
    name = re.sub(
        r"\.down_blocks\.(\d+)\.downsamplers\.0\.",
        lambda m: f".down_blocks.{2 * int(m[1]) + 1}.",
        name,
    )
    name = re.sub(
        r"\.down_blocks\.(\d+)\.resnets", lambda m: f".down_blocks.{2 * int(m[1])}.resnets", name
    )
    name = name.replace("encoder.mid_block", f"encoder.down_blocks.{2 * blocks}")
    name = re.sub(
        r"\.up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f".up_blocks.{2 * int(m[1]) + 1}.", name
    )
    name = re.sub(
        r"\.up_blocks\.(\d+)\.(resnets|time)",
        lambda m: f".up_blocks.{2 * int(m[1]) + 2}.{m[2]}",
        name,
    )
    name = name.replace("decoder.mid_block", "decoder.up_blocks.0")
    name = name.replace("resnets", "res_blocks").replace("conv_shortcut.conv", "conv_shortcut")
    if name.startswith(("decoder.time_embedder", "decoder.scale_shift_table")):
        name = name.replace("decoder.", "decoder.last_")
    return name
