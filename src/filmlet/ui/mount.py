"""Puts the page under `/` of the server's own app, or launches it with that app behind it."""

import asyncio
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from filmlet.api.dependencies import House, refuse
from filmlet.api.schemas import Refusal
from filmlet.settings import keep_to_yourselves
from filmlet.ui.blocks import restrict_gradio
from filmlet.ui.callers import MAX_SESSIONS, Callers
from filmlet.ui.gate import GradioGate
from filmlet.ui.ltx_space_api import offer
from filmlet.ui.page import build
from filmlet.ui.theme import studio_theme

STATIC = Path(__file__).parent / "static"
VERSION = secrets.token_hex(4)  # a browser must not keep the scripts of an older server
HEAD = f"""
<link rel="icon" href="/ui/icon.svg">
<link rel="stylesheet" href="/ui/app.css?{VERSION}">
<script type="module" src="/ui/app.js?{VERSION}"></script>
"""
METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH"]
# Whatever a component would like to fetch, the browser asks this server only.
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors {}; "
    "object-src 'none'; base-uri 'self'"
)
SWEEP_S = 300.0


def mount(app: FastAPI, house: House) -> None:
    """Serve the page at `/`; the API's own paths go first."""
    callers = _furnish(app, house)
    page = build(house, callers, offer).queue(default_concurrency_limit=None)
    options = {"exception_handlers": CALL_ERRORS}
    gr.mount_gradio_app(app, page, path="/", app_kwargs=options, **_look())
    mounted = app.routes[-1]
    assert isinstance(mounted, Mount)
    gradio: Any = mounted.app
    gradio.startup_events_triggered = True  # the lifespan does it; a request would do it again
    restrict_gradio(page, callers)
    mounted.app = GradioGate(gradio, house, page, callers)
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(outer: FastAPI) -> AsyncIterator[Any]:
        async with _swept(callers), inner(outer) as state:
            yield state

    app.router.lifespan_context = lifespan


def launch(
    app: FastAPI, house: House, address: tuple[str, int], *doors: Callable[[House], None]
) -> gr.Blocks:
    """Serve the same in a thread, by Gradio's own `launch`, which ZeroGPU hooks into."""
    callers = _furnish(app, house)
    page = build(house, callers, offer, *doors).queue(default_concurrency_limit=None)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[Any]:
        async with _swept(callers), app.router.lifespan_context(app) as state:
            yield state

    def gated(inner: ASGIApp) -> ASGIApp:
        restrict_gradio(page, callers)
        return GradioGate(inner, house, page, callers)

    host, port = address
    page.launch(
        server_name=host, server_port=port, prevent_thread_lock=True, quiet=True, pwa=False,
        state_session_capacity=MAX_SESSIONS,
        app_kwargs={
            "middleware": [Middleware(Behind, front=app, gated=gated)], "lifespan": lifespan,
            "exception_handlers": CALL_ERRORS,
        },
        **_look(),
    )  # fmt: skip
    return page


class Behind:
    """Puts the page's app, which `launch` wants to be the outer one, behind ours again."""

    def __init__(self, app: ASGIApp, front: FastAPI, gated: Callable[[ASGIApp], ASGIApp]) -> None:
        self.app, self.front = app, front

        async def page(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "app": scope["page"]}, receive, send)

        front.mount("/", gated(page))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":  # Gradio's, which begins MCP, and ours within it
            await self.app(scope, receive, send)
            return
        await self.front({**scope, "page": scope["app"]}, receive, send)


def _furnish(app: FastAPI, house: House) -> Callers:
    """What the page needs beside the API."""
    passing = (house.settings.home / "passing" / str(os.getpid())).absolute()
    keep_to_yourselves(passing)

    @app.api_route("/v1/{rest:path}", methods=METHODS, include_in_schema=False)
    def nothing(rest: str) -> None:
        raise HTTPException(404, f"There is nothing at /v1/{rest}.")

    app.mount("/ui", StaticFiles(directory=STATIC))
    app.add_middleware(ContentPolicy, house=house)
    return Callers.in_folder(passing)


def _look() -> dict[str, Any]:
    """How Gradio shows the page."""
    return {
        "theme": studio_theme(),
        "head": HEAD,
        "footer_links": [],
        "run_history": False,
        "ssr_mode": False,
        "show_error": True,
        "mcp_server": True,
        "max_file_size": "100mb",
    }


def _refuse_call(_: Request, error: Exception) -> JSONResponse:
    """Gradio raises what Python does where a call names what there is not."""
    text = f"This call cannot be read: {type(error).__name__}."
    told = Refusal(message=text, type="invalid_request_error", param=None, code="invalid_value")
    return refuse(400, told)


CALL_ERRORS = dict.fromkeys((LookupError, ValueError, TypeError, AttributeError), _refuse_call)


@asynccontextmanager
async def _swept(callers: Callers) -> AsyncIterator[None]:
    """Passing files go with the server; those of servers that were killed go when one starts."""
    _sweep(callers.files.folder.parent)
    sweeping = asyncio.create_task(_sweep_callers(callers))
    yield
    sweeping.cancel()
    shutil.rmtree(callers.files.folder, ignore_errors=True)


async def _sweep_callers(callers: Callers) -> None:
    while True:
        await asyncio.sleep(SWEEP_S)
        callers.sessions.sweep()
        with suppress(OSError):
            await callers.files.sweep()


def _sweep(folder: Path) -> None:
    """Remove what servers that were killed have left."""
    for left in folder.iterdir() if folder.exists() else ():
        if not Path(f"/proc/{left.name}").exists():
            shutil.rmtree(left, ignore_errors=True)


class ContentPolicy:
    """Says to browsers what a page of this server may load, and who may show it in a frame."""

    def __init__(self, app: ASGIApp, house: House) -> None:
        self.app = app
        framed_by = house.visitors.framed_by if house.visitors else ()
        self.policy = POLICY.format(" ".join(("'self'", *framed_by)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def framed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get("content-type", "").startswith("text/html"):
                    headers.setdefault("content-security-policy", self.policy)
                    headers.setdefault("referrer-policy", "same-origin")
            await send(message)

        await self.app(scope, receive, framed)
