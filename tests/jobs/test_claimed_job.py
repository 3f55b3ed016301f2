"""Attempts at one job: their files are their own, and only who holds the job gives them names."""

import threading
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from filmlet.core.events import Event, Progress, Stage, StageFinished
from filmlet.jobs import Priority, Queue, Status, claimed_job
from filmlet.jobs.claimed_job import ClaimedJob
from filmlet.jobs.worker import FrameGenerator, Worker, parse_run_number
from filmlet.media import PART
from filmlet.pipeline import stages
from filmlet.pipeline.plan import make_plan
from filmlet.pipeline.prepare import PreparedClip
from filmlet.pipeline.run_context import RunContext
from filmlet.settings import Settings
from tests.helpers.clips import prepare_run
from tests.helpers.queues import add_worker, ask, without_queue


class Paused:
    """Frames that stand still at one event until it is told to go on."""

    def __init__(self, at: Callable[[Event], bool]) -> None:
        self.at, self.reached, self.go = at, threading.Event(), threading.Event()

    def __call__(self, clip: PreparedClip, context: RunContext) -> Generator[Event]:
        for event in stages.generate_frames(clip, context):
            if self.at(event) and not self.reached.is_set():
                self.reached.set()
                assert self.go.wait(120)
            yield event


def decoding(event: Event) -> bool:
    return isinstance(event, Progress) and event.stage == Stage.DECODE and event.done > 0


def denoised(event: Event) -> bool:
    return isinstance(event, StageFinished) and event.stage == Stage.DENOISE


def in_thread(worker: Worker, job: str) -> threading.Thread:
    thread = threading.Thread(target=worker.run_job, args=(job,))
    thread.start()
    return thread


@pytest.fixture
def workers(settings: Settings, queue: Queue) -> Callable[[str, FrameGenerator], Worker]:
    """Workers of other names over one queue, without a pulse."""

    def make(name: str, generate: FrameGenerator) -> Worker:
        worker = Worker(settings, generate, queue)
        worker.lease.name = name
        return worker

    return make


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
@pytest.mark.parametrize("at", [denoised, decoding])
def test_worker_that_wakes_after_its_lease_changes_nothing_of_the_next_attempt(
    tiny: Path, tmp_path: Path, queue: Queue, workers: Callable[[str, FrameGenerator], Worker],
    at: Callable[[Event], bool], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(claimed_job, "CONFIRMED_S", 0.0)
    request = ask(tiny, frames=25)
    job = queue.submit(request).id
    asleep, second = Paused(at), Paused(decoding)
    first = in_thread(workers("one", asleep), job)
    assert asleep.reached.wait(120)
    other = in_thread(workers("two", second), job)
    assert second.reached.wait(120)
    asleep.go.set()  # it wakes while the other one decodes
    first.join(120)
    second.go.set()
    other.join(120)
    over = queue.get_job(job)
    assert over.status == Status.COMPLETED, over.failure
    assert (over.worker, over.attempt) == ("two", 2)
    folder = queue.storage.folder(job)
    assert not [file for file in folder.iterdir() if PART.search(file.name)]
    assert (folder / "clip.mp4").read_bytes() == without_queue(request, over, tmp_path / "a.mp4")


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
def test_what_a_dead_attempt_left_half_written_goes_with_the_next(
    tiny: Path, queue: Queue, workers: Callable[[str, FrameGenerator], Worker]
) -> None:
    job = queue.submit(ask(tiny)).id
    folder = queue.storage.folder(job)
    for name in ("decoded.mp4.01234567.part", "preview.89abcdef.part.png"):
        (folder / name).write_bytes(b"half")
    workers("one", stages.generate_frames).run_job(job)
    assert queue.get_job(job).status == Status.COMPLETED
    assert {file.name for file in folder.iterdir()} == {"clip.mp4", "decoded.mp4"}


def test_decoded_clip_has_its_name_before_the_stage_is_said_to_be_finished(
    tiny: Path, tmp_path: Path
) -> None:
    work = prepare_run(make_plan(ask(tiny)), Settings())
    work.keep_in(tmp_path)
    there = [
        (tmp_path / "decoded.mp4").exists()
        for event in work.write(tmp_path / "clip.mp4")
        if isinstance(event, StageFinished) and event.stage == Stage.DECODE
    ]
    assert there == [True]


def test_workflow_of_an_earlier_run_does_not_make_the_job(
    settings: Settings, queue: Queue, tiny: Path
) -> None:
    add_worker(queue, "two")
    job = queue.submit(ask(tiny)).id
    queue.set_priority(job, Priority.HIGH)  # a worker may have taken the first workflow just before
    assert (
        ClaimedJob.claim(queue.database, settings, job, "one", parse_run_number(f"{job}.1")) is None
    )
    assert queue.get_job(job).status == Status.QUEUED
    claimed = ClaimedJob.claim(queue.database, settings, job, "two", parse_run_number(f"{job}.2"))
    assert claimed
    queue.cancel(job)
    assert ClaimedJob.claim(queue.database, settings, job, "one", 1) is None
    assert queue.get_job(job).status == Status.RUNNING  # "two" has not stopped yet
    assert claimed.mark_cancelled(7)
    assert queue.get_job(job).status == Status.CANCELLED


def test_attempt_of_before_a_retry_is_not_taken_for_the_one_after_it(
    settings: Settings, queue: Queue, tiny: Path
) -> None:
    job = queue.submit(ask(tiny)).id
    before = ClaimedJob.claim(queue.database, settings, job, "one", 1)
    assert before
    assert before.fail("internal", "it broke", 5)
    queue.retry(job)
    after = ClaimedJob.claim(queue.database, settings, job, "one", 2)
    assert after
    assert (before.attempt, after.attempt) == (1, 1)
    assert not before.complete(9)
    assert not before.mark_cancelled(9)
    assert queue.get_job(job).status == Status.RUNNING
    assert after.complete(9)


@pytest.mark.parametrize("silent", [False, True])
def test_job_whose_worker_is_gone_or_silent_is_cancelled_at_once(
    silent: bool, tiny: Path, settings: Settings, queue: Queue
) -> None:
    job = queue.submit(ask(tiny)).id
    add_worker(queue, "one:cpu")
    claimed = ClaimedJob.claim(queue.database, settings, job, "one:cpu")
    assert claimed
    assert queue.cancel(job).status == Status.RUNNING, "the worker lives and will hear of it"
    with queue.database.transaction() as t:
        t.rows(
            "update filmlet_worker set beat = beat - :lease - 1"
            if silent
            else "delete from filmlet_worker where :lease > 0",
            lease=settings.lease_s,
        )
    assert queue.cancel(job).status == Status.CANCELLED
    assert not claimed.complete(0), "who comes back finds it lost"
    queue.delete(job)
    assert queue.list_jobs() == []
