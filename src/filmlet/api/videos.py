"""Routes under /v1/videos."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from io import BytesIO
from typing import Annotated, Any, BinaryIO, Literal

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.exceptions import HTTPException

from filmlet.api import video_responses
from filmlet.api.archives import ARCHIVE_NAME, MAX_CLIPS, find_entries, iter_archive
from filmlet.api.dependencies import (
    Access,
    AdminDep,
    AppState,
    AppStateDep,
    CallerDep,
    Entered,
)
from filmlet.api.exports import check_format, prepare_export
from filmlet.api.job_watcher import revision_tag, while_allowed
from filmlet.api.openapi import BYTES, describe_body, refusals
from filmlet.api.prompts import enhance_body, enhance_texts
from filmlet.api.schemas import (
    Video,
    VideoDeleted,
    VideoList,
    VideoPlan,
    VideoPriority,
    VideoRemix,
)
from filmlet.api.serializer import RespondDep, SerializerDep
from filmlet.api.submissions import (
    VIDEO_ID,
    extend_own,
    extend_upload,
    find_job,
    plan_uploads,
    submit,
    submit_options,
    submit_uploads,
)
from filmlet.api.uploads import check_upload
from filmlet.api.video_requests import (
    read_body,
    read_extend_request,
    read_video_request,
)
from filmlet.errors import InvalidRequest, NotSupported, UnknownJob, UnknownKey
from filmlet.jobs import CLIP_FORMAT, PREVIEW, Job, Status
from filmlet.jobs.storage import as_storage_error
from filmlet.media import extract_audio, spritesheet, thumbnail

ClipFormat = Literal["mp4", "webm", "gif", "webp"]
MAX_LISTED = 100  # jobs of one answer
DELETE_TIMEOUT_S = 10.0  # how long a delete waits for the worker
PICTURES = {"thumbnail": (thumbnail, "image/webp"), "spritesheet": (spritesheet, "image/jpeg")}
REFUSALS = refusals(400, 401, 403, 404, 413, 429, 500, 503)
BAD_GATEWAY = refusals(502)  # of the prompt enhancer
CREATE_BODY = describe_body("VideoCreateForm", "VideoCreate")
EXTEND_BODY = describe_body("VideoExtendForm", "VideoExtend")
IdempotencyKey = Annotated[
    str | None, Header(alias="Idempotency-Key", min_length=1, max_length=255)
]

router = APIRouter(prefix="/v1/videos", tags=["videos"], responses=REFUSALS)


def get_job(id: str, shared: AppStateDep, who: CallerDep) -> Job:
    """Return the job of the path. Raises UnknownJob."""
    return find_job(id, shared, who)


JobDep = Annotated[Job, Depends(get_job)]


@router.post("", response_model=Video, responses=BAD_GATEWAY, openapi_extra=CREATE_BODY)
async def create(
    request: Request,
    respond: RespondDep,
    shared: AppStateDep,
    who: CallerDep,
    key: IdempotencyKey = None,
) -> Video:
    """Create a video from a form or JSON. `Idempotency-Key` makes repeats return the first job.

    `input_reference` is a picture it begins with, `last_reference` one it ends in.
    """
    async with read_video_request(request, shared, who) as (body, images):
        options = submit_options(who, body, key)
        body = await enhance_body(shared, who, body, body.model)
        if images:  # which are decoded
            job = await shared.run_expensive(who, submit_uploads, shared, body, options, images)
        else:
            job = await run_in_threadpool(submit, shared, body, options)
    return respond(job)


def read_filters(
    search: Annotated[str, Query(max_length=200, pattern=r"^[^\x00]*$")] = "",
    ids: Annotated[list[str] | None, Query(min_length=1, max_length=MAX_LISTED)] = None,
) -> dict[str, Any]:
    """Return which jobs are listed, as `JobReader.list_jobs` takes it.

    search: what the prompts contain. ids: of the jobs to choose from; others are left out.
    """
    if ids is not None:
        ids = [id for id in dict.fromkeys(ids) if VIDEO_ID.fullmatch(id)]
    return {"search": search, "ids": ids}


@router.get("", response_model=VideoList)
def list_videos(
    serializer: SerializerDep,
    who: CallerDep,
    filters: Annotated[dict[str, Any], Depends(read_filters)],
    after: str | None = None,
    limit: Annotated[int, Query(ge=0, le=MAX_LISTED)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> VideoList:
    """List jobs, newest first; `after` the last id comes the next page.

    search: what the prompts contain. ids: repeated, of the jobs to choose from; those that are not
    there are left out.
    """
    if after is not None:
        find_job(after, serializer.shared, who)
    oldest_first = order == "asc"
    return serializer.list_page(who, limit, after=after, oldest_first=oldest_first, **filters)


@router.post("/plan", response_model=VideoPlan, responses=BAD_GATEWAY, openapi_extra=CREATE_BODY)
async def plan(request: Request, shared: AppStateDep, who: CallerDep) -> VideoPlan:
    """Plan a video without queueing it: shape, steps, time, changes."""
    async with read_video_request(request, shared, who) as (body, images):
        body = await enhance_body(shared, who, body, body.model)
        return await shared.run_expensive(who, plan_uploads, shared, body, images)


@router.post("/characters", response_model=Video, openapi_extra=describe_body("CharacterForm"))
@router.post("/edits", response_model=Video, openapi_extra=describe_body("VideoEditForm"))
async def edit(request: Request, shared: AppStateDep, who: CallerDep) -> Video:
    """Not supported: the upload is checked, then `not_offered`."""
    name = "name" if request.url.path.endswith("/characters") else "prompt"
    async with read_body(request) as (fields, files):
        if not str(fields.get(name, "")).strip():
            raise InvalidRequest(f"{name} is empty.", param=name)
        if upload := files.get("video"):
            check = partial(check_upload, upload, "video", video=True)
            await shared.run_expensive(who, check)
    raise NotSupported("No model of this server can change a video yet.", param="video")


@router.post("/extensions", response_model=Video, responses=BAD_GATEWAY, openapi_extra=EXTEND_BODY)
async def extend(
    request: Request,
    respond: RespondDep,
    shared: AppStateDep,
    who: CallerDep,
    key: IdempotencyKey = None,
) -> Video:
    """Extend a video of this server, or an uploaded one.

    `seconds` are added to it; those of the answer count both.
    """
    async with read_extend_request(request) as (body, video):
        options = submit_options(who, body, key)
        if video.upload:
            body = await enhance_body(shared, who, body, body.model or "pocket")
            job = await shared.run_expensive(
                who, extend_upload, shared, body, options, video.upload
            )
        else:
            source = await run_in_threadpool(find_job, str(video.id), shared, who)
            body = await enhance_body(shared, who, body, body.model or source.model)
            job = await shared.run_expensive(who, extend_own, shared, body, options, source)
    return respond(job)


@router.get(
    "/archive",
    response_class=Response,
    responses={200: {"content": {"application/zip": BYTES}}},
)
async def download_archive(
    access: Entered, ids: Annotated[list[str], Query(min_length=1, max_length=MAX_CLIPS)]
) -> Response:
    """Download several finished clips as one ZIP, as they were made; `ids` is repeated."""
    shared = access.shared
    async with shared.count_expensive(access.who.owner):
        entries = await shared.run_at_storage(find_entries, shared, access.who, ids)
    sent = while_allowed(iter_archive(shared, entries), access.is_current)
    headers = {"content-disposition": f'attachment; filename="{ARCHIVE_NAME}"'}
    return video_responses.ClipResponse(sent, headers=headers, media_type="application/zip")


@router.get("/{id}", response_model=Video)
async def retrieve(job: JobDep, respond: RespondDep) -> Video:
    """Get a job; the header `openai-poll-after-ms` says when to poll again."""
    return respond(job)


@router.post("/{id}/cancel", response_model=Video)
def cancel(job: JobDep, shared: AppStateDep, respond: RespondDep) -> Video:
    """Cancel a job and keep its results; `retry` continues from them."""
    return respond(shared.queue.cancel(job.id))


@router.post("/{id}/retry", response_model=Video)
def retry(job: JobDep, shared: AppStateDep, respond: RespondDep) -> Video:
    """Queue a failed or cancelled job again, from its last finished stage."""
    return respond(shared.queue.retry(job.id))


@router.post("/{id}/priority", response_model=Video)
def set_priority(
    job: JobDep, body: VideoPriority, shared: AppStateDep, who: AdminDep, respond: RespondDep
) -> Video:
    """Change the priority of a queued job; admins only."""
    del who
    return respond(shared.queue.set_priority(job.id, body.priority))


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
    responses={
        200: {
            "content": {
                "video/mp4": BYTES,
                "image/webp": BYTES,
                "image/jpeg": BYTES,
                "audio/mp4": BYTES,
                "video/webm": BYTES,
                "image/gif": BYTES,
            },
            "headers": {video_responses.CHANGES: video_responses.CHANGES_HEADER},
        },
        206: {
            "content": dict.fromkeys(
                ("video/mp4", "audio/mp4", "video/webm", "image/gif", "image/webp"), BYTES
            ),
            "description": "The range that was asked for.",
        },
        416: {"description": "The clip does not have this range."},
    },
)
async def download(
    job: JobDep,
    access: Entered,
    variant: Literal["video", "thumbnail", "spritesheet", "audio"] = "video",
    format: ClipFormat | None = None,
    stream: bool = False,
    range: Annotated[str | None, Header()] = None,
) -> Response:
    """Download the clip (ranges); `stream=true` sends it while it is made.

    `format` converts it, once: `webm`, `gif` or `webp`, of at most 60 seconds; `mp4` is as it was
    made. `variant=audio` is its sound alone, 404 where it has none.
    """
    shared = access.shared
    check_format(format, variant, stream)
    if stream and variant == "video" and not job.status.is_final:
        grown = while_allowed(video_responses.stream_growing_file(shared, job), access.is_current)
        return video_responses.ClipResponse(grown, media_type="video/mp4")
    if job.clip is None or job.status != Status.COMPLETED:
        raise UnknownJob(f"{job.id} is {job.status}; there is no clip to send.")
    if variant in PICTURES:
        return await shared.run_expensive(access.who, _picture, shared, job, *PICTURES[variant])
    if variant == "audio":
        content = await shared.run_expensive(access.who, _audio, shared, job)
    else:
        content = await _clip(access, job, format or CLIP_FORMAT)
    return video_responses.range_response(shared, content, range)


async def _clip(access: Access, job: Job, form: str) -> video_responses.Content:
    """The clip in a format. Raises what `prepare_export` raises."""
    shared, file_name = access.shared, job.clip
    if form != CLIP_FORMAT:
        async with shared.count_expensive(access.who.owner):
            file_name = await prepare_export(shared, job, form)
    file = await shared.run_at_storage(shared.queue.storage.open, job.id, file_name)
    size = await shared.run_at_storage(shared.queue.storage.length, job.id, file_name)
    return video_responses.clip_content(job, form, file, size)


def _audio(shared: AppState, job: Job) -> video_responses.Content:
    """Raises UnknownJob where the clip has no sound."""
    assert job.clip
    with shared.queue.storage.open(job.id, job.clip) as file, as_storage_error():
        sound = extract_audio(file)
    if sound is None:
        raise UnknownJob(f"{job.id} has no sound.")
    name = video_responses.download_name(job, "m4a")
    return video_responses.Content(BytesIO(sound), len(sound), name, "audio/mp4")


def _picture(shared: AppState, job: Job, draw: Callable[[BinaryIO], bytes], kind: str) -> Response:
    assert job.clip
    with shared.queue.storage.open(job.id, job.clip) as file, as_storage_error():
        kept = {"cache-control": "private, max-age=86400"}  # a finished clip stays as it is
        return Response(draw(file), media_type=kind, headers=kept)


@router.get(
    "/{id}/preview",
    response_class=Response,
    responses={200: {"content": {"image/png": BYTES}}},
)
async def preview(job: JobDep, shared: AppStateDep) -> Response:
    """Get the latest preview image."""
    if job.preview is None:
        raise UnknownJob(f"{job.id} has no preview yet.")
    picture = await shared.run_at_storage(shared.queue.storage.read, job.id, PREVIEW)
    return Response(picture, media_type="image/png", headers={"cache-control": "no-store"})


@router.post("/{id}/remix", response_model=Video, responses=BAD_GATEWAY)
async def remix(
    job: JobDep, body: VideoRemix, shared: AppStateDep, who: CallerDep, respond: RespondDep,
    key: IdempotencyKey = None,
) -> Video:  # fmt: skip
    """Create a video with the same settings and seed and another prompt."""
    options, prompt = who.submit_options(job.priority, key), body.prompt
    if body.enhance_prompt:
        (enhanced,) = await enhance_texts(shared, who, [prompt], job.model)
        new = await run_in_threadpool(shared.queue.remix, job.id, enhanced, options)
    else:
        new = await run_in_threadpool(shared.queue.remix, job.id, prompt, options)
    return respond(new)


@router.post("/{id}/refine", response_model=Video)
def refine(
    job: JobDep,
    shared: AppStateDep,
    who: CallerDep,
    respond: RespondDep,
    key: IdempotencyKey = None,
) -> Video:
    """Refine a finished draft, as a new job that starts from its latents."""
    options = who.submit_options(job.priority, key)
    return respond(shared.queue.refine(job.id, options))


async def require_news(job: JobDep, last_event_id: Annotated[str | None, Header()] = None) -> None:
    """Answer 204 to whoever has read the end: an EventSource connects again until it reads that."""
    if job.status.is_final and last_event_id == revision_tag(job):
        raise HTTPException(204)


@router.get(
    "/{id}/events",
    response_class=EventSourceResponse,
    dependencies=[Depends(require_news)],
    responses={204: {"description": "Last-Event-ID names the end; there is nothing more."}},
)
async def events(
    job: JobDep,
    shared: AppStateDep,
    access: Entered,
    serializer: SerializerDep,
    last_event_id: Annotated[str | None, Header()] = None,
) -> AsyncIterator[ServerSentEvent]:
    """Stream changes of a job as server-sent events: `position`, `progress`, `preview`, `done`.

    Each carries the whole job. Who comes back with Last-Event-ID hears what changed meanwhile, and
    204 where that was the end.
    """
    previous: Job | None = None
    with suppress(UnknownKey):  # the key is gone: so is the stream
        async for now in while_allowed(shared.hub.follow(job), access.is_current):
            if revision_tag(now) == last_event_id and not now.status.is_final:
                previous = now
                continue
            video = serializer.serialize(now)
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
