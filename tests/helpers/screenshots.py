"""Screenshots of every state of the page: `python -m tests.helpers.screenshots FOLDER`."""

import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from filmlet.settings import Settings
from tests.helpers.browsers import CHROMIUM, PHONE, QUIET, Window, Windows
from tests.helpers.servers import Running, make_servers

WIDE = {"viewport": {"width": 1280, "height": 860}}
SUBJECTS = ("a red star bouncing at sunset", "a panda spinning on green grass")
SUBJECTS += ("a rocket rising in a starry night", "a yellow circle moving right under the sea")


class Album:
    """Takes pictures into one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def take(self, window: Window, name: str, *, whole: bool = False) -> None:
        """One WebP, small enough for a page of text."""
        file = self.folder / f"{name}.png"
        window.page.screenshot(path=file, full_page=whole)
        with Image.open(file) as picture:
            picture.save(file.with_suffix(".webp"), quality=82)
        file.unlink()
        print(file.with_suffix(".webp"))


def states(windows: Windows, server: Running, album: Album) -> None:
    """Empty, refused, waiting, drawing, done, variations, stopped, no server; dark, on a phone."""
    window = windows.window(**WIDE).open()
    album.take(window, "empty")
    window.write("a candle moving lefft on white")
    window.page.get_by_label("custom").check()
    window.page.get_by_label("Width").fill("5000")
    window.page.wait_for_selector("#plan .error")
    album.take(window, "refused")
    window.page.get_by_role("button", name="Clear the form").click()
    window.page.wait_for_selector("#plan .error", state="detached")
    window.open()
    for prompt in SUBJECTS[1:]:
        window.write(prompt, seconds="1")
        window.make()
    window.write(SUBJECTS[0], seconds="4")
    job = window.make()
    window.page.wait_for_selector("film-viewer progress")
    album.take(window, "waiting", whole=True)
    window.page.wait_for_selector("film-viewer img.is-preview")
    album.take(window, "drawing")
    phone = windows.window(**PHONE).open(f"/?clip={job}")
    album.take(phone, "phone-running", whole=True)
    window.wait_done()
    window.page.wait_for_timeout(1500)
    album.take(window, "done", whole=True)
    album.take(phone, "phone-done", whole=True)
    dark = windows.window(**WIDE, color_scheme="dark").open(f"/?clip={job}")
    dark.wait_done()
    dark.page.wait_for_timeout(1500)
    album.take(dark, "dark", whole=True)
    take_variations(window, album)
    window.write(SUBJECTS[0], seconds="8")
    window.make()
    window.page.wait_for_selector("film-viewer img.is-preview")
    window.act("stop")
    window.page.wait_for_selector("film-viewer [data-action=retry]")
    album.take(window, "stopped")
    server.close()
    window.page.wait_for_selector("#film-offline")
    album.take(window, "no-server")


def take_variations(window: Window, album: Album) -> None:
    """Four seeds, while the third is denoised."""
    window.write(SUBJECTS[0], seconds="2")
    window.page.click("#variations")
    window.page.wait_for_selector("film-viewer .tile:nth-child(3) img.is-preview")
    album.take(window, "variations")
    window.page.wait_for_selector("film-viewer [data-action=stop]", state="hidden")


def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as home, sync_playwright() as playwright:
        starts = make_servers()
        server = next(starts)(Settings(home=Path(home), max_per_minute=1000))
        server.wait_ready()
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        states(Windows(browser, server.url), server, Album(folder))
        browser.close()
        next(starts, None)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
