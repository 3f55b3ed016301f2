"""Who may ask a real server, and that this is known before anything of a request is read."""

import re
import socket
import threading
from collections.abc import Iterator

import httpx2
import pytest
from fastapi.testclient import TestClient
from starlette.routing import Mount

from filmlet.api import create_app
from filmlet.api.anonymous_users import MIN_TOKEN_CHARS, Visitors
from filmlet.jobs import ApiKeyStore, CreatedApiKey
from filmlet.jobs.database import Database
from filmlet.settings import Settings
from tests.helpers.servers import SMALL, Running, make_servers, refusal

PUBLIC = {"/health", "/ready", "/metrics", "/session", "/openapi.json"}
ENDS_S = 30.0  # of a stream whose key is gone; it is looked at every few seconds
NAME = "films.example"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(
        home=tmp_path_factory.mktemp("keyed"), max_per_minute=10**6, metrics="key", worker="none"
    )


@pytest.fixture(scope="module")
def keys(settings: Settings) -> Iterator[ApiKeyStore]:
    database = Database(settings)
    yield ApiKeyStore(database, settings)
    database.close()


@pytest.fixture(scope="module")
def root(keys: ApiKeyStore) -> CreatedApiKey:
    return keys.add("root", admin=True)


@pytest.fixture(scope="module")
def server(settings: Settings, root: CreatedApiKey) -> Iterator[Running]:
    """A web process with keys, which answers to a public name too."""
    del root
    starts = make_servers()
    yield next(starts)(settings, "--no-worker", "--allowed-host", NAME)
    next(starts, None)


def bearer(granted: CreatedApiKey) -> dict[str, str]:
    return {"authorization": f"Bearer {granted.secret}"}


def first_line(server: Running, head: str) -> str:
    """The status line that is answered to a head whose body never comes."""
    url = httpx2.URL(server.url)
    with socket.create_connection((url.host, url.port), timeout=20) as connection:
        connection.sendall(f"{head}\r\nContent-Length: 500\r\n\r\n".encode())
        return connection.recv(4096).split(b"\r\n")[0].decode()


def test_caller_is_known_before_a_body_is_read(server: Running) -> None:
    described = httpx2.get(f"{server.url}/openapi.json").json()
    asked = 0
    for path, methods in described["paths"].items():
        for method in {*methods, "post"}:
            if not path.startswith("/v1"):
                assert path in PUBLIC
                continue
            target = re.sub("{[^}]+}", "clip_" + "0" * 24, path)
            for kind in ("application/json", "multipart/form-data; boundary=x"):
                head = f"{method.upper()} {target} HTTP/1.1\r\nHost: localhost"
                line = first_line(server, f"{head}\r\nContent-Type: {kind}")
                assert line == "HTTP/1.1 401 Unauthorized", (method, path)
                asked += 1
    assert asked > 40


def test_route_of_the_app_is_public_or_under_v1(settings: Settings) -> None:
    app = create_app(settings)
    for route in app.routes:
        path = getattr(route, "path", "")
        is_page = isinstance(route, Mount) or path.startswith("/docs") or not path
        assert is_page or path.startswith("/v1") or path in PUBLIC, path
    app.state.filmlet.queue.close()


@pytest.mark.parametrize("path", ["events", "content?stream=true"])
def test_what_is_listened_to_ends_with_its_key(
    server: Running, keys: ApiKeyStore, path: str
) -> None:
    granted = keys.add(f"listener of {path}")
    client = httpx2.Client(base_url=server.url, headers=bearer(granted), timeout=ENDS_S)
    job = client.post("/v1/videos", json=SMALL).json()["id"]
    with client.stream("GET", f"/v1/videos/{job}/{path}") as answer:
        assert answer.status_code == 200
        heard = threading.Event()
        ended = threading.Event()

        def listen() -> None:
            try:
                for _ in answer.iter_bytes():
                    heard.set()
            except httpx2.RemoteProtocolError:  # cut off: what came is no whole clip
                assert path != "events"
            ended.set()

        listener = threading.Thread(target=listen)
        listener.start()
        if path == "events":
            assert heard.wait(ENDS_S)
        assert not ended.wait(4)  # while the key is there it goes on
        keys.remove(granted.key.name)
        assert ended.wait(ENDS_S)
        listener.join()
    client.close()


def test_metrics_are_an_admins_where_the_settings_say_so(
    server: Running, keys: ApiKeyStore, root: CreatedApiKey
) -> None:
    plain = keys.add("plain")
    assert server.client.get("/metrics").status_code == 401
    answer = server.client.get("/metrics", headers=bearer(plain))
    assert answer.status_code == 403
    assert refusal(answer)["code"] == "permission_denied"
    assert "filmlet_jobs" in server.client.get("/metrics", headers=bearer(root)).text
    assert server.client.get("/ready").status_code == 503  # of a probe, which has no key
    first = server.client.post(
        "/v1/videos", json=SMALL | {"priority": "high"}, headers=bearer(plain)
    )
    assert first.status_code == 403
    assert refusal(first)["param"] == "priority"


def test_server_answers_to_the_names_it_was_told(server: Running) -> None:
    for host, status in (
        ("localhost", 200),
        (NAME, 200),
        (f"{NAME}:443", 200),
        ("evil.example", 400),
    ):
        assert server.client.get("/health", headers={"host": host}).status_code == status


def test_proxys_host_counts_as_this_servers_own(server: Running, root: CreatedApiKey) -> None:
    def ask(**headers: str) -> int:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return server.client.post("/v1/videos", json=SMALL, headers=sent | bearer(root)).status_code

    assert ask(origin="https://films.example") == 403
    assert ask(origin="https://films.example", x_forwarded_host="films.example") == 200
    assert ask(origin="https://evil.example", x_forwarded_host="films.example") == 403


@pytest.mark.server
def test_forwarded_headers_of_a_stranger_are_dropped(tmp_path) -> None:
    starts = make_servers()
    settings = Settings(home=tmp_path, forwarded_allow_ips="192.0.2.1", metrics="off")
    server = next(starts)(settings, "--no-worker", "--no-keys")
    sent = {"origin": "https://evil.example", "x-forwarded-host": "evil.example"}
    assert server.client.post("/v1/videos", json=SMALL, headers=sent).status_code == 403
    assert server.client.get("/metrics").status_code == 404
    next(starts, None)


PROXIED = (
    {"x-forwarded-for": "198.51.100.7"}, {"forwarded": "for=198.51.100.7"},
    {"x-real-ip": "198.51.100.7"}, {"via": "1.1 proxy"}, {"x-forwarded-host": "films.example"},
)  # fmt: skip


def test_without_keys_who_comes_through_a_proxy_is_not_the_local_user(
    shared_server: Running,
) -> None:
    assert shared_server.client.get("/v1/videos").status_code == 200
    for headers in PROXIED:
        answer = shared_server.client.get("/v1/videos", headers=headers)
        assert answer.status_code == 401, headers
        assert "can make a key" in refusal(answer)["message"]
    url = httpx2.URL(shared_server.url)
    with socket.create_connection((url.host, url.port), timeout=20) as connection:
        connection.sendall(b"GET /v1/videos HTTP/1.0\r\nHost: localhost\r\n\r\n")
        assert b" 401 " in connection.recv(4096).split(b"\r\n")[0]
    session = shared_server.client.get("/session", headers=PROXIED[0]).json()
    assert session["needs_key"]


def test_refusal_of_the_database_shows_no_path(home: Settings) -> None:
    with TestClient(create_app(home), raise_server_exceptions=False) as client:
        job = client.post("/v1/videos", json=SMALL).json()["id"]
        for file in home.home.glob("filmlet.sqlite*"):
            file.write_bytes(b"no database" * 1000)
        for answer in (
            client.get(f"/v1/videos/{job}"), client.get("/v1/videos"), client.get("/ready"),
            client.post("/v1/videos", json=SMALL), client.post(f"/v1/videos/{job}/cancel"),
            client.delete(f"/v1/videos/{job}"), client.get("/metrics"),
        ):  # fmt: skip
            assert answer.status_code == 503, answer.text
            assert answer.headers["retry-after"]
            told = refusal(answer)
            assert told["code"] == "database_unusable"
            assert str(home.home) not in answer.text
            assert "sqlite" not in answer.text.lower()
        assert client.get("/health").status_code == 200


def test_program_without_cookies_is_a_visitor_by_its_token(home: Settings) -> None:
    app = create_app(home, visitors=Visitors())
    long, other = ("t" * MIN_TOKEN_CHARS, "u" * MIN_TOKEN_CHARS)

    def ask(method: str, path: str, token: str, **more: object) -> httpx2.Response:
        with TestClient(app) as fresh:  # without cookies each time
            headers = {"authorization": f"Bearer {token}"}
            return fresh.request(method, path, headers=headers, **more)

    made = ask("POST", "/v1/videos", long, json=SMALL)
    assert "set-cookie" not in made.headers
    path = f"/v1/videos/{made.json()['id']}"
    assert ask("GET", path, long).status_code == 200
    assert ask("GET", path, other).status_code == 404


def test_program_that_could_not_be_known_again_is_told_what_its_token_must_be(
    home: Settings,
) -> None:
    with TestClient(create_app(home, visitors=Visitors())) as client:

        def ask(method: str, token: str | None, path: str = "/v1/videos") -> httpx2.Response:
            headers = {} if token is None else {"authorization": f"Bearer {token}"}
            sent = {"json": SMALL} if method == "POST" else {}
            return client.request(method, path, headers=headers, **sent)  # type: ignore[arg-type]

        for token in ("none", "sk-1234", "t" * (MIN_TOKEN_CHARS - 1)):
            for method, path in (("POST", "/v1/videos"), ("GET", "/v1/videos/clip_1")):
                client.cookies.clear()
                told = refusal(ask(method, token, path))
                assert told["code"] == "unknown_key"
                assert f"{len(token)} characters" in told["message"]
                assert f"at least {MIN_TOKEN_CHARS} characters" in told["message"]
                assert token not in told["message"]
        client.cookies.clear()
        first = ask("POST", None)
        assert (first.status_code, refusal(first)["code"]) == (401, "unknown_key")
        assert "has no token" in refusal(first)["message"]
        made = ask("POST", None)  # with the cookie that the refusal set, as a browser keeps it
        assert made.status_code == 200
        assert ask("GET", None, f"/v1/videos/{made.json()['id']}").status_code == 200
        client.cookies.clear()
        assert ask("GET", None).json()["data"] == []
