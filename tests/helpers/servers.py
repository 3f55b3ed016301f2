"""Servers for the tests: `filmlet serve` in a process of its own, and the app without one."""

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2
import pytest
from fastapi.testclient import TestClient

from filmlet.api import create_app
from filmlet.jobs import ApiKeyStore
from filmlet.jobs.database import Database
from filmlet.settings import Settings
from tests.helpers.forked_processes import ForkedProcess
from tests.helpers.queues import environment

SMALL = {"prompt": "a red ball", "size": "64x64", "frames": 9, "steps": 2, "seed": 3}
LONG = {"prompt": "a red ball", "size": "256x256", "frames": 481}  # seconds, even on a fast CPU


@dataclass
class Running:
    """A server in a process of its own, and a client of it."""

    process: ForkedProcess
    home: Path

    @property
    def log(self) -> list[str]:
        """The whole lines that it has written to stderr."""
        return self.process.stderr.read_text().splitlines(keepends=True)

    @property
    def url(self) -> str:
        """Where it listens, empty before it does."""
        found = re.search(r"listens on (http://\S+?)[\"\s]", "".join(self.log))
        return found[1] if found else ""

    @cached_property
    def client(self) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=60)

    def close(self) -> None:
        """Ask it to end, and kill it where it does not."""
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.client.close()

    def wait_ready(self, seconds: float = 120) -> None:
        wait_until(lambda: self.client.get("/ready").status_code == 200, seconds)

    def job(self, **fields: object) -> str:
        """Create a clip and return its id."""
        answer = self.client.post("/v1/videos", json=SMALL | fields)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def wait_over(self, job: str, seconds: float = 120) -> dict[str, object]:
        wait_until(lambda: self.video(job)["status"] in ("completed", "failed"), seconds)
        return self.video(job)

    def video(self, job: str) -> dict[str, object]:
        return dict(self.client.get(f"/v1/videos/{job}").json())


def wait_until(true: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.05)


Serve = Callable[..., Running]


def make_servers() -> Iterator[Serve]:
    """Yield a function that starts servers, which end with the fixture."""
    servers: list[Running] = []
    logs = TemporaryDirectory()

    def run(settings: Settings, *words: str, **extra: str) -> Running:
        variables = environment(settings) | extra
        log = Path(logs.name) / f"{len(servers)}.log"
        process = ForkedProcess(["serve", "--port", "0", *words], variables, log)
        server = Running(process, settings.home)
        servers.append(server)
        wait_until(lambda: bool(server.url) or process.poll() is not None, 300)
        assert server.url, server.log
        return server

    yield run
    for server in servers:
        server.close()
    logs.cleanup()


@pytest.fixture
def serve() -> Iterator[Serve]:
    yield from make_servers()


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One server with a worker, for every test that only asks."""
    starts = make_servers()
    home: Path = tmp_path_factory.mktemp("server")
    server = next(starts)(Settings(home=home, worker="shared", max_per_minute=10_000))
    server.wait_ready()
    yield server
    next(starts, None)


@pytest.fixture
def home(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", worker="own", max_per_minute=10_000)


@pytest.fixture
def client(home: Settings) -> Iterator[TestClient]:
    """The app without a worker."""
    with TestClient(create_app(home), raise_server_exceptions=False) as client:
        yield client


def add_key(settings: Settings) -> str:
    """Make an admin's key in the database of these settings; returns its secret."""
    database = Database(settings)
    try:
        return ApiKeyStore(database, settings).add("ann", admin=True).secret
    finally:
        database.close()


def refusal(answer: httpx2.Response) -> dict[str, str]:
    """The error in an answer, which holds nothing else."""
    assert set(answer.json()) == {"error"}
    return dict(answer.json()["error"])
