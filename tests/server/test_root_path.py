"""One form of a path, however a proxy writes it: the rules, and what strangers try with them."""

import asyncio
import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from filmlet.api import create_app
from filmlet.api.anonymous_users import Visitors
from filmlet.api.root_path import cookie_path, root_path, route_path
from filmlet.server.forwarded import ForwardedHeaders
from filmlet.server.root_path import RootPathMiddleware
from filmlet.settings import OWN_SEGMENTS, Settings
from filmlet.ui.routes import ROUTES
from tests.helpers.servers import Running, Serve, add_key, make_servers

PROXY, STRANGER = "10.0.0.1", "192.0.2.1"
# What a proxy must not send; each stays out of every answer.
HOSTILE = [
    "//evil.example", "/films//evil.example", "javascript:alert(1)", "/a'b", '/a"><script>', "/..",
    "/films/../v1", "/./films", "/%2e%2e", "/films?a=b", "/films#a", "/films;Domain=evil.example",
    "/films, /more", "\\evil", "films", "https://evil.example/films", "/f ilms", "/\u00e9",
    "/" + "x" * 200, "/x" * 5000,
]  # fmt: skip
# Ways to write the list of videos below /films, and what is none of them.
SAME = ["/films/v1/videos", "/v1/videos", "/%66ilms/v1/videos", "/films%2Fv1/videos"]
OTHERS = [
    "/films//v1/videos", "//v1/videos", "//films/v1/videos", "/filmsX/v1/videos",
    "/FILMS/v1/videos", "/films/films/v1/videos", "/films/./v1/videos", "/films/../v1/videos",
    "/films/..;/v1/videos", "/films/%2e%2e/v1/videos", "/films/x/../v1/videos",
    "/films;a=b/v1/videos", "/films\\v1\\videos", "/films/%2Fv1/videos", "/films/v1//videos",
    "/films/%5cv1/videos", "/films/v1/videos/%2e",
]  # fmt: skip
LIST = b'"object":"list"'


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with what an app behind the middleware sees of a path."""
    del receive
    seen = {
        "route": route_path(scope),
        "root": root_path(scope),
        "cookie": cookie_path(scope),
        "raw": scope["raw_path"].decode(),
    }
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(seen).encode()})


def ask(
    setting: str | None, path: str, *prefixes: str, client: str = PROXY, method: str = "GET"
) -> tuple[int, dict[str, Any], dict[bytes, bytes]]:
    """Return status, JSON and headers of the echo behind a trusted proxy's address."""
    app = ForwardedHeaders(RootPathMiddleware(echo, setting), PROXY)
    headers = [(b"x-forwarded-prefix", prefix.encode("latin-1")) for prefix in prefixes]
    scope = {
        "type": "http", "http_version": "1.1", "method": method, "path": path, "root_path": "",
        "raw_path": path.encode(), "query_string": b"a=b", "headers": headers, "scheme": "http",
        "client": (client, 1), "server": ("films", 80),
    }  # fmt: skip
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    body = sent[1].get("body", b"")
    return sent[0]["status"], json.loads(body or b"{}"), dict(sent[0]["headers"])


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/films/v1/videos", "/v1/videos"), ("/v1/videos", "/v1/videos"), ("/films/", "/"),
        ("/", "/"), ("/filmsX/v1", "/filmsX/v1"), ("/films//v1", "//v1"),
        ("//films/v1", "//films/v1"), ("/films/films/v1", "/films/v1"),
        ("/films/../v1", "/../v1"), ("/Films/v1", "/Films/v1"),
        ("/a/films/v1", "/a/films/v1"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("setting", ["/films", "/films/"])
def test_setting_holds_whether_the_proxy_removes_the_path_or_not(
    setting: str, path: str, route: str
) -> None:
    status, seen, headers = ask(setting, path)
    assert (status, seen["route"], seen["root"]) == (200, route, "/films")
    assert seen["cookie"] == "/films"
    assert seen["raw"] == f"/films{route}"
    assert b"vary" not in headers


def test_header_tells_what_the_proxy_has_removed() -> None:
    for prefix in ("/films", "/films/"):
        status, seen, headers = ask(None, "/films/v1", prefix)
        assert (status, seen["route"], seen["root"]) == (200, "/films/v1", "/films")
        assert headers[b"vary"] == b"x-forwarded-prefix"
    assert ask(None, "/videos", "/v1")[1]["route"] == "/videos"
    for prefix in ("", "/"):
        _, seen, _ = ask(None, "/films/v1", prefix)
        assert (seen["route"], seen["root"], seen["cookie"]) == ("/films/v1", "", "/")


def test_header_is_believed_from_trusted_proxies_and_without_the_setting_only() -> None:
    plain = ask(None, "/v1/videos", client=STRANGER)
    assert plain[1] == {"route": "/v1/videos", "root": "", "cookie": "/", "raw": "/v1/videos"}
    for prefix in ("/evil", *HOSTILE):
        assert ask(None, "/v1/videos", prefix, client=STRANGER) == plain
        assert ask("/", "/v1/videos", prefix) == plain
        assert ask("/films", "/v1/videos", prefix) == ask("/films", "/v1/videos")


@pytest.mark.parametrize("prefix", HOSTILE, ids=lambda text: text[:20])
def test_hostile_header_of_a_trusted_proxy_is_refused(prefix: str) -> None:
    status, body, _ = ask(None, "/", prefix)
    assert (status, body["error"]["code"]) == (400, "bad_prefix")
    assert body == ask(None, "/", "\0")[1], "the answer does not depend on it"


def test_several_headers_are_refused() -> None:
    assert ask(None, "/", "/films", "/more")[0] == 400
    assert ask(None, "/", "/films", "/films")[0] == 400


def test_path_without_its_slash_leads_to_the_page() -> None:
    for method in ("GET", "POST"):
        status, _, headers = ask("/films", "/films", method=method)
        assert (status, headers[b"location"]) == (307, b"/films/?a=b")


def test_paths_of_the_server_are_no_root_path(server: Running) -> None:
    own = {route.path.split("/")[1] for route in ROUTES} - {""}
    own |= {path.split("/")[1] for path in httpx2.get(f"{server.url}/openapi.json").json()["paths"]}
    own |= {"ui", "docs", "static-offline-docs", "openapi.json"}
    assert own == OWN_SEGMENTS


@pytest.mark.parametrize(("setting", "path"), [("/films", "/films"), (None, "/")])
def test_cookie_of_a_visitor_is_for_the_path(
    home: Settings, setting: str | None, path: str
) -> None:
    app = RootPathMiddleware(create_app(home, visitors=Visitors()), setting)
    with TestClient(app) as client:
        cookie = client.get("/films/health" if setting else "/health").headers["set-cookie"]
    assert f"; Path={path};" in cookie


@pytest.fixture(scope="module")
def secret(settings: Settings) -> str:
    return add_key(settings)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(home=tmp_path_factory.mktemp("below"), worker="none", root_path="/films")


@pytest.fixture(scope="module")
def server(settings: Settings, secret: str) -> Iterator[Running]:
    del secret
    starts = make_servers()
    yield next(starts)(settings, "--no-worker")
    next(starts, None)


def send_target(server: Running, target: str, *lines: str, method: str = "GET") -> bytes:
    """The answer to a target as it is written here: clients would tidy it up."""
    url = httpx2.URL(server.url)
    head = [f"{method} {target} HTTP/1.1", "Host: localhost", "Connection: close", *lines]
    with socket.create_connection((url.host, url.port), timeout=20) as connection:
        connection.sendall("\r\n".join(head).encode("latin-1") + b"\r\n\r\n")
        return b"".join(iter(lambda: connection.recv(65536), b""))


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def test_no_way_to_write_a_path_passes_by_the_key(server: Running, secret: str) -> None:
    for target in SAME:
        assert status_of(send_target(server, target)) == 401, target
        known = send_target(server, target, f"Authorization: Bearer {secret}")
        assert status_of(known) == 200, target
        assert LIST in known
    for target in OTHERS:
        for header in ("X-Forwarded-Prefix: /v1", "X-Forwarded-Prefix: /films/v1", "X-A: b"):
            answer = send_target(server, target, header)
            assert status_of(answer) in (401, 404), (target, header)
            assert LIST not in answer


def test_limits_methods_and_origins_are_those_of_the_path_below(server: Running) -> None:
    for root in ("", "/films"):
        post = {"method": "POST"}
        answer = send_target(server, f"{root}/session", "Content-Length: 5000", **post)
        assert status_of(answer) == 413
        answer = send_target(server, f"{root}/gradio_api/queue/join", "Content-Length: 0", **post)
        assert status_of(answer) == 401
        answer = send_target(server, f"{root}/session", "Origin: http://evil.example", **post)
        assert status_of(answer) == 403
        answer = send_target(server, f"{root}/health", method="DELETE")
        assert status_of(answer) == 405
        assert b"allow: GET, HEAD" in answer
        answer = send_target(server, f"{root}/health", method="HEAD")
        assert status_of(answer) == 200
        for closed in ("/login", "/gradio_api/heartbeat/a", "/gradio_api/proxy=http://a"):
            assert status_of(send_target(server, root + closed)) == 404


def test_server_without_the_setting_shows_no_prefix_of_a_stranger(
    home: Settings, serve: Serve
) -> None:
    settings = replace(home, forwarded_allow_ips=STRANGER)
    server = serve(settings, "--no-worker", "--no-keys")
    for path in ("/", "/config", "/docs", "/openapi.json"):
        plain = send_target(server, path).partition(b"\r\n\r\n")[2]
        for prefix in ("/evil", *HOSTILE[:7]):
            answer = send_target(server, path, f"X-Forwarded-Prefix: {prefix}")
            assert answer.partition(b"\r\n\r\n")[2] == plain, (path, prefix)
            assert b"forwarded" not in answer.lower().partition(b"\r\n\r\n")[0]
    assert b"servers" not in send_target(server, "/openapi.json")
