"""A Space on ZeroGPU: the page launched by Gradio, jobs made inside the calls of its visitors."""

from filmlet.spaces import zerogpu

# ruff: isort: split
import logging
import re
import signal
import threading
from collections.abc import Callable
from dataclasses import replace

import gradio as gr
from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send

from filmlet import api, ui
from filmlet.api.anonymous_users import Visitors
from filmlet.api.dependencies import AppState, get_caller
from filmlet.api.error_handlers import error_response, public_text
from filmlet.api.root_path import route_path
from filmlet.api.schemas import ErrorBody
from filmlet.api.submissions import find_job
from filmlet.errors import FilmletError
from filmlet.jobs.inline_worker import InlineWorker
from filmlet.jobs.queue import Queue
from filmlet.pipeline.plan import Plan
from filmlet.settings import Settings, SpaceEnvironment
from filmlet.ui.gradio_internals import event_payload

log = logging.getLogger("filmlet.spaces")

SPEED = 5e13  # operations a second that a clip gets from such a GPU, until clips have told
# The page announces a queued clip; the event of this trigger is a call of the visitor, whose GPU
# time it uses.
WAITING_EVENT_JS = (
    "document.addEventListener('film:waiting', (event) => trigger('select', event.detail));"
)

MAKING_PATH = re.compile("/v1/videos(/extensions|/[^/]+/remix)?")  # that a POST makes a clip by


def serve(settings: Settings, hosting: SpaceEnvironment, visitors: Visitors) -> None:
    """Serve until SIGINT or SIGTERM; on the main thread, where ZeroGPU stands in for CUDA."""
    # What computes there is the GPU's, and what is read here must be too: one clip, one engine.
    settings = replace(settings, device=settings.device or "cuda", engine="torch")
    zerogpu.preload_model(settings)
    queue = Queue(settings)

    def estimate_cost(planned: Plan) -> float:
        return queue.estimate_cost(planned, zerogpu.GPU_STAGES).high

    generate = zerogpu.remote_frame_generator(estimate_cost)
    inline = InlineWorker(settings, queue, generate, zerogpu.ENGINES, SPEED)
    with inline.run_registered():
        app = api.create_app(settings, visitors=visitors)
        app.state.filmlet.run_inline = inline.run_in_call
        app.add_middleware(RequirePageMiddleware)
        stop_event = _stop_event()  # before anybody can see that it is up
        page = _launch_page(app, inline, (hosting.host, hosting.port))
        log.info("filmlet listens on http://%s:%d", hosting.host, hosting.port)
        while not stop_event.wait(1.0):
            pass
        page.close(verbose=False)
    queue.close()


def _launch_page(app: FastAPI, inline: InlineWorker, address: tuple[str, int]) -> gr.Blocks:
    return ui.launch(app, app.state.filmlet, address, add_start_trigger(inline))


def add_start_trigger(inline: InlineWorker) -> Callable[[AppState], None]:
    """Adds to the page what begins a waiting clip."""

    def add(shared: AppState) -> None:
        async def begin(event: gr.EventData, request: gr.Request) -> None:
            id = str(event_payload(event))
            try:
                who = await get_caller(request.request, shared)
                job = await run_in_threadpool(find_job, id, shared, who)
                await run_in_threadpool(inline.start, job.id)
            except FilmletError as error:
                raise gr.Error(public_text(error), print_exception=False) from error
            async for _ in shared.hub.follow(job):
                pass  # a call as long as the clip: ZeroGPU asks whether its visitor is still there

        gr.HTML(elem_id="start-trigger", js_on_load=WAITING_EVENT_JS).select(
            begin, api_visibility="private", show_progress="hidden", concurrency_limit=None,
            trigger_mode="multiple",
        )  # fmt: skip

    return add


class RequirePageMiddleware:
    """Refuses jobs that nobody's GPU time could make: a plain request has none to give."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        if not is_post or not MAKING_PATH.fullmatch(route_path(scope)):
            await self.app(scope, receive, send)
            return
        text = (
            "This Space lends its GPU to visitors of its page and to gradio_client: make clips "
            "there (/text_to_video), or run the Space on hardware of its own."
        )
        error_body = ErrorBody(
            message=text, type="invalid_request_error", param=None, code="not_offered"
        )
        await error_response(400, error_body)(scope, receive, send)


def _stop_event() -> threading.Event:
    """Set by SIGINT or SIGTERM from now on."""
    stop_event = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop_event.set())
    return stop_event
