"""The description of the API at /openapi.json, where FastAPI's own is wrong or silent.

FastAPI knows no bodies that the routes read themselves, and describes errors (422) and identities
that are not this server's.
"""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from filmlet.api.anonymous_users import VISITOR
from filmlet.api.dependencies import COOKIE, AppState
from filmlet.api.middleware import needs_identity
from filmlet.api.schemas import ErrorResponse, VideoCreate, VideoExtend
from filmlet.api.uploads import FRAMES

Table = dict[str, Any]
SCHEMAS = "#/components/schemas/"
FASTAPI_ERRORS = ("HTTPValidationError", "ValidationError")
EVENTS = "text/event-stream"
BEARER, BROWSER = "bearer", "browser"  # names of security schemes
JSON_BODIES = ("VideoCreate", "VideoExtend", "VideoLora")
ABOUT = ("title", "description", "default", "examples")  # of a field, whatever its type
NULL = {"type": "null"}
FILE = {"type": "string", "format": "binary"}
BYTES = {"schema": FILE}  # content of a response
IMAGE = {
    "anyOf": [
        {"type": "object", "properties": {"image_url": {"type": "string"}}},
        {"type": "string"},
        NULL,
    ],
    "description": 'A picture: {"image_url": "data:image/png;base64,..."}, or the data: URL.',
}
VIDEO_ID = {"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]}


def refusals(*statuses: int) -> dict[int | str, Table]:
    """Return the responses of a route that are errors, for FastAPI."""
    return {status: {"model": ErrorResponse} for status in statuses}


def describe_body(form: str, json: str | None = None) -> Table:
    """Return the body of a route that reads it itself, for FastAPI. form, json: schemas."""
    content = {"multipart/form-data": {"schema": {"$ref": SCHEMAS + form}}}
    if json:
        content["application/json"] = {"schema": {"$ref": SCHEMAS + json}}
    return {"requestBody": {"required": True, "content": content}}


def body_schemas() -> dict[str, Table]:
    """Return the schemas of all bodies that routes read themselves, with what they refer to."""
    _, found = models_json_schema(
        [(VideoCreate, "validation"), (VideoExtend, "validation")],
        ref_template=SCHEMAS + "{model}",
    )
    schemas: dict[str, Table] = found["$defs"]
    create, extend = schemas["VideoCreate"], schemas["VideoExtend"]
    schemas |= {name: _with_null(schemas[name]) for name in JSON_BODIES}
    return schemas | {
        "VideoCreate": _with_fields(schemas["VideoCreate"], dict.fromkeys(FRAMES, IMAGE)),
        "VideoCreateForm": _as_form(create, "VideoCreateForm", dict.fromkeys(FRAMES, FILE)),
        "VideoExtend": _with_fields(schemas["VideoExtend"], {"video": VIDEO_ID}, "video"),
        "VideoExtendForm": _as_form(extend, "VideoExtendForm", {"video": FILE}),
        "VideoEditForm": _upload_form("VideoEditForm", "prompt"),
        "CharacterForm": _upload_form("CharacterForm", "name"),
    }


def _with_fields(schema: Table, fields: Table, *required: str) -> Table:
    more = {
        "properties": schema["properties"] | fields,
        "required": [*schema["required"], *required],
    }
    return schema | more


def _with_null(schema: Table) -> Table:
    """Return a schema whose fields may be null where they may be left out."""
    fields = {
        name: field if name in schema["required"] else _or_null(field)
        for name, field in schema["properties"].items()
    }
    return schema | {"properties": fields}


def _or_null(field: Table) -> Table:
    inner = {name: value for name, value in field.items() if name not in ABOUT}
    kinds = field.get("anyOf", [inner])
    about = {name: value for name, value in field.items() if name in ABOUT}
    return {"anyOf": [kind for kind in kinds if kind != NULL] + [NULL]} | about


def _as_form(schema: Table, title: str, files: Table) -> Table:
    """Return a schema for a form, which has no null."""
    fields = {name: _without_null(field) for name, field in schema["properties"].items()}
    form = _with_fields(schema | {"properties": fields}, files)
    return {name: value for name, value in form.items() if name != "examples"} | {"title": title}


def _without_null(field: Table) -> Table:
    kinds = [kind for kind in field.get("anyOf", ()) if kind != NULL]
    field = {n: v for n, v in field.items() if v is not None and n != "anyOf"}
    return field | (kinds[0] if len(kinds) == 1 else {"anyOf": kinds} if kinds else {})


def _upload_form(title: str, text: str) -> Table:
    fields = {text: {"type": "string"}, "video": FILE}
    return {"title": title, "type": "object", "properties": fields, "required": [text, "video"]}


def make_description(app: FastAPI, shared: AppState) -> Callable[[], Table]:
    """Return what FastAPI calls for the description, which is made once."""

    def describe() -> Table:
        if app.openapi_schema is None:
            found = get_openapi(
                title=app.title, version=app.version, summary=app.summary, routes=app.routes
            )
            app.openapi_schema = _correct(found, shared)
        return app.openapi_schema

    return describe


def _correct(found: Table, shared: AppState) -> Table:
    """Return FastAPI's description with this server's bodies, errors and identities."""
    components = found["components"]
    components["schemas"] |= body_schemas()
    for name in FASTAPI_ERRORS:
        components["schemas"].pop(name, None)
    components["securitySchemes"] = _security_schemes(shared)
    security: list[Table] = [{BEARER: []}, {BROWSER: []}]
    if shared.visitors:
        security.append({})  # who sends neither is given a cookie
    for path, operations in found["paths"].items():
        is_metrics = path == "/metrics" and shared.settings.metrics == "key"
        for operation in operations.values():
            operation["responses"].pop("422", None)
            for status, response in operation["responses"].items():
                _correct_events(status, response.get("content", {}))
            if needs_identity(path) or is_metrics:
                operation["security"] = security
    return found


def _correct_events(status: str, content: Table) -> None:
    """Describe a stream of events without words of OpenAPI 3.2, and its errors as JSON."""
    found = content.pop(EVENTS, None)
    if found is not None:
        content |= {EVENTS: {}} if status == "200" else {"application/json": found}


def _security_schemes(shared: AppState) -> Table:
    if shared.visitors:
        bearer = "Any text of 20 characters or more: whoever sends it again sees the same videos."
        cookie, browser = VISITOR, "Given to browsers that have none."
    else:
        bearer = "A key of this server; a server without keys takes anything."
        cookie, browser = COOKIE, "A key of this server, as POST /session sets it."
    return {
        BEARER: {"type": "http", "scheme": "bearer", "description": bearer},
        BROWSER: {"type": "apiKey", "in": "cookie", "name": cookie, "description": browser},
    }
