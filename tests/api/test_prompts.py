"""Prompts that are enhanced: by themselves, and before a clip is queued."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import pytest
from fastapi.testclient import TestClient

from filmlet.api import create_app
from filmlet.jobs import ApiKeyStore, Limits
from filmlet.jobs.database import Database
from filmlet.settings import Settings
from tests.helpers.chat_endpoints import KEY, PARAGRAPH, ChatEndpoint, chat, chat_settings
from tests.helpers.servers import SMALL, Running, refusal

__all__ = ["chat"]
MODEL = "ltxv-2b-0.9.8-distilled"
LARGE = {"prompt": "a ship in a storm", "model": MODEL}
CHANGE = {
    "field": "prompt",
    "requested": "a kitty jumps",
    "effective": "a kitty bouncing",
    "reason": "enhanced by the vocabulary of pocket",
}


@contextmanager
def serve_app(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def llm(chat: ChatEndpoint, tmp_path: Path) -> Iterator[TestClient]:
    """The app with a chat endpoint, without a worker."""
    with serve_app(chat_settings(chat, home=tmp_path / "home", max_per_minute=1000)) as client:
        yield client


def test_prompt_is_enhanced_by_rule(client: TestClient) -> None:
    answer = client.post("/v1/prompts/enhance", json={"prompt": "a kitty jumps", "model": "pocket"})
    assert answer.status_code == 200
    assert answer.json() == {
        "prompt": "a kitty jumps",
        "enhanced_prompt": "a kitty bouncing",
        "source": "the vocabulary of pocket",
    }


def test_prompt_is_enhanced_by_a_language_model(llm: TestClient, chat: ChatEndpoint) -> None:
    answer = llm.post("/v1/prompts/enhance", json=LARGE)
    assert answer.json() == {
        "prompt": LARGE["prompt"], "enhanced_prompt": PARAGRAPH, "source": "scribe",
    }  # fmt: skip
    assert len(chat.asked) == 1


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"prompt": ""}, "invalid_prompt"),
        ({"prompt": "qqqq"}, "invalid_prompt"),
        ({"prompt": "x " * 3000}, "invalid_prompt"),
        ({"prompt": "a cat", "model": "no-such-model"}, "unknown_model"),
        ({"prompt": "a cat", "model": "/etc"}, "unknown_model"),
        ({"prompt": "a cat", "url": "http://127.0.0.1/"}, "unknown_parameter"),
        ({"model": "pocket"}, "invalid_value"),
    ],
)
def test_request_that_is_wrong_is_refused(
    llm: TestClient, chat: ChatEndpoint, fields: dict[str, str], code: str
) -> None:
    answer = llm.post("/v1/prompts/enhance", json=fields)
    assert (answer.status_code, refusal(answer)["code"]) == (400, code)
    assert not chat.asked


@pytest.mark.parametrize("path", ["/v1/prompts/enhance", "/v1/videos", "/v1/videos/plan"])
@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"status": 500}, 502, "enhancement_failed"),
        ({"status": 302, "headers": {"location": "/"}}, 502, "enhancement_failed"),
        ({"body": b"<html>"}, 502, "enhancement_failed"),
        ({"message": {"content": ""}}, 502, "enhancement_failed"),
        ({"pause_s": 0.2}, 503, "enhancement_unavailable"),
    ],
    ids=["500", "redirect", "html", "empty", "slow"],
)
def test_failure_is_told_before_anything_is_queued(
    chat: ChatEndpoint, tmp_path: Path, path: str, fields: dict[str, Any], status: int, code: str
) -> None:
    for name, value in fields.items():
        setattr(chat, name, value)
    settings = chat_settings(chat, home=tmp_path / "home", enhance_timeout_s=1.0)
    with serve_app(settings) as client:
        body = LARGE if path.endswith("enhance") else LARGE | {"enhance_prompt": True}
        answer = client.post(path, json=body)
        assert client.get("/v1/videos").json()["data"] == []
    assert answer.status_code == status
    error = refusal(answer)
    assert (error["code"], error["type"]) == (code, "server_error")
    assert error["message"].endswith("The prompt can be used as it is.")
    assert ("retry-after" in answer.headers) == (status == 503)
    for secret in (chat.url, "127.0.0.1", KEY):
        assert secret not in answer.text


def test_what_the_network_said_is_for_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(
        home=tmp_path / "home", enhance_url="http://127.0.0.1:9/v1", enhance_model="scribe"
    )
    with serve_app(settings) as client:
        answer = client.post("/v1/prompts/enhance", json=LARGE)
    assert answer.status_code == 503
    assert refusal(answer)["message"] == (
        "The prompt enhancer cannot be reached. The prompt can be used as it is."
    )
    assert "ConnectError" in caplog.text


def test_server_without_an_enhancer_says_so(client: TestClient) -> None:
    for path, body in (
        ("/v1/prompts/enhance", LARGE),
        ("/v1/videos", LARGE | {"enhance_prompt": True}),
    ):
        answer = client.post(path, json=body)
        assert answer.status_code == 503
        assert refusal(answer)["message"] == (
            f"Nothing enhances prompts for {MODEL} here. The prompt can be used as it is."
        )
    assert client.get("/v1/videos").json()["data"] == []


@pytest.mark.parametrize("kind", ["json", "data"])
def test_clip_keeps_what_was_asked_and_what_is_used(client: TestClient, kind: str) -> None:
    fields = SMALL | {"prompt": "a kitty jumps", "enhance_prompt": True}
    fields |= {"extra_prompts": ["a puppy hops"], "frames": 18}
    if kind == "data":
        fields = {name: str(v) if not isinstance(v, list) else v for name, v in fields.items()}
    video = client.post("/v1/videos", **{kind: fields}).json()
    assert video["prompt"] == video["requested"]["prompt"] == "a kitty jumps"
    assert video["requested"]["extra_prompts"] == ["a puppy hops"]
    assert [prompt["text"] for prompt in video["requested"]["enhanced_prompts"]] == [
        "a kitty bouncing", "a puppy bouncing",
    ]  # fmt: skip
    plan = client.post("/v1/videos/plan", **{kind: fields}).json()
    assert CHANGE in plan["changes"]
    assert plan["unknown_words"] == {}


@pytest.mark.parametrize("sent", [False, "false", None])
def test_prompt_is_enhanced_only_where_that_is_asked(client: TestClient, sent: object) -> None:
    fields = SMALL | {"prompt": "a kitty jumps", "enhance_prompt": sent}
    video = client.post("/v1/videos", json=fields).json()
    assert "enhanced_prompts" not in video["requested"]
    assert client.post("/v1/videos", json=SMALL | {"enhance_prompt": 1}).status_code == 400


def test_nothing_is_asked_for_a_clip_that_cannot_be(llm: TestClient, chat: ChatEndpoint) -> None:
    for fields in ({"seconds": 1, "frames": 9}, {"extra_prompts": [""]}, {"model": "nobody"}):
        answer = llm.post("/v1/videos", json=LARGE | {"enhance_prompt": True} | fields)
        assert answer.status_code == 400, fields
    assert not chat.asked


def test_remix_replaces_the_prompt_alone(client: TestClient) -> None:
    fields = SMALL | {"prompt": "a kitty jumps", "extra_prompts": ["a puppy hops"], "frames": 18}
    source = client.post("/v1/videos", json=fields | {"enhance_prompt": True}).json()
    path = f"/v1/videos/{source['id']}/remix"
    plain = client.post(path, json={"prompt": "a foal leaps"}).json()["requested"]
    assert plain["prompt"] == "a foal leaps"
    assert [p["text"] for p in plain["enhanced_prompts"]] == ["a foal leaps", "a puppy bouncing"]
    better = client.post(path, json={"prompt": "a foal leaps", "enhance_prompt": True}).json()
    assert better["requested"]["enhanced_prompts"][0]["text"] == "a pony bouncing"
    again = client.post("/v1/videos", json=SMALL | {"prompt": "a cat"}).json()
    remix = client.post(f"/v1/videos/{again['id']}/remix", json={"prompt": "a dog"}).json()
    assert "enhanced_prompts" not in remix["requested"]


def test_repeated_request_returns_its_job_in_whatever_words(
    llm: TestClient, chat: ChatEndpoint
) -> None:
    headers = {"Idempotency-Key": "once"}
    body = LARGE | {"enhance_prompt": True, "seed": 1}
    first = llm.post("/v1/videos", json=body, headers=headers).json()
    chat.say("Another paragraph of the same ship.")
    assert llm.post("/v1/videos", json=body, headers=headers).json()["id"] == first["id"]
    plain = llm.post("/v1/videos", json=body | {"enhance_prompt": False}, headers=headers)
    assert refusal(plain)["code"] == "idempotency_key_reused"


def test_enhanced_prompts_count_as_submissions(chat: ChatEndpoint, tmp_path: Path) -> None:
    settings = chat_settings(chat, home=tmp_path / "home", max_per_minute=3)
    with serve_app(settings) as client:
        answers = [client.post("/v1/prompts/enhance", json=LARGE) for _ in range(4)]
        queued = client.post("/v1/videos", json=SMALL)
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert "retry-after" in answers[-1].headers
    assert queued.status_code == 429
    assert len(chat.asked) == 3


def test_limit_is_that_of_the_callers_key(chat: ChatEndpoint, tmp_path: Path) -> None:
    settings = chat_settings(chat, home=tmp_path / "home")
    database = Database(settings)
    key = ApiKeyStore(database, settings).add("ann", limits=Limits(9, 1, 0)).secret
    database.close()
    with serve_app(settings) as client:
        assert client.post("/v1/prompts/enhance", json=LARGE).status_code == 401
        bearer = {"authorization": f"Bearer {key}"}
        answers = [client.post("/v1/prompts/enhance", json=LARGE, headers=bearer) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 429]
    assert len(chat.asked) == 1


def test_setting_of_the_server_shows_nowhere(llm: TestClient, chat: ChatEndpoint) -> None:
    pages = [llm.get(path).text for path in ("/openapi.json", "/metrics", "/session", "/v1/models")]
    assert not [page for page in pages if KEY in page or chat.url in page]


@pytest.mark.server
def test_file_tells_both_prompts(shared_server: Running, tmp_path: Path) -> None:
    job = shared_server.job(prompt="a kitty jumps", enhance_prompt=True)
    video = shared_server.wait_over(job)
    assert video["status"] == "completed"
    effective: Any = video["effective"]
    assert effective["prompt"] == "a kitty bouncing"
    assert CHANGE in effective["changes"]
    path = tmp_path / "clip.mp4"
    path.write_bytes(shared_server.client.get(f"/v1/videos/{job}/content").content)
    with av.open(str(path)) as file:
        assert file.metadata["prompt"] == "a kitty bouncing"
        assert CHANGE in json.loads(file.metadata["effective"])["changes"]

    extension = shared_server.client.post(
        "/v1/videos/extensions",
        json={"video": {"id": job}, "prompt": "a puppy hops", "frames": 8, "enhance_prompt": True},
    )
    assert extension.status_code == 200, extension.text
    (enhanced,) = extension.json()["requested"]["enhanced_prompts"]
    assert enhanced["text"] == "a puppy bouncing"
