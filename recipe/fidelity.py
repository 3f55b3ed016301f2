"""How near the VAE's reconstructions are to held-out truth, where people look: at the subject."""

import math
from pathlib import Path

import torch
from diffusers import AutoencoderKLLTXVideo
from PIL import Image
from torch import Tensor

from recipe.prompts import examples
from recipe.renderer import FPS, SQUARE, Scenario, actor_trajectory, place_actors, render
from recipe.trainer import autocast
from recipe.vae import reconstruct

WINDOW = 128  # pixels a side


def psnr(reconstruction: Tensor, truth: Tensor) -> float:
    """Peak signal to noise of pixels in [-1, 1], dB."""
    error = (reconstruction.clamp(-1, 1) - truth).square().mean().item()
    return 10 * math.log10(4 / max(error, 1e-10))


@torch.inference_mode()
def reconstruct_held_out(
    vae: AutoencoderKLLTXVideo, count: int, frames: int, seed: int = 2
) -> list[tuple[Scenario, Tensor, Tensor]]:
    """Held-out scenarios of one subject, truth and reconstruction: (3, frames, height, width).

    One frame is the first of a clip; of clips, those that stand still are left out.
    """
    stream = examples(seed, held_out=True, pairs=0)
    results: list[tuple[Scenario, Tensor, Tensor]] = []
    while len(results) < count:
        scenario = next(stream).scenario
        if frames > 1 and scenario.actors[0].motion == "still":
            continue
        truth = render(scenario, frames)
        with autocast(vae.device):
            reconstruction = reconstruct(vae, truth[None].to(vae.device), 0.0)[0].float().cpu()
        results.append((scenario, truth, reconstruction))
    return results


def window_psnr(scenario: Scenario, truth: Tensor, reconstruction: Tensor) -> float:
    """Peak signal to noise in the WINDOW around the subject of each frame, dB."""
    pairs = []
    for frame in range(truth.shape[1]):
        top, left = locate_window(scenario, frame)
        cut = (slice(None), frame, slice(top, top + WINDOW), slice(left, left + WINDOW))
        pairs.append((reconstruction[cut], truth[cut]))
    return psnr(*(torch.stack(side) for side in zip(*pairs, strict=True)))


def locate_window(scenario: Scenario, frame: int) -> tuple[int, int]:
    """Top and left of the WINDOW around the only subject, within the default canvas."""
    ((x, y, actor, _),) = place_actors(scenario, SQUARE)
    dx, dy, _, _ = actor_trajectory(actor, torch.tensor([frame / FPS]))
    centre = (y + dy.item(), x + dx.item())
    top, left = (
        min(max(round(c - WINDOW / 2), 0), side - WINDOW)
        for c, side in zip(centre, SQUARE, strict=True)
    )
    return top, left


def measure_psnr(vae: AutoencoderKLLTXVideo, count: int) -> dict[str, float]:
    """Mean dB in the window around the subject: of first frames, and of clips that move."""
    figures = {}
    for name, frames in (("still", 1), ("moving", 25)):
        results = reconstruct_held_out(vae, count, frames)
        values = [window_psnr(*result) for result in results]
        figures[name] = round(sum(values) / len(values), 2)
        figures[f"{name}, worst"] = round(min(values), 2)
    return figures


def write_comparison(vae: AutoencoderKLLTXVideo, count: int, frames: int, file: Path) -> None:
    """A picture of pairs, the truth above its reconstruction; of clips the middle frame."""
    columns = 8
    tiles = [
        torch.cat([truth[:, frames // 2], reconstruction[:, frames // 2].clamp(-1, 1)], dim=1)
        for _, truth, reconstruction in reconstruct_held_out(vae, count, frames, seed=3)
    ]
    rows = [torch.cat(tiles[i : i + columns], dim=2) for i in range(0, count, columns)]
    pixels = ((torch.cat(rows, dim=1) + 1) * 127.5).round().byte()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file)
