"""A clip for a prompt, from a checkpoint or from what is being trained."""

import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLLTXVideo
from torch import Tensor

from recipe import vae
from recipe.teacher import TextToVideoModel, sample

LATENT = (4, 8, 8)  # frames, height and width of the default clip: 25 frames of 256x256


@dataclass(frozen=True, eq=False)
class Sampler:
    """What makes a clip; mean and std are those of the VAE's latents, of each channel."""

    pair: TextToVideoModel
    vae: AutoencoderKLLTXVideo
    mean: Tensor
    std: Tensor
    steps: int
    guidance: float = 1.0

    @classmethod
    def from_checkpoint(cls, checkpoint: Path, steps: int, guidance: float = 1.0) -> "Sampler":
        """That of a checkpoint in diffusers' layout."""
        coder = vae.load(checkpoint / "vae").eval()
        pair = TextToVideoModel.from_pretrained(checkpoint).eval()
        return cls(pair, coder, coder.latents_mean, coder.latents_std, steps, guidance)

    @torch.inference_mode()
    def make(
        self, prompt: str, latent: tuple[int, int, int] = LATENT, picture: Tensor | None = None
    ) -> Tensor:
        """A clip whose noise depends on the prompt alone: (3, frames, height, width) in [-1, 1].

        latent: its frames, height and width; picture: the first frame, where it is given.
        """
        device, channels = self.vae.device, self.mean.numel()
        generator = torch.Generator().manual_seed(zlib.crc32(prompt.encode()))
        noise = torch.randn((1, channels, *latent), generator=generator).to(device)
        mean, std = (t.view(1, -1, 1, 1, 1).to(device) for t in (self.mean, self.std))
        first = None
        if picture is not None:
            encoded = self.vae.encode(picture[None].to(device)).latent_dist.mode()
            first = (encoded - mean) / std
        latents = sample(self.pair, noise, [prompt], self.steps, self.guidance, first)
        clip: Tensor = self.vae.decode(latents * std + mean).sample[0]
        return clip.cpu()
