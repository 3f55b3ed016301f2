"""From trained modules to the bundled checkpoint: diffusers' layout, bfloat16, no pickle."""

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKLLTXVideo, FlowMatchEulerDiscreteScheduler, LTXPipeline
from safetensors.torch import save_file
from torch import Tensor

from recipe.prompts import examples
from recipe.renderer import render
from recipe.teacher import SHIFT, LatentDataset, TextToVideoModel
from recipe.text import build_tokenizer


@torch.inference_mode()
def latent_to_rgb(vae: AutoencoderKLLTXVideo, data: LatentDataset, clips: int) -> Tensor:
    """Least squares from a normalised latent to the mean colour of its last frame's 32 x 32 pixels.

    Returns (channels + 1, 3) for colours in [0, 1]; the last row is added.
    """
    stream = examples(seed=5)
    inputs, targets = [], []
    for _ in range(clips):
        pixels = render(next(stream).scenario, 25)[None].to(vae.device)
        latents = vae.encode(pixels).latent_dist.mode().cpu()
        normal = (latents - data.mean) / data.std
        frames = pixels.cpu()[:, :, ::8]  # the last frame that each latent stands for
        colours = torch.nn.functional.avg_pool3d((frames + 1) / 2, (1, 32, 32))
        inputs.append(normal[0].flatten(1).T)
        targets.append(colours[0].flatten(1).T)
    rows = torch.cat(inputs)
    rows = torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
    return torch.linalg.lstsq(rows, torch.cat(targets)).solution


def export(
    folder: Path, vae: AutoencoderKLLTXVideo, pair: TextToVideoModel, data: LatentDataset
) -> int:
    """Write the checkpoint to `folder`, replacing what is there; returns its size in bytes."""
    projection = latent_to_rgb(vae, data, clips=min(64, data.count))
    vae.latents_mean.copy_(data.mean.flatten())
    vae.latents_std.copy_(data.std.flatten())
    pipe = LTXPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=vae.to(torch.bfloat16, memory_format=torch.contiguous_format),
        text_encoder=pair.text.to(torch.bfloat16),
        tokenizer=build_tokenizer(),  # training has set this one's padding
        transformer=pair.transformer.to(torch.bfloat16),
    )
    card = folder / "README.md"
    kept = card.read_text() if card.exists() else None
    shutil.rmtree(folder, ignore_errors=True)
    pipe.save_pretrained(folder, safe_serialization=True)
    _tidy_configs(folder)
    save_file({"latent_to_rgb": projection.contiguous()}, folder / "preview.safetensors")
    if kept is not None:
        card.write_text(kept)
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)  # an installed package is read by other users too
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def _tidy_configs(folder: Path) -> None:
    """Remove the path that a module was loaded from, and let all parts load in one dtype."""
    for file in folder.glob("*/config.json"):
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)
        if "dtype" in config:
            # transformers follows this entry, diffusers loads in float32 unless it is told.
            config["dtype"] = "float32"
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def write_scores(path: Path, table: dict[str, dict[str, float]]) -> None:
    """The results beside the checkpoint, for the model card."""
    path.write_text(json.dumps(table, indent=2) + "\n")
