"""The normal noise of torch's generator on the CPU, without torch: one seed, one clip, everywhere.

Source: `normal_fill` and `mt19937` of torch's ATen: MT19937 seeded by its first word, 24 bits a
uniform number, and Box and Muller's transform of blocks of 16.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

BLOCK = 16  # radii come from its first half, angles from its second
FEW = 16  # fewer numbers than that are drawn one by one


@dataclass(eq=False)
class TorchNoise:
    """Noise of `torch.Generator().manual_seed(seed)`, within 1e-6 of `torch.randn`."""

    seed: int
    bits: np.random.RandomState = field(init=False)
    _spare: float | None = None  # one by one, numbers come in pairs

    def __post_init__(self) -> None:
        self.bits = np.random.RandomState(self.seed % 2**32)

    def randn(self, *shape: int) -> NDArray[np.float32]:
        """Numbers of the normal distribution."""
        count = int(np.prod(shape))
        if count < FEW:
            return np.array([self._randn_scalar() for _ in range(count)], np.float32).reshape(shape)
        uniform = self._uniform_floats(count)
        block_count = count - count % BLOCK
        values = np.empty(count, np.float32)
        values[:block_count] = _box_muller(uniform[:block_count])
        if block_count < count:  # the last block is drawn anew, over the end of the one before it
            values[-BLOCK:] = _box_muller(self._uniform_floats(BLOCK))
        return values.reshape(shape)

    def _random_words(self, count: int) -> NDArray[np.uint32]:
        return self.bits.randint(0, 2**32, count, np.uint32)

    def _uniform_floats(self, count: int) -> NDArray[np.float32]:
        return (self._random_words(count) & (2**24 - 1)).astype(np.float32) * np.float32(2**-24)

    def _randn_scalar(self) -> float:
        if self._spare is not None:
            value, self._spare = self._spare, None
            return value
        high_1, low_1, high_2, low_2 = (int(word) for word in self._random_words(4))
        angle, radius = (
            ((high << 32 | low) & (2**53 - 1)) * 2.0**-53
            for high, low in ((high_1, low_1), (high_2, low_2))
        )
        radius = np.sqrt(-2 * np.log1p(-radius))
        self._spare = radius * np.sin(2 * np.pi * angle)
        return float(radius * np.cos(2 * np.pi * angle))


def _box_muller(uniform: NDArray[np.float32]) -> NDArray[np.float32]:
    first, second = uniform.reshape(-1, 2, BLOCK // 2).swapaxes(0, 1)
    radius = np.sqrt(np.float32(-2) * np.log(1 - first))
    angle = np.float32(2 * np.pi) * second
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).reshape(-1)
