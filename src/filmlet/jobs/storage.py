"""Where finished clips and kept results lie: a folder, or any place fsspec knows (s3://...)."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import fsspec

from filmlet.errors import DiskFull, StorageUnusable
from filmlet.media import explain
from filmlet.settings import Settings

PIECE = "growing-"  # of a clip that is being made; the number after it says where it belongs


class Storage:
    """One folder a job, by the job's id; in a place of its own, or in the home folder itself.

    A remote place is written file by file, each of them whole or not at all; work is done in a
    local folder either way.
    """

    def __init__(self, settings: Settings) -> None:
        self.local = settings.home / "jobs"
        self._grown: dict[str, int] = {}  # bytes of a growing file that are known elsewhere
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
                    if not name.startswith(PIECE) and not (folder / name).exists():
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
                    self.bring_up(file, f"{job}/{name}")

    def bring_up(self, file: Path, name: str) -> None:
        """Put a file into the place itself, whole or not at all."""
        target = f"{self.root}/{name}"
        with self._refusals():
            if self._is_folder:
                self.files.put_file(str(file), f"{target}.part")
                self.files.mv(f"{target}.part", target)
            else:
                self.files.put_file(str(file), target)

    def bring_down(self, name: str, file: Path) -> None:
        """Copy a file of the place itself to this machine."""
        with self._refusals():
            self.files.get_file(f"{self.root}/{name}", str(file))

    def holds(self, name: str) -> bool:
        """Whether the place itself has a file of this name."""
        with self._refusals():
            return bool(self.files.exists(f"{self.root}/{name}"))

    def grow(self, job: str, name: str) -> None:
        """Bring what a growing file has gained to a remote place, for readers elsewhere."""
        if not self.is_remote:
            return
        told = self._grown.get(job, 0)
        try:
            with (self.local / job / name).open("rb") as file:
                file.seek(told)
                gained = file.read()
        except FileNotFoundError:
            return
        if gained:
            with self._refusals():
                self.files.makedirs(f"{self.root}/{job}", exist_ok=True)
                self.files.pipe_file(f"{self.root}/{job}/{PIECE}{told:012d}", gained)
            self._grown[job] = told + len(gained)

    def grown(self, job: str, names: Sequence[str], sent: int, most: int) -> bytes:
        """At most `most` bytes of a growing file beyond `sent`; it has one of `names`, or pieces.

        Every attempt writes the same bytes, so pieces of an earlier one are as good.
        """
        for name in names:
            try:
                with (self.local / job / name).open("rb") as file:
                    file.seek(sent)
                    return file.read(most)
            except FileNotFoundError:
                continue
        if not self.is_remote:
            return b""
        with self._refusals():
            starts = [int(n.removeprefix(PIECE)) for n in self._names(job) if n.startswith(PIECE)]
            for start in sorted((s for s in starts if s <= sent), reverse=True):
                piece = bytes(self.files.cat_file(f"{self.root}/{job}/{PIECE}{start:012d}"))
                if start + len(piece) > sent:
                    return piece[sent - start :]
            whole = [n for n in names if self.files.exists(f"{self.root}/{job}/{n}")]
            if whole and self.length(job, whole[0]) > sent:
                place = f"{self.root}/{job}/{whole[0]}"
                return bytes(self.files.cat_file(place, start=sent, end=sent + most))
        return b""

    def give(self, job: str, path: Path, name: str) -> None:
        """Take a file of this machine into the job's folder; one that is in it gets the name."""
        target = self.folder(job) / name
        try:
            if path.parent == target.parent and path.exists():
                path.replace(target)
            elif not target.exists():
                part = target.with_name(f"{name}.part")
                shutil.copyfile(path, part)
                part.replace(target)
        except OSError as error:
            raise explain(error, target) from error
        self.store(job, name)

    def copy(self, source: str, job: str, *names: str) -> None:
        """Files of one job for another; what is not there is left out."""
        self.bring(source, job, *names)
        self.store(job, *names)

    def bring(self, source: str, job: str, *names: str) -> None:
        """`copy` into the local folder alone."""
        folder = self.folder(job)
        with self._refusals():
            for name in names:
                place = f"{self.root}/{source}/{name}"
                if self.files.exists(place):
                    self.files.get_file(place, str(folder / f"{name}.part"))
                    (folder / f"{name}.part").replace(folder / name)

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
        if self._grown.pop(job, 0):
            with self._refusals():
                pieces = [n for n in self._names(job) if n.startswith(PIECE)]
                self.files.rm([f"{self.root}/{job}/{n}" for n in pieces])
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
