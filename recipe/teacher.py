"""The teacher: text encoder and transformer, trained together by flow matching on cached latents.

Single latent frames first, whole clips after; then it needs many steps and guidance to sample.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, T5EncoderModel

from recipe.corpus import OFTEN, Example, describe, examples
from recipe.run import Run
from recipe.text import build_encoder, build_tokenizer, tokenize
from recipe.world import FPS, SCENES, render, scenery

FRAMES = 25
ROPE_SCALE = (8 / FPS, 32, 32)
# All latents of a clip share its scene and motion, so these show through all but the strongest
# noise: they are learned, and decided in sampling, only near 1. (LTX's own schedules do the same.)
SHIFT = 8.0
NEAR_ONE = 0.3  # share of training levels drawn from the last 4 % below 1
# The least squares of a clip are nearly all scenery: a subject covers a sixth of it, and only a
# twelfth of the variance changes in time. Weights hardly move the minimum, they say what
# comes first; without them scenes are perfect and motion stays at chance.
SCENERY = 0.25  # weight of a token that no subject touches; the mean weight is 1
CHANGE = 4.0  # weight of what changes in time against what stays
STILL_EVERY = 4  # a batch in so many is of first frames alone: three times the subjects
DROP_PROMPT = 0.1  # share of empty prompts, for guidance
GIVEN = 0.25  # share of clips whose first picture is given: its latents stay clean, at level 0


class Pair(nn.Module):
    """Text encoder and transformer as one thing to train."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text: T5EncoderModel,
        transformer: LTXVideoTransformer3DModel,
    ) -> None:
        super().__init__()
        self.tokenizer, self.text, self.transformer = tokenizer, text, transformer

    @classmethod
    def fresh(cls, latent_channels: int, width: int = 256, layers: int = 6) -> "Pair":
        """An untrained one of pocket's size."""
        tokenizer = build_tokenizer()
        text = build_encoder(len(tokenizer))
        transformer = LTXVideoTransformer3DModel(
            in_channels=latent_channels,
            out_channels=latent_channels,
            num_attention_heads=width // 32,
            attention_head_dim=32,
            cross_attention_dim=width,
            num_layers=layers,
            caption_channels=text.config.d_model,
        )
        # Each block starts as the identity, so that depth does no harm at first.
        for block in transformer.transformer_blocks:
            for last in (block.attn1.to_out[0], block.attn2.to_out[0], block.ff.net[2]):
                nn.init.zeros_(last.weight)
        return cls(tokenizer, text, transformer)

    @classmethod
    def of(cls, checkpoint: Path) -> "Pair":
        """Those of any LTX checkpoint in diffusers' layout, in float32."""
        return cls(
            AutoTokenizer.from_pretrained(checkpoint / "tokenizer"),
            T5EncoderModel.from_pretrained(checkpoint / "text_encoder", dtype=torch.float32),
            LTXVideoTransformer3DModel.from_pretrained(
                checkpoint / "transformer", torch_dtype=torch.float32
            ),
        )

    def start_from(self, checkpoint: Path) -> None:
        """Take over the weights of a checkpoint; what has another shape there starts anew."""
        for module, name in ((self.text, "text_encoder"), (self.transformer, "transformer")):
            (file,) = (checkpoint / name).glob("*.safetensors")
            own = module.state_dict()
            kept = {n: t for n, t in load_file(file).items() if own[n].shape == t.shape}
            module.load_state_dict(kept, strict=False)

    def read(
        self, prompts: Sequence[str], choice: random.Random | None = None
    ) -> tuple[Tensor, Tensor]:
        """Embeddings (batch, longest, width) and their mask (batch, longest)."""
        ids, mask = tokenize(self.tokenizer, prompts, choice)
        device = self.text.device
        return self.text(ids.to(device))[0][:, : mask.shape[1]], mask.to(device)

    def velocity(self, latents: Tensor, sigma: Tensor, text: tuple[Tensor, Tensor]) -> Tensor:
        """The flow at `latents` (batch, channels, frames, height, width).

        sigma: (batch,), or (batch, frames) where frames have levels of their own.
        """
        _, _, frames, height, width = latents.shape
        levels = sigma[:, None] if sigma.ndim == 1 else sigma.repeat_interleave(height * width, 1)
        flow = self.transformer(
            hidden_states=latents.flatten(2).transpose(1, 2),
            encoder_hidden_states=text[0],
            timestep=levels * 1000,
            encoder_attention_mask=text[1],
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=ROPE_SCALE,
            return_dict=False,
        )[0]
        return flow.transpose(1, 2).unflatten(2, (frames, height, width))

    def guided(
        self, latents: Tensor, sigma: Tensor, prompts: Sequence[str], scale: float
    ) -> Tensor:
        """Classifier-free guidance: away from the empty prompt."""
        text = self.read([*prompts, *[""] * len(prompts)])
        both = self.velocity(torch.cat([latents] * 2), torch.cat([sigma] * 2), text)
        flow, away = both.chunk(2)
        return away + scale * (flow - away)


@dataclass(frozen=True, eq=False)
class Latents:
    """Encoded training clips: normalised latents (clips, channels, frames, height, width)."""

    clips: Tensor
    corpus: list[Example]
    mean: Tensor  # (channels,)
    std: Tensor
    weight: Tensor  # of each token in the loss: (clips, 1, frames, height, width)

    @cached_property
    def _often(self) -> list[int]:
        """How often each clip is drawn."""
        return [OFTEN.get(e.scenario.motion, 1) for e in self.corpus]

    def draw(self, count: int, choice: random.Random) -> tuple[Tensor, Tensor, list[str]]:
        """Random clips, their weights, and a fresh wording for each; some prompts are empty."""
        rows = choice.choices(range(len(self.corpus)), self._often, k=count)
        prompts = [
            "" if choice.random() < DROP_PROMPT else describe(self.corpus[r].scenario, choice)
            for r in rows
        ]
        return self.clips[rows], self.weight[rows], prompts


@torch.inference_mode()
def encode(vae: AutoencoderKLLTXVideo, count: int, path: Path, is_normal: bool = False) -> Latents:
    """Draw `count` training clips and encode them once, or read them from the cache at `path`.

    is_normal: the VAE knows its own mean and spread.
    """
    stream = examples(seed=3)
    corpus = [next(stream) for _ in range(count)]
    if not path.exists():
        parts = []
        for i, example in enumerate(corpus):
            pixels = render(example.scenario, FRAMES)[None].to(vae.device)
            parts.append(vae.encode(pixels).latent_dist.mode().cpu())
            if (i + 1) % 200 == 0:
                print(f"latents {i + 1}/{count}")
        save_file({"clips": torch.cat(parts).contiguous()}, path)
    clips = load_file(path)["clips"]
    if is_normal:
        mean, std = vae.latents_mean.cpu(), vae.latents_std.cpu()
    else:
        mean, std = clips.mean((0, 2, 3, 4)), clips.std((0, 2, 3, 4)).clamp_min(1e-4)
    shape = (1, -1, 1, 1, 1)
    scenes = torch.cat([_empty(vae, scene) for scene in SCENES]).cpu()
    nothing = scenes[[SCENES.index(example.scenario.scene) for example in corpus]]
    subject = ((clips - nothing) / std.view(shape)).square().mean(1, keepdim=True)
    share = (subject / subject.mean((2, 3, 4), keepdim=True)).clamp_max(8)
    weight = SCENERY + (1 - SCENERY) * share
    return Latents((clips - mean.view(shape)) / std.view(shape), corpus, mean, std, weight)


def _empty(vae: AutoencoderKLLTXVideo, scene: str) -> Tensor:
    """The latents of a scene in which nothing happens: (1, channels, frames, height, width)."""
    picture = scenery(scene, 256, 256)[None, :, None].expand(-1, -1, FRAMES, -1, -1) * 2 - 1
    latents: Tensor = vae.encode(picture.to(vae.device)).latent_dist.mode()
    return latents


def weighted_square(error: Tensor, weight: Tensor) -> Tensor:
    """Mean square of an error of the flow, by the weights above.

    error: (batch, channels, frames, height, width), weight: (batch, 1, frames, height, width).
    """
    stays = error.mean(2, keepdim=True)
    return (weight * (stays.square() + CHANGE * (error - stays).square())).mean()


def random_sigma(count: int) -> Tensor:
    """Noise levels: logit-normal, shifted as the sampler's are, some of them near 1: (count,)."""
    level = torch.sigmoid(torch.randn(count))
    shifted = SHIFT * level / (1 + (SHIFT - 1) * level)
    near_one = 1 - 0.04 * torch.rand(count).square()
    return torch.where(torch.rand(count) < NEAR_ONE, near_one, shifted)


def noised(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """The point at `sigma`, (batch,) or (batch, frames), on the line from clean to noise."""
    return torch.lerp(clean, noise, sigma.view(len(sigma), 1, -1, 1, 1))


def given(count: int, frames: int) -> Tensor:
    """Which latent frames are given and stay clean: the first of some clips, (count, frames)."""
    held = torch.zeros(count, frames, dtype=torch.bool)
    if frames > 1:
        held[:, 0] = torch.rand(count) < GIVEN
    return held


def free(error: Tensor, held: Tensor) -> Tensor:
    """The error without that of given frames: there is nothing to learn from them."""
    return error.masked_fill(held[:, None, :, None, None], 0.0)


def train(run: Run, pair: Pair, data: Latents, stills: int, clips: int) -> None:
    """Flow matching: `stills` steps on single latent frames, then `clips` steps mostly on clips."""

    def loss(step: int) -> Tensor:
        choice = random.Random(f"teacher/{step}")
        is_still = step < stills or step % STILL_EVERY == 0
        clean, weight, prompts = data.draw(48 if is_still else 16, choice)
        if is_still:
            clean, weight = clean[:, :, :1], weight[:, :, :1]
        clean = clean.to(run.device)
        noise = torch.randn_like(clean)
        held = given(len(clean), clean.shape[2]).to(run.device)
        sigma = random_sigma(len(clean)).to(run.device)[:, None].masked_fill(held, 0.0)
        text = pair.read(prompts, choice)
        flow = pair.velocity(noised(clean, noise, sigma), sigma, text)
        return weighted_square(free(flow - (noise - clean), held), weight.to(run.device))

    matrix_rate = 0.008 if stills else 0.005  # a trained one must not be shaken
    run.fit(pair, loss, steps=stills + clips, matrix_rate=matrix_rate, rate=5e-4, average=0.99)


def sigmas(steps: int) -> Tensor:
    """The sampler's noise levels, 0 at the end: (steps + 1,)."""
    even = torch.linspace(1, 0, steps + 1)
    return SHIFT * even / (1 + (SHIFT - 1) * even)


@torch.inference_mode()
def sample(
    pair: Pair,
    noise: Tensor,
    prompts: Sequence[str],
    steps: int,
    guidance: float,
    first: Tensor | None = None,
) -> Tensor:
    """Euler from noise to normalised latents, both (batch, channels, frames, height, width).

    first: the latents of a given first picture, (batch, channels, 1, height, width).
    """  # fmt: skip
    levels = sigmas(steps).tolist()
    text = pair.read(prompts)
    held = torch.zeros(len(noise), noise.shape[2], dtype=torch.bool, device=noise.device)
    latents = noise
    if first is not None:
        held[:, 0] = True
        latents = torch.cat([first, noise[:, :, 1:]], dim=2)
    for now, following in pairwise(levels):
        sigma = torch.full(held.shape, now, device=noise.device).masked_fill(held, 0.0)
        if guidance > 1:
            flow = pair.guided(latents, sigma, prompts, guidance)
        else:
            flow = pair.velocity(latents, sigma, text)
        latents = latents + (following - now) * free(flow, held)
    return latents
