"""/v1/videos: create, look, list, delete, download, remix, extend, follow."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, TypeVar

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import ValidationError
from pydantic_core import from_json
from starlette.datastructures import FormData, UploadFile

from filmlet.api import uploads, video_responses
from filmlet.api.dependencies import Admin, Caller, Entered, From, House, Shared
from filmlet.api.job_watcher import mark, while_allowed
from filmlet.api.schemas import (
    ErrorEnvelope,
    Sent,
    Video,
    VideoCreate,
    VideoDeleted,
    VideoExtend,
    VideoList,
    VideoPlan,
    VideoPriority,
    VideoRemix,
    poll_after_ms,
)
from filmlet.core.guide import Guide
from filmlet.errors import (
    InvalidRequest,
    NotOffered,
    PermissionDenied,
    UnknownJob,
    UnknownKey,
    UnknownModel,
)
from filmlet.jobs import PREVIEW, Asking, Job, Priority, Status
from filmlet.media import spritesheet, thumbnail
from filmlet.models import CARDS, count

FREE_S = 10.0  # how long a delete waits for the worker
PICTURES = {"thumbnail": (thumbnail, "image/webp"), "spritesheet": (spritesheet, "image/jpeg")}
REFUSALS: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorEnvelope} for code in (400, 401, 403, 404, 413, 429, 500, 503)
}
MAX_JSON_MARKS = 100_000  # commas and brackets of a body, text included
IdempotencyKey = Annotated[
    str | None, Header(alias="Idempotency-Key", min_length=1, max_length=255)
]

Body = TypeVar("Body", bound=Sent)

router = APIRouter(prefix="/v1/videos", tags=["videos"], responses=REFUSALS)


def _described(body: type[Body], form: dict[str, Any], table: dict[str, Any]) -> dict[str, Any]:
    """A body for the description; form, table: what each kind has beside the plain fields."""

    def schema(more: dict[str, Any]) -> dict[str, Any]:
        plain = body.model_json_schema()
        return {"schema": plain | {"properties": plain["properties"] | more}}

    kinds = {"multipart/form-data": schema(form), "application/json": schema(table)}
    return {"requestBody": {"required": True, "content": kinds}}


FILE = {"type": "string", "format": "binary"}
INLINE = {"type": "object", "properties": {"image_url": {"type": "string", "format": "data-url"}}}
OF_A_JOB = {"type": "object", "properties": {"id": {"type": "string"}}}
CREATE = _described(
    VideoCreate, dict.fromkeys(uploads.REFERENCES, FILE), dict.fromkeys(uploads.REFERENCES, INLINE)
)
OF_THE_VIDEO = dict.fromkeys(("extend", "size", "fps"), "video")
EXTEND = _described(VideoExtend, {"video": FILE}, {"video": OF_A_JOB})


def find(id: str, shared: Shared, who: From) -> Job:
    """The job of the path, if the caller may see it."""
    if not re.fullmatch(r"clip_[0-9a-f]{24}", id):
        raise UnknownJob(f"There is no video {id!r}.")
    return shared.queue.get(id, who.sees)


Found = Annotated[Job, Depends(find)]


@router.post("", response_model=Video, openapi_extra=CREATE)
async def create(
    request: Request, response: Response, shared: Shared, who: From, key: IdempotencyKey = None
) -> Video:
    """Put a clip into the queue; a form or JSON. One Idempotency-Key makes one clip.

    `input_reference` is a picture it begins with, `last_reference` one it ends in.
    """
    async with _body(request) as (fields, files):
        pictures = uploads.references(fields, files)
        asked = _valid(VideoCreate, fields, files)
        asking = _asking(who, asked, key)
        if pictures:  # which are decoded
            return await shared.run_expensive(
                who, _create, shared, asked, asking, pictures, response
            )
        return await run_in_threadpool(_create, shared, asked, asking, pictures, response)


def _create(
    shared: House,
    asked: VideoCreate,
    asking: Asking,
    pictures: dict[str, UploadFile],
    response: Response,
) -> Video:
    with _pictured(pictures) as guides:
        job = submit(shared, asked, asking, guides)
    return _shown(shared, job, response)


@contextmanager
def _pictured(pictures: dict[str, UploadFile]) -> Iterator[list[Guide]]:
    """Uploaded pictures as guides, while their files are there."""
    at_fault = "last_reference" if "last_reference" in pictures else "input_reference"
    with uploads.kept(pictures) as paths, _named({"guides": at_fault}):
        yield [Guide(str(path), uploads.REFERENCES[name]) for name, path in paths.items()]


def submit(shared: House, asked: VideoCreate, asking: Asking, guides: Sequence[Guide] = ()) -> Job:
    """Queue a clip; the page does so as well. Raises what `Queue.submit` raises."""
    offered(asked.model)
    return shared.queue.submit(asked.request(guides), asking)


def offered(model: str) -> str:
    """A model of the catalogue: a folder is for who is at the machine."""
    if model not in CARDS:
        raise UnknownModel(f"There is no model {model!r}; there are {', '.join(CARDS)}.")
    return model


def _asking(who: Caller, asked: VideoCreate | VideoExtend, key: str | None) -> Asking:
    if asked.priority == Priority.HIGH and who.sees is not None:
        raise PermissionDenied("Only an admin's key may ask for high priority.", param="priority")
    return who.asking(asked.priority, key)


@contextmanager
def _named(params: dict[str, str]) -> Iterator[None]:
    """Refusals by the names that clients know."""
    try:
        yield
    except InvalidRequest as error:
        error.param = params.get(error.param, error.param)
        raise


@asynccontextmanager
async def _body(request: Request) -> AsyncIterator[tuple[dict[str, Any], dict[str, UploadFile]]]:
    """Fields and files of a form or a JSON body; the files are gone afterwards."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        part = uploads.TEXT_BYTES
        async with request.form(max_files=2, max_fields=50, max_part_size=part) as form:
            files = {k: v for k, v in form.items() if isinstance(v, UploadFile)}
            yield _texts(form), files
        return
    body = await request.body()
    # Small values take a hundred times the memory of their text; no request has so many.
    if sum(map(body.count, (b",", b"[", b"{"))) > MAX_JSON_MARKS:
        raise InvalidRequest("The body has too many values.", param="body")
    try:
        table = from_json(body, allow_inf_nan=False, cache_strings="none")
    except ValueError:
        raise InvalidRequest(
            "The body must be a form or JSON; send its Content-Type.", param="body"
        ) from None
    if not isinstance(table, dict):
        raise InvalidRequest("The body must be a JSON object.", param="body")
    yield table, {}


def _texts(form: FormData) -> dict[str, Any]:
    """The fields of a form; one that is there several times, perhaps as `name[]`, is a list."""
    sent: dict[str, list[str]] = {}
    for name, value in form.multi_items():
        if isinstance(value, str):
            sent.setdefault(name.removesuffix("[]"), []).append(value)
    return {name: values[0] if len(values) == 1 else values for name, values in sent.items()}


def _valid(body: type[Body], fields: dict[str, Any], files: dict[str, UploadFile]) -> Body:
    for name in files:
        raise InvalidRequest(f"There is no file parameter {name!r}.", param="body")
    try:
        return body.model_validate(fields)
    except ValidationError as error:
        found = [e | {"loc": ("body", *e["loc"])} for e in error.errors(include_url=False)]
        raise RequestValidationError(found) from error


def _shown(shared: House, job: Job, response: Response) -> Video:
    response.headers.update(polling(job))
    return Video.of(job, shared.settings.keep_days)


def polling(job: Job) -> dict[str, str]:
    """The header that says when asking again is worth it."""
    return {} if job.status.is_over else {"openai-poll-after-ms": str(poll_after_ms(job))}


@router.get("", response_model=VideoList)
def page(
    shared: Shared,
    who: From,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
    search: Annotated[str, Query(max_length=200, pattern=r"^[^\x00]*$")] = "",
) -> VideoList:
    """A page of jobs, the newest first; the next one comes `after` the last id.

    search: what the prompts contain.
    """
    if after is not None:
        find(after, shared, who)
    return listed(shared, who, limit, after=after, oldest_first=order == "asc", search=search)


def listed(shared: House, who: Caller, limit: int, **wanted: Any) -> VideoList:
    """A page of what somebody may see; wanted: as `Queue.jobs` takes it."""
    jobs = shared.queue.jobs(who.sees, limit=limit + 1, **wanted)
    data = [Video.of(job, shared.settings.keep_days) for job in jobs[:limit]]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return VideoList(data=data, first_id=first, last_id=last, has_more=len(jobs) > limit)


@router.post("/plan", response_model=VideoPlan, openapi_extra=CREATE)
async def plan(request: Request, shared: Shared, who: From) -> VideoPlan:
    """What a video would come to: its shape, its steps, its time, and what would differ."""
    async with _body(request) as (fields, files):
        pictures = uploads.references(fields, files)
        asked = _valid(VideoCreate, fields, files)
        return await shared.run_expensive(who, _foresee, shared, asked, pictures)


def _foresee(shared: House, asked: VideoCreate, pictures: dict[str, UploadFile]) -> VideoPlan:
    with _pictured(pictures) as guides:
        return foresee(shared, asked, guides)


def foresee(shared: House, asked: VideoCreate, guides: Sequence[Guide] = ()) -> VideoPlan:
    """The same for the page. Raises what `Queue.forecast` raises."""
    offered(asked.model)
    forecast = shared.queue.forecast(asked.request(guides))
    card, prompts = forecast.plan.card, forecast.plan.request.prompts
    return VideoPlan.of(forecast, [count(card, prompt) for prompt in prompts])


@router.post("/characters", response_model=Video)
@router.post("/edits", response_model=Video)
async def change(request: Request, shared: Shared, who: From) -> Video:
    """Change what is in a video. No model here can: the video is checked, and this is said."""
    name = "name" if request.url.path.endswith("/characters") else "prompt"
    async with _body(request) as (fields, files):
        if not str(fields.get(name, "")).strip():
            raise InvalidRequest(f"{name} is empty.", param=name)
        if upload := files.get("video"):
            await shared.run_expensive(who, partial(uploads.check, upload, "video", video=True))
    raise NotOffered("No model of this server can change a video yet.", param="video")


@router.post("/extensions", response_model=Video, openapi_extra=EXTEND)
async def extend(
    request: Request, response: Response, shared: Shared, who: From, key: IdempotencyKey = None
) -> Video:
    """A video of this server, or one that is sent, and what comes after it.

    `seconds` are added to it; those of the answer count both.
    """
    async with _body(request) as (fields, files):
        upload, table = files.pop("video", None), fields.pop("video", None)
        id = fields.pop("video[id]", table.get("id") if isinstance(table, dict) else None)
        asked = _valid(VideoExtend, fields, files)
        asking = _asking(who, asked, key)
        if upload:
            job = await shared.run_expensive(who, _extend_sent, shared, asked, asking, upload)
        elif isinstance(id, str):
            source = await run_in_threadpool(find, id, shared, who)
            job = await shared.run_expensive(who, extend_own, shared, asked, asking, source)
        else:
            raise InvalidRequest('video must be a file or {"id": "clip_..."}.', param="video")
    return _shown(shared, job, response)


def _extend_sent(shared: House, asked: VideoExtend, asking: Asking, upload: UploadFile) -> Job:
    with uploads.kept({"video": upload}, video=True) as paths:
        return extend_file(shared, asked, asking, paths["video"])


def extend_file(shared: House, asked: VideoExtend, asking: Asking, path: Path) -> Job:
    """Go on from a video that lies here as a file. Raises what `Queue.submit` raises."""
    model = offered(asked.model or "pocket")
    with _named(OF_THE_VIDEO):
        return shared.queue.submit(asked.request(model, str(path)), asking)


def extend_own(shared: House, asked: VideoExtend, asking: Asking, source: Job) -> Job:
    """Go on from a clip of this server. Raises what `Queue.extend` raises."""
    model = offered(asked.model or source.model)
    with _named(OF_THE_VIDEO):
        return shared.queue.extend(source.id, asked.request(model), asking)


@router.get("/{id}", response_model=Video)
async def retrieve(job: Found, shared: Shared, response: Response) -> Video:
    """One job; `openai-poll-after-ms` says when asking again is worth it."""
    return _shown(shared, job, response)


@router.post("/{id}/cancel", response_model=Video)
def cancel(job: Found, shared: Shared, response: Response) -> Video:
    """Stop a video and keep what it has come to: `retry` goes on from there."""
    return _shown(shared, shared.queue.cancel(job.id), response)


@router.post("/{id}/retry", response_model=Video)
def retry(job: Found, shared: Shared, response: Response) -> Video:
    """Queue a failed or stopped video again; it goes on from its last finished stage."""
    return _shown(shared, shared.queue.retry(job.id), response)


@router.post("/{id}/priority", response_model=Video)
def prioritise(
    job: Found, asked: VideoPriority, shared: Shared, who: Admin, response: Response
) -> Video:
    """Move a waiting video into another class; for admins."""
    del who
    return _shown(shared, shared.queue.prioritise(job.id, asked.priority), response)


@router.delete("/{id}", response_model=VideoDeleted)
async def delete(job: Found, shared: Shared) -> VideoDeleted:
    """Cancel, wait until the worker is free, remove the job and its files."""
    queue, until = shared.queue, time.monotonic() + FREE_S
    job = await run_in_threadpool(queue.cancel, job.id)
    while not job.status.is_over and time.monotonic() < until:
        await asyncio.sleep(0.1)
        job = await run_in_threadpool(queue.get, job.id)
    if job.status.is_over:
        await run_in_threadpool(queue.delete, job.id)
    return VideoDeleted(id=job.id, deleted=job.status.is_over, worker_idle=job.status.is_over)


@router.get(
    "/{id}/content",
    response_class=Response,
    responses={200: {"content": {"video/mp4": {}, "image/webp": {}, "image/jpeg": {}}}},
)
async def download(
    job: Found,
    shared: Shared,
    access: Entered,
    variant: Literal["video", "thumbnail", "spritesheet"] = "video",
    stream: bool = False,
    range: Annotated[str | None, Header()] = None,
) -> Response:
    """The clip, in ranges if wanted; `stream=true` sends it while it is still being made."""
    if stream and variant == "video" and not job.status.is_over:
        grown = while_allowed(video_responses.growing(shared, job), access.is_current)
        return video_responses.GrowingResponse(grown, media_type="video/mp4")
    if job.clip is None or job.status != Status.COMPLETED:
        raise UnknownJob(f"{job.id} is {job.status}; there is no clip to send.")
    storage = shared.queue.storage
    if variant in PICTURES:
        return await shared.run_expensive(access.who, _picture, shared, job, *PICTURES[variant])
    file = await shared.run_at_storage(storage.open, job.id, job.clip)
    size = await shared.run_at_storage(storage.length, job.id, job.clip)
    return video_responses.ranged(shared, file, size, range, f"{job.id}.mp4")


def _picture(shared: House, job: Job, draw: Callable[[BinaryIO], bytes], kind: str) -> Response:
    assert job.clip
    with shared.queue.storage.open(job.id, job.clip) as file:
        kept = {"cache-control": "private, max-age=86400"}  # a finished clip stays as it is
        return Response(draw(file), media_type=kind, headers=kept)


@router.get(
    "/{id}/preview",
    response_class=Response,
    responses={200: {"content": {"image/png": {}}}},
)
async def preview(job: Found, shared: Shared) -> Response:
    """A rough picture of the clip as it is now."""
    if job.preview is None:
        raise UnknownJob(f"{job.id} has no preview yet.")
    picture = await shared.run_at_storage(shared.queue.storage.read, job.id, PREVIEW)
    return Response(picture, media_type="image/png", headers={"cache-control": "no-store"})


@router.post("/{id}/remix", response_model=Video)
def remix(
    job: Found, asked: VideoRemix, shared: Shared, who: From, response: Response,
    key: IdempotencyKey = None,
) -> Video:  # fmt: skip
    """The same settings and seed with another prompt."""
    asking = who.asking(job.priority, key)
    return _shown(shared, shared.queue.vary(job.id, asked.prompt, asking), response)


@router.post("/{id}/refine", response_model=Video)
def refine(
    job: Found, shared: Shared, who: From, response: Response, key: IdempotencyKey = None
) -> Video:
    """Finish a draft, as a new video that starts from the draft's latents."""
    asking = who.asking(job.priority, key)
    return _shown(shared, shared.queue.refine(job.id, asking), response)


@router.get("/{id}/events", response_class=EventSourceResponse)
async def events(
    job: Found,
    shared: Shared,
    access: Entered,
    last_event_id: Annotated[str | None, Header()] = None,
) -> AsyncIterator[ServerSentEvent]:
    """Every change of the job as it happens: `position`, `progress`, `preview`, then `done`.

    Each carries the whole job. Who comes back with Last-Event-ID hears what changed meanwhile.
    """
    seen: Job | None = None
    with suppress(UnknownKey):  # the key is gone: so is the stream
        async for now in while_allowed(shared.hub.follow(job), access.is_current):
            if mark(now) == last_event_id and not now.status.is_over:
                seen = now
                continue
            told = Video.of(now, shared.settings.keep_days)
            yield ServerSentEvent(data=told, event=_kind(now, seen), id=mark(now), retry=1000)
            seen = now


def _kind(now: Job, before: Job | None) -> str:
    if now.status.is_over:
        return "done"
    if now.status == Status.QUEUED:
        return "position"
    if before and now.preview and now.preview != before.preview:
        return "preview"
    return "progress"
