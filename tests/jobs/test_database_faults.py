"""The database goes away, refuses or is deleted: nothing hangs, nothing is lost in silence."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from filmlet.errors import DatabaseGone, DatabaseUnusable
from filmlet.jobs import Priority, Queue, Status
from filmlet.jobs.claimed_job import ClaimedJob
from filmlet.jobs.worker import LOST, Worker
from filmlet.settings import Settings
from tests.helpers.forked_processes import ForkedProcess
from tests.helpers.queues import Start, ask, environment, is_over, wait
from tests.helpers.servers import wait_until

pytestmark = pytest.mark.server

ON_POSTGRES = pytest.mark.parametrize("settings", ["postgres"], indirect=True)
ON_SQLITE = pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
BROKEN = (  # of DBOS' own tables; the others work
    "create function broken() returns trigger as $$ begin raise 'broken'; end $$ language plpgsql",
    "create trigger broken before update or delete on dbos.workflow_status"
    " for each row execute function broken()",
)
MENDED = ("drop trigger broken on dbos.workflow_status", "drop function broken")
DEAD = (
    "insert into filmlet_worker (id, token, home, device, speed, beat, dead)"
    " values ('gone:auto', 'x', 'elsewhere', 'cpu', 1e9, {now}, 1)"
)


@contextmanager
def closed(settings: Settings) -> Iterator[None]:
    """A PostgreSQL database that ends every connection and takes no other."""
    url = sa.make_url(settings.database_url or "").set(drivername="postgresql+psycopg")
    engine = sa.create_engine(url.set(database="postgres"), isolation_level="AUTOCOMMIT")

    def allow(answer: str) -> None:
        with engine.connect() as connection:
            name = {"name": url.database}
            connection.execute(sa.text(f"alter database {url.database} allow_connections {answer}"))
            ending = "select pg_terminate_backend(pid) from pg_stat_activity where datname = :name"
            connection.execute(sa.text(ending), name)

    allow("false")
    try:
        yield
    finally:
        allow("true")
        engine.dispose()


def run_statements(queue: Queue, *statements: str) -> None:
    with queue.database.transaction() as t:
        for statement in statements:
            t.rows(statement)


@ON_POSTGRES
def test_changes_of_a_job_are_refused_in_one_sentence_while_connections_are_dropped(
    settings: Settings, queue: Queue, tiny: Path
) -> None:
    job, over = queue.submit(ask(tiny)).id, queue.submit(ask(tiny)).id
    queue.cancel(over)
    changes: list[Callable[[], object]] = [
        lambda: queue.set_priority(job, Priority.HIGH),
        lambda: queue.cancel(job),
        lambda: queue.retry(over),
        lambda: queue.cancel(over),
        lambda: queue.delete(over),
    ]
    with closed(settings):
        for change in changes:
            with pytest.raises(DatabaseUnusable):
                change()
    for change in changes:
        change()
    assert [job.id for job in queue.list_jobs()] == [job]


@ON_POSTGRES
def test_what_is_recorded_of_a_job_stands_though_its_workflow_cannot_be_changed(
    settings: Settings, queue: Queue, tiny: Path
) -> None:
    job, other = queue.submit(ask(tiny)).id, queue.submit(ask(tiny)).id
    run_statements(queue, *BROKEN)
    assert queue.set_priority(job, Priority.HIGH).priority == Priority.HIGH
    assert queue.cancel(other).status == Status.CANCELLED
    with pytest.raises(DatabaseUnusable):
        queue.delete(other)
    run_statements(queue, *MENDED)
    assert (
        ClaimedJob.claim(queue.database, settings, job, "one", 1) is None
    )  # it stayed in the queue
    queue.delete(other)
    assert [job.id for job in queue.list_jobs()] == [job]


@ON_POSTGRES
def test_reaping_is_refused_in_one_sentence_while_connections_are_dropped(
    settings: Settings, queue: Queue
) -> None:
    worker = Worker(settings, queue=queue)
    run_statements(queue, DEAD)
    worker.lease.requeue_dead_workers()
    with closed(settings), pytest.raises(DatabaseUnusable):
        worker.lease.requeue_dead_workers()
    run_statements(queue, "alter table dbos.workflow_status rename to hidden")
    with pytest.raises(DatabaseUnusable):
        worker.lease.requeue_dead_workers()
    run_statements(queue, "alter table dbos.hidden rename to workflow_status")
    worker.lease.requeue_dead_workers()


@ON_POSTGRES
def test_jobs_go_on_though_connections_are_dropped_and_a_dead_worker_is_listed(
    settings: Settings, queue: Queue, tiny: Path, start: Start
) -> None:
    """A worker that loses a claim with the connection ends, and is started again as by systemd."""
    run_statements(queue, DEAD)
    workers = [start()]
    ids = [queue.submit(ask(tiny)).id]
    wait(queue, ids[0], is_over)
    for _ in range(3):
        ids.append(queue.submit(ask(tiny)).id)
        with closed(settings):
            pass

    def are_over() -> bool:
        if workers[-1].poll() is not None:
            assert workers[-1].poll() == LOST
            workers.append(start())
        return all(queue.get_job(id).status == Status.COMPLETED for id in ids)

    wait_until(are_over, 240)


def read_end(worker: ForkedProcess) -> tuple[int, str]:
    """Wait for the end of a worker; return its exit status and what it wrote to stderr."""
    status = worker.wait(60)
    return status, worker.stderr.read_text()


@ON_SQLITE
@pytest.mark.parametrize("method", ["Worker.heartbeat", "WorkerLease.requeue_dead_workers"])
def test_worker_whose_pulse_breaks_gives_its_job_up_and_ends(
    queue: Queue, tiny: Path, start: Start, method: str
) -> None:
    job = queue.submit(ask(tiny, frames=97, steps=100, size="256x256")).id
    status, stderr = read_end(start(method, "raise", module="tests.helpers.faulty_worker"))
    assert status == LOST
    assert "AttributeError" in stderr
    assert queue.get_job(job).status in (Status.RUNNING, Status.QUEUED)


@ON_SQLITE
def test_pulse_that_stands_still_ends_the_worker(start: Start) -> None:
    fault = ("WorkerLease.requeue_dead_workers", "sleep")
    worker = start(*fault, module="tests.helpers.faulty_worker", FILMLET_LEASE_S="1")
    status, stderr = read_end(worker)
    assert status == LOST
    assert "no heartbeat for two leases" in stderr


@ON_SQLITE
def test_second_worker_of_a_home_ends_with_a_sentence(settings: Settings, queue: Queue) -> None:
    first = Worker(settings, queue=queue)
    command = [sys.executable, "-m", "filmlet", "worker", "--supervised"]  # it waits for stdin
    with (
        first.lease.exclusive_lock(),
        subprocess.Popen(
            command, env=environment(settings), text=True,
            stdin=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as second,
    ):  # fmt: skip
        assert second.stderr
        stderr = second.stderr.read()
        assert second.wait(60) == 1
    assert "already at work" in stderr
    assert stderr.count("\n") == 1, stderr


@ON_SQLITE
def test_worker_whose_home_cannot_be_written_says_so(
    settings: Settings, queue: Queue, start: Start
) -> None:
    away = {
        "FILMLET_HOME": "/proc/filmlet", "FILMLET_DATABASE_URL": queue.database.url,
        "FILMLET_STORAGE_URL": str(settings.home / "jobs"),
    }  # fmt: skip
    status, stderr = read_end(start(**away))
    assert status == 1
    assert "cannot be written" in stderr
    assert stderr.count("\n") == 1, stderr


@ON_SQLITE
@pytest.mark.parametrize("replaced", [False, True])
def test_nothing_is_written_into_a_database_file_that_was_deleted(
    settings: Settings, queue: Queue, tiny: Path, start: Start, *, replaced: bool
) -> None:
    queue.submit(ask(tiny))
    worker = start()
    wait_until(lambda: queue.stats().workers != ())
    file = settings.home / "filmlet.sqlite"
    for name in (file, file.with_name("filmlet.sqlite-wal"), file.with_name("filmlet.sqlite-shm")):
        name.unlink(missing_ok=True)
    if replaced:
        Queue(settings).close()
    for look in (lambda: queue.submit(ask(tiny)), queue.list_jobs, queue.stats):
        with pytest.raises(DatabaseGone, match="deleted or replaced"):
            look()
    assert worker.wait(60) == LOST
