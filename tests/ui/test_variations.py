"""Variations: several seeds of one request side by side, of which one is chosen."""

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from filmlet.core.request import MAX_SEED
from filmlet.jobs import Queue
from filmlet.settings import Settings
from filmlet.ui.variations import variation_seeds
from tests.helpers.axe import find_violations
from tests.helpers.browsers import PHONE, Window, Windows, browser, needs_chromium, window
from tests.helpers.queues import ask
from tests.helpers.servers import Running, Serve, make_servers, serve, wait_until

__all__ = ["browser", "serve", "window"]
PROMPT = "a red circle moving left on a white background"
MAX_SHIFT = 0.1
WATCH_SHIFTS = """
window.shift = 0;
new PerformanceObserver(list => {
  for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shift += entry.value;
}).observe({ type: 'layout-shift', buffered: true });
"""
# Notes what the tiles showed, however short that was.
WATCH_TILES = """() => {
  window.seen = new Set();
  const viewer = document.querySelector('film-viewer');
  new MutationObserver(() => {
    for (const state of viewer.querySelectorAll('.tile .state'))
      window.seen.add(state.textContent.replace(/Seed \\d+: /, '').replace(/\\d+/g, 'N'));
    if (viewer.querySelector('.tile img.is-preview')) window.seen.add('preview');
    if (viewer.querySelector('.tile video[src*="stream=true"]')) window.seen.add('growing');
  }).observe(viewer, { subtree: true, childList: true, characterData: true });
}"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    starts = make_servers()
    home = tmp_path_factory.mktemp("variations")
    running = next(starts)(Settings(home=home, worker="variations", max_per_minute=10_000))
    running.wait_ready()
    yield running
    next(starts, None)


def make_variations(window: Window, seconds: str = "1", seed: str = "") -> list[str]:
    """Press the button; the ids of the variations that the page shows then."""
    window.write(PROMPT, seconds=seconds, seed=seed)
    expect(window.page.locator("#plan")).to_contain_text("frames")
    window.page.click("#variations")
    expect(tiles(window.page)).not_to_have_count(0)
    return shown_ids(window)


def shown_ids(window: Window) -> list[str]:
    ids: list[str] = window.page.evaluate(
        "new URLSearchParams(location.search).getAll('variation')"
    )
    return ids


def tiles(page: Page) -> Locator:
    return page.locator("film-viewer .tile")


def wait_ready(page: Page, count: int = 4) -> None:
    label = page.locator("film-viewer .stage-label")
    expect(label).to_have_text(f"{count} variations are ready", timeout=120_000)


def wait_denoising(page: Page) -> None:
    state = page.locator("film-viewer .tile .state", has_text="Denoising")
    expect(state).to_have_count(1, timeout=60_000)


def test_seeds_follow_the_given_one_and_stay_in_range() -> None:
    assert (variation_seeds("7", 4)) == ["7", "8", "9", "10"]
    assert (variation_seeds(f" {MAX_SEED} ", 3)) == [str(MAX_SEED), "0", "1"]
    assert (variation_seeds("", 4)) == [""] * 4
    for text in ("x", "-1", str(MAX_SEED + 1), "9" * 5000, "٣"):
        assert set(variation_seeds(text, 4)) == {text}


@needs_chromium
@pytest.mark.parametrize("device", [{}, PHONE])
def test_four_seeds_grow_side_by_side_and_one_is_chosen(
    browser: Browser, server: Running, device: dict[str, object]
) -> None:
    window = Windows(browser, server.url).window(**device)
    page = window.page
    page.add_init_script(WATCH_SHIFTS)
    window.open()
    page.wait_for_timeout(1000)
    page.evaluate(WATCH_TILES)
    ids = make_variations(window, "3", "7")
    assert len(ids) == 4
    assert window.clip is None
    boxes = page.evaluate(
        """() => [...document.querySelectorAll('.tile')].map(tile => {
             const { x, y } = tile.getBoundingClientRect();
             return [x, y];
           })"""
    )  # at once: the page may be scrolling
    assert len({x for x, _ in boxes}) == len({y for _, y in boxes}) == 2
    window.open("/?" + page.url.partition("?")[2])  # a reload keeps them
    page.evaluate(WATCH_TILES)
    expect(tiles(page)).to_have_count(4)
    wait_ready(page)
    states = page.locator("film-viewer .tile .state").all_inner_texts()
    assert states == [f"Seed {seed}: Ready" for seed in (7, 8, 9, 10)]
    assert [server.video(id)["seed"] for id in ids] == [7, 8, 9, 10]
    seen = page.evaluate("[...window.seen]")
    assert {"Position N", "Denoising, step N of N", "preview", "growing"} <= set(seen), seen
    page.wait_for_function(
        """() => [...document.querySelectorAll('.tile video:last-child')]
             .filter(v => v.muted && v.loop && !v.paused && v.currentTime > 0).length === 4"""
    )
    assert page.evaluate("window.shift") <= MAX_SHIFT
    tiles(page).nth(2).focus()
    page.keyboard.press("Enter")
    window.wait_done()
    assert window.clip == ids[2]
    assert "seed 9" in window.facts()
    assert page.evaluate("document.activeElement.closest('film-viewer') !== null")
    window.act("variations")
    expect(tiles(page).nth(2)).to_be_focused()
    page.go_back()
    window.wait_done()
    assert window.clip == ids[2]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert not window.errors


@needs_chromium
def test_others_are_deleted_and_come_back_by_undo(window: Window, server: Running) -> None:
    page = window.open().page
    ids = make_variations(window, "0.4")
    wait_ready(page)
    seeds = {server.video(id)["seed"] for id in ids}
    assert len(seeds) == 4
    tiles(page).nth(1).click()
    window.wait_done()
    window.act("delete-others")
    expect(page.locator("#film-undo")).to_contain_text("Deleted 3 clips.")
    expect(page.locator("film-viewer .variations")).to_be_hidden()
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("film-viewer .variations")).to_be_visible()
    window.act("delete-others")
    window.open("/")
    for clip in (ids[0], ids[2], ids[3]):
        path = f"/v1/videos/{clip}"
        wait_until(lambda path=path: server.client.get(path).status_code == 404)
    assert server.client.get(f"/v1/videos/{ids[1]}").status_code == 200
    window.open("/?" + "&".join(f"variation={id}" for id in ids))
    expect(page.locator("film-viewer .tile:visible")).to_have_count(1)


@needs_chromium
@pytest.mark.parametrize("way", ["Escape", "stop"])
def test_all_are_stopped_and_continued(window: Window, server: Running, way: str) -> None:
    page = window.open().page
    window.write(PROMPT, seconds="10")
    expect(page.locator("#plan")).to_contain_text("frames")
    page.focus("#prompt textarea")
    page.keyboard.press("Control+Shift+Enter")
    wait_denoising(page)
    ids = shown_ids(window)
    if way == "Escape":
        page.keyboard.press("Escape")
    else:
        window.act("stop")
    for id in ids:
        assert server.wait_over(id)["error"]["code"] == "cancelled"  # type: ignore[index]
    expect(page.locator("film-viewer .tile .state", has_text="Stopped")).to_have_count(4)
    window.act("retry")
    expect(page.locator("film-viewer [data-action=stop]")).to_be_visible()
    window.act("stop")
    expect(page.locator("film-viewer .tile .state", has_text="Stopped")).to_have_count(4)


@needs_chromium
def test_where_fewer_are_allowed_the_page_says_so(
    browser: Browser, serve: Serve, tmp_path: Path
) -> None:
    running = serve(Settings(home=tmp_path, worker="few", max_active=2))
    running.wait_ready()
    window = Windows(browser, running.url).window().open()
    ids = make_variations(window, "10")
    assert len(ids) == 2
    note = window.page.locator("#film-refusal")
    expect(note).to_contain_text("2 of 4 variations were queued. You have 2 unfinished jobs")
    expect(tiles(window.page)).to_have_count(2)
    window.page.click("#variations")
    expect(window.page.locator("#plan .error")).to_contain_text("You have 2 unfinished jobs")
    assert shown_ids(window) == ids


@needs_chromium
def test_chosen_draft_is_refined(window: Window, server: Running, tiny_two: Path) -> None:
    page = window.page
    with closing(Queue(Settings(home=server.home))) as queue:
        drafts = [queue.submit(ask(tiny_two, seed=seed, draft=True)).id for seed in range(4)]
    window.open("/?" + "&".join(f"variation={draft}" for draft in drafts))
    wait_ready(page)
    tiles(page).nth(1).click()
    window.wait_done()
    assert "seed 1, draft" in window.facts()
    window.act("refine")
    page.wait_for_function("id => !location.search.includes(id)", arg=drafts[1])
    window.wait_done()
    refined = server.video(str(window.clip))
    assert (refined["seed"], refined["draft"]) == (1, False)
    assert refined["remixed_from_video_id"] == drafts[1]


@needs_chromium
def test_hostile_link_shows_nothing_of_it(window: Window) -> None:
    page = window.open("/?variation=<img src=x onerror=alert(1)>&variation=clip_" + "0" * 24).page
    label = page.locator("film-viewer .stage-label")
    expect(label).to_contain_text("not here")
    expect(page.locator("film-viewer .tile:visible")).to_have_count(0)
    window.open("/?variation=..%2F..%2Fsession")
    expect(page.locator("film-viewer .message")).to_contain_text("No clip yet")


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", [{}, PHONE])
def test_variations_meet_wcag(
    browser: Browser, server: Running, scheme: str, device: dict[str, object]
) -> None:
    window = Windows(browser, server.url).window(**device, color_scheme=scheme).open()
    page, target_px = window.page, 44 if device else 24
    page.wait_for_timeout(800)
    make_variations(window, "4")
    wait_denoising(page)
    assert find_violations(page) == []
    window.act("pause")
    expect(page.get_by_role("button", name="Play all")).to_be_visible()
    wait_ready(page)
    assert page.evaluate(
        "[...document.querySelectorAll('.tile video:last-child')].every(v => v.paused)"
    )
    assert find_violations(page) == []
    for target in page.locator("film-viewer button:visible, #make-row button").all():
        box = target.bounding_box()
        assert box
        assert min(box["width"], box["height"]) >= target_px
    tiles(page).first.click()
    window.wait_done()
    assert find_violations(page) == []
    assert re.search(r"clip=clip_", page.url)
