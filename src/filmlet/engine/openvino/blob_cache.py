"""Compiled graphs kept from one process to the next: whole or not at all, the latest used."""

import hashlib
import mmap
import os
import secrets
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from filmlet.core.files import open_regular_file

MAX_CACHE_BYTES = 8_000_000_000  # bytes that all of them may take
STALE_S = 3600.0
FINGERPRINT_BYTES = (
    2**16
)  # bytes at a file's beginning and end that tell it from others of its size and time
Blob = NDArray[np.uint8]
DIGEST = hashlib.sha256().digest_size


@dataclass(frozen=True, eq=False)
class CachedBlob:
    """A blob as pages of its file."""

    blob: Blob
    pages: mmap.mmap

    def release_pages(self) -> None:
        """Give their memory back: whoever still reads them has them read from the file again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self.pages.madvise(mmap.MADV_DONTNEED)


def fingerprint(files: Iterable[Path], *more: object) -> str:
    """Return a hash of weights as they are now, and of what else a graph depends on."""
    digest = hashlib.sha256(repr(more).encode())
    for file in files:
        status = file.stat()
        digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns}".encode())
        with file.open("rb") as opened:
            digest.update(opened.read(FINGERPRINT_BYTES))
            opened.seek(max(0, status.st_size - FINGERPRINT_BYTES))
            digest.update(opened.read(FINGERPRINT_BYTES))
    return digest.hexdigest()


def _is_trusted(status: os.stat_result) -> bool:
    """Whether nobody else can have written a file: a blob is run, and a cache may be shared."""
    if not hasattr(os, "geteuid"):
        return True
    return status.st_uid in (0, os.geteuid()) and not status.st_mode & 0o022


@dataclass(frozen=True)
class BlobCache:
    """A folder of blobs by name, each behind its SHA-256, and each this user's or root's own."""

    folder: Path

    def load(self, name: str) -> CachedBlob | None:
        """None where there is none, or a damaged one, which goes."""
        file = self._blob_path(name)
        try:
            with open_regular_file(file) as opened:
                if not _is_trusted(os.fstat(opened.fileno())):
                    return None
                # Writable, as OpenVINO demands; nobody writes.
                pages = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError):  # none, or an empty one
            return None
        content: Blob = np.frombuffer(pages, np.uint8)
        is_whole = hashlib.sha256(content[DIGEST:].data).digest() == content[:DIGEST].tobytes()
        with suppress(OSError):  # of a folder that may only be read
            file.touch() if is_whole else file.unlink()
        return CachedBlob(content[DIGEST:], pages) if is_whole else None

    def save(self, name: str, blob: bytes | memoryview) -> None:
        """Keep it, and let those go that were not used for longest; a full disk keeps nothing."""
        file = self._blob_path(name)
        part = file.with_name(f"{file.name}.{secrets.token_hex(4)}.part")  # of this process alone
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as opened:
                opened.write(hashlib.sha256(blob).digest())
                opened.write(blob)
            part.replace(file)
        except OSError:
            with suppress(OSError):
                part.unlink()
        with suppress(OSError):  # another process may take the same files away
            self._evict()

    def _evict(self) -> None:
        for part in self.folder.glob("*.part"):  # of processes that died
            if part.stat().st_mtime < time.time() - STALE_S:
                part.unlink(missing_ok=True)
        taken = 0
        times = ((file.stat(), file) for file in self.folder.glob("*.blob"))
        for status, file in sorted(times, key=lambda pair: -pair[0].st_mtime_ns):
            taken += status.st_size
            if taken > MAX_CACHE_BYTES:
                file.unlink(missing_ok=True)

    def _blob_path(self, name: str) -> Path:
        return self.folder / f"{name}.blob"
