"""Favourites and the order of the gallery, which a browser keeps."""

import json
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from filmlet.settings import Settings
from tests.helpers.axe import find_violations
from tests.helpers.browsers import PHONE, Window, Windows, browser, needs_chromium, window
from tests.helpers.servers import Running, make_servers, wait_until

__all__ = ["browser", "window"]
pytestmark = needs_chromium
FIRST_CARD = """() => {
  const { x, y } = document.querySelector('film-gallery .card').getBoundingClientRect();
  return [x, y + scrollY];
}"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    starts = make_servers()
    home = tmp_path_factory.mktemp("favourites")
    running = next(starts)(Settings(home=home, worker="favourites", max_per_minute=10_000))
    running.wait_ready()
    yield running
    next(starts, None)


@pytest.fixture
def clips(server: Running) -> Iterator[list[str]]:
    """The newest comes first."""
    jobs = [server.job(prompt=f"{name} ball", size="64x64") for name in ("red", "blue", "green")]
    for job in jobs:
        assert server.wait_over(job)["status"] == "completed"
    yield jobs[::-1]
    for job in jobs:
        server.client.delete(f"/v1/videos/{job}")


def expect_prompts(page: Page, *prompts: str) -> None:
    expect(page.locator("film-gallery .card .name")).to_have_text([f"{p} ball" for p in prompts])


def press_star(page: Page, prompt: str) -> None:
    page.get_by_role("button", name=f"Favourite: {prompt} ball").click()


def test_favourites_and_order_are_kept_over_a_reload(window: Window, clips: list[str]) -> None:
    page = window.open().page
    expect_prompts(page, "green", "blue", "red")
    only = page.get_by_role("button", name="Favourites", exact=True)
    only.click()
    expect(page.locator("film-gallery .no-results")).to_contain_text("press the star of a clip")
    only.click()
    press_star(page, "red")
    star = page.get_by_role("button", name="Favourite: green ball")
    star.focus()
    page.keyboard.press("Space")
    expect(star).to_have_attribute("aria-pressed", "true")
    assert window.clip is None
    only.click()
    expect_prompts(page, "green", "red")
    page.get_by_label("Order").select_option("Oldest first")
    expect_prompts(page, "red", "green")
    window.open()
    expect_prompts(page, "red", "green")
    expect(only).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_label("Order")).to_have_value("asc")
    page.fill("film-gallery input", "GREEN")
    expect_prompts(page, "green")
    page.fill("film-gallery input", "")
    press_star(page, "red")
    expect_prompts(page, "green")
    only.click()
    expect_prompts(page, "red", "blue", "green")
    assert len(clips) == 3


def test_deleted_favourite_comes_back_by_undo_and_is_forgotten_with_its_clip(
    window: Window, server: Running, clips: list[str]
) -> None:
    page = window.open().page
    for prompt in ("blue", "green"):
        press_star(page, prompt)
    page.get_by_role("button", name="Favourites", exact=True).click()
    expect_prompts(page, "green", "blue")
    page.locator("film-gallery .card").nth(1).click()
    window.wait_done()
    window.act("delete")
    expect_prompts(page, "green")
    page.get_by_role("button", name="Undo").click()
    expect_prompts(page, "green", "blue")
    page.get_by_role("button", name="Select", exact=True).click()
    expect(page.locator("film-gallery .star").first).to_be_hidden()
    page.locator("film-gallery .card").nth(0).click()
    page.click("film-gallery [data-action=delete]")
    expect_prompts(page, "blue")
    expect(page.locator("#film-undo")).to_have_count(0, timeout=15_000)
    wait_until(lambda: server.client.get(f"/v1/videos/{clips[0]}").status_code == 404)
    page.wait_for_function("() => JSON.parse(localStorage['film:favourites']).length === 1")
    assert json.loads(page.evaluate("localStorage['film:favourites']")) == [clips[1]]


def test_what_the_browser_keeps_is_checked(window: Window, clips: list[str]) -> None:
    page = window.open().page
    old = [f"clip_{number:024x}" for number in range(99)]
    for kept in ("[1", '{"a": 1}', json.dumps([1, None, "../../session", *old, clips[0], *old])):
        page.evaluate("kept => localStorage['film:favourites'] = kept", kept)
        page.evaluate("localStorage['film:gallery'] = '{\"order\": \"drop table\"}'")
        window.open()
        expect_prompts(page, "green", "blue", "red")
    press_star(page, "red")  # there is room: the old ones are not here any more
    star = page.get_by_role("button", name="Favourite: red ball")
    expect(star).to_have_attribute("aria-pressed", "true")
    kept = json.loads(page.evaluate("localStorage['film:favourites']"))
    assert kept == [clips[0], clips[2]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", [{}, PHONE])
def test_stars_meet_wcag(
    browser: Browser, server: Running, clips: list[str], scheme: str, device: dict[str, object]
) -> None:
    page = Windows(browser, server.url).window(**device, color_scheme=scheme).open().page
    expect(page.locator("film-gallery .star")).to_have_count(len(clips))
    before = page.evaluate(FIRST_CARD)
    press_star(page, "blue")
    expect(page.locator("film-gallery .star[aria-pressed=true]")).to_have_count(1)
    assert find_violations(page) == []
    page.get_by_role("button", name="Favourites", exact=True).click()
    expect_prompts(page, "blue")
    assert find_violations(page) == []
    assert page.evaluate(FIRST_CARD) == before
    head = page.locator("film-gallery :is(.head button, .head select, .star):visible")
    for target in head.all():
        box = target.bounding_box()
        assert box
        assert min(box["width"], box["height"]) >= (44 if device else 24)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
