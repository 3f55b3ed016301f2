"""Where finished clips and kept results lie: a folder, or any place fsspec knows (s3://...)."""

import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, cast

import fsspec

from filmlet.errors import DiskFull, StorageUnusable
from filmlet.media import PART, partial_path, to_output_error
from filmlet.settings import Settings

CHUNK_PREFIX = "growing-"  # of a clip that is being made; the number after it says where it belongs
GROWING = "decoded.mp4"  # the clip before its index is in front; beside it its parts
JOB = "clip_"  # every job's id, and so its folder's name, begins with it
OWNER = "filmlet-database"  # the file that names the one database whose jobs lie here


class Storage:
    """One folder a job, by the job's id; in a place of its own, or in the home folder itself.

    A remote place is written file by file, each of them whole or not at all; work is done in a
    local folder either way.
    """

    def __init__(self, settings: Settings) -> None:
        self.local = settings.home / "jobs"
        self._grown: dict[str, int] = {}  # bytes of a growing file that are known elsewhere
        url = settings.storage_url
        with self._as_storage_error():
            self.files, self.root = fsspec.core.url_to_fs(
                url or str(self.local), use_listings_cache=False
            )
            self.is_remote = url is not None
            self.files.makedirs(self.root, exist_ok=True)

    def folder(self, job: str) -> Path:
        """The local folder in which a job's stages work."""
        folder = self.local / job
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise to_output_error(error, folder) from error
        return folder

    def fetch(self, job: str) -> Path:
        """The job's folder with everything that earlier attempts, here or elsewhere, have kept."""
        folder = self.folder(job)
        if self.is_remote:
            with self._as_storage_error():
                names = [
                    name for name in self._list_names(job) if not name.startswith(CHUNK_PREFIX)
                ]
            self.copy_to_local(job, job, *(name for name in names if not (folder / name).exists()))
        return folder

    def clear(self, job: str) -> None:
        """Remove what attempts that are over left half-written; theirs is no file by its name."""
        for file in self.folder(job).iterdir():
            if PART.search(file.name):
                file.unlink(missing_ok=True)

    def store(self, job: str, *names: str) -> None:
        """Bring files of the job's folder to a remote place; a local one has them already."""
        if not self.is_remote:
            return
        with self._as_storage_error():
            for name in names:
                file = self.folder(job) / name
                if file.exists():
                    self.files.makedirs(f"{self.root}/{job}", exist_ok=True)
                    self.upload(file, f"{job}/{name}")

    def upload(self, file: Path, name: str) -> None:
        """Put a file into the place itself, whole or not at all."""
        target = f"{self.root}/{name}"
        with self._as_storage_error():
            if self._is_folder:
                part = partial_path(Path(target))
                self.files.put_file(str(file), str(part))
                part.replace(target)
            else:
                self.files.put_file(str(file), target)

    def download(self, name: str, file: Path) -> None:
        """Copy a file of the place itself to this machine."""
        with self._as_storage_error():
            self.files.get_file(f"{self.root}/{name}", str(file))

    def exists(self, name: str) -> bool:
        """Whether the place itself has a file of this name."""
        with self._as_storage_error():
            return bool(self.files.exists(f"{self.root}/{name}"))

    def upload_new_bytes(self, job: str) -> None:
        """Bring what the growing clip has gained to a remote place, for readers elsewhere."""
        if not self.is_remote:
            return
        uploaded_bytes = self._grown.get(job, 0)
        gained = self._grown_here(job, uploaded_bytes, -1)
        if gained:
            with self._as_storage_error():
                self.files.makedirs(f"{self.root}/{job}", exist_ok=True)
                self.files.pipe_file(
                    f"{self.root}/{job}/{CHUNK_PREFIX}{uploaded_bytes:012d}", gained
                )
            self._grown[job] = uploaded_bytes + len(gained)

    def read_growing(self, job: str, sent: int, max_bytes: int) -> bytes:
        """At most `max_bytes` bytes of the growing clip beyond `sent`, from the file or its pieces.

        Every attempt writes the same bytes, so what an earlier one has written is as good.
        """
        here = self._grown_here(job, sent, max_bytes)
        if here or not self.is_remote:
            return here
        with (
            self._as_storage_error(),
            suppress(FileNotFoundError),
        ):  # the worker removed it: it is whole
            starts = [
                int(n.removeprefix(CHUNK_PREFIX))
                for n in self._list_names(job)
                if n.startswith(CHUNK_PREFIX)
            ]
            for start in sorted((s for s in starts if s <= sent), reverse=True):
                piece = bytes(self.files.cat_file(f"{self.root}/{job}/{CHUNK_PREFIX}{start:012d}"))
                if start + len(piece) > sent:
                    return piece[sent - start :][:max_bytes]
        with self._as_storage_error(), suppress(FileNotFoundError):
            path = f"{self.root}/{job}/{GROWING}"
            if int(self.files.size(path)) > sent:
                return bytes(self.files.cat_file(path, start=sent, end=sent + max_bytes))
        return b""

    def grown_length(self, job: str) -> int | None:
        """Bytes of the clip that has grown, once it is whole; None where there is none any more."""
        with suppress(OSError):
            return (self.local / job / GROWING).stat().st_size
        with self._as_storage_error(), suppress(FileNotFoundError):
            return int(self.files.size(f"{self.root}/{job}/{GROWING}"))
        return None

    def _grown_here(self, job: str, sent: int, most: int) -> bytes:
        """Of the whole file in the local folder, or of the longest that is not whole."""
        folder = self.local / job
        parts = [file for file in folder.glob(f"{GROWING}.*") if PART.search(file.name)]
        for file in (folder / GROWING, *sorted(parts, key=_bytes_of, reverse=True)):
            with suppress(FileNotFoundError), file.open("rb") as opened:
                opened.seek(sent)
                return opened.read(most)
        return b""

    def add_file(self, job: str, path: Path, name: str) -> None:
        """Take a file of this machine into the job's folder; one that is in it gets the name."""
        target = self.folder(job) / name
        try:
            if path.parent == target.parent and path.exists():
                path.replace(target)
            elif not target.exists():
                part = partial_path(target)
                shutil.copyfile(path, part)
                part.replace(target)
        except OSError as error:
            raise to_output_error(error, target) from error
        self.store(job, name)

    def copy(self, source: str, job: str, *names: str) -> None:
        """Files of one job for another; what is not there is left out."""
        self.copy_to_local(source, job, *names)
        self.store(job, *names)

    def copy_to_local(self, source: str, job: str, *names: str) -> None:
        """`copy` into the local folder alone."""
        folder = self.folder(job)
        with self._as_storage_error():
            for name in names:
                path = f"{self.root}/{source}/{name}"
                if self.files.exists(path):
                    part = partial_path(folder / name)
                    self.files.get_file(path, str(part))
                    part.replace(folder / name)

    @property
    def _is_folder(self) -> bool:
        return "file" in self.files.protocol

    def open(self, job: str, name: str) -> BinaryIO:
        """Read one file of a job. Raises StorageUnusable."""
        with self._as_storage_error():
            return cast(BinaryIO, self.files.open(f"{self.root}/{job}/{name}", "rb"))

    def read(self, job: str, name: str) -> bytes:
        """All of one file, as it is at one moment. Raises StorageUnusable."""
        with self._as_storage_error():
            return bytes(self.files.cat_file(f"{self.root}/{job}/{name}"))

    def length(self, job: str, name: str) -> int:
        """Bytes of one file."""
        with self._as_storage_error():
            return int(self.files.size(f"{self.root}/{job}/{name}"))

    def display_path(self, job: str, name: str) -> str:
        """A path or URL that names the file to a person."""
        return str(self.files.unstrip_protocol(f"{self.root}/{job}/{name}")).removeprefix("file://")

    def size(self, job: str) -> int:
        """Bytes that a job takes."""
        with self._as_storage_error():
            path = f"{self.root}/{job}"
            return int(self.files.du(path)) if self.files.exists(path) else 0

    def clear_local(self, job: str) -> None:
        """Clear the local folder of a job that lies elsewhere, and the pieces that it grew by."""
        if self._grown.pop(job, 0):
            with self._as_storage_error():
                self._remove(job, [n for n in self._list_names(job) if n.startswith(CHUNK_PREFIX)])
        if self.is_remote:
            shutil.rmtree(self.local / job, ignore_errors=True)

    def trim(self, job: str, useful: Collection[str]) -> None:
        """Remove every file of a job but those."""
        with self._as_storage_error():
            self._remove(job, [name for name in self._list_names(job) if name not in useful])

    def delete(self, job: str) -> None:
        """Remove everything of a job; what is gone already is no error."""
        shutil.rmtree(self.local / job, ignore_errors=True)
        if self.is_remote:
            with self._as_storage_error(), suppress(FileNotFoundError):
                path = f"{self.root}/{job}"
                if self.files.exists(path):
                    self.files.rm(path, recursive=True)

    def remove_local(self, job: str) -> None:
        """Remove what a worker that is gone left here of a job that lies elsewhere."""
        shutil.rmtree(self.local / job, ignore_errors=True)

    def is_of(self, identity: str) -> bool:
        """Whether this place belongs to that database; the first one that asks makes it its own."""
        if not self.exists(OWNER):
            with self._as_storage_error():
                self.files.pipe_file(f"{self.root}/{OWNER}", identity.encode())
        with self._as_storage_error():
            return bool(self.files.cat_file(f"{self.root}/{OWNER}") == identity.encode())

    def jobs(self) -> set[str]:
        """Ids of all jobs that have a folder."""
        with self._as_storage_error():
            names = (str(p).rstrip("/").rsplit("/", 1)[-1] for p in self.files.ls(self.root, False))
            return {name for name in names if name.startswith(JOB)}

    def local_jobs(self) -> set[str]:
        """Ids of those that have one on this machine."""
        return {folder.name for folder in self.local.glob(f"{JOB}*")}

    def idle_s(self, job: str) -> float:
        """Seconds since anything in a job's folder was written."""
        latest = 0.0
        with self._as_storage_error(), suppress(FileNotFoundError):
            place = f"{self.root}/{job}"
            found = [self.files.info(place), *self.files.find(place, detail=True).values()]
            latest = max(map(_written_at, found))
        with suppress(OSError):
            latest = max(latest, (self.local / job).stat().st_mtime)
        return time.time() - latest

    def _remove(self, job: str, names: Collection[str]) -> None:
        for name in names:
            with suppress(FileNotFoundError):  # another sweep was here
                self.files.rm_file(f"{self.root}/{job}/{name}")

    def _list_names(self, job: str) -> list[str]:
        """Of a job's files that are whole."""
        with suppress(FileNotFoundError):
            found = self.files.ls(f"{self.root}/{job}", detail=False)
            names = [str(path).rsplit("/", 1)[-1] for path in found]
            return [name for name in names if name and not PART.search(name)]
        return []

    @contextmanager
    def _as_storage_error(self) -> Iterator[None]:
        try:
            yield
        except (DiskFull, StorageUnusable):
            raise
        except (OSError, ValueError, ImportError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise StorageUnusable(f"The storage of clips cannot be used: {reason}.") from error


def _bytes_of(file: Path) -> int:
    """0 where it is gone."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def _written_at(found: dict[str, object]) -> float:
    """When a file that fsspec tells of was written, in seconds since 1970."""
    when = found.get("mtime") or found.get("LastModified")
    return when.timestamp() if isinstance(when, datetime) else float(cast(float, when or 0.0))
