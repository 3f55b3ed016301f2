"""Writing a clip to a file: under a .part name while it grows, renamed when it is whole."""

import errno
import re
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from av.error import FFmpegError

from filmlet.core.events import PixelFormat, Pixels, YuvPlanes
from filmlet.core.request import FORMATS
from filmlet.core.shape import VideoShape
from filmlet.errors import DiskFull, FilmletError, InvalidRequest, OutputExists, OutputUnwritable
from filmlet.media.animation_writer import AnimationWriter
from filmlet.media.video_writer import CODECS, VideoWriter, faststart

PART = re.compile(r"\.[0-9a-f]{8}\.part(?=\.\w+$|$)")  # in the name of a file that is not whole
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class FrameWriter(Protocol):
    """A file that frames are added to; `close` leaves it whole."""

    def add(self, pixels: Pixels | YuvPlanes) -> None: ...

    def close(self) -> None: ...

    def discard(self) -> None: ...


def check_output_path(path: Path, force: bool) -> str:
    """The format a path asks for, once it is certain that a file can be put there.

    Raises InvalidRequest, OutputExists, OutputUnwritable; leaves nothing behind.
    """
    form = path.suffix.removeprefix(".").lower()
    if form not in FORMATS:
        raise InvalidRequest(
            f"{path.name!r} does not end in one of {', '.join('.' + f for f in FORMATS)}.",
            param="format",
        )
    if path.is_dir():
        raise OutputUnwritable(f"{path} is a folder; name a file in it.")
    if path.exists() and not force:
        raise OutputExists(f"{path} is already there; choose another name or say --force.")
    part = partial_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        part.unlink()
    except OSError as error:
        raise to_output_error(error, path) from error
    return form


def preferred_pixel_format(path: Path) -> PixelFormat:
    """Return the format of frames that the file at `path` holds."""
    is_video = path.suffix.removeprefix(".").lower() in CODECS
    return PixelFormat.YUV420P if is_video else PixelFormat.RGB24


def partial_path(path: Path) -> Path:
    """A name for a file while it grows; each call gives another: no two writers share one."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")


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
    grown: Path, form: str, shape: VideoShape, tags: dict[str, str]
) -> Iterator[FrameWriter]:
    """A movie to add frames to; whole at `grown` after the block, gone if the block is left early.

    Raises DiskFull and OutputUnwritable in place of the operating system's errors.
    """
    kind = AnimationWriter if form in ("gif", "webp") else VideoWriter
    movie: FrameWriter | None = None
    with _as_output_error(grown):
        try:
            movie = ThreadedWriter(kind(grown, form, shape, tags))
            yield movie
            movie.close()
        except BaseException:
            if movie is not None:
                movie.discard()
            grown.unlink(missing_ok=True)
            raise


def publish(
    grown: Path, path: Path, tags: dict[str, str], confirm: Callable[[], None] = lambda: None
) -> None:
    """Put a grown clip at `path`, whole or not at all; an MP4 gets its index in front.

    `grown` stays where the index had to be moved. confirm: raises if the file may not have its
    name any more. Raises DiskFull and OutputUnwritable.
    """
    if path.suffix.lower() != ".mp4":
        confirm()
        grown.replace(path)
        return
    complete_path = partial_path(path)
    with _as_output_error(path):
        try:
            faststart(grown, complete_path, tags)
            confirm()
            complete_path.replace(path)
        finally:
            complete_path.unlink(missing_ok=True)


@contextmanager
def write_video(
    path: Path, shape: VideoShape, tags: dict[str, str], force: bool = False
) -> Iterator[FrameWriter]:
    """`open_writer` and `publish` in one: whole at `path` after the block, gone if it is left
    early.
    """
    form, part = check_output_path(path, force), partial_path(path)
    with open_writer(part, form, shape, tags) as movie:
        yield movie
    try:
        publish(part, path, tags)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _as_output_error(path: Path) -> Iterator[None]:
    try:
        yield
    except FilmletError:
        raise
    except (OSError, FFmpegError) as error:
        raise to_output_error(error, path) from error


def to_output_error(error: Exception, path: Path) -> FilmletError:
    """The operating system's refusal to write `path`, as an error that says what to do."""
    path = path.with_name(PART.sub("", path.name))
    number = getattr(error, "errno", None)
    if number in NO_ROOM:
        return DiskFull(f"There is no room left to write {path}; free some and run again.")
    reason = getattr(error, "strerror", None) or str(error)
    return OutputUnwritable(f"{path} cannot be written: {reason}.")
