"""The path below which a proxy shows the server, whether the proxy removes it or passes it on."""

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from filmlet.api.error_handlers import error_response
from filmlet.api.schemas import ErrorBody
from filmlet.settings import is_root_path

PREFIX_HEADER = b"x-forwarded-prefix"


class RootPathMiddleware:
    """Gives each request its `root_path`, and a `path` that begins with it.

    It must be behind `ForwardedHeaders`, which removes the headers of proxies that are not
    trusted. What is inside finds one form of a path, however the proxy has written it.
    """

    def __init__(self, app: ASGIApp, root_path: str | None) -> None:
        """root_path: the setting; None, what proxies say in X-Forwarded-Prefix."""
        self.app = app
        self.root_path = None if root_path is None else root_path.rstrip("/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/"):  # `OPTIONS *`
            await self.app(scope, receive, send)
            return
        if self.root_path is not None:
            scope = _below(self.root_path, scope, is_maybe_kept=True)
        elif prefixes := [value for name, value in scope["headers"] if name == PREFIX_HEADER]:
            prefix = b",".join(prefixes).decode("latin-1")  # several are none
            if prefix and not is_root_path(prefix):
                await _refuse_prefix()(scope, receive, send)
                return
            # The header tells what the proxy has removed.
            scope = _below(prefix.rstrip("/"), scope, is_maybe_kept=False)
            send = _with_vary(send)
        if scope["path"] == scope.get("root_path"):
            await _redirect_to_page(scope)(scope, receive, send)
            return
        await self.app(scope, receive, send)


def _below(root_path: str, scope: Scope, *, is_maybe_kept: bool) -> Scope:
    """Return a scope with the root path. is_maybe_kept: the path may begin with it already."""
    path = scope["path"]
    if not root_path:
        return scope
    if is_maybe_kept and (path == root_path or path.startswith(f"{root_path}/")):
        return {**scope, "root_path": root_path}
    raw_path = root_path.encode() + scope.get("raw_path", b"")
    return {**scope, "root_path": root_path, "path": root_path + path, "raw_path": raw_path}


def _redirect_to_page(scope: Scope) -> RedirectResponse:
    """The page's own links are relative: to a path that ends in a slash."""
    query = scope["query_string"].decode("latin-1")
    return RedirectResponse(f"{scope['path']}/{'?' if query else ''}{query}")


def _with_vary(send: Send) -> Send:
    """A cache must not hand on what was made for another prefix."""

    async def send_with_vary(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [*message.get("headers", ()), (b"vary", PREFIX_HEADER)]
            message = {**message, "headers": headers}
        await send(message)

    return send_with_vary


def _refuse_prefix() -> ASGIApp:
    text = "X-Forwarded-Prefix must be one path such as /films, of letters, digits and ._~-."
    error = ErrorBody(message=text, type="invalid_request_error", param=None, code="bad_prefix")
    return error_response(400, error)
