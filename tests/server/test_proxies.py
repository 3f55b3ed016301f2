"""The documentation's nginx and Caddy before servers: what programs and the page send passes."""

import asyncio
import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2
import pytest
from gradio_client import Client, handle_file
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client
from PIL import Image

from filmlet.jobs import ApiKeyStore
from filmlet.jobs.database import Database
from filmlet.settings import Settings
from tests.helpers.queues import Start
from tests.helpers.servers import LONG, SMALL, Serve, wait_until

DOCS = Path(__file__).parents[2] / "docs" / "deploy" / "README.md"
HOST = "films.example.org"
PROGRAMS = {"nginx": "nginx", "caddy": "caddyfile"}  # and the language of their snippets
SENT: dict[str, Any] = {
    "prompt": "a red ball moving left on white", "height_ui": 64, "width_ui": 96,
    "duration_ui": 0.3, "seed_ui": 5, "randomize_seed": False,
}  # fmt: skip
pytestmark = [pytest.mark.server, pytest.mark.filterwarnings("ignore")]  # of the clients' own
Proxy = Callable[..., str]


def snippets(language: str) -> list[str]:
    """The configurations of a proxy in the documentation: before one server, before two."""
    return re.findall(rf"```{language}\n(.*?)```", DOCS.read_text(), re.DOTALL)


def nginx_config(port: int, ports: list[int], folder: Path) -> str:
    """The documentation's configuration, listening here, and without TLS."""
    one, upstream = snippets("nginx")
    text = one.replace("listen 443 ssl;", f"listen 127.0.0.1:{port};")
    if len(ports) == 1:
        upstream = ""
        text = text.replace("127.0.0.1:7860", f"127.0.0.1:{ports[0]}")
    else:
        text = text.replace("http://127.0.0.1:7860", "http://filmlet")
    for old, new in zip((7861, 7862), ports, strict=False):
        upstream = upstream.replace(f":{old};", f":{new};")
    places = "".join(
        f"{name}_temp_path {folder}/{name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return (
        f"daemon off; pid {folder}/pid; error_log stderr; worker_processes 1;\n"
        "events { worker_connections 200; }\n"
        f"http {{ access_log off; {places} {upstream} {text} }}\n"
    )


def caddy_config(port: int, ports: list[int], folder: Path) -> str:
    del folder
    text = snippets("caddyfile")[len(ports) - 1].replace(f"{HOST} {{", f"http://:{port} {{", 1)
    for old, new in zip((7860,) if len(ports) == 1 else (7861, 7862), ports, strict=True):
        text = text.replace(f":{old}", f":{new}")
    return f"{{\n admin off\n default_bind 127.0.0.1\n}}\n{text}"


@pytest.fixture(params=PROGRAMS)
def proxy(request: pytest.FixtureRequest) -> Iterator[Proxy]:
    """Starts a proxy before servers on these ports; returns its address."""
    program = shutil.which(request.param)
    if program is None:
        pytest.skip(f"{request.param} is not installed")
    processes: list[subprocess.Popen[bytes]] = []

    def start(*ports: int) -> str:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        config = folder / "config"
        make = nginx_config if request.param == "nginx" else caddy_config
        config.write_text(make(port, [*ports], folder))
        command = (
            [program, "-c", str(config), "-e", "stderr"]
            if request.param == "nginx"
            else [program, "run", "--config", str(config), "--adapter", "caddyfile"]
        )
        with (folder / "log").open("wb") as log:
            processes.append(subprocess.Popen(command, stderr=log, stdout=log, env=_home(folder)))

        def listens() -> bool:
            assert processes[-1].poll() is None, (folder / "log").read_text()
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        wait_until(listens, 30)
        return f"http://127.0.0.1:{port}"

    # nginx works as another user where root starts it, to whom pytest's own folders are closed.
    with TemporaryDirectory(prefix="filmlet-proxy-") as name:
        folder = Path(name)
        folder.chmod(0o777)
        yield start
        for process in processes:
            process.terminate()
            process.wait(20)


def _home(folder: Path) -> dict[str, str]:
    return {"HOME": str(folder), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


def add_key(settings: Settings) -> str:
    database = Database(settings)
    try:
        return ApiKeyStore(database, settings).add("ann", admin=True).secret
    finally:
        database.close()


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


def use_page_functions(url: str, secret: str, folder: Path) -> None:
    """Upload a picture, wait in the page's queue, download the clip."""
    picture = folder / "blue.png"
    Image.new("RGB", (96, 64), "blue").save(picture)
    headers = {"authorization": f"Bearer {secret}"}
    client = Client(url, verbose=False, headers=headers, download_files=str(folder))
    path, seed = client.predict(
        **SENT, input_image_filepath=handle_file(picture), api_name="/image_to_video"
    )
    assert seed == 5
    assert Path(path).read_bytes()[4:8] == b"ftyp"


def use_tool(url: str, secret: str) -> str:
    """Make a clip as an MCP client; returns its URL."""

    async def talk() -> str:
        headers = {"authorization": f"Bearer {secret}"}
        async with (
            streamablehttp_client(f"{url}/gradio_api/mcp/", headers=headers) as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            answer = await session.call_tool("text_to_video", SENT)
            assert not answer.isError, json.dumps(str(answer.content))
            return str(answer.content[0].text)  # type: ignore[union-attr]

    return asyncio.run(talk())
