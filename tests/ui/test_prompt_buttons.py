"""The buttons below the prompt, in a real browser."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from filmlet.settings import Settings
from tests.helpers.browsers import Window, browser, needs_chromium, window
from tests.helpers.chat_endpoints import KEY, PARAGRAPH, ChatEndpoint, chat_settings, serve_chat
from tests.helpers.servers import Running, make_servers

__all__ = ["browser", "window"]
pytestmark = [pytest.mark.browser, needs_chromium]
LARGE = "ltxv-2b-0.9.8-distilled"


@pytest.fixture(scope="module")
def chat() -> Iterator[ChatEndpoint]:
    with serve_chat() as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, chat: ChatEndpoint) -> Iterator[Running]:
    starts = make_servers()
    home: Path = tmp_path_factory.mktemp("buttons")
    settings: Settings = chat_settings(chat, home=home, worker="buttons", max_per_minute=1000)
    running = next(starts)(settings)
    running.wait_ready()
    yield running
    next(starts, None)


def choose_model(window: Window, name: str) -> None:
    window.page.get_by_label("Model", exact=True).click()
    window.page.get_by_role("option", name=re.compile(f"^{re.escape(name)}( |$)")).click()
    expect(window.page.locator("#model-note")).to_contain_text("2 billion parameters")


def test_prompt_is_improved_edited_and_what_was_typed_comes_back(window: Window) -> None:
    page = window.open().page
    prompt, undo = page.locator("#prompt textarea"), page.locator("#undo-improve")
    expect(page.locator("#typed-prompt")).to_be_hidden()
    expect(undo).to_be_hidden()
    window.write("a kitty jumps at the beach")
    page.click("#improve")
    expect(prompt).to_have_value("a kitty bouncing in the desert")
    expect(page.locator("#improve-note")).to_contain_text("Written by the vocabulary of pocket")
    expect(page.locator("#token-count")).not_to_contain_text("does not know")
    undo.click()
    expect(prompt).to_have_value("a kitty jumps at the beach")
    expect(undo).to_be_hidden()
    page.click("#improve")
    expect(prompt).to_have_value("a kitty bouncing in the desert")
    window.write("a kitty bouncing slowly in the desert", seconds="0.3")
    clip = window.make()
    window.wait_done()
    expect(page.locator("film-viewer .prompt")).to_have_text(
        "a kitty bouncing slowly in the desert"
    )
    assert clip


def test_failure_leaves_the_prompt_and_says_why(window: Window, chat: ChatEndpoint) -> None:
    page = window.open().page
    prompt, note = page.locator("#prompt textarea"), page.locator("#improve-note")
    window.write("qqqq zzzz")
    page.click("#improve")
    expect(note).to_contain_text("pocket knows no word of this prompt")
    window.write("a ship in a storm")
    choose_model(window, LARGE)
    chat.status = 500
    page.click("#improve")
    expect(note).to_contain_text(
        "The prompt enhancer answered 500. The prompt can be used as it is."
    )
    expect(prompt).to_have_value("a ship in a storm")
    chat.status = 200
    page.click("#improve")
    expect(prompt).to_have_value(PARAGRAPH)
    expect(note).to_contain_text("Written by scribe")
    content = page.content()
    assert KEY not in content
    assert chat.url not in content


def test_clip_of_the_api_shows_both_and_gives_back_what_was_used(
    window: Window, server: Running
) -> None:
    job = server.job(prompt="a kitty jumps <b>", enhance_prompt=True)
    server.wait_over(job)
    page = window.open(f"/?clip={job}").page
    window.wait_done()
    expect(page.locator("film-viewer .prompt")).to_have_text("a kitty jumps <b>")
    expect(page.locator("film-viewer .used-prompt")).to_have_text("Used: a kitty bouncing")
    window.act("reuse")
    expect(page.locator("#prompt textarea")).to_have_value("a kitty bouncing")
