"""Pictures and videos that a clip is guided by or goes on from: what they are, and their pixels."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from PIL import Image, ImageOps

from filmlet.events import Pixels
from filmlet.media.reading import IMAGES, Refused, check_image, check_video

BACKGROUND = "white"  # of pictures that one can see through


@dataclass(frozen=True)
class Footage:
    """A file that was looked at. name: by its content alone; fps: None is a picture, upright."""

    name: str
    width: int
    height: int
    frames: int = 1
    fps: float | None = None
    is_see_through: bool = False


def look(path: Path) -> Footage:
    """What the picture or the video at `path` is. Raises Refused."""
    try:
        with path.open("rb") as file:
            name = f"given-{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"
            file.seek(0)
            start = file.read(12)
            if start[4:8] == b"ftyp" or start[:4] == b"\x1aE\xdf\xa3":
                check_video(file)
                return _look_at_video(path, name + (".mp4" if start[4:8] == b"ftyp" else ".webm"))
            check_image(file)
    except OSError as error:
        raise Refused(f"it cannot be read: {error.strerror or error}.") from error
    with Image.open(path, formats=IMAGES) as image:
        suffix = (image.format or "").lower()
        width, height = ImageOps.exif_transpose(image).size
        return Footage(
            f"{name}.{suffix}", width, height, is_see_through=image.has_transparency_data
        )


def _look_at_video(path: Path, name: str) -> Footage:
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            frames = sum(1 for packet in container.demux(stream) if packet.size)
            fps = float(stream.average_rate or stream.guessed_rate or 0)
        height, width, _ = next(frames_of(path)).shape
    except (FFmpegError, StopIteration) as error:
        raise Refused("this video cannot be read; it may be cut off.") from error
    if not fps:
        raise Refused("this video does not say how many frames a second it has.")
    return Footage(name, width, height, frames, fps)


def read_picture(path: Path) -> Pixels:
    """A picture as one frame, (1, height, width, 3): upright, opaque, in RGB."""
    with Image.open(path, formats=IMAGES) as file:
        image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I"):  # 16 bits of grey: PIL would cut them off at 255
            image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
        if image.has_transparency_data:
            ground = Image.new("RGBA", image.size, BACKGROUND)
            image = Image.alpha_composite(ground, image.convert("RGBA"))
        return np.asarray(image.convert("RGB"))[None]


def frames_of(path: Path) -> Iterator[Pixels]:
    """Each frame of a video, (height, width, 3), upright. Raises Refused."""
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                upright = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
                yield np.ascontiguousarray(upright)
    except FFmpegError as error:
        raise Refused("this video cannot be read to its end.") from error


def read_video(path: Path, first: int, count: int) -> Pixels:
    """So many frames of a video from `first` on: (frames, height, width, 3). Raises Refused."""
    found = list(islice(frames_of(path), first, first + count))
    if len(found) < count:
        raise Refused("this video has fewer frames than it says.")
    return np.stack(found)


def covering(pixels: Pixels, width: int, height: int) -> Pixels:
    """Frames resized to cover width x height, and their middle."""
    tall, wide = pixels.shape[1:3]
    if (wide, tall) == (width, height):
        return pixels
    scale = max(width / wide, height / tall)
    left, top = (wide - width / scale) / 2, (tall - height / scale) / 2
    box = left, top, wide - left, tall - top
    return np.stack(
        [
            np.asarray(
                Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS, box)
            )
            for frame in pixels
        ]
    )


def framed(pixels: Pixels, width: int, height: int) -> Pixels:
    """Frames as they are in the middle of larger ones; their edges go on to the border."""
    tall, wide = pixels.shape[1:3]
    top, left = (height - tall) // 2, (width - wide) // 2
    sides = ((0, 0), (top, height - tall - top), (left, width - wide - left), (0, 0))
    return np.pad(pixels, sides, mode="edge")
