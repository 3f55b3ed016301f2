"""The database goes away, refuses or is deleted: nothing hangs, nothing is lost in silence."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from filmlet.errors import DatabaseGone, DatabaseUnusable
from filmlet.jobs import Priority, Queue, Status
from filmlet.jobs.claimed_job import ClaimedJob
from filmlet.jobs.worker import LOST, Worker
from filmlet.settings import Settings
from tests.helpers.queues import Start, ask, environment, is_over, wait
from tests.helpers.servers import until

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

    until(are_over, 240)


def run_worker(settings: Settings, *lines: str, words: str = "") -> subprocess.Popen[str]:
    """A worker in a process of its own, after some lines of Python."""
    code = "\n".join(
        [
            "import sys, filmlet.cli.main, filmlet.jobs.worker as worker",
            *lines,
            f"sys.argv = ['filmlet', 'worker', *{words.split()}]",
            "sys.exit(filmlet.cli.main.main())",
        ]
    )
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment(settings), text=True,
        stdin=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit status and what was said; its stdin stays open until then."""
    with process:
        assert process.stderr
        said = process.stderr.read()
        return process.wait(60), said


@pytest.mark.server
@ON_SQLITE
@pytest.mark.parametrize("name", ["heartbeat", "_requeue_dead_workers"])
def test_a_worker_whose_pulse_breaks_gives_its_job_up_and_ends(
    settings: Settings, queue: Queue, tiny: Path, name: str
) -> None:
    job = queue.submit(ask(tiny, frames=97, steps=100, size="256x256")).id
    fault = f"worker.Worker.{name} = lambda self: self.current.nothing"
    status, said = ended(run_worker(settings, fault))
    assert status == LOST
    assert "AttributeError" in said
    assert queue.get_job(job).status in (Status.RUNNING, Status.QUEUED)


@pytest.mark.server
@ON_SQLITE
def test_a_pulse_that_stands_still_ends_the_worker(settings: Settings) -> None:
    fault = "import time; worker.WorkerLease.requeue_dead_workers = lambda self: time.sleep(600)"
    status, said = ended(run_worker(replace(settings, lease_s=1.0), fault))
    assert status == LOST
    assert "no heartbeat for two leases" in said


@pytest.mark.server
@ON_SQLITE
def test_a_second_worker_of_a_home_ends_with_a_sentence(settings: Settings, queue: Queue) -> None:
    first = Worker(settings, queue=queue)
    with first.lease.exclusive_lock():
        status, said = ended(run_worker(settings, words="--supervised"))
    assert status == 2
    assert "already at work" in said
    assert said.count("\n") == 1, said


@pytest.mark.server
@ON_SQLITE
def test_a_worker_whose_home_cannot_be_written_says_so(settings: Settings, queue: Queue) -> None:
    away = replace(
        settings, home=Path("/proc/filmlet"), database_url=queue.database.url,
        storage_url=str(settings.home / "jobs"),
    )  # fmt: skip
    status, said = ended(run_worker(away))
    assert status == 2
    assert "cannot be written" in said
    assert said.count("\n") == 1, said


@ON_SQLITE
@pytest.mark.parametrize("replaced", [False, True])
def test_nothing_is_written_into_a_database_file_that_was_deleted(
    settings: Settings, queue: Queue, tiny: Path, start: Start, *, replaced: bool
) -> None:
    queue.submit(ask(tiny))
    worker = start()
    until(lambda: queue.stats().workers != ())
    file = settings.home / "filmlet.sqlite"
    for name in (file, file.with_name("filmlet.sqlite-wal"), file.with_name("filmlet.sqlite-shm")):
        name.unlink(missing_ok=True)
    if replaced:
        Queue(settings).close()
    for look in (lambda: queue.submit(ask(tiny)), queue.list_jobs, queue.stats):
        with pytest.raises(DatabaseGone, match="deleted or replaced"):
            look()
    assert worker.wait(60) == LOST
