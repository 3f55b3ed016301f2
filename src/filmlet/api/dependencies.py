"""FastAPI dependencies: the state of the app, and the caller with his rights."""

import hashlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool
from starlette.types import Scope

from filmlet.api.anonymous_users import VISITOR, Visitors, bearer_of, visitor_token
from filmlet.api.exports import Conversions
from filmlet.api.job_watcher import JobWatcher
from filmlet.errors import FilmletError, PermissionDenied, TooManyRequests, UnknownKey
from filmlet.jobs import ApiKey, ApiKeyStore, Job, Limits, Priority, Queue, SubmitOptions
from filmlet.settings import Settings

T = TypeVar("T")
COOKIE = "filmlet_key"
CALLER = "filmlet.caller"  # key of the caller in a request's scope
KEY_CACHE_S = 2.0  # a removed key is refused after this
STORAGE_THREADS = 8  # of their own: slow storage must not delay what reads the database
EXPENSIVE_THREADS = 2  # plans with files, checks of uploads, thumbnails
ENHANCER_THREADS = 32  # which wait for the network; one caller can hold half of them
MAX_EXPENSIVE_REQUESTS = 16  # of one caller, waiting ones included
PROXY_HEADERS = (b"forwarded", b"via", b"x-real-ip")


@dataclass
class AppState:
    """What the routes of one app share.

    hub: distributes updates of jobs. visitors: on a public server, each browser is a user.
    run_inline: a context around the wait for a job that a call of the page has submitted; without
    a worker it runs the job. is_local: without keys only this machine is served, and no proxy.
    """

    settings: Settings
    queue: Queue
    keys: ApiKeyStore
    hub: JobWatcher
    visitors: Visitors | None = None
    run_inline: Callable[[Job], AbstractContextManager[object]] = nullcontext
    require_api_keys: bool = False  # whether or not there is one: the last may be removed meanwhile
    is_local: bool = False
    key_cache: dict[str, tuple[float, ApiKey | None]] = field(default_factory=dict)
    has_keys_cache: tuple[float, bool] = (0.0, False)
    storage_threads: CapacityLimiter = field(
        default_factory=lambda: CapacityLimiter(STORAGE_THREADS)
    )
    expensive_threads: CapacityLimiter = field(
        default_factory=lambda: CapacityLimiter(EXPENSIVE_THREADS)
    )
    enhancer_threads: CapacityLimiter = field(
        default_factory=lambda: CapacityLimiter(ENHANCER_THREADS)
    )
    expensive_requests: dict[str, int] = field(default_factory=dict)  # in hand, by owner
    conversions: Conversions = field(default_factory=Conversions)

    async def needs_key(self) -> bool:
        """Return whether a request needs a key."""
        if self.require_api_keys:
            return True
        now = time.monotonic()
        if now - self.has_keys_cache[0] > KEY_CACHE_S:
            self.has_keys_cache = now, bool(await run_in_threadpool(self.keys.list_keys))
        return self.has_keys_cache[1]

    async def key(self, secret: str) -> ApiKey | None:
        """Return the key of a secret; the database is read every two seconds at most."""
        now = time.monotonic()
        cached_at, key = self.key_cache.get(secret, (-KEY_CACHE_S, None))
        if now - cached_at > KEY_CACHE_S:
            key = await run_in_threadpool(self.keys.find_by_secret, secret)
            if len(self.key_cache) > 1000:
                self.key_cache.clear()  # somebody is guessing
            self.key_cache[secret] = now, key
        return key

    async def run_at_storage(self, do: Callable[..., T], *given: object) -> T:
        """Run a function that waits for the storage, in a thread."""
        return await to_thread.run_sync(do, *given, limiter=self.storage_threads)

    async def run_expensive(self, who: "Caller", do: Callable[..., T], *given: object) -> T:
        """Run a function that computes for long, in a thread. Raises TooManyRequests."""
        async with self.count_expensive(who.owner):
            return await to_thread.run_sync(do, *given, limiter=self.expensive_threads)

    async def run_enhancer(self, who: "Caller", do: Callable[..., T], *given: object) -> T:
        """Run a function that waits for the prompt enhancer. Raises TooManyRequests."""
        async with self.count_expensive(who.owner):
            return await to_thread.run_sync(do, *given, limiter=self.enhancer_threads)

    @asynccontextmanager
    async def count_expensive(self, owner: str) -> AsyncIterator[None]:
        """While a request of a caller computes, or waits for it. Raises TooManyRequests."""
        count = self.expensive_requests.get(owner, 0)
        if count >= MAX_EXPENSIVE_REQUESTS:
            raise TooManyRequests(
                f"{count} of your requests are being computed; wait for one to be answered.",
                retry_after_s=1,
            )
        self.expensive_requests[owner] = count + 1
        try:
            yield
        finally:
            self.expensive_requests[owner] -= 1
            if not self.expensive_requests[owner]:
                del self.expensive_requests[owner]


# The dependencies are coroutines: a plain function would cost each request a thread of its own.
async def get_app_state(request: Request) -> AppState:
    """Return the state of this app."""
    shared: AppState = request.app.state.filmlet
    return shared


@dataclass(frozen=True)
class Caller:
    """Who sends a request. visible_owner: whose jobs are shown, None for all."""

    owner: str
    visible_owner: str | None
    limits: Limits | None

    def submit_options(
        self, priority: Priority = Priority.NORMAL, key: str | None = None
    ) -> SubmitOptions:
        return SubmitOptions(
            self.owner, priority, key, self.limits, is_admin=self.visible_owner is None
        )


async def get_caller(
    request: Request, shared: Annotated[AppState, Depends(get_app_state)]
) -> Caller:
    """Return the caller, known since before the body was read. Raises UnknownKey."""
    known: Caller | None = request.scope.get(CALLER)
    return known or await identify(request.scope, shared)


async def identify(scope: Scope, shared: AppState) -> Caller:
    """Return the owner of the key that was sent; without keys there is one local user.

    A program sends it as a bearer, the page as a cookie: a video element cannot send a header.
    Raises UnknownKey.
    """
    request = Request(scope)
    if shared.visitors:
        secret = visitor_token(request.headers)
        # A program that keeps no cookie is known by what it sends instead of a key.
        known = hashlib.sha256(secret.encode()).hexdigest()[:32] if secret else None
        name = f"visitor:{known or request.cookies[VISITOR]}"
        return Caller(name, name, None)
    if not await shared.needs_key():
        if shared.is_local and came_through_proxy(scope):
            raise UnknownKey(
                "This server has no keys, so only who is at its machine may ask, and this came "
                "through a proxy. Whoever runs the server can make a key."
            )
        return Caller("local", None, None)
    secret = bearer_of(request.headers) or request.cookies.get(COOKIE, "").strip()
    key = await shared.key(secret) if secret else None
    if key is None:
        raise UnknownKey("This server needs a key: send Authorization: Bearer sk-...")
    return Caller(key.id, None if key.admin else key.id, key.limits)


def is_proxy_header(name: bytes) -> bool:
    """Return whether proxies add a header of this name, in lower case."""
    return name.startswith(b"x-forwarded-") or name in PROXY_HEADERS


def came_through_proxy(scope: Scope) -> bool:
    """Return whether a proxy has forwarded a request. Old nginx shows only by HTTP/1.0."""
    if scope["http_version"] == "1.0":
        return True
    for name, _ in scope["headers"]:  # noqa: SIM110 - each poll passes here, and any() is slower
        if is_proxy_header(name):
            return True
    return False


async def require_admin(who: Annotated[Caller, Depends(get_caller)]) -> Caller:
    """Return the caller if he is an admin, or the one local user. Raises PermissionDenied."""
    if who.visible_owner is not None:
        raise PermissionDenied("Only an admin's key may do this.", param="key")
    return who


@dataclass(frozen=True)
class Access:
    """A caller whose rights are checked again during a long response."""

    who: Caller
    scope: Scope
    shared: AppState

    async def is_current(self) -> bool:
        """Return whether the caller still has the same rights: a key may be removed."""
        try:
            return await identify(self.scope, self.shared) == self.who
        except FilmletError:
            return False


async def access(
    request: Request,
    shared: Annotated[AppState, Depends(get_app_state)],
    who: Annotated[Caller, Depends(get_caller)],
) -> Access:
    """Return the caller of a long response."""
    return Access(who, request.scope, shared)


AppStateDep = Annotated[AppState, Depends(get_app_state)]
Entered = Annotated[Access, Depends(access)]
CallerDep = Annotated[Caller, Depends(get_caller)]
AdminDep = Annotated[Caller, Depends(require_admin)]
