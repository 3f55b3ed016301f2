"""Guides among the tokens: in the place of noise where the clip begins, elsewhere beside it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from filmlet.card import ModelCard
from filmlet.engine.denoise import Step, pack

BESIDE = 2  # latent frames of a video that stand beside the clip; what follows them is in it
Draw = Callable[..., Tensor]


@dataclass(frozen=True, eq=False)
class Shown:
    """What a guide shows: (1, channels, frames, height, width), normalised. frame: its first."""

    latents: Tensor
    frame: int
    strength: float


@dataclass(frozen=True)
class Places:
    """Where tokens are, in seconds, rows and columns of pixels."""

    card: ModelCard
    fps: float

    def of(self, video: Tensor, first: int = 0) -> Tensor:
        """(1, 3, tokens) of latents whose first frame is the clip's `first`."""
        grid, (frames, height, width) = self.card.grid, video.shape[2:]
        if self.card.causal:  # the first latent is one frame, the others are `time` each
            times = ((torch.arange(frames) * grid.time + 1 - grid.time).clamp(0) + first) / self.fps
        else:
            times = torch.arange(frames) * (grid.time / self.fps)
        sides = (torch.arange(n) * float(grid.side) for n in (height, width))
        return torch.stack(torch.meshgrid(times, *sides, indexing="ij")).flatten(1)[None]


@dataclass(frozen=True, eq=False)
class Scene:
    """All tokens of a call. tokens: (1, beside + the clip's, channels); places: (1, 3, all).

    free: (1, all, 1), the most noise that each may have: 1 - the strength of its guide.
    """

    tokens: Tensor
    free: Tensor
    places: Tensor
    beside: int

    def apart(self, step: Step) -> Step:
        """The clip's tokens without those that stand beside it."""
        if not self.beside:
            return step
        beside, own = step.latents[:, : self.beside], step.latents[:, self.beside :]
        # Copies, laid out as what comes from a file is.
        return replace(
            step, latents=own.clone(), clean=step.clean[:, self.beside :], beside=beside.clone()
        )


@torch.inference_mode()
def lay_out(video: Tensor, guides: Sequence[Shown], places: Places, draw: Draw) -> Scene:
    """The clip's noisy latents (1, channels, frames, height, width) with the guides laid in.

    draw: noise of a shape, for guides that are not exact. As LTXConditionPipeline of diffusers.
    """
    video = video.clone()
    free = torch.ones_like(video[:, :1])
    beside: list[tuple[Tensor, Tensor, Tensor]] = []
    for guide in guides:
        shown, start = guide.latents, 0
        if guide.frame:
            start = guide.frame // places.card.grid.time + BESIDE
            apart, shown = shown[:, :, :BESIDE], shown[:, :, BESIDE:]
            mixed = torch.lerp(draw(*apart.shape), apart, guide.strength)
            level = 1 - torch.full_like(mixed[:, :1], guide.strength)
            where = places.of(apart, guide.frame)
            beside.append((pack(mixed), pack(level), where))
        span = slice(start, start + shown.shape[2])
        video[:, :, span] = torch.lerp(video[:, :, span], shown, guide.strength)
        free[:, :, span] = 1 - torch.full_like(free[:, :, span], guide.strength)
    parts = [*beside, (pack(video), pack(free), places.of(video))]
    tokens, levels, spots = zip(*parts, strict=True)
    return Scene(
        torch.cat(tokens, 1),
        torch.cat(levels, 1),
        torch.cat(spots, 2).to(video.device),
        sum(part.shape[1] for part in tokens[:-1]),
    )
