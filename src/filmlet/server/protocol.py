"""HTTP/1.1 as uvicorn speaks it with httptools, within limits on heads, time and connections.

uvicorn has such limits for h11 only, and none on the time that a request may take to arrive.
"""

import asyncio
import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

MAX_HEAD_BYTES = 32 * 1024  # request line and headers
MAX_HEADERS = 100
HEAD_TIMEOUT_S = 10.0  # from the connection, or from a request's first byte, to its last header
MAX_PIPELINED = 16  # requests that wait on a connection for the answer before them
MAX_FRAMING_BYTES = 64 * 1024  # of chunk sizes, extensions and trailers, beyond 8 for a body byte
BODY_CHECK_S = 10.0  # how often the pace of a body is looked at
MIN_BODY_BYTES_PER_S = 1024
MAX_LINGERING = 100  # connections beyond the limit that still get an answer
LINGER_IDLE_S = 2.0  # a refused client that goes on sending is heard out, so that it reads the
LINGER_S = 30.0  # answer: until it pauses so long, or has sent for so long
WRITE_TIMEOUT_S = 300.0  # without a byte of an answer taken


@dataclass(frozen=True)
class Refused:
    """Why a request is not taken, before it has become one."""

    status: HTTPStatus
    message: str
    code: str
    retry_after_s: int | None = None

    def encode(self) -> bytes:
        """A whole response in the envelope that OpenAI's clients read."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {"message": self.message, "type": kind, "param": None, "code": self.code}
        body = json.dumps({"error": error}).encode()
        lines = [
            f"HTTP/1.1 {self.status.value} {self.status.phrase}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            "connection: close",
        ]
        if self.retry_after_s is not None:
            lines.append(f"retry-after: {self.retry_after_s}")
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


BAD_TARGET = Refused(
    HTTPStatus.BAD_REQUEST, "The request's target must be a path, such as /v1/videos.", "bad_target"
)
BAD_HOST = Refused(
    HTTPStatus.BAD_REQUEST, "A request must have one Host header, and not several.", "bad_host"
)
HEAD_TOO_LARGE = Refused(
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    f"The request line and at most {MAX_HEADERS} headers may have {MAX_HEAD_BYTES} bytes.",
    "head_too_large",
)
TOO_MUCH_FRAMING = Refused(
    HTTPStatus.BAD_REQUEST, "The body has too many chunks or trailers.", "bad_body"
)
TOO_MANY_PIPELINED = Refused(
    HTTPStatus.BAD_REQUEST,
    f"At most {MAX_PIPELINED} requests may wait for an answer on a connection.",
    "too_many_pipelined",
)
TOO_SLOW = Refused(
    HTTPStatus.REQUEST_TIMEOUT, "The request did not arrive in time; send it again.", "too_slow"
)
TOO_MANY = Refused(
    HTTPStatus.SERVICE_UNAVAILABLE,
    "The server has too many connections; try again in a moment.",
    "too_many_connections",
    retry_after_s=5,
)


class Connections:
    """The open connections of a server, in all and by address.

    most: in all. most_per_address: from one address, 0 is any number. exempt: addresses that many
    clients share, such as a proxy's.
    """

    def __init__(self, most: int, most_per_address: int, exempt: Any = ()) -> None:
        self.most, self.most_per_address, self.exempt = most, most_per_address, exempt
        self.by_address: dict[str, set[LimitedProtocol]] = {}
        self.idle: dict[LimitedProtocol, None] = {}  # without a request in hand, the oldest first
        self.count = 0

    def add(self, connection: "LimitedProtocol") -> bool:
        """Take a connection in, in place of an idle one if need be; False where there is no room.

        A client that sends its request is never idle for long, so half-open connections cannot
        keep others out.
        """
        address = connection.address
        own = self.by_address.get(address, set())
        if self.most_per_address and address not in self.exempt:
            idle = (other for other in own if other in self.idle)
            if len(own) >= self.most_per_address and not self._drop(next(idle, None)):
                return False
        if self.count >= self.most and not self._drop(next(iter(self.idle), None)):
            return False
        self.by_address.setdefault(address, set()).add(connection)
        self.idle[connection] = None
        self.count += 1
        return True

    def remove(self, connection: "LimitedProtocol") -> None:
        """Forget a connection that is closed; one that was never taken in is none."""
        own = self.by_address.get(connection.address)
        if own is None or connection not in own:
            return
        own.discard(connection)
        self.idle.pop(connection, None)
        self.count -= 1
        if not own:
            del self.by_address[connection.address]

    def _drop(self, connection: "LimitedProtocol | None") -> bool:
        if connection is None:
            return False
        self.remove(connection)
        connection.transport.abort()
        return True


class LimitedProtocol(HttpToolsProtocol):
    """One connection. Subclasses name the server's `open_connections`."""

    open_connections: Connections

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        self.inner_app, self.app = self.app, self._run_app
        self.is_last_response = False  # said so in its head
        self.in_head = True
        self.head_bytes = 0
        self.body_bytes = 0  # since the pace was last looked at
        self.total_body_bytes = 0
        self.received_bytes = 0  # since the head, framing included
        self.is_body_complete = True
        self.cycles: set[RequestResponseCycle] = set()  # without a whole answer
        self.is_refused = False
        self.linger_end = 0.0
        self.refusal: Refused | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.write_timer: asyncio.TimerHandle | None = None
        if self.open_connections.add(self):
            self._set_timer(HEAD_TIMEOUT_S, self._end_head)
            return
        self.transport.write(TOO_MANY.encode())
        self.is_refused = True
        if len(self.connections) > self.open_connections.most + MAX_LINGERING:
            self.transport.close()
        else:
            self._close_after_client()

    def connection_lost(self, exc: Exception | None) -> None:
        self.open_connections.remove(self)
        self._set_timer(None)
        self.resume_writing()
        self._end_cycles()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        if self.is_refused:
            self._extend_close()
            return
        was_in_head = self.in_head
        super().data_received(data)
        if self.is_refused or self.transport.is_closing():
            return
        if self.is_body_complete and (self.cycle is None or self.cycle.response_complete):
            self.in_head = True  # also where it is empty lines, which the parser skips
        if self.in_head:
            # What begins within a piece is counted from the next one on.
            self.head_bytes += len(data) if was_in_head else 0
            if self.head_bytes > MAX_HEAD_BYTES:
                self.refuse(HEAD_TOO_LARGE)
            elif self.timer is None:
                self._set_timer(HEAD_TIMEOUT_S, self._end_head)
        elif not self.is_body_complete:
            self._check_framing(len(data))

    def _check_framing(self, received: int) -> None:
        """Refuse a body that is mostly chunk sizes, extensions or trailers; watch its pace."""
        self.received_bytes += received
        if self.received_bytes > 8 * self.total_body_bytes + MAX_FRAMING_BYTES:
            self.refuse(TOO_MUCH_FRAMING)
        elif self.timer is None:
            self.body_bytes = 0
            self._set_timer(BODY_CHECK_S, self._check_pace)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.in_head = True
        self.head_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.in_head:  # trailers are read by nobody
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        refusal = self._find_fault()
        if refusal:
            self.refusal = refusal
            raise ValueError(refusal.message)
        self.in_head = False
        self.is_body_complete = False
        self.total_body_bytes = self.received_bytes = 0
        self._set_timer(None)
        self.open_connections.idle.pop(self, None)
        super().on_headers_complete()
        self.cycles = {cycle for cycle in self.cycles if not cycle.response_complete}
        if self.cycle is not None:  # a request for a websocket has none
            self.cycles.add(self.cycle)

    def _find_fault(self) -> Refused | None:
        if len(self.pipeline) >= MAX_PIPELINED:
            return TOO_MANY_PIPELINED
        hosts = size = 0
        for name, value in self.headers:
            size += len(name) + len(value)
            hosts += name == b"host"
        if len(self.headers) > MAX_HEADERS or size + len(self.url) > MAX_HEAD_BYTES:
            return HEAD_TOO_LARGE
        if hosts > 1 or (not hosts and self.parser.get_http_version() == "1.1"):
            return BAD_HOST
        is_path = self.url[:1] == b"/" or (
            self.url == b"*" and self.parser.get_method() == b"OPTIONS"
        )
        return None if is_path else BAD_TARGET

    def on_body(self, body: bytes) -> None:
        self.body_bytes += len(body)
        self.total_body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self.is_body_complete = True
        self._set_timer(None)
        super().on_message_complete()

    async def _run_app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app; an answer that comes before the whole body tells the client to close.

        What is left of the body is thrown away, so no other request can follow it.
        """
        cycle = next((cycle for cycle in self.cycles if cycle.scope is scope), None)
        if cycle is None:
            return  # the client has gone already

        async def send_response(message: Message) -> None:
            is_early = message["type"] == "http.response.start" and cycle.more_body
            if is_early:
                headers = [*message.get("headers", ()), (b"connection", b"close")]
                message = {**message, "headers": headers}
            await send(message)
            if is_early:
                self.is_last_response = True
                cycle.keep_alive = True  # uvicorn would close while the client still sends

        await self.inner_app(scope, receive, send_response)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self.is_last_response or not self.is_body_complete:
            self._close_after_client()  # the answer came before the body did
        elif not self.pipeline:
            self.open_connections.idle[self] = None

    def send_400_response(self, msg: str) -> None:
        """A request that cannot be read, or that `_find_fault` has found to be at fault."""
        self.refuse(self.refusal or Refused(HTTPStatus.BAD_REQUEST, msg, "bad_request"))

    def refuse(self, refusal: Refused) -> None:
        """Answer instead of the app, unless it has begun to, and close the connection."""
        has_begun = any(c.response_started and not c.response_complete for c in self.cycles)
        self._end_cycles()
        if self.transport.is_closing():
            return
        if has_begun:
            self.transport.close()
            return
        self.transport.write(refusal.encode())
        self._close_after_client()

    def _end_cycles(self) -> None:
        """Have no request of this connection write any more; uvicorn knows of the last one only."""
        self.pipeline.clear()
        for cycle in self.cycles:
            cycle.disconnected = True
            cycle.message_event.set()
        self.cycles.clear()

    def _close_after_client(self) -> None:
        """Close, but not while the client still sends: a reset would take the answer from it."""
        self.is_refused = True
        self._unset_keepalive_if_required()
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.linger_end = self.loop.time() + LINGER_S
        self._extend_close()

    def _extend_close(self) -> None:
        """Wait for more of what is thrown away, within the time that is left for it."""
        left = self.linger_end - self.loop.time()
        self._set_timer(max(0.0, min(LINGER_IDLE_S, left)), self.transport.close)

    def _end_head(self) -> None:
        self.timer = None
        if self.head_bytes or self.cycle is not None:
            self.refuse(TOO_SLOW)
        else:
            self.transport.close()

    def _check_pace(self) -> None:
        self.timer = None
        is_slow = self.body_bytes < MIN_BODY_BYTES_PER_S * BODY_CHECK_S
        if is_slow and not self.flow.read_paused:
            self.refuse(TOO_SLOW)
            return
        self.body_bytes = 0
        self._set_timer(BODY_CHECK_S, self._check_pace)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.write_timer is None:
            self.write_timer = self.loop.call_later(WRITE_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.write_timer is not None:
            self.write_timer.cancel()
            self.write_timer = None

    def _set_timer(self, seconds: float | None, act: Any = None) -> None:
        """One timer is enough: of the head, then of the body, then of the end."""
        if self.timer is not None:
            self.timer.cancel()
        self.timer = None if seconds is None else self.loop.call_later(seconds, act)


def make_protocol_class(connections: Connections) -> type[LimitedProtocol]:
    """The protocol of a server with these connections, for uvicorn to make one a connection."""

    class ServerProtocol(LimitedProtocol):
        open_connections = connections

    return ServerProtocol
