"""Embedding of a noise level: its sines, as diffusers' `Timesteps`."""

import math

import numpy as np

from filmlet.engine.openvino.ops import Floats, ModuleWeights

SINES = 256
SCALE = 1000.0  # of the levels that a transformer is told


def sinusoidal_embedding(levels: Floats) -> Floats:
    """(n,) -> (n, SINES), in float32: bfloat16 would spoil them."""
    exponents = -math.log(10000) * np.arange(SINES // 2, dtype=np.float32) / (SINES // 2)
    angles = levels[:, None].astype(np.float32) * np.exp(exponents)
    return np.concat([np.cos(angles), np.sin(angles)], 1)


def embed_timestep(embedder: ModuleWeights, level: float) -> Floats:
    """Return one level as a decoder's block is told it: (channels,)."""
    first, second = (embedder.submodule(f"timestep_embedder.linear_{i}") for i in (1, 2))
    x = sinusoidal_embedding(np.array([level], np.float32))[0] @ first["weight"].T + first["bias"]
    return (x / (1 + np.exp(-x))) @ second["weight"].T + second["bias"]
