"""Single pictures of a clip: its poster, its thumbnail, all of it on one sheet."""

import io
import secrets
from pathlib import Path
from typing import BinaryIO

import av
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

    It takes the place of what was there at once. Raises DiskFull, OutputUnwritable; leaves
    nothing half-written.
    """
    part = path.with_stem(f"{path.stem}.{secrets.token_hex(4)}.part")
    try:
        Image.fromarray(image).save(part)
        part.replace(path)
    except OSError as error:
        raise explain(error, path) from error
    finally:
        part.unlink(missing_ok=True)


def thumbnail(clip: BinaryIO) -> bytes:
    """The middle frame of a finished clip, as WebP."""
    pixels = _read(clip)
    return _packed(poster(pixels), "WEBP")


def spritesheet(clip: BinaryIO, columns: int = 5, width: int = 160) -> bytes:
    """Up to 25 frames, evenly spaced, row by row in one JPEG; each `width` pixels wide."""
    pixels = _read(clip)
    chosen = pixels[
        np.linspace(0, len(pixels) - 1, min(len(pixels), columns**2)).round().astype(int)
    ]
    height = max(1, round(width * pixels.shape[1] / pixels.shape[2]))
    rows = -(-len(chosen) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height))
    for i, picture in enumerate(chosen):
        small = Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)
        sheet.paste(small, (i % columns * width, i // columns * height))
    return _packed(np.asarray(sheet), "JPEG")


def _read(clip: BinaryIO) -> Pixels:
    with av.open(clip) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames)


def _packed(picture: NDArray[np.uint8], form: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, form, quality=85)
    return file.getvalue()
