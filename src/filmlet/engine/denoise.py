"""The denoising loop: Euler steps of a flow from noise to latents, as a generator."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from filmlet.errors import NotFinite

Velocity = Callable[[Tensor, float], Tensor]
NEAR = 1e-6  # two noise levels are the same within this


@dataclass(frozen=True, eq=False)
class Step:
    """After `done` model calls: where the latents are, and where they are heading (clean).

    beside: tokens of guides that are no part of the clip and go on with it.
    """

    done: int
    latents: Tensor  # (batch, tokens, channels), float32
    clean: Tensor
    beside: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Held:
    """Tokens that are given. free: (batch, tokens, 1), the most noise that each has, 0 for exact.

    given: (batch, tokens, channels), the exact ones as they are; noise: what they are disturbed by;
    draw: more of it.
    """

    free: Tensor
    given: Tensor
    noise: float
    draw: Callable[[], Tensor]

    def disturbed(self, latents: Tensor, sigma: float) -> Tensor:
        """The exact ones under a little noise, less towards the end: clips move more freely.

        As `image_cond_noise_scale` of diffusers' LTXConditionPipeline does.
        """
        if not self.noise:
            return latents
        noisy = self.given + self.noise * sigma**2 * self.draw()
        return torch.where(self.free < NEAR, noisy, latents)

    def step(self, sigma: float, before: Tensor, after: Tensor) -> Tensor:
        """`after` for those that have so much noise, `before` for those that wait for less."""
        return torch.where(sigma - NEAR < self.free, after, before)


def euler(
    velocity: Velocity,
    latents: Tensor,
    sigmas: Sequence[float],
    fresh_noise: Callable[[], Tensor] | None = None,
    already: int = 0,
    held: Held | None = None,
) -> Iterator[Step]:
    """Yield after each step from sigmas[already] down to 0; close the generator to stop.

    latents: (batch, tokens, channels), `already` so many steps in. With `fresh_noise` the clean
    estimate is noised anew at each level instead of following the flow. Raises NotFinite.
    """
    levels = torch.tensor([*sigmas, 0.0], dtype=torch.float32).tolist()
    for done, (now, following) in enumerate(pairwise(levels[already:]), start=already + 1):
        if held:
            latents = held.disturbed(latents, now)
        flow = velocity(latents, now)
        clean = latents - (held.free.clamp(max=now) if held else now) * flow
        if fresh_noise is None:
            moved = latents + (following - now) * flow
        else:
            moved = (1 - following) * clean + following * fresh_noise()
        latents = held.step(now, latents, moved) if held else moved
        if not torch.isfinite(latents).all():
            raise NotFinite(f"The model gave values that are not numbers in step {done}.")
        yield Step(done, latents, clean)


def pack(latents: Tensor) -> Tensor:
    """(batch, channels, frames, height, width) -> (batch, frames x height x width, channels).

    Contiguous, as what comes from a file is: a matrix product rounds by the layout it is given.
    """
    return latents.flatten(2).transpose(1, 2).contiguous()


def unpack(tokens: Tensor, frames: int, height: int, width: int) -> Tensor:
    """The inverse of `pack`."""
    return tokens.transpose(1, 2).unflatten(2, (frames, height, width))
