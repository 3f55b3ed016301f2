"""Attacks on the page's server: what Gradio would answer to strangers, what each caller gets."""

import asyncio
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
import httpx2
import pytest
from fastapi import FastAPI
from PIL import Image
from starlette.routing import Mount

from filmlet import ui
from filmlet.api import create_app
from filmlet.api.anonymous_users import Visitors
from filmlet.jobs import ApiKeyStore
from filmlet.jobs.database import Database
from filmlet.settings import Settings
from filmlet.ui import blocks, callers, files, gate
from filmlet.ui.gate import GradioGate
from filmlet.ui.routes import ROUTES, RouteAccess
from tests.helpers.fake_zerogpu import serve_app
from tests.helpers.servers import Running, make_servers, wait_until

# Gradio makes an event loop of its own where none runs, and leaves it open.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

# Gradio's routes that are closed. One that is neither here nor in ROUTES is new: decide which.
CLOSED = {
    "/config/", "/login", "/login/", "/logout", "/manifest.json", "/monitoring", "/robots.txt",
    "/monitoring/summary", "/monitoring/{key}", "/openapi.json", "/pwa_icon", "/pwa_icon/{size}",
    "/svelte/{path:path}", "/gradio_api/api/{api_name}/", "/gradio_api/app_id",
    "/gradio_api/app_id/", "/gradio_api/call/v2/{api_name}/", "/gradio_api/call/{api_name}/",
    "/gradio_api/component_server", "/gradio_api/component_server/",
    "/gradio_api/custom_component/{id}/{environment}/{type}/{file_name}", "/gradio_api/deep_link",
    "/gradio_api/dev/reload", "/gradio_api/file/{path:path}",
    "/gradio_api/heartbeat/{session_hash}", "/gradio_api/info/", "/gradio_api/login_check",
    "/gradio_api/login_check/", "/gradio_api/openapi.json", "/gradio_api/process_recording",
    "/gradio_api/proxy={url_path:path}", "/gradio_api/queue/status", "/gradio_api/reset/",
    "/gradio_api/run/{api_name}/", "/gradio_api/runs", "/gradio_api/runs/",
    "/gradio_api/stream/{event_id}", "/gradio_api/stream/{event_id}/close",
    "/gradio_api/stream/{session_hash}/{run}/{component_id}/playlist-file",
    "/gradio_api/stream/{session_hash}/{run}/{component_id}/playlist.m3u8",
    "/gradio_api/stream/{session_hash}/{run}/{component_id}/{segment_id}.{ext}",
    "/gradio_api/theme.css", "/gradio_api/token", "/gradio_api/token/",
    "/gradio_api/undo-vibe-edit", "/gradio_api/undo-vibe-edit/", "/gradio_api/upload_progress",
    "/gradio_api/user", "/gradio_api/user/", "/gradio_api/vibe-code", "/gradio_api/vibe-code/",
    "/gradio_api/vibe-edit", "/gradio_api/vibe-edit/", "/gradio_api/vibe-starter-queries",
    "/gradio_api/vibe-starter-queries/",
}  # fmt: skip
REFUSED = "must be uploaded to this server first"
META = {"_type": "gradio.FileData"}


@dataclass
class Server:
    """A server of the page with what its functions are called by. ann, ben: two callers of it."""

    url: str
    ann: httpx2.Client
    ben: httpx2.Client
    functions: dict[str, dict[str, Any]] = field(default_factory=dict)
    values: dict[int, tuple[str, Any]] = field(default_factory=dict)

    def read_config(self) -> None:
        config = httpx2.get(f"{self.url}/config").json()
        self.functions = {f["api_name"]: f for f in config["dependencies"]}
        self.values = {c["id"]: (c["type"], c["props"].get("value")) for c in config["components"]}

    def event(self, name: str, sent: Any = None, kind: str = "video") -> dict[str, Any]:
        """The body of a call with a file in it."""
        inputs = [self.values[id] for id in self.functions[name]["inputs"]]
        data = [sent if of == kind else value for of, value in inputs]
        return {"data": data, "fn_index": self.functions[name]["id"]}

    def upload(self, who: httpx2.Client, name: str = "blue.png", content: bytes = b"blue") -> str:
        answer = who.post("/gradio_api/upload", files={"files": (name, content)})
        assert answer.status_code == 200, answer.text
        return str(answer.json()[0])


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real process that demands keys; ann and ben have one each."""
    settings = Settings(home=tmp_path_factory.mktemp("keyed"), worker="gate", max_per_minute=1000)
    database = Database(settings)
    secrets = [ApiKeyStore(database, settings).add(name).secret for name in ("ann", "ben")]
    database.close()
    starts = make_servers()
    running: Running = next(starts)(settings, "--no-worker")
    with bearer(running.url, secrets[0]) as ann, bearer(running.url, secrets[1]) as ben:
        server = Server(running.url, ann, ben)
        server.read_config()
        yield server
    next(starts, None)


def bearer(url: str, secret: str) -> httpx2.Client:
    headers = {"authorization": f"Bearer {secret}"}
    return httpx2.Client(base_url=url, headers=headers, timeout=60)


@dataclass
class Space(Server):
    """The same for visitors, in this process."""

    gate: GradioGate | None = None


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Space]:
    settings = Settings(home=tmp_path_factory.mktemp("space"), max_per_minute=1000)
    app = asyncio.run(build_space(settings))
    with (
        serve_app(app) as url,
        httpx2.Client(base_url=url, cookies={"filmlet_visitor": "a" * 32}, timeout=60) as ann,
        httpx2.Client(base_url=url, cookies={"filmlet_visitor": "b" * 32}, timeout=60) as ben,
    ):
        server = Space(url, ann, ben, gate=gate_of(app))
        server.read_config()
        yield server


async def build_space(settings: Settings) -> FastAPI:
    """Build the app in a running loop: outside of one, Gradio opens loops that nobody closes."""
    app = create_app(settings, visitors=Visitors())
    ui.mount(app, app.state.filmlet)
    return app


def gate_of(app: FastAPI) -> GradioGate:
    mounted = app.routes[-1]
    assert isinstance(mounted, Mount)
    assert isinstance(mounted.app, GradioGate)
    return mounted.app


@contextmanager
def listening() -> Iterator[tuple[str, list[str]]]:
    """A server that nobody should be sent to; yields its address and what was asked of it."""
    asked: list[str] = []

    class Note(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Note) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


# Routes


def gradio_routes(routes: list[Any], prefix: str = "") -> Iterator[tuple[str, set[str]]]:
    """Path and methods of every route; `{path:path}` stands for what a mounted app answers."""
    for route in routes:
        if included := getattr(route, "original_router", None):
            yield from gradio_routes(included.routes, prefix)
        elif isinstance(route, Mount) and route.routes:
            yield from gradio_routes(route.routes, prefix + route.path)
        elif isinstance(route, Mount):
            yield f"{prefix}{route.path}/", {"POST"}
        else:
            yield prefix + route.path, set(route.methods or ())


def test_every_route_of_the_installed_gradio_is_open_or_closed_by_name(space: Space) -> None:
    assert space.gate
    inner: Any = space.gate.app
    found = dict(gradio_routes(inner.routes))
    assert len(found) > 60
    opened = {route.path for route in ROUTES}
    assert set(found) - opened - CLOSED == set(), "Gradio has a new route: open or close it"
    assert CLOSED - set(found) == set(), "Gradio has no such route any more"
    assert opened - set(found) == {"/gradio_api/mcp"}, "Gradio has no such route any more"


def test_closed_routes_are_not_there_in_whatever_way_they_are_written(keyed: Server) -> None:
    for path in CLOSED - {"/openapi.json"}:  # the API has one of its own
        plain = re.sub(r"{\w+(:path)?}", "1", path)
        for method in ("GET", "POST", "OPTIONS"):
            answer = keyed.ann.request(method, plain)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found"), path
    twisted = (
        "//gradio_api/queue/status", "/gradio_api//queue/data", "/GRADIO_API/queue/data",
        "/gradio_api/queue/join/", "/gradio_api/%2e%2e/gradio_api/user", "/gradio_api/./user",
        "/assets/../gradio_api/user", "/gradio_api/mcp/../user", "/gradio_api/mcp/http",
        "/gradio_api/call/v2/a/b/c", "/gradio_api/stream/a;/close", "/gradio_api/upload%0a",
    )  # fmt: skip
    for path in twisted:
        assert keyed.ann.get(path).status_code == 404, path
    for method in ("PUT", "PATCH", "DELETE", "GET", "HEAD", "TRACE"):
        answer = keyed.ann.request(method, "/gradio_api/queue/join")
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST"), method
    assert keyed.ann.get("/config?deep_link=abc").json().get("deep_link_state") is None
    assert b"101 " not in ask_raw(
        keyed.url, "GET", "/gradio_api/queue/join",
        "connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
        "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n",
    )  # fmt: skip


def ask_raw(url: str, method: str, path: str, headers: str) -> bytes:
    """The beginning of the answer to a request whose body never comes."""
    host = urlsplit(url)
    with socket.create_connection((host.hostname, host.port), timeout=30) as connection:
        head = f"{method} {path} HTTP/1.1\r\nhost: {host.netloc}\r\n{headers}\r\n"
        connection.sendall(head.encode())
        return connection.recv(200)


def test_key_is_asked_for_before_a_body_is_read(keyed: Server) -> None:
    closed = [route for route in ROUTES if route.access is RouteAccess.CALLER]
    assert {route.path for route in ROUTES} - {route.path for route in closed} == {
        "/", "/config", "/gradio_api/info", "/assets/{path:path}", "/static/{path:path}",
        "/theme.css", "/favicon.ico",
    }  # fmt: skip
    for route in closed:
        path = re.sub(r"{\w+(:path)?}", "x", route.path)
        for method in route.methods:
            large = "content-type: application/json\r\ncontent-length: 99000000\r\n"
            answer = ask_raw(keyed.url, method, path, large)
            assert answer.startswith(b"HTTP/1.1 401"), (method, path, answer)


# Files


def sent_files(secret: Path, address: str, theirs: str, own: str) -> list[Any]:
    """Files as attackers would name them, for a field that takes one."""
    paths = [
        str(secret), f"../{secret.name}", "/etc/passwd", "file:///etc/passwd", "/proc/self/environ",
        f"http://{address}/x", f"{own}/../../../etc/passwd", f"./{own}", f"/{own}", theirs, "",
    ]  # fmt: skip
    found: list[Any] = [{"path": path, "meta": META} for path in paths]
    found += [{"video": {"path": str(secret), "meta": META}, "subtitles": None}]
    found += [{"path": f"http://{address}/x", "meta": META, "is_stream": True}]
    found += [{"path": None, "url": f"http://{address}/x", "meta": META}]
    found += [{"path": ["/etc/passwd"], "meta": META}]
    found += [{"url": "data:text/plain;base64,eA=="}]
    return found


def test_paths_and_urls_in_events_open_nothing(keyed: Server, tmp_path: Path) -> None:
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(b"a clip of somebody else")
    theirs, own = keyed.upload(keyed.ben), keyed.upload(keyed.ann)
    with listening() as (address, asked):
        for sent in sent_files(secret, address, theirs, own):
            body = keyed.event("preview_plan", sent)
            answer = keyed.ann.post("/gradio_api/run/preview_plan", json=body)
            assert REFUSED in answer.text, (sent, answer.text)
        for route in ("run", "api"):
            body = keyed.event("image_to_video", sent_files(secret, address, theirs, own)[0])
            body["data"][2] = {"path": f"http://{address}/x", "meta": META}
            answer = keyed.ann.post(f"/gradio_api/{route}/image_to_video", json=body)
            assert REFUSED in answer.text
        for sent in sent_files(secret, address, theirs, own)[:6]:
            assert REFUSED in told(keyed, keyed.event("video_to_video", sent))
        # The path that comes with a URL is the caller's; the URL is dropped.
        fine = {"path": own, "url": f"http://{address}/x", "is_stream": True, "meta": META}
        answer = keyed.ann.post(
            "/gradio_api/run/preview_plan", json=keyed.event("preview_plan", fine)
        )
        assert answer.status_code == 200
    assert asked == []


def test_gradio_decodes_no_picture_itself(keyed: Server) -> None:
    id = keyed.upload(keyed.ann, "x.png", b"no picture")
    event = keyed.event("preview_plan")
    start, picture, prompt = 0, 1, 5
    event["data"][start] = "image"
    event["data"][picture] = {"path": id, "meta": META}
    event["data"][prompt] = "a red ball"
    answer = keyed.ann.post("/gradio_api/run/preview_plan", json=event)
    assert answer.status_code == 200, answer.text
    assert "x.png: this is not a whole PNG" in answer.text
    many = keyed.ann.post("/gradio_api/run/preview_plan", json=event | {"batched": True})
    assert many.json()["data"] == answer.json()["data"]


def told(server: Server, body: dict[str, Any]) -> str:
    """What the queue says of an event."""
    joined = server.ann.post("/gradio_api/queue/join", json=body | {"session_hash": "told"})
    assert joined.status_code == 200, joined.text
    return server.ann.get("/gradio_api/queue/data", params={"session_hash": "told"}).text


def test_event_data_of_a_browser_changes_no_component(keyed: Server) -> None:
    fill = keyed.functions["fill"]
    for hostile in (
        {"model": "pocket", "seconds": {"path": "/etc/passwd", "meta": META}},
        {"model": "pocket", "draft": {"__type__": "update", "value": 1, "label": "x" * 1000}},
        {"model": "pocket", "extra_prompts": [{"path": "/etc/passwd", "meta": META}]},
        {"model": ["pocket"]},
        ["pocket"],
    ):
        body = {"data": [], "fn_index": fill["id"], "trigger_id": fill["targets"][0][0]}
        answer = keyed.ann.post("/gradio_api/run/fill", json=body | {"event_data": hostile})
        assert answer.status_code == 500, answer.text
        assert "passwd" not in answer.text


def test_gradio_itself_takes_no_path_either(space: Space) -> None:
    assert space.gate
    page = space.gate.page
    assert page.has_launched  # which mount_gradio_app of Gradio 6.31 does not set
    assert gr.__version__.startswith("6."), "look at ui/blocks.py again"
    event = space.event("preview_plan", {"path": "/etc/passwd", "meta": META})
    function = page.fns[event["fn_index"]]
    with pytest.raises(ValueError, match="was not uploaded by a user"):
        asyncio.run(gr.Blocks.process_api(page, function, event["data"]))


def test_file_is_served_to_its_owner_only(keyed: Server) -> None:
    id = keyed.upload(keyed.ann, "../../a b\u00e9.html", b"<script>alert(1)</script>")
    assert re.fullmatch(r"[0-9a-f]{32}/[\w.-]+", id)
    mine = keyed.ann.get(f"/gradio_api/file={id}")
    assert (mine.status_code, mine.text) == (200, "<script>alert(1)</script>")
    assert mine.headers["content-type"] == "application/octet-stream"
    assert mine.headers["content-disposition"].startswith("attachment")
    assert keyed.ben.get(f"/gradio_api/file={id}").status_code == 404
    folder, name = id.split("/")
    for path in (
        folder, f"{folder}/", f"{folder}/../{id}", f"{folder}//{name}", f"/{id}", f"{id}/",
        f"{folder}/%2e%2e/{folder}/{name}", f"{folder}/{name}%00", f"{id}\\", "../../keys.sqlite",
        "%2fetc%2fpasswd", "/etc/passwd", "http://127.0.0.1/", "file:///etc/passwd", "",
    ):  # fmt: skip
        assert keyed.ann.get(f"/gradio_api/file={path}").status_code == 404, path
    assert keyed.ann.get(f"/gradio_api/file/{id}").status_code == 404
    wide = {"range": "bytes=0-" + "9" * 5000}
    assert keyed.ann.get(f"/gradio_api/file={id}", headers=wide).status_code == 200


def test_upload_is_bounded(keyed: Server) -> None:
    many = [("files", (f"{i}.png", b"x")) for i in range(gate.MAX_FILES + 1)]
    assert keyed.ann.post("/gradio_api/upload", files=many).status_code == 400
    fields = {f"field{i}": "x" for i in range(gate.MAX_FILES + 1)}
    one = {"files": ("a.png", b"x")}
    assert keyed.ann.post("/gradio_api/upload", files=one, data=fields).status_code == 400
    header = b"--b\r\ncontent-disposition: form-data; x=" + b"y" * 2_000_000
    kind = {"content-type": "multipart/form-data; boundary=b"}
    assert keyed.ann.post("/gradio_api/upload", content=header, headers=kind).status_code == 400
    head = b'--b\r\ncontent-disposition: form-data; name="files"; filename="a"\r\n\r\n'

    def endless() -> Iterator[bytes]:
        yield head
        for _ in range(110):
            yield bytes(1024 * 1024)

    refused = keyed.ann.post("/gradio_api/upload", content=endless(), headers=kind)
    assert refused.status_code == 413


def test_files_of_a_caller_go_when_they_are_too_many_or_unused(
    space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert space.gate
    kept = space.gate.callers.files
    monkeypatch.setattr(files, "MAX_BYTES_PER_CALLER", 3 * files.MIN_BYTES)
    theirs = space.upload(space.ben)
    ids = [space.upload(space.ann, content=b"%d" % i) for i in range(5)]
    found = [space.ann.get(f"/gradio_api/file={id}").status_code for id in ids]
    assert found == [404, 404, 200, 200, 200]
    assert space.ben.get(f"/gradio_api/file={theirs}").status_code == 200
    assert len(list(kept.folder.glob("*/blue.png"))) >= 4
    monkeypatch.setattr(files, "FILE_IDLE_S", -1.0)
    left = kept.folder / "left"
    left.mkdir()
    asyncio.run(kept.sweep())
    assert list(kept.folder.iterdir()) == []
    assert space.ben.get(f"/gradio_api/file={theirs}").status_code == 404


# Sessions


def test_session_and_its_events_are_of_who_began_them(keyed: Server) -> None:
    body = keyed.event("text_to_video") | {"session_hash": "anns-own"}
    body["data"][0] = "a red ball"
    event = keyed.ann.post("/gradio_api/queue/join", json=body).json()["event_id"]
    call = {"data": body["data"]}
    lone = keyed.ann.post("/gradio_api/call/text_to_video", json=call).json()["event_id"]
    ben = keyed.ben
    assert ben.get("/gradio_api/queue/data?session_hash=anns-own").status_code == 404
    assert ben.get(f"/gradio_api/queue/data?session_hash={lone}").status_code == 404
    twice = "/gradio_api/queue/data?session_hash=bens&session_hash=anns-own"
    assert ben.get(twice).status_code == 404
    for id in (event, lone):
        assert ben.get(f"/gradio_api/call/text_to_video/{id}").status_code == 404
        assert ben.get(f"/gradio_api/call/v2/text_to_video/{id}").status_code == 404
    assert ben.post("/gradio_api/queue/join", json=body).status_code == 404
    assert ben.post("/gradio_api/run/preview_plan", json=body).status_code == 404
    own = keyed.event("preview_plan") | {"session_hash": "bens"}
    assert ben.post("/gradio_api/run/preview_plan", json=own).status_code == 200
    for session in ("anns-own", "bens"):
        stop = {"session_hash": session, "fn_index": body["fn_index"], "event_id": event}
        assert ben.post("/gradio_api/cancel", json=stop).status_code == 404
    with keyed.ann.stream("GET", f"/gradio_api/call/text_to_video/{lone}") as answer:
        assert answer.status_code == 200
    stop = {"session_hash": "anns-own", "fn_index": body["fn_index"], "event_id": event}
    assert keyed.ann.post("/gradio_api/cancel", json=stop).json() == {"success": True}


def test_bodies_of_events_are_bounded_before_they_are_parsed(keyed: Server) -> None:
    kind = {"content-type": "application/json"}
    cases = (
        (b"[" * 100_000, 413),
        (b"[" * 1000, 400),
        (b'{"data":' + b"[" * 40 + b"]" * 40 + b"}", 400),
        (b'{"data":[' + b"0," * 100_000 + b"0]}", 413),
        (b'{"data":["' + b"x" * 600_000 + b'"]}', 413),
        ('{"data":[]}'.encode("utf-16"), 400),
        (b'{"data":[], "session_hash": 1}', 400),
        (b'{"data":[], "session_hash": "../x"}', 404),
        (b'{"data":[], "fn_index": 99999}', 404),
        (b'{"data":[], "session_hash": "' + b"x" * 1000 + b'"}', 404),
        (b"[]", 400),
        (b"{", 400),
        (b"\xff", 400),
    )
    for body, status in cases:
        for path in ("run/preview_plan", "queue/join", "call/text_to_video"):
            answer = keyed.ann.post(f"/gradio_api/{path}", content=body, headers=kind)
            assert answer.status_code == status, (body[:40], path, answer.text)
            assert set(answer.json()) == {"error"}
    assert keyed.ann.post("/gradio_api/run/nothing", json={"data": []}).status_code == 404
    assert keyed.ann.post("/gradio_api/call/v2/preview_plan", json={"prompt": 1}).status_code in (
        400,
        422,
    )
    deep = b'{"jsonrpc":"2.0","id":1,"method":' + b"[" * 50_000 + b"]" * 50_000 + b"}"
    answer = keyed.ann.post("/gradio_api/mcp/", content=deep, headers=kind)
    assert answer.status_code in (400, 413)


def test_sessions_that_nobody_reads_are_forgotten(
    space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert space.gate
    page = space.gate.page
    monkeypatch.setattr(callers, "MAX_SESSIONS_PER_CALLER", 8)
    monkeypatch.setattr(callers, "MAX_SESSIONS", 12)
    body = space.event("preview_plan")
    for who in (space.ann, space.ben):
        for i in range(20):
            sent = body | {"session_hash": f"{who.cookies['filmlet_visitor'][0]}-{i}"}
            route = "queue/join" if i % 2 else "run/preview_plan"
            assert who.post(f"/gradio_api/{route}", json=sent).status_code == 200
    assert len(space.gate.callers.sessions) <= 12
    assert len(page.state_holder.session_data) <= 13  # Gradio makes one before it calls
    assert len(page._queue.pending_messages_per_session) <= 12
    assert len(page._queue.pending_event_ids_session) <= 12
    wait_until(lambda: not page._queue.event_ids_to_events)
    monkeypatch.setattr(callers, "SESSION_IDLE_S", -1.0)
    space.gate.callers.sessions.sweep()
    assert len(page.state_holder.session_data) <= 1
    assert len(page._queue.pending_messages_per_session) == 0


def test_one_caller_does_not_fill_the_queue_for_others(
    space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "MAX_EVENTS_PER_CALLER", 2)
    body = space.event("text_to_video")
    body["data"][0] = "a red ball"  # there is no worker: it waits
    codes = [space.ann.post("/gradio_api/queue/join", json=body | {"session_hash": "full"})]
    codes += [space.ann.post("/gradio_api/call/text_to_video", json={"data": body["data"]})]
    codes += [space.ann.post("/gradio_api/queue/join", json=body | {"session_hash": "full"})]
    assert [answer.status_code for answer in codes] == [200, 200, 503]
    other = space.ben.post("/gradio_api/queue/join", json=body | {"session_hash": "free"})
    assert other.status_code == 200


def test_requests_of_one_caller_are_counted_while_they_are_open() -> None:
    requests = callers.OpenRequests()
    route = next(route for route in ROUTES if route.max_open == 8)
    with pytest.raises(Exception, match="Too many requests"):
        nest(requests, route, 9)
    nest(requests, route, 8)
    assert not requests._open


def nest(requests: callers.OpenRequests, route: Any, count: int) -> None:
    if count:
        with requests.count("ann", route):
            nest(requests, route, count - 1)


# Visitors and MCP


def test_visitor_without_a_cookie_is_known_by_random_names(space: Space) -> None:
    for route in ROUTES:
        path = re.sub(r"{\w+(:path)?}", "x", route.path)
        for method in route.methods:
            headers = {"accept": "application/json"}
            if not path.endswith("/sse"):
                answer = httpx2.request(method, space.url + path, headers=headers, timeout=60)
                assert answer.status_code < 500, (method, path, answer.text)
    with httpx2.Client(base_url=space.url) as first, httpx2.Client(base_url=space.url) as second:
        id = space.upload(first)
        assert second.get(f"/gradio_api/file={id}").content == b"blue"
        ours = space.upload(space.ann)
        assert second.get(f"/gradio_api/file={ours}").status_code == 404
        assert space.ben.get(f"/gradio_api/file={ours}").status_code == 404


def test_bearer_is_an_identity_of_a_visitor(space: Space) -> None:
    with bearer(space.url, "one" * 8) as one, bearer(space.url, "two" * 8) as two:
        made = one.post("/v1/videos", json={"prompt": "a red ball"}).json()["id"]
        one.cookies.clear()
        assert one.get(f"/v1/videos/{made}").status_code == 200
        assert two.get(f"/v1/videos/{made}").status_code == 404
        id = space.upload(one)
        one.cookies.clear()
        assert one.get(f"/gradio_api/file={id}").status_code == 200
        assert two.get(f"/gradio_api/file={id}").status_code == 404


def test_tools_read_no_path_and_ask_no_other_server(keyed: Server, tmp_path: Path) -> None:
    theirs = keyed.upload(keyed.ben)
    picture = tmp_path / "blue.png"
    Image.new("RGB", (8, 8), "blue").save(picture)
    with listening() as (address, asked):
        spoofed = {"x-forwarded-host": address, "x-gradio-user": "mcp"}
        for sent in (str(picture), f"http://{address}/x", "/etc/passwd", theirs, "data:,x"):
            arguments = {"prompt": "a red ball", "input_image_filepath": sent}
            answer = call_tool(keyed.ann, "image_to_video", arguments, spoofed)
            assert REFUSED in answer, answer
        for method in ("prompts/get", "prompts/list", "resources/list", "resources/read"):
            params = {"name": "x", "uri": "x://x"}
            call = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
            answer = ask_mcp(keyed.ann, call, spoofed)
            assert "Method not found" in answer or "Invalid request" in answer, answer
    assert asked == []
    empty = {"prompt": " ", "input_image_filepath": ""}
    assert "The prompt is empty" in call_tool(keyed.ann, "image_to_video", empty, {})


def call_tool(
    who: httpx2.Client, name: str, arguments: dict[str, Any], headers: dict[str, str]
) -> str:
    params = {"name": name, "arguments": arguments}
    return ask_mcp(
        who, {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}, headers
    )


def ask_mcp(who: httpx2.Client, call: dict[str, Any], headers: dict[str, str]) -> str:
    accept = {"accept": "application/json, text/event-stream"}
    answer = who.post("/gradio_api/mcp/", json=call, headers=accept | headers)
    assert answer.status_code == 200, answer.text
    return json.dumps(answer.text)
