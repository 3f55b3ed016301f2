"""Headers of proxies: believed from those that are trusted, dropped from everybody else."""

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from filmlet.api.dependencies import is_proxy_header


class ForwardedHeaders:
    """Takes client and scheme from the headers of trusted proxies; removes those of others.

    The app behind it may then believe X-Forwarded-Host and its siblings wherever it finds them.
    """

    def __init__(self, app: ASGIApp, trusted: str) -> None:
        """trusted: addresses and networks with commas between them, or `*`."""
        self.app = app
        self.believing = ProxyHeadersMiddleware(app, trusted)  # type: ignore[arg-type]
        self.proxies = self.believing.trusted_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = scope.get("client")
        if scope["type"] != "http" or (client and client[0] in self.proxies):
            await self.believing(scope, receive, send)  # type: ignore[arg-type]
            return
        if any(is_proxy_header(name) for name, _ in scope["headers"]):
            kept = [pair for pair in scope["headers"] if not is_proxy_header(pair[0])]
            scope = {**scope, "headers": kept}
        await self.app(scope, receive, send)
