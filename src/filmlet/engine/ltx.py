"""The LTX-Video engine: diffusers' modules for one checkpoint, held in memory and ready to run."""

from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel
from diffusers.pipelines.ltx.modeling_latent_upsampler import LTXLatentUpsamplerModel
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import T5EncoderModel

from filmlet.budget import Hold
from filmlet.card import Files, ModelCard
from filmlet.engine import streaming
from filmlet.engine.denoise import Held, Step, Velocity, euler, pack, unpack
from filmlet.engine.guiding import Places, Scene, Shown, lay_out
from filmlet.engine.lora import Loras
from filmlet.engine.parts import Parts
from filmlet.engine.placement import Placement
from filmlet.engine.text import Reading
from filmlet.errors import Cancelled, NotFinite
from filmlet.events import Pixels, Progress, Stage
from filmlet.lora import Adapter
from filmlet.request import Shape

Value = TypeVar("Value")
PROMPTS = 64  # that are remembered
KILOBYTE = 1000


@dataclass(frozen=True)
class Recipe:
    """How one stage of a clip is denoised. sigmas: noise level before each model call.

    loras: that the transformer wears meanwhile.
    """

    shape: Shape
    sigmas: tuple[float, ...]
    guidance: float
    seed: int
    loras: tuple[Adapter, ...] = ()

    def first(self) -> "Recipe":
        """The first of two stages, whose second is this one's shape."""
        return replace(self, shape=self.shape.halved())


@dataclass(frozen=True, eq=False)
class Embeddings:
    """What the transformer is told, (1, tokens, channels); `negative` only under guidance."""

    prompt: Tensor
    negative: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Start:
    """Where denoising was left: the latents after `done` model calls, and what went beside them."""

    done: int
    latents: Tensor
    beside: Tensor | None = None


@dataclass(frozen=True, eq=False)
class LtxEngine:
    """One loaded checkpoint. Every method runs without gradients and leaves nothing behind."""

    card: ModelCard
    parts: Parts
    projection: Tensor | None  # (channels + 1, 3): latent to RGB in [0, 1], the last row is added
    told: OrderedDict[bytes, Tensor] = field(default_factory=OrderedDict)  # prompts, latest last

    @property
    def placement(self) -> Placement:
        return self.parts.placement

    @property
    def text_encoder(self) -> T5EncoderModel:
        return self.parts.get("text_encoder")

    @property
    def transformer(self) -> LTXVideoTransformer3DModel:
        return self.parts.get("transformer")

    @property
    def vae(self) -> AutoencoderKLLTXVideo:
        return self.parts.get("vae")

    @property
    def upsampler(self) -> LTXLatentUpsamplerModel:
        return self.parts.get("upsampler")

    @property
    def loras(self) -> Loras:
        """What the transformer wears."""
        self.parts.get("transformer")
        assert self.parts.loras
        return self.parts.loras

    def knows(self, reading: Reading) -> bool:
        """Whether a prompt was encoded lately: the text encoder is not needed for it."""
        return _key(reading) in self.told

    @torch.inference_mode()
    def encode(self, reading: Reading) -> Tensor:
        """(1, tokens, channels): encoded with the padding it was trained with, cut to real tokens.

        Cutting equals diffusers' attention mask, and costs less. The latest are remembered.
        """
        key = _key(reading)
        if key not in self.told:
            ids = reading.ids.to(self.placement.device)
            if self.card.causal:
                ids = ids[:, : reading.tokens]
            self.told[key] = self.text_encoder(ids)[0][:, : reading.tokens].clone()
            if len(self.told) > PROMPTS:
                self.told.popitem(last=False)
        self.told.move_to_end(key)
        return self.told[key]

    @torch.inference_mode()
    def see(self, pixels: Pixels) -> Tensor:
        """Frames, (8k+1, height, width, 3), as latents (1, channels, k+1, ...), normalised."""
        self._lay_out(self.vae.encoder)
        video = torch.tensor(pixels, device=self.placement.device).permute(3, 0, 1, 2)[None]
        video = (video.float() / 127.5 - 1).to(self.placement.dtype)
        return self._normalise(self.vae.encode(video).latent_dist.mode().float())

    def denoise(
        self,
        embeddings: Embeddings,
        recipe: Recipe,
        start: Start | None = None,
        guides: Sequence[Shown] = (),
    ) -> Iterator[Step]:
        """Yield after each model call; the last step's latents are the clip's, normalised.

        Latents are (1, tokens, channels) in float32; `start` goes on after an earlier step, to the
        same end, or from latents that are not noise. Raises NotFinite.
        """
        shape = self.latent_shape(recipe.shape)
        channels = self.transformer.config.in_channels
        # Drawn on the CPU, so that a seed gives the same noise on every device.
        generator = torch.Generator().manual_seed(recipe.seed)

        def draw(*size: int) -> Tensor:
            return torch.randn(size, generator=generator).to(self.placement.device)

        video = draw(1, channels, *shape)
        if start and not start.done:
            video = unpack(start.latents, *shape)
        scene = lay_out(video, guides, Places(self.card, recipe.shape.fps), draw)
        held = None
        if guides:
            size = scene.tokens.shape
            held = Held(scene.free, scene.tokens, self.card.guide_noise, lambda: draw(*size))

        def noise() -> Tensor:
            own = pack(draw(1, channels, *shape))
            return torch.cat([draw(1, scene.beside, channels), own], 1) if scene.beside else own

        latents, done = scene.tokens, 0
        if start and start.done:
            latents, done = start.latents, start.done
            if start.beside is not None:
                latents = torch.cat([start.beside, latents], 1)
        fresh = noise if self.card.stochastic else None
        for _ in range(done):  # the steps that were done have drawn theirs
            if held and held.noise:
                held.draw()
            if fresh:
                fresh()
        velocity = self._velocity(embeddings, recipe, scene, held)
        steps = euler(velocity, latents, recipe.sigmas, fresh, done, held)
        yield from _without_gradients(map(scene.apart, steps))

    def _velocity(
        self, embeddings: Embeddings, recipe: Recipe, scene: Scene, held: Held | None
    ) -> Velocity:
        """What the transformer says of latents, guided away from the negative prompt."""

        def call(latents: Tensor, text: Tensor, sigma: float) -> Tensor:
            timestep = torch.full((1,), sigma * 1000.0, device=latents.device)
            if held:  # each token has its own
                timestep = held.free.clamp(max=sigma).squeeze(-1) * 1000.0
            with self.loras.wearing(recipe.loras):
                return self.transformer(
                    hidden_states=latents.to(self.placement.dtype),
                    encoder_hidden_states=text,
                    timestep=timestep,
                    encoder_attention_mask=None,
                    video_coords=scene.places,
                    return_dict=False,
                )[0].float()

        def velocity(latents: Tensor, sigma: float) -> Tensor:
            flow = call(latents, embeddings.prompt, sigma)
            if embeddings.negative is None:
                return flow
            away = call(latents, embeddings.negative, sigma)
            guided = away + recipe.guidance * (flow - away)
            # Lin et al., 2023, arXiv 2305.08891, section 3.4: guidance must not raise the contrast.
            spread = flow.std((1, 2), keepdim=True) / guided.std((1, 2), keepdim=True)
            return torch.lerp(guided, guided * spread, self.card.rescale)

        return velocity

    @torch.inference_mode()
    def upsample(self, latents: Tensor, recipe: Recipe) -> Tensor:
        """The first stage's latents at twice the sides; both (1, tokens, channels), normalised.

        Each channel gets back the mean and deviation that it had (AdaIN), as in Lightricks' own
        two-stage pipeline.
        """
        small = self._denormalise(unpack(latents, *self.latent_shape(recipe.first().shape)))
        large = self.upsampler(small.to(self.placement.dtype)).float()
        axes = (2, 3, 4)
        deviation, mean = torch.std_mean(large, axes, keepdim=True)
        wanted, centre = torch.std_mean(small, axes, keepdim=True)
        return pack(self._normalise((large - mean) / deviation * wanted + centre))

    def refine(
        self,
        embeddings: Embeddings,
        recipe: Recipe,
        latents: Tensor,
        start: Start | None = None,
        guides: Sequence[Shown] = (),
    ) -> Iterator[Step]:
        """The second stage: `latents` are noised to its first level and denoised from there."""
        generator = torch.Generator().manual_seed(recipe.seed + 1)  # the first stage has its own
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        mixed = torch.lerp(latents, noise, recipe.sigmas[0])
        return self.denoise(embeddings, recipe, start or Start(0, mixed), guides)

    @contextmanager
    def stopping(self, wanted: Callable[[], bool]) -> Iterator[None]:
        """Ask before each block of the transformer; raises Cancelled once nobody wants the clip."""

        def ask(*_: object) -> None:
            if not wanted():
                raise Cancelled("The clip was cancelled.")

        transformer: Any = self.transformer
        if self.placement.compiled:
            with transformer.asking(ask):
                yield
            return
        hooks = [b.register_forward_pre_hook(ask) for b in transformer.transformer_blocks]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def decode(self, latents: Tensor, recipe: Recipe) -> Iterator[Pixels]:
        """Yield the made frames in order, (frames, height, width, 3), as soon as each is known.

        latents: (1, tokens, channels), normalised. Raises NotFinite.
        """
        self._lay_out(self.vae.decoder)
        yield from _without_gradients(self._decode(latents, recipe))

    @torch.inference_mode(False)
    def _lay_out(self, half: nn.Module) -> None:
        """Give a half of the VAE the layout that spares the norms over channels a copy.

        Once: what is never used keeps being pages of its file, which cost no memory of their own.
        """
        if self.placement.device == "cpu":
            half.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def _decode(self, latents: Tensor, recipe: Recipe) -> Iterator[Pixels]:
        video = unpack(latents, *self.latent_shape(recipe.shape))
        if self.card.tone_map:
            video = tone_mapped(video, self.card.tone_map)
        video = self._denormalise(video)
        timestep, generator = None, torch.Generator().manual_seed(recipe.seed)
        torch.randn(video.shape, generator=generator)  # spent on the first latents, as in stock
        if self.vae.config.timestep_conditioning:
            noise = torch.randn(video.shape, generator=generator).to(video.device)
            video = torch.lerp(video, noise, self.card.decode_noise)
            timestep = torch.full((1,), self.card.decode_timestep, device=video.device)
            timestep = timestep.to(self.placement.dtype)
        if self.placement.compiled:  # it has the timestep in it
            streams = self.parts.decoder.streams()
        else:
            video = video.to(self.placement.dtype)
            streams = list(streaming.streams(self.vae.decoder, timestep, generator))
        for pixels in streaming.flow(streams, video.split(1, dim=2)):
            if not torch.isfinite(pixels).all():
                raise NotFinite("The VAE decoder gave values that are not numbers.")
            yield _to_uint8(pixels[0])

    def preview(self, clean: Tensor, shape: Shape) -> NDArray[np.uint8] | None:
        """A rough picture of the clip's middle from clean latents: (height / 8, width / 8, 3)."""
        if self.projection is None:
            return None
        with torch.inference_mode():
            frames, height, width = self.latent_shape(shape)
            middle = clean[0].view(frames, height, width, -1)[frames // 2]
            picture = (middle @ self.projection[:-1] + self.projection[-1]).permute(2, 0, 1)
            smooth = F.interpolate(picture[None], scale_factor=4, mode="bicubic")[0]
            return _to_uint8(smooth[:, None] * 2 - 1)[0]

    def latent_shape(self, shape: Shape) -> tuple[int, int, int]:
        """(frames, height, width) of the latents of a clip."""
        grid = self.card.grid
        return (
            (shape.made_frames - 1) // grid.time + 1,
            shape.made_height // grid.side,
            shape.made_width // grid.side,
        )

    def _normalise(self, video: Tensor) -> Tensor:
        mean, std = (
            t.view(1, -1, 1, 1, 1).float() for t in (self.vae.latents_mean, self.vae.latents_std)
        )
        return (video - mean) * self.vae.config.scaling_factor / std

    def _denormalise(self, video: Tensor) -> Tensor:
        mean, std = (
            t.view(1, -1, 1, 1, 1).float() for t in (self.vae.latents_mean, self.vae.latents_std)
        )
        return video * std / self.vae.config.scaling_factor + mean


def load(
    card: ModelCard, files: Files, placement: Placement
) -> Generator[Progress, None, LtxEngine]:
    """Make a checkpoint ready; Progress counts kilobytes. Raises CheckpointDamaged.

    Where all of it has no room at once, its components are read when they are needed.
    """
    parts = Parts(card, files, placement)
    names = [name for name, _ in files.there() if name not in ("tokenizer", "preview")]
    if placement.hold != Hold.ALL:
        names = []
    done, total = 0, parts.weigh(*names)
    yield Progress(Stage.LOAD, 0, kilobytes(total))
    for read in parts.bring(*names):
        done = min(done + read, total)
        yield Progress(Stage.LOAD, done // KILOBYTE, kilobytes(total))
    yield Progress(Stage.LOAD, kilobytes(total), kilobytes(total))
    projection = None
    if files.preview:
        projection = load_file(files.preview)["latent_to_rgb"].to(placement.device).float()
    return LtxEngine(card, parts, projection)


def kilobytes(bytes: int) -> int:
    """Rounded up, at least 1: what progress counts, so that it fits a database's integer."""
    return max(1, -(-bytes // KILOBYTE))


def _key(reading: Reading) -> bytes:
    return reading.ids[:, : reading.tokens].numpy().tobytes()


def tone_mapped(latents: Tensor, ratio: float) -> Tensor:
    """Large values pulled in, as the 13B models' recipe does before decoding (ratio 0 to 1)."""
    scale = 0.75 * ratio
    return latents * (1 - 0.8 * scale * torch.sigmoid(4 * scale * (latents.abs() - 1)))


def _to_uint8(pixels: Tensor) -> Pixels:
    """(3, frames, height, width) in [-1, 1] -> (frames, height, width, 3) uint8."""
    scaled = pixels.float().add(1).mul_(127.5).round_().clamp_(0, 255)
    return scaled.permute(1, 2, 3, 0).to(torch.uint8).contiguous().cpu().numpy()


def _without_gradients(steps: Iterator[Value]) -> Iterator[Value]:
    """Advance a generator inside inference mode, and leave the mode between its values.

    A mode that stays on across a `yield` would leak into the caller.
    """
    while True:
        with torch.inference_mode():
            try:
                value = next(steps)
            except StopIteration:
                return
        yield value
