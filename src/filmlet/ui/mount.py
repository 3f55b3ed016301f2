"""Mounts the page at `/` of the server's app, or launches it with that app inside."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from filmlet.api.dependencies import AppState
from filmlet.api.error_handlers import error_response
from filmlet.api.root_path import route_path
from filmlet.api.schemas import ErrorBody
from filmlet.settings import disable_gradio_telemetry
from filmlet.ui.blocks import restrict_gradio
from filmlet.ui.callers import MAX_SESSIONS, Callers
from filmlet.ui.gate import GradioGate
from filmlet.ui.ltx_space_api import add_endpoints
from filmlet.ui.page import build_page
from filmlet.ui.theme import build_theme

STATIC = Path(__file__).parent / "static"
# All modules at once, not one after the other. Links are relative to the page: a proxy may show it
# below a path of its own.
PRELOADS = "".join(
    f'<link rel="modulepreload" href="./ui/{file.name}">' for file in sorted(STATIC.glob("*.js"))
)
HEAD = f"""
<link rel="icon" href="./ui/icon.svg">
<link rel="stylesheet" href="./ui/app.css">
{PRELOADS}
<script type="module" src="./ui/app.js"></script>
"""
# Whatever a component would like to fetch, the browser asks this server only.
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors {}; "
    "object-src 'none'; base-uri 'self'"
)
FILES_PATH = "/ui"
COMPRESSION = 6  # of 9; a page of 136 kB takes 1 ms
SWEEP_S = 300.0


def mount(app: FastAPI, shared: AppState) -> None:
    """Serve the page at `/`; the paths of the API come first."""
    callers = _prepare_app(app, shared)
    page = build_page(shared, callers, add_endpoints).queue(default_concurrency_limit=None)
    options = {"exception_handlers": CALL_ERRORS}
    gr.mount_gradio_app(app, page, path="/", app_kwargs=options, **_gradio_options())
    mounted = app.routes[-1]
    assert isinstance(mounted, Mount)
    gradio: Any = mounted.app
    gradio.startup_events_triggered = True  # the lifespan does it; a request would do it again
    restrict_gradio(page, callers)
    mounted.app = GradioGate(gradio, shared, page, callers)
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(outer: FastAPI) -> AsyncIterator[Any]:
        async with _temp_folder(callers), inner(outer) as state:
            yield state

    app.router.lifespan_context = lifespan


def launch(
    app: FastAPI,
    shared: AppState,
    address: tuple[str, int],
    *extensions: Callable[[AppState], None],
) -> gr.Blocks:
    """Serve the same in a thread, by Gradio's `launch`, which ZeroGPU needs."""
    callers = _prepare_app(app, shared)
    page = build_page(shared, callers, add_endpoints, *extensions).queue(
        default_concurrency_limit=None
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[Any]:
        async with _temp_folder(callers), app.router.lifespan_context(app) as state:
            yield state

    def wrap_in_gate(inner: ASGIApp) -> ASGIApp:
        restrict_gradio(page, callers)
        return GradioGate(inner, shared, page, callers)

    host, port = address
    page.launch(
        server_name=host, server_port=port, prevent_thread_lock=True, quiet=True, pwa=False,
        state_session_capacity=MAX_SESSIONS,
        app_kwargs={
            "middleware": [Middleware(PageBehindApp, front=app, wrap_in_gate=wrap_in_gate)],
            "lifespan": lifespan,
            "exception_handlers": CALL_ERRORS,
        },
        **_gradio_options(),
    )  # fmt: skip
    return page


class PageFiles(StaticFiles):
    """The page's own files. A browser asks whether each is current: a server may be a newer one."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers["cache-control"] = "no-cache"
        return response


class PageBehindApp:
    """Routes requests to our app first, although Gradio's `launch` makes its own the outer one."""

    def __init__(
        self, app: ASGIApp, front: FastAPI, wrap_in_gate: Callable[[ASGIApp], ASGIApp]
    ) -> None:
        self.app, self.front = app, front

        async def page(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "app": scope["page"]}, receive, send)

        front.mount("/", wrap_in_gate(page))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":  # Gradio's, which begins MCP, and ours within it
            await self.app(scope, receive, send)
            return
        await self.front({**scope, "page": scope["app"]}, receive, send)


def _prepare_app(app: FastAPI, shared: AppState) -> Callers:
    """Add what the page needs to the app of the API."""
    passing = (shared.settings.home / "passing" / str(os.getpid())).absolute()
    disable_gradio_telemetry(passing)

    app.mount(FILES_PATH, PageFiles(directory=STATIC))
    app.add_middleware(ContentPolicy, shared=shared)
    app.add_middleware(CompressedPage)
    return Callers.in_folder(passing)


def _gradio_options() -> dict[str, Any]:
    """Return the options of Gradio's app."""
    return {
        "theme": build_theme(),
        "head": HEAD,
        "footer_links": [],
        "run_history": False,
        "ssr_mode": False,
        "show_error": True,
        "mcp_server": True,
        "max_file_size": "100mb",
    }


def _refuse_call(_: Request, error: Exception) -> JSONResponse:
    """Answer errors that Gradio raises for calls that do not fit its functions."""
    text = f"This call cannot be read: {type(error).__name__}."
    told = ErrorBody(message=text, type="invalid_request_error", param=None, code="invalid_value")
    return error_response(400, told)


CALL_ERRORS = dict.fromkeys((LookupError, ValueError, TypeError, AttributeError), _refuse_call)


@asynccontextmanager
async def _temp_folder(callers: Callers) -> AsyncIterator[None]:
    """Delete temporary files at the end, and at the start those of killed servers."""
    _delete_stale_folders(callers.files.folder.parent)
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


def _delete_stale_folders(folder: Path) -> None:
    """Delete the folders of servers that were killed."""
    for stale in folder.iterdir() if folder.exists() else ():
        if not Path(f"/proc/{stale.name}").exists():
            shutil.rmtree(stale, ignore_errors=True)


class CompressedPage:
    """Compresses what a browser loads first, the page and its own files; all else passes as it is.

    Nothing in either is secret, so its compressed size tells nobody anything.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app, self.compressed = app, GZipMiddleware(app, compresslevel=COMPRESSION)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = route_path(scope) if scope["type"] == "http" else ""
        if path != "/" and not path.startswith(f"{FILES_PATH}/"):
            await self.app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # its head is GET's; uvicorn sends no body
            scope = {**scope, "method": "GET"}
        await self.compressed(scope, receive, send)


class ContentPolicy:
    """Sets the Content-Security-Policy of the page."""

    def __init__(self, app: ASGIApp, shared: AppState) -> None:
        self.app = app
        framed_by = shared.visitors.frame_ancestors if shared.visitors else ()
        self.policy = POLICY.format(" ".join(("'self'", *framed_by)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get("content-type", "").startswith("text/html"):
                    headers.setdefault("content-security-policy", self.policy)
                    headers.setdefault("referrer-policy", "same-origin")
            await send(message)

        await self.app(scope, receive, send_with_policy)
