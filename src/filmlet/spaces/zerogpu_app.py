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
from filmlet.api.dependencies import House, caller, public_text, refuse
from filmlet.api.schemas import Refusal
from filmlet.api.videos import find
from filmlet.errors import FilmletError
from filmlet.jobs.inline_worker import Inline
from filmlet.jobs.queue import Queue
from filmlet.pipeline.plan import Plan
from filmlet.settings import Hosting, Settings

log = logging.getLogger("filmlet.spaces")

SPEED = 5e13  # operations a second that a clip gets from such a GPU, until clips have told
# A queued clip rings; the bell's event is this visitor's call, and his GPU time is asked for.
RING = "document.addEventListener('film:waiting', (event) => trigger('select', event.detail));"


def serve(settings: Settings, hosting: Hosting, visitors: Visitors) -> None:
    """Serve until SIGINT or SIGTERM; on the main thread, where ZeroGPU stands in for CUDA."""
    # What computes there is the GPU's, and what is read here must be too: one clip, one engine.
    settings = replace(settings, device=settings.device or "cuda", engine="torch")
    zerogpu.preload(settings)
    queue = Queue(settings)

    def cost(planned: Plan) -> float:
        return queue.cost(planned, zerogpu.LENT).high

    inline = Inline(settings, queue, zerogpu.film_by(cost), SPEED)
    with inline.running():
        app = api.create(settings, visitors=visitors)
        app.state.house.making = inline.making
        app.add_middleware(ByThePage)
        told = _told_to_stop()  # before anybody can see that it is up
        page = _launched(app, inline, (hosting.host, hosting.port))
        log.info("filmlet listens on http://%s:%d", hosting.host, hosting.port)
        while not told.wait(1.0):
            pass
        page.close(verbose=False)
    queue.close()


def _launched(app: FastAPI, inline: Inline, address: tuple[str, int]) -> gr.Blocks:
    return ui.launch(app, app.state.house, address, bell(inline))


def bell(inline: Inline) -> Callable[[House], None]:
    """Adds to the page what begins a waiting clip."""

    def add(house: House) -> None:
        async def begin(event: gr.EventData, request: gr.Request) -> None:
            id = str(event._data)
            try:
                who = await caller(request.request, house)
                job = await run_in_threadpool(find, id, house, who)
                await run_in_threadpool(inline.begin, job.id)
            except FilmletError as error:
                raise gr.Error(public_text(error), print_exception=False) from error
            async for _ in house.hub.follow(job):
                pass  # a call as long as the clip: ZeroGPU asks whether its visitor is still there

        gr.HTML(elem_id="bell", js_on_load=RING).select(
            begin, api_visibility="private", show_progress="hidden", concurrency_limit=None,
            trigger_mode="multiple",
        )  # fmt: skip

    return add


class ByThePage:
    """Refuses jobs that nobody's GPU time could make: a plain request has none to give."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        makes = re.fullmatch("/v1/videos(/extensions|/[^/]+/remix)?", scope.get("path", ""))
        if scope["type"] != "http" or scope["method"] != "POST" or not makes:
            await self.app(scope, receive, send)
            return
        text = (
            "This Space lends its GPU to visitors of its page and to gradio_client: make clips "
            "there (/text_to_video), or run the Space on hardware of its own."
        )
        told = Refusal(message=text, type="invalid_request_error", param=None, code="not_offered")
        await refuse(400, told)(scope, receive, send)


def _told_to_stop() -> threading.Event:
    """Set by SIGINT or SIGTERM from now on."""
    told = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: told.set())
    return told
