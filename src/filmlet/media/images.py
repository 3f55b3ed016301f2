"""Single pictures of a clip: its poster, its thumbnail, all of it on one sheet."""

import io
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from filmlet.core.events import Pixels
from filmlet.errors import InvalidRequest
from filmlet.media.output_path import to_output_error

PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


def poster(pixels: Pixels) -> NDArray[np.uint8]:
    """Return the frame that stands for the clip, its middle one: (height, width, 3)."""
    return pixels[len(pixels) // 2]


def save_image(path: Path, image: NDArray[np.uint8]) -> None:
    """Write one picture in the format of the path's suffix.

    It takes the place of what was there at once. Raises DiskFull, OutputUnwritable; leaves
    nothing half-written.
    """
    part = path.with_stem(f"{path.stem}.{secrets.token_hex(4)}.part")
    try:
        Image.fromarray(image).save(part)
        part.replace(path)
    except OSError as error:
        raise to_output_error(error, path) from error
    finally:
        part.unlink(missing_ok=True)


def is_picture(value: object) -> bool:
    """Return whether it is a picture in memory: Pillow's, or an array."""
    return isinstance(value, Image.Image | np.ndarray)


def save_picture(path: Path, picture: object) -> None:
    """Write a picture in memory as PNG, with its transparency and colour profile.

    picture: Pillow's, or (height, width) or (height, width, 3 or 4) uint8. Raises InvalidRequest.
    """
    try:
        if isinstance(picture, np.ndarray) and (picture.ndim < 2 or picture.dtype != np.uint8):
            raise TypeError(f"{picture.dtype} of {picture.shape}")
        image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        in_png = image if image.mode in PNG_MODES else image.convert("RGB")
        in_png.save(path, "PNG")
    except (TypeError, ValueError, KeyError) as error:
        raise InvalidRequest(
            "A picture in memory is Pillow's, or an array of (height, width, 3) uint8.",
            param="guides",
        ) from error


def thumbnail(clip: BinaryIO) -> bytes:
    """Return the middle frame of a finished clip of ours, as WebP."""
    count = _count_packets(clip)
    (middle,) = _read_frames_at(clip, [count // 2])
    return _encode_image(middle, "WEBP")


def spritesheet(clip: BinaryIO, columns: int = 5, width: int = 160) -> bytes:
    """Up to 25 frames, evenly spaced, row by row in one JPEG; each `width` pixels wide."""
    count = _count_packets(clip)
    places = np.linspace(0, count - 1, min(count, columns**2)).round().astype(int).tolist()
    chosen = [_resize_to_width(picture, width) for picture in _read_frames_at(clip, places)]
    height, rows = chosen[0].height, -(-len(chosen) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height))
    for i, picture in enumerate(chosen):
        sheet.paste(picture, (i % columns * width, i // columns * height))
    return _encode_image(np.asarray(sheet), "JPEG")


def _resize_to_width(picture: NDArray[np.uint8], width: int) -> Image.Image:
    height = max(1, round(width * picture.shape[0] / picture.shape[1]))
    return Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)


def _count_packets(clip: BinaryIO) -> int:
    with av.open(clip, "r", "mov") as container:
        return sum(1 for packet in container.demux(video=0) if packet.size)


def _read_frames_at(clip: BinaryIO, places: list[int]) -> Iterator[NDArray[np.uint8]]:
    """The frames of these numbers, which rise: (height, width, 3); one at a time is in memory."""
    clip.seek(0)
    with av.open(clip, "r", "mov") as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number in places:
                yield frame.to_ndarray(format="rgb24")
            if number == places[-1]:
                return


def _encode_image(picture: NDArray[np.uint8], form: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, form, quality=85)
    return file.getvalue()
