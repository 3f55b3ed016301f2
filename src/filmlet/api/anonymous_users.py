"""Anonymous users of a public server: each browser is one, by a random cookie."""

import re
import secrets
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from filmlet.api.root_path import cookie_path
from filmlet.errors import UnknownKey

VISITOR = "filmlet_visitor"
A_YEAR_S = 365 * 86400
MIN_TOKEN_CHARS = 20  # shorter bearers are placeholders that many programs send
TOKEN_HINT = (
    "on this server it says whose jobs are whose. Choose a random one of at least "
    f"{MIN_TOKEN_CHARS} characters, send it with each request as Authorization: Bearer TOKEN, "
    "and tell it to nobody."
)
INTRODUCED = "filmlet.introduced"  # key of an ASGI scope: this visitor has no cookie yet


@dataclass(frozen=True)
class Visitors:
    """Settings for anonymous users.

    is_persistent: what they make survives a restart. frame_ancestors: sites that may show the page
    in a frame.
    """

    is_persistent: bool = True
    frame_ancestors: tuple[str, ...] = ()


class VisitorCookieMiddleware:
    """Sets a random cookie in browsers that have none."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        cookies = headers.get("cookie", "")
        has_name = re.fullmatch("[0-9a-f]{32}", cookie_parser(cookies).get(VISITOR, ""))
        if has_name or visitor_token(headers):
            await self.app(scope, receive, send)
            return
        name = secrets.token_hex(16)
        others = [pair for pair in scope["headers"] if pair[0] != b"cookie"]
        cookie_header = f"{cookies}; {VISITOR}={name}" if cookies else f"{VISITOR}={name}"
        path = cookie_path(scope)
        is_safe = headers.get("x-forwarded-proto", scope["scheme"]) == "https"

        async def send_with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).append("set-cookie", _cookie(name, path, is_safe))
            await send(message)

        own = [*others, (b"cookie", cookie_header.encode("latin-1"))]
        scope = {**scope, "headers": own, INTRODUCED: True}
        await self.app(scope, receive, send_with_cookie)


def bearer_of(headers: Headers) -> str:
    """Return the secret of an Authorization header, "" if there is none."""
    kind, _, secret = headers.get("authorization", "").partition(" ")
    return secret.strip() if kind.lower() == "bearer" else ""


def visitor_token(headers: Headers) -> str:
    """Return the token that identifies a visitor, "" if there is none or a placeholder."""
    secret = bearer_of(headers)
    return secret if len(secret) >= MIN_TOKEN_CHARS else ""


def check_token(scope: Scope) -> None:
    """Refuse a visitor of the API who could not be known again. Raises UnknownKey.

    A short token is one that many programs send: its users would see each other's jobs. Who sends
    neither token nor cookie may read, but what he submits would be nobody's.
    """
    secret = bearer_of(Headers(scope=scope))
    if secret and len(secret) < MIN_TOKEN_CHARS:
        raise UnknownKey(f"The token of this request has {len(secret)} characters; {TOKEN_HINT}")
    if not secret and scope.get(INTRODUCED) and scope["method"] == "POST":
        raise UnknownKey(f"This request has no token; {TOKEN_HINT}")


def _cookie(name: str, path: str, is_safe: bool) -> str:
    # A page in another site's frame gets its cookies back only if they are these three things.
    where = "SameSite=None; Secure; Partitioned" if is_safe else "SameSite=Lax"
    return f"{VISITOR}={name}; Path={path}; Max-Age={A_YEAR_S}; HttpOnly; {where}"
