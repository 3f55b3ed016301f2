"""The bytes of a clip: whole or in ranges, and while it still grows."""

import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator
from typing import BinaryIO

from fastapi import Response
from fastapi.responses import StreamingResponse
from starlette.types import Send

from filmlet.api.dependencies import AppState
from filmlet.errors import StorageUnusable, UnknownKey
from filmlet.jobs import Job

log = logging.getLogger("filmlet.api")

PIECE = 256 * 1024


def range_response(
    shared: AppState, file: BinaryIO, size: int, range_header: str | None, name: str
) -> Response:
    """The whole movie, or the one range that was asked for (RFC 9110, section 14)."""
    headers = {"accept-ranges": "bytes", "content-disposition": f'inline; filename="{name}"'}
    first, last = 0, size - 1
    status = 200
    match = re.fullmatch(r"bytes=([0-9]*)-([0-9]*)", (range_header or "").strip())
    if match and any(match.groups()):
        begin, end = (_position(digits) for digits in match.groups())
        if begin is not None:
            first, last = begin, last if end is None else min(end, last)
        else:
            first = max(0, size - (end or 0))
        if first > last or first >= size:
            file.close()
            return Response(status_code=416, headers={"content-range": f"bytes */{size}"})
        status = 206
        headers["content-range"] = f"bytes {first}-{last}/{size}"
    headers["content-length"] = str(last - first + 1)
    pieces = _iter_chunks(shared, file, first, last - first + 1)
    return StreamingResponse(pieces, status, headers, "video/mp4")


def _position(digits: str) -> int | None:
    """A position in a file; no file is as long as the largest."""
    return int(digits[:19]) if digits else None


async def _iter_chunks(
    shared: AppState, file: BinaryIO, first: int, count: int
) -> AsyncIterator[bytes]:
    with file:
        file.seek(first)
        while count > 0:
            piece = await shared.run_at_storage(file.read, min(PIECE, count))
            if not piece:
                return
            count -= len(piece)
            yield piece


class GrowingResponse(StreamingResponse):
    """A clip that is sent while it grows; cut off in the middle, the connection is too.

    A body that ends in the regular way is a whole clip to whoever reads it.
    """

    async def stream_response(self, send: Send) -> None:
        try:
            await super().stream_response(send)
        except (StorageUnusable, UnknownKey) as error:
            log.warning("%s", error)  # and no last message: the server then closes the connection


async def stream_growing_file(shared: AppState, job: Job) -> AsyncGenerator[bytes]:
    """The clip's bytes as they are written, until it is whole; a playable MP4 from the first on.

    A worker that takes the job over writes the same bytes again: the reader goes on where it is.
    Raises StorageUnusable where there is no more and the clip is not whole.
    """
    sent = 0

    async def iter_new_bytes() -> AsyncIterator[bytes]:
        nonlocal sent
        grown = shared.queue.storage.read_growing
        while piece := await shared.run_at_storage(grown, job.id, sent, PIECE):
            sent += len(piece)
            yield piece

    async for _ in shared.hub.follow(job):
        async for piece in iter_new_bytes():
            yield piece
    async for piece in iter_new_bytes():
        yield piece
    if sent != await shared.run_at_storage(shared.queue.storage.grown_length, job.id):
        raise StorageUnusable(f"{job.id} ended after {sent} bytes and is not whole.")
