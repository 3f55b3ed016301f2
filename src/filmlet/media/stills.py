"""Single pictures: a clip's poster."""

from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from filmlet.events import Pixels


def poster(pixels: Pixels) -> NDArray[np.uint8]:
    """The frame that stands for the clip, its middle one: (height, width, 3)."""
    return pixels[len(pixels) // 2]


def save_still(path: Path, image: NDArray[np.uint8]) -> None:
    """Write one picture in the format of the path's suffix."""
    Image.fromarray(image).save(path)


def png(image: NDArray[np.uint8]) -> bytes:
    """One picture as PNG."""
    file = BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()
