"""Names of files that are written: checked, reserved among processes, given to whole files only."""

import errno
import hashlib
import os
import re
import secrets
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filmlet.core.request import FORMATS
from filmlet.errors import DiskFull, FilmletError, InvalidRequest, OutputExists, OutputUnwritable

if sys.platform != "win32":
    import fcntl

PART = re.compile(r"\.[0-9a-f]{8}\.part(?=\.\w+$|$)")  # in the name of a file that is not whole
MAX_NAME_BYTES = 255 - len(".01234567.part")
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
ATTEMPTS = 100  # to open a lock that others delete meanwhile


def check_output_path(path: Path, force: bool) -> str:
    """Return the format a path asks for, once it is certain that a file can be put there.

    Raises InvalidRequest, OutputExists, OutputUnwritable; leaves nothing behind.
    """
    form = path.suffix.removeprefix(".").lower()
    if form not in FORMATS:
        raise InvalidRequest(
            f"{path.name!r} does not end in one of {', '.join('.' + f for f in FORMATS)}.",
            param="format",
        )
    part = partial_path(path)
    try:
        if path.is_dir():
            raise OutputUnwritable(f"{path} is a folder; name a file in it.")
        if os.path.lexists(path) and not force:
            raise _output_exists_error(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        part.unlink()
    except OSError as error:
        raise to_output_error(error, path) from error
    except ValueError as error:  # a NUL in the path
        raise OutputUnwritable(f"{str(path)!r} is no name of a file.") from error
    return form


def partial_path(path: Path) -> Path:
    """Return a new name for a file while it grows: no two writers share one."""
    name = path.name
    if len(os.fsencode(name)) > MAX_NAME_BYTES:
        name = os.fsencode(name)[:MAX_NAME_BYTES].decode(errors="ignore")
    return path.with_name(f"{name}.{secrets.token_hex(4)}.part")


@contextmanager
def reserve_path(paths: Iterable[Path], force: bool) -> Iterator[Path]:
    """Yield the first path that has no file and that no other process has reserved.

    It is this process's until the block ends, or the process does. With `force` it is the first,
    which several may write: the last has it. Raises OutputExists, OutputUnwritable.
    """
    last = None
    for path in paths:
        if force:
            yield path
            return
        with _hold_lock(path) as is_ours:
            if is_ours and not os.path.lexists(path):
                yield path
                return
        last = path
    assert last
    raise _output_exists_error(last)


@contextmanager
def _hold_lock(path: Path) -> Iterator[bool]:
    """Yield whether nobody else holds the lock of a path: a file beside it, gone afterwards."""
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    file = path.with_name(f".filmlet-{digest}.lock")
    with as_output_error(path):
        descriptor = _open_lock(file)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            with suppress(OSError):
                file.unlink()
            os.close(descriptor)


if sys.platform == "win32":

    def _open_lock(file: Path) -> int | None:
        """Return a descriptor that holds the lock; None where another process does."""
        try:  # the system deletes it with its last descriptor
            return os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_TEMPORARY)
        except (FileExistsError, PermissionError):
            return None

else:

    def _open_lock(file: Path) -> int | None:
        """Return a descriptor that holds the lock; None where another process does."""
        for _ in range(ATTEMPTS):
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            except FileNotFoundError:  # who failed has deleted the folder that he had made
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(descriptor), file.stat()):
                    return descriptor
            except BlockingIOError:
                os.close(descriptor)
                return None
            except FileNotFoundError:
                pass
            except OSError:  # a file system without locks: `move_into_place` is what remains
                return descriptor
            os.close(descriptor)  # its holder has deleted it meanwhile
        return None


def move_into_place(part: Path, path: Path, force: bool) -> None:
    """Give a whole file its name; without `force` only if nobody has it. Raises OutputExists."""
    if force:
        part.replace(path)
        return
    try:
        os.link(part, path)  # a rename would take the place of another file
    except FileExistsError as error:
        raise _output_exists_error(path) from error
    except OSError as error:  # a file system without links
        if os.path.lexists(path):
            raise _output_exists_error(path) from error
        part.replace(path)
    else:
        part.unlink()


def _output_exists_error(path: Path) -> OutputExists:
    return OutputExists(
        f"{path} is already there, or another process writes it; choose another name."
    )


@contextmanager
def as_output_error(path: Path, *kinds: type[Exception]) -> Iterator[None]:
    """Errors of the system, and of `kinds`, as errors that say what to do."""
    try:
        yield
    except FilmletError:
        raise
    except Exception as error:
        if not isinstance(error, (OSError, *kinds)):
            raise
        raise to_output_error(error, path) from error


def to_output_error(error: Exception, path: Path) -> FilmletError:
    """Return the operating system's refusal to write `path`, as an error that says what to do."""
    path = path.with_name(PART.sub("", path.name))
    number = getattr(error, "errno", None)
    if number in NO_ROOM:
        return DiskFull(f"There is no room left to write {path}; free some and run again.")
    reason = getattr(error, "strerror", None) or str(error)
    return OutputUnwritable(f"{path} cannot be written: {reason}.")
