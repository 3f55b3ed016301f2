"""One row of the catalogue: a checkpoint and the recipe that it is run with, as data."""

from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class ModelCard:
    """What filmlet knows of a model.

    guidance: classifier-free guidance scale it is run with, 1 where that is trained in.
    stochastic: noise is drawn anew before each call. refine: levels of a second, larger stage.
    decode_timestep, decode_noise: what a timestep-conditioned VAE decoder is given.
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
