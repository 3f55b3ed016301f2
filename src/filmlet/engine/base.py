"""What every engine does alike: the story of one stage, over a library's own transformer and VAE.

An engine computes with arrays of its library, numpy's or torch's; it gives and takes no others.
"""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from filmlet.core.events import Pixels, Planes
from filmlet.core.lora import Adapter
from filmlet.core.model_card import ModelCard
from filmlet.core.shape import Shape
from filmlet.engine.arrays import Array, Tensors, as_numpy, mixed, pack, unpack, words
from filmlet.engine.conditioning import Draw, Places, Scene, Shown, lay_out
from filmlet.engine.placement import Placement
from filmlet.engine.sampler import Held, Step, Velocity, euler
from filmlet.engine.tokenizer import Reading

PROMPTS = 64  # that are remembered
ENLARGED = 4  # a preview's sides against those of the latents
CUBIC = -0.75  # of bicubic interpolation, as torch has it
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

    prompt: Array
    negative: Array | None = None


@dataclass(frozen=True, eq=False)
class Start:
    """Where denoising was left: the latents after `done` model calls, and what went beside them."""

    done: int
    latents: Array
    beside: Array | None = None


@dataclass(frozen=True, eq=False)
class Statistics:
    """How a VAE's latents are spread: (1, channels, 1, 1, 1) each."""

    mean: Array
    deviation: Array
    scaling: float

    def normalised(self, video: Array) -> Array:
        """From the VAE's to the transformer's."""
        return (video - self.mean) * self.scaling / self.deviation

    def denormalised(self, video: Array) -> Array:
        """The inverse."""
        return video * self.deviation / self.scaling + self.mean


@dataclass(frozen=True, eq=False)
class Call:
    """What the transformer is asked. latents, text: (1, tokens, channels); places: (1, 3, tokens).

    levels: how noisy the latents are, of all or (1, tokens).
    """

    latents: Array
    text: Array
    levels: Array
    places: Array
    loras: tuple[Adapter, ...]


@dataclass(frozen=True, eq=False)
class Engine(ABC):
    """One loaded checkpoint. Every method leaves nothing behind but prompts that it remembers."""

    card: ModelCard
    projection: NDArray | None  # (channels + 1, 3): latent to RGB in [0, 1], the last row is added
    told: OrderedDict[bytes, Array] = field(default_factory=OrderedDict)  # prompts, latest last

    # What each library does in its own way

    @property
    @abstractmethod
    def placement(self) -> Placement:
        """Where it computes."""

    @property
    @abstractmethod
    def channels(self) -> int:
        """Of latents."""

    @property
    @abstractmethod
    def statistics(self) -> Statistics:
        """Of the VAE's latents."""

    @property
    @abstractmethod
    def is_timed(self) -> bool:
        """Whether the decoder is told a timestep, and sees so much noise."""

    @property
    @abstractmethod
    def parts_of_every_clip(self) -> tuple[str, ...]:
        """What is read at once where there is room for all."""

    @abstractmethod
    def weigh(self, *names: str) -> int:
        """Bytes that `bring` would read."""

    @abstractmethod
    def bring(self, *names: str) -> Iterator[int]:
        """Read components that are not in memory; yields bytes. Raises CheckpointDamaged.

        names: `text_encoder`, `encoder`, `transformer`, `upsampler`, `decoder`.
        """

    @abstractmethod
    def dress(self, loras: Sequence[Adapter]) -> Iterator[None]:
        """Give the transformer its LoRAs, a layer at a time."""

    @abstractmethod
    def drawn(self, seed: int) -> Draw:
        """Normal noise of torch's generator on the CPU: one seed, one clip, on every device."""

    @abstractmethod
    def see(self, pixels: Pixels) -> Array:
        """Frames, (8k+1, height, width, 3), as latents (1, channels, k+1, ...), normalised."""

    @abstractmethod
    def upsample(self, latents: Array, recipe: Recipe) -> Array:
        """The first stage's latents at twice the sides; both (1, tokens, channels), normalised.

        Each channel gets back the mean and deviation that it had (AdaIN), as in Lightricks' own
        two-stage pipeline.
        """

    @abstractmethod
    def stopping(self, wanted: Callable[[], bool]) -> AbstractContextManager[None]:
        """Ask inside each call of the transformer; raises Cancelled once nobody wants the clip."""

    @abstractmethod
    def decode(
        self, latents: Array, recipe: Recipe, is_planar: bool = False
    ) -> Iterator[Pixels | Planes]:
        """Yield every made frame in order, at the size asked for, as soon as each is known.

        latents: (1, tokens, channels), normalised. is_planar: Planes are welcome, where the engine
        makes them sooner than who encodes them. Raises NotFinite.
        """

    @abstractmethod
    def take(self, tensors: Tensors) -> Tensors:
        """What another engine has made, in arrays of this one."""

    @abstractmethod
    def _read(self, ids: NDArray[np.int64]) -> Array:
        """(1, tokens) of the text encoder: (1, tokens, channels)."""

    @abstractmethod
    def _flow(self, call: Call) -> Array:
        """What the transformer says: velocities of the latents, in float32."""

    # What all do alike

    def knows(self, reading: Reading) -> bool:
        """Whether a prompt was encoded lately: the text encoder is not needed for it."""
        return _key(reading) in self.told

    def encode(self, reading: Reading) -> Array:
        """(1, tokens, channels): encoded with the padding it was trained with, cut to real tokens.

        Cutting equals diffusers' attention mask, and costs less. The latest are remembered.
        """
        key = _key(reading)
        if key not in self.told:
            ids = reading.ids[:, : reading.tokens] if self.card.causal else reading.ids
            self.told[key] = self._read(ids)[:, : reading.tokens]
            if len(self.told) > PROMPTS:
                self.told.popitem(last=False)
        self.told.move_to_end(key)
        return self.told[key]

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
        draw = self.drawn(recipe.seed)
        video = draw(1, self.channels, *shape)
        if start and not start.done:
            video = unpack(start.latents, *shape)
        scene = lay_out(video, guides, Places(self.card, recipe.shape.fps), draw)
        held = None
        if guides:
            size = scene.tokens.shape
            held = Held(scene.free, scene.tokens, self.card.guide_noise, lambda: draw(*size))

        def noise() -> Array:
            own = pack(draw(1, self.channels, *shape))
            if not scene.beside:
                return own
            return words(own).concat([draw(1, scene.beside, self.channels), own], 1)

        latents, done = scene.tokens, 0
        if start and start.done:
            latents, done = start.latents, start.done
            if start.beside is not None:
                latents = words(latents).concat([start.beside, latents], 1)
        fresh = noise if self.card.stochastic else None
        for _ in range(done):  # the steps that were done have drawn theirs
            if held and held.noise:
                held.draw()
            if fresh:
                fresh()
        velocity = self._velocity(embeddings, recipe, scene, held)
        yield from map(scene.apart, euler(velocity, latents, recipe.sigmas, fresh, done, held))

    def _velocity(
        self, embeddings: Embeddings, recipe: Recipe, scene: Scene, held: Held | None
    ) -> Velocity:
        """What the transformer says of latents, guided away from the negative prompt."""

        def velocity(latents: Array, sigma: float) -> Array:
            levels = words(latents).full_like(latents[0, :1, 0], sigma)
            if held:  # each token has its own
                levels = held.levels(sigma)[..., 0]
            call = Call(latents, embeddings.prompt, levels, scene.places, recipe.loras)
            flow = self._flow(call)
            if embeddings.negative is None:
                return flow
            away = self._flow(replace(call, text=embeddings.negative))
            guided = away + recipe.guidance * (flow - away)
            # Lin et al., 2023, arXiv 2305.08891, section 3.4: guidance must not raise the contrast.
            return mixed(guided, guided * (_spread(flow) / _spread(guided)), self.card.rescale)

        return velocity

    def refine(
        self,
        embeddings: Embeddings,
        recipe: Recipe,
        latents: Array,
        start: Start | None = None,
        guides: Sequence[Shown] = (),
    ) -> Iterator[Step]:
        """The second stage: `latents` are noised to its first level and denoised from there."""
        draw = self.drawn(recipe.seed + 1)  # the first stage has its own
        noisy = mixed(latents, draw(*latents.shape), recipe.sigmas[0])
        return self.denoise(embeddings, recipe, start or Start(0, noisy), guides)

    def _clean(self, latents: Array, recipe: Recipe, draw: Draw) -> Array:
        """(1, tokens, channels), normalised, as the decoder takes them: (1, channels, ...)."""
        video = unpack(latents, *self.latent_shape(recipe.shape))
        if self.card.tone_map:
            video = tone_mapped(video, self.card.tone_map)
        video = self.statistics.denormalised(video)
        draw(*video.shape)  # spent on the first latents, as in stock
        if self.is_timed:
            video = mixed(video, draw(*video.shape), self.card.decode_noise)
        return video

    def preview(self, clean: Array, shape: Shape) -> NDArray[np.uint8] | None:
        """A rough picture of the clip's middle from clean latents: (height / 8, width / 8, 3)."""
        if self.projection is None:
            return None
        frames, height, width = self.latent_shape(shape)
        middle = as_numpy(clean[0].reshape(frames, height, width, -1)[frames // 2])
        picture = middle @ self.projection[:-1] + self.projection[-1]
        rows = np.tensordot(_enlarging(height), picture, 1)
        smooth = _enlarging(width) @ rows
        return (smooth * 255).round().clip(0, 255).astype(np.uint8)

    def latent_shape(self, shape: Shape) -> tuple[int, int, int]:
        """(frames, height, width) of the latents of a clip."""
        grid = self.card.grid
        return (
            (shape.made_frames - 1) // grid.time + 1,
            shape.made_height // grid.side,
            shape.made_width // grid.side,
        )


def kilobytes(bytes: int) -> int:
    """Rounded up, at least 1: what progress counts, so that it fits a database's integer."""
    return max(1, -(-bytes // KILOBYTE))


def tone_mapped(latents: Array, ratio: float) -> Array:
    """Large values pulled in, as the 13B models' recipe does before decoding (ratio 0 to 1)."""
    scale = 0.75 * ratio
    beyond = words(latents).tanh(2 * scale * (abs(latents) - 1))  # a sigmoid of twice as much
    return latents * (1 - 0.4 * scale * (1 + beyond))


def _key(reading: Reading) -> bytes:
    return reading.ids[:, : reading.tokens].tobytes()


def _spread(flow: Array) -> Array:
    """The deviation of each clip's values, (batch, 1, 1)."""
    centred = flow - flow.mean(axis=(1, 2), keepdims=True)
    return (centred**2).mean(axis=(1, 2), keepdims=True) ** 0.5


@cache
def _enlarging(size: int) -> NDArray[np.float32]:
    """(size x ENLARGED, size): bicubic interpolation of a row, its ends repeated."""
    place = (np.arange(size * ENLARGED) + 0.5) / ENLARGED - 0.5
    whole, rows = np.zeros((len(place), size), np.float32), np.arange(len(place))
    for offset in range(-1, 3):
        column = np.floor(place) + offset
        distance = np.abs(place - column)
        near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance**2 + 1
        far = CUBIC * (((distance - 5) * distance + 8) * distance - 4)
        np.add.at(
            whole,
            (rows, column.clip(0, size - 1).astype(int)),
            np.where(distance <= 1, near, far),
        )
    return whole
