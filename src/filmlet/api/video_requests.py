"""Bodies of POST /v1/videos and its kin: a form or JSON, with files.

FastAPI does not parse them: OpenAI's clients send the same fields as a form with files or as JSON,
with fields of their own for files inside (`video[id]`, `input_reference[image_url]`), while FastAPI
takes one kind of body a route. Sizes and counts must be limited before pydantic sees the values,
too. So the routes take the request; `openapi.py` describes the bodies.
"""

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from pydantic_core import from_json
from starlette.datastructures import FormData, UploadFile

from filmlet.api import uploads
from filmlet.api.dependencies import AppState, Caller
from filmlet.api.schemas import RequestModel, VideoCreate, VideoExtend
from filmlet.core.request import FOREIGN_NAMES, explain_foreign_name
from filmlet.errors import InvalidRequest

OBJECT_FIELD = re.compile(r"(\w{1,64})\[\]\[(\w{1,64})\]")  # `loras[][source]`
FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
SHORT_BODY_BYTES = 64 * 1024  # that the event loop itself parses
MAX_JSON_MARKS = 100_000  # commas and brackets of a body, text included
MAX_JSON_VALUES = 500  # fields and elements of a body, nested ones included

Fields = dict[str, Any]
Uploads = dict[str, UploadFile]  # by the name of their field
Schema = TypeVar("Schema", bound=RequestModel)


@dataclass(frozen=True)
class SourceVideo:
    """The video to extend: an upload, or the id of a video of this server."""

    upload: UploadFile | None
    id: str | None


@asynccontextmanager
async def read_video_request(
    request: Request, shared: AppState, who: Caller
) -> AsyncIterator[tuple[VideoCreate, Uploads]]:
    """Yield a request for a video and its images, which are closed afterwards.

    Raises InvalidRequest, RequestValidationError, TooManyRequests.
    """
    async with read_body(request) as (fields, files):
        known = {name for name in fields if uploads.image_param(name)}
        body = _validate(VideoCreate, fields, files, known | uploads.FRAMES.keys())
        if known:  # tens of megabytes of base64, perhaps
            images = await shared.run_expensive(who, uploads.find_images, fields, files)
        else:
            images = uploads.find_images(fields, files)
        # Errors of guides name the field that the client has sent.
        guide_param = next((name for name in reversed(uploads.FRAMES) if name in images), "guides")
        request.state.param_names = {"guides": guide_param}
        yield body, images


@asynccontextmanager
async def read_extend_request(request: Request) -> AsyncIterator[tuple[VideoExtend, SourceVideo]]:
    """Yield a request to extend a video, and that video.

    Raises InvalidRequest, RequestValidationError.
    """
    async with read_body(request) as (fields, files):
        body = _validate(VideoExtend, fields, files, ("video", "video[id]"))
        video = fields.get("video")
        id = fields.get("video[id]", video.get("id") if isinstance(video, dict) else None)
        upload = files.get("video")
        if upload is None and not isinstance(id, str):
            raise InvalidRequest('video must be a file or {"id": "clip_..."}.', param="video")
        if upload is not None and id is not None:
            raise InvalidRequest("Give video as a file or as an id, not both.", param="video")
        # Size and frame rate are the video's.
        request.state.param_names = dict.fromkeys(("extend", "size", "fps"), "video")
        yield body, SourceVideo(upload, id)


@asynccontextmanager
async def read_body(request: Request) -> AsyncIterator[tuple[Fields, Uploads]]:
    """Yield fields and files of a form or a JSON body; the files are closed afterwards.

    Raises InvalidRequest.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type in FORMS:
        part = uploads.TEXT_BYTES
        async with request.form(max_files=2, max_fields=50, max_part_size=part) as form:
            yield _form_fields(form), _form_files(form)
        return
    body = await request.body()
    if len(body) > SHORT_BODY_BYTES:
        yield await run_in_threadpool(_parse_json, body), {}
    else:
        yield _parse_json(body), {}


def _parse_json(body: bytes) -> Fields:
    # Small values take a hundred times the memory of their text; no request has so many.
    if sum(map(body.count, (b",", b"[", b"{"))) > MAX_JSON_MARKS:
        raise InvalidRequest("The body has too many values.", param="body")
    try:
        fields = from_json(body, allow_inf_nan=False, cache_strings="none")
    except ValueError:
        raise InvalidRequest(
            "The body must be a form or JSON; send its Content-Type.", param="body"
        ) from None
    if not isinstance(fields, dict):
        raise InvalidRequest("The body must be a JSON object.", param="body")
    if _count_values(fields) > MAX_JSON_VALUES:  # pydantic makes an error of each that is wrong
        raise InvalidRequest("The body has too many values.", param="body")
    return fields


def _count_values(value: Any) -> int:
    """Return how many fields and elements a JSON value has, nested ones included."""
    children = value.values() if isinstance(value, dict) else value
    if not isinstance(value, dict | list):
        return 0
    return len(value) + sum(map(_count_values, children))


def _form_files(form: FormData) -> Uploads:
    """Return the files of a form. Raises InvalidRequest for two of the same field."""
    files: Uploads = {}
    for name, value in form.multi_items():
        if isinstance(value, str):
            continue
        if name in files or form.getlist(name) != [value]:
            raise InvalidRequest(f"There may be one {name}, not several.", param=name)
        files[name] = value
    return files


def _form_fields(form: FormData) -> Fields:
    """Return the texts of a form; a field that is repeated, perhaps as `name[]`, is a list.

    `name[][key]` are the fields of objects in a list. Raises InvalidRequest.
    """
    values: dict[str, list[str]] = {}
    objects: dict[str, dict[str, list[str]]] = {}
    for name, value in form.multi_items():
        if not isinstance(value, str):
            continue
        if match := OBJECT_FIELD.fullmatch(name):
            objects.setdefault(match[1], {}).setdefault(match[2], []).append(value)
        else:
            values.setdefault(name.removesuffix("[]"), []).append(value)
    fields: Fields = {n: items[0] if len(items) == 1 else items for n, items in values.items()}
    return fields | {name: _join_objects(name, keys) for name, keys in objects.items()}


def _join_objects(name: str, keys: dict[str, list[str]]) -> list[dict[str, str]]:
    """Return the objects of a list, of which a form has the values by key. Raises InvalidRequest.

    Some clients send one object after the other and some one key after the other, so all objects
    must have the same keys.
    """
    if len({len(items) for items in keys.values()}) > 1:
        raise InvalidRequest(
            f"Each of {name} must have the same fields in a form ({', '.join(sorted(keys))}); "
            "send JSON for others.",
            param=name,
        )
    rows = zip(*keys.values(), strict=True)
    return [dict(zip(keys, row, strict=True)) for row in rows]


def _validate(
    schema: type[Schema], fields: Fields, files: Uploads, read: Sequence[str] | set[str]
) -> Schema:
    """Return the fields but those that were `read` already. Raises RequestValidationError."""
    for name in files:
        if name not in read:
            raise InvalidRequest(f"There is no file parameter {name!r}.", param="body")
    try:
        return schema.model_validate({k: v for k, v in fields.items() if k not in read})
    except ValidationError as error:
        errors = [e | {"loc": ("body", *e["loc"])} for e in error.errors(include_url=False)]
        if errors[0]["type"] == "extra_forbidden":
            hint = _explain_unknown(schema, str(errors[0]["loc"][-1]))
            errors[0] |= {"ctx": {"hint": hint}}
        raise RequestValidationError(errors) from error


def _explain_unknown(schema: type[RequestModel], name: str) -> str:
    """Return a sentence that names the right parameter, or ""."""
    own = FOREIGN_NAMES.get(name, name)
    if schema is VideoExtend and own in ("size", "fps"):
        return "Size and frame rate are those of the video."
    return explain_foreign_name(name, schema.model_fields)
