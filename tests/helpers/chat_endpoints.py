"""A chat endpoint on loopback, with answers good and bad; no language model."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from filmlet.settings import Settings
from tests.helpers.queues import environment

KEY = "sk-chat-0123456789"
PARAGRAPH = "A ship with torn sails climbs a dark wave as rain crosses the frame from the left."


@dataclass
class ChatEndpoint:
    """What the endpoint answers, and what it was asked.

    message: of the completion; other fields of it in `choice`. body: sent instead of a completion.
    pause_s: before each byte of the body.
    """

    url: str = ""
    message: dict[str, Any] = field(default_factory=lambda: {"content": PARAGRAPH})
    choice: dict[str, Any] = field(default_factory=dict)
    body: bytes | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    pause_s: float = 0.0
    asked: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def say(self, content: str) -> None:
        self.message = {"content": content}

    def answer(self) -> bytes:
        if self.body is not None:
            return self.body
        choice = {"index": 0, "finish_reason": "stop", "message": self.message} | self.choice
        return json.dumps({"object": "chat.completion", "choices": [choice]}).encode()


@contextmanager
def serve_chat() -> Iterator[ChatEndpoint]:
    """Serve an endpoint in a thread until the block ends."""
    endpoint = ChatEndpoint()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent = json.loads(self.rfile.read(int(self.headers["content-length"])))
            headers = {name.lower(): value for name, value in self.headers.items()}
            endpoint.asked.append((self.path, headers, sent))
            body = endpoint.answer()
            self.send_response(endpoint.status)
            for name, value in endpoint.headers.items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(OSError):  # whoever asked has gone
                self.send_slowly(body) if endpoint.pause_s else self.wfile.write(body)

        def send_slowly(self, body: bytes) -> None:
            for byte in body:
                if endpoint.stopped.wait(endpoint.pause_s):
                    return
                self.wfile.write(bytes([byte]))

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        endpoint.url = f"http://127.0.0.1:{server.server_port}/v1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield endpoint
        endpoint.stopped.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def chat() -> Iterator[ChatEndpoint]:
    with serve_chat() as endpoint:
        yield endpoint


def chat_settings(endpoint: ChatEndpoint, **values: Any) -> Settings:
    """Settings whose enhancer is the endpoint."""
    named = {"enhance_url": endpoint.url, "enhance_model": "scribe", "enhance_key": KEY}
    return Settings(**named | values)


def chat_environment(endpoint: ChatEndpoint, home: Path) -> dict[str, str]:
    """The environment of a process with these settings."""
    return environment(chat_settings(endpoint, home=home))
