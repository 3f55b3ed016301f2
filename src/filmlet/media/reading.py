"""Files that come from outside: what they are is read off their content, in bounds."""

from typing import BinaryIO

import av
from av.error import FFmpegError
from PIL import Image

IMAGE_PIXELS = 40_000_000
VIDEO_PIXELS = 4096 * 2304
VIDEO_SECONDS = 60.0
IMAGES = ("PNG", "JPEG", "WEBP")


class Refused(ValueError):
    """A file that is not decoded, with the reason."""


def check_image(file: BinaryIO) -> tuple[int, int]:
    """Width and height of a PNG, JPEG or WebP whose every byte can be read. Raises Refused."""
    file.seek(0)
    try:
        with Image.open(file, formats=IMAGES) as image:
            width, height = image.size
            if width * height > IMAGE_PIXELS:
                most = IMAGE_PIXELS // 10**6
                raise Refused(f"{width}x{height} pixels are too many; at most {most} million.")
            image.load()
    except Refused:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Refused("this is not a whole PNG, JPEG or WebP picture.") from error
    finally:
        file.seek(0)
    return width, height


def check_video(file: BinaryIO) -> float:
    """Seconds of an MP4 or WebM whose first frame can be read. Raises Refused."""
    file.seek(0)
    start = file.read(12)
    file.seek(0)
    if start[4:8] != b"ftyp" and start[:4] != b"\x1aE\xdf\xa3":
        raise Refused("this is neither an MP4 nor a WebM video.")
    try:
        with av.open(file, mode="r") as container:
            if not container.streams.video:
                raise Refused("there is no picture in this video.")
            stream = container.streams.video[0]
            width, height = stream.codec_context.width, stream.codec_context.height
            if not 0 < width * height <= VIDEO_PIXELS:
                raise Refused(f"{width}x{height} pixels are too many; at most 4096x2304.")
            length = float(container.duration or 0) / av.time_base
            if length > VIDEO_SECONDS:
                raise Refused(f"{length:.0f} s are too long; at most {VIDEO_SECONDS:.0f} s.")
            if next(container.decode(stream), None) is None:
                raise Refused("no frame of this video can be read.")
            return length
    except Refused:
        raise
    except (FFmpegError, OSError, ValueError, EOFError) as error:
        raise Refused("this video cannot be read; it may be cut off.") from error
    finally:
        file.seek(0)
