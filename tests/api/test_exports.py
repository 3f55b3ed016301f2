"""Finished clips in other formats over HTTP: converted once, stored with the job, and bounded."""

import io
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import av
import psutil
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from filmlet.api import create_app, exports
from filmlet.jobs import ApiKeyStore, Job, Queue, SubmitOptions, retention
from filmlet.jobs.database import Database
from filmlet.jobs.worker import Worker
from filmlet.settings import Settings
from tests.helpers.queues import ask
from tests.helpers.servers import SMALL, refusal, wait_until
from tests.helpers.sounding_worker import finish_job
from tests.helpers.sounds import look_at_audio

local_only = pytest.mark.parametrize("settings", ["local"], indirect=True)
KINDS = {"gif": "image/gif", "webp": "image/webp", "webm": "video/webm", "mp4": "video/mp4"}


@pytest.fixture(params=["local", "folder", "s3"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Of a server over each kind of storage."""
    url = None if request.param == "local" else request.getfixturevalue(f"{request.param}_url")
    database = f"sqlite:///{tmp_path}/queue.sqlite"
    return Settings(
        home=tmp_path / "home", database_url=database, storage_url=url, worker="one",
        max_per_minute=1000,
    )  # fmt: skip


@pytest.fixture
def web(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The formats that converters were started for."""
    started, start = [], exports.run_converter

    async def count(clip: Path, file: Path) -> None:
        started.append(file.suffix.removeprefix("."))
        await start(clip, file)

    monkeypatch.setattr(exports, "run_converter", count)
    return started


def content(job: Job, form: str = "") -> str:
    return f"/v1/videos/{job.id}/content" + (f"?format={form}" if form else "")


def stored(settings: Settings, job: Job) -> set[str]:
    """The names of a job's files that are in the storage."""
    queue = Queue(settings)
    names = {form for form in KINDS if queue.storage.exists(f"{job.id}/export.{form}")}
    queue.close()
    return names


def converters() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [p for p in children if exports.PROGRAM in p.cmdline()]


def test_export_is_made_once_and_goes_with_its_job(
    settings: Settings, web: TestClient, tiny: Path, begun: list[str]
) -> None:
    job = finish_job(settings, tiny)
    first = web.get(content(job, "gif"))
    assert first.status_code == 200, first.text
    assert first.headers["content-type"] == "image/gif"
    assert first.headers["content-disposition"] == f'inline; filename="a-red-ball-{job.seed}.gif"'
    with Image.open(io.BytesIO(first.content)) as image:
        assert (image.size, image.n_frames) == ((64, 64), 9)
        tags = json.loads(image.info["comment"])
    assert (tags["prompt"], tags["seed"]) == ("a red ball", str(job.seed))
    again = web.get(content(job, "gif"))
    assert again.content == first.content
    assert (begun, stored(settings, job)) == (["gif"], {"gif"})

    head = web.head(content(job, "gif"))
    assert head.headers["content-length"] == str(len(first.content))
    part = web.get(content(job, "gif"), headers={"range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, first.content[10:20])
    beyond = web.get(content(job, "gif"), headers={"range": f"bytes={len(first.content)}-"})
    assert beyond.status_code == 416

    assert web.delete(f"/v1/videos/{job.id}").json()["deleted"] is True
    assert web.get(content(job, "gif")).status_code == 404
    assert stored(settings, job) == set()


@local_only
def test_sound_is_in_webm_and_an_animation_says_that_it_has_none(
    settings: Settings, web: TestClient, tiny: Path, tmp_path: Path
) -> None:
    job, files = finish_job(settings, tiny), {}
    for form, kind in KINDS.items():
        answer = web.get(content(job, form))
        assert answer.headers["content-type"] == kind
        files[form] = tmp_path / f"clip.{form}"
        files[form].write_bytes(answer.content)
        changes = json.loads(answer.headers.get("filmlet-changes", "[]"))
        silent = [change["field"] for change in changes]
        assert silent == (["audio"] if form in ("gif", "webp") else [])
    assert files["mp4"].read_bytes() == web.get(content(job)).content
    assert look_at_audio(files["webm"]).codec == "opus"
    assert look_at_audio(files["webm"]).click_s == pytest.approx(4 / 24, abs=1.1e-3)
    with av.open(str(files["webm"])) as file:
        assert file.streams.video[0].average_rate == 24
        assert file.metadata["PROMPT"] == "a red ball"
        assert sum(1 for _ in file.decode(video=0)) == 9


@local_only
def test_head_alone_converts_and_silent_clips_lose_nothing(
    settings: Settings, web: TestClient, tiny: Path, begun: list[str]
) -> None:
    job = finish_job(settings, tiny, with_sound=False)
    head = web.head(content(job, "webp"))
    assert (head.status_code, head.content) == (200, b"")
    assert "filmlet-changes" not in head.headers
    assert int(head.headers["content-length"]) == len(web.get(content(job, "webp")).content)
    assert begun == ["webp"]


@local_only
def test_requests_at_the_same_time_share_one_conversion(
    settings: Settings, web: TestClient, tiny: Path, begun: list[str]
) -> None:
    job = finish_job(settings, tiny)
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(web.get, [content(job, "gif")] * 6))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert begun == ["gif"]


@local_only
def test_what_cannot_be_asked_for_is_named(
    settings: Settings, web: TestClient, tiny: Path, begun: list[str]
) -> None:
    job = finish_job(settings, tiny)
    answer = web.get(content(job, "avi"))
    assert (answer.status_code, refusal(answer)["param"]) == (400, "format")
    for form in KINDS:
        assert f"'{form}'" in refusal(answer)["message"]
    for query in ("variant=audio&format=gif", "variant=thumbnail&format=webp"):
        answer = web.get(f"{content(job)}?{query}")
        assert (answer.status_code, refusal(answer)["code"]) == (400, "invalid_format")
    queued = web.post("/v1/videos", json=SMALL).json()["id"]
    stream = web.get(f"/v1/videos/{queued}/content?stream=true&format=gif")
    assert (stream.status_code, refusal(stream)["code"]) == (400, "invalid_format")
    plain, other = (web.get(f"/v1/videos/{queued}/content{q}") for q in ("", "?format=gif"))
    assert plain.status_code == other.status_code == 404
    assert refusal(plain) == refusal(other)
    assert begun == []


@local_only
def test_export_of_another_user_is_as_unknown_as_his_clip(
    settings: Settings, web: TestClient, tiny: Path
) -> None:
    database = Database(settings)
    keys = ApiKeyStore(database, settings)
    ann, ben = keys.add("ann"), keys.add("ben")
    queue = Queue(settings)
    job = queue.submit(ask(tiny), SubmitOptions(owner=ann.key.id))
    Worker(settings, queue=queue).run_job(job.id)
    queue.close()
    database.close()

    def ask_as(secret: str, query: str = "?format=gif") -> tuple[int, dict[str, str] | None]:
        headers = {"authorization": f"Bearer {secret}"}
        answer = web.get(content(job) + query, headers=headers)
        return answer.status_code, refusal(answer) if answer.is_error else None

    assert ask_as(ben.secret) == ask_as(ben.secret, "")
    assert ask_as(ben.secret)[0] == 404
    assert ask_as("sk-nobody")[0] == 401
    assert stored(settings, job) == set()
    assert ask_as(ann.secret) == (200, None)
    assert ask_as(ben.secret)[0] == 404


def test_job_that_is_deleted_while_it_is_converted_leaves_nothing(
    settings: Settings, web: TestClient, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, queue = finish_job(settings, tiny), Queue(settings)
    start = exports.run_converter

    async def convert_and_delete(clip: Path, file: Path) -> None:
        await start(clip, file)
        queue.delete(job.id)

    monkeypatch.setattr(exports, "run_converter", convert_and_delete)
    answer = web.get(content(job, "gif"))
    assert (answer.status_code, refusal(answer)["code"]) == (404, "unknown_job")
    queue.close()
    assert stored(settings, job) == set()
    assert not (settings.home / "jobs" / job.id).exists()


@local_only
def test_conversion_that_takes_too_long_is_stopped_and_can_be_asked_for_again(
    settings: Settings, web: TestClient, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = finish_job(settings, tiny)
    with monkeypatch.context() as patch:
        patch.setattr(exports, "TIMEOUT_S", 0.05)
        answer = web.get(content(job, "webm"))
        assert (answer.status_code, refusal(answer)["code"]) == (400, "conversion_failed")
        assert "too much time" in refusal(answer)["message"]
    assert converters() == []
    assert stored(settings, job) == set()
    with monkeypatch.context() as patch:
        patch.setattr(exports, "CPU_S", 0)  # the kernel ends it
        answer = web.get(content(job, "webm"))
        assert "too much time or memory" in refusal(answer)["message"]
    assert web.get(content(job, "webm")).status_code == 200


@local_only
def test_clip_that_cannot_be_read_is_not_converted(
    settings: Settings, web: TestClient, tiny: Path
) -> None:
    job = finish_job(settings, tiny)
    clip = settings.home / "jobs" / job.id / "clip.mp4"
    clip.write_bytes(clip.read_bytes()[:500])
    answer = web.get(content(job, "gif"))
    assert (answer.status_code, refusal(answer)["code"]) == (400, "conversion_failed")
    assert str(settings.home) not in answer.text
    clip.unlink()
    assert web.get(content(job, "gif")).status_code == 404


@local_only
def test_long_animations_and_many_conversions_are_refused_before_they_begin(
    settings: Settings, web: TestClient, tiny: Path, begun: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    job = finish_job(settings, tiny)
    with monkeypatch.context() as patch:
        patch.setattr(exports, "ANIMATION_PIXELS", 8 * 64 * 64)
        answer = web.get(content(job, "gif"))
        assert (answer.status_code, refusal(answer)["code"]) == (400, "invalid_format")
        assert "9 frames, at most 8" in refusal(answer)["message"]
    for limit in ("MAX_CONVERSIONS", "MAX_OWN_CONVERSIONS"):
        with monkeypatch.context() as patch:
            patch.setattr(exports, limit, 0)
            answer = web.get(content(job, "gif"))
            assert (answer.status_code, refusal(answer)["code"]) == (429, "too_many_requests")
            assert answer.headers["retry-after"] == "5"
    assert begun == []


@local_only
def test_stopping_server_stops_its_conversions(
    settings: Settings, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = finish_job(settings, tiny)
    monkeypatch.setattr(exports, "PROGRAM", "filmlet.no_converter")
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        answer = client.get(content(job, "gif"))
        assert (answer.status_code, refusal(answer)["code"]) == (400, "conversion_failed")
        monkeypatch.undo()
        asking = threading.Thread(target=client.get, args=[content(job, "gif")], daemon=True)
        asking.start()
        wait_until(lambda: bool(converters()))
    assert converters() == []


@local_only
def test_export_counts_towards_the_disk_limit_and_outlives_a_sweep(
    settings: Settings, web: TestClient, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "TRIM_AFTER_S", -1.0)
    job, queue = finish_job(settings, tiny), Queue(settings)

    def count_bytes() -> int:
        with queue.database.read() as t:
            row = t.row("select bytes from filmlet_job where id = :id", id=job.id)
        assert row
        return int(row["bytes"])

    queue.delete_expired()
    before = count_bytes()
    size = len(web.get(content(job, "gif")).content)
    assert count_bytes() == before + size
    with queue.database.transaction() as t:
        t.rows("update filmlet_job set trimmed = 0")
    queue.delete_expired()
    assert (stored(settings, job), count_bytes()) == ({"gif"}, before + size)
    queue.retention.settings = replace(settings, keep_gb=1e-9)
    queue.delete_expired()
    assert job.id not in queue.storage.jobs()
    queue.close()
