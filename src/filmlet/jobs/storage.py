"""Where finished clips and kept results lie: a folder, or any place fsspec knows (s3://...)."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import fsspec

from filmlet.errors import DiskFull, StorageUnusable
from filmlet.media import explain
from filmlet.settings import Settings


class Storage:
    """One folder a job, by the job's id; in a place of its own, or in the home folder itself.

    A remote place is written file by file, each of them whole or not at all; work is done in a
    local folder either way.
    """

    def __init__(self, settings: Settings) -> None:
        self.local = settings.home / "jobs"
        url = settings.storage_url
        with self._refusals():
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
            raise explain(error, folder) from error
        return folder

    def fetch(self, job: str) -> Path:
        """The job's folder with everything that earlier attempts, here or elsewhere, have kept."""
        folder = self.folder(job)
        if self.is_remote:
            with self._refusals():
                for name in self._names(job):
                    if not (folder / name).exists():
                        self.files.get_file(f"{self.root}/{job}/{name}", str(folder / name))
        return folder

    def store(self, job: str, *names: str) -> None:
        """Bring files of the job's folder to a remote place; a local one has them already."""
        if not self.is_remote:
            return
        with self._refusals():
            for name in names:
                file = self.folder(job) / name
                if file.exists():
                    self.files.makedirs(f"{self.root}/{job}", exist_ok=True)
                    target = f"{self.root}/{job}/{name}"
                    if self._is_folder:
                        self.files.put_file(str(file), f"{target}.part")
                        self.files.mv(f"{target}.part", target)
                    else:
                        self.files.put_file(str(file), target)

    @property
    def _is_folder(self) -> bool:
        return "file" in self.files.protocol

    def open(self, job: str, name: str) -> BinaryIO:
        """Read one file of a job. Raises StorageUnusable."""
        with self._refusals():
            return cast(BinaryIO, self.files.open(f"{self.root}/{job}/{name}", "rb"))

    def length(self, job: str, name: str) -> int:
        """Bytes of one file."""
        with self._refusals():
            return int(self.files.size(f"{self.root}/{job}/{name}"))

    def where(self, job: str, name: str) -> str:
        """A path or URL that names the file to a person."""
        return str(self.files.unstrip_protocol(f"{self.root}/{job}/{name}")).removeprefix("file://")

    def size(self, job: str) -> int:
        """Bytes that a job takes."""
        with self._refusals():
            place = f"{self.root}/{job}"
            return int(self.files.du(place)) if self.files.exists(place) else 0

    def leave(self, job: str) -> None:
        """Clear the local folder of a job that lies elsewhere."""
        if self.is_remote:
            shutil.rmtree(self.local / job, ignore_errors=True)

    def delete(self, job: str) -> None:
        """Remove everything of a job; what is gone already is no error."""
        shutil.rmtree(self.local / job, ignore_errors=True)
        if self.is_remote:
            with self._refusals():
                place = f"{self.root}/{job}"
                if self.files.exists(place):
                    self.files.rm(place, recursive=True)

    def _names(self, job: str) -> list[str]:
        place = f"{self.root}/{job}"
        if not self.files.exists(place):
            return []
        return [str(p).rsplit("/", 1)[-1] for p in self.files.ls(place, detail=False)]

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except (DiskFull, StorageUnusable):
            raise
        except (OSError, ValueError, ImportError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise StorageUnusable(f"The storage of clips cannot be used: {reason}.") from error
