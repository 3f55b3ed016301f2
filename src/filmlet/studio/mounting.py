"""Puts the page under `/` of the server's own app, or launches it with that app behind it."""

import os
import secrets
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI, Request
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from filmlet.api.doors import House, caller, refuse
from filmlet.api.words import Refusal
from filmlet.errors import UnknownKey
from filmlet.settings import keep_to_yourselves
from filmlet.studio.dropin import offer
from filmlet.studio.page import build
from filmlet.studio.theme import studio_theme

STATIC = Path(__file__).parent / "static"
VERSION = secrets.token_hex(4)  # a browser must not keep the scripts of an older server
HEAD = f"""
<link rel="icon" href="/studio/icon.svg">
<link rel="stylesheet" href="/studio/studio.css?{VERSION}">
<script type="module" src="/studio/studio.js?{VERSION}"></script>
"""
METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH"]
# Whatever a component would like to fetch, the browser asks this server only.
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors {}; "
    "object-src 'none'; base-uri 'self'"
)
LOOK_S = 0.05
WAITING = 64  # events of the page that may wait for each other
FILES = tuple(f"/gradio_api/{name}" for name in ("upload", "file", "stream", "mcp", "proxy"))


def mount(app: FastAPI, house: House) -> None:
    """Serve the page at `/`; the API's own paths go first."""
    passing = _furnish(app, house)
    page = build(house, offer)
    _calm(page)
    gr.mount_gradio_app(app, page, path="/", **_look())
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(outer: FastAPI) -> AsyncIterator[Any]:
        async with _swept(passing), inner(outer) as state:
            yield state

    app.router.lifespan_context = lifespan


def launch(
    app: FastAPI, house: House, address: tuple[str, int], *doors: Callable[[House], None]
) -> gr.Blocks:
    """Serve the same in a thread, by Gradio's own `launch`, which ZeroGPU hooks into."""
    passing = _furnish(app, house)
    page = build(house, offer, *doors).queue(max_size=WAITING, default_concurrency_limit=None)
    _calm(page)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[Any]:
        async with _swept(passing), app.router.lifespan_context(app) as state:
            yield state

    host, port = address
    page.launch(
        server_name=host, server_port=port, prevent_thread_lock=True, quiet=True, pwa=False,
        app_kwargs={"middleware": [Middleware(Behind, front=app)], "lifespan": lifespan},
        **_look(),
    )  # fmt: skip
    return page


class Behind:
    """Puts the page's app, which `launch` wants to be the outer one, behind ours again."""

    def __init__(self, app: ASGIApp, front: FastAPI) -> None:
        self.front = front

        async def page(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "app": scope["page"]}, receive, send)

        front.mount("/", page)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.front({**scope, "page": scope["app"]}, receive, send)


def _furnish(app: FastAPI, house: House) -> Path:
    """What the page needs beside the API; the folder of Gradio's passing files."""
    passing = house.settings.home / "passing" / str(os.getpid())
    keep_to_yourselves(passing)

    @app.api_route("/v1/{rest:path}", methods=METHODS, include_in_schema=False)
    def nothing(rest: str) -> None:
        raise HTTPException(404, f"There is nothing at /v1/{rest}.")

    app.mount("/studio", StaticFiles(directory=STATIC))
    app.add_middleware(Gate, house=house)
    return passing


def _calm(page: gr.Blocks) -> None:
    """Let its queue look for events less often; Gradio's own 1 ms wakes an idle laptop."""
    page._queue.sleep_when_free = page._queue.progress_update_sleep_when_free = LOOK_S


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


@asynccontextmanager
async def _swept(passing: Path) -> AsyncIterator[None]:
    """Passing files go with the server; those of servers that were killed go when one starts."""
    _sweep(passing.parent)
    yield
    shutil.rmtree(passing, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Remove what servers that were killed have left."""
    for left in folder.iterdir() if folder.exists() else ():
        if not Path(f"/proc/{left.name}").exists():
            shutil.rmtree(left, ignore_errors=True)


class Gate:
    """Keeps the page's files behind the key, and says to browsers what the page may load."""

    def __init__(self, app: ASGIApp, house: House) -> None:
        self.app, self.house = app, house
        framed_by = house.visitors.framed_by if house.visitors else ()
        self.policy = POLICY.format(" ".join(("'self'", *framed_by)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["path"].startswith(FILES):
            try:
                await caller(Request(scope), self.house)
            except UnknownKey as error:
                told = Refusal(
                    message=str(error), type="authentication_error", param=None, code=error.code
                )
                await refuse(401, told)(scope, receive, send)
                return

        async def framed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get("content-type", "").startswith("text/html"):
                    headers.setdefault("content-security-policy", self.policy)
                    headers.setdefault("referrer-policy", "same-origin")
            await send(message)

        await self.app(scope, receive, framed)
