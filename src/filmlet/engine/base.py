"""The base of every engine: the stages of a clip, over a library's own transformer and VAE.

An engine computes with arrays of its library, numpy's or torch's; it gives and takes no others.
"""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray

from filmlet.core.events import Audio, PixelFormat, Pixels, PixelValues, YuvPlanes
from filmlet.core.lora import LoraAdapter
from filmlet.core.model_card import ComponentFiles, ModelCard
from filmlet.core.shape import VideoShape
from filmlet.engine.arrays import (
    Array,
    Tensors,
    array_namespace,
    lerp,
    pack_latents,
    to_numpy,
    unpack_latents,
)
from filmlet.engine.conditioning import (
    ConditionedLatents,
    GuideLatents,
    NoiseFn,
    VideoCoords,
    condition_latents,
)
from filmlet.engine.latents import Latents, Modalities
from filmlet.engine.placement import Placement
from filmlet.engine.sampler import (
    ConditioningMask,
    DenoiseStep,
    EulerRule,
    ResumeState,
    StepRule,
    apply_guidance,
    denoise_steps,
)
from filmlet.engine.state_dict import CheckpointWeights
from filmlet.errors import NotSupported
from filmlet.models.tokenizer import TokenizedPrompt

PROMPT_CACHE_SIZE = 64  # that are remembered
PREVIEW_UPSCALE = 4  # a preview's sides against those of the latents
CUBIC = -0.75  # of bicubic interpolation, as torch has it
KILOBYTE = 1000
NOT_MODULES = ("tokenizer", "preview", "distilled_lora")  # components that are read as data


@dataclass(frozen=True)
class DenoiseParams:
    """Parameters of one denoising stage. sigmas: noise level before each model call.

    loras: that the transformer wears meanwhile. audio: whether sound is made, too. is_guided:
    whether with all guidance that the model's card has, else without any.
    """

    shape: VideoShape
    sigmas: tuple[float, ...]
    guidance: float
    seed: int
    loras: tuple[LoraAdapter, ...] = ()
    audio: bool = False
    is_guided: bool = True

    def first_stage(self) -> "DenoiseParams":
        """Return the first of two stages, whose second is this one's shape."""
        return replace(self, shape=self.shape.half_size())


@dataclass(frozen=True, eq=False)
class PromptEmbeds:
    """Encoded prompts, (1, tokens, channels); `negative` only under guidance."""

    prompt: Array
    negative: Array | None = None


@dataclass(frozen=True, eq=False)
class LatentStats:
    """Mean and deviation of a VAE's latents, (1, channels, 1, 1, 1) each."""

    mean: Array
    deviation: Array
    scaling: float

    def normalize(self, video: Array) -> Array:
        """Return latents of the VAE in the scale of the transformer's."""
        return (video - self.mean) * self.scaling / self.deviation

    def denormalize(self, video: Array) -> Array:
        """Return the inverse."""
        return video * self.deviation / self.scaling + self.mean


@dataclass(frozen=True, eq=False)
class TransformerInputs:
    """Inputs of one transformer call. latents, prompt_embeds: (1, tokens, channels); video_coords:
    (1, 3, tokens).

    timesteps: how noisy the latents are, of all or (1, tokens).
    """

    latents: Array
    prompt_embeds: Array
    timesteps: Array
    video_coords: Array
    loras: tuple[LoraAdapter, ...]


@dataclass(frozen=True, eq=False)
class Engine(ABC):
    """One loaded checkpoint. Every method leaves nothing behind but prompts that it remembers.

    latent_rgb_factors: (channels + 1, 3), latent to RGB in [0, 1], the last row is added.
    prompt_cache: prompts, latest last.
    """

    card: ModelCard
    files: ComponentFiles
    placement: Placement
    latent_rgb_factors: NDArray | None
    prompt_cache: OrderedDict[bytes, Array] = field(default_factory=OrderedDict, kw_only=True)

    # What each library does in its own way

    @property
    @abstractmethod
    def statistics(self) -> LatentStats:
        """Mean, deviation and scale of the VAE's latents."""

    @abstractmethod
    def bytes_to_load(self, *names: str) -> int:
        """Return bytes that `load_components` would read."""

    @abstractmethod
    def load_components(self, *names: str) -> Iterator[int]:
        """Read components that are not in memory; yields bytes. Raises CheckpointCorrupt.

        names: `text_encoder`, `encoder`, `transformer`, `upsampler`, `decoder`.
        """

    @abstractmethod
    def noise_source(self, seed: int) -> NoiseFn:
        """Normal noise of torch's generator on the CPU: one seed, one clip, on every device."""

    @abstractmethod
    def encode_frames(self, pixels: PixelValues) -> Array:
        """Frames, (8k+1, height, width, 3), as latents (1, channels, k+1, ...), normalised."""

    @abstractmethod
    def decode(
        self,
        latents: Latents,
        params: DenoiseParams,
        pixel_format: PixelFormat = PixelFormat.RGB24,
    ) -> Iterator[Pixels | YuvPlanes]:
        """Yield every made frame in order, at the size asked for, as soon as each is known.

        pixel_format: that is wanted; YUV420P only
        where the engine makes it sooner than who encodes it. Raises NonFiniteValues.
        """

    @abstractmethod
    def _encode_ids(self, ids: NDArray[np.int64]) -> Array:
        """(1, tokens) of the text encoder: (1, tokens, channels)."""

    @abstractmethod
    def _predict_velocity(self, call: TransformerInputs) -> Array:
        """Call the transformer: velocities of the latents, in float32."""

    # What some do in their own way

    @property
    def core_components(self) -> tuple[str, ...]:
        """Names of what is read at once where there is room for all."""
        names = (name for name, _ in self.files.present())
        return tuple(name for name in names if name not in NOT_MODULES)

    def upsample(self, latents: Latents, params: DenoiseParams) -> Latents:  # noqa: ARG002
        """The first stage's latents, its picture at twice the sides.

        Each channel gets back the mean and deviation that it had (AdaIN), as in Lightricks' own
        two-stage pipeline. Raises NotSupported.
        """
        name = self.placement.backend.value
        raise NotSupported(f"Engine {name} makes clips of one stage.", param="model")

    def cancel_when(
        self,
        is_cancelled: Callable[[], bool],  # noqa: ARG002
    ) -> AbstractContextManager[None]:
        """Ask inside each call of the transformer, which raises Cancelled once it is.

        Here nobody asks: a clip is cancelled between two calls.
        """
        return nullcontext()

    def to_device(self, tensors: Tensors) -> Tensors:
        """Return tensors of another engine as arrays of this one: numpy's."""
        return {name: to_numpy(tensor) for name, tensor in tensors.items()}

    # What all do alike

    @cached_property
    def channels(self) -> int:
        """Of latents."""
        return int(CheckpointWeights.from_files(self.files, "transformer").config["in_channels"])

    @cached_property
    def has_timestep_conditioning(self) -> bool:
        """Whether the decoder is told a timestep, and sees so much noise."""
        vae = CheckpointWeights.from_files(self.files, "vae")
        return bool(vae.config.get("timestep_conditioning"))

    def has_cached(self, reading: TokenizedPrompt) -> bool:
        """Return whether a prompt was encoded lately: the text encoder is not needed for it."""
        return _prompt_key(reading) in self.prompt_cache

    def encode_prompt(self, reading: TokenizedPrompt) -> Array:
        """What the transformer is told of a prompt, (1, tokens, channels).

        The latest are remembered.
        """
        if not self.has_cached(reading):
            self.connect_prompt(reading, self.encode_text(reading))
        self.prompt_cache.move_to_end(_prompt_key(reading))
        return self.prompt_cache[_prompt_key(reading)]

    def encode_text(self, reading: TokenizedPrompt) -> Array:
        """What the text encoder makes of a prompt, with the padding that it was trained with.

        It is cut to real tokens, (1, tokens, channels): that equals diffusers' attention mask, and
        costs less.
        """
        is_padded = not self.card.is_condition_pipeline
        ids = reading.ids if is_padded else reading.ids[:, : reading.token_count]
        return self._encode_ids(ids)[:, : reading.token_count]

    def connect_prompt(self, reading: TokenizedPrompt, states: Array) -> None:
        """Remember what the transformer is told of a prompt. states: as `encode_text` gives it."""
        self.prompt_cache[_prompt_key(reading)] = self._connect_text(states)
        if len(self.prompt_cache) > PROMPT_CACHE_SIZE:
            self.prompt_cache.popitem(last=False)

    def _connect_text(self, states: Array) -> Array:
        """Between text encoder and transformer; most models have nothing there."""
        return states

    @property
    def audio_sample_rate(self) -> int:
        """In Hz, of sound that is encoded. Raises NotSupported."""
        raise NotSupported(f"{self.card.name} makes no sound.", param="audio")

    def encode_audio(self, audio: Audio, frames: int, fps: float) -> Array:
        """The sound of so many frames as normalised latents, (1, tokens, channels).

        audio: at `audio_sample_rate`. Raises NotSupported.
        """
        del audio, frames, fps
        raise NotSupported(f"{self.card.name} makes no sound.", param="audio")

    def decode_audio(
        self,
        latents: Latents,  # noqa: ARG002
        params: DenoiseParams,  # noqa: ARG002
        is_cancelled: Callable[[], bool],  # noqa: ARG002
    ) -> Audio:
        """The sound of the made clip, from its first frame on. Raises Cancelled, NotSupported."""
        raise NotSupported(f"{self.card.name} makes no sound.", param="audio")

    def denoise(
        self,
        embeddings: PromptEmbeds,
        params: DenoiseParams,
        start: ResumeState | None = None,
        guides: Sequence[GuideLatents] = (),
    ) -> Iterator[DenoiseStep]:
        """Yield after each model call; the last step's latents are the clip's, normalised.

        `start` goes on after an earlier step, to the same end, or from latents that are not noise.
        Raises NonFiniteValues.
        """
        randn = self.noise_source(params.seed)
        scene = self._prepare_latents(params, start, guides, randn)
        mask = self._conditioning_mask(scene, randn) if guides else None
        rule = EulerRule(self._step_noise(scene, params, randn), mask)
        latents, done = scene.resume(start)

        def predict(latents: Latents, sigma: float) -> Latents:
            video = latents.video
            if mask:  # each token has its own noise level
                timesteps = mask.token_sigmas(sigma)[..., 0]
            else:
                timesteps = array_namespace(video).full_like(video[0, :1, 0], sigma)
            call = TransformerInputs(
                video, embeddings.prompt, timesteps, scene.video_coords, params.loras
            )
            return Modalities(self._predict_guided(call, embeddings.negative, params.guidance))

        rules: Modalities[StepRule] = Modalities(rule)
        for step in denoise_steps(predict, Modalities(latents), params.sigmas, rules, done):
            yield scene.split_step(step)

    def _prepare_latents(
        self,
        params: DenoiseParams,
        start: ResumeState | None,
        guides: Sequence[GuideLatents],
        randn: NoiseFn,
    ) -> ConditionedLatents:
        """Noise, or the latents to start from, with the guides laid in."""
        shape = self.latent_shape(params.shape)
        latents = randn(1, self.channels, *shape)
        if start and not start.done:
            latents = unpack_latents(start.latents.video, *shape)
        return condition_latents(latents, guides, VideoCoords(self.card, params.shape.fps), randn)

    def _conditioning_mask(self, scene: ConditionedLatents, randn: NoiseFn) -> ConditioningMask:
        size, noise_scale = scene.tokens.shape, self.card.image_cond_noise_scale
        return ConditioningMask(scene.max_sigma, scene.tokens, noise_scale, lambda: randn(*size))

    def _step_noise(
        self, scene: ConditionedLatents, params: DenoiseParams, randn: NoiseFn
    ) -> Callable[[], Array] | None:
        """Return what draws the noise of a step, if the model is sampled with noise."""
        if not self.card.stochastic_sampling:
            return None
        shape = self.latent_shape(params.shape)

        def draw_noise() -> Array:
            noise = pack_latents(randn(1, self.channels, *shape))
            if not scene.keyframe_tokens:
                return noise
            keyframe_noise = randn(1, scene.keyframe_tokens, self.channels)
            return array_namespace(noise).concat([keyframe_noise, noise], 1)

        return draw_noise

    def _predict_guided(
        self, call: TransformerInputs, negative: Array | None, guidance_scale: float
    ) -> Array:
        """Return the velocity, guided away from the negative prompt, if there is one."""
        velocity = self._predict_velocity(call)
        if negative is None:
            return velocity
        negative_velocity = self._predict_velocity(replace(call, prompt_embeds=negative))
        return apply_guidance(
            velocity, negative_velocity, guidance_scale, self.card.guidance_rescale
        )

    def refine(
        self,
        embeddings: PromptEmbeds,
        params: DenoiseParams,
        latents: Latents,
        start: ResumeState | None = None,
        guides: Sequence[GuideLatents] = (),
    ) -> Iterator[DenoiseStep]:
        """Run the second stage: noise `latents` to its first level and denoise from there."""
        draw = self.noise_source(params.seed + 1)  # the first stage has its own
        noisy = latents.map(lambda x: lerp(x, draw(*x.shape), params.sigmas[0]))
        return self.denoise(embeddings, params, start or ResumeState(0, noisy), guides)

    def _latents_for_decoder(self, latents: Latents, params: DenoiseParams, draw: NoiseFn) -> Array:
        """The picture's, as the decoder takes them: (1, channels, frames, height, width)."""
        video = unpack_latents(latents.video, *self.latent_shape(params.shape))
        if self.card.tone_map_compression_ratio:
            video = tone_map_latents(video, self.card.tone_map_compression_ratio)
        video = self.statistics.denormalize(video)
        draw(*video.shape)  # spent on the first latents, as in stock
        if self.has_timestep_conditioning:
            video = lerp(video, draw(*video.shape), self.card.decode_noise_scale)
        return video

    def preview(self, clean: Array, shape: VideoShape) -> NDArray[np.uint8] | None:
        """Return a rough picture of the clip's middle: (height / 8, width / 8, 3)."""
        if self.latent_rgb_factors is None:
            return None
        frames, height, width = self.latent_shape(shape)
        middle = to_numpy(clean[0].reshape(frames, height, width, -1)[frames // 2])
        picture = middle @ self.latent_rgb_factors[:-1] + self.latent_rgb_factors[-1]
        rows = np.tensordot(_bicubic_matrix(height), picture, 1)
        smooth = _bicubic_matrix(width) @ rows
        return (smooth * 255).round().clip(0, 255).astype(np.uint8)

    def latent_shape(self, shape: VideoShape) -> tuple[int, int, int]:
        """(frames, height, width) of the latents of a clip."""
        grid = self.card.grid
        return (
            (shape.generated_frames - 1) // grid.temporal_compression + 1,
            shape.generated_height // grid.spatial_compression,
            shape.generated_width // grid.spatial_compression,
        )


def to_kilobytes(bytes: int) -> int:
    """Rounded up, at least 1: what progress counts, so that it fits a database's integer."""
    return max(1, -(-bytes // KILOBYTE))


def tone_map_latents(latents: Array, ratio: float) -> Array:
    """Large values pulled in, as the 13B models' recipe does before decoding (ratio 0 to 1)."""
    scale = 0.75 * ratio
    beyond = array_namespace(latents).tanh(
        2 * scale * (abs(latents) - 1)
    )  # a sigmoid of twice as much
    return latents * (1 - 0.4 * scale * (1 + beyond))


def _prompt_key(reading: TokenizedPrompt) -> bytes:
    return reading.ids[:, : reading.token_count].tobytes()


@cache
def _bicubic_matrix(size: int) -> NDArray[np.float32]:
    """(size x ENLARGED, size): bicubic interpolation of a row, its ends repeated."""
    positions = (np.arange(size * PREVIEW_UPSCALE) + 0.5) / PREVIEW_UPSCALE - 0.5
    matrix, rows = np.zeros((len(positions), size), np.float32), np.arange(len(positions))
    for offset in range(-1, 3):
        column = np.floor(positions) + offset
        distance = np.abs(positions - column)
        near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance**2 + 1
        far = CUBIC * (((distance - 5) * distance + 8) * distance - 4)
        np.add.at(
            matrix,
            (rows, column.clip(0, size - 1).astype(int)),
            np.where(distance <= 1, near, far),
        )
    return matrix
