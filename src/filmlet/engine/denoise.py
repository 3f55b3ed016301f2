"""The denoising loop: Euler steps of a flow from noise to latents, as a generator."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from filmlet.errors import NotFinite

Velocity = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True, eq=False)
class Step:
    """After `done` model calls: where the latents are, and where they are heading (clean)."""

    done: int
    latents: Tensor  # (batch, tokens, channels), float32
    clean: Tensor


def euler(
    velocity: Velocity,
    latents: Tensor,
    sigmas: Sequence[float],
    fresh_noise: Callable[[], Tensor] | None = None,
    already: int = 0,
) -> Iterator[Step]:
    """Yield after each step from sigmas[already] down to 0; close the generator to stop.

    latents: (batch, tokens, channels), `already` so many steps in. With `fresh_noise` the clean
    estimate is noised anew at each level instead of following the flow. Raises NotFinite.
    """
    levels = torch.tensor([*sigmas, 0.0], dtype=torch.float32).tolist()
    for done, (now, following) in enumerate(pairwise(levels[already:]), start=already + 1):
        flow = velocity(latents, now)
        clean = latents - now * flow
        if fresh_noise is None:
            latents = latents + (following - now) * flow
        else:
            latents = (1 - following) * clean + following * fresh_noise()
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
