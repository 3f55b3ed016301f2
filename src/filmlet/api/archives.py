"""Several clips in one ZIP, which is written while it is sent: a piece of it is in memory."""

import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from filmlet.api.dependencies import AppState, Caller
from filmlet.api.submissions import find_job
from filmlet.api.video_responses import CHUNK_BYTES, download_name
from filmlet.errors import InvalidRequest, UnknownJob
from filmlet.jobs import CLIP_FORMAT, Job, Status
from filmlet.jobs.storage import as_storage_error

MAX_CLIPS = 100
MAX_BYTES = 2_000_000_000  # of all clips; without the extensions for larger files
ARCHIVE_NAME = "filmlet-clips.zip"


@dataclass(frozen=True)
class ArchiveEntry:
    """A finished clip and its name in the archive. size: in bytes."""

    job: Job
    name: str
    size: int


class ChunkBuffer:
    """What ZipFile writes to; it holds what has not been sent yet."""

    def __init__(self) -> None:
        self._written = bytearray()

    def write(self, data: bytes) -> int:
        self._written += data
        return len(data)

    def flush(self) -> None:
        """Do nothing: `take` empties it."""

    def close(self) -> None:
        """Do nothing: its owner drops it."""

    def take(self) -> bytes:
        """Return what was written since the last call."""
        taken, self._written = bytes(self._written), bytearray()
        return taken


def find_entries(shared: AppState, who: Caller, ids: Sequence[str]) -> list[ArchiveEntry]:
    """Return the finished clips of these jobs, each once, with names that differ.

    Raises UnknownJob, InvalidRequest where they are too large, StorageUnusable.
    """
    entries, names, total = [], set[str](), 0
    for job in [find_job(id, shared, who) for id in dict.fromkeys(ids)]:
        if job.clip is None or job.status != Status.COMPLETED:
            raise UnknownJob(f"{job.id} is {job.status}; there is no clip to send.")
        size = shared.queue.storage.length(job.id, job.clip)
        total += size
        if total > MAX_BYTES:
            raise InvalidRequest(
                f"These clips are too large together: at most {MAX_BYTES // 10**6} MB are sent.",
                param="ids",
            )
        name = _unique_name(download_name(job, CLIP_FORMAT), names)
        names.add(name.casefold())
        entries.append(ArchiveEntry(job, name, size))
    return entries


def _unique_name(name: str, names: set[str]) -> str:
    """Return a name that differs from the others, also where case does not count."""
    path, number = PurePath(name), 1
    while name.casefold() in names:
        number += 1
        name = f"{path.stem}-{number}{path.suffix}"
    return name


async def iter_archive(shared: AppState, entries: Sequence[ArchiveEntry]) -> AsyncGenerator[bytes]:
    """Yield the bytes of a ZIP of clips as they are stored. Raises StorageUnusable."""
    buffer, storage = ChunkBuffer(), shared.queue.storage
    with ZipFile(buffer, "w", ZIP_STORED) as archive:
        for entry in entries:
            assert entry.job.clip
            file = await shared.run_at_storage(storage.open, entry.job.id, entry.job.clip)
            with file, archive.open(_describe(entry), "w") as target:
                while True:
                    with as_storage_error():  # it may be deleted, or its storage unreachable by now
                        chunk = await shared.run_at_storage(file.read, CHUNK_BYTES)
                    if not chunk:
                        break
                    target.write(chunk)
                    yield buffer.take()
    yield buffer.take()


def _describe(entry: ArchiveEntry) -> ZipInfo:
    """Return the head of a clip in a ZIP: its name, its size and when it was finished (UTC)."""
    year, month, day, hour, minute, second, *_ = time.gmtime(entry.job.finished)
    info = ZipInfo(entry.name, (year, month, day, hour, minute, second))
    info.file_size = entry.size
    info.external_attr = 0o644 << 16
    return info
