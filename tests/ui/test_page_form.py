"""The form in Chromium: what it keeps, what fills it, and what it refuses."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from filmlet.settings import Settings
from tests.helpers.browsers import PHONE, Window, Windows, browser, needs_chromium, window
from tests.helpers.servers import Running, make_servers

__all__ = ["browser", "window"]
pytestmark = [pytest.mark.browser, needs_chromium]
PROMPT = "a red circle moving left on a white background"
NO_CLIPBOARD = "Object.defineProperty(navigator, 'clipboard', { value: undefined })"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    starts = make_servers()
    home = tmp_path_factory.mktemp("form")
    running = next(starts)(Settings(home=home, worker="form", max_per_minute=10_000))
    running.wait_ready()
    yield running
    next(starts, None)


def test_form_is_kept_over_a_reload_until_it_is_cleared(window: Window) -> None:
    page = window.open().page
    window.write(PROMPT, seconds="2.5", seed="77")
    page.get_by_label("16:9").check()
    page.get_by_text("Advanced", exact=True).click()
    page.get_by_label("Further prompts").fill("a star\na heart")
    expect(page.locator("#plan")).to_contain_text("overlapping parts")
    window.open()
    expect(page.locator("#prompt textarea")).to_have_value(PROMPT)
    expect(page.locator("#seconds input")).to_have_value("2.5")
    expect(page.get_by_label("Seed")).to_have_value("77")
    expect(page.get_by_label("16:9")).to_be_checked()
    page.get_by_text("Advanced", exact=True).click()
    expect(page.get_by_label("Further prompts")).to_have_value("a star\na heart")
    page.get_by_role("button", name="Clear the form").click()
    expect(page.locator("#prompt textarea")).to_have_value("")
    expect(page.get_by_label("1:1")).to_be_checked()
    window.open()
    expect(page.locator("#prompt textarea")).to_have_value("")
    expect(page.get_by_label("Seed")).to_have_value("")


def test_what_the_browser_keeps_cannot_break_the_page(window: Window) -> None:
    page = window.open().page
    for kept in ("[1", '{"model": "pocket", "width": {}, "loras": 5}', '{"model": "no such"}'):
        page.evaluate("kept => localStorage.setItem('film:form', kept)", kept)
        window.open()
        expect(page.locator("#make")).to_be_visible()
        expect(page.locator("#prompt textarea")).to_have_value("")


@pytest.mark.parametrize("length", [{"frames": 25}, {"frames": 31}, {"seconds": "0.7"}, {}])
def test_use_settings_makes_as_many_frames(
    window: Window, server: Running, length: dict[str, object]
) -> None:
    body = {"prompt": PROMPT, "size": "64x64"} | length
    job = str(server.client.post("/v1/videos", json=body).json()["id"])
    frames = server.wait_over(job)["effective"]["frames"]  # type: ignore[index]
    page = window.open(f"/?clip={job}").page
    window.act("reuse")
    expect(page.locator("#plan")).to_contain_text(f"64x64, {frames} frames at 24 a second")
    again = window.make()
    window.wait_done()
    assert server.video(again)["effective"]["frames"] == frames  # type: ignore[index]


def test_clip_of_the_asked_length_tells_of_no_change(window: Window) -> None:
    window.open().write(PROMPT, seconds="1")
    expect(window.page.locator("#plan")).to_contain_text("24 frames")
    expect(window.page.locator("#plan li")).to_have_count(0)
    window.make()
    window.wait_done()
    assert "Changes" not in window.facts()


def test_link_is_shown_selected_where_the_clipboard_is_closed(
    window: Window, server: Running
) -> None:
    job = server.job(prompt=PROMPT)
    server.wait_over(job)
    page = window.page
    page.add_init_script(NO_CLIPBOARD)
    window.open(f"/?clip={job}")
    window.act("link")
    expect(page.get_by_label("Link to this clip")).to_have_value(f"{server.url}/?clip={job}")
    assert page.evaluate("getSelection().toString()") == f"{server.url}/?clip={job}"


def test_sample_and_surprise_make_their_clip(browser: Browser, server: Running) -> None:
    window = Windows(browser, server.url).window(**PHONE)
    for action in ("sample", "surprise"):
        page = window.open().page
        window.act(action)
        page.wait_for_selector("film-viewer .prompt")
        assert window.clip
        prompt = page.inner_text("film-viewer .prompt")
        expect(page.locator("#prompt textarea")).to_have_value(prompt)
        window.wait_done()
    assert not window.errors


def test_ideas_of_pocket_are_words_that_it_knows(window: Window) -> None:
    page = window.open().page
    page.get_by_text("Ideas", exact=True).click()
    groups = [page.get_by_role("group", name=name) for name in ("Subject", "Motion", "Scene")]
    for place in range(max(group.get_by_role("button").count() for group in groups)):
        for group in groups:
            group.get_by_role("button").nth(place % group.get_by_role("button").count()).click()
        chosen = " ".join(group.locator("[aria-pressed=true]").inner_text() for group in groups)
        expect(page.locator("#prompt textarea")).to_have_value(chosen)
        expect(page.locator("#token-count")).to_contain_text("of 128 tokens")
        expect(page.locator("#token-count .unknown")).to_have_count(0)


def test_title_tells_how_far_the_clip_is(window: Window) -> None:
    page = window.open().page
    assert page.title() == "filmlet"
    window.write(PROMPT, seconds="4")
    window.make()
    page.wait_for_function("() => / % · filmlet$/.test(document.title)")
    window.wait_done()
    assert page.title() == "Ready · filmlet"


@pytest.mark.parametrize("kind", ["paste", "drop"])
def test_picture_that_is_pasted_or_dropped_is_the_first_image(
    window: Window, server: Running, kind: str
) -> None:
    page = window.open().page
    page.evaluate(
        """async kind => {
          const canvas = new OffscreenCanvas(64, 64);
          canvas.getContext('2d').fillRect(0, 0, 64, 64);
          const blob = await canvas.convertToBlob({ type: 'image/png' });
          const transfer = new DataTransfer();
          transfer.items.add(new File([blob], 'black.png', { type: 'image/png' }));
          const event = kind === 'paste'
            ? new ClipboardEvent('paste', { clipboardData: transfer, bubbles: true })
            : new DragEvent('drop', { dataTransfer: transfer, bubbles: true, cancelable: true });
          document.querySelector('film-gallery').dispatchEvent(event);
        }""",
        kind,
    )
    page.wait_for_selector("#images img[src*=file]")
    window.write(PROMPT, seconds="0.2")
    clip = window.make()
    window.wait_done()
    assert len(server.video(clip)["requested"]["guides"]) == 1  # type: ignore[index]


def test_deletion_is_undone_or_carried_out_in_time(window: Window, server: Running) -> None:
    job = server.job(prompt="a blue star shrinking on black")
    server.wait_over(job)
    page = window.open(f"/?clip={job}").page
    window.act("delete")
    expect(page.get_by_role("button", name="Undo")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("film-viewer .prompt")).to_be_visible()
    page.wait_for_timeout(11_000)
    assert server.client.get(f"/v1/videos/{job}").status_code == 200
    window.act("delete")
    expect(page.locator("#film-undo")).to_have_count(0, timeout=15_000)
    page.wait_for_timeout(500)
    assert server.client.get(f"/v1/videos/{job}").status_code == 404
