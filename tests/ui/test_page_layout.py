"""The page in Chromium: what is in sight, what moves, and what WCAG 2.2 AA asks for."""

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from filmlet.settings import Settings
from tests.helpers.axe import find_violations
from tests.helpers.browsers import PHONE, Window, Windows, browser, needs_chromium, window
from tests.helpers.servers import Running, make_servers

__all__ = ["browser", "window"]
pytestmark = [pytest.mark.browser, needs_chromium]
PROMPT = "a red circle moving left on a white background"
LONG_PROMPT = "a yellow circle moving slowly to the right under the sea, " * 8 + "x" * 300
MAX_SHIFT = 0.1
MAX_LOAD_BYTES = 605_000
WATCH_SHIFTS = """
window.shift = 0;
new PerformanceObserver(list => {
  for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shift += entry.value;
}).observe({ type: 'layout-shift', buffered: true });
"""
SIZES: dict[str, dict[str, Any]] = {
    "1280x720": {"viewport": {"width": 1280, "height": 720}},
    "1440x900": {"viewport": {"width": 1440, "height": 900}},
    "phone": PHONE,
}
IN_SIGHT = """selectors => selectors.filter(selector => {
  const { top, left, bottom, right } = document.querySelector(selector).getBoundingClientRect();
  return top < 0 || left < 0 || bottom > innerHeight || right > innerWidth;
})"""
# Buttons, fields and summaries whose area is smaller; links within a sentence need not be large.
SMALL_TARGETS = """px => [...document.querySelectorAll(
    'button, select, summary, a.film-button, textarea, input:not([type=file])'
  )].filter(element => {
    const isInLabel = ['radio', 'checkbox'].includes(element.type);
    const target = isInLabel ? element.closest('label') : element;
    const { width, height } = target.getBoundingClientRect();
    return target.checkVisibility({ visibilityProperty: true }) && width > 1
      && Math.min(width, height) < px - 0.5;
  }).map(element => element.outerHTML.slice(-160))"""
OVERLAP = """([x, y]) => [...document.querySelectorAll('film-viewer [data-action], film-viewer a')]
  .filter(element => {
    const { top, left, bottom, right } = element.getBoundingClientRect();
    return left <= x && x <= right && top <= y && y <= bottom;
  }).map(element => element.textContent)"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    starts = make_servers()
    home = tmp_path_factory.mktemp("layout")
    running = next(starts)(Settings(home=home, worker="layout", max_per_minute=10_000))
    running.wait_ready()
    yield running
    next(starts, None)


def test_first_load_is_small(window: Window) -> None:
    """Bytes on the wire, as the browser counts them."""
    page = window.page
    network = page.context.new_cdp_session(page)
    network.send("Network.enable")
    sizes: list[float] = []
    network.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    window.open()
    page.wait_for_selector("html.film-ready")
    page.wait_for_load_state("networkidle")
    assert 100_000 < sum(sizes) <= MAX_LOAD_BYTES


def open_window(browser: Browser, server: Running, size: str, **options: object) -> Window:
    window = Windows(browser, server.url).window(**SIZES[size] | options)
    window.page.add_init_script(WATCH_SHIFTS)
    return window.open()


def out_of_sight(page: Page) -> list[str]:
    """Of prompt, button and clip, those that are not whole in the view."""
    parts = ["#prompt textarea", "#make", "film-viewer .screen"]
    found: list[str] = page.evaluate(IN_SIGHT, parts)
    return found


@pytest.mark.parametrize("size", SIZES)
def test_prompt_button_and_clip_are_in_one_view_and_nothing_moves(
    browser: Browser, server: Running, size: str
) -> None:
    window = open_window(browser, server, size)
    page = window.page
    page.wait_for_timeout(1500)
    assert out_of_sight(page) == []
    window.write(PROMPT, seconds="1")
    page.evaluate("scrollTo(0, 0)")
    window.make()
    page.wait_for_selector("film-viewer progress")
    assert page.evaluate("scrollY") == 0
    assert out_of_sight(page) == []
    window.wait_done()
    page.wait_for_timeout(2500)
    assert out_of_sight(page) == []
    assert page.evaluate("window.shift") <= MAX_SHIFT


def test_clip_comes_into_sight_when_it_is_made_from_further_down(
    browser: Browser, server: Running
) -> None:
    window = open_window(browser, server, "phone")
    window.write(PROMPT, seconds="0.4")
    window.page.evaluate("scrollTo(0, 500)")
    window.make()
    window.page.wait_for_function("scrollY < 100")
    assert out_of_sight(window.page)[1:] == []


@pytest.mark.parametrize("size", ["1280x720", "phone"])
def test_second_press_of_stop_presses_nothing(browser: Browser, server: Running, size: str) -> None:
    window = open_window(browser, server, size)
    page = window.page
    window.write(PROMPT, seconds="10")
    clip = window.make()
    box = page.locator("film-viewer [data-action=stop]").bounding_box()
    assert box
    window.act("stop")
    page.wait_for_selector("film-viewer [data-action=delete]")
    points = [(box["x"] + box["width"] * i / 4, box["y"] + box["height"] * j / 4)
              for i in range(5) for j in range(5)]  # fmt: skip
    assert [page.evaluate(OVERLAP, point) for point in points] == [[]] * len(points)
    page.mouse.click(*points[12])
    page.wait_for_timeout(300)
    assert window.clip == clip
    assert page.locator("#film-undo").count() == 0
    assert server.video(clip)["error"]["code"] == "cancelled"  # type: ignore[index]


def test_no_state_scrolls_sideways_on_a_narrow_phone(browser: Browser, server: Running) -> None:
    phone = {**PHONE, "viewport": {"width": 320, "height": 640}}
    window = Windows(browser, server.url).window(**phone)
    running = server.job(size="256x256", frames=481, prompt=LONG_PROMPT)
    waiting = server.job(prompt=LONG_PROMPT, priority="low")
    stopped = server.job(prompt=LONG_PROMPT, priority="low")
    server.client.post(f"/v1/videos/{stopped}/cancel")
    for clip in (running, waiting, stopped):
        window.open(f"/?clip={clip}")
        window.page.wait_for_selector("film-viewer .prompt")
        expect(window.page.locator("film-queue li")).not_to_have_count(0)
        width = window.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert width == [320, 320], clip
    for clip in (running, waiting):
        server.client.post(f"/v1/videos/{clip}/cancel")
        server.wait_over(clip)


def test_queue_is_hidden_while_nobody_else_waits(browser: Browser, server: Running) -> None:
    window = open_window(browser, server, "1280x720")
    window.write(PROMPT, seconds="10")
    clip = window.make()
    window.page.wait_for_selector("film-viewer progress")
    expect(window.page.locator("film-queue")).to_be_hidden()
    other = server.job(prompt="somebody else waits", priority="low")
    expect(window.page.locator("film-queue li")).to_have_count(2)
    for job in (clip, other):
        server.client.post(f"/v1/videos/{job}/cancel")
        server.wait_over(job)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", ["1280x720", "phone"])
def test_every_state_meets_wcag(browser: Browser, server: Running, size: str, scheme: str) -> None:
    window = open_window(browser, server, size, color_scheme=scheme)
    page, target_px = window.page, 44 if size == "phone" else 24

    def check(state: str) -> None:
        assert find_violations(page) == [], state
        assert page.evaluate(SMALL_TARGETS, target_px) == [], state

    page.wait_for_timeout(800)
    check("empty")
    page.get_by_text("Advanced", exact=True).click()
    page.get_by_text("Ideas", exact=True).click()
    page.get_by_label("image", exact=True).check()
    expect(page.locator("#images")).to_be_visible()
    window.write("a candle moving lefft on white", seconds="500")
    expect(page.locator("#images .field-error")).to_be_visible()
    check("no image")
    page.get_by_label("text", exact=True).check()
    expect(page.locator("#seconds .field-error")).to_be_visible()
    check("refused")
    window.write(PROMPT, seconds="10")
    window.make()
    other = server.job(prompt="somebody else waits", priority="low")
    page.wait_for_selector("film-queue li")
    check("running")
    window.act("stop")
    page.wait_for_selector("film-viewer [data-action=retry]")
    check("stopped")
    window.act("delete")
    check("deleted")
    server.wait_over(other)
    window.open(f"/?clip={other}")
    window.wait_done()
    check("done")


def test_refusals_are_announced_and_shown_beside_their_field(
    browser: Browser, server: Running
) -> None:
    window = open_window(browser, server, "1280x720")
    page = window.page
    for seconds, text in (("500", "seconds must be at most"), ("-3", "must be a number above 0")):
        window.write(PROMPT, seconds=seconds)
        expect(page.locator("#seconds .field-error")).to_contain_text(text)
        page.click("#make")
        expect(page.locator("[role=alert]", has_text=text)).to_have_count(1)
        expect(page.locator("#seconds input[type=number]")).to_have_attribute(
            "aria-describedby", "field-error"
        )
    window.write(PROMPT, seconds="1")
    expect(page.locator(".field-error")).to_have_count(0)
    page.get_by_label("image", exact=True).check()
    page.click("#make")
    expect(page.locator("#images .field-error")).to_contain_text("Choose an image to start from")
    assert window.clip is None
    assert not window.errors
