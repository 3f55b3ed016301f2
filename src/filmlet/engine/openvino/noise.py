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
class Noise:
    """As `torch.Generator().manual_seed(seed)`; what it draws is within 1e-6 of `torch.randn`."""

    seed: int
    bits: np.random.RandomState = field(init=False)
    left: float | None = None  # one by one, numbers come in pairs

    def __post_init__(self) -> None:
        self.bits = np.random.RandomState(self.seed % 2**32)

    def draw(self, *shape: int) -> NDArray[np.float32]:
        """Numbers of the normal distribution."""
        count = int(np.prod(shape))
        if count < FEW:
            return np.array([self._one() for _ in range(count)], np.float32).reshape(shape)
        uniform = self._uniform(count)
        whole = count - count % BLOCK
        values = np.empty(count, np.float32)
        values[:whole] = _normal(uniform[:whole])
        if whole < count:  # the last block is drawn anew, over the end of the one before it
            values[-BLOCK:] = _normal(self._uniform(BLOCK))
        return values.reshape(shape)

    def _words(self, count: int) -> NDArray[np.uint32]:
        return self.bits.randint(0, 2**32, count, np.uint32)

    def _uniform(self, count: int) -> NDArray[np.float32]:
        return (self._words(count) & (2**24 - 1)).astype(np.float32) * np.float32(2**-24)

    def _one(self) -> float:
        if self.left is not None:
            value, self.left = self.left, None
            return value
        high_1, low_1, high_2, low_2 = (int(word) for word in self._words(4))
        angle, radius = (
            ((high << 32 | low) & (2**53 - 1)) * 2.0**-53
            for high, low in ((high_1, low_1), (high_2, low_2))
        )
        radius = np.sqrt(-2 * np.log1p(-radius))
        self.left = radius * np.sin(2 * np.pi * angle)
        return float(radius * np.cos(2 * np.pi * angle))


def _normal(uniform: NDArray[np.float32]) -> NDArray[np.float32]:
    first, second = uniform.reshape(-1, 2, BLOCK // 2).swapaxes(0, 1)
    radius = np.sqrt(np.float32(-2) * np.log(1 - first))
    angle = np.float32(2 * np.pi) * second
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).reshape(-1)
