"""Errors as OpenAI's clients read them: a status and an envelope; nobody sees a traceback."""

import errno
import logging

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from filmlet.api.schemas import ErrorBody, ErrorResponse
from filmlet.errors import (
    ConversionFailed,
    DatabaseUnusable,
    DiskFull,
    EnhancementFailed,
    EnhancementUnavailable,
    FilmletError,
    InvalidRequest,
    JobConflict,
    MissingDependency,
    OutOfMemory,
    PermissionDenied,
    StorageUnusable,
    StoredFileMissing,
    TooManyJobs,
    UnknownJob,
    UnknownKey,
)

log = logging.getLogger("filmlet.api")

RETRY_AFTER_S = 5  # if the database or the storage cannot be used
MAX_PARAM_CHARS = 200  # of a parameter name that a client made up
INTERNAL = "The server made a mistake; its log says which."
STATUSES: tuple[tuple[type[FilmletError], int, str], ...] = (  # the first class that fits
    (UnknownKey, 401, "authentication_error"),
    (PermissionDenied, 403, "permission_error"),
    (UnknownJob, 404, "invalid_request_error"),
    (TooManyJobs, 429, "rate_limit_error"),
    (InvalidRequest, 400, "invalid_request_error"),
    # Not 409: OpenAI's clients would send the request again by themselves.
    (JobConflict, 400, "invalid_request_error"),
    # Nor 5xx: another model, a smaller clip or another format is what helps.
    (MissingDependency, 400, "invalid_request_error"),
    (OutOfMemory, 400, "invalid_request_error"),
    (ConversionFailed, 400, "invalid_request_error"),
    (StoredFileMissing, 404, "invalid_request_error"),
    (DatabaseUnusable, 503, "server_error"),
    (StorageUnusable, 503, "server_error"),
    (DiskFull, 503, "server_error"),
    (EnhancementUnavailable, 503, "server_error"),
    (EnhancementFailed, 502, "server_error"),
    (FilmletError, 500, "server_error"),
)
HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 503: "too_busy"}


def error_response(
    status: int, error: ErrorBody, headers: dict[str, str] | None = None
) -> JSONResponse:
    """Return the envelope that OpenAI's clients read."""
    return JSONResponse(ErrorResponse(error=error).model_dump(), status, headers)


def public_text(error: FilmletError) -> str:
    """Return what a client may read of an error: paths and addresses stay in the log."""
    status, _ = _status_and_type(error)
    if status < 500:
        return str(error)
    log.warning("refused with %d: %s", status, error)
    return error.public_message or INTERNAL


def answer_error(error: FilmletError) -> JSONResponse:
    """Return the response to an error of filmlet."""
    status, error_type = _status_and_type(error)
    headers = {}
    if isinstance(error, TooManyJobs):
        headers["retry-after"] = str(max(1, round(error.retry_after_s)))
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    if status == 503:
        headers["retry-after"] = str(RETRY_AFTER_S)
    body = ErrorBody(
        message=public_text(error),
        type=error_type,
        param=getattr(error, "param", None),
        code=error.code,
    )
    return error_response(status, body, headers)


def _status_and_type(error: FilmletError) -> tuple[int, str]:
    return next((status, kind) for cls, status, kind in STATUSES if isinstance(error, cls))


def register_error_handlers(app: FastAPI) -> None:
    """Answer every error in the envelope."""
    app.add_exception_handler(FilmletError, handle_filmlet_error)
    app.add_exception_handler(ClientDisconnect, handle_disconnect)
    app.add_exception_handler(RequestValidationError, handle_validation_error)
    app.add_exception_handler(HTTPException, handle_http_error)
    app.add_exception_handler(OSError, handle_system_error)
    app.add_exception_handler(Exception, handle_unexpected_error)


async def handle_filmlet_error(request: Request, error: Exception) -> Response:
    """Answer an error of filmlet; its parameter is named as the body of the request names it."""
    assert isinstance(error, FilmletError)
    if isinstance(error, InvalidRequest):
        names: dict[str, str] = getattr(request.state, "param_names", {})
        error.param = names.get(error.param, error.param)
    return answer_error(error)


async def handle_disconnect(request: Request, error: Exception) -> Response:
    """Answer nobody: the client has gone, and nothing is wrong."""
    del request, error
    return Response(status_code=400)


async def handle_validation_error(request: Request, error: Exception) -> Response:
    """Answer the first thing that pydantic found."""
    del request
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    param = ".".join(map(str, first["loc"][1:]))[:MAX_PARAM_CHARS] or None
    body = ErrorBody(
        message=f"{param}: {first['msg']}.",
        type="invalid_request_error",
        param=param,
        code="invalid_value",
    )
    if first["type"] == "extra_forbidden":
        hint = first.get("ctx", {}).get("hint", "")
        body.message = f"There is no parameter {param!r}. {hint}".strip()
        body.code = "unknown_parameter"
    return error_response(400, body)


async def handle_http_error(request: Request, error: Exception) -> Response:
    """Answer what the router, a middleware or a form's limits refuse."""
    del request
    assert isinstance(error, HTTPException)
    if error.status_code == 204:
        return Response(status_code=204, headers=error.headers)
    body = ErrorBody(
        message=str(error.detail),
        type="invalid_request_error" if error.status_code < 500 else "server_error",
        param=None,
        code=HTTP_CODES.get(error.status_code, "error"),
    )
    return error_response(error.status_code, body, dict(error.headers or {}))


async def handle_system_error(request: Request, error: Exception) -> Response:
    """Answer a full disk or a lost connection; other errors of the system are our mistake."""
    assert isinstance(error, OSError)
    if isinstance(error, ConnectionError):
        return await handle_disconnect(request, error)
    # Python looks for a temporary folder with room once, and names no file where it finds none.
    lacks_temp_folder = isinstance(error, FileNotFoundError) and error.filename is None
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or lacks_temp_folder:
        return answer_error(DiskFull(str(error)))
    return await handle_unexpected_error(request, error)


async def handle_unexpected_error(request: Request, error: Exception) -> Response:
    """Log a mistake of the program; the client reads only that there was one."""
    log.error("%s %s", request.method, request.url.path, exc_info=error)
    body = ErrorBody(message=INTERNAL, type="server_error", param=None, code="internal")
    return error_response(500, body)
