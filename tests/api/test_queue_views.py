"""What the page and admins see of the queue: forecasts, search, classes, sessions."""

import json
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import httpx2
import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from filmlet.api import create_app
from filmlet.api.dependencies import COOKIE
from filmlet.core.memory import DeviceInfo
from filmlet.core.request import build_request
from filmlet.errors import JobConflict
from filmlet.jobs import ApiKeyStore, Priority, Queue, SubmitOptions
from filmlet.jobs.database import Database
from filmlet.models import REGISTRY, check_prompt, list_vocabulary
from filmlet.settings import Settings
from tests.helpers.queues import ask
from tests.helpers.servers import SMALL, refusal


def test_prompts_are_searched_in_any_case_and_for_what_they_contain(
    tiny: Path, queue: Queue
) -> None:
    for prompt in ("a Red ball", "100 % ball", "größer seed", "a_b"):
        queue.submit(ask(tiny, prompt=prompt))

    def found(search: str) -> list[str]:
        return [str(job.requested["prompt"]) for job in queue.list_jobs(search=search)]

    assert found("red BALL") == ["a Red ball"]
    assert found("%") == ["100 % ball"]
    assert found("_") == ["a_b"]
    assert found("größer") == ["größer seed"]
    assert found("seed") == ["größer seed"], "the names of settings are no prompt"
    assert found("no such") == []
    assert len(found("")) == 4


def test_jobs_are_listed_by_their_ids_and_only_ones_own(tiny: Path, queue: Queue) -> None:
    jobs = [queue.submit(ask(tiny, prompt=f"a {i}")).id for i in range(3)]
    theirs = queue.submit(ask(tiny), SubmitOptions(owner="bob")).id
    chosen = [jobs[2], theirs, jobs[0]]
    assert [job.id for job in queue.list_jobs(ids=chosen)] == [theirs, jobs[2], jobs[0]]
    assert [job.id for job in queue.list_jobs("local", ids=chosen)] == [jobs[2], jobs[0]]
    page = queue.list_jobs("local", ids=chosen, limit=1, oldest_first=True)
    assert [job.id for job in page] == [jobs[0]]
    assert queue.list_jobs(ids=["clip_" + "0" * 24, "' or 1 = 1 --"]) == []
    assert queue.list_jobs(ids=[]) == []


def test_list_by_ids_leaves_out_what_is_no_id(tmp_path: Path) -> None:
    path = "/v1/videos"
    with TestClient(create_app(Settings(home=tmp_path))) as client:
        sent = [client.post(path, json=SMALL).json()["id"] for _ in range(2)]
        for ids, found in (
            (sent[:1], sent[:1]), ([sent[1], "x\0", "clip_", ""], sent[1:]), (["x"], []),
        ):  # fmt: skip
            answer = client.get(path, params={"ids": ids}).json()
            assert [video["id"] for video in answer["data"]] == found
        assert client.get(path, params={"ids": sent * 51}).status_code == 400


@pytest.mark.parametrize("owner", [None, "local"])
@pytest.mark.parametrize("is_oldest_first", [False, True])
def test_page_is_read_off_an_index_however_many_jobs_there_are(
    tiny: Path, queue: Queue, owner: str | None, is_oldest_first: bool
) -> None:
    job = queue.submit(ask(tiny))
    engine = queue.database.engine
    if not queue.database.is_sqlite:
        pytest.skip("PostgreSQL scans a table of one row")
    statements: list[str] = []
    engine.dispose()
    sa.event.listen(engine, "connect", lambda c, _: c.set_trace_callback(statements.append))
    for after in (None, job.id):
        queue.list_jobs(owner, after=after, oldest_first=is_oldest_first)
    pages = [text for text in statements if "limit" in text]
    assert len(pages) == 2
    for page in pages:
        with queue.database.read() as t:
            steps = [row["detail"] for row in t.rows(f"explain query plan {page}")]
        assert len(steps) == 1, steps
        assert "USING INDEX" in steps[0]


def test_waiting_job_is_moved_into_another_class_and_runs_once(tiny: Path, queue: Queue) -> None:
    first, second = (queue.submit(ask(tiny, prompt=f"a {i}")) for i in range(2))
    moved = queue.set_priority(second.id, Priority.HIGH)
    assert (moved.position, moved.priority) == (1, Priority.HIGH)
    assert [job.id for job in queue.unfinished_jobs()] == [second.id, first.id]
    waiting = queue.database.client.list_queued_workflows()
    assert sorted(w.workflow_id.partition(".")[0] for w in waiting) == sorted([first.id, second.id])
    assert queue.set_priority(second.id, Priority.LOW).position == 2
    queue.cancel(first.id)
    with pytest.raises(JobConflict, match="only a waiting job"):
        queue.set_priority(first.id, Priority.HIGH)


def test_another_server_shows_a_moved_job_where_it_is_at_once(tiny: Path, queue: Queue) -> None:
    first, second = (queue.submit(ask(tiny, prompt=f"a {i}")) for i in range(2))
    with closing(Queue(queue.settings)) as another:
        for priority, place in ((Priority.HIGH, 1), (Priority.LOW, 2), (Priority.HIGH, 1)):
            queue.set_priority(second.id, priority)
            seen = another.get_job(second.id)
            assert (seen.priority, seen.position) == (priority, place)
        assert another.get_job(first.id).position == 2


def test_forecast_is_the_estimate_of_the_same_job_and_queues_nothing(
    tiny: Path, queue: Queue
) -> None:
    queue.submit(ask(tiny))
    forecast = queue.forecast(ask(tiny, prompt="another"))
    assert forecast.ahead == 1
    assert forecast.plan.shape.frames == 9
    assert len(queue.list_jobs()) == 1
    eta = queue.submit(ask(tiny, prompt="another")).eta
    assert eta
    assert forecast.eta.seconds == pytest.approx(eta.seconds, rel=0.01)


def test_forecast_of_what_torch_makes_counts_at_most_what_a_cpu_may_take(queue: Queue) -> None:
    with queue.database.transaction() as t:
        told = json.dumps(asdict(DeviceInfo("cpu", "a CPU", 10**11, "bfloat16", 4)))
        t.rows(
            "insert into filmlet_worker (id, token, home, device, speed, machine, beat)"
            " values ('w', 't', '', 'cpu', 1e9, :told, {now})",
            told=told,
        )
    own, large = (
        queue.forecast(build_request("a cat", model=model))
        for model in ("pocket", "ltxv-13b-0.9.8-distilled")
    )
    assert own.machine
    assert own.machine.dtype == "bfloat16"
    assert large.machine
    assert (large.machine.dtype, large.machine.bytes_per_value) == ("float32", 4)


def test_unknown_words_are_told_with_the_nearest_known_ones() -> None:
    pocket = REGISTRY["pocket"]
    words = check_prompt(pocket, "A candle, moving lefft!")
    assert words
    assert (words.tokens, words.max_tokens, words.is_cut) == (5, 128, False)
    assert words.unknown == {"candle": (), "lefft": ("left",)}
    long = check_prompt(pocket, "cat " * 200)
    assert long
    assert long.is_cut
    assert "sunset" in list_vocabulary(pocket)
    assert check_prompt(REGISTRY["ltxv-2b-0.9.8-distilled"], "a cat") is None, (
        "its files are not here"
    )


def test_plan_tells_what_would_be_made_and_makes_nothing(client: TestClient) -> None:
    body = {"prompt": "a candle", "size": "100x64", "seconds": 1}
    answer = client.post("/v1/videos/plan", json=body)
    assert answer.status_code == 200
    plan = answer.json()
    assert (plan["size"], plan["generated_size"], plan["frames"]) == ("100x64", "128x64", 24)
    assert plan["unknown_words"] == {"candle": []}
    assert {change["field"] for change in plan["changes"]} == {"generated_width"}
    assert plan["eta"]["low"] < plan["eta"]["seconds"] < plan["eta"]["high"]
    assert client.get("/v1/videos").json()["data"] == []
    refused = client.post("/v1/videos/plan", json=body | {"size": "9999x64"})
    assert refusal(refused)["param"] == "size"


def test_stopped_video_is_kept_and_can_be_taken_up_again(client: TestClient) -> None:
    job = client.post("/v1/videos", json=SMALL).json()["id"]
    stopped = client.post(f"/v1/videos/{job}/cancel").json()
    assert (stopped["status"], stopped["error"]["code"]) == ("failed", "cancelled")
    assert client.post(f"/v1/videos/{job}/retry").json()["status"] == "queued"
    again = client.post(f"/v1/videos/{job}/retry")
    assert refusal(again)["code"] == "job_conflict"


def test_browser_keeps_its_key_as_a_cookie_and_admins_alone_see_the_queue(
    home: Settings,
) -> None:
    database = Database(home)
    keys = ApiKeyStore(database, home)
    ann, root = keys.add("ann"), keys.add("root", admin=True)
    database.close()

    def enter(client: TestClient, secret: str) -> httpx2.Response:
        return client.post("/session", json={"key": secret})

    with TestClient(create_app(home)) as client:
        assert client.get("/session").json() == {
            "needs_key": True, "uses_keys": True, "name": None, "admin": False, "keeps": True,
        }  # fmt: skip
        assert enter(client, "sk-wrong").status_code == 401
        assert COOKIE not in client.cookies
        entered = enter(client, ann.secret)
        assert entered.json()["name"] == "ann"
        flags = entered.headers["set-cookie"].lower()
        assert "httponly" in flags
        assert "samesite=strict" in flags
        job = client.post("/v1/videos", json=SMALL).json()["id"]
        assert client.get(f"/v1/videos/{job}").status_code == 200
        assert refusal(client.get("/v1/queue"))["code"] == "permission_denied"
        moved = client.post(f"/v1/videos/{job}/priority", json={"priority": "high"})
        assert refusal(moved)["code"] == "permission_denied"
        wrong = {"authorization": "Bearer sk-wrong"}
        assert client.get(f"/v1/videos/{job}", headers=wrong).status_code == 401
        enter(client, root.secret)
        (entry,) = client.get("/v1/queue").json()["jobs"]
        assert (entry["owner"], entry["video"]["id"]) == ("ann", job)
        moved = client.post(f"/v1/videos/{job}/priority", json={"priority": "high"})
        assert moved.json()["priority"] == "high"
        client.delete("/session")
        assert client.get("/session").json()["needs_key"]


def test_on_loopback_without_keys_the_page_just_opens(client: TestClient) -> None:
    told = {"needs_key": False, "uses_keys": False, "name": None, "admin": True, "keeps": True}
    assert client.get("/session").json() == told
