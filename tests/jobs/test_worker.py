"""Workers die, hang, stop and are told to stop: jobs survive, and none is made twice."""

import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from filmlet.core.events import Stage
from filmlet.errors import WorkerNameInUse
from filmlet.jobs import Queue, Status
from filmlet.jobs.worker import Worker
from filmlet.settings import Settings
from tests.helpers.queues import Start, ask, is_over, wait, without_queue
from tests.helpers.servers import wait_until

pytestmark = pytest.mark.server

LONG = {"steps": 100}  # ten seconds of a slow worker, half a second of another
SLOW = "tests.helpers.slow_worker"


def bytes_of(queue: Queue, job: str) -> bytes:
    with queue.storage.open(job, "clip.mp4") as clip:
        return clip.read()


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("stage", "done", "reused"),
    [
        ("load", 1, set()),
        ("encode", 1, set()),
        ("denoise", 3, {"encode"}),
        ("decode", 9, {"encode", "denoise"}),
        ("mux", 0, {"encode", "denoise", "decode"}),
    ],
)
def test_worker_killed_in_any_stage_goes_on_from_the_last_finished_one(
    tiny: Path, tmp_path: Path, queue: Queue, start: Start,
    stage: str, done: int, reused: set[str],
) -> None:  # fmt: skip
    request = ask(tiny, frames=25, steps=6)
    job = queue.submit(request).id
    dying = (stage, str(done), str(tmp_path / "marker"))
    assert start(*dying, module="tests.helpers.crashing_worker").wait(60) == -signal.SIGKILL
    assert queue.get_job(job).status == Status.RUNNING
    start(*dying, module="tests.helpers.crashing_worker")
    after = wait(queue, job, is_over)
    assert after.status == Status.COMPLETED, after.failure
    assert {r.stage.value for r in after.stages if r.attempt == 2 and r.reused} == reused
    computed = [r.stage for r in after.stages if not r.reused and r.stage != Stage.LOAD]
    assert len(computed) == len(set(computed))
    assert bytes_of(queue, job) == without_queue(request, after, tmp_path / "straight.mp4")


def test_running_job_is_cancelled_within_a_step_and_the_next_one_starts(
    tiny: Path, tmp_path: Path, queue: Queue, start: Start
) -> None:
    first = queue.submit(ask(tiny, **LONG, prompt="one")).id
    second = queue.submit(ask(tiny, prompt="two")).id
    third = queue.submit(ask(tiny, prompt="three")).id
    assert queue.cancel(second).status == Status.CANCELLED
    start(str(tmp_path / "marker"), module=SLOW)
    wait(queue, first, lambda j: j.stage == Stage.DENOISE and j.done > 0)
    queue.cancel(first)
    over = wait(queue, first, is_over)
    assert over.status == Status.CANCELLED
    assert over.cancel_latency_s is not None
    assert over.cancel_latency_s < 2
    assert over.clip is None
    assert wait(queue, third, is_over).status == Status.COMPLETED
    assert queue.get_job(second).attempt == 0
    (tmp_path / "marker").touch()
    again = queue.retry(first)
    assert (again.status, again.position) == (Status.QUEUED, 1)
    done = wait(queue, first, is_over)
    assert done.status == Status.COMPLETED
    assert [r.stage for r in done.stages if r.reused] == [Stage.ENCODE]


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
def test_job_that_kills_its_worker_each_time_fails_with_the_reason(
    tiny: Path, tmp_path: Path, queue: Queue, start: Start
) -> None:
    poison = queue.submit(ask(tiny, frames=25)).id
    healthy = queue.submit(ask(tiny, prompt="a ball")).id
    for attempt in range(3):
        marker = tmp_path / str(attempt)
        dying = start("decode", "1", str(marker), module="tests.helpers.crashing_worker")
        assert dying.wait(60) == -signal.SIGKILL
    start()
    over = wait(queue, poison, is_over)
    assert over.status == Status.FAILED
    assert over.failure
    assert over.failure.code == "worker_died"
    assert "3 times" in over.failure.message
    assert wait(queue, healthy, is_over).status == Status.COMPLETED


def test_dead_workers_job_goes_on_elsewhere_within_the_lease(
    tiny: Path, tmp_path: Path, settings: Settings, start: Start
) -> None:
    settings = replace(settings, lease_s=3.0)
    queue = Queue(settings)
    request = ask(tiny, frames=25, steps=6)
    job = queue.submit(request).id
    told = {"FILMLET_LEASE_S": "3"}
    dying = start(
        "denoise", "4", str(tmp_path / "marker"), module="tests.helpers.crashing_worker", **told
    )
    assert dying.wait(60) == -signal.SIGKILL
    start(FILMLET_WORKER="two", **told)
    over = wait(queue, job, is_over)
    assert over.status == Status.COMPLETED
    assert over.worker == "two:auto"
    assert over.attempt == 2
    assert bytes_of(queue, job) == without_queue(request, over, tmp_path / "straight.mp4")
    queue.close()


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
def test_worker_that_has_lost_its_lease_stops_and_writes_nothing(
    tiny: Path, tmp_path: Path, settings: Settings, start: Start
) -> None:
    queue = Queue(settings)
    job = queue.submit(ask(tiny, **LONG)).id
    marker = str(tmp_path / "marker")
    worker = start(marker, module=SLOW, FILMLET_LEASE_S="3")  # it beats every half second
    wait(queue, job, lambda j: j.stage == Stage.DENOISE and j.done > 0)
    with queue.database.transaction() as t:
        t.rows("update filmlet_worker set dead = 1")
    assert worker.wait(30) == 3
    assert queue.get_job(job).status == Status.RUNNING
    assert queue.get_job(job).clip is None
    queue.close()


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
def test_worker_told_to_stop_leaves_its_job_to_the_next(
    tiny: Path, tmp_path: Path, queue: Queue, start: Start
) -> None:
    job = queue.submit(ask(tiny, **LONG)).id
    worker = start(str(tmp_path / "marker"), module=SLOW)
    wait(queue, job, lambda j: j.stage == Stage.DENOISE and j.done > 0)
    worker.terminate()
    assert worker.wait(30) == 0
    waiting = queue.get_job(job)
    assert (waiting.status, waiting.attempt, waiting.position) == (Status.QUEUED, 0, 1)
    assert Stage.ENCODE in [record.stage for record in waiting.stages]
    start(FILMLET_WORKER="two")
    assert wait(queue, job, is_over).status == Status.COMPLETED


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
def test_cancelled_job_of_a_worker_told_to_stop_is_over_with_it(
    tiny: Path, tmp_path: Path, queue: Queue, start: Start
) -> None:
    job = queue.submit(ask(tiny, **LONG)).id
    worker = start(str(tmp_path / "marker"), module=SLOW)
    wait(queue, job, lambda j: j.stage == Stage.DENOISE and j.done > 0)
    queue.cancel(job)
    worker.terminate()
    assert worker.wait(30) == 0
    assert queue.get_job(job).status == Status.CANCELLED
    queue.delete(job)


def test_worker_whose_database_fails_in_mid_job_gives_up_and_the_job_goes_on(
    tiny: Path, tmp_path: Path, queue: Queue, start: Start
) -> None:
    job = queue.submit(ask(tiny, **LONG)).id
    worker = start(str(tmp_path / "marker"), module=SLOW)
    wait(queue, job, lambda j: j.stage == Stage.DENOISE and j.done > 0)
    with queue.database.transaction() as t:
        t.rows("alter table filmlet_job rename to filmlet_lost")
    assert worker.wait(60) == 3
    with queue.database.transaction() as t:
        t.rows("alter table filmlet_lost rename to filmlet_job")
    assert queue.get_job(job).status == Status.RUNNING
    start()
    after = wait(queue, job, is_over)
    assert after.status == Status.COMPLETED, after.failure
    assert [r.reused for r in after.stages if r.stage == Stage.ENCODE] == [False, True]


def test_two_workers_cannot_share_an_identity(
    settings: Settings, start: Start, queue: Queue
) -> None:
    first = start()
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with queue.database.read() as t:
            if t.row("select id from filmlet_worker"):
                break
        time.sleep(0.05)
    second = start()
    assert second.wait(30) == 1
    assert "[worker_taken]" in second.stderr.read_text()
    elsewhere = Worker(replace(settings, home=settings.home.parent / "elsewhere",
                               database_url=queue.database.url))  # fmt: skip
    with pytest.raises(WorkerNameInUse, match="another machine"):
        elsewhere.run()
    assert first.poll() is None
    elsewhere.queue.close()


AUDIT = {
    "sqlite": (
        "create table audit (id text)",
        "create trigger completed after update of status on filmlet_job"
        " when new.status = 'completed' begin insert into audit values (new.id); end",
    ),
    "postgres": (
        "create table audit (id text)",
        "create function note() returns trigger as"
        " $$ begin insert into audit values (new.id); return new; end $$ language plpgsql",
        "create trigger completed after update of status on filmlet_job for each row"
        " when (new.status = 'completed') execute function note()",
    ),
}


def ended_jobs(queue: Queue) -> set[str]:
    with queue.database.read() as t:
        return {row["id"] for row in t.rows("select id from filmlet_job where finished > 0")}


def test_of_200_jobs_none_is_lost_and_none_doubled_while_workers_are_killed(
    tiny: Path, settings: Settings, start: Start
) -> None:
    settings = replace(settings, lease_s=6.0, max_active=1000)
    queue, told = Queue(settings), {"FILMLET_LEASE_S": "6"}
    with queue.database.transaction() as t:
        for statement in AUDIT["sqlite" if queue.database.is_sqlite else "postgres"]:
            t.rows(statement)
    ids = {queue.submit(ask(tiny, prompt=f"a ball {i}", steps=1)).id for i in range(200)}
    assert len(ids) == 200
    choice, names = random.Random(1), ("one", "two")
    workers = {name: start(FILMLET_WORKER=name, **told) for name in names}
    for ended in sorted(choice.sample(range(190), 12)):
        wait_until(lambda mark=ended: len(ended_jobs(queue)) >= mark, 120)
        time.sleep(choice.uniform(0, 0.3))  # into whatever is then in hand
        name = choice.choice(names)
        workers[name].kill()
        workers[name].wait()
        workers[name] = start(FILMLET_WORKER=name, **told)
    wait_until(lambda: ended_jobs(queue) == ids, 120)
    states = [queue.get_job(job).status for job in ids]
    # A job may have the bad luck to be in hand at three kills; it must say so, not vanish.
    assert states.count(Status.COMPLETED) + states.count(Status.FAILED) == 200
    assert states.count(Status.FAILED) <= 1
    with queue.database.read() as t:
        made = [row["id"] for row in t.rows("select id from audit")]
    assert len(made) == len(set(made)) == states.count(Status.COMPLETED)
    clips = {job: bytes_of(queue, job) for job in ids if queue.get_job(job).clip}
    assert len(clips) == len(made)
    assert all(clip[4:8] == b"ftyp" for clip in clips.values())
    queue.close()
