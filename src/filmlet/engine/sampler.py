"""The denoising loop: Euler steps of a flow from noise to latents, as a generator."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from filmlet.engine.arrays import Array, array_namespace, lerp
from filmlet.engine.latents import Latents, Modalities
from filmlet.errors import NonFiniteValues

Velocity = Callable[[Latents, float], Latents]
SIGMA_TOLERANCE = 1e-6  # two noise levels are the same within this


@dataclass(frozen=True, eq=False)
class DenoiseStep:
    """After `done` model calls: where the latents are, and where they are heading (clean).

    keyframe_tokens: tokens of guides that are no part of the clip and go on with it.
    """

    done: int
    latents: Latents  # float32
    pred_x0: Array  # of the picture, (batch, tokens, channels)
    keyframe_tokens: Array | None = None


@dataclass(frozen=True, eq=False)
class ResumeState:
    """A state to resume from: the latents after `done` model calls, and the tokens beside them."""

    done: int
    latents: Latents
    keyframe_tokens: Array | None = None


class StepRule(Protocol):
    """How the latents of one modality, (batch, tokens, channels), go from one level to the next."""

    def before_call(self, latents: Array, sigma: float) -> Array:
        """Return what the model is shown in their place."""
        ...

    def step(
        self, latents: Array, velocity: Array, sigma: float, next_sigma: float
    ) -> tuple[Array, Array]:
        """Return them at the next level, and the clean estimate."""
        ...

    def skip_step(self) -> None:
        """Draw the noise that a step draws, which an earlier run has done."""
        ...


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
        """Return the noise level of each token at this level of the others."""
        return array_namespace(self.max_sigma).clip(self.max_sigma, max=sigma)

    def add_conditioning_noise(self, latents: Array, sigma: float) -> Array:
        """Return the exact ones under a little noise, less towards the end: clips move more freely.

        As `image_cond_noise_scale` of diffusers' LTXConditionPipeline does.
        """
        if not self.noise_scale:
            return latents
        noisy = self.clean_latents + self.noise_scale * sigma**2 * self.sample_noise()
        return array_namespace(latents).where(self.max_sigma < SIGMA_TOLERANCE, noisy, latents)

    def apply(self, sigma: float, before: Array, after: Array) -> Array:
        """`after` for those that have so much noise, `before` for those that wait for less."""
        return array_namespace(after).where(sigma - SIGMA_TOLERANCE < self.max_sigma, after, before)


@dataclass(frozen=True, eq=False)
class EulerRule:
    """Along the velocity; with `fresh_noise` the clean estimate is noised anew at each level.

    mask: of tokens that are given.
    """

    fresh_noise: Callable[[], Array] | None = None
    mask: ConditioningMask | None = None

    def before_call(self, latents: Array, sigma: float) -> Array:
        return self.mask.add_conditioning_noise(latents, sigma) if self.mask else latents

    def step(
        self, latents: Array, velocity: Array, sigma: float, next_sigma: float
    ) -> tuple[Array, Array]:
        clean = latents - (self.mask.token_sigmas(sigma) if self.mask else sigma) * velocity
        if self.fresh_noise is None:
            moved = latents + (next_sigma - sigma) * velocity
        else:
            moved = (1 - next_sigma) * clean + next_sigma * self.fresh_noise()
        return self.mask.apply(sigma, latents, moved) if self.mask else moved, clean

    def skip_step(self) -> None:
        if self.mask and self.mask.noise_scale:
            self.mask.sample_noise()
        if self.fresh_noise:
            self.fresh_noise()


def denoise_steps(
    velocity: Velocity,
    latents: Latents,
    sigmas: Sequence[float],
    rules: Modalities[StepRule],
    already: int = 0,
) -> Iterator[DenoiseStep]:
    """Yield after each step from sigmas[already] down to 0; close the generator to stop.

    latents: `already` so many steps in, whose noise `rules` draw and drop. Raises NonFiniteValues.
    """
    for _ in range(already):
        rules.map(lambda rule: rule.skip_step())
    levels = np.array([*sigmas, 0.0], np.float32).tolist()
    for done, (now, following) in enumerate(pairwise(levels[already:]), start=already + 1):
        shown = rules.map(lambda rule, x, sigma=now: rule.before_call(x, sigma), latents)
        steps = rules.map(
            lambda rule, x, flow, ends=(now, following): rule.step(x, flow, *ends),
            shown,
            velocity(shown, now),
        )
        latents = steps.map(lambda step: step[0])
        latents.map(lambda x, number=done: _check_finite(x, number))
        yield DenoiseStep(done, latents, steps.video[1])


def _check_finite(latents: Array, done: int) -> None:
    if not array_namespace(latents).isfinite(latents).all():
        raise NonFiniteValues(f"The model gave values that are not numbers in step {done}.")


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
    """Return the deviation of each clip's values, (batch, 1, 1)."""
    centred = velocity - velocity.mean(axis=(1, 2), keepdims=True)
    return (centred**2).mean(axis=(1, 2), keepdims=True) ** 0.5
