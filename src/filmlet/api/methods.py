"""Methods of HTTP that the API's routes do not have: HEAD, OPTIONS, and those that are refused."""

from collections.abc import Sequence

import anyio
from fastapi import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from filmlet.api.error_handlers import error_response
from filmlet.api.root_path import route_path
from filmlet.api.schemas import ErrorBody


class MethodMiddleware:
    """Answers HEAD as GET without its body, OPTIONS with Allow, and other methods with 405.

    FastAPI's routes have no HEAD, and its router names the methods of one route of a path only.
    """

    def __init__(self, app: ASGIApp, routes: Sequence[Route]) -> None:
        self.app, self.routes = app, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        allowed = self._allowed_methods(route_path(scope)) if scope["type"] == "http" else set()
        method = scope.get("method")
        if not allowed or (method in allowed and method != "HEAD"):
            await self.app(scope, receive, send)
        elif method == "HEAD" and "HEAD" in allowed:
            await _answer_head(self.app, scope, receive, send)
        else:
            await refuse_method(method or "", allowed)(scope, receive, send)

    def _allowed_methods(self, path: str) -> set[str]:
        """Return the methods of a path, empty if it is none of the API's."""
        found = (route.methods or () for route in self.routes if route.path_regex.match(path))
        methods: set[str] = set().union(*found)
        return methods | {"HEAD"} if "GET" in methods else methods


def refuse_method(method: str, allowed: set[str]) -> Response:
    """Return the answer to OPTIONS, or to a method that a path does not have."""
    headers = {"allow": ", ".join(sorted(allowed))}
    if method == "OPTIONS":
        return Response(status_code=204, headers=headers)
    error = ErrorBody(
        message=f"{method[:20]} is not allowed here; {headers['allow']} are.",
        type="invalid_request_error", param=None, code="method_not_allowed",
    )  # fmt: skip
    return error_response(405, error, headers)


async def _answer_head(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the head of what GET answers; its body is not made."""
    with anyio.CancelScope() as body:

        async def send_head(message: Message) -> None:
            if message["type"] != "http.response.start":
                return
            await send(message)
            await send({"type": "http.response.body"})
            body.cancel()

        await app({**scope, "method": "GET"}, receive, send_head)
