"""The decoder alone, at the end: it learns to draw from latents as the student makes them.

The encoder stays, and with it what the transformer has learned. A clip's latents are disturbed and
read back by the student in one step: its errors are then much like those that sampling ends with.
"""

import random

import torch
from diffusers import AutoencoderKLLTXVideo
from torch import Tensor

from recipe.renderer import render_with_cover
from recipe.teacher import SHAPES, LatentDataset, TextToVideoModel, add_noise
from recipe.trainer import TrainingRun, autocast
from recipe.vae import LATENT_NOISE, disturb, reconstruction_loss

SIDE = 5  # latents of a piece: 160 pixels
MAX_SIGMA = 0.6  # from more noise, a subject comes back elsewhere than in the truth
CLEAN = 0.3  # share of pieces whose latents are the encoder's own


def train(
    run: TrainingRun,
    vae: AutoencoderKLLTXVideo,
    student: TextToVideoModel,
    data: LatentDataset,
    steps: int,
) -> None:
    """Train the decoder of `vae` on clips of the default shape."""
    vae.requires_grad_(False)
    vae.decoder.requires_grad_(True)
    mean, std = (value.to(run.device) for value in (data.mean, data.std))
    shelf, shape = data.clips_of("clip"), SHAPES["clip"]

    def loss(_: int, choice: random.Random) -> Tensor:
        row = choice.randrange(len(shelf.corpus))
        example = shelf.corpus[row]
        truth = render_with_cover(example.scenario, shape.frames, (shape.height, shape.width))
        clean = (shelf.clips[row : row + 1].float().to(run.device) - mean) / std
        with autocast(run.device):
            if choice.random() >= CLEAN:
                clean = predict_clean(student, clean, choice.uniform(0, MAX_SIGMA), example.prompt)
            top, left = (choice.randrange(side - SIDE + 1) for side in clean.shape[-2:])
            piece = clean[..., top : top + SIDE, left : left + SIDE] * std + mean
            drawn = vae.decode(disturb(piece, LATENT_NOISE)).sample.float()
        rows, columns = (slice(32 * start, 32 * (start + SIDE)) for start in (top, left))
        pixels, cover = (part[None, ..., rows, columns].to(run.device) for part in truth)
        return reconstruction_loss(drawn - pixels, cover)

    run.fit(vae.decoder, loss, steps=steps, matrix_rate=0.003, rate=1e-4, average=0.99)


@torch.no_grad()
def predict_clean(student: TextToVideoModel, clean: Tensor, sigma: float, prompt: str) -> Tensor:
    """Clean latents as the student sees them from noise of `sigma`; both normalised."""
    level = torch.full((len(clean),), sigma, device=clean.device)
    noisy = add_noise(clean, torch.randn_like(clean), level)
    return noisy - sigma * student.velocity(noisy, level, student.encode_prompts([prompt])).float()
