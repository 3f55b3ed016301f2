"""Responses with the bytes of a clip: complete, a range, or while it grows."""

import json
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import asdict, dataclass
from typing import BinaryIO
from urllib.parse import quote

from fastapi import Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from filmlet.api.dependencies import AppState
from filmlet.core.effective import format_changes
from filmlet.core.shape import Change
from filmlet.errors import StorageUnusable, UnknownKey
from filmlet.jobs import Job
from filmlet.jobs.storage import as_storage_error

log = logging.getLogger("filmlet.api")

CHUNK_BYTES = 256 * 1024
MEDIA_TYPES = {
    "mp4": "video/mp4", "webm": "video/webm", "gif": "image/gif", "webp": "image/webp",
}  # fmt: skip
CHANGES = "filmlet-changes"
CHANGES_HEADER = {  # for the description
    "description": "What of the clip this format does not hold: a JSON list of changes.",
    "schema": {"type": "string"},
}
MAX_NAME_LENGTH = 60  # characters of the prompt in a file name


@dataclass(frozen=True)
class Content:
    """An open file of a job, closed once it is sent. name: that it is saved under.

    changes: what of the clip it does not hold.
    """

    file: BinaryIO
    size_bytes: int
    name: str
    media_type: str
    changes: tuple[Change, ...] = ()


def download_name(job: Job, extension: str) -> str:
    """Return a file name of the words of the prompt and the seed."""
    words = re.findall(r"\w+", job.requested["prompt"])
    name = "-".join(words)[:MAX_NAME_LENGTH].strip("-_") or "clip"
    return f"{name}-{job.seed}.{extension}"


def clip_content(job: Job, form: str, file: BinaryIO, size_bytes: int) -> Content:
    """Return a clip in a format as what is sent."""
    has_audio = bool(job.effective and job.effective.get("audio"))
    changes = tuple(format_changes(form, has_audio))
    return Content(file, size_bytes, download_name(job, form), MEDIA_TYPES[form], changes)


def _filename_parameter(name: str) -> str:
    """Return the parameter of a Content-Disposition (RFC 6266); other scripts are encoded."""
    if name.isascii():
        return f'filename="{name}"'
    return f"filename*=UTF-8''{quote(name, safe='')}"


def range_response(shared: AppState, content: Content, range_header: str | None) -> Response:
    """Return the complete content, or the one range that was requested (RFC 9110, section 14).

    starlette's FileResponse takes paths only, while clips may be in object storage; it reads in the
    threads that the database needs; and it answers many ranges at once, with a body larger than the
    clip. Clips never change, so no If-Range is needed.
    """
    size, disposition = content.size_bytes, f"inline; {_filename_parameter(content.name)}"
    headers = {"accept-ranges": "bytes", "content-disposition": disposition}
    if content.changes:
        headers[CHANGES] = json.dumps([asdict(change) for change in content.changes])
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
            content.file.close()
            return Response(status_code=416, headers={"content-range": f"bytes */{size}"})
        status = 206
        headers["content-range"] = f"bytes {first}-{last}/{size}"
    headers["content-length"] = str(last - first + 1)
    part = first, last - first + 1
    return StoredResponse(shared, content, part, status, headers)


def _position(digits: str) -> int | None:
    """Return a position in a file; 19 digits exceed every file."""
    return int(digits[:19]) if digits else None


class ClipResponse(StreamingResponse):
    """Sends a clip. On an error the connection is closed without an end.

    A client takes a body that ends properly for a complete clip.
    """

    async def stream_response(self, send: Send) -> None:
        try:
            await super().stream_response(send)
        except (StorageUnusable, UnknownKey) as error:
            log.warning("%s", error)  # without a last message uvicorn closes the connection


class StoredResponse(ClipResponse):
    """Sends a part of a file, given as position and length, and closes the file."""

    def __init__(
        self, shared: AppState, content: Content, part: tuple[int, int], status: int,
        headers: dict[str, str],
    ) -> None:  # fmt: skip
        self.file = content.file
        chunks = _iter_chunks(shared, content.file, *part)
        super().__init__(chunks, status, headers, content.media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self.file:  # also where a client leaves, or asks for the head, before the first chunk
            await super().__call__(scope, receive, send)


async def _iter_chunks(
    shared: AppState, file: BinaryIO, first: int, count: int
) -> AsyncIterator[bytes]:
    file.seek(first)
    while count > 0:
        with as_storage_error():  # it may be deleted, or its storage unreachable by now
            chunk = await shared.run_at_storage(file.read, min(CHUNK_BYTES, count))
        if not chunk:
            return
        count -= len(chunk)
        yield chunk


async def stream_growing_file(shared: AppState, job: Job) -> AsyncGenerator[bytes]:
    """Yield the bytes of a clip as they are written: a fragmented MP4, playable from the start.

    A worker that takes over the job writes the same bytes again, so the position stays valid.
    Raises StorageUnusable if the clip ends incomplete.
    """
    sent = 0

    async def iter_new_bytes() -> AsyncIterator[bytes]:
        nonlocal sent
        read = shared.queue.storage.read_growing
        while chunk := await shared.run_at_storage(read, job.id, sent, CHUNK_BYTES):
            sent += len(chunk)
            yield chunk

    async for _ in shared.hub.follow(job):
        async for chunk in iter_new_bytes():
            yield chunk
    async for chunk in iter_new_bytes():
        yield chunk
    if sent != await shared.run_at_storage(shared.queue.storage.grown_length, job.id):
        raise StorageUnusable(f"{job.id} ended after {sent} bytes and is not whole.")
