"""Gradio's Blocks with checks in the one method that every function call passes.

Everything here that touches what Gradio does not document is tested against the installed version.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.block_function import BlockFunction
from gradio.queueing import Queue
from starlette.requests import Request

from filmlet.ui.callers import MAX_SESSIONS, Callers, owner_of
from filmlet.ui.files import ANONYMOUS, URL, file_data, replace_files, url_of
from filmlet.ui.gradio_internals import event_payload, event_queue
from filmlet.ui.tool_calls import restrict_mcp

log = logging.getLogger("filmlet.ui")

MAX_EVENTS = 128  # in Gradio's queue, running and waiting
MAX_EVENTS_PER_CALLER = 32
IDLE_INTERVAL_S = 0.05  # Gradio's own 1 ms wakes an idle laptop


class CheckedBlocks(gr.Blocks):
    """Blocks whose functions read only files of their caller and return files to him only."""

    def __init__(self, callers: Callers, **options: Any) -> None:
        super().__init__(**options)
        self.callers = callers
        self.state_session_capacity = MAX_SESSIONS

    async def process_api(
        self,
        block_fn: BlockFunction | int,
        inputs: list[Any],
        state: Any = None,
        request: Any = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Run a function for any route. Raises gr.Error."""
        owner = owner_of(request)
        if isinstance(request, Request):  # MCP hands on the request itself
            request = gr.Request(request)
        function = self.fns[block_fn] if isinstance(block_fn, int) else block_fn
        inputs = self._own_files(_add_defaults(function, inputs), owner)
        event = options.get("event_data")
        if event is not None:
            replace_files(event_payload(event), _refuse_file)
        try:
            output = await super().process_api(block_fn, inputs, state, request, **options)
            output["data"] = self._share(output["data"], owner)
        except gr.Error:
            raise
        except Exception as error:
            log.warning("A call of the page failed: %r", error)
            text = "This call has values that cannot be read."
            raise gr.Error(text, print_exception=False) from error
        return output

    def _own_files(self, inputs: list[Any], owner: str) -> list[Any]:
        """Return inputs with the caller's file ids replaced by paths. Raises gr.Error."""

        def resolve(file: dict[str, Any]) -> dict[str, Any]:
            id = file.get("path")
            path = self.callers.files.find(id, owner) if isinstance(id, str) else None
            return file_data(str(path)) if path else _refuse_file(file)

        return [replace_files(value, resolve) for value in inputs]

    def _share(self, data: list[Any], owner: str) -> list[Any]:
        """Return outputs with paths replaced by file ids of the caller."""

        def show(file: dict[str, Any]) -> dict[str, Any]:
            id = self.callers.files.add(Path(file["path"]), owner)
            root = str(file.get("url") or "").partition(URL)[0]
            return {**file, "path": id, "url": url_of(id, root)}

        return [replace_files(value, show) for value in data]


def _add_defaults(function: BlockFunction, inputs: list[Any]) -> list[Any]:
    """Return inputs with the defaults of the last ones, which older programs do not know."""
    return inputs + [getattr(block, "value", None) for block in function.inputs[len(inputs) :]]


def _refuse_file(_: dict[str, Any]) -> dict[str, Any]:
    raise gr.Error(
        "A file must be uploaded to this server first; paths and URLs are not opened.",
        print_exception=False,
    )


def restrict_gradio(page: gr.Blocks, callers: Callers) -> None:
    """Limit what Gradio stores for its callers; call it before the first request."""
    page.has_launched = True  # until then Gradio takes files from anywhere
    _restrict_queue(event_queue(page), callers)
    callers.sessions.is_busy = lambda session: any(
        event.session_hash == session for event in event_queue(page).event_ids_to_events.values()
    )
    callers.sessions.forget = _forgetter(page)
    if page.mcp_server_obj:
        restrict_mcp(page.mcp_server_obj, callers)


def _restrict_queue(queue: Queue, callers: Callers) -> None:
    queue.sleep_when_free = queue.progress_update_sleep_when_free = IDLE_INTERVAL_S
    queue.max_thread_count = MAX_EVENTS
    queue.max_size = MAX_EVENTS
    queue.ANALYTICS_MAX_EVENTS = 1
    queue.compute_analytics_summary = lambda _: {}  # a table of pandas for each event
    push = queue.push

    async def push_own(body: Any, request: Any, username: str | None) -> Any:
        owner = owner_of(request)
        events = queue.event_ids_to_events.values()
        own = sum(owner_of(event.request) == owner for event in events)
        most = MAX_EVENTS // 2 if owner == ANONYMOUS else MAX_EVENTS_PER_CALLER
        if own >= most or len(events) >= MAX_EVENTS:
            return False, "Too many calls wait here; try again later.", "queue_full"
        has_session = body.session_hash is not None
        is_queued, answer, state = await push(body, request, username)
        if is_queued and not has_session:
            callers.sessions.claim(answer, owner)  # the event is a session of its own
        return is_queued, answer, state

    queue.push = push_own


def _forgetter(page: gr.Blocks) -> Callable[[str], None]:
    def forget(session_hash: str) -> None:
        queue, states = event_queue(page), page.state_holder
        queue.pending_messages_per_session.pop(session_hash, None)
        queue.pending_event_ids_session.pop(session_hash, None)
        states.session_data.pop(session_hash, None)
        states.time_last_used.pop(session_hash, None)

    return forget
