"""Responses under way, which end when the server stops: event streams have no end of their own."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class OpenResponses:
    """Wraps an app; `close` ends what is streamed, and then what else is cancelled in silence."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.streams: set[asyncio.Task[None]] = set()
        self.is_closing = False

    def close(self) -> None:
        """End all streams, those that begin from now on as well."""
        self.is_closing = True
        for task in self.streams:
            task.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        assert task
        is_event_stream: bool | None = None  # None: the response has not begun

        async def send_watched(message: Message) -> None:
            nonlocal is_event_stream
            await send(message)
            if message["type"] != "http.response.start":
                return
            headers = dict(message.get("headers", ()))
            is_event_stream = headers.get(b"content-type", b"").startswith(b"text/event-stream")
            if b"content-length" not in headers:
                self.streams.add(task)
                if self.is_closing:
                    task.cancel()

        try:
            await self.app(scope, receive, send_watched)
        except asyncio.CancelledError:
            if not self.is_closing:
                raise
            task.uncancel()
            # A clip that is not whole is cut off: a proper end would say that it is.
            if is_event_stream:
                await send({"type": "http.response.body", "body": b""})
        finally:
            self.streams.discard(task)
