"""Single pictures: a clip's poster."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from filmlet.events import Pixels
from filmlet.media.movie import explain


def poster(pixels: Pixels) -> NDArray[np.uint8]:
    """The frame that stands for the clip, its middle one: (height, width, 3)."""
    return pixels[len(pixels) // 2]


def save_still(path: Path, image: NDArray[np.uint8]) -> None:
    """Write one picture in the format of the path's suffix.

    Raises DiskFull, OutputUnwritable; leaves nothing half-written.
    """
    try:
        Image.fromarray(image).save(path)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise explain(error, path) from error
