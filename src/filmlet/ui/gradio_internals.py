"""What filmlet uses of Gradio beyond its documentation, in one place.

Checked against the version in constraints.txt by tests/ui/test_gradio_internals.py.
"""

from typing import Any

import gradio as gr
from gradio.queueing import Queue


def event_payload(event: gr.EventData) -> Any:
    """Return what the browser sent with an event."""
    return event._data


def event_queue(page: gr.Blocks) -> Queue:
    """Return the queue in which events of a page wait and run."""
    return page._queue
