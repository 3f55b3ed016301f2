"""What jobs leave on disk: counted when they end, bounded, removed when of no use."""

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from filmlet.core.guide import Guide
from filmlet.errors import TooManyJobs
from filmlet.jobs import Queue, Status, SubmitOptions, retention
from filmlet.jobs.claimed_job import ClaimedJob
from filmlet.jobs.worker import Worker
from filmlet.settings import Settings
from tests.helpers.queues import add_worker, ask

KILOBYTES = 1e-6  # of a gigabyte


@pytest.fixture
def home(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", worker="one", max_per_minute=1000, keep_gb=1.0)


@pytest.fixture
def queue(home: Settings) -> Iterator[Queue]:
    queue = Queue(home)
    yield queue
    queue.close()


def ended(queue: Queue, model: Path, owner: str, count: int, size: int) -> list[str]:
    """Jobs that have failed and keep so many bytes each."""
    ids = []
    for i in range(count):
        job = queue.submit(ask(model, prompt=f"{owner} {i}"), SubmitOptions(owner=owner)).id
        claimed = ClaimedJob.claim(queue.database, queue.settings, job, "one")
        assert claimed
        (queue.storage.folder(job) / "latents.safetensors").write_bytes(bytes(size))
        claimed.fail("internal", "it broke", queue.storage.size(job))
        ids.append(job)
    return ids


def bytes_of(queue: Queue, job: str) -> int:
    with queue.database.read() as t:
        row = t.row("select bytes from filmlet_job where id = :id", id=job)
    assert row
    return int(row["bytes"])


def left(queue: Queue) -> set[str]:
    return {job.id for job in queue.list_jobs(limit=200)}


def photo(folder: Path, kilobytes: int) -> Guide:
    """A picture that no format makes much smaller."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 16 * kilobytes // 3, 3), np.uint8)
    Image.fromarray(noise).save(folder / "photo.png")
    return Guide(str(folder / "photo.png"))


def test_failed_and_cancelled_jobs_count_as_much_as_they_keep(tiny: Path, queue: Queue) -> None:
    (failed,) = ended(queue, tiny, "a", 1, 5000)
    add_worker(queue, "one")
    job = queue.submit(ask(tiny)).id
    claimed = ClaimedJob.claim(queue.database, queue.settings, job, "one")
    assert claimed
    queue.cancel(job)
    (queue.storage.folder(job) / "step.safetensors").write_bytes(bytes(3000))
    worker = Worker(queue.settings, queue=queue)
    worker._finish_cancelled(claimed)
    assert (bytes_of(queue, failed), bytes_of(queue, job)) == (5000, 3000)


def test_jobs_of_before_they_were_counted_are_counted_by_a_sweep(
    tiny: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "TRIM_AFTER_S", -1.0)
    (job,) = ended(queue, tiny, "a", 1, 5000)
    with queue.database.transaction() as t:
        t.rows("update filmlet_job set bytes = 0")
    queue.delete_expired()
    assert bytes_of(queue, job) == 5000


def test_who_takes_most_of_too_much_disk_loses_his_oldest_jobs_first(
    tiny: Path, queue: Queue
) -> None:
    modest = ended(queue, tiny, "modest", 2, 3000)
    greedy = ended(queue, tiny, "greedy", 10, 5000)
    queue.retention.settings = replace(queue.settings, keep_gb=21 * KILOBYTES)
    assert queue.delete_expired() == 7
    assert left(queue) == {*modest, *greedy[-3:]}
    assert queue.storage.jobs() == left(queue)


def test_files_of_waiting_jobs_count_and_are_refused_before_they_fill_the_disk(
    tiny: Path, tmp_path: Path, home: Settings
) -> None:
    queue = Queue(replace(home, keep_gb=100 * KILOBYTES))
    request = ask(tiny, guides=[photo(tmp_path, 30)])
    first = queue.submit(request)
    assert bytes_of(queue, first.id) > 25_000
    assert queue.cancel(first.id).status == Status.CANCELLED
    for _ in range(2):
        queue.submit(request)
    with pytest.raises(TooManyJobs, match="unfinished jobs"):
        queue.submit(request)
    assert queue.submit(request, SubmitOptions(owner="another")).status == Status.QUEUED
    assert first.id in left(queue)
    for _ in range(5):  # cancelled ones make room, the oldest first; no worker sweeps here
        queue.cancel(queue.submit(request, SubmitOptions(owner="another")).id)
    total = sum(file.stat().st_size for file in queue.storage.local.rglob("*.png"))
    assert total < 180_000
    queue.close()


def test_finished_clip_keeps_what_somebody_may_still_ask_for(
    tiny: Path, tiny_two: Path, tmp_path: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(queue.settings, queue=queue)
    request = ask(tiny, guides=[photo(tmp_path, 6)])
    plain, draft = queue.submit(request).id, queue.submit(ask(tiny_two, draft=True)).id
    for job in (plain, draft):
        worker.run_job(job)
        assert queue.get_job(job).status == Status.COMPLETED, queue.get_job(job).failure
    folder = queue.storage.folder(plain)
    (given,) = (file.name for file in folder.glob("*.png") if file.name != "preview.png")
    assert {file.name for file in folder.iterdir()} == {"clip.mp4", "decoded.mp4", given}
    assert bytes_of(queue, plain) == queue.storage.size(plain)
    monkeypatch.setattr(retention, "TRIM_AFTER_S", -1.0)  # nobody reads what grew any more
    queue.delete_expired()
    assert {file.name for file in folder.iterdir()} == {"clip.mp4", given}
    assert bytes_of(queue, plain) == queue.storage.size(plain)
    remixed = queue.remix(plain, "a blue ball", SubmitOptions()).id
    refined = queue.refine(draft, SubmitOptions()).id
    for job in (remixed, refined):
        worker.run_job(job)
    assert queue.get_job(remixed).status == queue.get_job(refined).status == Status.COMPLETED
    reused = {record.stage.value for record in queue.get_job(refined).stages if record.reused}
    assert reused == {"encode", "denoise"}


@pytest.fixture(params=["home", "folder", "s3"])
def place(request: pytest.FixtureRequest) -> str | None:
    """The storage's URL."""
    if request.param == "home":
        return None
    return str(request.getfixturevalue(f"{request.param}_url"))


def test_folders_that_killed_processes_left_are_removed(
    tiny: Path, home: Settings, place: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = Queue(replace(home, storage_url=place))
    (kept,) = ended(queue, tiny, "a", 1, 10)
    queue.storage.store(kept, "latents.safetensors")
    (queue.storage.folder("clip_dead") / "photo.png").write_bytes(b"1")
    queue.storage.store("clip_dead", "photo.png")
    queue.storage.delete_working_copy("clip_dead")
    assert queue.retention.delete_orphans() == 0  # an upload that goes on looks like that
    monkeypatch.setattr(retention, "ORPHAN_AFTER_S", -1.0)
    other = Queue(replace(home, home=home.home / "other", storage_url=place or str(
        queue.storage.local
    )))  # fmt: skip
    assert other.retention.delete_orphans() == 0  # the place belongs to the first database
    assert queue.retention.delete_orphans() == 1
    assert queue.storage.jobs() == {kept}
    assert not queue.storage.working_copies()  # left by a worker whose job is over
    queue.close()
    other.close()


def test_empty_folder_that_was_just_made_is_left_alone(queue: Queue) -> None:
    folder = queue.storage.folder("clip_new")
    assert queue.retention.delete_orphans() == 0
    long_ago = time.time() - 2 * retention.ORPHAN_AFTER_S
    os.utime(folder, (long_ago, long_ago))
    assert queue.retention.delete_orphans() == 1


def test_job_whose_deletion_was_cut_off_can_be_deleted_again(tiny: Path, queue: Queue) -> None:
    (job,) = ended(queue, tiny, "a", 1, 10)
    queue.database.delete_workflows([f"{job}.1"])  # and then the process was killed
    queue.delete(job)
    assert left(queue) == queue.storage.jobs() == set()
