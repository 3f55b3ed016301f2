"""Pictures as LTX-2 is conditioned on them: compressed, and resized as torch does without
antialiasing.
"""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from filmlet.media import conditioning_image


def picture(width: int, height: int) -> NDArray[np.uint8]:
    """Smooth colours and a sharp edge, (1, height, width, 3)."""
    rows, columns = np.mgrid[:height, :width].astype(float)
    colours = np.stack([rows / height, columns / width, (columns > width / 2) * 0.9], axis=-1)
    return (colours * 255).astype(np.uint8)[None]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ((96, 64), (96, 64)), ((64, 96), (96, 64)), ((301, 200), (64, 64)), ((33, 47), (128, 64)),
    ],
)  # fmt: skip
def test_resizing_equals_torch_and_keeps_the_middle(
    given: tuple[int, int], wanted: tuple[int, int]
) -> None:
    pixels, (width, height) = picture(*given), wanted
    scale = max(width / given[0], height / given[1])
    size = int(np.ceil(given[1] * scale)), int(np.ceil(given[0] * scale))
    planes = torch.tensor(pixels).permute(0, 3, 1, 2).float()
    whole = torch.nn.functional.interpolate(planes, size, mode="bilinear", align_corners=False)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    expected = whole[0, :, top : top + height, left : left + width].permute(1, 2, 0).numpy()
    shown = conditioning_image(pixels, 0, width, height)
    assert shown.shape == (1, height, width, 3)
    assert np.abs(shown[0] - expected).max() < 1e-3


def test_higher_factor_compresses_more() -> None:
    pixels = picture(96, 64)
    off = [
        np.abs(conditioning_image(pixels, crf, 96, 64) - pixels).mean() for crf in (0, 18, 33)
    ]  # fmt: skip
    assert off[0] == 0 < off[1] < off[2] < 20


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (2, 2), (97, 33)])
def test_any_size_is_taken(size: tuple[int, int]) -> None:
    assert conditioning_image(picture(*size), 33, 64, 64).shape == (1, 64, 64, 3)
