"""The video VAE: single frames first, then moving crops around the sprite, then whole clips."""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLLTXVideo
from torch import Tensor

from recipe.frames import decode_frames, encode_frames
from recipe.prompts import draw
from recipe.renderer import FPS, Scenario, actor_trajectory, place_actors, render_with_cover
from recipe.trainer import TrainingRun, autocast

CROPS = {"image": 160, "moving": 160}  # pixels a side
CANVASES = ((256, 256), (256, 256), (256, 384), (384, 256), (192, 320))  # height, width
LATENT_NOISE = 0.04  # share of each channel's spread: keeps the latent space smooth
NO_NOISE = 200  # steps
SUBJECT = 4.0  # how much more an error weighs where the subject is, was or will be within a latent
EDGES = 0.5  # weight of the error's slope, which keeps corners from going round


@dataclass(frozen=True)
class VaeSize:
    """Widths of the levels; a deep one is dear in bytes, a shallow one in time."""

    latent_channels: int = 128
    encoder: tuple[int, int, int, int] = (48, 96, 192, 192)
    encoder_layers: tuple[int, int, int, int] = (1, 1, 1, 1)
    decoder: tuple[int, int, int] = (48, 64, 192)  # from the pixels inwards
    decoder_layers: tuple[int, int, int, int] = (1, 1, 2, 2)
    upsample_factor: tuple[int, int, int] = (1, 1, 2)  # what the innermost level is divided by


def build(size: VaeSize) -> AutoencoderKLLTXVideo:
    """An untrained VAE with the blocks of LTX-Video 0.9.5: 32 x 32 pixels by 8 frames a latent."""
    vae = AutoencoderKLLTXVideo(
        latent_channels=size.latent_channels,
        block_out_channels=size.encoder,
        down_block_types=("LTXVideo095DownBlock3D",) * 3,
        spatio_temporal_scaling=(True,) * 3,
        layers_per_block=size.encoder_layers,
        downsample_type=("spatiotemporal",) * 3,
        decoder_block_out_channels=size.decoder,
        decoder_spatio_temporal_scaling=(True,) * 3,
        decoder_layers_per_block=size.decoder_layers,
        decoder_inject_noise=(False,) * 4,
        upsample_residual=(True,) * 3,
        upsample_factor=size.upsample_factor,
    )
    return vae.to(memory_format=torch.channels_last_3d)


def load(folder: Path) -> AutoencoderKLLTXVideo:
    """The VAE of a checkpoint, in float32."""
    vae = AutoencoderKLLTXVideo.from_pretrained(folder, torch_dtype=torch.float32)
    return vae.to(memory_format=torch.channels_last_3d)


RenderedClip = tuple[Tensor, Tensor]  # pixels (3, frames, height, width), subject's cover (1, ...)


def crop(scenario: Scenario, frames: int, side: int, choice: random.Random) -> RenderedClip:
    """A window of so many pixels a side that holds most of a subject, at some time of the clip.

    It lies on the grid of the latents, as every whole clip does.
    """
    canvas = choice.choice(CANVASES)
    start = 8 * choice.choice((0, 0, 1, 2, 3, 6, 10))
    x, y, actor, shrunk = choice.choice(place_actors(scenario, canvas))
    dx, dy, _, _ = actor_trajectory(actor, torch.tensor([(start + frames / 2) / FPS]), canvas)
    centre = (y + shrunk * dy.item(), x + shrunk * dx.item())
    top, left = (
        min(max(round((c - side / 2 + choice.uniform(-40, 40)) / 32) * 32, 0), whole - side)
        for c, whole in zip(centre, canvas, strict=True)
    )
    return render_with_cover(scenario, frames, canvas, (top, left, side, side), start)


def batch(kind: str, choice: random.Random) -> RenderedClip:
    """Draw one training batch: pixels (batch, 3, frames, height, width) and the subjects' cover."""
    scenarios = [draw(choice).scenario for _ in range(SIZES[kind])]
    match kind:
        case "image":
            clips = [crop(s, 1, CROPS[kind], choice) for s in scenarios]
        case "moving":
            clips = [crop(s, 17, CROPS[kind], choice) for s in scenarios]
        case "whole":
            clips = [render_with_cover(s, 25, choice.choice(CANVASES)) for s in scenarios]
        case unknown:
            raise ValueError(unknown)
    pixels, cover = (torch.stack(side) for side in zip(*clips, strict=True))
    return pixels.contiguous(memory_format=torch.channels_last_3d), cover


SIZES = {"image": 16, "moving": 2, "whole": 1}  # of a worker's batch


VIDEO_KINDS = ("moving", "whole", "moving", "image")  # in turns


def reconstruct(vae: AutoencoderKLLTXVideo, pixels: Tensor, noise: float) -> Tensor:
    """Encode, disturb the latents a little, decode: (batch, 3, frames, height, width)."""
    if pixels.shape[2] == 1:
        frames = pixels[:, :, 0].contiguous(memory_format=torch.channels_last)
        return decode_frames(vae, disturb(encode_frames(vae, frames), noise))[:, :, None]
    latents = vae.encode(pixels).latent_dist.mode()
    return vae.decode(disturb(latents, noise)).sample


def disturb(latents: Tensor, noise: float) -> Tensor:
    """Latents plus noise. noise: its share of each channel's spread."""
    axes = [axis for axis in range(latents.ndim) if axis != 1]
    spread = latents.detach().std(dim=axes, keepdim=True)
    return latents + noise * spread * torch.randn_like(latents)


def reconstruction_loss(error: Tensor, cover: Tensor) -> Tensor:
    """What training minimises: absolute and square error, most of it around the subject."""
    near = cover
    for size in ((9, 1, 1), (1, 5, 1), (1, 1, 5)):
        near = F.max_pool3d(near, size, stride=1, padding=[side // 2 for side in size])
    weight = 1 + SUBJECT * near
    weight = weight / weight.mean()
    slopes = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return (weight * (error.abs() + 2 * error.square())).mean() + EDGES * slopes


def train_images(run: TrainingRun, vae: AutoencoderKLLTXVideo, steps: int) -> None:
    """Learn single frames from nothing; no motion is worth learning before they are sharp."""

    def loss(step: int, choice: random.Random) -> Tensor:
        return measure_loss(run, vae, "image", LATENT_NOISE if step >= NO_NOISE else 0.0, choice)

    run.fit(vae, loss, steps=steps, matrix_rate=0.01, rate=3e-4, average=0.998)


def train_videos(run: TrainingRun, vae: AutoencoderKLLTXVideo, steps: int) -> None:
    """Learn motion, and forget no single frame, with a VAE that knows single frames."""

    def loss(step: int, choice: random.Random) -> Tensor:
        return measure_loss(run, vae, VIDEO_KINDS[step % 4], LATENT_NOISE, choice)

    run.fit(vae, loss, steps=steps, matrix_rate=0.006, rate=3e-4, average=0.998)


def measure_loss(
    run: TrainingRun, vae: AutoencoderKLLTXVideo, kind: str, noise: float, choice: random.Random
) -> Tensor:
    """The error of a new batch of this kind."""
    pixels, cover = batch(kind, choice)
    pixels = pixels.to(run.device)
    with autocast(run.device):
        reconstruction = reconstruct(vae, pixels, noise).float()
    return reconstruction_loss(reconstruction - pixels, cover.to(run.device))
