"""Writing a clip to a file: under a .part name while it grows, renamed when it is whole."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from av.error import FFmpegError

from filmlet.core.events import Audio, PixelFormat, Pixels, YuvPlanes
from filmlet.core.request import SILENT_FORMATS
from filmlet.core.shape import VideoShape
from filmlet.media.animation_writer import AnimationWriter
from filmlet.media.output_path import (
    as_output_error,
    check_output_path,
    move_into_place,
    partial_path,
)
from filmlet.media.video_writer import CODECS, VideoWriter, faststart


class FrameWriter(Protocol):
    """A file that frames are added to; `close` leaves it whole."""

    def add(self, pixels: Pixels | YuvPlanes) -> None: ...

    def close(self) -> None: ...

    def discard(self) -> None: ...


def preferred_pixel_format(path: Path) -> PixelFormat:
    """Return the format of frames that the file at `path` holds."""
    is_video = path.suffix.removeprefix(".").lower() in CODECS
    return PixelFormat.YUV420P if is_video else PixelFormat.RGB24


class ThreadedWriter:
    """A movie that is encoded in a thread of its own, one piece behind who makes the frames.

    What goes wrong there is raised by the next call.
    """

    def __init__(self, movie: FrameWriter) -> None:
        self.movie = movie
        self.thread = ThreadPoolExecutor(1, "encoder")
        self.begun: Future[None] | None = None

    def add(self, pixels: Pixels | YuvPlanes) -> None:
        """Encode the next frames while the caller goes on; waits for the piece before."""
        self._wait()
        self.begun = self.thread.submit(self.movie.add, pixels)

    def close(self) -> None:
        self._wait()
        self.thread.shutdown()
        self.movie.close()

    def discard(self) -> None:
        self.thread.shutdown(cancel_futures=True)
        self.movie.discard()

    def _wait(self) -> None:
        begun, self.begun = self.begun, None
        if begun:
            begun.result()


@contextmanager
def open_writer(
    grown: Path, form: str, shape: VideoShape, tags: dict[str, str], audio: Audio | None = None
) -> Iterator[FrameWriter]:
    """A movie to add frames to; whole at `grown` after the block, gone if the block is left early.

    audio: from the first frame on; animations have none. Raises DiskFull and OutputUnwritable in
    place of the operating system's errors.
    """
    movie: FrameWriter | None = None
    with as_output_error(grown, FFmpegError):
        try:
            if form in SILENT_FORMATS:
                movie = ThreadedWriter(AnimationWriter(grown, form, shape, tags))
            else:
                movie = ThreadedWriter(VideoWriter(grown, form, shape, tags, audio))
            yield movie
            movie.close()
        except BaseException:
            if movie is not None:
                movie.discard()
            grown.unlink(missing_ok=True)
            raise


def publish(
    grown: Path,
    path: Path,
    tags: dict[str, str],
    force: bool,
    confirm: Callable[[], None] = lambda: None,
) -> None:
    """Put a grown clip at `path`, whole or not at all; an MP4 gets its index in front.

    `grown` stays where the index had to be moved. confirm: raises if the file may not have its
    name any more. Raises DiskFull and OutputUnwritable; OutputExists unless `force`.
    """
    with as_output_error(path, FFmpegError):
        if path.suffix.lower() != ".mp4":
            confirm()
            move_into_place(grown, path, force)
            return
        complete_path = partial_path(path)
        try:
            faststart(grown, complete_path, tags)
            confirm()
            move_into_place(complete_path, path, force)
        finally:
            complete_path.unlink(missing_ok=True)


@contextmanager
def write_video(
    path: Path,
    shape: VideoShape,
    tags: dict[str, str],
    force: bool = False,
    audio: Audio | None = None,
) -> Iterator[FrameWriter]:
    """`open_writer` and `publish` in one: whole at `path` after the block, gone if it is left
    early.
    """
    form, part = check_output_path(path, force), partial_path(path)
    with open_writer(part, form, shape, tags, audio) as movie:
        yield movie
    try:
        publish(part, path, tags, force)
    finally:
        part.unlink(missing_ok=True)
