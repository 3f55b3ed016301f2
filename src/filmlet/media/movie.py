"""Writing a clip to a file: under a .part name while it grows, renamed when it is whole."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from av.error import FFmpegError

from filmlet.errors import DiskFull, FilmletError, InvalidRequest, OutputExists, OutputUnwritable
from filmlet.events import Pixels
from filmlet.media.animation import AnimationFile
from filmlet.media.video import VideoFile
from filmlet.request import FORMATS, Shape

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Movie(Protocol):
    """A file that frames are added to; `finish` leaves it whole at `path`."""

    path: Path

    def add(self, pixels: Pixels) -> None: ...

    def finish(self) -> None: ...

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
    """The name a file has while it grows."""
    return path.with_name(path.name + ".part")


@contextmanager
def writing(path: Path, shape: Shape, tags: dict[str, str], force: bool = False) -> Iterator[Movie]:
    """A movie to add frames to; whole at `path` after the block, gone if the block is left early.

    Raises DiskFull and OutputUnwritable in place of the operating system's errors.
    """
    form = check_target(path, force)
    kind = AnimationFile if form in ("gif", "webp") else VideoFile
    movie: Movie | None = None
    try:
        movie = kind(path, part_of(path), shape, tags)
        yield movie
        movie.finish()
    except BaseException as error:
        if movie is not None:
            movie.abandon()
        part_of(path).unlink(missing_ok=True)
        if isinstance(error, (OSError, FFmpegError)) and not isinstance(error, FilmletError):
            raise explain(error, path) from error
        raise


def explain(error: Exception, path: Path) -> FilmletError:
    """The operating system's refusal to write `path`, as an error that says what to do."""
    number = getattr(error, "errno", None)
    if number in NO_ROOM:
        return DiskFull(f"There is no room left to write {path}; free some and run again.")
    reason = getattr(error, "strerror", None) or str(error)
    return OutputUnwritable(f"{path} cannot be written: {reason}.")
