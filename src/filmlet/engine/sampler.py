"""The denoising loop: Euler steps of a flow from noise to latents, as a generator."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from filmlet.engine.arrays import Array, words
from filmlet.errors import NotFinite

Velocity = Callable[[Array, float], Array]
NEAR = 1e-6  # two noise levels are the same within this


@dataclass(frozen=True, eq=False)
class Step:
    """After `done` model calls: where the latents are, and where they are heading (clean).

    beside: tokens of guides that are no part of the clip and go on with it.
    """

    done: int
    latents: Array  # (batch, tokens, channels), float32
    clean: Array
    beside: Array | None = None


@dataclass(frozen=True, eq=False)
class Held:
    """Tokens that are given. free: (batch, tokens, 1), the most noise that each has, 0 for exact.

    given: (batch, tokens, channels), the exact ones as they are; noise: what they are disturbed by;
    draw: more of it.
    """

    free: Array
    given: Array
    noise: float
    draw: Callable[[], Array]

    def levels(self, sigma: float) -> Array:
        """How much noise each token has at this level of the others."""
        return words(self.free).clip(self.free, max=sigma)

    def disturbed(self, latents: Array, sigma: float) -> Array:
        """The exact ones under a little noise, less towards the end: clips move more freely.

        As `image_cond_noise_scale` of diffusers' LTXConditionPipeline does.
        """
        if not self.noise:
            return latents
        noisy = self.given + self.noise * sigma**2 * self.draw()
        return words(latents).where(self.free < NEAR, noisy, latents)

    def step(self, sigma: float, before: Array, after: Array) -> Array:
        """`after` for those that have so much noise, `before` for those that wait for less."""
        return words(after).where(sigma - NEAR < self.free, after, before)


def euler(
    velocity: Velocity,
    latents: Array,
    sigmas: Sequence[float],
    fresh_noise: Callable[[], Array] | None = None,
    already: int = 0,
    held: Held | None = None,
) -> Iterator[Step]:
    """Yield after each step from sigmas[already] down to 0; close the generator to stop.

    latents: (batch, tokens, channels), `already` so many steps in. With `fresh_noise` the clean
    estimate is noised anew at each level instead of following the flow. Raises NotFinite.
    """
    levels = np.array([*sigmas, 0.0], np.float32).tolist()
    for done, (now, following) in enumerate(pairwise(levels[already:]), start=already + 1):
        if held:
            latents = held.disturbed(latents, now)
        flow = velocity(latents, now)
        clean = latents - (held.levels(now) if held else now) * flow
        if fresh_noise is None:
            moved = latents + (following - now) * flow
        else:
            moved = (1 - following) * clean + following * fresh_noise()
        latents = held.step(now, latents, moved) if held else moved
        if not words(latents).isfinite(latents).all():
            raise NotFinite(f"The model gave values that are not numbers in step {done}.")
        yield Step(done, latents, clean)
