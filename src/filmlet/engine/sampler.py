"""The denoising loop: Euler steps of a flow from noise to latents, as a generator."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from filmlet.engine.arrays import Array, array_namespace, lerp
from filmlet.errors import NonFiniteValues

Velocity = Callable[[Array, float], Array]
SIGMA_TOLERANCE = 1e-6  # two noise levels are the same within this


@dataclass(frozen=True, eq=False)
class DenoiseStep:
    """After `done` model calls: where the latents are, and where they are heading (clean).

    keyframe_tokens: tokens of guides that are no part of the clip and go on with it.
    """

    done: int
    latents: Array  # (batch, tokens, channels), float32
    pred_x0: Array
    keyframe_tokens: Array | None = None


@dataclass(frozen=True, eq=False)
class ResumeState:
    """Where denoising was left: the latents after `done` model calls, and what went beside them."""

    done: int
    latents: Array
    keyframe_tokens: Array | None = None


@dataclass(frozen=True, eq=False)
class ConditioningMask:
    """Tokens that are given. max_sigma: (batch, tokens, 1), the most noise that each has, 0 for
    exact.

    clean_latents: (batch, tokens, channels), the exact ones as they are; noise_scale: what they
    are disturbed by; sample_noise: more of it.
    """

    max_sigma: Array
    clean_latents: Array
    noise_scale: float
    sample_noise: Callable[[], Array]

    def token_sigmas(self, sigma: float) -> Array:
        """How much noise each token has at this level of the others."""
        return array_namespace(self.max_sigma).clip(self.max_sigma, max=sigma)

    def add_conditioning_noise(self, latents: Array, sigma: float) -> Array:
        """The exact ones under a little noise, less towards the end: clips move more freely.

        As `image_cond_noise_scale` of diffusers' LTXConditionPipeline does.
        """
        if not self.noise_scale:
            return latents
        noisy = self.clean_latents + self.noise_scale * sigma**2 * self.sample_noise()
        return array_namespace(latents).where(self.max_sigma < SIGMA_TOLERANCE, noisy, latents)

    def apply(self, sigma: float, before: Array, after: Array) -> Array:
        """`after` for those that have so much noise, `before` for those that wait for less."""
        return array_namespace(after).where(sigma - SIGMA_TOLERANCE < self.max_sigma, after, before)


def euler_steps(
    velocity: Velocity,
    latents: Array,
    sigmas: Sequence[float],
    fresh_noise: Callable[[], Array] | None = None,
    already: int = 0,
    mask: ConditioningMask | None = None,
) -> Iterator[DenoiseStep]:
    """Yield after each step from sigmas[already] down to 0; close the generator to stop.

    latents: (batch, tokens, channels), `already` so many steps in. With `fresh_noise` the clean
    estimate is noised anew at each level instead of following the flow. Raises NonFiniteValues.
    """
    levels = np.array([*sigmas, 0.0], np.float32).tolist()
    for done, (now, following) in enumerate(pairwise(levels[already:]), start=already + 1):
        if mask:
            latents = mask.add_conditioning_noise(latents, now)
        flow = velocity(latents, now)
        clean = latents - (mask.token_sigmas(now) if mask else now) * flow
        if fresh_noise is None:
            moved = latents + (following - now) * flow
        else:
            moved = (1 - following) * clean + following * fresh_noise()
        latents = mask.apply(now, latents, moved) if mask else moved
        if not array_namespace(latents).isfinite(latents).all():
            raise NonFiniteValues(f"The model gave values that are not numbers in step {done}.")
        yield DenoiseStep(done, latents, clean)


def apply_guidance(
    velocity: Array, negative_velocity: Array, guidance_scale: float, rescale: float
) -> Array:
    """Classifier-free guidance: the velocity, moved away from that of the negative prompt.

    velocities: (batch, tokens, channels). rescale: how far the deviation of the prompt's own
    velocity is restored (Lin et al., 2023, arXiv 2305.08891, section 3.4), 0 to 1.
    """
    guided = negative_velocity + guidance_scale * (velocity - negative_velocity)
    return lerp(guided, guided * (_std(velocity) / _std(guided)), rescale)


def _std(velocity: Array) -> Array:
    """The deviation of each clip's values, (batch, 1, 1)."""
    centred = velocity - velocity.mean(axis=(1, 2), keepdims=True)
    return (centred**2).mean(axis=(1, 2), keepdims=True) ** 0.5
