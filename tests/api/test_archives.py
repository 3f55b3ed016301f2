"""Several clips in one ZIP over HTTP: as they are stored, bounded, and one's own only."""

import io
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from filmlet.api import archives, create_app
from filmlet.jobs import ApiKeyStore, Job, Queue, SubmitOptions
from filmlet.jobs.database import Database
from filmlet.jobs.worker import Worker
from filmlet.settings import Settings
from tests.helpers.queues import ask
from tests.helpers.servers import SMALL, refusal

PATH = "/v1/videos/archive"


@pytest.fixture(params=["local", "s3"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    url = request.getfixturevalue("s3_url") if request.param == "s3" else None
    home = Settings(home=tmp_path / "home", worker="one", max_per_minute=1000)
    return replace(home, database_url=f"sqlite:///{tmp_path}/queue.sqlite", storage_url=url)


@pytest.fixture
def queue(settings: Settings) -> Iterator[Queue]:
    queue = Queue(settings)
    yield queue
    queue.close()


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


def make(queue: Queue, model: Path, prompt: str, owner: str = "local") -> Job:
    job = queue.submit(ask(model, prompt), SubmitOptions(owner=owner)).id
    Worker(queue.settings, queue=queue).run_job(job)
    made = queue.get_job(job)
    assert made.clip, made.failure
    return made


def test_archive_has_the_clips_under_names_that_differ(
    queue: Queue, client: TestClient, tiny: Path
) -> None:
    prompts = ["a red ball", "a red ball", "A Red Ball", "ein Bär: ../../größer"]
    jobs = [make(queue, tiny, prompt) for prompt in prompts]
    ids = [job.id for job in jobs]
    answer = client.get(PATH, params={"ids": [*ids, ids[0]]})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["content-disposition"] == 'attachment; filename="filmlet-clips.zip"'
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [
            "a-red-ball-3.mp4", "a-red-ball-3-2.mp4", "A-Red-Ball-3-3.mp4",
            "ein-Bär-größer-3.mp4",
        ]  # fmt: skip
        for job, entry in zip(jobs, archive.infolist(), strict=True):
            assert entry.compress_type == zipfile.ZIP_STORED
            content = client.get(f"/v1/videos/{job.id}/content").content
            assert archive.read(entry) == content
    assert client.head(PATH, params={"ids": ids}).status_code == 200


@pytest.mark.parametrize("settings", ["local"], indirect=True)
def test_clips_of_others_and_unfinished_ones_are_refused(
    queue: Queue, client: TestClient, tiny: Path, settings: Settings
) -> None:
    database = Database(settings)
    keys = ApiKeyStore(database, settings)
    ann, ben = keys.add("ann"), keys.add("ben")
    own, other = (make(queue, tiny, key.key.name, key.key.id) for key in (ann, ben))
    database.close()
    headers = {"authorization": f"Bearer {ann.secret}"}
    waiting = client.post("/v1/videos", json=SMALL, headers=headers).json()["id"]

    def ask_for(*ids: str) -> tuple[int, str]:
        answer = client.get(PATH, params={"ids": ids}, headers=headers)
        return answer.status_code, refusal(answer)["code"] if answer.is_error else ""

    assert ask_for(own.id) == (200, "")
    for id in (other.id, waiting, "clip_nothing", "../../queue.sqlite"):
        assert ask_for(own.id, id) == (404, "unknown_job"), id
    assert client.get(PATH, params={"ids": own.id}).status_code == 401
    assert ask_for()[0] == 400
    assert ask_for(*[own.id] * 101)[0] == 400


@pytest.mark.parametrize("settings", ["local"], indirect=True)
def test_archive_is_bounded_and_sent_in_pieces(
    queue: Queue, client: TestClient, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [make(queue, tiny, f"ball {i}").id for i in range(2)]
    sizes = [queue.storage.length(id, "clip.mp4") for id in ids]
    with monkeypatch.context() as patch:
        patch.setattr(archives, "MAX_BYTES", sum(sizes) - 1)
        answer = client.get(PATH, params={"ids": ids})
        assert (answer.status_code, refusal(answer)["param"]) == (400, "ids")
        assert client.get(PATH, params={"ids": ids[0]}).status_code == 200
    held, take = [], archives.ChunkBuffer.take

    def note(buffer: archives.ChunkBuffer) -> bytes:
        held.append(len(taken := take(buffer)))
        return taken

    monkeypatch.setattr(archives.ChunkBuffer, "take", note)
    monkeypatch.setattr(archives, "CHUNK_BYTES", 1000)
    answer = client.get(PATH, params={"ids": ids})
    assert sum(held) == len(answer.content) > sum(sizes)
    assert max(held) < 1000 + 500  # with heads
    assert zipfile.ZipFile(io.BytesIO(answer.content)).testzip() is None
