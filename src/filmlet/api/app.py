"""The app: routes over one queue."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import to_thread
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.middleware.trustedhost import TrustedHostMiddleware

from filmlet import __version__
from filmlet.api import monitoring, session, videos
from filmlet.api.anonymous_users import VisitorCookieMiddleware, Visitors
from filmlet.api.dependencies import AppState, register_error_handlers
from filmlet.api.fast_path import FastPathMiddleware
from filmlet.api.job_watcher import JobWatcher
from filmlet.api.middleware import BodyLimit, Identity, SameOriginMiddleware
from filmlet.jobs import ApiKeyStore, Queue
from filmlet.settings import Settings

THREADS = 8  # at the database at once: more of them only wait for each other


def create_app(
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
    app.state.filmlet = AppState(
        settings,
        queue,
        ApiKeyStore(queue.database, settings),
        JobWatcher(queue),
        visitors=visitors,
        require_api_keys=demands_keys,
        is_local=is_local,
    )
    app.include_router(videos.router)
    app.include_router(monitoring.router)
    app.include_router(session.router)
    register_error_handlers(app)
    app.add_middleware(BodyLimit)  # the innermost
    app.add_middleware(FastPathMiddleware, house=app.state.filmlet)
    app.add_middleware(Identity, house=app.state.filmlet)
    app.add_middleware(SameOriginMiddleware)
    if visitors:
        app.add_middleware(VisitorCookieMiddleware)
    if hosts is not None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    return app
