"""Webhooks: signed, told once a job is over, tried again, and to no private address unasked."""

import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import openai
import pytest

from filmlet.core.request import build_request
from filmlet.jobs import ApiKeyStore, Queue, SubmitOptions, webhooks
from filmlet.jobs.webhooks import WebhookTarget, post
from filmlet.settings import Settings
from tests.helpers.servers import Serve, wait_until

SECRET = "whsec_" + "c2VjcmV0IG9mIHRoZSB0ZXN0cw=="


@dataclass
class Listener:
    """A server that keeps what it is told; the first `failing` calls are answered 500."""

    failing: int = 0
    heard: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def listener() -> Iterator[Listener]:
    kept = Listener()

    class Hears(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            kept.heard.append((dict(self.headers), body))
            self.send_response(500 if len(kept.heard) <= kept.failing else 204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hears) as server:
        kept.url = f"http://127.0.0.1:{server.server_port}/told"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield kept
        server.shutdown()


@pytest.fixture
def told(tmp_path: Path, listener: Listener) -> Settings:
    return Settings(
        home=tmp_path / "home", worker="tells", webhook_url=listener.url, webhook_secret=SECRET,
        webhook_private=1,
    )  # fmt: skip


def unwrapped(call: tuple[dict[str, str], bytes]) -> object:
    """What OpenAI's own client makes of it; raises where the signature is wrong."""
    headers, body = call
    with openai.OpenAI(api_key="none") as client:
        return client.webhooks.unwrap(body, headers, secret=SECRET)


def test_end_of_a_clip_is_told_signed_and_once(
    serve: Serve, told: Settings, listener: Listener
) -> None:
    server = serve(told)
    server.wait_ready()
    job = server.job()
    wait_until(lambda: len(listener.heard) == 1)
    event = unwrapped(listener.heard[0])
    assert (event.type, event.data.id) == ("video.completed", job)
    headers, body = listener.heard[0]
    with pytest.raises(openai.InvalidWebhookSignatureError):
        unwrapped((headers, body.replace(b"completed", b"failed")))
    assert server.wait_over(server.job(prompt="another"))["status"] == "completed"
    wait_until(lambda: len(listener.heard) == 2)
    assert json.loads(listener.heard[1][1])["id"] != json.loads(body)["id"]


def test_cancelled_job_is_told_as_failed_and_a_deaf_listener_is_told_again(
    told: Settings, listener: Listener
) -> None:
    queue = Queue(told)
    job = queue.submit(build_request("a ball")).id
    queue.cancel(job)
    waiting = queue.database.client.list_workflows(queue_name=webhooks.QUEUE)
    assert [w.status for w in waiting] == ["ENQUEUED"]
    listener.failing = 2
    for attempt in range(3):
        heard = webhooks.deliver(queue.database, told, job, attempt)
        assert heard == (attempt == 2)
    later = queue.database.client.list_workflows(queue_name=webhooks.QUEUE, status="DELAYED")
    assert len(later) == 2  # the attempts after the two that failed
    assert {unwrapped(call).type for call in listener.heard} == {"video.failed"}
    assert len({headers["webhook-id"] for headers, _ in listener.heard}) == 1
    queue.close()


def test_listener_that_stays_deaf_is_given_up_and_a_deleted_job_is_not_told(
    told: Settings, listener: Listener
) -> None:
    queue = Queue(told)
    job = queue.submit(build_request("a ball")).id
    queue.cancel(job)
    listener.failing = 99
    assert not webhooks.deliver(queue.database, told, job, len(webhooks.RETRY_DELAYS_S))
    assert not queue.database.client.list_workflows(queue_name=webhooks.QUEUE, status="DELAYED")
    queue.delete(job)
    assert not webhooks.deliver(queue.database, told, job, 0)
    assert len(listener.heard) == 1
    queue.close()


def test_keys_own_webhook_is_told_with_its_own_secret(told: Settings, listener: Listener) -> None:
    settings = replace(told, webhook_url=None)
    queue = Queue(settings)
    granted = ApiKeyStore(queue.database, settings).add("ann", webhook=listener.url)
    job = queue.submit(build_request("a ball"), SubmitOptions(owner=granted.key.id)).id
    queue.cancel(job)
    assert webhooks.deliver(queue.database, settings, job, 0)
    headers, body = listener.heard[0]
    with openai.OpenAI(api_key="none") as client:
        client.webhooks.unwrap(body, headers, secret=granted.webhook_secret)
    queue.close()


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/", "http://localhost:9/", "http://[::1]:9/", "http://10.0.0.1/",
            "http://169.254.169.254/latest", "http://[::ffff:127.0.0.1]:9/"],
)  # fmt: skip
def test_private_addresses_are_not_told(url: str) -> None:
    with pytest.raises(ValueError, match="private network"):
        post(WebhookTarget(url, SECRET), "evt_1", b"{}", allow_private=False)
