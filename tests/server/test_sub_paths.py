"""A server below a path of a proxy's host: whoever uses it finds all of it there."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from openai import OpenAI
from playwright.sync_api import Browser, Page, expect

from filmlet.settings import Settings
from tests.helpers.browsers import Windows, browser, needs_chromium
from tests.helpers.page_clients import use_page_functions, use_tool
from tests.helpers.proxies import read_snippets, run_proxies
from tests.helpers.servers import LONG, SMALL, Running, add_key, make_servers, wait_until

__all__ = ["browser"]
pytestmark = [pytest.mark.server, pytest.mark.filterwarnings("ignore")]  # of the clients' own
UPSTREAM = "http://127.0.0.1:7860"
HOST = "127.0.0.1"  # as the proxy hands it on
# How the proxy is told of the path, by what it does with it.
FORMS = {
    "nginx passes it on": ("nginx", "/films", {}),
    "nginx removes it": ("nginx", "/films", {f"{UPSTREAM};": f"{UPSTREAM}/;"}),
    "nginx removes it and says so": (
        "nginx", None,
        {f"{UPSTREAM};": f"{UPSTREAM}/; proxy_set_header X-Forwarded-Prefix /films;"},
    ),
    "caddy removes it": ("caddy", "/films", {}),
    "caddy passes it on": ("caddy", "/films", {"handle_path": "handle"}),
}  # fmt: skip

IN_BROWSER = ["nginx passes it on", "nginx removes it and says so", "caddy removes it"]


@dataclass
class Below:
    """url: of the proxy's host. secret: an admin's key of the server behind it."""

    url: str
    secret: str

    @property
    def client(self) -> httpx2.Client:
        headers = {"authorization": f"Bearer {self.secret}"}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=60)


def make_config(program: str, port: int, upstream_port: int, changes: dict[str, str]) -> str:
    """The documentation's configuration with changes, listening here, and without TLS."""
    _, text, _ = read_snippets(program)
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    text = text.replace("127.0.0.1:7860", f"127.0.0.1:{upstream_port}")
    if program == "caddy":
        return text.replace("example.org {", f"http://:{port} {{", 1)
    return f"server {{ listen 127.0.0.1:{port}; {text} }}"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    home = tmp_path_factory.mktemp("below")
    return Settings(home=home, worker="below", max_per_minute=10_000)


@pytest.fixture(scope="module")
def secret(settings: Settings) -> str:
    return add_key(settings)


@pytest.fixture(scope="module")
def servers(settings: Settings, secret: str) -> Iterator[dict[str | None, Running]]:
    """Servers by their root path; one of them has the worker."""
    del secret
    starts = make_servers()
    start = next(starts)
    first = start(replace(settings, root_path="/films"), "--allowed-host", HOST)
    second = start(settings, "--no-worker", "--allowed-host", HOST)
    first.wait_ready()
    yield {"/films": first, None: second}
    next(starts, None)


@pytest.fixture(params=FORMS)
def below(
    request: pytest.FixtureRequest, servers: dict[str | None, Running], secret: str
) -> Iterator[Below]:
    program, root_path, changes = FORMS[request.param]
    upstream_port = int(servers[root_path].url.rpartition(":")[2])
    with run_proxies(program) as start:
        url = start(lambda port: make_config(program, port, upstream_port, changes))
        yield Below(url, secret)


def test_api_and_its_links_are_below_the_path(below: Below) -> None:
    with below.client as client:
        assert client.get("/films/health").json()["status"] == "ok"
        assert httpx2.get(f"{below.url}/films/v1/videos").status_code == 401
        described = client.get("/films/openapi.json").json()
        assert described["servers"] == [{"url": "/films"}]
        assert "'/films/openapi.json'" in client.get("/films/docs").text
        bare = client.get("/films")
        assert bare.status_code in (301, 302, 307)
        assert urlsplit(bare.headers["location"]).path == "/films/"
        preview = make_clip_with_preview(client)
        assert re.fullmatch(r"/films/v1/videos/clip_[0-9a-f]{24}/preview", preview)
        cookie = client.post("/films/session", json={"key": below.secret}).headers["set-cookie"]
        assert "; Path=/films;" in f"{cookie};"
        gone = client.delete("/films/session").headers["set-cookie"]
        assert "; Path=/films;" in f"{gone};"


def make_clip_with_preview(client: httpx2.Client) -> str:
    """The address of a preview that was there while a clip was made, by poll, list and events."""
    id = client.post("/films/v1/videos", json=SMALL | LONG).json()["id"]
    shown: set[str] = set()
    with client.stream("GET", f"/films/v1/videos/{id}/events") as answer:
        for line in answer.iter_lines():
            found = re.search(r'"preview_url":"([^"]+)"', line)
            if not found:
                continue
            shown.add(found[1])
            polled = client.get(f"/films/v1/videos/{id}").json()["preview_url"]
            listed = client.get("/films/v1/videos?limit=1").json()["data"][0]["preview_url"]
            queued = client.get("/films/v1/queue").json()["jobs"]
            shown |= {polled, listed, *(job["video"]["preview_url"] for job in queued)} - {None}
            break
    client.post(f"/films/v1/videos/{id}/cancel")
    (url,) = shown
    return url


def test_openai_client_makes_a_clip_and_reads_a_part_of_it(below: Below) -> None:
    openai = OpenAI(base_url=f"{below.url}/films/v1", api_key=below.secret)
    video = openai.videos.create_and_poll(prompt="a red ball", model="pocket", seconds="1")
    assert video.status == "completed"
    clip = openai.videos.download_content(video.id).read()
    with below.client as client:
        part = client.get(f"/films/v1/videos/{video.id}/content", headers={"range": "bytes=4-7"})
    assert (part.status_code, part.content) == (206, b"ftyp")
    assert part.content == clip[4:8]
    assert part.headers["content-range"] == f"bytes 4-7/{len(clip)}"


def test_clients_of_the_page_work_below_the_path(below: Below, tmp_path: Path) -> None:
    with below.client as client:
        assert client.get("/films/config").json()["root"] == f"{below.url}/films"
        landing = client.get("/films/gradio_api/mcp")
        assert (landing.status_code, landing.headers.get("location")) == (200, None)
        assert f'"{below.url}/films/gradio_api/mcp' in landing.text
    use_page_functions(f"{below.url}/films/", below.secret, tmp_path)
    clip = use_tool(f"{below.url}/films", below.secret)
    assert clip.startswith(f"{below.url}/films/gradio_api/file=")
    with below.client as client:
        answer = client.get(clip, headers={"range": "bytes=4-7"})
        assert (answer.status_code, answer.content) == (206, b"ftyp")


def download_converted_and_archived(page: Page) -> None:
    """Save the open clip as GIF, and the gallery's clips as one archive."""
    page.locator("film-viewer .film-menu summary").click()
    with page.expect_download() as started:
        page.locator("film-viewer .film-menu a[data-format=gif]").click()
    assert started.value.path().read_bytes().startswith(b"GIF89a")
    page.click("film-gallery .select-clips")
    page.locator("film-gallery .card").first.click()
    with page.expect_download() as started:
        page.click("film-gallery [data-action=archive]")
    assert started.value.path().read_bytes().startswith(b"PK")


@needs_chromium
@pytest.mark.parametrize("below", IN_BROWSER, indirect=True)
def test_page_makes_a_clip_and_plays_it(below: Below, browser: Browser) -> None:
    window = Windows(browser, below.url).window(permissions=["clipboard-read", "clipboard-write"])
    page = window.page
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{below.url}/films/")
    page.fill("dialog input[name=key]", below.secret, timeout=60_000)
    page.click("dialog button")
    page.wait_for_selector("dialog", state="detached", timeout=60_000)
    page.wait_for_selector("html.film-ready", timeout=60_000)
    window.write("a red circle moving left", seconds="1", seed="7")
    id = window.make()
    window.wait_done()
    player = page.locator("film-viewer video[controls]")
    expect(player).to_have_attribute("src", f"/films/v1/videos/{id}/content")
    wait_until(lambda: player.evaluate("(video) => video.currentTime > 0.1"), 60)
    assert player.evaluate("(video) => video.videoWidth") == 256
    expect(page.locator("film-gallery img").first).to_have_js_property("complete", True)
    assert page.locator("film-gallery img").first.evaluate("(img) => img.naturalWidth") > 0
    window.act("link")
    link = page.evaluate("navigator.clipboard.readText()")
    assert link == f"{below.url}/films/?clip={id}"
    page.goto(link)
    window.wait_done()
    download_converted_and_archived(page)
    assert [c["path"] for c in page.context.cookies()] == ["/films"]  # type: ignore[typeddict-item]
    strays = [url for url in asked if not urlsplit(url).path.startswith("/films/")]
    assert [url for url in strays if not url.startswith(("data:", "blob:"))] == []
    assert not window.errors
    assert not window.outside
    page.context.close()
