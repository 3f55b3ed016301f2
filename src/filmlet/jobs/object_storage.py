"""Storage in a place that fsspec knows (s3://..., file://...), shared by several machines."""

import shutil
import time
from collections.abc import Collection
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, cast

import fsspec

from filmlet.errors import InvalidSetting
from filmlet.jobs.storage import (
    GROWING,
    JOB,
    OWNER,
    JobFolders,
    LocalStorage,
    Storage,
    as_storage_error,
)
from filmlet.media import PART, partial_path
from filmlet.settings import Settings

CHUNK_PREFIX = "growing-"  # of pieces of a growing clip; the number after it is their position


def open_storage(settings: Settings) -> Storage:
    """Return the storage of the settings. Raises StorageUnusable."""
    if settings.storage_url is None:
        return LocalStorage(settings.home / "jobs")
    return ObjectStorage(settings.home / "jobs", settings.storage_url)


class ObjectStorage(JobFolders):
    """Jobs stored by fsspec; the local folders are working copies."""

    def __init__(self, local: Path, url: str) -> None:
        """Raises StorageUnusable, and InvalidSetting for a protocol that is not known."""
        super().__init__(local)
        self._uploaded: dict[str, int] = {}  # bytes of growing clips, by job
        with as_storage_error():
            try:
                self.files, self.root = fsspec.core.url_to_fs(url, use_listings_cache=False)
            except ValueError as error:
                raise InvalidSetting(f"FILMLET_STORAGE_URL cannot be used: {error}.") from error
            self.files.makedirs(self.root, exist_ok=True)

    def fetch(self, job: str) -> Path:
        folder = self.folder(job)
        with as_storage_error():
            stored = [n for n in self._list_names(job) if not n.startswith(CHUNK_PREFIX)]
        self.copy_to_local(job, job, *(name for name in stored if not (folder / name).exists()))
        return folder

    def store(self, job: str, *names: str) -> None:
        with as_storage_error():
            for name in names:
                file = self.folder(job) / name
                if file.exists():
                    self.files.makedirs(f"{self.root}/{job}", exist_ok=True)
                    self.upload(file, f"{job}/{name}")

    def add_file(self, job: str, path: Path, name: str) -> None:
        self.add_to_folder(job, path, name)
        self.store(job, name)

    def copy_to_local(self, source: str, job: str, *names: str) -> None:
        folder = self.folder(job)
        with as_storage_error():
            for name in names:
                path = f"{self.root}/{source}/{name}"
                if self.files.exists(path):
                    part = partial_path(folder / name)
                    self.files.get_file(path, str(part))
                    part.replace(folder / name)

    def clear_local(self, job: str) -> None:
        if self._uploaded.pop(job, 0):
            with as_storage_error():
                self._remove(job, [n for n in self._list_names(job) if n.startswith(CHUNK_PREFIX)])
        self.delete_working_copy(job)

    def open(self, job: str, name: str) -> BinaryIO:
        with as_storage_error(), self.expect_file(job, name):
            return cast(BinaryIO, self.files.open(f"{self.root}/{job}/{name}", "rb"))

    def read(self, job: str, name: str) -> bytes:
        with as_storage_error(), self.expect_file(job, name):
            return bytes(self.files.cat_file(f"{self.root}/{job}/{name}"))

    def length(self, job: str, name: str) -> int:
        with as_storage_error(), self.expect_file(job, name):
            return int(self.files.size(f"{self.root}/{job}/{name}"))

    def is_there(self) -> bool:
        bucket, _, _ = self.root.partition("/")  # "" before a folder's path
        return bool(self.files.exists(bucket or self.root))

    def display_path(self, job: str, name: str) -> str:
        return str(self.files.unstrip_protocol(f"{self.root}/{job}/{name}")).removeprefix("file://")

    def upload_new_bytes(self, job: str) -> None:
        start = self._uploaded.get(job, 0)
        new = self.read_grown(job, start, -1)
        if new:
            with as_storage_error():
                self.files.makedirs(f"{self.root}/{job}", exist_ok=True)
                self.files.pipe_file(self._chunk_path(job, start), new)
            self._uploaded[job] = start + len(new)

    def read_growing(self, job: str, sent: int, max_bytes: int) -> bytes:
        with as_storage_error():
            return (
                self.read_grown(job, sent, max_bytes)
                or self._read_chunk(job, sent, max_bytes)
                or self._read_complete(job, sent, max_bytes)
            )

    def _read_chunk(self, job: str, sent: int, max_bytes: int) -> bytes:
        """Return bytes from the piece that has position `sent`; b"" if there is none."""
        names = [name for name in self._list_names(job) if name.startswith(CHUNK_PREFIX)]
        starts = [int(name.removeprefix(CHUNK_PREFIX)) for name in names]
        # Pieces of several attempts overlap: the one that starts last is tried first.
        for start in sorted((s for s in starts if s <= sent), reverse=True):
            try:
                chunk = bytes(self.files.cat_file(self._chunk_path(job, start)))
            except FileNotFoundError:
                return b""  # the clip is complete and its worker has removed the pieces
            if start + len(chunk) > sent:
                return chunk[sent - start :][:max_bytes]
        return b""

    def _read_complete(self, job: str, sent: int, max_bytes: int) -> bytes:
        """Return bytes of the complete growing clip; b"" if it is not there."""
        path = f"{self.root}/{job}/{GROWING}"
        with suppress(FileNotFoundError):
            if int(self.files.size(path)) > sent:
                return bytes(self.files.cat_file(path, start=sent, end=sent + max_bytes))
        return b""

    def grown_length(self, job: str) -> int | None:
        with suppress(OSError):
            return (self.local / job / GROWING).stat().st_size
        with as_storage_error(), suppress(FileNotFoundError):
            return int(self.files.size(f"{self.root}/{job}/{GROWING}"))
        return None

    def size(self, job: str) -> int:
        with as_storage_error():
            path = f"{self.root}/{job}"
            return int(self.files.du(path)) if self.files.exists(path) else 0

    def trim(self, job: str, useful: Collection[str]) -> None:
        with as_storage_error():
            self._remove(job, [name for name in self._list_names(job) if name not in useful])

    def delete(self, job: str) -> None:
        self.delete_working_copy(job)
        with as_storage_error(), suppress(FileNotFoundError):
            path = f"{self.root}/{job}"
            if self.files.exists(path):
                self.files.rm(path, recursive=True)

    def jobs(self) -> set[str]:
        with as_storage_error():
            paths = self.files.ls(self.root, detail=False)
            names = (str(path).rstrip("/").rsplit("/", 1)[-1] for path in paths)
            return {name for name in names if name.startswith(JOB)}

    def working_copies(self) -> set[str]:
        return {folder.name for folder in self.local.glob(f"{JOB}*")}

    def delete_working_copy(self, job: str) -> None:
        shutil.rmtree(self.local / job, ignore_errors=True)

    def idle_s(self, job: str) -> float:
        modified = [0.0]
        with as_storage_error(), suppress(FileNotFoundError):
            path = f"{self.root}/{job}"
            infos = [self.files.info(path), *self.files.find(path, detail=True).values()]
            modified += map(_modified_at, infos)
        with suppress(OSError):
            modified.append((self.local / job).stat().st_mtime)
        return time.time() - max(modified)

    def belongs_to(self, identity: str) -> bool:
        path = f"{self.root}/{OWNER}"
        with as_storage_error():
            if not self.files.exists(path):
                self.files.pipe_file(path, identity.encode())
            return bool(self.files.cat_file(path) == identity.encode())

    def upload(self, file: Path, name: str) -> None:
        target = f"{self.root}/{name}"
        with as_storage_error():
            if "file" in self.files.protocol:  # a shared folder, where readers see half a file
                part = partial_path(Path(target))
                self.files.put_file(str(file), str(part))
                part.replace(target)
            else:
                self.files.put_file(str(file), target)

    def download(self, name: str, file: Path) -> None:
        with as_storage_error():
            self.files.get_file(f"{self.root}/{name}", str(file))

    def exists(self, name: str) -> bool:
        with as_storage_error():
            return bool(self.files.exists(f"{self.root}/{name}"))

    def _chunk_path(self, job: str, start: int) -> str:
        return f"{self.root}/{job}/{CHUNK_PREFIX}{start:012d}"

    def _remove(self, job: str, names: Collection[str]) -> None:
        for name in names:
            with suppress(FileNotFoundError):  # another sweep was here
                self.files.rm_file(f"{self.root}/{job}/{name}")

    def _list_names(self, job: str) -> list[str]:
        """Return the names of a job's complete files."""
        with suppress(FileNotFoundError):
            paths = self.files.ls(f"{self.root}/{job}", detail=False)
            names = [str(path).rsplit("/", 1)[-1] for path in paths]
            return [name for name in names if name and not PART.search(name)]
        return []


def _modified_at(info: dict[str, object]) -> float:
    """Return when a file was written, in seconds since 1970, from what fsspec tells of it."""
    when = info.get("mtime") or info.get("LastModified")
    return when.timestamp() if isinstance(when, datetime) else float(cast(float, when or 0.0))
