"""Guides among the tokens: in the place of noise where the clip begins, elsewhere beside it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from filmlet.core.model_card import ModelCard
from filmlet.engine.arrays import Array, array_namespace, copy_array, lerp, pack_latents
from filmlet.engine.latents import Modalities
from filmlet.engine.sampler import DenoiseStep, ResumeState

KEYFRAME_LATENT_FRAMES = (
    2  # latent frames of a video that stand beside the clip; what follows them is in it
)
NoiseFn = Callable[..., Array]


@dataclass(frozen=True, eq=False)
class GuideLatents:
    """What a guide shows: (1, channels, frames, height, width), normalised. frame: its first.

    audio: what is heard meanwhile, (1, tokens, channels), of a guide with which the clip begins.
    """

    latents: Array
    frame: int
    strength: float
    audio: Array | None = None


@dataclass(frozen=True)
class VideoCoords:
    """Coordinates of tokens, in seconds, rows and columns of pixels."""

    card: ModelCard
    fps: float

    def coords(self, video: Array, first: int = 0) -> NDArray[np.float32]:
        """(1, 3, tokens) of latents whose first frame is the clip's `first`."""
        grid, (frames, height, width) = self.card.grid, video.shape[2:]
        times = np.arange(frames, dtype=np.float32)
        if (
            self.card.is_condition_pipeline
        ):  # the first latent is one frame, the others are `time` each
            times = (
                np.clip(times * grid.temporal_compression + 1 - grid.temporal_compression, 0, None)
                + first
            ) / self.fps
        else:
            times = times * (grid.temporal_compression / self.fps)
        sides = (np.arange(n, dtype=np.float32) * grid.spatial_compression for n in (height, width))
        return np.stack(np.meshgrid(times, *sides, indexing="ij")).reshape(1, 3, -1)


@dataclass(frozen=True, eq=False)
class ConditionedLatents:
    """All tokens of a call. tokens: (1, beside + the clip's, channels); video_coords: (1, 3, all).

    max_sigma: (1, all, 1), the most noise that each may have: 1 - the strength of its guide.
    """

    tokens: Array
    max_sigma: Array
    video_coords: Array
    keyframe_tokens: int

    def resume(self, start: ResumeState | None) -> tuple[Array, int]:
        """Return all tokens after the model calls that are done, and how many these are."""
        if start is None or not start.done:
            return self.tokens, 0
        latents = start.latents.video
        if start.keyframe_tokens is None:
            return latents, start.done
        tokens = array_namespace(latents).concat([start.keyframe_tokens, latents], 1)
        return tokens, start.done

    def split_step(self, step: DenoiseStep) -> DenoiseStep:
        """Return the clip's tokens without those that stand beside it."""
        if not self.keyframe_tokens:
            return step
        tokens = step.latents.video
        keyframes, video = tokens[:, : self.keyframe_tokens], tokens[:, self.keyframe_tokens :]
        # Copies, laid out as what comes from a file is.
        return replace(
            step,
            latents=Modalities(copy_array(video), step.latents.audio),
            pred_x0=step.pred_x0[:, self.keyframe_tokens :],
            keyframe_tokens=copy_array(keyframes),
        )


def condition_latents(
    video: Array, guides: Sequence[GuideLatents], places: VideoCoords, draw: NoiseFn
) -> ConditionedLatents:
    """Return the clip's noisy latents (1, channels, frames, height, width) with the guides laid in.

    draw: noise of a shape, for guides that are not exact. As LTXConditionPipeline of diffusers.
    """
    video = copy_array(video)
    free = array_namespace(video).ones_like(video[:, :1])
    keyframes: list[tuple[Array, Array, NDArray[np.float32]]] = []
    for guide in guides:
        shown, start = guide.latents, 0
        if guide.frame:
            start = guide.frame // places.card.grid.temporal_compression + KEYFRAME_LATENT_FRAMES
            separate, shown = (
                shown[:, :, :KEYFRAME_LATENT_FRAMES],
                shown[:, :, KEYFRAME_LATENT_FRAMES:],
            )
            noisy = lerp(draw(*separate.shape), separate, guide.strength)
            level = array_namespace(free).full_like(noisy[:, :1], 1 - guide.strength)
            keyframes.append(
                (pack_latents(noisy), pack_latents(level), places.coords(separate, guide.frame))
            )
        span = slice(start, start + shown.shape[2])
        video[:, :, span] = lerp(video[:, :, span], shown, guide.strength)
        free[:, :, span] = 1 - guide.strength
    parts = [*keyframes, (pack_latents(video), pack_latents(free), places.coords(video))]
    tokens, levels, spots = zip(*parts, strict=True)
    arithmetic = array_namespace(video)
    return ConditionedLatents(
        arithmetic.concat(tokens, 1),
        arithmetic.concat(levels, 1),
        arithmetic.asarray(np.concat(spots, 2), device=video.device),
        sum(part.shape[1] for part in tokens[:-1]),
    )
