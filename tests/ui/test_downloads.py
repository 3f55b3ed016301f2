"""Downloads of the page: a clip in another format, from the viewer and the gallery."""

from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, Download, Page, expect

from filmlet.jobs import ApiKeyStore
from filmlet.jobs.database import Database
from filmlet.settings import Settings
from tests.helpers.axe import find_violations
from tests.helpers.browsers import PHONE, Window, Windows, browser, needs_chromium, window
from tests.helpers.servers import SMALL, Running, Serve, make_servers

__all__ = ["browser", "window"]
pytestmark = needs_chromium
PROMPT = "a red circle moving left"
WIDE: dict[str, Any] = {"viewport": {"width": 1280, "height": 720}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    starts = make_servers()
    home = tmp_path_factory.mktemp("downloads")
    running = next(starts)(Settings(home=home, worker="downloads", max_per_minute=10_000))
    running.wait_ready()
    yield running
    next(starts, None)


@pytest.fixture(scope="module")
def clip(server: Running) -> str:
    job = server.job(prompt=PROMPT, size="256x256")
    assert server.wait_over(job)["status"] == "completed"
    return job


def frames_of(download: Download) -> int:
    with Image.open(download.path()) as image:
        return int(image.n_frames)


POSITIONS = """() => ["film-viewer .prompt", "film-viewer .actions", "film-gallery .grid"].map(
  selector => {
    const { left, top, width, height } = document.querySelector(selector).getBoundingClientRect();
    return [left, top + scrollY, width, height];
  })"""


def positions(page: Page) -> list[list[float]]:
    """Where everything beside the menu stands in the page."""
    found: list[list[float]] = page.evaluate(POSITIONS)
    return found


def test_clip_is_downloaded_in_another_format_by_the_keyboard(window: Window, clip: str) -> None:
    page = window.open(f"/?clip={clip}").page
    window.wait_done()
    before = positions(page)
    button = page.locator("film-viewer .film-menu summary")
    expect(button).to_have_text("Download as")
    button.focus()
    page.keyboard.press("Enter")
    links = page.locator("film-viewer .film-menu a")
    assert links.all_text_contents() == ["MP4", "WebM", "GIF", "WebP"]
    assert positions(page) == before
    page.keyboard.press("Tab")
    expect(links.first).to_be_focused()
    page.keyboard.press("Escape")
    expect(links.first).to_be_hidden()
    expect(button).to_be_focused()
    page.keyboard.press("Enter")
    for _ in range(3):
        page.keyboard.press("Tab")
    with page.expect_download() as started:
        page.keyboard.press("Enter")
    assert started.value.suggested_filename == "a-red-circle-moving-left-3.gif"
    assert frames_of(started.value) > 1
    expect(links.first).to_be_hidden()
    assert positions(page) == before
    button.click()
    with page.expect_download() as started:
        links.first.click()
    assert started.value.suggested_filename == "a-red-circle-moving-left-3.mp4"
    button.click()
    page.click("film-viewer .prompt")
    expect(links.first).to_be_hidden()


def test_gallery_offers_formats_on_a_phone(browser: Browser, server: Running, clip: str) -> None:
    window = Windows(browser, server.url).window(**PHONE).open()
    menu = window.page.locator("film-gallery .film-menu").first
    menu.scroll_into_view_if_needed()
    menu.locator("summary").tap()
    with window.page.expect_download() as started:
        menu.locator("a", has_text="WebP").tap()
    assert started.value.suggested_filename == "a-red-circle-moving-left-3.webp"
    assert frames_of(started.value) > 1
    assert window.clip is None
    assert not window.errors
    assert clip


def test_why_a_clip_is_not_converted_is_shown(window: Window, server: Running) -> None:
    job = server.job(prompt="a lost clip")
    server.wait_over(job)
    page = window.open(f"/?clip={job}").page
    window.wait_done()
    (server.home / "jobs" / job / "clip.mp4").unlink()
    page.locator("film-viewer .film-menu summary").click()
    page.locator("film-viewer .film-menu a", has_text="GIF").click()
    expect(page.locator("#film-refusal")).to_contain_text("The clip was not converted.")
    expect(page.locator("#film-refusal")).to_contain_text("has no clip.mp4 in the storage")
    expect(page.locator("film-viewer .film-menu summary")).to_have_attribute("aria-busy", "false")
    server.client.delete(f"/v1/videos/{job}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", ["wide", "phone"])
def test_open_menus_meet_wcag(
    browser: Browser, server: Running, clip: str, size: str, scheme: str
) -> None:
    options = (PHONE if size == "phone" else WIDE) | {"color_scheme": scheme}
    page = Windows(browser, server.url).window(**options).open(f"/?clip={clip}").page
    page.wait_for_selector("film-viewer a[download]")
    page.wait_for_selector("film-gallery .film-menu")
    for place in ("film-viewer", "film-gallery"):
        menu = page.locator(f"{place} .film-menu").first
        menu.locator("summary").click()
        assert find_violations(page) == [], place
        for target in [menu.locator("summary"), *menu.locator("a").all()]:
            box = target.bounding_box()
            assert box
            least = 44 if size == "phone" else 24
            assert min(box["width"], box["height"]) >= least, target
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= page.evaluate("innerWidth")
        page.keyboard.press("Escape")


def test_who_is_signed_in_downloads_his_clips(
    browser: Browser, serve: Serve, home: Settings
) -> None:
    database = Database(home)
    secret = ApiKeyStore(database, home).add("ann").secret
    database.close()
    server = serve(home)
    server.client.headers["authorization"] = f"Bearer {secret}"
    server.wait_ready()
    job = server.job(**SMALL)
    server.wait_over(job)
    window = Windows(browser, server.url).window().open()
    window.page.fill("dialog input", secret)
    window.page.get_by_role("button", name="Sign in").click()
    window.page.wait_for_selector("film-gallery .film-menu summary").click()
    with window.page.expect_download() as started:
        window.page.locator("film-gallery .film-menu a", has_text="GIF").click()
    assert frames_of(started.value) > 1
