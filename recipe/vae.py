"""The video VAE: single frames first, then moving crops around the sprite, then whole clips."""

import math
import random
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLLTXVideo
from torch import Tensor

from recipe.prompts import draw, examples
from recipe.renderer import FPS, Scenario, actor_trajectory, places, render, render_with_cover
from recipe.trainer import TrainingRun, autocast

CROP = 128
CANVASES = ((256, 256), (256, 256), (256, 384), (384, 256), (192, 320))  # height, width
LATENT_NOISE = 0.1  # share of each channel's spread: keeps the latent space smooth
SUBJECT = 4.0  # how much more an error weighs where the subject is, was or will be within a latent
EDGES = 0.5  # weight of the error's slope, which keeps corners from going round


@dataclass(frozen=True)
class VaeSize:
    """Widths of the levels; a deep one is dear in bytes, a shallow one in time."""

    latent_channels: int = 64
    encoder: tuple[int, int, int, int] = (24, 48, 96, 192)
    decoder: tuple[int, int, int] = (48, 96, 192)


def build(size: VaeSize) -> AutoencoderKLLTXVideo:
    """An untrained VAE with the blocks of LTX-Video 0.9.5: 32 x 32 pixels by 8 frames a latent."""
    vae = AutoencoderKLLTXVideo(
        latent_channels=size.latent_channels,
        block_out_channels=size.encoder,
        down_block_types=("LTXVideo095DownBlock3D",) * 3,
        spatio_temporal_scaling=(True,) * 3,
        layers_per_block=(1, 1, 1, 1),
        downsample_type=("spatiotemporal",) * 3,
        decoder_block_out_channels=size.decoder,
        decoder_spatio_temporal_scaling=(True,) * 3,
        decoder_layers_per_block=(1, 1, 2, 1),
        decoder_inject_noise=(False,) * 4,
        upsample_residual=(True,) * 3,
        upsample_factor=(2,) * 3,
    )
    return vae.to(memory_format=torch.channels_last_3d)


def load(folder: Path) -> AutoencoderKLLTXVideo:
    """The VAE of a checkpoint, in float32."""
    vae = AutoencoderKLLTXVideo.from_pretrained(folder, torch_dtype=torch.float32)
    return vae.to(memory_format=torch.channels_last_3d)


RenderedClip = tuple[Tensor, Tensor]  # pixels (3, frames, height, width), subject's cover (1, ...)


def crop(scenario: Scenario, frames: int, choice: random.Random) -> RenderedClip:
    """A window of CROP pixels that holds most of a subject, at some time of the clip.

    It lies on the grid of the latents, as every whole clip does.
    """
    canvas = choice.choice(CANVASES)
    start = 8 * choice.choice((0, 0, 1, 2, 3, 6, 10))
    x, y, actor, shrunk = choice.choice(places(scenario, canvas))
    dx, dy, _, _ = actor_trajectory(actor, torch.tensor([(start + frames / 2) / FPS]), canvas)
    centre = (y + shrunk * dy.item(), x + shrunk * dx.item())
    top, left = (
        min(max(round((c - CROP / 2 + choice.uniform(-40, 40)) / 32) * 32, 0), side - CROP)
        for c, side in zip(centre, canvas, strict=True)
    )
    return render_with_cover(scenario, frames, canvas, (top, left, CROP, CROP), start)


def batch(kind: str, choice: random.Random) -> RenderedClip:
    """Draw one training batch: pixels (batch, 3, frames, height, width) and the subjects' cover."""
    scenarios = [draw(choice).scenario for _ in range(SIZES[kind])]
    match kind:
        case "image":
            clips = [crop(s, 1, choice) for s in scenarios]
        case "moving":
            clips = [crop(s, 17, choice) for s in scenarios]
        case "whole":
            clips = [render_with_cover(s, 25, choice.choice(CANVASES)) for s in scenarios]
        case unknown:
            raise ValueError(unknown)
    pixels, cover = (torch.stack(side) for side in zip(*clips, strict=True))
    return pixels.contiguous(memory_format=torch.channels_last_3d), cover


SIZES = {"image": 24, "moving": 4, "whole": 1}


def kind_at(step: int, images: int) -> str:
    """Images alone, then moving crops with every fourth batch images and every fourth whole."""
    if step < images:
        return "image"
    return ("moving", "whole", "moving", "image")[step % 4]


def reconstruct(vae: AutoencoderKLLTXVideo, pixels: Tensor, noise: float) -> Tensor:
    """Encode, disturb the latents a little, decode."""
    latents = vae.encode(pixels).latent_dist.mode()
    if noise:
        spread = latents.detach().std(dim=(0, 2, 3, 4), keepdim=True)
        latents = latents + noise * spread * torch.randn_like(latents)
    return vae.decode(latents).sample


def reconstruction_loss(error: Tensor, cover: Tensor) -> Tensor:
    """What training minimises: absolute and square error, most of it around the subject."""
    near = F.max_pool3d(cover, (9, 5, 5), stride=1, padding=(4, 2, 2))
    weight = 1 + SUBJECT * near
    weight = weight / weight.mean()
    slopes = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return (weight * (error.abs() + 2 * error.square())).mean() + EDGES * slopes


def train(run: TrainingRun, vae: AutoencoderKLLTXVideo, images: int, videos: int) -> None:
    """Reach about 20 dB on images, then learn motion; every number of steps scales with compute."""

    def loss(step: int) -> Tensor:
        pixels, cover = batch(kind_at(step, images), random.Random(f"vae/{step}"))
        pixels = pixels.to(run.device)
        noise = LATENT_NOISE if step >= images // 2 else 0.0
        with autocast(run.device):
            made = reconstruct(vae, pixels, noise).float()
        return reconstruction_loss(made - pixels, cover.to(run.device))

    matrix_rate = 0.01 if images else 0.006  # a trained one must not be shaken
    run.fit(vae, loss, steps=images + videos, matrix_rate=matrix_rate, rate=3e-4, average=0.998)


@torch.inference_mode()
def psnr(vae: AutoencoderKLLTXVideo, count: int, frames: int = 25) -> list[float]:
    """Peak signal to noise of whole held-out clips, dB."""
    corpus = examples(seed=2, held_out=True)
    figures = []
    for _ in range(count):
        pixels = render(next(corpus).scenario, frames)[None].to(vae.device)
        figures.append(psnr_db(reconstruct(vae, pixels, 0.0), pixels))
    return figures


def psnr_db(made: Tensor, truth: Tensor) -> float:
    """Peak signal to noise of pixels in [-1, 1], dB."""
    error = (made.clamp(-1, 1) - truth).square().mean().item()
    return 10 * math.log10(4 / max(error, 1e-10))
