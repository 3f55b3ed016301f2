"""Twins of LTX-2 in Lightricks' and ComfyUI's layouts: the same weights under their names."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText

from filmlet.core.model_card import ComponentFiles, Components
from filmlet.models.ltx2_cards import LTX2_CARDS
from tests.helpers.tiny_ltx_files import of_vae

Table = dict[str, Tensor]
LAYOUTS = {"2.0": ("shards", "comfy"), "2.3": ("shards", "comfy"), "2.5": ("split",)}
FULL = torch.finfo(torch.float8_e4m3fn).max


def folder_files(folder: Path) -> ComponentFiles:
    """The components of a folder in diffusers' layout."""
    names = (
        "transformer",
        "vae",
        "text_encoder",
        "tokenizer",
        "connectors",
        "audio_vae",
        "vocoder",
    )
    return Components(
        **{name: folder / name for name in names}, upsampler=folder / "latent_upsampler"
    )


def write_layout(folder: Path, out: Path, version: str, layout: str) -> ComponentFiles:
    """Write a twin anew. layout: "shards" or "comfy", by Gemma's files, or "split"."""
    out.mkdir(parents=True)
    save(upsampler_table(folder), out / "upscaler.safetensors", config=upsampler_config(folder))
    if layout == "split":
        return write_split_files(folder, out, version)
    one, gemma = out / f"ltx-{version}.safetensors", out / "gemma"
    table = diffusion_table(folder) | vae_table(folder) | sound_table(folder)
    table |= projection_table(folder)
    save(table, one, **metadata(folder, version))
    if layout == "shards":
        model = AutoModelForImageTextToText.from_pretrained(folder / "text_encoder")
        model.to(torch.bfloat16).save_pretrained(gemma, max_shard_size="20KB")
    else:
        gemma = out / "gemma.safetensors"
        save(comfy_gemma3_table(folder), gemma)
    tokenizer = Path(shutil.copytree(folder / "tokenizer", out / "tokenizer"))
    return Components(
        transformer=one, vae=one, connectors=one, audio_vae=one, vocoder=one,
        text_encoder=gemma, tokenizer=tokenizer,
        upsampler=out / "upscaler.safetensors",
    )  # fmt: skip


def write_repositories(folders: dict[str, Path], root: Path) -> dict[str, Path]:
    """Every repository that the catalogue names of LTX-2, small, by its name at the Hub.

    folders: twins in diffusers' layout by version; 2.0 and 2.3 share the text encoder of 2.3.
    """
    places: dict[str, Path] = {}
    for card in LTX2_CARDS:
        version = card.version
        made = write_layout(
            folders[version], root / f"made-{card.name}", version, LAYOUTS[version][-1]
        )
        if card.stored_bytes == 1:
            made = replace(made, transformer=to_8_bits(made.transformer, root / card.name))
        lora = write_distilled_lora(folders[version], root / f"lora-{card.name}.safetensors")
        made = replace(made, distilled_lora=lora)
        for name, source in card.sources.present():
            place = root / source.repo / source.path
            places[source.repo] = root / source.repo
            if not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                copy = shutil.copytree if getattr(made, name).is_dir() else shutil.copy
                copy(getattr(made, name), place)
    return places


def write_split_files(folder: Path, out: Path, version: str) -> ComponentFiles:
    """As Lightricks/LTX-2.5 has them."""
    whole = metadata(folder, version)
    diffusion, gemma = out / "transformer.safetensors", out / "gemma4-with-proj.safetensors"
    video, sound = out / "video-vae-conv.safetensors", out / "audio-vae.safetensors"
    config = json.loads(whole["config"])
    save(diffusion_table(folder), diffusion, **whole | part_of(config, "transformer"))
    save(vae_table(folder, prefix=""), video, **part_of(config, "vae"))
    save(sound_table(folder), sound, **part_of(config, "audio_vae", "vocoder"))
    about = (folder / "text_encoder" / "config.json").read_text()
    save(comfy_gemma4_table(folder) | projection_table(folder), gemma, gemma_config=about)
    return Components(
        transformer=diffusion, connectors=diffusion, vae=video, audio_vae=sound, vocoder=sound,
        text_encoder=gemma, tokenizer=gemma, upsampler=out / "upscaler.safetensors",
    )  # fmt: skip


def save(table: Table, path: Path, **about: str) -> None:
    """In bfloat16, but for tables of modulation and what is no number with a fraction."""

    def narrow(name: str, tensor: Tensor) -> Tensor:
        is_kept = "scale_shift_table" in name or tensor.dtype != torch.float32
        return tensor.contiguous() if is_kept else tensor.to(torch.bfloat16).contiguous()

    save_file({name: narrow(name, tensor) for name, tensor in table.items()}, path, about)


def metadata(folder: Path, version: str) -> dict[str, str]:
    """What a header says: all of it in `config`, and the version since 2.3."""
    transformer, connectors, vae, vocoder = (
        read_config(folder, name) for name in ("transformer", "connectors", "vae", "vocoder")
    )
    config: dict[str, Any] = {
        "transformer": {
            "num_attention_heads": transformer["num_attention_heads"],
            "audio_num_attention_heads": transformer["audio_num_attention_heads"],
            "caption_channels": transformer["caption_channels"],
            "connector_num_attention_heads": connectors["video_connector_num_attention_heads"],
            "connector_positional_embedding_max_pos": [4096],
            "frequencies_precision": "float64",
            "rope_type": "split",
            "av_ca_timestep_scale_multiplier": 1000,
        },
        "vae": {
            "_class_name": "CausalVideoAutoencoder",
            "spatial_padding_mode": vae["decoder_spatial_padding_mode"],
        },
        "audio_vae": {"model": {}},
        "vocoder": {"upsample_rates": vocoder["upsample_factors"], "output_sampling_rate": 24_000},
    }
    if version != "2.0":
        config["vocoder"] = {
            "vocoder": {"upsample_rates": vocoder["upsample_factors"]},
            "bwe": {
                "upsample_rates": vocoder["bwe_upsample_factors"], "hop_length": 80,
                "input_sampling_rate": 16_000, "output_sampling_rate": 48_000,
            },
        }  # fmt: skip
    about = {"config": json.dumps(config)}
    return about if version == "2.0" else about | {"model_version": f"{version}.0"}


def part_of(config: dict[str, Any], *names: str) -> dict[str, str]:
    return {"config": json.dumps({name: config[name] for name in names})}


def read_config(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / name / "config.json").read_text())
    return found


def table_of(folder: Path, name: str) -> Table:
    (file,) = (folder / name).glob("*.safetensors")
    return load_file(file)


def rename(table: Table, to_theirs: Callable[[str], str]) -> Table:
    return {to_theirs(name): tensor for name, tensor in table.items()}


def diffusion_table(folder: Path) -> Table:
    """Transformer and connectors, without what they read Gemma's layers by."""
    connectors = table_of(folder, "connectors")
    blocks = {n: t for n, t in connectors.items() if "text_proj_in" not in n}
    return rename(table_of(folder, "transformer"), of_transformer) | rename(blocks, of_connectors)


def projection_table(folder: Path) -> Table:
    connectors = table_of(folder, "connectors")
    return rename({n: t for n, t in connectors.items() if "text_proj_in" in n}, of_projections)


def of_transformer(name: str) -> str:
    """Diffusers' name of a weight in Lightricks' words."""
    for ours, theirs in (
        (r"^(audio_)?time_embed\.", r"\1adaln_single."),
        ("proj_in", "patchify_proj"),
        ("av_cross_attn_(video|audio)_scale_shift", r"av_ca_\1_scale_shift_adaln_single"),
        ("av_cross_attn_(?:video|audio)_(a2v|v2a)_gate", r"av_ca_\1_gate_adaln_single"),
        ("(video|audio)_a2v_cross_attn_scale_shift_table", r"scale_shift_table_a2v_ca_\1"),
        ("norm_(q|k)", r"\1_norm"),
        ("prompt_adaln", "prompt_adaln_single"),
    ):
        name = re.sub(ours, theirs, name)
    return f"model.diffusion_model.{name}"


def of_connectors(name: str) -> str:
    name = re.sub("^(video|audio)_connector", r"\1_embeddings_connector", name)
    name = name.replace("transformer_blocks", "transformer_1d_blocks")
    return "model.diffusion_model." + re.sub("norm_(q|k)", r"\1_norm", name)


def of_projections(name: str) -> str:
    modality, leaf = re.fullmatch(r"(|video_|audio_)text_proj_in(\..+)", name).groups()  # type: ignore[union-attr]
    return f"text_embedding_projection.{modality}aggregate_embed{leaf}"


def vae_table(folder: Path, prefix: str = "vae.") -> Table:
    def to_theirs(name: str) -> str:
        name = name.replace("conv_shortcut.", "kept_shortcut.")  # which 0.9 calls otherwise
        return prefix + of_vae(name, 4).replace("kept_shortcut.", "conv_shortcut.")

    table = rename(table_of(folder, "vae"), to_theirs)
    return table | {f"{prefix}per_channel_statistics.channel": torch.zeros(16)}


def sound_table(folder: Path) -> Table:
    def of_audio_vae(name: str) -> str:
        if name.startswith("latents_"):
            name = f"per_channel_statistics.{name.removeprefix('latents_')}-of-means"
        return f"audio_vae.{name}"

    def of_vocoder(name: str) -> str:
        for ours, theirs in (
            ("upsamplers", "ups"), ("resnets", "resblocks"), ("conv_in", "conv_pre"),
            ("conv_out", "conv_post"), ("act_out", "act_post"),
            (r"downsample\.", "downsample.lowpass."),
        ):  # fmt: skip
            name = re.sub(ours, theirs, name)
        return f"vocoder.{name}"

    return rename(table_of(folder, "audio_vae"), of_audio_vae) | rename(
        table_of(folder, "vocoder"), of_vocoder
    )


def comfy_gemma3_table(folder: Path) -> Table:
    """As ComfyUI's: flat, with the vision tower and the tokenizer's own model."""
    table = rename(table_of(folder, "text_encoder"), flatten_gemma)
    return table | {"spiece_model": torch.zeros(8, dtype=torch.uint8)}


def comfy_gemma4_table(folder: Path) -> Table:
    table = rename(table_of(folder, "text_encoder"), flatten_gemma)
    assets = {
        "tokenizer_json": folder / "tokenizer" / "tokenizer.json",
        "hf_asset__tokenizer_config.json": folder / "tokenizer" / "tokenizer_config.json",
    }
    return table | {name: bytes_tensor(path.read_bytes()) for name, path in assets.items()}


def flatten_gemma(name: str) -> str:
    for ours, theirs in (
        ("model.language_model.", "model."), ("language_model.model.", "model."),
        ("model.vision_tower.", "vision_model."), ("model.vision_embedder.", "vision_model."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("model.embed_vision.", "multi_modal_projector."),
        ("model.embed_audio.", "audio_projector."),
    ):  # fmt: skip
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def bytes_tensor(content: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(content, np.uint8).copy())


def upsampler_table(folder: Path) -> Table:
    return table_of(folder, "latent_upsampler")


def upsampler_config(folder: Path) -> str:
    config = read_config(folder, "latent_upsampler")
    return json.dumps(
        {
            "in_channels": config["in_channels"], "mid_channels": config["mid_channels"],
            "num_blocks_per_stage": config["num_blocks_per_stage"], "dims": 3,
            "spatial_upsample": True, "temporal_upsample": False, "spatial_scale": 2.0,
            "rational_resampler": config["use_rational_resampler"],
        }
    )  # fmt: skip


def lora_matrices(folder: Path, seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """Random ones of rank 2 for every linear layer of a twin's transformer: down and up."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name.removesuffix(".weight"): (
            torch.randn(2, tensor.shape[1], generator=generator) * 0.3,
            torch.randn(tensor.shape[0], 2, generator=generator) * 0.3,
        )
        for name, tensor in table_of(folder, "transformer").items()
        if name.endswith(".weight") and tensor.ndim == 2
    }


def write_distilled_lora(folder: Path, out: Path) -> Path:
    """As the published ones: Lightricks' names, no alpha, and something for the connectors."""
    table: Table = {}
    for layer, (down, up) in lora_matrices(folder).items():
        name = of_transformer(layer).removeprefix("model.")
        table |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    for part, shape in (("A", (2, 48)), ("B", (16, 2))):
        name = f"text_embedding_projection.aggregate_embed.lora_{part}.weight"
        table[name] = torch.ones(shape)
    save_file(table, out)
    return out


def make_full_model(folder: Path, out: Path) -> Path:
    """Copy a twin as a full model of two stages: its schedule is shifted, and it has the LoRA."""
    shutil.copytree(folder, out)
    scheduler = out / "scheduler" / "scheduler_config.json"
    scheduler.write_text(
        json.dumps(json.loads(scheduler.read_text()) | {"use_dynamic_shifting": True})
    )
    write_distilled_lora(folder, out / "distilled_lora.safetensors")
    return out


def to_8_bits(file: Path, out: Path, *, is_scaled: bool = True) -> Path:
    """Write a file with the linear layers of the transformer's blocks in float8.

    is_scaled: with a scale for each, as the published ones; else cast as they are.
    """
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        about = opened.metadata()
    table: Table = {}
    for name, tensor in load_file(file).items():
        is_linear = "diffusion_model.transformer_blocks" in name and tensor.ndim == 2
        if not is_linear or not re.search(r"(to_[qkv]|to_out\.0|net\.\S+)\.weight$", name):
            table[name] = tensor
            continue
        scale = tensor.abs().max().float() / FULL if is_scaled else torch.tensor(1.0)
        table[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
        if is_scaled:
            table[f"{name}_scale"] = scale
            table[name.removesuffix("weight") + "input_scale"] = torch.tensor(0.5)
    save_file(table, out, about)
    return out
