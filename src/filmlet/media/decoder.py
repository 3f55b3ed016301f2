"""A process that decodes one file from outside, from its stdin to its stdout, and can do no more.

`sandbox` runs it as a script: the package would take longer to import than most files to decode.
It answers in lines of JSON, some of them with pixels behind them. Before it reads a byte of the
file it gives up opening anything: no file, no socket, no pipe.
"""

import json
import math
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, BinaryIO

SOS, EOI = 0xDA, 0xD9
MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
BACKGROUND = "white"
STRIP_PIXELS = 2**20
ORIENTATION = 0x0112
DEGREES = 90
STREAMS = 32

Message = tuple[dict[str, Any], Any]  # a line, and the pixels behind it


class Unfit(Exception):
    """Why the file is not decoded."""


def count_scans(data: bytes) -> int:
    """The scans of a JPEG's first picture."""
    scans, place = 0, 2
    while found := MARKER.search(data, place):
        kind, place = data[found.start() + 1], found.end()
        if kind == EOI:
            break
        scans += kind == SOS
        place += int.from_bytes(data[place : place + 2])
    return scans


def open_picture(file: BinaryIO, order: dict[str, Any]) -> Any:
    """The picture, loaded and upright where its EXIF says how."""
    from PIL import Image, ImageOps

    if order["format"] == "JPEG" and count_scans(file.read()) > order["scans"]:
        raise Unfit(f"it is made of too many scans; at most {order['scans']}.")
    file.seek(0)
    image = Image.open(file, formats=[order["format"]])
    if image.width * image.height > order["pixels"]:
        most = order["pixels"] // 10**6
        raise Unfit(f"{image.width}x{image.height} pixels are too many; at most {most} million.")
    image.load()
    with suppress(Exception):  # of EXIF that is damaged anything can come: shown as it is stored
        ImageOps.exif_transpose(image, in_place=True)
    return image


def look_at_picture(file: BinaryIO, order: dict[str, Any]) -> Iterator[Message]:
    """Its size."""
    image = open_picture(file, order)
    size = {"width": image.width, "height": image.height}
    yield size | {"has_alpha": image.has_transparency_data}, b""


def read_picture(file: BinaryIO, order: dict[str, Any]) -> Iterator[Message]:
    """Its pixels in strips: opaque, in RGB, or in 16 bits of grey as they are."""
    from PIL import Image

    image = open_picture(file, order)
    is_deep, has_alpha = image.mode.startswith("I"), image.has_transparency_data
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        if not is_deep:
            if has_alpha:
                ground = Image.new("RGBA", strip.size, BACKGROUND)
                strip = Image.alpha_composite(ground, strip.convert("RGBA"))
            strip = strip.convert("RGB")
        size = {"width": strip.width, "height": strip.height, "mode": strip.mode}
        yield size, strip.tobytes()


def open_video(file: BinaryIO, order: dict[str, Any]) -> Any:
    """The container, and its first stream of pictures; libav guesses nothing and opens nothing."""
    import av

    options = {
        "format_whitelist": order["format"],
        "codec_whitelist": ",".join(order["decoders"]),
        "protocol_whitelist": "none",
        "max_streams": str(STREAMS),
    }
    if order["format"] == "mov":
        options["enable_drefs"] = "0"  # pictures that lie in other files
    container = av.open(file, "r", order["format"], container_options=options)
    if not container.streams.video:
        raise Unfit("there is no picture in this video.")
    stream = container.streams.video[0]
    context = stream.codec_context
    if context is None or context.codec.name not in order["decoders"]:
        raise Unfit("its pictures are encoded in a way that is not read here; H.264 is.")
    if not 0 < context.width * context.height <= order["pixels"]:
        raise Unfit(f"{context.width}x{context.height} pixels are too many; at most 4096x2304.")
    context.options = {"max_pixels": str(order["pixels"])}
    context.thread_count = order["threads"]
    return container


def decoded(container: Any, order: dict[str, Any]) -> Iterator[Any]:
    """Its frames, all of one size."""
    size = None
    for frame in container.decode(video=0):
        size = size or (frame.width, frame.height)
        if (frame.width, frame.height) != size:
            raise Unfit("its frames are not all of one size.")
        if frame.width * frame.height > order["pixels"]:
            raise Unfit(f"{frame.width}x{frame.height} pixels are too many; at most 4096x2304.")
        yield frame


def look_at_video(file: BinaryIO, order: dict[str, Any]) -> Iterator[Message]:
    """Its size, and its frames counted: a file may say any number of them."""
    with open_video(file, order) as container:
        stream = container.streams.video[0]
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        if not fps:
            raise Unfit("this video does not say how many frames a second it has.")
        frames, first = 0, None
        for packet in packets_within(container, fps, order):
            frames += bool(packet.size)
            if first is None:
                first = next(iter(packet.decode()), None)
    if first is None:
        raise Unfit("no frame of this video can be read.")
    size = (first.width, first.height)
    width, height = size[::-1] if first.rotation // DEGREES % 2 else size
    yield {"width": width, "height": height, "frames": frames, "fps": fps}, b""


def packets_within(container: Any, fps: float, order: dict[str, Any]) -> Iterator[Any]:
    """The packets of its pictures, one a frame, no further than is allowed; the last is empty."""
    frames, start, end = 0, math.inf, -math.inf
    for packet in container.demux(video=0):
        frames += bool(packet.size)
        if packet.size and packet.pts is not None:
            now = float(packet.pts * packet.time_base)
            start, end = min(start, now), max(end, now)
        if frames > order["frames"]:
            raise Unfit(f"this video has too many frames; at most {order['frames']}.")
        if max(frames / fps, end - start) > order["seconds"]:
            raise Unfit(f"this video is too long; at most {order['seconds']:.0f} s.")
        yield packet


def read_video(file: BinaryIO, order: dict[str, Any]) -> Iterator[Message]:
    """So many of its frames from the first that is wanted on; those before it are told of."""
    first, last = order["first"], order["first"] + order["count"]
    with open_video(file, order) as container:
        for number, frame in enumerate(decoded(container, order)):
            if number < first:
                yield {"skipped": number}, b""
                continue
            if number >= last:
                return
            plane = frame.reformat(format="rgb24").planes[0]
            size = {"width": frame.width, "height": frame.height, "stride": plane.line_size}
            yield size | {"turns": frame.rotation // DEGREES}, memoryview(plane)


TASKS = {
    ("look", False): look_at_picture,
    ("read", False): read_picture,
    ("look", True): look_at_video,
    ("read", True): read_video,
}


def import_libraries(is_video: bool) -> None:
    """Everything that decoding needs: nothing can be opened later."""
    if is_video:
        import av
        import av.subtitles.codeccontext  # these are imported by `open` only
        import av.subtitles.stream
        import av.subtitles.subtitle

        av.logging.set_level(None)
    else:
        import PIL.ImageOps
        import PIL.JpegImagePlugin
        import PIL.MpoImagePlugin
        import PIL.PngImagePlugin
        import PIL.WebPImagePlugin

        PIL.Image.preinit()
        PIL.Image.MAX_IMAGE_PIXELS = None  # ours is asked, with a sentence of its own


def limit_resources(cpu_s: int, memory_bytes: int) -> None:
    """Open no more files or sockets, write none, and end rather than take more than this."""
    try:
        import resource
    except ImportError:  # Windows: time alone is limited, by the process that waits
        return
    for name, most in (
        ("RLIMIT_CPU", cpu_s),
        ("RLIMIT_AS", memory_bytes),
        ("RLIMIT_FSIZE", 0),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_NOFILE", 0),
    ):
        with suppress(ValueError, OSError):  # a system that does not know or keep one
            resource.setrlimit(getattr(resource, name), (most, most))


def send(line: dict[str, Any], pixels: Any = b"") -> None:
    """Write one line, and the pixels that belong to it."""
    out = sys.stdout.buffer
    out.write(json.dumps(line | {"bytes": len(pixels)}).encode() + b"\n")
    out.write(pixels)
    out.flush()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who waits, and kills this
    order = json.loads(sys.argv[1])
    is_video = order["format"] in ("mov", "matroska")
    import_libraries(is_video)
    limit_resources(order["cpu_s"], order["memory_bytes"])
    try:
        with open(0, "rb", closefd=False) as file:
            file.seek(0)
            for line, pixels in TASKS[order["task"], is_video](file, order):
                send(line, pixels)
        end: dict[str, Any] = {"end": True}
    except Unfit as reason:
        end = {"refused": str(reason)}
    except BrokenPipeError:
        return
    except Exception:  # whatever a library raises about what a stranger sent
        end = {"refused": order["damaged"]}
    send(end)


if __name__ == "__main__":
    main()
