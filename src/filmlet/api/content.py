"""The bytes of a clip: whole or in ranges, and while it still grows."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Iterator
from typing import BinaryIO

from fastapi import Response
from fastapi.responses import StreamingResponse
from starlette.types import Send

from filmlet.api.following import Hub
from filmlet.errors import StorageUnusable
from filmlet.jobs import Job, Queue

log = logging.getLogger("filmlet.api")

PIECE = 256 * 1024


def ranged(file: BinaryIO, size: int, wanted: str | None, kind: str, name: str) -> Response:
    """The whole file, or the one range that was asked for (RFC 9110, section 14)."""
    headers = {"accept-ranges": "bytes", "content-disposition": f'inline; filename="{name}"'}
    first, last = 0, size - 1
    status = 200
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", (wanted or "").strip())
    if match and any(match.groups()):
        begin, end = match.groups()
        if begin:
            first, last = int(begin), min(int(end), last) if end else last
        else:
            first = max(0, size - int(end))
        if first > last or first >= size:
            file.close()
            return Response(status_code=416, headers={"content-range": f"bytes */{size}"})
        status = 206
        headers["content-range"] = f"bytes {first}-{last}/{size}"
    headers["content-length"] = str(last - first + 1)
    return StreamingResponse(_pieces(file, first, last - first + 1), status, headers, kind)


def _pieces(file: BinaryIO, first: int, count: int) -> Iterator[bytes]:
    with file:
        file.seek(first)
        while count > 0 and (piece := file.read(min(PIECE, count))):
            count -= len(piece)
            yield piece


class GrowingResponse(StreamingResponse):
    """A clip that is sent while it grows; cut off in the middle, the connection is too.

    A body that ends in the regular way is a whole clip to whoever reads it.
    """

    async def stream_response(self, send: Send) -> None:
        try:
            await super().stream_response(send)
        except StorageUnusable as error:
            log.warning("%s", error)  # and no last message: the server then closes the connection


async def growing(queue: Queue, hub: Hub, job: Job) -> AsyncIterator[bytes]:
    """The clip's bytes as they are written, until it is whole; a playable MP4 from the first on.

    A worker that takes the job over writes the same bytes again: the reader goes on where it is.
    Raises StorageUnusable where there is no more and the clip is not whole.
    """
    sent = 0

    async def gained() -> AsyncIterator[bytes]:
        nonlocal sent
        while piece := await asyncio.to_thread(queue.storage.grown, job.id, sent, PIECE):
            sent += len(piece)
            yield piece

    async for _ in hub.follow(job):
        async for piece in gained():
            yield piece
    async for piece in gained():
        yield piece
    if sent != await asyncio.to_thread(queue.storage.grown_length, job.id):
        raise StorageUnusable(f"{job.id} ended after {sent} bytes and is not whole.")
