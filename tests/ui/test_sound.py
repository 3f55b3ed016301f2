"""Clips with sound in the page: muted until somebody wants to hear them, which is remembered.

Their worker is one whose clips have a click; everything else is as it is served.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from filmlet.settings import Settings
from tests.helpers.browsers import PHONE, Window, Windows, browser, needs_chromium
from tests.helpers.forked_processes import ForkedProcess
from tests.helpers.queues import environment
from tests.helpers.servers import Running, make_servers

__all__ = ["browser"]
pytestmark = [pytest.mark.browser, needs_chromium]
PLAYER = "document.querySelector('film-viewer video:last-of-type')"
BUTTON = "film-viewer .sound"
PROMPT = "a red circle moving left on a white background"
HEARD = """async (url) => {
  const data = await (await fetch(url)).arrayBuffer();
  const sound = await new OfflineAudioContext(2, 48000, 48000).decodeAudioData(data);
  const samples = sound.getChannelData(0);
  return { click: samples.findIndex((value) => Math.abs(value) > 0.3), length: sound.length };
}"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    starts, home = make_servers(), tmp_path_factory.mktemp("sound")
    settings = Settings(home=home, worker="sound", max_per_minute=10_000)
    running = next(starts)(settings, "--no-worker")
    worker = ForkedProcess(
        [], environment(settings), home / "worker.log", module="tests.helpers.sounding_worker"
    )
    running.wait_ready()
    yield running
    worker.kill()
    worker.wait()
    next(starts, None)


@pytest.fixture
def window(browser: Browser, server: Running) -> Iterator[Window]:
    window = Windows(browser, server.url).window()
    yield window
    assert not window.errors
    window.page.context.close()


@pytest.fixture(scope="module")
def clip(server: Running) -> str:
    """A finished clip with sound, 24 frames with a click at the twelfth."""
    job = server.job(prompt=PROMPT, size="128x128", frames=24, steps=4)
    assert server.wait_over(job)["status"] == "completed"
    return job


def wait_playing(window: Window) -> None:
    window.page.wait_for_function(f"() => {PLAYER}?.currentTime > 0")


def is_muted(window: Window) -> bool:
    return bool(window.page.evaluate(f"{PLAYER}.muted"))


def test_clip_plays_muted_and_is_heard_after_a_press(window: Window, clip: str) -> None:
    window.open(f"/?clip={clip}")
    wait_playing(window)
    assert is_muted(window)
    button = window.page.locator(BUTTON)
    expect(button).to_have_text(re.compile("Unmute"))
    button.click()
    expect(button).to_have_text(re.compile(r"^\s*Mute"))
    assert not is_muted(window)
    window.page.wait_for_function(f"() => {PLAYER}.webkitAudioDecodedByteCount > 0")
    before = window.page.evaluate(f"{PLAYER}.currentTime")
    window.page.wait_for_function(f"now => {PLAYER}.currentTime !== now", arg=before)
    assert "with sound" in window.facts()


def test_choice_is_remembered_by_the_browser(window: Window, clip: str) -> None:
    window.open(f"/?clip={clip}")
    wait_playing(window)
    window.page.click(BUTTON)
    window.page.evaluate(f"{PLAYER}.volume = 0.25")
    window.page.wait_for_function("() => localStorage.getItem('film:sound')?.includes('0.25')")
    window.page.reload()
    # Where the browser lets no page begin with sound, it plays muted, and the choice stays.
    wait_playing(window)
    assert window.page.evaluate(f"{PLAYER}.volume") == 0.25
    stored = window.page.evaluate("JSON.parse(localStorage.getItem('film:sound'))")
    assert stored == {"muted": False, "volume": 0.25}


@pytest.mark.parametrize("stored", ["null", "loud", '{"muted": false, "volume": "loud"}', "[]"])
def test_choice_that_cannot_be_read_counts_as_none(window: Window, clip: str, stored: str) -> None:
    window.open()
    window.page.evaluate("text => localStorage.setItem('film:sound', text)", stored)
    window.open(f"/?clip={clip}")
    wait_playing(window)
    assert is_muted(window)
    assert window.page.evaluate(f"{PLAYER}.volume") == 1


def test_growing_clip_has_the_button_and_its_sound(window: Window) -> None:
    window.open()
    window.write(PROMPT, seconds="4")
    window.make()
    window.page.wait_for_selector("film-viewer video:not([controls])", timeout=120_000)
    expect(window.page.locator(BUTTON)).to_have_text(re.compile("Unmute"))
    window.page.click(BUTTON)
    window.page.wait_for_function(
        f"() => {PLAYER}.src.includes('stream=true') && {PLAYER}.webkitAudioDecodedByteCount > 0"
        f" && {PLAYER}.currentTime > 0",
        timeout=120_000,
    )
    window.wait_done()
    wait_playing(window)
    assert not is_muted(window), "the finished clip must go on as the growing one was heard"


def test_sound_is_in_sync_in_the_browser(window: Window, clip: str) -> None:
    window.open()
    for query in ("", "?variant=audio"):
        heard = window.page.evaluate(HEARD, f"/v1/videos/{clip}/content{query}")
        assert heard["length"] == 48_000
        assert heard["click"] == pytest.approx(24_000, abs=2)


def test_gallery_marks_clips_with_sound(window: Window, clip: str) -> None:
    window.open(f"/?clip={clip}")
    card = window.page.locator("film-gallery .card").filter(has_text=PROMPT).last
    expect(card.get_by_role("img", name="With sound")).to_be_visible()


def test_sound_button_is_in_reach_on_a_phone(browser: Browser, server: Running, clip: str) -> None:
    window = Windows(browser, server.url).window(**PHONE).open(f"/?clip={clip}")
    wait_playing(window)
    box = window.page.locator(BUTTON).bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390
    assert box["height"] >= 36
    window.page.tap(BUTTON)
    assert not is_muted(window)
    assert not window.errors
    window.page.context.close()


def test_worker_log_has_no_error(server: Running, clip: str) -> None:
    del clip
    log = Path(server.home / "worker.log").read_text()
    assert "Traceback" not in log
