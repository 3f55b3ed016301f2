"""Files that pass between the page and its callers, each known by a random id to its owner only.

Clients see the id where Gradio would show them a path of the server, and a path that is no id of
theirs opens nothing.
"""

import mimetypes
import re
import secrets
import shutil
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from fastapi.concurrency import run_in_threadpool

MAX_BYTES_PER_CALLER = 512 * 1024**2
MAX_BYTES = 4 * 1024**3
MIN_BYTES = 64 * 1024  # that a file counts for: many small ones fill a disk as well
FILE_IDLE_S = 3600.0
# Types that a browser shows and never runs; others are downloads.
SAFE_TYPES = {"image/jpeg", "image/png", "image/webp", "image/gif", "video/mp4", "video/webm"}
URL = "/gradio_api/file="
ANONYMOUS = "visitor:"  # all visitors without a cookie; what they have is known by random names


@dataclass
class CallerFile:
    """used_at: by the monotonic clock."""

    path: Path
    owner: str
    size: int  # bytes that it counts for
    used_at: float


class CallerFiles:
    """Files of all callers in one folder. Those used longest ago go when there are too many."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: OrderedDict[str, CallerFile] = OrderedDict()  # by id, longest unused first

    def new_path(self, name: str) -> Path:
        """Return a path of a new file in a new folder, with what is harmless of a client's name."""
        name = re.sub(r"[^\w.-]", "_", Path(name).name, flags=re.ASCII)[-80:].lstrip(".")
        folder = self.folder / secrets.token_hex(16)
        folder.mkdir(parents=True)
        return folder / (name or "file")

    async def save(self, source: BinaryIO, name: str, owner: str) -> str:
        """Copy what a client sent into a file of its own; returns the id. Raises OSError."""
        path = self.new_path(name)
        await run_in_threadpool(_copy, source, path)
        return self.add(path, owner)

    def add(self, path: Path, owner: str) -> str:
        """Give a file in the folder to a caller; returns its id. Raises ValueError."""
        id = path.relative_to(self.folder).as_posix()
        if path.resolve() != self.folder.resolve() / id:
            raise ValueError("A file leads out of its folder.")
        size = max(path.stat().st_size, MIN_BYTES)
        self._files[id] = CallerFile(path, owner, size, time.monotonic())
        self._files.move_to_end(id)
        own = [i for i, f in self._files.items() if f.owner == owner]
        if owner != ANONYMOUS:
            _remove_folders(self._forget(self._choose_excess_files(own, MAX_BYTES_PER_CALLER)))
        _remove_folders(self._forget(self._choose_excess_files(list(self._files), MAX_BYTES)))
        return id

    def find(self, id: str, owner: str) -> Path | None:
        """Return the file of an id, if it is this caller's, or of visitors without a cookie."""
        file = self._files.get(id)
        if file is None or file.owner not in (owner, ANONYMOUS):
            return None
        file.used_at = time.monotonic()
        self._files.move_to_end(id)
        return file.path

    async def sweep(self) -> None:
        """Remove files that nobody has used for an hour, and what was left by failed calls."""
        before = time.monotonic() - FILE_IDLE_S
        idle = [id for id, file in self._files.items() if file.used_at < before]
        await run_in_threadpool(_remove_folders, self._forget(idle))
        known = {Path(id).parts[0] for id in self._files}
        await run_in_threadpool(_remove_left, self.folder, known)

    def _choose_excess_files(self, ids: list[str], max_bytes: int) -> list[str]:
        """The longest unused ones that are too many; the newest always stays."""
        too_many = sum(self._files[id].size for id in ids) - max_bytes
        gone = []
        for id in ids[:-1]:
            if too_many <= 0:
                break
            too_many -= self._files[id].size
            gone.append(id)
        return gone

    def _forget(self, ids: Iterable[str]) -> list[Path]:
        return [self._files.pop(id).path.parent for id in ids]


def _copy(source: BinaryIO, path: Path) -> None:
    with path.open("wb") as file:
        shutil.copyfileobj(source, file)


def _remove_folders(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_left(folder: Path, known: set[str]) -> None:
    before = time.time() - FILE_IDLE_S
    for left in folder.iterdir() if folder.exists() else ():
        if left.name not in known and left.lstat().st_mtime < before:
            shutil.rmtree(left, ignore_errors=True)


def media_type_of(path: Path) -> str:
    kind = mimetypes.guess_type(path.name)[0]
    return kind if kind in SAFE_TYPES else "application/octet-stream"


def replace_files(value: Any, replace: Callable[[dict[str, Any]], Any]) -> Any:
    """Return a JSON value with each file in it replaced: each table with a path or a URL."""
    if isinstance(value, dict):
        if "path" in value or "url" in value:
            return replace(value)
        return {key: replace_files(item, replace) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [replace_files(item, replace) for item in value]
    return value


def file_data(path: str) -> dict[str, Any]:
    """Return what Gradio takes for a file.

    An SVG is the one kind of picture that Gradio hands on without decoding it, which is for us.
    """
    return {"path": path, "orig_name": "file.svg", "meta": {"_type": "gradio.FileData"}}


def url_of(id: str, root: str) -> str:
    return f"{root}{URL}{quote(id)}"
