"""One row of the catalogue: a checkpoint and the recipe that it is run with, as data."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

from filmlet.core.shape import Grid

Where = TypeVar("Where")


@dataclass(frozen=True)
class FixedSigmas:
    """A distilled model's own noise levels, one before each call; the end, 0, is not listed."""

    sigmas: tuple[float, ...]

    @property
    def steps(self) -> int:
        return len(self.sigmas)

    def at(self, steps: int) -> tuple[float, ...]:
        """The levels for another number of calls, read off the line through the fixed ones."""
        if steps == self.steps:
            return self.sigmas
        spans = list(pairwise((*self.sigmas, 0.0)))
        places = (i * self.steps / steps for i in range(steps))
        return tuple(
            high + (low - high) * (place - int(place))
            for place in places
            for high, low in [spans[int(place)]]
        )


@dataclass(frozen=True)
class ShiftedSigmas:
    """Evenly spaced noise levels, moved towards noise: s -> shift s / (1 + (shift - 1) s).

    Source: Esser et al., 2024, arXiv 2403.03206, section 5.3.2.
    """

    steps: int
    shift: float = 1.0

    def at(self, steps: int) -> tuple[float, ...]:
        """The levels before each of `steps` calls."""
        even = ((steps - i) / steps for i in range(steps))
        return tuple(self.shift * s / (1 + (self.shift - 1) * s) for s in even)


@dataclass(frozen=True)
class QuadraticSigmas:
    """Noise levels that fall slowly, in a line, for half of the steps, and then in a parabola.

    Made for full models from 0.9.5 on (`LinearQuadratic`). skip: how many of the levels a second
    stage leaves out, for it begins with a clip.
    """

    steps: int
    skip: int = 0
    end_of_line: float = 0.025

    def at(self, steps: int) -> tuple[float, ...]:
        """The levels before each of `steps` calls."""
        whole = steps + self.skip
        line = whole // 2
        if not line:
            return (1.0,)
        slope, rest = self.end_of_line / line, whole - line
        bend = (1 - self.end_of_line - slope * rest) / rest**2
        fallen = [slope * i + bend * max(0, i - line) ** 2 for i in range(whole)]
        return tuple(1 - f for f in fallen[self.skip :])

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The levels for the model's own number of calls."""
        return self.at(self.steps)


Schedule = FixedSigmas | ShiftedSigmas | QuadraticSigmas


class GuideKind(StrEnum):
    """What a model was trained to be guided by."""

    FIRST_FRAME = "first_frame"  # one picture, with which the clip begins
    ANY_FRAME = "any_frame"  # pictures and videos, anywhere


@dataclass(frozen=True)
class Source:
    """Where a component comes from: a folder, or a file, of a repository or of this machine.

    repo: its name at the Hub, else `root` is a folder here. path: inside of it. revision: a commit,
    or a branch's name. bytes: about how many, 0 where nobody knows.
    """

    path: str
    repo: str = ""
    revision: str = ""
    root: Path | None = None
    bytes: int = 0


@dataclass(frozen=True)
class Components(Generic[Where]):
    """What a checkpoint is made of, each with its place: a Source, or a Path once it is here.

    A place is a folder in diffusers' layout, or one .safetensors file in Lightricks' own names
    that may hold the transformer and the VAE. preview: latents to colours, filmlet's own.
    """

    transformer: Where
    vae: Where
    text_encoder: Where
    tokenizer: Where
    upsampler: Where | None = None
    preview: Where | None = None

    def there(self) -> Iterator[tuple[str, Where]]:
        """Names and places of those that the checkpoint has."""
        for one in fields(self):
            place = getattr(self, one.name)
            if place is not None:
                yield one.name, place


Sources: TypeAlias = Components[Source]
Files: TypeAlias = Components[Path]


@dataclass(frozen=True)
class ModelCard:
    """What filmlet knows of a model.

    parameters: how many values each component has, None where only the files tell; stored_bytes: of
    one of the transformer's in its file. guidance: classifier-free guidance scale it is run with, 1
    where that is trained in; rescale: how much of the prompt's own spread the guided values get
    back. stochastic: noise is drawn anew before each call. refine: levels of a second, larger
    stage. tone_map: how far large latents are pulled in before decoding.
    decode_timestep, decode_noise: what a timestep-conditioned VAE decoder is given.
    guides: what it takes; guide_noise: what exact guides are disturbed by, which keeps clips from
    standing still. context: frames of a clip that it is given to extend it, 8k+1. causal: made for
    LTXConditionPipeline (0.9.5 on), which counts a latent's time from the first of its frames and
    hides the padding from the text encoder; LTXPipeline does neither.
    """

    name: str
    summary: str
    licence: str
    schedule: Schedule
    sources: Sources
    grid: Grid = field(default_factory=Grid)
    parameters: Components[float] | None = None
    stored_bytes: int = 2
    distilled: bool = True
    guidance: float = 1.0
    rescale: float = 0.0
    stochastic: bool = False
    refine: FixedSigmas | QuadraticSigmas | None = None
    tone_map: float = 0.0
    max_tokens: int = 256
    max_steps: int = 100
    decode_timestep: float = 0.0
    decode_noise: float = 0.0
    guides: GuideKind = GuideKind.FIRST_FRAME
    guide_noise: float = 0.0
    context: int = 1
    causal: bool = False

    @property
    def revision(self) -> str:
        """Of the transformer: short where it is a commit."""
        name = self.sources.transformer.revision
        return name[:12] if len(name) == 40 else name

    @property
    def bytes(self) -> int:
        """Of all its files; a file that holds two components counts once."""
        return sum(source.bytes for source in {source for _, source in self.sources.there()})
