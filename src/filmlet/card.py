"""One row of the catalogue: a checkpoint and the recipe that it is run with, as data."""

from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from pathlib import Path

from filmlet.request import Grid


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


Schedule = FixedSigmas | ShiftedSigmas


class GuideKind(StrEnum):
    """What a model was trained to be guided by."""

    FIRST_FRAME = "first_frame"  # one picture, with which the clip begins
    ANY_FRAME = "any_frame"  # pictures and videos, anywhere


@dataclass(frozen=True)
class ModelCard:
    """What filmlet knows of a model.

    guidance: classifier-free guidance scale it is run with, 1 where that is trained in.
    stochastic: noise is drawn anew before each call. refine: levels of a second, larger stage.
    decode_timestep, decode_noise: what a timestep-conditioned VAE decoder is given.
    guides: what it takes; guide_noise: what exact guides are disturbed by, which keeps clips from
    standing still. context: frames of a clip that it is given to extend it, 8k+1. causal: made for
    LTXConditionPipeline (0.9.5 on), which counts a latent's time from the first of its frames and
    hides the padding from the text encoder; LTXPipeline does neither.
    bytes: of all its files. folder: where its files lie, None while they are not here.
    """

    name: str
    summary: str
    licence: str
    schedule: Schedule
    grid: Grid = field(default_factory=Grid)
    folder: Path | None = None
    repo: str | None = None
    revision: str = "main"
    bytes: int | None = None
    distilled: bool = True
    guidance: float = 1.0
    stochastic: bool = False
    refine: FixedSigmas | None = None
    tone_map: float = 0.0
    max_tokens: int = 256
    max_steps: int = 100
    decode_timestep: float = 0.0
    decode_noise: float = 0.0
    guides: GuideKind = GuideKind.FIRST_FRAME
    guide_noise: float = 0.0
    context: int = 1
    causal: bool = False
