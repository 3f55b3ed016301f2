"""One arithmetic for numpy's arrays and torch's tensors: what all engines do is written once."""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = Any  # numpy's or torch's, whichever the engine computes with
Tensors = dict[str, Array]


def array_namespace(array: Array) -> Any:
    """Return the module whose functions take it; used are those of one name and meaning in both."""
    if isinstance(array, np.ndarray | np.generic):
        return np
    import torch

    return torch


def to_numpy(array: Array) -> NDArray:
    """Return the array as numpy's, in main memory."""
    return array if isinstance(array, np.ndarray) else array.float().cpu().numpy()


def copy_array(array: Array) -> Array:
    """Return a copy with memory of its own, laid out as an array from a file is."""
    return array_namespace(array).asarray(array, copy=True)


def lerp(start: Array, end: Array, weight: float) -> Array:
    """Interpolate from `start` (weight 0) to `end` (weight 1); both are met exactly."""
    if weight < 0.5:
        return start + weight * (end - start)
    return end - (end - start) * (1 - weight)


def pack_latents(latents: Array) -> Array:
    """(batch, channels, frames, height, width) -> (batch, frames x height x width, channels).

    Contiguous, as what comes from a file is: a matrix product rounds by the layout it is given.
    """
    batch, channels = latents.shape[:2]
    tokens = latents.reshape(batch, channels, -1).swapaxes(1, 2)
    return np.ascontiguousarray(tokens) if array_namespace(tokens) is np else tokens.contiguous()


def unpack_latents(tokens: Array, frames: int, height: int, width: int) -> Array:
    """Return the inverse of `pack_latents`."""
    batch, _, channels = tokens.shape
    return tokens.swapaxes(1, 2).reshape(batch, channels, frames, height, width)
