"""The HTTP API beyond OpenAI's shape: events, streaming, refusals, operations."""

import asyncio
import io
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import av
import httpx2
import pytest
from fastapi.testclient import TestClient
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from filmlet.api.dependencies import AppState
from filmlet.api.fast_path import FastPathMiddleware
from filmlet.api.job_watcher import JobWatcher
from filmlet.api.middleware import Identity
from filmlet.core.request import build_request
from filmlet.jobs import ApiKeyStore, Job, Queue
from filmlet.settings import Settings
from tests.helpers.servers import LONG, SMALL, Running, Serve, refusal, wait_until


def events(server: Running, job: str, **headers: str) -> Iterator[dict[str, str]]:
    """Server-sent events of a job, as they come."""
    with server.client.stream("GET", f"/v1/videos/{job}/events", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        event: dict[str, str] = {}
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            if name:
                event[name] = value
            elif event:
                yield event
                event = {}


@pytest.mark.server
def test_web_process_imports_no_torch() -> None:
    code = (
        "import sys, filmlet.server; print({'torch', 'diffusers', 'transformers'} & {*sys.modules})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_events_tell_steps_previews_and_the_end(shared_server: Running) -> None:
    job = shared_server.job(**LONG)
    told = list(events(shared_server, job))
    kinds = [event["event"] for event in told]
    assert kinds[-1] == "done"
    assert {"progress", "preview", "done"} <= set(kinds)
    steps = [json.loads(e["data"]) for e in told]
    progress = [video["progress"] for video in steps]
    assert progress == sorted(progress)
    assert len(set(progress)) > 4
    assert steps[-1]["status"] == "completed"
    shown = next(video["preview_url"] for video in steps if video["preview_url"])
    assert shown == f"/v1/videos/{job}/preview"
    picture = shared_server.client.get(shown)
    assert picture.content[:4] == b"\x89PNG"


def test_preview_that_was_told_is_there_however_quick_the_steps_are(
    shared_server: Running,
) -> None:
    job = shared_server.job(size="64x64", frames=97, steps=60)
    pictures = set()
    while (video := shared_server.video(job))["status"] != "completed":
        assert video["status"] != "failed", video["error"]
        if shown := video["preview_url"]:
            answer = shared_server.client.get(str(shown))
            assert answer.status_code == 200, answer.text
            pictures.add(answer.content)
    assert len(pictures) > 2


def test_who_comes_back_to_the_events_hears_only_what_is_new(shared_server: Running) -> None:
    job = shared_server.job(**LONG)
    stream = events(shared_server, job)
    first = next(stream)
    stream.close()
    again = list(events(shared_server, job, **{"Last-Event-ID": first["id"]}))
    assert first["id"] not in [event["id"] for event in again]
    assert again[-1]["event"] == "done"


def test_who_has_read_the_end_of_the_events_is_told_not_to_come_back(
    shared_server: Running,
) -> None:
    job = shared_server.job()
    end = list(events(shared_server, job))[-1]
    assert end["event"] == "done"
    path = f"/v1/videos/{job}/events"
    again = shared_server.client.get(path, headers={"Last-Event-ID": end["id"]})
    assert (again.status_code, again.content) == (204, b"")
    for other in ("", "0.queued.1", f"{end['id']}0"):  # has not read it
        seen = list(events(shared_server, job, **{"Last-Event-ID": other}))
        assert [event["event"] for event in seen] == ["done"], other
    assert shared_server.client.delete(f"/v1/videos/{job}").status_code == 200
    assert shared_server.client.get(path, headers={"Last-Event-ID": end["id"]}).status_code == 404


class Counting(Queue):
    """A queue that counts how often it is asked."""

    asked = 0

    def get_job(self, job: str, owner: str | None = None) -> Job:
        self.asked += 1
        return super().get_job(job, owner)


def test_hundred_readers_of_one_job_cost_one_poll(home: Settings) -> None:
    queue = Counting(home)
    job = queue.submit(build_request("a ball"))

    async def read(hub: JobWatcher) -> int:
        seen = 0
        async for _ in hub.follow(job):
            seen += 1
        return seen

    async def together() -> list[int]:
        hub = JobWatcher(queue)
        readers = [asyncio.create_task(read(hub)) for _ in range(100)]
        await asyncio.sleep(1.0)
        await asyncio.to_thread(queue.cancel, job.id)
        seen = await asyncio.gather(*readers)
        assert not hub.watches
        return seen

    queue.asked, started = 0, time.monotonic()
    seen = asyncio.run(together())
    seconds = time.monotonic() - started
    queue.close()
    assert seen == [2] * 100  # queued, cancelled
    assert queue.asked < 6 * seconds + 6  # five a second, however many read


def test_running_clip_streams_as_a_playable_mp4_while_it_grows(shared_server: Running) -> None:
    job = shared_server.job(**LONG)
    came: list[float] = []
    data = b""
    path = f"/v1/videos/{job}/content"
    with shared_server.client.stream("GET", path, params={"stream": "true"}) as answer:
        for piece in answer.iter_bytes():
            came.append(time.monotonic())
            data += piece
            if len(came) == 1:
                assert shared_server.video(job)["status"] == "in_progress"
    with av.open(io.BytesIO(data)) as movie:
        assert sum(1 for _ in movie.decode(video=0)) == LONG["frames"]
    assert len(came) > 2


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ('a "red" ball;\r\nx: ../..\\etc', 'filename="a-red-ball-x-etc-3.mp4"'),
        ("ein Bär, größer", "filename*=UTF-8''ein-B%C3%A4r-gr%C3%B6%C3%9Fer-3.mp4"),
        ("!?", 'filename="clip-3.mp4"'),
        ("word " * 99, f'filename="{"-".join(["word"] * 12)}-3.mp4"'),
    ],
)
def test_file_is_named_by_prompt_and_seed(shared_server: Running, prompt: str, name: str) -> None:
    job = shared_server.job(prompt=prompt)
    shared_server.wait_over(job)
    head = shared_server.client.head(f"/v1/videos/{job}/content")
    assert head.headers["content-disposition"] == f"inline; {name}"


def test_reader_that_goes_away_costs_nothing(shared_server: Running) -> None:
    job = shared_server.job(**LONG)
    path = f"/v1/videos/{job}/content"
    with shared_server.client.stream("GET", path, params={"stream": "true"}) as answer:
        next(answer.iter_bytes())
    assert shared_server.wait_over(job)["status"] == "completed"


def test_without_a_worker_the_server_is_alive_but_not_ready(client: TestClient) -> None:
    assert client.get("/health").json()["status"] == "ok"
    assert client.get("/ready").status_code == 503
    client.post("/v1/videos", json=SMALL)
    video = client.get("/v1/videos").json()["data"][0]
    assert (video["status"], video["position"]) == ("queued", 1)
    assert video["eta"]["low"] < video["eta"]["seconds"] < video["eta"]["high"]


def test_description_has_examples_and_its_page_asks_no_outside_host(
    client: TestClient,
) -> None:
    described = client.get("/openapi.json").json()
    body = described["components"]["schemas"]["VideoCreate"]
    assert body["examples"]
    page = client.get("/docs").text
    assert "swagger" in page
    assert "https://" not in page
    for asset in re.findall(r'(?:src|href)="(/[^"]+)"', page):
        assert client.get(asset).status_code == 200, asset


@pytest.mark.parametrize("is_near", [True, False])
def test_what_is_answered_ahead_of_the_router_is_what_the_router_would_say(
    client: TestClient, home: Settings, monkeypatch: pytest.MonkeyPatch, is_near: bool
) -> None:
    monkeypatch.setattr(Queue, "is_local", is_near)
    made = [client.post("/v1/videos", json=SMALL | {"seed": n}).json()["id"] for n in range(3)]
    client.post(f"/v1/videos/{made[0]}/cancel")
    queue = Queue(home)
    house = AppState(home, queue, ApiKeyStore(queue.database, home), JobWatcher(queue))
    alone = TestClient(Identity(FastPathMiddleware(nothing_behind, house), house))
    for quick, plain in (
        *((f"/v1/videos/{id}", f"/v1/videos/{id}?plain") for id in made),
        ("/v1/videos", "/v1/videos?order=desc"),
        ("/v1/videos?limit=2", "/v1/videos?limit=2&order=desc"),
    ):
        first, second = alone.get(quick), client.get(plain)
        assert first.status_code == 200
        assert first.content == second.content
        assert dict(first.headers) == dict(second.headers)
    for refused in (f"/v1/videos/{made[0][:-1]}x", "/v1/videos?limit=0", "/health"):
        assert alone.get(refused).status_code == 404
    assert client.get("/v1/videos?limit=-1").status_code == 400
    queue.close()


async def nothing_behind(scope: Scope, receive: Receive, send: Send) -> None:
    await Response(status_code=404)(scope, receive, send)


def test_metrics_count_what_happened(shared_server: Running) -> None:
    def figures() -> dict[str, float]:
        lines = shared_server.client.get("/metrics").text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line.startswith(("filmlet", "process")))
        return {name: float(value) for name, value in pairs}

    before = figures()
    shared_server.wait_over(shared_server.job())
    after = figures()
    done = 'filmlet_jobs_total{status="completed"}'
    assert after[done] == before.get(done, 0) + 1
    decode = 'filmlet_stage_seconds_total{stage="decode"}'
    assert after[decode] > before.get(decode, 0)
    assert after["filmlet_workers"] == 1
    (memory,) = [v for name, v in after.items() if name.startswith("filmlet_worker_peak_memory")]
    assert memory > 1e8
    assert after["process_resident_memory_bytes"] > 1e6


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": "a\0b"}, "prompt"),
        ({"prompt": "x" * 40_000}, "prompt"),
        ({"prompt": "a", "size": "10x"}, "size"),
        ({"prompt": "a", "size": "100000x64"}, "size"),
        ({"prompt": "a", "seconds": "soon"}, "seconds"),
        ({"prompt": "a", "seconds": "NaN"}, "seconds"),
        ({"prompt": "a", "seconds": "4", "frames": 9}, "frames"),
        ({"prompt": "a", "steps": 1.5}, "steps"),
        ({"prompt": "a", "seed": -1}, "seed"),
        ({"prompt": "a", "model": "../../etc"}, "model"),
        ({"prompt": "a", "draft": True}, "draft"),
        ({"prompt": "a", "colour": "red"}, "colour"),
        ({"prompt": ["a"]}, "prompt"),
        ({}, "prompt"),
    ],
)
def test_bad_field_is_named(client: TestClient, fields: dict[str, object], param: str) -> None:
    answer = client.post("/v1/videos", json=fields)
    assert answer.status_code == 400, answer.text
    assert refusal(answer)["param"] == param
    assert client.get("/v1/videos").json()["data"] == []


def test_folder_of_the_machine_is_no_model_for_a_client(client: TestClient, tiny: Path) -> None:
    answer = client.post("/v1/videos", json=SMALL | {"model": str(tiny)})
    assert refusal(answer)["code"] == "unknown_model"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"[" * 100_000, b"\xff\xfe"])
def test_body_that_is_no_object_is_refused(client: TestClient, body: bytes) -> None:
    answer = client.post("/v1/videos", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert refusal(answer)["type"] == "invalid_request_error"


def test_pages_of_other_sites_are_refused(client: TestClient, serve: Serve, home: Settings) -> None:
    answer = client.post("/v1/videos", json=SMALL, headers={"origin": "http://evil.example"})
    assert answer.status_code == 403
    same = client.post("/v1/videos", json=SMALL, headers={"origin": "http://testserver"})
    assert same.status_code == 200
    server = serve(home, "--no-worker")
    assert server.client.get("/health").status_code == 200
    elsewhere = server.client.get("/health", headers={"host": "evil.example"})
    assert elsewhere.status_code == 400


def test_server_killed_under_load_loses_no_job(serve: Serve, home: Settings) -> None:
    first = serve(home)
    first.wait_ready()
    made: list[str] = []
    stop = threading.Event()

    def submit() -> None:
        while not stop.is_set():
            try:
                made.append(first.job())
            except (httpx2.HTTPError, AssertionError):
                return

    threads = [threading.Thread(target=submit) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(made) > 12)
    first.process.kill()
    stop.set()
    for thread in threads:
        thread.join()
    second = serve(home)
    wait_until(lambda: all(second.video(job)["status"] == "completed" for job in made), 120)


@pytest.mark.parametrize("finish", [True, False])
def test_stopped_server_finishes_its_clip_or_puts_it_back(
    serve: Serve, home: Settings, finish: bool
) -> None:
    server = serve(home, *(["--finish"] if finish else []))
    server.wait_ready()
    job = server.job(**LONG)
    wait_until(lambda: server.video(job)["status"] == "in_progress")
    server.process.terminate()
    assert server.process.wait(60) == 0
    queue = Queue(home)
    left = queue.get_job(job)
    queue.close()
    assert left.status == ("completed" if finish else "queued")
    if not finish:
        assert left.attempt == 0  # it does not count
        again = serve(home)
        assert again.wait_over(job)["status"] == "completed"


def test_log_is_json_with_the_jobs_id_where_that_is_asked(serve: Serve, home: Settings) -> None:
    server = serve(home, "--log", "json")
    server.wait_ready()
    job = server.job()
    server.wait_over(job)
    wait_until(lambda: any(json.loads(line).get("job") == job for line in server.log))
    assert all({"time", "level", "message"} <= set(json.loads(line)) for line in server.log)


def test_worker_that_dies_is_started_again(serve: Serve, home: Settings) -> None:
    import psutil

    server = serve(home)
    server.wait_ready()
    (worker,) = psutil.Process(server.process.pid).children()
    job = server.job(**LONG)
    wait_until(lambda: server.video(job)["status"] == "in_progress")
    worker.kill()
    assert server.wait_over(job, 120)["status"] == "completed"
