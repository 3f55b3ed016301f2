"""Videos by libav: the frames that a player would show, when it would show them."""

import math
import statistics
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, BinaryIO

import av
from av.filter import Graph
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition
from av.video.reformatter import ColorRange
from PIL import Image

from filmlet.media.decoder import colors
from filmlet.media.decoder.messages import Message, Unfit
from filmlet.media.decoder.pictures import lay_on_background
from filmlet.media.decoder.truncation import is_cut_off

STREAMS = 32
TOLERANCE_S = 0.5  # a minute of a phone lasts 60.03 s
MIN_FPS = 1.0
USUAL_FPS = (24000 / 1001, 24.0, 25.0, 30000 / 1001, 30.0, 48.0, 50.0, 60000 / 1001, 60.0)
NEAR_FPS = 0.03  # a rate measured from timestamps is the usual one within this
MAX_DRIFT = 0.75  # frames that an even rate is off at most
REPORT_FRAMES = 16  # so often a look says that it goes on
UNSPECIFIED, BT709, BT601 = 2, 1, 5  # matrices of CICP
HD_SIDES = (1280, 720)  # from here on, unnamed colours are BT.709's, as players take them
# x' = a x + c y, y' = b x + d y of a display matrix, and how Pillow does it.
TURNS = {
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
}
ODD_TURN = 0.1  # of a matrix entry, from 0 or 1
SIDEWAYS = [turn for (a, *_), turn in TURNS.items() if a == 0]
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # libav's own drop alpha


class Footage:
    """An open video: its stream of pictures and what decodes it."""

    def __init__(self, file: BinaryIO, order: dict[str, Any]) -> None:
        self.order = order
        self.container = open_container(file, order)
        self.stream = choose_stream(self.container)
        context = self.stream.codec_context
        if context is None or context.codec.name not in order["decoders"]:
            raise Unfit("its pictures are encoded in a way that is not read here; H.264 is.")
        self._check_size(self.stream.codec_context)
        check_complete(self.stream, file, order["format"])
        self.decoder = self._decoder()

    def _check_size(self, size: Any) -> None:
        pixels = self.order["pixels"]
        if not 0 < size.width * size.height <= pixels:
            raise Unfit(f"{size.width}x{size.height} pixels are too many; at most 4096x2304.")

    def _decoder(self) -> Any:
        context, order = self.stream.codec_context, self.order
        name = ALPHA_DECODERS.get(context.codec.name)
        tags = {key.lower(): value for key, value in self.stream.metadata.items()}
        if name and tags.get("alpha_mode") == "1":
            context = av.CodecContext.create(name, "r")
            context.extradata = self.stream.codec_context.extradata
        context.options = {"max_pixels": str(order["pixels"])}
        context.thread_count = order["threads"]
        return context

    def frames(self) -> Iterator[tuple[float | None, Any]]:
        """When each is shown, in seconds, and it; all of one size.

        What an edit list hides is decoded and not shown.
        """
        base, size = self.stream.time_base, None
        for packet in self.container.demux(self.stream):
            for frame in self.decoder.decode(packet if packet.size else None):
                self._check_size(frame)
                size = size or (frame.width, frame.height)
                if (frame.width, frame.height) != size:
                    raise Unfit("its frames are not all of one size.")
                yield None if frame.pts is None else float(frame.pts * base), frame

    def display_size(self, frame: Any) -> tuple[int, int]:
        """Width and height of a frame with square pixels, before it is turned."""
        aspect = float(self.stream.sample_aspect_ratio or 1)
        width = max(1, round(frame.width * aspect))
        if width * frame.height > self.order["pixels"]:
            raise Unfit(f"{width}x{frame.height} pixels are too many; at most 4096x2304.")
        return width, frame.height


def open_container(file: BinaryIO, order: dict[str, Any]) -> Any:
    """The container; libav guesses nothing and opens nothing."""
    decoders = list(order["decoders"])
    if order["task"] == "read_audio":
        decoders += order["audio_decoders"]
    options = {
        "format_whitelist": order["format"],
        "codec_whitelist": ",".join(decoders),
        "protocol_whitelist": "none",
        "max_streams": str(STREAMS),
    }
    if order["format"] == "mov":
        options["enable_drefs"] = "0"  # pictures that lie in other files
    return av.open(file, "r", order["format"], container_options=options)


def check_complete(stream: Any, file: BinaryIO, form: str) -> None:
    """Refuse a file that ends before the frames that its index or its parts announce."""
    place = file.tell()
    size = file.seek(0, 2)
    file.seek(place)
    is_indexed_beyond = any(entry.pos + entry.size > size for entry in stream.index_entries)
    if is_indexed_beyond or is_cut_off(file, form):
        raise Unfit("this video is cut off: its file ends before its last frame.")


def choose_stream(container: Any) -> Any:
    """Return the moving pictures: no cover of a song, no still thumbnails."""
    still = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
    streams = [stream for stream in container.streams.video if not stream.disposition & still]
    if not streams:
        what = "but a cover" if container.streams.video else "at all"
        raise Unfit(f"there are no moving pictures in this file {what}.")
    return next((s for s in streams if s.disposition & Disposition.default), streams[0])


def choose_audio_stream(container: Any, decoders: list[str]) -> Any:
    """The sound that a player takes, None where there is none that is read here."""
    readable = [
        stream
        for stream in container.streams.audio
        if stream.codec_context is not None and stream.codec_context.codec.name in decoders
    ]
    defaults = [stream for stream in readable if stream.disposition & Disposition.default]
    return next(iter(defaults or readable), None)


@dataclass
class Timing:
    """When frames are shown. fps: of what is read; every: so many frames of the file are one.

    is_resampled: the frames are chosen by their time. source_fps: of the file, where it is another;
    0 where its frames do not follow each other evenly.
    """

    fps: float
    every: int = 1
    is_resampled: bool = False
    source_fps: float = 0.0

    def count(self, times: Sequence[float | None], length: float) -> int:
        """Return frames that are read. length: seconds that the last of the file's is shown."""
        if not self.is_resampled:
            return -(-len(times) // self.every)
        start, last = times[0] or 0.0, times[-1] or 0.0
        end = slot_of(last + (length or 1 / self.fps), start, self.fps)
        return max(end, slot_of(last, start, self.fps) + 1)


def measure_timing(times: Sequence[float | None], rate: float, max_fps: float) -> Timing:
    """rate: frames a second that the container names, 0 if none."""
    known = [time for time in times if time is not None]
    is_timed = len(known) == len(times) > 1 and all(a < b for a, b in pairwise(known))
    if not is_timed:
        if not rate:
            raise Unfit("this video does not say how many frames a second it has.")
        return _reduce_fps(rate, max_fps)
    start, count = known[0], len(known)
    mean = (count - 1) / (known[-1] - start)
    for even in (rate, snap_fps(mean), mean):
        if all(abs((time - start) * even - i) < MAX_DRIFT for i, time in enumerate(known)):
            return _reduce_fps(even, max_fps)
    median = statistics.median(b - a for a, b in pairwise(known))
    fps = _reduce_fps(snap_fps(1 / median), max_fps).fps
    return Timing(fps, is_resampled=True)


def _reduce_fps(fps: float, max_fps: float) -> Timing:
    """Return a rate that clips can have: a whole part of a higher one."""
    if fps < MIN_FPS:
        return Timing(MIN_FPS, is_resampled=True, source_fps=fps)
    every = max(1, math.ceil(fps / max_fps - 1e-6))
    return Timing(fps / every, every, source_fps=fps if every > 1 else 0.0)


def snap_fps(fps: float) -> float:
    """Return the usual rate that is meant, if one is near."""
    nearest = min(USUAL_FPS, key=lambda usual: abs(usual / fps - 1))
    return nearest if abs(nearest / fps - 1) < NEAR_FPS else round(fps, 3)


def slot_of(time: float, start: float, fps: float) -> int:
    """Return the frame of an even rate at which something is shown first."""
    return math.ceil((time - start) * fps - 0.5)


def look_at_video(file: BinaryIO, order: dict[str, Any]) -> Iterator[Message]:
    """Its size, rate and frames, all decoded: a file may say anything of itself."""
    footage = Footage(file, order)
    stream = footage.stream
    times: list[float | None] = []
    first, length = None, 0.0
    for time, frame in footage.frames():
        first = first or frame
        length = float((frame.duration or 0) * stream.time_base)
        times.append(time)
        _check_length(times, order)
        if len(times) % REPORT_FRAMES == 0:
            yield {"seen": len(times)}, b""
    if first is None:
        raise Unfit("no frame of this video can be read.")
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    timing = measure_timing(times, rate, order["max_fps"])
    frames = timing.count(times, length)
    if frames / timing.fps > order["seconds"] + TOLERANCE_S:
        raise Unfit(f"this video is too long; at most {order['seconds']:.0f} s.")
    size = footage.display_size(first)
    turn, is_odd = find_turn(first)
    width, height = size[::-1] if turn in SIDEWAYS else size
    facts = {
        "is_uneven": timing.is_resampled and not timing.source_fps,
        "source_fps": timing.source_fps,
        "has_sound": bool(footage.container.streams.audio),
        "has_alpha": has_alpha(first),
        "bits": max(component.bits for component in first.format.components),
        "is_hdr": colors.is_hdr(int(first.color_trc)),
        "is_odd_rotation": is_odd,
    }
    yield {
        "width": width, "height": height, "frames": frames, "fps": timing.fps,
        "every": timing.every, "is_resampled": timing.is_resampled, "facts": facts,
        "has_audio": choose_audio_stream(footage.container, order["audio_decoders"]) is not None,
    }, b""  # fmt: skip


def _check_length(times: Sequence[float | None], order: dict[str, Any]) -> None:
    if len(times) > order["frames"]:
        raise Unfit(f"this video has too many frames; at most {order['frames']}.")
    seconds = (times[-1] or 0) - (times[0] or 0)
    if seconds > order["seconds"] + TOLERANCE_S:
        raise Unfit(f"this video is too long; at most {order['seconds']:.0f} s.")


def find_turn(frame: Any) -> tuple[Image.Transpose | None, bool]:
    """Return how a frame is turned or mirrored to be shown, and whether its angle is ignored."""
    matrix = frame.side_data.get(SideData.DISPLAYMATRIX)
    if matrix is None:
        return None, False
    a, b, _, c, d, *_ = struct.unpack_from("=9i", bytes(matrix))
    largest = max(map(abs, (a, b, c, d))) or 1
    signs = tuple(round(value / largest) for value in (a, b, c, d))
    is_odd = any(
        abs(value / largest - sign) > 0.1 for value, sign in zip((a, b, c, d), signs, strict=True)
    )
    return (None, True) if is_odd else (TURNS.get(signs), False)


def has_alpha(frame: Any) -> bool:
    return any(component.is_alpha for component in frame.format.components)


def read_video(file: BinaryIO, order: dict[str, Any]) -> Iterator[Message]:
    """Frames `first` to `first + count` at an even rate; those before are told of, to be heard."""
    first, count = order["first"], order["count"]
    footage = Footage(file, order)
    painter = Painter(footage)
    for number, (frames, frame) in enumerate(spread_frames(deinterlace(footage), order)):
        wanted = min(frames.stop, first + count) - max(frames.start, first)
        if wanted > 0:
            image = painter.paint(frame)
            size = {"width": image.width, "height": image.height}
            pixels = image.tobytes()
            for _ in range(wanted):
                yield size, pixels
        elif number % REPORT_FRAMES == 0:
            yield {"skipped": number}, b""
        if frames.stop >= first + count:
            return


def spread_frames(
    frames: Iterator[tuple[float | None, Any]], order: dict[str, Any]
) -> Iterator[tuple[range, Any]]:
    """Yield each frame of a video with the frames of an even rate that it is."""
    if not order["is_resampled"]:
        for number, (_, frame) in enumerate(frames):
            if number % order["every"] == 0:
                place = number // order["every"]
                yield range(place, place + 1), frame
        return
    held, start, place = None, 0.0, 0
    for time, frame in frames:
        time = time or 0.0
        start = time if held is None else start
        now = slot_of(time, start, order["fps"])
        if held is not None and now > place:
            yield range(place, now), held
            place = now
        held = frame
    if held is not None:
        yield range(place, max(place + 1, order["frames_at_rate"])), held


def deinterlace(footage: Footage) -> Iterator[tuple[float | None, Any]]:
    """Yield frames whole: of two interlaced fields one picture is made."""
    waiting: list[float | None] = []
    graph = None
    for time, frame in footage.frames():
        if graph is None and not frame.interlaced_frame:
            yield time, frame
            continue
        graph = graph or _deinterlacer(footage.stream, frame)
        waiting.append(time)
        graph.push(frame)
        yield from _drain_graph(graph, waiting)
    if graph is not None:
        graph.push(None)
        yield from _drain_graph(graph, waiting)


def _deinterlacer(stream: Any, frame: Any) -> Graph:
    graph = Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=stream.time_base
    )
    filters = graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink")
    graph.link_nodes(source, *filters).configure()
    return graph


def _drain_graph(graph: Graph, waiting: list[float | None]) -> Iterator[tuple[float | None, Any]]:
    while waiting:
        try:
            frame = graph.pull()
        except (av.BlockingIOError, av.EOFError):
            return
        yield waiting.pop(0), frame


class Painter:
    """Frames as pictures: upright, with square pixels, opaque, in sRGB."""

    def __init__(self, footage: Footage) -> None:
        self.footage = footage
        self.to_srgb: colors.ToSrgb | None = None
        self.turn: Image.Transpose | None = None

    def paint(self, frame: Any) -> Image.Image:
        if self.to_srgb is None:
            numbers = int(frame.color_primaries), int(frame.color_trc)
            self.to_srgb = colors.ToSrgb.from_profile("RGB", colors.cicp_profile(*numbers))
            self.turn, _ = find_turn(frame)
        mode = "RGBA" if has_alpha(frame) else "RGB"
        image = self._as_image(frame, mode)
        alpha = image.getchannel("A") if mode == "RGBA" else None
        rgb = self.to_srgb.convert(image.convert("RGB"))
        if alpha is not None:
            rgb = lay_on_background(rgb, alpha)
        return rgb if self.turn is None else rgb.transpose(self.turn)

    def _as_image(self, frame: Any, mode: str) -> Image.Image:
        width, height = self.footage.display_size(frame)
        matrix, is_full = int(frame.colorspace), frame.format.name.startswith("yuvj")
        if matrix == UNSPECIFIED:
            is_hd = frame.width >= HD_SIDES[0] or frame.height >= HD_SIDES[1]
            matrix = BT709 if is_hd else BT601
        full = ColorRange.JPEG
        plane = frame.reformat(
            width, height, "rgba" if mode == "RGBA" else "rgb24", src_colorspace=matrix,
            src_color_range=full if is_full else frame.color_range, dst_color_range=full,
        ).planes[0]  # fmt: skip
        return Image.frombuffer(
            mode, (width, height), bytes(plane), "raw", mode, plane.line_size, 1
        )
