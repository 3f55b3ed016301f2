"""Formats of files from outside, by their first bytes, and the limits they are read in."""

from enum import Enum
from typing import BinaryIO

IMAGE_PIXELS = 64_000_000  # of a JPEG four times as many: it is decoded at half its size
IMAGE_BYTES = 100 * 2**20
SCANS = 64  # of a JPEG, each a pass over all its pixels; encoders write about 10
VIDEO_PIXELS = 4096 * 2304  # of a frame
VIDEO_BYTES = 4 * 2**30
VIDEO_SECONDS = 60.0
VIDEO_FPS = 60.0  # of a faster one every second frame is taken, or every third
VIDEO_FRAMES = 14_400  # 60 s at 240 frames a second
# What phones and browsers record in; nothing else of libav's hundreds is ever opened.
DECODERS = ("h264", "hevc", "vp8", "vp9", "libdav1d", "mpeg4", "h263", "prores")
# Sound beside them: phones, browsers, cameras and editors.
AUDIO_DECODERS = (
    "aac", "mp3", "mp3float", "opus", "libopus", "vorbis", "flac", "alac", "ac3",
    "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_f32le",
)  # fmt: skip
AUDIO_RATES = (4_000, 192_000)  # Hz
AUDIO_BYTES = 2**27  # of its samples: a minute at the highest rate

HEAD_BYTES = 4096
EBML, DOCTYPE = b"\x1aE\xdf\xa3", b"\x42\x82"
BOX = 8  # bytes of size and name
PICTURE_BOXES = (b"ftyp", b"meta", b"mdat", b"moov", b"free", b"skip", b"uuid", b"mpvd")
BRANDS_BYTES = 256  # of an ISO file that are looked at
BOXES = 64  # that may stand before a video's index


class InvalidMedia(ValueError):
    """A file that is not decoded, with the reason."""


class Format(Enum):
    """A format that is read. The value: what Pillow or libav calls it."""

    PNG = "PNG"
    JPEG = "JPEG"
    WEBP = "WEBP"
    HEIC = "HEIF"
    AVIF = "AVIF"
    MP4 = "mov"
    WEBM = "matroska"

    @property
    def is_video(self) -> bool:
        return self in (Format.MP4, Format.WEBM)

    @property
    def suffix(self) -> str:
        """Suffix of a file that is named by its content."""
        return self.name.lower()


PICTURE_BRANDS = {
    Format.AVIF: {b"avif", b"avis"},
    Format.HEIC: {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"},
}
ANY_PICTURE_BRANDS = {b"mif1", b"mif2", b"msf1", b"miaf"}


def detect_format(file: BinaryIO) -> Format:
    """Return the format that a file begins with. Raises InvalidMedia where there is none."""
    file.seek(0)
    head = file.read(HEAD_BYTES)
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return Format.PNG
    if head.startswith(b"\xff\xd8\xff"):
        return Format.JPEG
    if head[4:8] == b"ftyp":
        if picture := _picture_of_brands(head):
            _check_whole(file)
            return picture
        _check_boxes(file, head)
        return Format.MP4
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return Format.WEBP
    if head.startswith(EBML):
        _check_doctype(head)
        return Format.WEBM
    raise InvalidMedia(
        "this is not a whole PNG, JPEG, WebP, HEIC or AVIF picture, nor an MP4 or WebM video."
    )


def _picture_of_brands(head: bytes) -> Format | None:
    """HEIC or AVIF by the brands of an ISO file; None is a video."""
    end = min(int.from_bytes(head[:4]), BRANDS_BYTES)
    major, compatible = head[8:12], {head[i : i + 4] for i in range(16, end, 4)}
    for form, brands in PICTURE_BRANDS.items():
        if major in brands or (major in ANY_PICTURE_BRANDS and compatible & brands):
            return form
    return Format.HEIC if major in ANY_PICTURE_BRANDS else None


def _check_whole(file: BinaryIO) -> None:
    """Refuse a HEIC or AVIF that ends within a box: libheif shows the tiles that are there.

    What phones append behind the boxes is no box, and may be anything.
    """
    size, place = file.seek(0, 2), 0
    for _ in range(BOXES):
        file.seek(place)
        box = file.read(2 * BOX)
        length = int.from_bytes(box[:4])
        if length == 1:  # 64 bits follow the name
            length = int.from_bytes(box[BOX:])
        if box[4:8] not in PICTURE_BOXES or not length:  # 0: up to the end
            return
        place += max(length, BOX)
        if place > size:
            raise InvalidMedia("this picture cannot be read; it may be cut off.")


def _check_boxes(file: BinaryIO, head: bytes) -> None:
    """Follow the boxes of an MP4 up to its index. Raises InvalidMedia where they lead elsewhere."""
    place = int.from_bytes(head[:4])
    is_first_whole = 2 * BOX <= place <= HEAD_BYTES
    for _ in range(BOXES if is_first_whole else 0):
        file.seek(place)
        box = file.read(2 * BOX)
        if len(box) < BOX:
            break
        if box[4:8] in (b"moov", b"moof", b"meta"):
            return
        size = int.from_bytes(box[:4])
        if size == 1:  # 64 bits follow the name
            size = int.from_bytes(box[BOX:])
        if size < BOX or place + size >= 2**62:
            break
        place += size
    raise InvalidMedia("this video cannot be read; it may be cut off.")


def _check_doctype(head: bytes) -> None:
    """Refuse an EBML file that is neither WebM nor Matroska."""
    place = head.find(DOCTYPE, len(EBML), 128)
    length = head[place + 2] & 0x7F if place > 0 else 0
    if head[place + 3 : place + 3 + length].rstrip(b"\0") not in (b"webm", b"matroska"):
        raise InvalidMedia("this is neither an MP4 nor a WebM video.")
