"""Several clips of the gallery at once: one ZIP of them, and deletion that can be undone."""

import re
import zipfile
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from filmlet.settings import Settings
from tests.helpers.axe import find_violations
from tests.helpers.browsers import PHONE, Window, Windows, browser, needs_chromium, window
from tests.helpers.servers import Running, make_servers, wait_until

__all__ = ["browser", "window"]
pytestmark = needs_chromium


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    starts = make_servers()
    home = tmp_path_factory.mktemp("selection")
    running = next(starts)(Settings(home=home, worker="selection", max_per_minute=10_000))
    running.wait_ready()
    yield running
    next(starts, None)


@pytest.fixture
def clips(server: Running) -> Iterator[list[str]]:
    """The newest comes first in the gallery."""
    jobs = [server.job(prompt="a ball", size="64x64") for _ in range(3)]
    for job in jobs:
        assert server.wait_over(job)["status"] == "completed"
    yield jobs[::-1]
    for job in jobs:
        server.client.delete(f"/v1/videos/{job}")


def select(page: Page, *places: int) -> None:
    page.get_by_role("button", name="Select", exact=True).click()
    for place in places:
        page.locator("film-gallery .card").nth(place).click()
    expect(page.locator("film-gallery .count")).to_have_text(f"{len(places)} selected")


def test_selected_clips_come_as_one_zip(window: Window, clips: list[str]) -> None:
    page = window.open().page
    cards = page.locator("film-gallery .card")
    expect(cards).to_have_count(len(clips))
    select(page)
    for action in ("archive", "delete"):
        expect(page.locator(f"film-gallery [data-action={action}]")).to_be_disabled()
    cards.nth(0).focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    expect(cards.nth(1)).to_have_attribute("aria-pressed", "true")
    cards.nth(2).click()
    cards.nth(2).click()
    expect(cards.nth(2)).to_have_attribute("aria-pressed", "false")
    assert window.clip is None
    with page.expect_download() as started:
        page.click("film-gallery [data-action=archive]")
    assert started.value.suggested_filename == "filmlet-clips.zip"
    with zipfile.ZipFile(started.value.path()) as archive:
        assert archive.namelist() == ["a-ball-3.mp4", "a-ball-3-2.mp4"]
        assert archive.testzip() is None
    expect(page.locator("film-gallery .selection")).to_be_hidden()
    expect(cards.nth(0)).not_to_have_attribute("aria-pressed", re.compile("."))
    cards.nth(0).click()
    assert window.clip == clips[0]


def test_selected_clips_are_deleted_and_come_back_by_undo(
    window: Window, server: Running, clips: list[str]
) -> None:
    page = window.open(f"/?clip={clips[1]}").page
    window.wait_done()
    select(page, 0, 1)
    page.keyboard.press("Escape")
    expect(page.locator("film-gallery .selection")).to_be_hidden()
    select(page, 0, 1)
    page.click("film-gallery [data-action=delete]")
    expect(page.locator("film-gallery .card")).to_have_count(1)
    assert window.clip is None
    expect(page.locator("#film-undo")).to_contain_text("Deleted 2 clips.")
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("film-gallery .card")).to_have_count(3)
    select(page, 0, 2)
    page.click("film-gallery [data-action=delete]")
    expect(page.locator("film-gallery .card")).to_have_count(1)
    left = [server.client.get(f"/v1/videos/{clip}").status_code for clip in clips]
    assert left == [200, 200, 200]
    window.open()  # whoever leaves the page does not undo it any more
    for clip in (clips[0], clips[2]):
        path = f"/v1/videos/{clip}"
        wait_until(lambda path=path: server.client.get(path).status_code == 404)
    assert server.client.get(f"/v1/videos/{clips[1]}").status_code == 200


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_selection_meets_wcag_on_a_phone(
    browser: Browser, server: Running, clips: list[str], scheme: str
) -> None:
    page = Windows(browser, server.url).window(**PHONE, color_scheme=scheme).open().page
    expect(page.locator("film-gallery .film-menu")).to_have_count(len(clips))
    select(page, 0)
    assert find_violations(page) == []
    for target in page.locator("film-gallery .head button").all():
        box = target.bounding_box()
        assert box
        assert min(box["width"], box["height"]) >= 44
        assert box["x"] + box["width"] <= 390
