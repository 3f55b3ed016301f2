"""The documentation's nginx and Caddy before servers: what programs and the page send passes."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest

from filmlet.settings import Settings
from tests.helpers.page_clients import use_page_functions, use_tool
from tests.helpers.proxies import LANGUAGES, read_snippets, run_proxies
from tests.helpers.queues import Start
from tests.helpers.servers import LONG, SMALL, Serve, add_key

HOST = "films.example.org"
pytestmark = [pytest.mark.server, pytest.mark.filterwarnings("ignore")]  # of the clients' own
Proxy = Callable[..., str]


def nginx_config(port: int, ports: list[int]) -> str:
    """The documentation's configuration, listening here, and without TLS."""
    one, _, upstream = read_snippets("nginx")
    text = one.replace("listen 443 ssl;", f"listen 127.0.0.1:{port};")
    if len(ports) == 1:
        return text.replace("127.0.0.1:7860", f"127.0.0.1:{ports[0]}")
    for old, new in zip((7861, 7862), ports, strict=False):
        upstream = upstream.replace(f":{old};", f":{new};")
    return upstream + text.replace("http://127.0.0.1:7860", "http://filmlet")


def caddy_config(port: int, ports: list[int]) -> str:
    one, _, two = read_snippets("caddy")
    text = (one if len(ports) == 1 else two).replace(f"{HOST} {{", f"http://:{port} {{", 1)
    for old, new in zip((7860,) if len(ports) == 1 else (7861, 7862), ports, strict=True):
        text = text.replace(f":{old}", f":{new}")
    return text


@pytest.fixture(params=LANGUAGES)
def proxy(request: pytest.FixtureRequest) -> Iterator[Proxy]:
    """Starts a proxy before servers on these ports; returns its address."""
    make_config = nginx_config if request.param == "nginx" else caddy_config
    with run_proxies(request.param) as start:
        yield lambda *ports: start(lambda port: make_config(port, [*ports]))


def test_api_the_page_and_its_clients_pass_a_proxy(
    serve: Serve, home: Settings, proxy: Proxy, tmp_path: Path
) -> None:
    secret = add_key(home)
    server = serve(home, "--allowed-host", HOST)
    url = proxy(int(server.url.rpartition(":")[2]))
    server.wait_ready()
    headers = {"authorization": f"Bearer {secret}", "host": HOST}
    with httpx2.Client(base_url=url, headers=headers, timeout=60) as client:
        assert client.get("/health").status_code == 200
        stranger = httpx2.get(f"{url}/v1/videos", headers={"host": HOST})
        assert stranger.status_code == 401
        job = client.post("/v1/videos", json=SMALL | LONG).json()["id"]
        assert_stream_comes_while_it_grows(client, job)
        job = client.post("/v1/videos", json=SMALL | LONG | {"seed": 4}).json()["id"]
        assert_events_come_one_by_one(client, job)
        large = client.post(
            "/v1/videos/extensions",
            data={"prompt": "a", "seconds": "1"},
            files={"video": ("a.mp4", bytes(20 * 2**20))},
        )
        assert large.status_code == 400, large.text  # it arrives, and is no video
        assert large.json()["error"]["param"] == "video"
        page = client.get("/")
        assert page.status_code == 200
        assert "film-queue" in page.text
        assert client.get("/v1/queue").status_code == 200
        origin = {"origin": f"https://{HOST}"}  # as browsers send it with the page's requests
        assert client.post("/session", json={"key": secret}, headers=origin).status_code == 200
    use_page_functions(url, secret, tmp_path)
    assert use_tool(url, secret).startswith(f"{url}/gradio_api/file=")


def test_clients_of_the_page_keep_their_process_behind_a_balancer(
    serve: Serve, start: Start, home: Settings, proxy: Proxy, tmp_path: Path
) -> None:
    secret = add_key(home)
    servers = [serve(home, "--no-worker", "--allowed-host", HOST) for _ in range(2)]
    url = proxy(*(int(server.url.rpartition(":")[2]) for server in servers))
    start("worker")
    servers[0].wait_ready()
    for _ in range(3):
        use_page_functions(url, secret, tmp_path)
        clip = use_tool(url, secret)
        answer = httpx2.get(clip, headers={"authorization": f"Bearer {secret}"}, timeout=60)
        assert answer.headers["content-type"] == "video/mp4"


@pytest.fixture
def settings(home: Settings) -> Settings:
    """Of the worker that `start` starts."""
    return replace(home, worker="behind")


def assert_stream_comes_while_it_grows(client: httpx2.Client, job: str) -> None:
    seen = []
    with client.stream("GET", f"/v1/videos/{job}/content", params={"stream": "true"}) as answer:
        assert answer.status_code == 200
        data = b""
        for piece in answer.iter_raw():
            if not seen:
                seen.append(client.get(f"/v1/videos/{job}").json()["status"])
            data += piece
    assert seen == ["in_progress"], "the first bytes came when the clip was whole"
    assert data[4:8] == b"ftyp"


def assert_events_come_one_by_one(client: httpx2.Client, job: str) -> None:
    arrived: list[tuple[str, float]] = []
    with client.stream("GET", f"/v1/videos/{job}/events") as answer:
        for line in answer.iter_lines():
            if line.startswith("event: "):
                arrived.append((line.removeprefix("event: "), time.monotonic()))
    assert [kind for kind, _ in arrived][-1] == "done"
    assert len(arrived) > 3
    assert arrived[-1][1] - arrived[0][1] > 0.4, "they came all at once"
