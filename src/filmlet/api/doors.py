"""Who comes in, and how a refusal sounds: keys and OpenAI's error envelope."""

import hashlib
import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from filmlet.api.following import Hub
from filmlet.api.visitors import VISITOR, Visitors, bearer_of
from filmlet.api.words import ErrorEnvelope, Refusal
from filmlet.errors import (
    DatabaseUnusable,
    FilmletError,
    InvalidRequest,
    JobConflict,
    NotOffered,
    StorageUnusable,
    TooManyJobs,
    UnknownJob,
    UnknownKey,
)
from filmlet.jobs import Asking, Job, Key, Keys, Limits, Priority, Queue
from filmlet.settings import Settings

log = logging.getLogger("filmlet.api")

COOKIE = "filmlet_key"
REMEMBER_S = 2.0  # a key that was removed opens nothing after this
STATUSES: tuple[tuple[type[FilmletError], int, str], ...] = (
    (UnknownKey, 401, "authentication_error"),
    (UnknownJob, 404, "invalid_request_error"),
    (TooManyJobs, 429, "rate_limit_error"),
    (InvalidRequest, 400, "invalid_request_error"),
    # Not 409: OpenAI's clients would try that again by themselves.
    (JobConflict, 400, "invalid_request_error"),
    (DatabaseUnusable, 503, "server_error"),
    (StorageUnusable, 503, "server_error"),
    (FilmletError, 500, "server_error"),
)


@dataclass
class House:
    """What the routes share.

    visitors: strangers come, each browser is a user of its own. making: what surrounds the wait for
    a job that a call of the page's API has submitted; where no worker is, it makes the job.
    """

    settings: Settings
    queue: Queue
    keys: Keys
    hub: Hub
    visitors: Visitors | None = None
    making: Callable[[Job], AbstractContextManager[object]] = nullcontext
    demands_keys: bool = False  # whether or not there is one: the last may be removed meanwhile
    known: dict[str, tuple[float, Key | None]] = field(default_factory=dict)
    counted: tuple[float, bool] = (0.0, False)

    async def needs_key(self) -> bool:
        """Whether who asks must show a key."""
        if self.demands_keys:
            return True
        now = time.monotonic()
        if now - self.counted[0] > REMEMBER_S:
            self.counted = now, bool(await run_in_threadpool(self.keys.all))
        return self.counted[1]

    async def key(self, secret: str) -> Key | None:
        """Whose secret this is; asked of the database every two seconds at most."""
        now = time.monotonic()
        asked, key = self.known.get(secret, (-REMEMBER_S, None))
        if now - asked > REMEMBER_S:
            key = await run_in_threadpool(self.keys.find, secret)
            if len(self.known) > 1000:
                self.known.clear()  # somebody is guessing
            self.known[secret] = now, key
        return key


# The dependencies are coroutines: a plain function would cost each request a thread of its own.
async def house(request: Request) -> House:
    """What the routes share, of this app."""
    shared: House = request.app.state.house
    return shared


@dataclass(frozen=True)
class Caller:
    """Who asks. sees: the owner whose jobs are shown, None for everybody's."""

    owner: str
    sees: str | None
    limits: Limits | None

    def asking(self, priority: Priority = Priority.NORMAL, key: str | None = None) -> Asking:
        return Asking(self.owner, priority, key, self.limits, is_admin=self.sees is None)


async def caller(request: Request, shared: Annotated[House, Depends(house)]) -> Caller:
    """The owner of the key that was sent; without keys everybody is the one local user.

    A program sends it as a bearer, the page as a cookie: a video element cannot send a header.
    """
    secret = bearer_of(request.headers)
    if shared.visitors:
        # A program that keeps no cookie is known by what it sends instead of a key.
        known = hashlib.sha256(secret.encode()).hexdigest()[:32] if secret else None
        name = f"visitor:{known or request.cookies[VISITOR]}"
        return Caller(name, name, None)
    if not await shared.needs_key():
        return Caller("local", None, None)
    secret = secret or request.cookies.get(COOKIE, "").strip()
    key = await shared.key(secret) if secret else None
    if key is None:
        raise UnknownKey("This server needs a key: send Authorization: Bearer sk-...")
    return Caller(key.id, None if key.admin else key.id, key.limits)


async def admin(who: Annotated[Caller, Depends(caller)]) -> Caller:
    """Who may see and move everybody's jobs: an admin, or the one local user."""
    if who.sees is not None:
        raise NotOffered("Only an admin's key may do this.", param="key")
    return who


Shared = Annotated[House, Depends(house)]
From = Annotated[Caller, Depends(caller)]
Admin = Annotated[Caller, Depends(admin)]


def refuse(status: int, error: Refusal, headers: dict[str, str] | None = None) -> JSONResponse:
    """The envelope that OpenAI's clients read."""
    return JSONResponse(ErrorEnvelope(error=error).model_dump(), status, headers)


def hold(app: FastAPI) -> None:
    """Answer every error in the envelope; nobody sees a trace."""

    @app.exception_handler(FilmletError)
    def refused(_: Request, error: FilmletError) -> JSONResponse:
        status, kind = next((s, k) for c, s, k in STATUSES if isinstance(error, c))
        headers = {}
        if isinstance(error, TooManyJobs):
            headers["retry-after"] = str(max(1, round(error.retry_after_s)))
        if status == 401:
            headers["www-authenticate"] = "Bearer"
        param = getattr(error, "param", None)
        return refuse(
            status, Refusal(message=str(error), type=kind, param=param, code=error.code), headers
        )

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        param = ".".join(str(p) for p in first["loc"][1:]) or None
        unknown = first["type"] == "extra_forbidden"
        code = "unknown_parameter" if unknown else "invalid_value"
        text = f"There is no parameter {param!r}." if unknown else f"{param}: {first['msg']}."
        kind = "invalid_request_error"
        return refuse(400, Refusal(message=text, type=kind, param=param, code=code))

    @app.exception_handler(HTTPException)
    def plain(_: Request, error: HTTPException) -> JSONResponse:
        codes = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}
        code = codes.get(error.status_code, "error")
        kind = "invalid_request_error" if error.status_code < 500 else "server_error"
        told = Refusal(message=str(error.detail), type=kind, param=None, code=code)
        return refuse(error.status_code, told, dict(error.headers or {}))

    @app.exception_handler(Exception)
    def broken(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s", request.method, request.url.path, exc_info=error)
        text = "The server made a mistake; its log says which."
        told = Refusal(message=text, type="server_error", param=None, code="internal")
        return refuse(500, told)
