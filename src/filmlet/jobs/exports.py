"""Finished clips in other formats: stored beside the clip, or saved as a file of the user's."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from filmlet.core.shape import Change
from filmlet.errors import JobConflict, StorageUnusable, UnknownJob
from filmlet.jobs.job import CLIP_FORMAT, Job, Status
from filmlet.jobs.storage import Storage
from filmlet.media import convert_clip
from filmlet.media.output_path import (
    as_output_error,
    check_output_path,
    move_into_place,
    partial_path,
)

if TYPE_CHECKING:
    from filmlet.jobs.queue import Queue


def save_clip(queue: "Queue", job: Job, path: Path, *, force: bool = False) -> tuple[Change, ...]:
    """Save the clip of a finished job; the suffix (.mp4, .webm, .gif, .webp) is its format.

    Returns what the format does not hold. Raises JobConflict, StorageUnusable and what
    `convert_clip` raises.
    """
    if job.clip is None:
        raise JobConflict(f"{job.id} is {job.status}; it has no clip.")
    if check_output_path(path, force) == CLIP_FORMAT:
        part = partial_path(path)
        try:
            copy_clip(queue.storage, job, part)
            with as_output_error(path):
                move_into_place(part, path, force)
        finally:
            part.unlink(missing_ok=True)
        return ()
    with TemporaryDirectory(prefix="filmlet-") as folder:
        clip = Path(folder) / job.clip
        copy_clip(queue.storage, job, clip)
        return convert_clip(clip, path, force=force)


def copy_clip(storage: Storage, job: Job, path: Path) -> None:
    """Copy the clip of a finished job to a file. Raises StorageUnusable, OutputUnwritable."""
    assert job.clip
    with storage.open(job.id, job.clip) as clip, as_output_error(path), path.open("wb") as file:
        shutil.copyfileobj(clip, file)


def store_export(queue: "Queue", job: Job, file: Path) -> None:
    """Store an export beside the clip, under its name, as a whole or not at all.

    It counts towards the disk limit. Raises UnknownJob where the job was deleted meanwhile.
    """
    try:
        queue.storage.upload(file, f"{job.id}/{file.name}")
    except StorageUnusable:
        queue.get_job(job.id)  # with the job its folder is gone, too
        raise
    size = queue.storage.size(job.id)
    with queue.database.transaction() as t:
        row = t.row(
            "update filmlet_job set bytes = :bytes where id = :id and status = :status"
            " returning id",
            bytes=size, id=job.id, status=Status.COMPLETED,
        )  # fmt: skip
    if row is None:
        queue.storage.delete(job.id)
        raise UnknownJob(f"There is no job {job.id!r}.")
