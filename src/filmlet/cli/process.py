"""Streams, texts and errors of the process that the command line runs in."""

import argparse
import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import TextIO

from filmlet.errors import (
    DiskFull,
    FilmletError,
    InvalidRequest,
    MissingDependency,
    SystemRefused,
)

# Options that name files, whose names are any bytes
FILES = ("image", "last_image", "keyframe", "extend", "lora", "output", "folder", "model")
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def prepare_streams() -> None:
    """Open stdin, stdout and stderr on /dev/null if the process was started without them.

    A file that is opened later would get the number of a stream that is missing, and what
    libraries print. What the terminal's encoding lacks is printed as an escape.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is this
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")


def check_words(options: argparse.Namespace) -> None:
    """Check that text options are UTF-8. Raises InvalidRequest."""
    for name, value in vars(options).items():
        words = value if isinstance(value, list) else [value]
        for word in words if name not in FILES else ():
            if isinstance(word, str) and not _is_text(word):
                raise InvalidRequest(f"{name} is not written in UTF-8.", param=name)


def _is_text(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def to_json(table: object, *, indent: int | None = 2) -> str:
    """Return a value as JSON; paths become text."""
    import json

    return json.dumps(table, ensure_ascii=False, indent=indent, default=os.fspath)


def show_file(path: Path) -> None:
    """Open a file with the program that the desktop has for it. Raises MissingDependency."""
    if sys.platform == "win32":
        os.startfile(path)
        return
    opener = "open" if sys.platform == "darwin" else "xdg-open"
    try:
        subprocess.run([opener, path], check=True, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError) as error:
        raise MissingDependency(f"{path} is finished; {opener} cannot open it.") from error


def print_out(text: str, stream: TextIO) -> None:
    """Print; what cannot be printed is dropped."""
    try:
        print(text, file=stream, flush=True)
    except OSError:
        drop_output(stream)


def drop_output(stream: TextIO) -> None:
    """Redirect a stream to /dev/null, with what it has buffered."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def explain_system_error(error: OSError) -> FilmletError:
    """Return an error of the system as one with a code.

    Buffered output that cannot be written is dropped, or Python would report it again at exit.
    """
    try:
        sys.stdout.flush()
    except OSError:
        drop_output(sys.stdout)
    place = f"{error.filename}: " if isinstance(error.filename, str) else ""
    reason = f"{place}{error.strerror or error}"[:600]
    if error.errno in NO_ROOM:
        return DiskFull(f"{reason}; make room and try again.")
    return SystemRefused(f"{reason}.")
