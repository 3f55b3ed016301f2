"""A server that stands in public: each browser is a user of its own, by a cookie of its own."""

import hashlib
import re
import secrets
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

VISITOR = "filmlet_visitor"
A_YEAR_S = 365 * 86400
INTRODUCED = "filmlet.introduced"  # key of an ASGI scope: this visitor has no cookie yet
MIN_TOKEN_CHARS = 20  # shorter ones are placeholders that many programs send


@dataclass(frozen=True)
class Visitors:
    """How strangers are met.

    keeps: what they make survives a restart. framed_by: sites that may show the page in a frame.
    """

    keeps: bool = True
    framed_by: tuple[str, ...] = ()


class Introduced:
    """Gives who comes for the first time a name that nobody can guess.

    A program without cookies has one by the long token that it sends as a bearer.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        cookies = headers.get("cookie", "")
        if re.fullmatch("[0-9a-f]{32}", cookie_parser(cookies).get(VISITOR, "")):
            await self.app(scope, receive, send)
            return
        token = _token(headers.get("authorization", ""))
        name = hashlib.sha256(token.encode()).hexdigest()[:32] if token else secrets.token_hex(16)
        others = [pair for pair in scope["headers"] if pair[0] != b"cookie"]
        known = f"{cookies}; {VISITOR}={name}" if cookies else f"{VISITOR}={name}"
        is_safe = headers.get("x-forwarded-proto", scope["scheme"]) == "https"

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start" and not token:
                MutableHeaders(scope=message).append("set-cookie", _cookie(name, is_safe))
            await send(message)

        headers_with_name = [*others, (b"cookie", known.encode("latin-1"))]
        scope = {**scope, "headers": headers_with_name, INTRODUCED: not token}
        await self.app(scope, receive, named)


def _token(authorization: str) -> str:
    kind, _, token = authorization.partition(" ")
    return token.strip() if kind.lower() == "bearer" and len(token) >= MIN_TOKEN_CHARS else ""


def _cookie(name: str, is_safe: bool) -> str:
    # A page in another site's frame gets its cookies back only if they are these three things.
    where = "SameSite=None; Secure; Partitioned" if is_safe else "SameSite=Lax"
    return f"{VISITOR}={name}; Path=/; Max-Age={A_YEAR_S}; HttpOnly; {where}"
