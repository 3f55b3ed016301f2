"""The app: routes over one queue."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import to_thread
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.datastructures import Headers
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from filmlet import __version__
from filmlet.api import operations, session, videos
from filmlet.api.doors import House, hold, refuse
from filmlet.api.following import Hub
from filmlet.api.quick import Quick
from filmlet.api.uploads import BODY_BYTES
from filmlet.api.visitors import Introduced, Visitors
from filmlet.api.words import Refusal
from filmlet.jobs import Keys, Queue
from filmlet.settings import Settings

THREADS = 8  # at the database at once: more of them only wait for each other


def create(
    settings: Settings,
    hosts: list[str] | None = None,
    *,
    demands_keys: bool = False,
    visitors: Visitors | None = None,
) -> FastAPI:
    """The app over the settings' database and storage. Raises DatabaseUnusable, StorageUnusable.

    hosts: names it answers to, None is any. On loopback only its own: a page of another site must
    not reach it by a name that leads here. demands_keys: even while there is none. visitors: each
    browser is a user of its own.
    """
    queue = Queue(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        to_thread.current_default_thread_limiter().total_tokens = THREADS
        yield
        queue.close()

    app: FastAPI = FastAPIOffline(  # its description's page asks no outside host
        title="filmlet",
        version=__version__,
        summary="Sentences into short videos: OpenAI's Videos API over a queue that survives.",
        lifespan=lifespan,
        max_body_size=BODY_BYTES,
        redoc_url=None,
    )
    app.state.house = House(
        settings,
        queue,
        Keys(queue.database, settings),
        Hub(queue),
        visitors=visitors,
        demands_keys=demands_keys,
    )
    app.include_router(videos.router)
    app.include_router(operations.router)
    app.include_router(session.router)
    hold(app)
    app.add_middleware(Quick, house=app.state.house)
    app.add_middleware(SameOrigin)
    if visitors:
        app.add_middleware(Introduced)
    if hosts is not None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    return app


class SameOrigin:
    """Refuses what a page of another site sends from the browser of somebody who may ask here."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            headers = Headers(scope=scope)
            origin = headers.get("origin")
            # A page of another site can send neither header as it likes.
            own = (headers.get("host"), headers.get("x-forwarded-host"))
            if origin and origin.partition("://")[2] not in own:
                text = "This server takes no requests from pages of other sites."
                told = Refusal(
                    message=text, type="invalid_request_error", param=None, code="other_origin"
                )
                await refuse(403, told)(scope, receive, send)
                return
        await self.app(scope, receive, send)
