"""Keys and their limits: whose a job is, who may ask, and how much."""

import hashlib
import json
from pathlib import Path
from subprocess import CompletedProcess

import httpx2
from fastapi.testclient import TestClient

from filmlet.api import create_app
from filmlet.jobs import ApiKeyStore, Limits
from filmlet.jobs.database import Database
from filmlet.settings import Settings
from tests.helpers.forked_processes import run_filmlet
from tests.helpers.queues import environment
from tests.helpers.servers import SMALL, Serve, refusal, wait_until


def test_jobs_belong_to_their_key(home: Settings) -> None:
    database = Database(home)
    keys = ApiKeyStore(database, home)
    ann, bob, root = keys.add("ann"), keys.add("bob"), keys.add("root", admin=True)
    assert ann.secret not in str(database.url)
    with database.read() as t:
        stored = t.rows("select hash from filmlet_key where name = 'ann'")[0]["hash"]
    assert stored == hashlib.sha256(ann.secret.encode()).hexdigest()
    with TestClient(create_app(home)) as client:

        def ask(method: str, path: str, secret: str | None, **rest: object) -> httpx2.Response:
            headers = {"authorization": f"Bearer {secret}"} if secret else {}
            return client.request(method, f"/v1/videos{path}", headers=headers, **rest)

        for wrong in (None, "sk-wrong", ann.secret[:-1]):
            answer = ask("GET", "", wrong)
            assert answer.status_code == 401
            assert refusal(answer)["type"] == "authentication_error"
        job = ask("POST", "", ann.secret, json=SMALL).json()["id"]
        for method, path in (
            ("GET", ""), ("GET", "/content"), ("GET", "/events"), ("GET", "/preview"),
            ("DELETE", ""), ("POST", "/refine"),
        ):  # fmt: skip
            assert ask(method, f"/{job}{path}", bob.secret).status_code == 404
        remix = ask("POST", f"/{job}/remix", bob.secret, json={"prompt": "b"})
        assert remix.status_code == 404
        assert ask("GET", "", bob.secret).json()["data"] == []
        assert ask("GET", f"?after={job}", bob.secret).status_code == 404
        assert [v["id"] for v in ask("GET", "", root.secret).json()["data"]] == [job]
        assert ask("GET", f"/{job}", ann.secret).status_code == 200
        first = SMALL | {"priority": "high"}
        assert refusal(ask("POST", "", bob.secret, json=first))["param"] == "priority"
        assert ask("POST", "", root.secret, json=first).json()["position"] == 1
        keys.remove("ann")
        wait_until(lambda: ask("GET", f"/{job}", ann.secret).status_code == 401, 5)
    database.close()


def test_removing_the_last_key_does_not_open_a_server_that_others_can_reach(
    home: Settings,
) -> None:
    with TestClient(create_app(home, demands_keys=True)) as client:
        assert client.get("/v1/videos").status_code == 401
        assert client.post("/v1/videos", json=SMALL).status_code == 401
        assert client.get("/health").status_code == 200


def test_limits_of_a_key_answer_429_and_say_when_to_come_back(home: Settings) -> None:
    database = Database(home)
    keys = ApiKeyStore(database, home)
    granted = {
        "active": keys.add("active", limits=Limits(1, 100, 0)),
        "minute": keys.add("minute", limits=Limits(100, 2, 0)),
        "day": keys.add("day", limits=Limits(100, 100, 1.0)),
    }
    with TestClient(create_app(home)) as client:

        def ask(name: str) -> httpx2.Response:
            headers = {"authorization": f"Bearer {granted[name].secret}"}
            answer: httpx2.Response = client.post("/v1/videos", json=SMALL, headers=headers)
            return answer

        for name, allowed in (("active", 1), ("minute", 2), ("day", 2)):
            for _ in range(allowed):
                assert ask(name).status_code == 200
            answer = ask(name)
            assert answer.status_code == 429, name
            assert int(answer.headers["retry-after"]) >= 1
            assert refusal(answer)["type"] == "rate_limit_error"
    database.close()


def test_server_that_others_can_reach_wants_keys(
    tmp_path: Path, home: Settings, serve: Serve
) -> None:
    def filmlet(*words: str) -> CompletedProcess[str]:
        return run_filmlet(*words, cwd=tmp_path, **environment(home))

    everywhere = ("--host", "0.0.0.0", "--no-worker")
    refused = filmlet("serve", *everywhere, "--port", "0")
    assert refused.returncode == 1
    assert refused.stderr.strip().endswith("[needs_key]")
    secret = json.loads(filmlet("keys", "add", "ann", "--json").stdout)["secret"]
    assert secret.startswith("sk-")
    server = serve(home, *everywhere)
    assert server.client.get("/v1/videos").status_code == 401
    known = {"authorization": f"Bearer {secret}"}
    assert server.client.get("/v1/videos", headers=known).status_code == 200
