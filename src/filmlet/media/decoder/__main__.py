"""Run one order: argv holds it, stdin is the file. Before a byte of it is read, this process gives
up opening anything: no file, no socket, no pipe.
"""

import json
import signal
import sys
from contextlib import suppress
from typing import Any

from filmlet.media.decoder.messages import Unfit
from filmlet.media.process_limits import limit_process

VIDEOS = ("mov", "matroska")
HEIF_THREADS = 2


def import_tasks(is_video: bool) -> dict[str, Any]:
    """Import every library of the tasks and return these: nothing can be opened later."""
    import PIL.Image
    import PIL.ImageCms

    PIL.Image.preinit()
    PIL.Image.MAX_IMAGE_PIXELS = None  # ours is asked, with a sentence of its own
    if is_video:
        import av
        import av.subtitles.codeccontext  # these are imported by `open` only
        import av.subtitles.stream
        import av.subtitles.subtitle

        from filmlet.media.decoder import sounds, tags, videos

        av.logging.set_level(None)
        return {
            "look": videos.look_at_video,
            "read": videos.read_video,
            "read_audio": sounds.read_audio,
            "read_tags": tags.read_tags,
        }
    import PIL.AvifImagePlugin
    import PIL.JpegImagePlugin
    import PIL.MpoImagePlugin
    import PIL.PngImagePlugin
    import PIL.WebPImagePlugin

    from filmlet.media.decoder import pictures

    with suppress(ImportError):  # without it HEIC is refused, by name
        import pillow_heif

        pillow_heif.register_heif_opener(thumbnails=False, decode_threads=HEIF_THREADS)
    return {"look": pictures.look_at_picture, "read": pictures.read_picture}


def limit_resources(cpu_s: int, memory_bytes: int) -> None:
    """Open no more files or sockets, write none, and end rather than take more than this."""
    limit_process(CPU=cpu_s, AS=memory_bytes, FSIZE=0, NOFILE=0)


def send(line: dict[str, Any], pixels: Any = b"") -> None:
    """Write one line, and the pixels that belong to it."""
    out = sys.stdout.buffer
    out.write(json.dumps(line | {"bytes": len(pixels)}).encode() + b"\n")
    out.write(pixels)
    out.flush()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who waits, and kills this
    order = json.loads(sys.argv[1])
    tasks = import_tasks(order["format"] in VIDEOS)
    limit_resources(order["cpu_s"], order["memory_bytes"])
    try:
        with open(0, "rb", closefd=False) as file:
            file.seek(0)
            for line, pixels in tasks[order["task"]](file, order):
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
