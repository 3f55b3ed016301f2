"""Real browsers for the tests of the page: Chromium, driven by Playwright."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.helpers.servers import Running

CHROMIUM = shutil.which("chromium")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
QUIET += ["--disable-component-update", "--disable-sync", "--disable-quic"]
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="needs chromium")


@dataclass
class Window:
    """A page, what went wrong in it, and whom it asked besides its server."""

    page: Page
    url: str
    errors: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)

    def open(self, path: str = "/") -> "Window":
        self.page.goto(self.url + path)
        self.page.wait_for_selector("#prompt textarea", timeout=60_000)
        return self

    def write(self, prompt: str, **fields: str) -> None:
        """Fill the form as a person does."""
        self.page.fill("#prompt textarea", prompt)
        for label, value in fields.items():
            name = re.compile(rf"^\s*(number input for )?{label}\b", re.IGNORECASE)
            self.page.get_by_label(name).first.fill(value)
        self.page.keyboard.press("Tab")

    def make(self) -> str:
        """Press the button; the id of the clip that the page shows then.

        Not before the page tells what it would make: it is drawn a moment before it listens.
        """
        expect(self.page.locator("#plan")).not_to_be_empty(timeout=60_000)
        before = self.clip
        self.page.click("#make")
        self.page.wait_for_function(
            "before => new URLSearchParams(location.search).get('clip') !== before", arg=before
        )
        assert self.clip
        return self.clip

    @property
    def clip(self) -> str | None:
        found: str | None = self.page.evaluate("new URLSearchParams(location.search).get('clip')")
        return found

    def facts(self) -> str:
        return self.page.inner_text("film-viewer .info")

    def act(self, name: str) -> None:
        self.page.click(f"film-viewer [data-action={name}]", timeout=60_000)

    def wait_done(self) -> None:
        self.page.wait_for_selector("film-viewer a[download]", timeout=120_000)


class Windows:
    """Opens windows on a server; each with cookies of its own."""

    def __init__(self, browser: Browser, url: str) -> None:
        self.browser, self.url = browser, url

    def window(self, **options: object) -> Window:
        page = self.browser.new_context(**options).new_page()  # type: ignore[arg-type]
        page.set_default_timeout(60_000)
        window = Window(page, self.url)
        page.on("pageerror", lambda error: window.errors.append(str(error)))
        host = urlsplit(self.url).netloc
        page.on(
            "request",
            lambda request: (
                None
                if urlsplit(request.url).netloc in (host, "")
                else window.outside.append(request.url)
            ),
        )
        return window


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield running
        running.close()


@pytest.fixture
def window(browser: Browser, server: Running) -> Iterator[Window]:
    """A window that must end without an error and without having asked anybody else."""
    window = Windows(browser, server.url).window()
    yield window
    assert not window.errors
    assert not window.outside
    window.page.context.close()
