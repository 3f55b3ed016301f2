"""Storage of clips and stage results: the home folder, or a place that fsspec knows."""

import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from filmlet.core.events import Stage
from filmlet.errors import DiskFull, StorageUnusable, StoredFileMissing
from filmlet.media import PART, partial_path, to_output_error
from filmlet.pipeline.artifacts import result_file

# The clip before its index is in front; beside it its parts
GROWING = result_file(Stage.DECODE)
JOB = "clip_"  # prefix of every job's id, and so of its folder's name
OWNER = "filmlet-database"  # the file that names the one database whose jobs are stored here


class Storage(Protocol):
    """One folder a job, named by the job's id. All methods raise StorageUnusable.

    Stages work in a folder of this machine; the storage is the same folder or another place, where
    each file is written as a whole or not at all. local: parent of the folders of this machine.
    """

    local: Path

    def folder(self, job: str) -> Path:
        """Return the local folder of a job, created if needed. Raises OutputUnwritable."""

    def fetch(self, job: str) -> Path:
        """Return the local folder with all that earlier attempts, here or elsewhere, stored."""

    def clear(self, job: str) -> None:
        """Delete unfinished files of earlier attempts from the local folder."""

    def store(self, job: str, *names: str) -> None:
        """Copy files of the local folder to the storage; missing ones are left out."""

    def add_file(self, job: str, path: Path, name: str) -> None:
        """Store a file of this machine; one that is in the job's folder is renamed."""

    def copy_to_local(self, source: str, job: str, *names: str) -> None:
        """Copy stored files of one job into the local folder of another; missing are left out."""

    def clear_local(self, job: str) -> None:
        """Delete what only a running job needs: local copies and pieces of the growing clip."""

    def open(self, job: str, name: str) -> BinaryIO:
        """Open a stored file for reading. Raises StoredFileMissing."""

    def read(self, job: str, name: str) -> bytes:
        """Return a stored file as it is at one moment. Raises StoredFileMissing."""

    def length(self, job: str, name: str) -> int:
        """Return the bytes of a stored file. Raises StoredFileMissing."""

    def display_path(self, job: str, name: str) -> str:
        """Return the path or URL of a stored file, for people."""

    def upload_new_bytes(self, job: str) -> None:
        """Store what the growing clip has gained, for readers on other machines."""

    def read_growing(self, job: str, sent: int, max_bytes: int) -> bytes:
        """Return at most `max_bytes` bytes of the growing clip from position `sent` on.

        Every attempt writes the same bytes, so those of an earlier one are as good.
        """

    def grown_length(self, job: str) -> int | None:
        """Return the bytes of the growing clip once it is complete; None if it is not there."""

    def size(self, job: str) -> int:
        """Return the bytes of all stored files of a job."""

    def trim(self, job: str, useful: Collection[str]) -> None:
        """Delete all complete files of a job but these."""

    def delete(self, job: str) -> None:
        """Delete everything of a job, here and in the storage."""

    def jobs(self) -> set[str]:
        """Return the ids of all jobs that have a folder in the storage."""

    def working_copies(self) -> set[str]:
        """Return the ids of jobs that have a local folder which is not the storage itself."""

    def delete_working_copy(self, job: str) -> None:
        """Delete the local folder of a job that is stored elsewhere."""

    def idle_s(self, job: str) -> float:
        """Return the seconds since anything in a job's folder was written."""

    def belongs_to(self, identity: str) -> bool:
        """Return whether the storage is that database's; the first that asks becomes its owner."""

    def upload(self, file: Path, name: str) -> None:
        """Put a file into the storage itself, as a whole or not at all."""

    def download(self, name: str, file: Path) -> None:
        """Copy a file of the storage itself to this machine."""

    def exists(self, name: str) -> bool:
        """Return whether the storage itself has a file of this name."""


class JobFolders:
    """The folders of this machine in which the stages of jobs work."""

    def __init__(self, local: Path) -> None:
        self.local = local

    def folder(self, job: str) -> Path:
        folder = self.local / job
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise to_output_error(error, folder) from error
        return folder

    def clear(self, job: str) -> None:
        for file in self.folder(job).iterdir():
            if PART.search(file.name):
                file.unlink(missing_ok=True)

    def add_to_folder(self, job: str, path: Path, name: str) -> None:
        """Copy a file into a job's folder, or rename it there. Raises OutputUnwritable."""
        target = self.folder(job) / name
        try:
            if path.parent == target.parent and path.exists():
                path.replace(target)
            elif not target.exists():
                copy_whole(path, target)
        except OSError as error:
            raise to_output_error(error, target) from error

    @contextmanager
    def expect_file(self, job: str, name: str) -> Iterator[None]:
        """Raise StoredFileMissing where a file of a storage that is there is missing."""
        try:
            yield
        except FileNotFoundError as error:
            if not self.is_there():
                raise
            raise StoredFileMissing(f"{job} has no {name} in the storage.") from error

    def is_there(self) -> bool:
        """Return whether the storage itself exists."""
        return self.local.exists()

    def read_grown(self, job: str, sent: int, max_bytes: int) -> bytes:
        """Return bytes of the complete clip in the local folder, or of the longest unfinished."""
        folder = self.local / job
        parts: list[Path] = []
        with suppress(FileNotFoundError):  # a copy that is deleted now: the storage has all
            parts = [file for file in folder.glob(f"{GROWING}.*") if PART.search(file.name)]
        for file in (folder / GROWING, *sorted(parts, key=_file_size, reverse=True)):
            with suppress(FileNotFoundError), file.open("rb") as opened:
                opened.seek(sent)
                return opened.read(max_bytes)
        return b""


class LocalStorage(JobFolders):
    """Jobs stored in the folders that their stages work in."""

    def __init__(self, local: Path) -> None:
        """Raises StorageUnusable."""
        super().__init__(local.absolute())
        with as_storage_error():
            self.local.mkdir(parents=True, exist_ok=True)

    def fetch(self, job: str) -> Path:
        return self.folder(job)

    def store(self, job: str, *names: str) -> None:
        """Do nothing: the files are where they belong."""

    def upload_new_bytes(self, job: str) -> None:
        """Do nothing: readers read the growing file itself."""

    def clear_local(self, job: str) -> None:
        """Do nothing: there are no copies."""

    def working_copies(self) -> set[str]:
        return set()

    def delete_working_copy(self, job: str) -> None:
        """Do nothing: there are no copies."""

    def add_file(self, job: str, path: Path, name: str) -> None:
        self.add_to_folder(job, path, name)

    def copy_to_local(self, source: str, job: str, *names: str) -> None:
        folder = self.folder(job)
        with as_storage_error():
            for name in names:
                with suppress(FileNotFoundError):
                    copy_whole(self.local / source / name, folder / name)

    def open(self, job: str, name: str) -> BinaryIO:
        with as_storage_error(), self.expect_file(job, name):
            return (self.local / job / name).open("rb")

    def read(self, job: str, name: str) -> bytes:
        with as_storage_error(), self.expect_file(job, name):
            return (self.local / job / name).read_bytes()

    def length(self, job: str, name: str) -> int:
        with as_storage_error(), self.expect_file(job, name):
            return (self.local / job / name).stat().st_size

    def display_path(self, job: str, name: str) -> str:
        return str(self.local / job / name)

    def read_growing(self, job: str, sent: int, max_bytes: int) -> bytes:
        return self.read_grown(job, sent, max_bytes)

    def grown_length(self, job: str) -> int | None:
        with as_storage_error(), suppress(FileNotFoundError):
            return (self.local / job / GROWING).stat().st_size
        return None

    def size(self, job: str) -> int:
        with as_storage_error():
            return sum(_file_size(file) for file in (self.local / job).rglob("*"))

    def trim(self, job: str, useful: Collection[str]) -> None:
        with as_storage_error():
            for file in list((self.local / job).glob("*")):
                if not PART.search(file.name) and file.name not in useful:
                    file.unlink(missing_ok=True)  # another sweep may have been here

    def delete(self, job: str) -> None:
        shutil.rmtree(self.local / job, ignore_errors=True)

    def jobs(self) -> set[str]:
        with as_storage_error():
            return {folder.name for folder in self.local.glob(f"{JOB}*")}

    def idle_s(self, job: str) -> float:
        folder = self.local / job
        with as_storage_error():
            return time.time() - max(map(_modified_at, [folder, *folder.rglob("*")]))

    def belongs_to(self, identity: str) -> bool:
        file = self.local / OWNER
        with as_storage_error():
            if not file.exists():
                file.write_text(identity)
            return file.read_text() == identity

    def upload(self, file: Path, name: str) -> None:
        with as_storage_error():
            copy_whole(file, self.local / name)

    def download(self, name: str, file: Path) -> None:
        with as_storage_error():
            shutil.copyfile(self.local / name, file)

    def exists(self, name: str) -> bool:
        return (self.local / name).exists()


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file so that no unfinished one has the target's name. Raises OSError."""
    part = partial_path(target)
    shutil.copyfile(source, part)
    part.replace(target)


@contextmanager
def as_storage_error() -> Iterator[None]:
    """Turn errors of the system and of fsspec into StorageUnusable."""
    try:
        yield
    except (DiskFull, StorageUnusable):
        raise
    except (OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise StorageUnusable(f"The storage of clips cannot be used: {reason}.") from error


def _file_size(file: Path) -> int:
    """Return the bytes of a file; 0 if it is gone or a folder."""
    try:
        return file.stat().st_size if file.is_file() else 0
    except FileNotFoundError:
        return 0


def _modified_at(path: Path) -> float:
    """Return seconds since 1970; 0 if it is gone."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
