"""The bytes of a clip: whole or in ranges, and while it still grows."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import BinaryIO

from fastapi import Response
from fastapi.responses import StreamingResponse

from filmlet.api.following import Hub
from filmlet.jobs import Job, Queue

PIECE = 256 * 1024
GROWING = ("decoded.mp4.part", "decoded.mp4")  # the names of a clip before it is whole


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


async def growing(queue: Queue, hub: Hub, job: Job) -> AsyncIterator[bytes]:
    """The clip's bytes as they are written, until it is whole; a playable MP4 from the first on.

    A worker that takes the job over writes the same bytes again: the reader goes on where it is.
    Where the worker's disk is another machine's, the bytes come once the clip is whole.
    """
    folder, sent, latest = queue.storage.folder(job.id), 0, job
    async for now in hub.follow(job):
        latest = now
        while piece := await asyncio.to_thread(_next, folder, sent):
            sent += len(piece)
            yield piece
    while piece := await asyncio.to_thread(_next, folder, sent):
        sent += len(piece)
        yield piece
    if not sent and latest.clip:
        with await asyncio.to_thread(queue.storage.open, job.id, latest.clip) as file:
            while piece := await asyncio.to_thread(file.read, PIECE):
                yield piece


def _next(folder: Path, sent: int) -> bytes:
    """What has been written beyond `sent`."""
    for name in GROWING:
        try:
            with (folder / name).open("rb") as file:
                file.seek(sent)
                return file.read(PIECE)
        except FileNotFoundError:
            continue
    return b""
