"""The page in a real browser: what a person sees and does."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from playwright.sync_api import Browser, expect

from filmlet import ui
from filmlet.api import create_app
from filmlet.jobs import ApiKeyStore
from filmlet.jobs.database import Database
from filmlet.settings import Settings
from tests.helpers.browsers import PHONE, Window, Windows, browser, needs_chromium, window
from tests.helpers.given_files import (
    four_colors,
    heic_of_tiles,
    jpeg_with_exif,
    make_png,
    marked_frames,
    write_clip,
)
from tests.helpers.servers import Running, make_servers, wait_until

__all__ = ["browser", "window"]
pytestmark = [pytest.mark.browser, needs_chromium]
PROMPT = "a red circle moving left on a white background"
STATE = """() => {
  const film = document.querySelector("film-viewer video");
  return { duration: film.duration, width: film.videoWidth, time: film.currentTime };
}"""

# Notes what the page showed, however short that was.
WATCH = """() => {
  window.seen = [];
  const stage = document.querySelector("film-viewer");
  const note = () => {
    for (const name of ["stage-label", "eta"]) {
      const said = stage.querySelector("." + name)?.textContent;
      if (said && !window.seen.includes(said)) window.seen.push(said);
    }
    if (stage.querySelector("img.is-preview")?.naturalWidth) window.seen.push("a rough picture");
  };
  new MutationObserver(note).observe(stage, { subtree: true, childList: true, attributes: true });
  document.addEventListener("load", note, true);
  document.addEventListener("loadeddata", (event) => {
    if (event.target.src.includes("stream=true")) window.seen.push("a growing clip");
  }, true);
}"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    starts = make_servers()
    home = tmp_path_factory.mktemp("studio")
    running = next(starts)(Settings(home=home, worker="studio", max_per_minute=10_000))
    running.wait_ready()
    yield running
    next(starts, None)


def long(window: Window, prompt: str = PROMPT) -> str:
    """A clip that takes some seconds."""
    window.write(prompt, seconds="10")
    return window.make()


def test_sentence_becomes_a_clip_that_plays_to_its_end(window: Window) -> None:
    page = window.open().page
    window.write(PROMPT, seconds="1", seed="7")
    expect(page.locator("#plan")).to_contain_text("256x256, 24 frames at 24 a second")
    expect(page.locator("#plan")).to_contain_text(re.compile(r"about \d+ s \(\d+ s to \d+ s\)"))
    window.make()
    window.wait_done()
    expect(page.locator("film-viewer video:not([controls])")).to_have_count(0)  # the growing one
    page.wait_for_function("() => document.querySelector('film-viewer video')?.currentTime > 0")
    page.evaluate("document.querySelector('film-viewer video').loop = false")
    page.wait_for_function("() => document.querySelector('film-viewer video').ended")
    film = page.evaluate(STATE)
    assert film["duration"] == pytest.approx(1.0, abs=0.05)
    assert film["width"] == 256
    assert "seed 7" in window.facts()


def test_growing_clip_that_comes_late_leaves_the_whole_one(window: Window) -> None:
    page = window.open().page
    window.write(PROMPT, seconds="1")
    clip = window.make()
    window.wait_done()
    page.evaluate(
        """url => {
          const stage = document.querySelector('film-viewer');
          stage.picture.showMessage('');
          stage.picture.showVideo(url, 'growing');
          stage.picture.showVideo(url, 'complete');
        }""",
        f"/v1/videos/{clip}/content",
    )
    page.wait_for_function("() => document.querySelector('film-viewer video')?.currentTime > 0")
    expect(page.locator("film-viewer video:not([controls])")).to_have_count(0)
    expect(page.locator("film-viewer video[controls]")).to_have_count(1)


def test_place_stage_preview_and_time_left_are_told_while_it_is_made(
    window: Window, server: Running
) -> None:
    page = window.open().page
    page.evaluate(WATCH)
    first = long(window)
    second = long(window)
    window.wait_done()
    assert server.video(first)["status"] == server.video(second)["status"] == "completed"
    seen = page.evaluate("window.seen")
    for told in (
        "in the queue$", r"^Denoising, step \d+ of \d+$", r"^Decoding frames, \d+ of 240$",
        r"^done in about \d+ s \(\d+ s to \d+ (s|min)\)$", r"^about \d+ s \(.*\) left$",
        "^a rough picture$", "^a growing clip$",
    ):  # fmt: skip
        assert any(re.search(told, text) for text in seen), (told, seen)


def test_further_sentences_make_further_parts_and_come_back_with_use_settings(
    window: Window, server: Running
) -> None:
    page = window.open().page
    page.get_by_text("Advanced", exact=True).click()
    page.get_by_label("Further prompts").fill(
        "a red star still at sunset\na red star spinning at sunset"
    )
    window.write(PROMPT, seconds="3")
    expect(page.locator("#plan")).to_contain_text("overlapping parts")
    clip = window.make()
    window.wait_done()
    video = server.video(clip)
    assert video["requested"]["extra_prompts"] == [
        "a red star still at sunset", "a red star spinning at sunset",
    ]  # fmt: skip
    page.get_by_label("Further prompts").fill("")
    window.act("reuse")
    expect(page.get_by_label("Further prompts")).to_have_value(
        "a red star still at sunset\na red star spinning at sunset"
    )


def test_stop_frees_the_worker_and_go_on_finishes_the_clip(window: Window, server: Running) -> None:
    window.open()
    job = long(window)
    window.page.wait_for_selector("film-viewer img.is-preview", timeout=90_000)
    window.act("stop")
    window.page.wait_for_selector("film-viewer [data-action=retry]")
    assert "Stopped" in window.facts()
    stopped = server.video(job)
    assert stopped["error"] == {"code": "cancelled", "message": "The clip was cancelled."}
    assert float(str(stopped["idle_seconds"])) < 5
    window.act("retry")
    window.wait_done()
    assert any(stage["reused"] for stage in server.video(job)["stages"])  # type: ignore[index]


def test_reload_and_another_device_show_the_same_job(
    window: Window, browser: Browser, server: Running
) -> None:
    window.open()
    job = long(window)
    link = window.page.url.removeprefix(server.url)
    window.open(link)
    expect(window.page.locator("film-viewer .prompt")).to_have_text(PROMPT)
    other = Windows(browser, server.url).window(**PHONE).open(link)
    expect(other.page.locator("film-viewer .prompt")).to_have_text(PROMPT)
    assert window.clip == other.clip == job
    other.wait_done()
    window.wait_done()


def test_gallery_keeps_finds_reuses_and_deletes(window: Window, server: Running) -> None:
    job = server.job(prompt="a green triangle rising at night", size="128x64", seed=11)
    server.wait_over(job)
    page = window.open().page
    page.fill("film-gallery input", "TRIANGLE ris")
    expect(page.locator("film-gallery .card")).to_have_count(1)
    page.click("film-gallery .card")
    window.wait_done()
    assert page.get_by_role("link", name="Download").get_attribute("href") == (
        f"/v1/videos/{job}/content"
    )
    window.act("reuse")
    expect(page.locator("#prompt textarea")).to_have_value("a green triangle rising at night")
    expect(page.get_by_label("Seed")).to_have_value("11")
    expect(page.get_by_label("Width")).to_have_value("128")
    window.act("delete")
    expect(page.locator("film-gallery .no-results")).to_be_visible()
    expect(page.locator("film-gallery .no-results")).to_have_text("No prompt contains this text.")
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("film-gallery .card")).to_have_count(1)
    expect(page.locator("film-viewer .prompt")).to_have_text("a green triangle rising at night")
    window.act("delete")
    expect(page.locator("film-gallery .card")).to_have_count(0)
    assert server.client.get(f"/v1/videos/{job}").status_code == 200
    window.open()  # whoever leaves the page does not undo it any more
    wait_until(lambda: server.client.get(f"/v1/videos/{job}").status_code == 404)


def test_it_is_told_before_the_button_what_the_model_cannot_read_or_make(window: Window) -> None:
    page = window.open().page
    window.write("a candle moving lefft on white")
    expect(page.locator("#token-count")).to_contain_text("7 of 128 tokens")
    expect(page.locator("#token-count")).to_contain_text("“lefft” (nearest: left)")
    page.get_by_label("custom").check()
    page.get_by_label("Width").fill("5000")
    expect(page.locator("#plan .error")).to_contain_text("width must be between 64 and 512")
    expect(page.locator("#token-count")).to_contain_text(
        "pocket does not know “candle”, “lefft” (nearest: left)"
    )
    page.click("#make")
    expect(page.locator("#plan .error")).to_contain_text("width must be between 64 and 512")
    assert window.clip is None


def test_clip_begins_with_a_picture_and_is_extended(
    window: Window, server: Running, tmp_path: Path
) -> None:
    Image.new("RGB", (256, 256), (35, 75, 225)).save(tmp_path / "blue.png")
    page = window.open().page
    page.get_by_label("image", exact=True).check()
    page.locator("#form input[type=file]").first.set_input_files(tmp_path / "blue.png")
    page.wait_for_selector("#form .image-frame img, #form .image-container img")
    window.write(PROMPT, seconds="1")
    job = window.make()
    window.wait_done()
    requested = server.video(job)["requested"]
    assert len(requested["guides"]) == 1  # type: ignore[index]
    assert str(tmp_path) not in str(requested)
    window.act("extend")
    expect(page.get_by_label("Clip to extend")).to_have_value(job)
    window.write("a red circle moving right", seconds="0.5")
    further = window.make()
    window.wait_done()
    video = server.video(further)
    assert video["seconds"] == "1.5"
    assert video["remixed_from_video_id"] == job


def test_video_of_ones_own_is_planned_as_it_is_made(
    window: Window, server: Running, tmp_path: Path
) -> None:
    footage = write_clip(tmp_path / "mine.mp4", marked_frames(48, (256, 192)), sound=True)
    page = window.open().page
    page.get_by_label("video", exact=True).check()
    plan = page.locator("#plan")
    window.write(PROMPT, seconds="1")
    expect(plan).to_contain_text("Choose a clip to extend")
    page.locator("#form input[type=file]").last.set_input_files(footage)
    expect(plan).to_contain_text("256x192, 72 frames at 24 a second")
    expect(plan).to_contain_text("the clip keeps its own, new frames are silent")
    job = window.make()
    window.wait_done()
    assert server.video(job)["size"] == "256x192"
    assert server.video(job)["seconds"] == "3"
    assert server.video(job)["effective"]["audio"] is True
    window.act("extend")
    expect(page.get_by_label("Clip to extend")).to_have_value(job)
    expect(plan).to_contain_text("256x192, 96 frames at 24 a second")


def test_pictures_are_taken_as_they_are_sent(window: Window, tmp_path: Path) -> None:
    (tmp_path / "tiles.heic").write_bytes(heic_of_tiles(four_colors(400, 300)))
    ramp = np.tile(np.arange(256, dtype=np.uint16) * 257, (256, 1))
    (tmp_path / "grey.png").write_bytes(make_png(ramp))
    odd = [(0x0112, 3, 1, b"\6\0\0\0"), (0x011A, 10, 1, b"\x26\0\0\0")]
    (tmp_path / "odd.jpg").write_bytes(jpeg_with_exif(four_colors(), odd))
    (tmp_path / "text.png").write_text("no picture")
    page = window.open().page
    page.get_by_label("image", exact=True).check()
    window.write(PROMPT, seconds="0.2")
    for name, says in (
        ("tiles.heic", "of it is cropped"), ("grey.png", "16 bits a channel"),
        ("odd.jpg", "of it is cropped"), ("text.png", "text.png: this is not a whole PNG"),
    ):  # fmt: skip
        page.locator("#form input[type=file]").first.set_input_files(tmp_path / name)
        expect(page.locator("#plan")).to_contain_text(says)
        page.get_by_label("Clear").or_(page.get_by_label("Remove Image")).first.click()
        expect(page.locator("#plan")).not_to_contain_text(says)


def test_keyboard_is_enough(window: Window) -> None:
    page = window.open().page
    page.focus("#prompt textarea")
    page.keyboard.type(PROMPT)
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("film-viewer .prompt")
    window.wait_done()
    page.focus("film-gallery .card")
    page.keyboard.press("Enter")
    window.wait_done()


def test_press_before_the_button_is_mounted_is_kept(window: Window) -> None:
    page = window.open().page
    page.wait_for_selector("#make")
    page.evaluate("() => { window.button = [make.parentNode, make]; make.remove(); }")
    window.write(PROMPT, seconds="0.4")
    page.focus("#prompt textarea")
    page.keyboard.press("Control+Enter")
    page.wait_for_timeout(300)
    assert window.clip is None
    page.evaluate("() => window.button[0].append(window.button[1])")
    window.wait_done()


def test_on_a_phone_nothing_is_cut_off_and_a_clip_is_made(
    browser: Browser, server: Running
) -> None:
    window = Windows(browser, server.url).window(**PHONE).open()
    window.write(PROMPT, seconds="0.4")
    window.make()
    window.wait_done()
    wide = window.page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert wide[0] <= wide[1]
    assert not window.errors


@pytest.mark.server
def test_page_waits_for_a_server_that_restarts_and_the_job_goes_on(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.mktemp("again")
    starts = make_servers()
    start = next(starts)
    settings = Settings(home=home, worker="again")
    first = start(settings)
    port = first.url.rsplit(":", 1)[1]
    window = Windows(browser, first.url).window().open()
    job = long(window)
    window.page.wait_for_selector("film-viewer progress")
    first.close()
    expect(window.page.locator("#film-offline")).to_be_visible()
    second = start(settings, "--port", port)
    window.wait_done()
    expect(window.page.locator("#film-offline")).to_be_hidden()
    assert window.clip == job
    window.write(PROMPT, seconds="0.4")
    assert window.make() != job  # the form still speaks to the server
    second.wait_over(str(window.clip))
    next(starts, None)


@pytest.mark.server
def test_with_keys_the_page_asks_for_one_and_shows_only_its_clips(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = Settings(home=tmp_path_factory.mktemp("keys"), worker="keys")
    database = Database(settings)
    keys = ApiKeyStore(database, settings)
    ann, bob = keys.add("ann").secret, keys.add("bob", admin=True).secret
    database.close()
    starts = make_servers()
    server = next(starts)(settings)
    with httpx2.Client(base_url=server.url, headers={"authorization": f"Bearer {bob}"}) as client:
        body = {"prompt": "a secret of bob", "size": "64x64", "frames": 1, "steps": 1}
        theirs = client.post("/v1/videos", json=body).json()["id"]
    window = Windows(browser, server.url).window().open()
    dialog = window.page.locator("dialog.film-sign-in")
    dialog.locator("input").fill("sk-wrong")
    dialog.get_by_role("button").click()
    expect(dialog.locator(".error")).to_contain_text("This key is not known here")
    dialog.locator("input").fill(ann)
    dialog.get_by_role("button").click()
    expect(dialog).to_have_count(0)
    expect(window.page.locator("film-gallery .no-results")).to_contain_text("No clips yet")
    assert "Queue" not in window.page.inner_text("film-queue")
    assert ann not in window.page.evaluate("document.cookie")
    window.write(PROMPT, seconds="0.4")
    window.make()
    window.wait_done()
    window.open(f"/?clip={theirs}")
    expect(window.page.locator("film-viewer")).to_contain_text("Clip not found")
    window.page.get_by_role("button", name="Sign out").click()
    expect(dialog).to_be_visible()
    next(starts, None)


def test_admin_sees_everybody_and_moves_and_stops_who_waits(
    browser: Browser, server: Running
) -> None:
    window = Windows(browser, server.url).window().open()
    ahead = server.job(size="512x512", frames=961, steps=20)  # longer than all that follows
    waiting = [server.job(prompt=f"number {i} waits", priority="low") for i in range(2)]
    row = window.page.locator("film-queue li", has_text="number 1 waits")
    row.locator("select").select_option("high")
    wait_until(lambda: server.video(waiting[1])["priority"] == "high")
    assert server.video(waiting[1])["position"] == 1
    window.page.locator("film-queue li", has_text="number 0 waits").get_by_role("button").click()
    wait_until(lambda: server.video(waiting[0])["status"] == "failed")
    assert server.video(ahead)["status"] == "in_progress"
    server.client.post(f"/v1/videos/{ahead}/cancel")
    server.wait_over(waiting[1])


def test_button_stays_where_it_is_while_somebody_writes(window: Window) -> None:
    page = window.open().page
    window.write("a cat")
    expect(page.locator("#plan")).to_contain_text("Ready in")
    places = []
    for prompt in ("a cat", "a cat moving left", "a zebra moving left", ""):
        page.fill("#prompt textarea", prompt)
        page.wait_for_timeout(600)
        box = page.locator("#make").bounding_box()
        assert box
        places.append(box["y"])
    assert max(places) - min(places) <= 2


@pytest.mark.server
def test_page_tells_browsers_to_ask_nobody_else_and_guards_its_files(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    settings = Settings(home=tmp_path_factory.mktemp("guarded"))
    app = create_app(settings, demands_keys=True)
    ui.mount(app, app.state.filmlet)
    with TestClient(app) as client:
        page = client.get("/")
        assert "default-src 'self'" in page.headers["content-security-policy"]
        hosts = set(re.findall(r"(?:src|href)=[\"'](?:https?:)?//([^/\"']+)", page.text))
        assert not hosts
        for path in ("/gradio_api/upload", "/gradio_api/mcp/"):
            assert client.post(path, content=b"x").status_code == 401, path
        assert client.get("/gradio_api/file=/etc/hostname").status_code == 401
        assert client.get("/v1/nothing").json()["error"]["code"] in ("not_found", "unknown_key")
