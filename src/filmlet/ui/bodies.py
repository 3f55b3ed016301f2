"""Bodies of requests to Gradio: their size and shape are limited before anything parses them."""

import asyncio
import re

from fastapi.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

MAX_JSON_DEPTH = 32
MAX_JSON_STRUCTURE = 64 * 1024  # bytes of JSON outside of its strings
READ_TIMEOUT_S = 30.0  # between two pieces of a body
SHORT = 64 * 1024  # bytes that the event loop itself may look through
STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


def limit_body(receive: Receive, max_bytes: int) -> Receive:
    """Return a `receive` that stops at a size, and at a client that sends nothing more.

    It raises HTTPException 413 and 408.
    """
    left = max_bytes

    async def limited() -> Message:
        nonlocal left
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                message = await receive()
        except TimeoutError as error:
            raise HTTPException(408, "The body of the request did not come in time.") from error
        left -= len(message.get("body", b""))
        if left < 0:
            raise HTTPException(413, f"The body is larger than {max_bytes} bytes.")
        return message

    return limited


async def read_json_body(receive: Receive, max_bytes: int) -> bytes:
    """Return the whole body, once it is known that parsing it is cheap.

    Raises HTTPException 408, 413 and 400, ClientDisconnect.
    """
    limited = limit_body(receive, max_bytes)
    pieces = []
    more = True
    while more:
        message = await limited()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        pieces.append(message.get("body", b""))
        more = message.get("more_body", False)
    body = b"".join(pieces)
    if len(body) <= SHORT:
        check_json_shape(body)
    else:
        await run_in_threadpool(check_json_shape, body)
    return body


def check_json_shape(body: bytes) -> None:
    """Raise HTTPException 400 for JSON that is too deep or has too many values."""
    if b"\0" in body:  # UTF-16 and UTF-32, in which strings cannot be told from what is around
        raise HTTPException(400, "The body must be JSON in UTF-8.")
    structure = STRING.sub(b"", body)
    if len(structure) > MAX_JSON_STRUCTURE:
        raise HTTPException(413, "The JSON of the body has too many values.")
    depth = 0
    for byte in structure:
        depth += (byte in b"[{") - (byte in b"]}")
        if depth > MAX_JSON_DEPTH:
            raise HTTPException(400, f"The JSON of the body is deeper than {MAX_JSON_DEPTH}.")


def replay_body(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives a body that was read already, and then what else comes."""
    is_sent = False

    async def receive_replayed() -> Message:
        nonlocal is_sent
        if is_sent:
            return await receive()
        is_sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_replayed
