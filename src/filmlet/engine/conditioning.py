"""Guides among the tokens: in the place of noise where the clip begins, elsewhere beside it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from filmlet.core.model_card import ModelCard
from filmlet.engine.arrays import Array, copied, mixed, pack, words
from filmlet.engine.sampler import Step

BESIDE = 2  # latent frames of a video that stand beside the clip; what follows them is in it
Draw = Callable[..., Array]


@dataclass(frozen=True, eq=False)
class Shown:
    """What a guide shows: (1, channels, frames, height, width), normalised. frame: its first."""

    latents: Array
    frame: int
    strength: float


@dataclass(frozen=True)
class Places:
    """Where tokens are, in seconds, rows and columns of pixels."""

    card: ModelCard
    fps: float

    def of(self, video: Array, first: int = 0) -> NDArray[np.float32]:
        """(1, 3, tokens) of latents whose first frame is the clip's `first`."""
        grid, (frames, height, width) = self.card.grid, video.shape[2:]
        times = np.arange(frames, dtype=np.float32)
        if self.card.causal:  # the first latent is one frame, the others are `time` each
            times = (np.clip(times * grid.time + 1 - grid.time, 0, None) + first) / self.fps
        else:
            times = times * (grid.time / self.fps)
        sides = (np.arange(n, dtype=np.float32) * grid.side for n in (height, width))
        return np.stack(np.meshgrid(times, *sides, indexing="ij")).reshape(1, 3, -1)


@dataclass(frozen=True, eq=False)
class Scene:
    """All tokens of a call. tokens: (1, beside + the clip's, channels); places: (1, 3, all).

    free: (1, all, 1), the most noise that each may have: 1 - the strength of its guide.
    """

    tokens: Array
    free: Array
    places: Array
    beside: int

    def apart(self, step: Step) -> Step:
        """The clip's tokens without those that stand beside it."""
        if not self.beside:
            return step
        beside, own = step.latents[:, : self.beside], step.latents[:, self.beside :]
        # Copies, laid out as what comes from a file is.
        return replace(
            step, latents=copied(own), clean=step.clean[:, self.beside :], beside=copied(beside)
        )


def lay_out(video: Array, guides: Sequence[Shown], places: Places, draw: Draw) -> Scene:
    """The clip's noisy latents (1, channels, frames, height, width) with the guides laid in.

    draw: noise of a shape, for guides that are not exact. As LTXConditionPipeline of diffusers.
    """
    video = copied(video)
    free = words(video).ones_like(video[:, :1])
    beside: list[tuple[Array, Array, NDArray[np.float32]]] = []
    for guide in guides:
        shown, start = guide.latents, 0
        if guide.frame:
            start = guide.frame // places.card.grid.time + BESIDE
            apart, shown = shown[:, :, :BESIDE], shown[:, :, BESIDE:]
            noisy = mixed(draw(*apart.shape), apart, guide.strength)
            level = words(free).full_like(noisy[:, :1], 1 - guide.strength)
            beside.append((pack(noisy), pack(level), places.of(apart, guide.frame)))
        span = slice(start, start + shown.shape[2])
        video[:, :, span] = mixed(video[:, :, span], shown, guide.strength)
        free[:, :, span] = 1 - guide.strength
    parts = [*beside, (pack(video), pack(free), places.of(video))]
    tokens, levels, spots = zip(*parts, strict=True)
    arithmetic = words(video)
    return Scene(
        arithmetic.concat(tokens, 1),
        arithmetic.concat(levels, 1),
        arithmetic.asarray(np.concat(spots, 2), device=video.device),
        sum(part.shape[1] for part in tokens[:-1]),
    )
