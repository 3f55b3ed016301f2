"""The FastAPI app: routes, error handlers and middlewares over one queue."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import to_thread
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.routing import Route

from filmlet import __version__
from filmlet.api import monitoring, prompts, session, videos
from filmlet.api.anonymous_users import VisitorCookieMiddleware, Visitors
from filmlet.api.dependencies import AppState
from filmlet.api.error_handlers import register_error_handlers
from filmlet.api.fast_path import FastPathMiddleware
from filmlet.api.job_watcher import JobWatcher
from filmlet.api.methods import MethodMiddleware
from filmlet.api.middleware import BodyLimit, Identity, SameOriginMiddleware
from filmlet.api.openapi import make_description
from filmlet.jobs import ApiKeyStore, Queue
from filmlet.settings import Settings

THREADS = 8  # at the database: more of them only wait for each other
ROUTERS = (videos.router, prompts.router, monitoring.router, session.router)


def create_app(
    settings: Settings,
    hosts: list[str] | None = None,
    *,
    demands_keys: bool = False,
    visitors: Visitors | None = None,
    is_local: bool = False,
) -> FastAPI:
    """Return the app over the settings' database and storage.

    hosts: names that it answers to, None is any. On loopback only its own: a page of another site
    must not reach it by a name that resolves to this machine. demands_keys: even if there is no key
    yet. visitors: each browser is a user of its own. is_local: without keys it serves this machine
    only, and nobody who comes through a proxy. Raises DatabaseUnusable, StorageUnusable.
    """
    queue = Queue(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        to_thread.current_default_thread_limiter().total_tokens = THREADS
        yield
        await app.state.filmlet.conversions.close()
        queue.close()

    app: FastAPI = FastAPIOffline(  # the pages of the description load nothing from other hosts
        title="filmlet",
        version=__version__,
        summary="Text to video: OpenAI's Videos API over a durable queue.",
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
    _include_routers(app)
    app.openapi = make_description(app, app.state.filmlet)  # type: ignore[method-assign]
    register_error_handlers(app)
    _add_middlewares(app, app.state.filmlet, hosts)
    return app


def _include_routers(app: FastAPI) -> None:
    for router in ROUTERS:
        app.include_router(router)


def _add_middlewares(app: FastAPI, shared: AppState, hosts: list[str] | None) -> None:
    """Add the middlewares, the innermost first."""
    routes = [*app.routes, *(route for router in ROUTERS for route in router.routes)]
    app.add_middleware(MethodMiddleware, routes=[r for r in routes if isinstance(r, Route)])
    app.add_middleware(BodyLimit)
    app.add_middleware(FastPathMiddleware, shared=shared)
    app.add_middleware(Identity, shared=shared)
    app.add_middleware(SameOriginMiddleware)
    if shared.visitors:
        app.add_middleware(VisitorCookieMiddleware)
    if hosts is not None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
