"""Middlewares: origin, identity and body size of every request."""

import re

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from filmlet.api.anonymous_users import check_token
from filmlet.api.dependencies import CALLER, AppState, identify
from filmlet.api.error_handlers import answer_error, error_response
from filmlet.api.root_path import route_path
from filmlet.api.schemas import ErrorBody
from filmlet.api.uploads import TEXT_BYTES, VIDEO_BYTES
from filmlet.errors import FilmletError

MIB = 1024 * 1024
# Of the first pattern that a path matches. Text in JSON may take 12 bytes a character.
BODY_LIMITS = (
    (re.compile(r"/v1/videos(/plan)?"), 2 * TEXT_BYTES + MIB),  # two pictures, in base64
    (re.compile(r"/v1/videos/(extensions|edits|characters)"), VIDEO_BYTES + MIB),
    (re.compile(r"/session|/v1/videos/[^/]+/priority"), 4096),
    (re.compile(r"/(v1|session|health|ready|metrics|docs|openapi.json|ui)(/.*)?"), MIB // 2),
    (re.compile(r".*", re.DOTALL), VIDEO_BYTES + MIB),  # the page's own
)
MAX_BODIES_BYTES = 512 * MIB  # of all requests in hand: in memory, or on the temporary disk
SMALL_BODY_BYTES = 64 * 1024  # is taken all the same
RETRY_AFTER_S = "5"


class SameOriginMiddleware:
    """Refuses requests that pages of other sites send from a user's browser (CSRF)."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            headers = Headers(scope=scope)
            origin = headers.get("origin")
            # A page of another site can send neither header as it likes; what is no trusted proxy
            # has had the second one taken away.
            own_hosts = (headers.get("host"), headers.get("x-forwarded-host"))
            if origin and origin.partition("://")[2] not in own_hosts:
                text = "This server takes no requests from pages of other sites."
                error = ErrorBody(
                    message=text, type="invalid_request_error", param=None, code="other_origin"
                )
                await error_response(403, error)(scope, receive, send)
                return
        await self.app(scope, receive, send)


class Identity:
    """Identifies the caller, or refuses him, before the body is read.

    Everything under /v1 needs an identity, whether there is such a route or not.
    """

    def __init__(self, app: ASGIApp, shared: AppState) -> None:
        self.app, self.shared = app, shared

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and needs_identity(route_path(scope)):
            try:
                if self.shared.visitors:
                    check_token(scope)
                scope[CALLER] = await identify(scope, self.shared)
            except FilmletError as error:
                await answer_error(error)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def needs_identity(path: str) -> bool:
    """Return whether nobody unknown gets an answer at a path below the root path."""
    return path == "/v1" or path.startswith("/v1/")


class BodyLimit:
    """Refuses bodies that are larger than their route allows, whatever Content-Length says.

    Large ones are refused as well while those of all requests in hand take too much.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        most, size = _body_limit(route_path(scope)), 0
        length = Headers(scope=scope).get("content-length", "")
        if length.isdecimal() and int(length[:20]) > most:
            error = ErrorBody(
                message=_too_large_error(most).detail, type="invalid_request_error", param="body",
                code="too_large",
            )  # fmt: skip
            await error_response(413, error)(scope, receive, send)
            return

        async def receive_within() -> Message:
            nonlocal size
            message = await receive()
            piece = len(message.get("body", b""))
            size += piece
            self.held_bytes += piece
            if size > most:
                raise _too_large_error(most)
            if self.held_bytes > MAX_BODIES_BYTES and size > SMALL_BODY_BYTES:
                text = "The server is taking too many large bodies; try again in a moment."
                raise HTTPException(503, text, {"retry-after": RETRY_AFTER_S})
            return message

        try:
            await self.app(scope, receive_within, send)
        finally:
            self.held_bytes -= size


def _body_limit(path: str) -> int:
    return next(most for pattern, most in BODY_LIMITS if pattern.fullmatch(path))


def _too_large_error(most: int) -> HTTPException:
    return HTTPException(413, f"The body is too large: at most {most} bytes are taken here.")
