"""What filmlet uses of Gradio beyond its documentation, against the installed version."""

import asyncio
import re
from pathlib import Path

import gradio as gr

from filmlet.ui.gradio_internals import event_payload, event_queue

ROOT = Path(__file__).parents[2]
TESTED = "6.31.0"


def test_gradio_is_the_version_whose_internals_were_read() -> None:
    """After an update: read its queue, EventData and routes, then change the version here."""
    assert gr.__version__ == TESTED
    assert f"gradio=={TESTED}\n" in (ROOT / "constraints.txt").read_text()


def test_event_payload_is_what_the_browser_sent() -> None:
    assert event_payload(gr.EventData(None, {"prompt": "a ball"})) == {"prompt": "a ball"}


async def make_page() -> gr.Blocks:
    """Gradio makes an event loop of its own where none runs, and leaves it open."""
    with gr.Blocks() as page:
        pass
    return page.queue()


def test_event_queue_has_what_is_limited_and_forgotten() -> None:
    page = asyncio.run(make_page())
    queue = event_queue(page)
    for name in (
        "event_ids_to_events", "pending_messages_per_session", "pending_event_ids_session",
        "max_thread_count", "max_size", "ANALYTICS_MAX_EVENTS", "sleep_when_free", "push",
        "compute_analytics_summary", "progress_update_sleep_when_free",
    ):  # fmt: skip
        assert hasattr(queue, name), name
    for name in ("session_data", "time_last_used"):
        assert hasattr(page.state_holder, name), name


def test_no_other_module_reads_private_names_of_gradio() -> None:
    for path in (ROOT / "src" / "filmlet").rglob("*.py"):
        if path.name != "gradio_internals.py":
            assert not re.search(r"\b(event|page)\._\w+", path.read_text()), path
