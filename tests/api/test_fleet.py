"""A web process here, a worker there, a storage between them: a clip is read while it is made."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest

from filmlet.api import create_app
from filmlet.jobs import PREVIEW, Queue, Status
from filmlet.jobs.claimed_job import ClaimedJob
from filmlet.jobs.object_storage import open_storage
from filmlet.jobs.worker import Worker
from filmlet.settings import Settings
from tests.helpers.fake_zerogpu import serve_app
from tests.helpers.queues import ask
from tests.jobs.test_claimed_job import Paused, decoding, in_thread


@pytest.fixture
def settings(tmp_path: Path, remote: str, request: pytest.FixtureRequest) -> Settings:
    """Of the worker's machine: a shared folder with SQLite, S3 with PostgreSQL."""
    database = f"sqlite:///{tmp_path}/queue.sqlite"
    if remote.startswith("s3:"):
        database = request.getfixturevalue("postgres")()
    return Settings(home=tmp_path / "a", database_url=database, storage_url=remote, worker="one")


@pytest.fixture
def web(settings: Settings, tmp_path: Path) -> Iterator[httpx2.Client]:
    """A client of another machine's web process."""
    app = create_app(replace(settings, home=tmp_path / "web"))
    with serve_app(app) as url, httpx2.Client(base_url=url, timeout=120) as client:
        yield client


class Reading:
    """A reader of the growing clip; `data` is what came, `is_complete` once it ended regularly."""

    def __init__(self, web: httpx2.Client, job: str) -> None:
        self.data, self.is_whole, self.begun = b"", False, threading.Event()
        self.thread = threading.Thread(target=self._read, args=(web, job))
        self.thread.start()

    def _read(self, web: httpx2.Client, job: str) -> None:
        path = f"/v1/videos/{job}/content"
        with (
            suppress(httpx2.RemoteProtocolError),
            web.stream("GET", path, params={"stream": "true"}) as answer,
        ):
            assert answer.status_code == 200
            for piece in answer.iter_bytes():
                self.data += piece
                self.begun.set()
            self.is_whole = True

    def join(self) -> None:
        self.thread.join(120)
        assert not self.thread.is_alive()


@pytest.fixture
def making(
    settings: Settings, web: httpx2.Client, tiny: Path
) -> Iterator[Callable[[], tuple[Paused, Worker, str, Reading, threading.Thread]]]:
    """A clip in the middle of its decoding, and its reader."""
    queue = Queue(settings)

    def begin() -> tuple[Paused, Worker, str, Reading, threading.Thread]:
        film = Paused(lambda event: decoding(event) and event.done > 20)  # type: ignore[union-attr]
        worker, job = Worker(settings, film, queue), queue.submit(ask(tiny, frames=121)).id
        thread = in_thread(worker, job)
        assert film.reached.wait(120)
        reading = Reading(web, job)
        assert reading.begun.wait(120)
        return film, worker, job, reading, thread

    with ExitStack() as ending:
        ending.callback(queue.close)
        yield begin


def test_reader_on_another_machine_gets_the_whole_growing_clip(
    making: Callable[[], tuple[Paused, Worker, str, Reading, threading.Thread]],
) -> None:
    film, worker, job, reading, thread = making()
    storage = worker.queue.storage
    film.go.set()
    thread.join(120)
    reading.join()
    assert worker.queue.get_job(job).status == Status.COMPLETED
    assert reading.is_whole
    assert reading.data == storage.read(job, "decoded.mp4")
    assert storage.jobs() == {job}
    assert not storage.working_copies()


def test_reader_of_a_clip_that_will_not_be_whole_is_cut_off(
    making: Callable[[], tuple[Paused, Worker, str, Reading, threading.Thread]],
) -> None:
    film, worker, job, reading, thread = making()
    worker.queue.cancel(job)
    worker.current.stop() if worker.current else None
    film.go.set()
    thread.join(120)
    reading.join()
    assert worker.queue.get_job(job).status == Status.CANCELLED
    assert reading.data
    assert not reading.is_whole


def test_reader_that_pauses_until_the_pieces_are_gone_goes_on_with_the_whole_clip(
    settings: Settings, tmp_path: Path, tiny: Path
) -> None:
    queue, film = Queue(settings), Paused(lambda event: decoding(event) and event.done > 20)  # type: ignore[union-attr]
    worker, job = Worker(settings, film, queue), queue.submit(ask(tiny, frames=121)).id
    thread = in_thread(worker, job)
    assert film.reached.wait(120)
    elsewhere = open_storage(replace(settings, home=tmp_path / "web"))
    begun = elsewhere.read_growing(job, 0, 1000)
    assert len(begun) == 1000
    film.go.set()
    thread.join(120)
    whole = queue.storage.read(job, "decoded.mp4")
    for pause in (0, 1000, len(whole) - 1, len(whole)):
        data = whole[:pause]
        while piece := elsewhere.read_growing(job, len(data), len(whole) // 3):
            data += piece
        assert data == whole, pause
    assert begun == whole[:1000]
    assert elsewhere.grown_length(job) == len(whole)
    queue.close()


def test_preview_that_is_replaced_or_deleted_under_its_reader_is_the_newer_one_or_404(
    settings: Settings, web: httpx2.Client, tiny: Path
) -> None:
    queue = Queue(settings)
    job = queue.submit(ask(tiny)).id
    claimed = ClaimedJob.claim(queue.database, settings, job, "one")
    assert claimed
    claimed.previews = 1
    claimed.report_progress()
    missing = web.get(f"/v1/videos/{job}/preview")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "file_missing")
    pictures = [b"\x89PNG" + bytes([n]) * (1 + n) * 100_000 for n in range(3)]
    stopped = threading.Event()

    def replace_often() -> None:
        while not stopped.is_set():
            for picture in pictures:
                (queue.storage.folder(job) / PREVIEW).write_bytes(picture)
                queue.storage.store(job, PREVIEW)

    writer = threading.Thread(target=replace_often)
    writer.start()
    try:
        answers = []
        while len(answers) < 30:
            answer = web.get(f"/v1/videos/{job}/preview")
            if answer.status_code == 200 or answers:
                answers.append(answer)
    finally:
        stopped.set()
        writer.join(60)
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.content for answer in answers} <= {*pictures}
    assert len({answer.content for answer in answers}) > 1
    queue.storage.delete(job)
    gone = web.get(f"/v1/videos/{job}/preview")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "file_missing")
    queue.close()


def test_clip_whose_file_is_gone_is_404(settings: Settings, web: httpx2.Client, tiny: Path) -> None:
    queue = Queue(settings)
    job = queue.submit(ask(tiny, frames=25)).id
    Worker(settings, queue=queue).run_job(job)
    path = f"/v1/videos/{job}/content"
    assert web.get(path).content == queue.storage.read(job, "clip.mp4")
    queue.storage.delete(job)
    for variant in ("video", "thumbnail", "spritesheet", "audio"):
        gone = web.get(path, params={"variant": variant})
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "file_missing"), variant
    queue.close()
