"""Methods of HTTP at a real server, with its page: HEAD is GET's head, others are named."""

import json

import httpx2
import pytest

from tests.helpers.servers import LONG, Running, refusal

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def done(shared_server: Running) -> str:
    job = shared_server.job()
    assert shared_server.wait_over(job)["status"] == "completed"
    return job


@pytest.mark.parametrize(
    "path",
    [
        "/health", "/ready", "/metrics", "/session", "/v1/models", "/v1/models/pocket", "/v1/queue",
        "/v1/videos", "/v1/videos/{id}", "/v1/videos/{id}/content", "/v1/videos/{id}/events",
        "/v1/videos/{id}/content?variant=thumbnail", "/v1/videos/clip_no", "/openapi.json", "/docs",
        "/ui/app.js", "/",
    ],
)  # fmt: skip
def test_head_is_the_head_of_get(shared_server: Running, done: str, path: str) -> None:
    path = path.format(id=done)
    head, got = shared_server.client.head(path), shared_server.client.get(path)
    assert head.status_code == got.status_code
    assert head.content == b""
    changing = {"date", "content-length"} if path == "/metrics" else {"date"}
    differing = dict(head.headers).items() ^ dict(got.headers).items()
    assert {name for name, _ in differing} <= changing | {"transfer-encoding"}


def test_head_of_a_range_has_its_length(shared_server: Running, done: str) -> None:
    head = shared_server.client.head(f"/v1/videos/{done}/content", headers={"range": "bytes=2-11"})
    assert (head.status_code, head.headers["content-length"]) == (206, "10")
    assert head.headers["content-range"].startswith("bytes 2-11/")


def test_head_of_a_stream_does_not_wait_for_it(shared_server: Running) -> None:
    job = shared_server.job(**LONG)
    for path in (f"/v1/videos/{job}/events", f"/v1/videos/{job}/content?stream=true"):
        assert shared_server.client.head(path).status_code == 200
    assert shared_server.video(job)["status"] != "completed"
    shared_server.client.post(f"/v1/videos/{job}/cancel")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/health", "GET, HEAD"),
        ("/session", "DELETE, GET, HEAD, POST"),
        ("/v1/models", "GET, HEAD"),
        ("/v1/videos", "GET, HEAD, POST"),
        ("/v1/videos/clip_0/cancel", "POST"),
        ("/v1/videos/clip_0", "DELETE, GET, HEAD"),
        ("/openapi.json", "GET, HEAD"),
        ("/ui/app.js", "GET, HEAD"),
        ("/", "GET, HEAD"),
        ("/gradio_api/upload", "POST"),
    ],
)
@pytest.mark.parametrize("method", ["TRACE", "PUT", "PROPFIND"])
def test_another_method_is_refused_with_those_there_are(
    shared_server: Running, path: str, allowed: str, method: str
) -> None:
    answer = shared_server.client.request(method, path)
    assert answer.status_code == 405
    assert refusal(answer)["code"] == "method_not_allowed"
    assert answer.headers["allow"] == allowed


def test_options_name_the_methods(shared_server: Running) -> None:
    answer = shared_server.client.options("/v1/videos")
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["allow"] == "GET, HEAD, POST"
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "TRACE", "OPTIONS"])
def test_what_is_not_there_is_404_by_every_method(shared_server: Running, method: str) -> None:
    answer = shared_server.client.request(method, "/v1/nothing")
    assert answer.status_code == 404
    if method != "HEAD":
        assert refusal(answer)["code"] == "not_found"


def test_number_of_many_digits_in_a_range_is_no_mistake_of_the_server(
    shared_server: Running, done: str
) -> None:
    for path in (f"/v1/videos/{done}/content", "/ui/app.js", "/static/img/logo.svg", "/assets/a"):
        for text in ("bytes={}-", "bytes=-{}", "bytes=0-{}", "bytes={0}-{0}"):
            header = text.format("9" * 5000)
            answer = shared_server.client.get(path, headers={"range": header})
            assert answer.status_code < 500, (path, text)


@pytest.mark.parametrize(
    "path", ["/v1/videos", "/v1/videos/edits", "/gradio_api/upload", "/session"]
)
def test_form_that_is_too_large_is_refused_in_the_envelope(
    shared_server: Running, path: str
) -> None:
    files = {"input_reference": bytes(120 * 2**20)}
    try:
        answer = shared_server.client.post(path, data={"prompt": "a"}, files=files)
    except httpx2.WriteError:
        pytest.skip("the server hung up before the client had sent all")
    assert answer.status_code == 413
    assert json.loads(answer.content)["error"]["code"] == "too_large"
