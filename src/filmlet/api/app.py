"""The app: routes over one queue."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import to_thread
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.middleware.trustedhost import TrustedHostMiddleware

from filmlet import __version__
from filmlet.api import monitoring, session, videos
from filmlet.api.anonymous_users import Introduced, Visitors
from filmlet.api.dependencies import House, hold
from filmlet.api.fast_path import Quick
from filmlet.api.job_watcher import Hub
from filmlet.api.middleware import BodyLimit, Identity, SameOrigin
from filmlet.jobs import Keys, Queue
from filmlet.settings import Settings

THREADS = 8  # at the database at once: more of them only wait for each other


def create(
    settings: Settings,
    hosts: list[str] | None = None,
    *,
    demands_keys: bool = False,
    visitors: Visitors | None = None,
    is_local: bool = False,
) -> FastAPI:
    """The app over the settings' database and storage. Raises DatabaseUnusable, StorageUnusable.

    hosts: names it answers to, None is any. On loopback only its own: a page of another site must
    not reach it by a name that leads here. demands_keys: even while there is none. visitors: each
    browser is a user of its own. is_local: without keys it serves this machine alone, so nobody who
    comes through a proxy.
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
        redoc_url=None,
    )
    app.state.house = House(
        settings,
        queue,
        Keys(queue.database, settings),
        Hub(queue),
        visitors=visitors,
        demands_keys=demands_keys,
        is_local=is_local,
    )
    app.include_router(videos.router)
    app.include_router(monitoring.router)
    app.include_router(session.router)
    hold(app)
    app.add_middleware(BodyLimit)  # the innermost
    app.add_middleware(Quick, house=app.state.house)
    app.add_middleware(Identity, house=app.state.house)
    app.add_middleware(SameOrigin)
    if visitors:
        app.add_middleware(Introduced)
    if hosts is not None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    return app
