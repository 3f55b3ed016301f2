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
from filmlet.api.dependencies import AdminDep, AppState, AppStateDep, Caller, CallerDep, Entered
from filmlet.api.job_watcher import revision_tag, while_allowed
from filmlet.api.schemas import (
    ErrorResponse,
    RequestModel,
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
    NotSupported,
    PermissionDenied,
    UnknownJob,
    UnknownKey,
    UnknownModel,
)
from filmlet.jobs import PREVIEW, Job, Priority, Status, SubmitOptions
from filmlet.media import spritesheet, thumbnail
from filmlet.models import REGISTRY, check_prompt

DELETE_TIMEOUT_S = 10.0  # how long a delete waits for the worker
PICTURES = {"thumbnail": (thumbnail, "image/webp"), "spritesheet": (spritesheet, "image/jpeg")}
REFUSALS: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorResponse} for code in (400, 401, 403, 404, 413, 429, 500, 503)
}
MAX_JSON_MARKS = 100_000  # commas and brackets of a body, text included
MAX_JSON_VALUES = 500  # fields and elements of a body, nested ones included
IdempotencyKey = Annotated[
    str | None, Header(alias="Idempotency-Key", min_length=1, max_length=255)
]

Body = TypeVar("Body", bound=RequestModel)

router = APIRouter(prefix="/v1/videos", tags=["videos"], responses=REFUSALS)


def _openapi_body(body: type[Body], form: dict[str, Any], table: dict[str, Any]) -> dict[str, Any]:
    """A body for the description; form, table: what each kind has beside the plain fields."""

    def schema(more: dict[str, Any]) -> dict[str, Any]:
        plain = body.model_json_schema()
        return {"schema": plain | {"properties": plain["properties"] | more}}

    kinds = {"multipart/form-data": schema(form), "application/json": schema(table)}
    return {"requestBody": {"required": True, "content": kinds}}


FILE = {"type": "string", "format": "binary"}
INLINE = {"type": "object", "properties": {"image_url": {"type": "string", "format": "data-url"}}}
VIDEO_ID_SCHEMA = {"type": "object", "properties": {"id": {"type": "string"}}}
CREATE = _openapi_body(
    VideoCreate, dict.fromkeys(uploads.REFERENCES, FILE), dict.fromkeys(uploads.REFERENCES, INLINE)
)
EXTEND_PARAM_NAMES = dict.fromkeys(("extend", "size", "fps"), "video")
EXTEND = _openapi_body(VideoExtend, {"video": FILE}, {"video": VIDEO_ID_SCHEMA})


def get_job(id: str, shared: AppStateDep, who: CallerDep) -> Job:
    """The job of the path, if the caller may see it."""
    if not re.fullmatch(r"clip_[0-9a-f]{24}", id):
        raise UnknownJob(f"There is no video {id!r}.")
    return shared.queue.get_job(id, who.visible_owner)


JobDep = Annotated[Job, Depends(get_job)]


@router.post("", response_model=Video, openapi_extra=CREATE)
async def create(
    request: Request,
    response: Response,
    shared: AppStateDep,
    who: CallerDep,
    key: IdempotencyKey = None,
) -> Video:
    """Create a video from a form or JSON. `Idempotency-Key` makes repeats return the first job.

    `input_reference` is a picture it begins with, `last_reference` one it ends in.
    """
    async with _read_body(request) as (fields, files):
        pictures = uploads.references(fields, files)
        body = _validate_body(VideoCreate, fields, files)
        asking = _submit_options(who, body, key)
        if pictures:  # which are decoded
            return await shared.run_expensive(
                who, _create, shared, body, asking, pictures, response
            )
        return await run_in_threadpool(_create, shared, body, asking, pictures, response)


def _create(
    shared: AppState,
    body: VideoCreate,
    asking: SubmitOptions,
    pictures: dict[str, UploadFile],
    response: Response,
) -> Video:
    with _uploaded_guides(pictures) as guides:
        job = submit(shared, body, asking, guides)
    return _video_response(shared, job, response)


@contextmanager
def _uploaded_guides(pictures: dict[str, UploadFile]) -> Iterator[list[Guide]]:
    """Uploaded pictures as guides, while their files are there."""
    at_fault = "last_reference" if "last_reference" in pictures else "input_reference"
    with uploads.saved_uploads(pictures) as paths, _rename_params({"guides": at_fault}):
        yield [Guide(str(path), uploads.REFERENCES[name]) for name, path in paths.items()]


def submit(
    shared: AppState, body: VideoCreate, asking: SubmitOptions, guides: Sequence[Guide] = ()
) -> Job:
    """Queue a clip; the page does so as well. Raises what `Queue.submit` raises."""
    check_model(body.model)
    return shared.queue.submit(body.to_clip_request(guides), asking)


def check_model(model: str) -> str:
    """A model of the catalogue: a folder is for who is at the machine."""
    if model not in REGISTRY:
        raise UnknownModel(f"There is no model {model!r}; there are {', '.join(REGISTRY)}.")
    return model


def _submit_options(who: Caller, body: VideoCreate | VideoExtend, key: str | None) -> SubmitOptions:
    if body.priority == Priority.HIGH and who.visible_owner is not None:
        raise PermissionDenied("Only an admin's key may ask for high priority.", param="priority")
    return who.submit_options(body.priority, key)


@contextmanager
def _rename_params(params: dict[str, str]) -> Iterator[None]:
    """Refusals by the names that clients know."""
    try:
        yield
    except InvalidRequest as error:
        error.param = params.get(error.param, error.param)
        raise


@asynccontextmanager
async def _read_body(
    request: Request,
) -> AsyncIterator[tuple[dict[str, Any], dict[str, UploadFile]]]:
    """Fields and files of a form or a JSON body; the files are gone afterwards."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        part = uploads.TEXT_BYTES
        async with request.form(max_files=2, max_fields=50, max_part_size=part) as form:
            files = {k: v for k, v in form.items() if isinstance(v, UploadFile)}
            yield _form_fields(form), files
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
    if _count_values(table) > MAX_JSON_VALUES:  # each that is wrong would become an error
        raise InvalidRequest("The body has too many values.", param="body")
    yield table, {}


def _count_values(value: Any) -> int:
    """Return how many fields and elements a JSON value has, nested ones included."""
    children = value.values() if isinstance(value, dict) else value
    if not isinstance(value, dict | list):
        return 0
    return len(value) + sum(map(_count_values, children))


def _form_fields(form: FormData) -> dict[str, Any]:
    """The fields of a form; one that is there several times, perhaps as `name[]`, is a list."""
    sent: dict[str, list[str]] = {}
    for name, value in form.multi_items():
        if isinstance(value, str):
            sent.setdefault(name.removesuffix("[]"), []).append(value)
    return {name: values[0] if len(values) == 1 else values for name, values in sent.items()}


def _validate_body(body: type[Body], fields: dict[str, Any], files: dict[str, UploadFile]) -> Body:
    for name in files:
        raise InvalidRequest(f"There is no file parameter {name!r}.", param="body")
    try:
        return body.model_validate(fields)
    except ValidationError as error:
        errors = [e | {"loc": ("body", *e["loc"])} for e in error.errors(include_url=False)]
        raise RequestValidationError(errors) from error


def _video_response(shared: AppState, job: Job, response: Response) -> Video:
    response.headers.update(poll_headers(job))
    return Video.from_job(job, shared.settings.keep_days)


def poll_headers(job: Job) -> dict[str, str]:
    """The header that says when asking again is worth it."""
    return {} if job.status.is_final else {"openai-poll-after-ms": str(poll_after_ms(job))}


@router.get("", response_model=VideoList)
def list_videos(
    shared: AppStateDep,
    who: CallerDep,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
    search: Annotated[str, Query(max_length=200, pattern=r"^[^\x00]*$")] = "",
) -> VideoList:
    """List jobs, newest first; `after` the last id comes the next page.

    search: what the prompts contain.
    """
    if after is not None:
        get_job(after, shared, who)
    return video_page(shared, who, limit, after=after, oldest_first=order == "asc", search=search)


def video_page(shared: AppState, who: Caller, limit: int, **filters: Any) -> VideoList:
    """A page of what somebody may see; filters: as `Queue.jobs` takes it."""
    jobs = shared.queue.list_jobs(who.visible_owner, limit=limit + 1, **filters)
    data = [Video.from_job(job, shared.settings.keep_days) for job in jobs[:limit]]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return VideoList(data=data, first_id=first, last_id=last, has_more=len(jobs) > limit)


@router.post("/plan", response_model=VideoPlan, openapi_extra=CREATE)
async def plan(request: Request, shared: AppStateDep, who: CallerDep) -> VideoPlan:
    """Plan a video without queueing it: shape, steps, time, changes."""
    async with _read_body(request) as (fields, files):
        pictures = uploads.references(fields, files)
        body = _validate_body(VideoCreate, fields, files)
        return await shared.run_expensive(who, _plan_upload, shared, body, pictures)


def _plan_upload(shared: AppState, body: VideoCreate, pictures: dict[str, UploadFile]) -> VideoPlan:
    with _uploaded_guides(pictures) as guides:
        return plan_video(shared, body, guides)


def plan_video(shared: AppState, body: VideoCreate, guides: Sequence[Guide] = ()) -> VideoPlan:
    """The same for the page. Raises what `Queue.forecast` raises."""
    check_model(body.model)
    forecast = shared.queue.forecast(body.to_clip_request(guides))
    card, prompts = forecast.plan.card, forecast.plan.request.prompts
    return VideoPlan.from_forecast(forecast, [check_prompt(card, prompt) for prompt in prompts])


@router.post("/characters", response_model=Video)
@router.post("/edits", response_model=Video)
async def edit(request: Request, shared: AppStateDep, who: CallerDep) -> Video:
    """Not supported: the upload is checked, then `not_offered`."""
    name = "name" if request.url.path.endswith("/characters") else "prompt"
    async with _read_body(request) as (fields, files):
        if not str(fields.get(name, "")).strip():
            raise InvalidRequest(f"{name} is empty.", param=name)
        if upload := files.get("video"):
            await shared.run_expensive(who, partial(uploads.check, upload, "video", video=True))
    raise NotSupported("No model of this server can change a video yet.", param="video")


@router.post("/extensions", response_model=Video, openapi_extra=EXTEND)
async def extend(
    request: Request,
    response: Response,
    shared: AppStateDep,
    who: CallerDep,
    key: IdempotencyKey = None,
) -> Video:
    """Extend a video of this server, or an uploaded one.

    `seconds` are added to it; those of the answer count both.
    """
    async with _read_body(request) as (fields, files):
        upload, table = files.pop("video", None), fields.pop("video", None)
        id = fields.pop("video[id]", table.get("id") if isinstance(table, dict) else None)
        body = _validate_body(VideoExtend, fields, files)
        asking = _submit_options(who, body, key)
        if upload:
            job = await shared.run_expensive(who, _extend_sent, shared, body, asking, upload)
        elif isinstance(id, str):
            source = await run_in_threadpool(get_job, id, shared, who)
            job = await shared.run_expensive(who, extend_own, shared, body, asking, source)
        else:
            raise InvalidRequest('video must be a file or {"id": "clip_..."}.', param="video")
    return _video_response(shared, job, response)


def _extend_sent(
    shared: AppState, body: VideoExtend, asking: SubmitOptions, upload: UploadFile
) -> Job:
    with uploads.saved_uploads({"video": upload}, video=True) as paths:
        return extend_file(shared, body, asking, paths["video"])


def extend_file(shared: AppState, body: VideoExtend, asking: SubmitOptions, path: Path) -> Job:
    """Go on from a video that lies here as a file. Raises what `Queue.submit` raises."""
    model = check_model(body.model or "pocket")
    with _rename_params(EXTEND_PARAM_NAMES):
        return shared.queue.submit(body.to_clip_request(model, str(path)), asking)


def extend_own(shared: AppState, body: VideoExtend, asking: SubmitOptions, source: Job) -> Job:
    """Go on from a clip of this server. Raises what `Queue.extend` raises."""
    model = check_model(body.model or source.model)
    with _rename_params(EXTEND_PARAM_NAMES):
        return shared.queue.extend(source.id, body.to_clip_request(model), asking)


@router.get("/{id}", response_model=Video)
async def retrieve(job: JobDep, shared: AppStateDep, response: Response) -> Video:
    """Get a job; the header `openai-poll-after-ms` says when to poll again."""
    return _video_response(shared, job, response)


@router.post("/{id}/cancel", response_model=Video)
def cancel(job: JobDep, shared: AppStateDep, response: Response) -> Video:
    """Cancel a job and keep its results; `retry` continues from them."""
    return _video_response(shared, shared.queue.cancel(job.id), response)


@router.post("/{id}/retry", response_model=Video)
def retry(job: JobDep, shared: AppStateDep, response: Response) -> Video:
    """Queue a failed or cancelled job again, from its last finished stage."""
    return _video_response(shared, shared.queue.retry(job.id), response)


@router.post("/{id}/priority", response_model=Video)
def set_priority(
    job: JobDep, body: VideoPriority, shared: AppStateDep, who: AdminDep, response: Response
) -> Video:
    """Change the priority of a queued job; admins only."""
    del who
    return _video_response(shared, shared.queue.set_priority(job.id, body.priority), response)


@router.delete("/{id}", response_model=VideoDeleted)
async def delete(job: JobDep, shared: AppStateDep) -> VideoDeleted:
    """Cancel, wait for the worker, delete the job and its files."""
    queue, until = shared.queue, time.monotonic() + DELETE_TIMEOUT_S
    job = await run_in_threadpool(queue.cancel, job.id)
    while not job.status.is_final and time.monotonic() < until:
        await asyncio.sleep(0.1)
        job = await run_in_threadpool(queue.get_job, job.id)
    if job.status.is_final:
        await run_in_threadpool(queue.delete, job.id)
    return VideoDeleted(id=job.id, deleted=job.status.is_final, worker_idle=job.status.is_final)


@router.get(
    "/{id}/content",
    response_class=Response,
    responses={200: {"content": {"video/mp4": {}, "image/webp": {}, "image/jpeg": {}}}},
)
async def download(
    job: JobDep,
    shared: AppStateDep,
    access: Entered,
    variant: Literal["video", "thumbnail", "spritesheet"] = "video",
    stream: bool = False,
    range: Annotated[str | None, Header()] = None,
) -> Response:
    """Download the clip (ranges); `stream=true` sends it while it is made."""
    if stream and variant == "video" and not job.status.is_final:
        grown = while_allowed(video_responses.stream_growing_file(shared, job), access.is_current)
        return video_responses.GrowingResponse(grown, media_type="video/mp4")
    if job.clip is None or job.status != Status.COMPLETED:
        raise UnknownJob(f"{job.id} is {job.status}; there is no clip to send.")
    storage = shared.queue.storage
    if variant in PICTURES:
        return await shared.run_expensive(access.who, _picture, shared, job, *PICTURES[variant])
    file = await shared.run_at_storage(storage.open, job.id, job.clip)
    size = await shared.run_at_storage(storage.length, job.id, job.clip)
    return video_responses.range_response(shared, file, size, range, f"{job.id}.mp4")


def _picture(shared: AppState, job: Job, draw: Callable[[BinaryIO], bytes], kind: str) -> Response:
    assert job.clip
    with shared.queue.storage.open(job.id, job.clip) as file:
        kept = {"cache-control": "private, max-age=86400"}  # a finished clip stays as it is
        return Response(draw(file), media_type=kind, headers=kept)


@router.get(
    "/{id}/preview",
    response_class=Response,
    responses={200: {"content": {"image/png": {}}}},
)
async def preview(job: JobDep, shared: AppStateDep) -> Response:
    """Get the latest preview image."""
    if job.preview is None:
        raise UnknownJob(f"{job.id} has no preview yet.")
    picture = await shared.run_at_storage(shared.queue.storage.read, job.id, PREVIEW)
    return Response(picture, media_type="image/png", headers={"cache-control": "no-store"})


@router.post("/{id}/remix", response_model=Video)
def remix(
    job: JobDep, body: VideoRemix, shared: AppStateDep, who: CallerDep, response: Response,
    key: IdempotencyKey = None,
) -> Video:  # fmt: skip
    """Create a video with the same settings and seed and another prompt."""
    asking = who.submit_options(job.priority, key)
    return _video_response(shared, shared.queue.remix(job.id, body.prompt, asking), response)


@router.post("/{id}/refine", response_model=Video)
def refine(
    job: JobDep, shared: AppStateDep, who: CallerDep, response: Response, key: IdempotencyKey = None
) -> Video:
    """Refine a finished draft, as a new job that starts from its latents."""
    asking = who.submit_options(job.priority, key)
    return _video_response(shared, shared.queue.refine(job.id, asking), response)


@router.get("/{id}/events", response_class=EventSourceResponse)
async def events(
    job: JobDep,
    shared: AppStateDep,
    access: Entered,
    last_event_id: Annotated[str | None, Header()] = None,
) -> AsyncIterator[ServerSentEvent]:
    """Stream changes of a job as server-sent events: `position`, `progress`, `preview`, `done`.

    Each carries the whole job. Who comes back with Last-Event-ID hears what changed meanwhile.
    """
    previous: Job | None = None
    with suppress(UnknownKey):  # the key is gone: so is the stream
        async for now in while_allowed(shared.hub.follow(job), access.is_current):
            if revision_tag(now) == last_event_id and not now.status.is_final:
                previous = now
                continue
            video = Video.from_job(now, shared.settings.keep_days)
            yield ServerSentEvent(
                data=video, event=_event_name(now, previous), id=revision_tag(now), retry=1000
            )
            previous = now


def _event_name(now: Job, before: Job | None) -> str:
    if now.status.is_final:
        return "done"
    if now.status == Status.QUEUED:
        return "position"
    if before and now.preview and now.preview != before.preview:
        return "preview"
    return "progress"
