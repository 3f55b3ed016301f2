"""Pictures and videos as people have them: what lies beside the pixels matters."""

import io
import struct
import zlib
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image

from filmlet.core.events import Pixels
from filmlet.media.decoder import colors

BT709 = 1
COLORS = ((220, 40, 40), (40, 180, 60), (50, 70, 210), (240, 200, 40))
UNTURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
}  # fmt: skip  # how a picture is stored so that an orientation puts it upright


def four_colors(width: int = 256, height: int = 192) -> Image.Image:
    """Red and green above blue and yellow."""
    image = Image.new("RGB", (width, height))
    for i, color in enumerate(COLORS):
        left, top = i % 2 * width // 2, i // 2 * height // 2
        image.paste(color, (left, top, left + width // 2, top + height // 2))
    return image


def corners(frame: Pixels) -> list[tuple[int, ...]]:
    """The colours in the middle of the four quarters of (height, width, 3)."""
    height, width, _ = frame.shape
    return [tuple(frame[height * y // 4, width * x // 4].tolist()) for y in (1, 3) for x in (1, 3)]


def is_near(found: Iterable[Sequence[int]], wanted: Iterable[Sequence[int]], by: int) -> bool:
    pairs = zip(found, wanted, strict=True)
    return all(abs(a - b) <= by for one, other in pairs for a, b in zip(one, other, strict=True))


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def make_png(pixels: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of (height, width) grey or (height, width, channels), in 8 or 16 bits."""
    height, width = pixels.shape[:2]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[1 if pixels.ndim == 2 else pixels.shape[2]]
    head = struct.pack(">IIBBBBB", width, height, pixels.dtype.itemsize * 8, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(pixels.dtype.newbyteorder(">")).tobytes() for row in pixels)
    parts = ((b"IHDR", head), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*part) for part in parts)


def jpeg_with_exif(image: Image.Image, entries: Sequence[tuple[int, int, int, bytes]]) -> bytes:
    """entries: tag, type, count and four bytes of a value, or of its place."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95)
    data = file.getvalue()
    table = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + table + bytes(4)
    exif += struct.pack("<iid", -1, 0, float("nan"))
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]


def wide_gamut(primaries: Any, gamma: float) -> tuple[Image.Image, bytes]:
    """The four colours as numbers of another colour space, and its profile."""
    from PIL import ImageCms

    profile = colors.make_profile(primaries, gamma)
    target = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    srgb = ImageCms.createProfile("sRGB")
    image = ImageCms.profileToProfile(four_colors(), srgb, target, outputMode="RGB")
    assert image
    return image, profile


def box(name: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I", 8 + len(body)) + name + body


def full_box(name: bytes, version: int, flags: int, *parts: bytes) -> bytes:
    return box(name, struct.pack(">I", version << 24 | flags), *parts)


def _heic_tile(image: Image.Image) -> tuple[bytes, bytes]:
    """Its decoder configuration, and its coded picture."""
    import pillow_heif

    file = io.BytesIO()
    pillow_heif.from_pillow(image).save(file, quality=95)
    data = file.getvalue()

    def find(name: bytes) -> bytes:
        start = data.index(name) - 4
        return data[start : start + int.from_bytes(data[start : start + 4])]

    return find(b"hvcC"), find(b"mdat")[8:]


def heic_of_tiles(image: Image.Image, quarter_turns: int = 0, side: int = 256) -> bytes:
    """A HEIC as phones write it: a grid of square tiles. quarter_turns: to the left, when shown."""
    columns, rows = -(-image.width // side), -(-image.height // side)
    tiles = []
    for place in range(columns * rows):
        left, top = place % columns * side, place // columns * side
        tile = Image.new("RGB", (side, side))
        tile.paste(
            image.crop((left, top, min(left + side, image.width), min(top + side, image.height)))
        )
        tiles.append(_heic_tile(tile))
    count, grid = len(tiles), len(tiles) + 1
    plan = struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, *image.size)
    entries = [
        full_box(b"infe", 2, 1, struct.pack(">HH", i + 1, 0), b"hvc1\0") for i in range(count)
    ]
    entries.append(full_box(b"infe", 2, 0, struct.pack(">HH", grid, 0), b"grid\0"))
    parts = struct.pack(f">HH{count}H", grid, count, *range(1, grid))
    sizes = [
        full_box(b"ispe", 0, 0, struct.pack(">II", *size)) for size in ((side, side), image.size)
    ]
    turn = [box(b"irot", bytes([quarter_turns]))] if quarter_turns else []
    owners = b"".join(struct.pack(">HBBB", i + 1, 2, 0x81, 2) for i in range(count))
    owners += struct.pack(">HBB", grid, 1 + len(turn), 3) + b"\x84" * len(turn)
    head = box(b"ftyp", b"heic", bytes(4), b"mif1heic")

    def meta(start: int) -> bytes:
        places = b""
        for i, (_, coded) in enumerate(tiles):
            places += struct.pack(">HHHHII", i + 1, 0, 0, 1, start, len(coded))
            start += len(coded)
        places += struct.pack(">HHHHII", grid, 1, 0, 1, 0, len(plan))
        return full_box(
            b"meta", 0, 0,
            full_box(b"hdlr", 0, 0, bytes(4), b"pict", bytes(13)),
            full_box(b"pitm", 0, 0, struct.pack(">H", grid)),
            full_box(b"iloc", 1, 0, b"\x44\0", struct.pack(">H", grid), places),
            full_box(b"iinf", 0, 0, struct.pack(">H", grid), *entries),
            full_box(b"iref", 0, 0, box(b"dimg", parts)),
            box(b"iprp", box(b"ipco", tiles[0][0], *sizes, *turn),
                full_box(b"ipma", 0, 0, struct.pack(">I", grid), owners)),
            box(b"idat", plan),
        )  # fmt: skip

    start = len(head) + len(meta(0)) + 8
    return head + meta(start) + box(b"mdat", *(coded for _, coded in tiles))


def marked_frames(count: int, size: tuple[int, int] = (128, 96)) -> Pixels:
    """The four colours; a grey bar at the top says the number of the frame, 5 levels a frame."""
    frames = np.stack([np.asarray(four_colors(*size))] * count)
    for number, frame in enumerate(frames):
        frame[: size[1] // 8] = 5 * number
    return frames


def numbers_of(frames: Iterable[Pixels]) -> list[int]:
    """What `marked_frames` has written into frames."""
    return [round(float(frame[2:6, 4:-4].mean()) / 5) for frame in frames]


def write_clip(
    path: Path, frames: Pixels, rate: Fraction | int = 24, codec: str = "libx264", *,
    times: Sequence[float] | None = None, pix_fmt: str = "yuv420p", aspect: Fraction | None = None,
    sound: bool = False, alpha: Pixels | None = None, options: dict[str, str] | None = None,
) -> Path:  # fmt: skip
    """A video. times: seconds at which frames are shown; alpha: (frames, height, width)."""
    with av.open(str(path), "w") as made:
        stream: Any = made.add_stream(codec, rate=rate, options={"crf": "10"} | (options or {}))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        context = stream.codec_context
        context.time_base = Fraction(1, 12_000)
        context.colorspace = context.color_primaries = context.color_trc = BT709
        if aspect:
            context.sample_aspect_ratio = aspect
        if alpha is not None:
            stream.metadata["alpha_mode"] = "1"
        tone: Any = made.add_stream("aac", rate=48_000) if sound else None
        for number, pixels in enumerate(frames):
            if alpha is not None:
                pixels = np.dstack([pixels, alpha[number]])
            form = "rgb24" if alpha is None else "rgba"
            frame = av.VideoFrame.from_ndarray(pixels, form).reformat(
                format=pix_fmt, dst_colorspace=Colorspace.ITU709, src_color_range=ColorRange.JPEG,
                dst_color_range=ColorRange.MPEG,
            )  # fmt: skip
            seconds = number / rate if times is None else times[number]
            frame.pts, frame.time_base = round(seconds * 12_000), Fraction(1, 12_000)
            made.mux(stream.encode(frame))
        made.mux(stream.encode())
        if tone:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            silence.sample_rate = 48_000
            made.mux(tone.encode(silence))
            made.mux(tone.encode())
    return path


def cut_without_encoding(source: Path, path: Path, seconds: float) -> Path:
    """The end of a video: the frames before stay in the file, an edit list hides them."""
    with av.open(str(source)) as whole, av.open(str(path), "w") as made:
        stream = whole.streams.video[0]
        copied = made.add_stream_from_template(stream)
        for packet in whole.demux(stream):
            if packet.dts is None:
                continue
            shift = round(seconds / packet.time_base)
            packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copied
            made.mux(packet)
    return path


def song_with_cover(path: Path) -> Path:
    with av.open(str(path), "w") as made:
        tone: Any = made.add_stream("aac", rate=48_000)
        cover: Any = made.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))
        made.mux(cover.encode(picture))
        made.mux(cover.encode())
        for number in range(50):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            silence.sample_rate, silence.pts = 48_000, number * 1024
            made.mux(tone.encode(silence))
        made.mux(tone.encode())
    return path


def with_matrix(clip: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """An MP4 whose pictures are to be shown with x' = a x + c y, y' = b x + d y."""
    place = clip.index(b"tkhd") + 4 + 40
    a, b, c, d = (value * 0x10000 for value in matrix)
    data = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 0x40000000)
    return clip[:place] + data + clip[place + len(data) :]
