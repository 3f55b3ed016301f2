"""Paths that users give are opened only where a regular file is."""

import os
import socket
from pathlib import Path

import pytest

from filmlet.core.files import open_regular_file


def test_open_regular_file_reads_a_file_and_a_link_to_it(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "link").symlink_to("a")
    for name in ("a", "link"):
        with open_regular_file(tmp_path / name) as file:
            assert file.read() == b"content"


def test_open_regular_file_refuses_what_is_no_file_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        for path in (tmp_path / "pipe", tmp_path / "socket", Path("/dev/zero"), Path("/dev/tty")):
            with pytest.raises(OSError, match="it is a pipe, a socket or a device"):
                open_regular_file(path)
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        open_regular_file(tmp_path)


def test_open_regular_file_names_what_is_missing_or_no_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_regular_file(tmp_path / "none")
    with pytest.raises(OSError, match="null"):
        open_regular_file(Path("a\0b"))
