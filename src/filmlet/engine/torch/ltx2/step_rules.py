"""How LTX-2 goes from one noise level to the next: by its estimate of the clean latents.

As Lightricks' own sampler does: what is given is laid into the estimate, and what remains free
follows it (EulerDiffusionStep and EulerAncestralDiffusionStep of their ltx-core).
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class GivenTokens:
    """Tokens that are given. clean: (1, tokens, channels).

    free: (1, tokens, 1), the share of the noise level that each has: 1 where nothing is given, 0
    for what is kept exactly.
    """

    clean: Tensor
    free: Tensor

    def blend(self, estimate: Tensor) -> Tensor:
        """What is given laid into an estimate of the clean latents."""
        return estimate * self.free + self.clean * (1 - self.free)


@dataclass(frozen=True, eq=False)
class CleanEstimateRule:
    """One step towards the clean estimate. given: None where all tokens are free.

    fresh_noise: of the ancestral sampler, which goes below the next level and comes back to it by
    new noise; none is drawn in the last step.
    """

    given: GivenTokens | None = None
    fresh_noise: Callable[[], Tensor] | None = None

    def before_call(self, latents: Tensor, sigma: float) -> Tensor:  # noqa: ARG002
        return latents

    def step(
        self, latents: Tensor, velocity: Tensor, sigma: float, next_sigma: float
    ) -> tuple[Tensor, Tensor]:
        clean = self._blend(latents - self._token_sigmas(sigma) * velocity)
        if self.fresh_noise is None:
            return latents + (latents - clean) / sigma * (next_sigma - sigma), clean
        if not next_sigma:
            return clean, clean
        return self._blend(self._step_ancestral(latents, clean, sigma, next_sigma)), clean

    def skip_step(self) -> None:
        if self.fresh_noise:
            self.fresh_noise()

    def _step_ancestral(
        self, latents: Tensor, clean: Tensor, sigma: float, next_sigma: float
    ) -> Tensor:
        assert self.fresh_noise
        lower = next_sigma**2 / sigma
        ratio = lower / sigma
        signal = (1 - next_sigma) / (1 - lower)
        noise_scale = max(0.0, next_sigma**2 - (lower * signal) ** 2) ** 0.5
        moved = ratio * latents + (1 - ratio) * clean
        return signal * moved + noise_scale * self.fresh_noise()

    def _token_sigmas(self, sigma: float) -> Tensor | float:
        return sigma * self.given.free if self.given else sigma

    def _blend(self, latents: Tensor) -> Tensor:
        return self.given.blend(latents) if self.given else latents
