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

from filmlet.core.events import Pixels, Planes
from filmlet.core.request import FORMATS
from filmlet.core.shape import Shape
from filmlet.errors import DiskFull, FilmletError, InvalidRequest, OutputExists, OutputUnwritable
from filmlet.media.animation_writer import AnimationFile
from filmlet.media.video_writer import VideoFile, index_first

PART = re.compile(r"\.[0-9a-f]{8}\.part(?=\.\w+$|$)")  # in the name of a file that is not whole
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Movie(Protocol):
    """A file that frames are added to; `close` leaves it whole."""

    def add(self, pixels: Pixels | Planes) -> None: ...

    def close(self) -> None: ...

    def abandon(self) -> None: ...


def check_target(path: Path, force: bool) -> str:
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
    part = part_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        part.unlink()
    except OSError as error:
        raise explain(error, path) from error
    return form


def part_of(path: Path) -> Path:
    """A name for a file while it grows; each call gives another: no two writers share one."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")


class Aside:
    """A movie that is encoded in a thread of its own, one piece behind who makes the frames.

    What goes wrong there is raised by the next call.
    """

    def __init__(self, movie: Movie) -> None:
        self.movie = movie
        self.thread = ThreadPoolExecutor(1, "encoder")
        self.begun: Future[None] | None = None

    def add(self, pixels: Pixels | Planes) -> None:
        """Encode the next frames while the caller goes on; waits for the piece before."""
        self._settle()
        self.begun = self.thread.submit(self.movie.add, pixels)

    def close(self) -> None:
        self._settle()
        self.thread.shutdown()
        self.movie.close()

    def abandon(self) -> None:
        self.thread.shutdown(cancel_futures=True)
        self.movie.abandon()

    def _settle(self) -> None:
        begun, self.begun = self.begun, None
        if begun:
            begun.result()


@contextmanager
def growing(grown: Path, form: str, shape: Shape, tags: dict[str, str]) -> Iterator[Movie]:
    """A movie to add frames to; whole at `grown` after the block, gone if the block is left early.

    Raises DiskFull and OutputUnwritable in place of the operating system's errors.
    """
    kind = AnimationFile if form in ("gif", "webp") else VideoFile
    movie: Movie | None = None
    with _refusals(grown):
        try:
            movie = Aside(kind(grown, form, shape, tags))
            yield movie
            movie.close()
        except BaseException:
            if movie is not None:
                movie.abandon()
            grown.unlink(missing_ok=True)
            raise


def place(
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
    whole = part_of(path)
    with _refusals(path):
        try:
            index_first(grown, whole, tags)
            confirm()
            whole.replace(path)
        finally:
            whole.unlink(missing_ok=True)


@contextmanager
def writing(path: Path, shape: Shape, tags: dict[str, str], force: bool = False) -> Iterator[Movie]:
    """`growing` and `place` in one: whole at `path` after the block, gone if it is left early."""
    form, part = check_target(path, force), part_of(path)
    with growing(part, form, shape, tags) as movie:
        yield movie
    try:
        place(part, path, tags)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    try:
        yield
    except FilmletError:
        raise
    except (OSError, FFmpegError) as error:
        raise explain(error, path) from error


def explain(error: Exception, path: Path) -> FilmletError:
    """The operating system's refusal to write `path`, as an error that says what to do."""
    path = path.with_name(PART.sub("", path.name))
    number = getattr(error, "errno", None)
    if number in NO_ROOM:
        return DiskFull(f"There is no room left to write {path}; free some and run again.")
    reason = getattr(error, "strerror", None) or str(error)
    return OutputUnwritable(f"{path} cannot be written: {reason}.")
