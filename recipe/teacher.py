"""The teacher: text encoder and transformer, trained together by flow matching on cached latents.

Single latent frames first, whole clips after; then it needs many steps and guidance to sample.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, T5EncoderModel

from recipe import workers
from recipe.frames import can_encode_frames, encode_frames
from recipe.prompts import Example, describe, examples
from recipe.renderer import FPS, Scenario, render
from recipe.text import build_encoder, build_tokenizer, tokenize
from recipe.trainer import TrainingRun, autocast

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
DROP_PROMPT = 0.1  # share of empty prompts, for guidance
FIRST_FRAME_SHARE = (
    0.25  # share of clips whose first picture is given: its latents stay clean, at level 0
)
TOKENS = 2048  # a worker's step, of whatever shape its clips are


@dataclass(frozen=True)
class Shape:
    """Clips of one shape in the training data."""

    frames: int  # 8k + 1
    height: int
    width: int
    often: float  # share of steps once all shapes are learned
    clips: float  # how many are encoded, against the default shape

    def __str__(self) -> str:
        return f"{self.width}x{self.height}, {self.frames} frames"

    @property
    def latent(self) -> tuple[int, int, int]:
        return (self.frames + 7) // 8, self.height // 32, self.width // 32

    @property
    def batch(self) -> int:
        return max(1, TOKENS // math.prod(self.latent))


# First pictures alone are cheap: a step sees four times the subjects.
SHAPES = {
    "still": Shape(1, 256, 256, 0.25, 4.0),
    "clip": Shape(25, 256, 256, 0.45, 1.0),
    "wide": Shape(25, 256, 384, 0.08, 0.15),
    "tall": Shape(25, 384, 256, 0.06, 0.15),
    "low": Shape(25, 192, 320, 0.06, 0.15),
    "long": Shape(49, 256, 256, 0.06, 0.12),
    "longer": Shape(97, 256, 256, 0.04, 0.06),
}
OTHER_SHAPES = 0.3
SQUARES = ["still", "clip"]
HEAD = 32  # channels of an attention head
MEASURED = 150  # clips that tell the spread of each channel
SHARD = 50  # clips in a file: encoding that is stopped goes on after the last whole one


class TextToVideoModel(nn.Module):
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
    def untrained(
        cls, latent_channels: int, width: int = 256, layers: int = 6
    ) -> "TextToVideoModel":
        """An untrained one of pocket's size."""
        tokenizer = build_tokenizer()
        text = build_encoder(len(tokenizer))
        transformer = LTXVideoTransformer3DModel(
            in_channels=latent_channels,
            out_channels=latent_channels,
            num_attention_heads=width // HEAD,
            attention_head_dim=HEAD,
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
    def from_pretrained(cls, checkpoint: Path) -> "TextToVideoModel":
        """Those of any LTX checkpoint in diffusers' layout, in float32."""
        return cls(
            AutoTokenizer.from_pretrained(checkpoint / "tokenizer"),
            T5EncoderModel.from_pretrained(checkpoint / "text_encoder", dtype=torch.float32),
            LTXVideoTransformer3DModel.from_pretrained(
                checkpoint / "transformer", torch_dtype=torch.float32
            ),
        )

    def start_from(self, checkpoint: Path) -> None:
        """Take over what a checkpoint has of both; words that it does not know start anew."""
        for module, name in ((self.text, "text_encoder"), (self.transformer, "transformer")):
            for file in (checkpoint / name).glob("*.safetensors"):
                own, theirs = module.state_dict(), load_file(file)
                kept = {n: t for n, t in theirs.items() if n in own and own[n].shape == t.shape}
                module.load_state_dict(kept, strict=False)
        if not (checkpoint / "text_encoder").exists():
            return
        known = AutoTokenizer.from_pretrained(checkpoint / "tokenizer").get_vocab()
        rows = {i: known[word] for word, i in self.tokenizer.get_vocab().items() if word in known}
        with torch.no_grad():
            table = load_file(next((checkpoint / "text_encoder").glob("*.safetensors")))
            self.text.shared.weight[list(rows)] = table["shared.weight"].float()[[*rows.values()]]

    def encode_prompts(
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

    def guided_velocity(
        self, latents: Tensor, sigma: Tensor, prompts: Sequence[str], scale: float
    ) -> Tensor:
        """Classifier-free guidance: away from the empty prompt."""
        text = self.encode_prompts([*prompts, *[""] * len(prompts)])
        both = self.velocity(torch.cat([latents] * 2), torch.cat([sigma] * 2), text)
        flow, away = both.chunk(2)
        return away + scale * (flow - away)


@dataclass(frozen=True, eq=False)
class EncodedClips:
    """Encoded clips of one shape, not normalised: (clips, channels, frames, height, width)."""

    clips: Tensor  # float16
    corpus: list[Example]
    scenes: dict[str, Tensor]  # what is left of a clip without its subjects


@dataclass(frozen=True, eq=False)
class LatentDataset:
    """The training data: encoded clips of every shape, and what normalises them.

    A shape is encoded when it is first asked for: single frames can be trained on at once.
    """

    vae: AutoencoderKLLTXVideo
    count: int  # clips of the default shape; of the others their share
    folder: Path  # what lies there is not encoded again
    is_normal: bool = False  # the VAE knows its own mean and spread
    encoded: dict[str, EncodedClips] = field(default_factory=dict)

    def clips_of(self, shape: str) -> EncodedClips:
        """The clips of a shape of SHAPES; encodes what is missing."""
        if shape not in self.encoded:
            self.encoded[shape] = _encode_shape(self, shape)
        return self.encoded[shape]

    @cached_property
    def normal(self) -> tuple[Tensor, Tensor]:
        """Mean and spread of each channel of the default shape: (1, channels, 1, 1, 1) each."""
        if self.is_normal:
            return tuple(
                value.cpu().view(1, -1, 1, 1, 1)
                for value in (self.vae.latents_mean, self.vae.latents_std)
            )
        corpus = _draw_corpus(self, "clip")[:MEASURED]
        clips = _shards(
            self.vae, SHAPES["clip"], [e.scenario for e in corpus], self.folder / "clip"
        ).float()
        axes = (0, 2, 3, 4)
        return clips.mean(axes, keepdim=True), clips.std(axes, keepdim=True).clamp_min(1e-4)

    @property
    def mean(self) -> Tensor:
        return self.normal[0]

    @property
    def std(self) -> Tensor:
        return self.normal[1]

    def sample_batch(self, shape: str, choice: random.Random) -> tuple[Tensor, Tensor, list[str]]:
        """A batch: normalised clips, the weight of each token, and a fresh wording for each clip.

        Some prompts are empty.
        """
        shelf = self.clips_of(shape)
        rows = choice.choices(range(len(shelf.corpus)), k=SHAPES[shape].batch)
        scenarios = [shelf.corpus[r].scenario for r in rows]
        prompts = [
            "" if choice.random() < DROP_PROMPT else describe(s, choice) for s in scenarios
        ]  # fmt: skip
        clips = shelf.clips[rows].float()
        nothing = torch.stack([shelf.scenes[s.scene] for s in scenarios]).float()
        subject = ((clips - nothing) / self.std).square().mean(1, keepdim=True)
        share = (subject / subject.mean((2, 3, 4), keepdim=True)).clamp_max(8)
        return (clips - self.mean) / self.std, SCENERY + (1 - SCENERY) * share, prompts


def _draw_corpus(data: LatentDataset, name: str) -> list[Example]:
    stream = examples(seed=10 + list(SHAPES).index(name))
    return [next(stream) for _ in range(max(2, round(data.count * SHAPES[name].clips)))]


@torch.inference_mode()
def _encode_shape(data: LatentDataset, name: str) -> EncodedClips:
    shape, corpus = SHAPES[name], _draw_corpus(data, name)
    scenes = sorted({e.scenario.scene for e in corpus})
    empty = _shards(
        data.vae, shape, [Scenario((), s) for s in scenes], data.folder / f"{name}-scenes"
    )
    clips = _shards(data.vae, shape, [e.scenario for e in corpus], data.folder / name)
    return EncodedClips(clips, corpus, dict(zip(scenes, empty, strict=True)))


@torch.inference_mode()
def _shards(
    vae: AutoencoderKLLTXVideo, shape: Shape, scenarios: Sequence[Scenario], path: Path
) -> Tensor:
    """Latents of the scenarios, SHARD to a file."""
    path.parent.mkdir(exist_ok=True)
    starts = range(0, len(scenarios), SHARD)
    files = [path.with_name(f"{path.name}-{start}.safetensors") for start in starts]
    for number, (start, file) in enumerate(zip(starts, files, strict=True)):
        if not file.exists() and number % workers.count() == workers.rank():
            some = [_encode_shard(vae, shape, s) for s in scenarios[start : start + SHARD]]
            save_file({"clips": torch.cat(some)}, file.with_suffix(".part"))
            file.with_suffix(".part").rename(file)
            print(f"encoded {file.stem}", flush=True)
    workers.wait_for_all()
    return torch.cat([load_file(file)["clips"] for file in files])


def _encode_shard(vae: AutoencoderKLLTXVideo, shape: Shape, scenario: Scenario) -> Tensor:
    pixels = render(scenario, shape.frames, (shape.height, shape.width))[None].to(vae.device)
    with autocast(vae.device):
        if shape.frames == 1 and can_encode_frames(vae):
            latents = encode_frames(vae, pixels[:, :, 0])[:, :, None]
        else:
            latents = vae.encode(pixels).latent_dist.mode()
    return latents.cpu().half().contiguous()


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


def add_noise(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """The point at `sigma`, (batch,) or (batch, frames), on the line from clean to noise."""
    return torch.lerp(clean, noise, sigma.view(len(sigma), 1, -1, 1, 1))


def sample_given_frames(count: int, frames: int) -> Tensor:
    """Which latent frames are given and stay clean: the first of some clips, (count, frames)."""
    held = torch.zeros(count, frames, dtype=torch.bool)
    if frames > 1:
        held[:, 0] = torch.rand(count) < FIRST_FRAME_SHARE
    return held


def mask_given_frames(error: Tensor, held: Tensor) -> Tensor:
    """The error without that of given frames: there is nothing to learn from them."""
    return error.masked_fill(held[:, None, :, None, None], 0.0)


def shape_at(step: int, stills: int, squares: int, choice: random.Random) -> str:
    """First pictures alone, then clips of the default shape too, then every shape.

    stills, squares: the steps at which the first two end.
    """
    if step < stills:
        return "still"
    names = SQUARES if step < squares else list(SHAPES)
    return choice.choices(names, [SHAPES[name].often for name in names])[0]


def train(
    run: TrainingRun,
    pair: TextToVideoModel,
    data: LatentDataset,
    stills: int,
    clips: int,
    is_new: bool,
) -> None:
    """Flow matching: `stills` steps on single latent frames, then `clips` steps on clips.

    Other sizes and lengths come in the last OTHER_SHAPES of all steps.
    """
    squares = round((stills + clips) * (1 - OTHER_SHAPES))

    def loss(step: int, choice: random.Random) -> Tensor:
        drawn = random.Random(f"shape/{step}")  # the same for all workers
        shape = shape_at(step, stills, squares, drawn)
        clean, weight, prompts = data.sample_batch(shape, choice)
        clean = clean.to(run.device)
        noise = torch.randn_like(clean)
        held = sample_given_frames(len(clean), clean.shape[2]).to(run.device)
        sigma = random_sigma(len(clean)).to(run.device)[:, None].masked_fill(held, 0.0)
        with autocast(run.device):
            text = pair.encode_prompts(prompts, choice)
            flow = pair.velocity(add_noise(clean, noise, sigma), sigma, text).float()
        return weighted_square(
            mask_given_frames(flow - (noise - clean), held), weight.to(run.device)
        )

    matrix_rate = 0.008 if is_new else 0.006  # a trained one must not be shaken
    run.fit(pair, loss, steps=stills + clips, matrix_rate=matrix_rate, rate=5e-4, average=0.995)


def sigmas(steps: int) -> Tensor:
    """The sampler's noise levels, 0 at the end: (steps + 1,)."""
    even = torch.linspace(1, 0, steps + 1)
    return SHIFT * even / (1 + (SHIFT - 1) * even)


@torch.inference_mode()
def sample(
    pair: TextToVideoModel,
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
    text = pair.encode_prompts(prompts)
    held = torch.zeros(len(noise), noise.shape[2], dtype=torch.bool, device=noise.device)
    latents = noise
    if first is not None:
        held[:, 0] = True
        latents = torch.cat([first, noise[:, :, 1:]], dim=2)
    for now, following in pairwise(levels):
        sigma = torch.full(held.shape, now, device=noise.device).masked_fill(held, 0.0)
        if guidance > 1:
            flow = pair.guided_velocity(latents, sigma, prompts, guidance)
        else:
            flow = pair.velocity(latents, sigma, text)
        latents = latents + (following - now) * mask_given_frames(flow, held)
    return latents
