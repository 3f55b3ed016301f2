"""Opening files whose paths come from users: only regular files, and never waiting for one."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

# A pipe without a writer would hold open() for ever; a terminal would become the process's own.
OPEN_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_NOCTTY", 0)
    | getattr(os, "O_BINARY", 0)
)


def open_regular_file(path: Path) -> BinaryIO:
    """Open a file for reading; folders, pipes, sockets and devices are refused at once.

    Raises OSError whose `strerror` says what `path` is. Files that a kernel makes up (/proc) are
    regular and say that they have 0 bytes: the caller bounds what it reads.
    """
    try:
        _check_regular(path.stat(), path)  # opening some devices has an effect already
        descriptor = os.open(path, OPEN_FLAGS)
    except ValueError as error:  # a NUL in the path
        raise OSError(errno.EINVAL, str(error), str(path)) from error
    try:
        _check_regular(os.fstat(descriptor), path)  # another file may have taken its place
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _check_regular(status: os.stat_result, path: Path) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device", str(path))
