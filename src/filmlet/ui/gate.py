"""The only way to Gradio: its open routes, each behind the caller's identity and its limits."""

import json
from contextlib import nullcontext, suppress
from typing import Any

import gradio as gr
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from filmlet.api.anonymous_users import INTRODUCED, visitor_token
from filmlet.api.dependencies import AppState, get_caller
from filmlet.api.methods import refuse_method
from filmlet.api.root_path import root_path, route_path
from filmlet.ui.bodies import limit_body, read_json_body, replay_body
from filmlet.ui.callers import OWNER, Callers
from filmlet.ui.files import ANONYMOUS, media_type_of
from filmlet.ui.gradio_internals import event_queue
from filmlet.ui.routes import Answer, Route, RouteAccess, find_methods, find_route

MAX_FILES = 4  # of one upload
MAX_RANGE = 100  # letters of a Range header
MCP = "/gradio_api/mcp"
# What clients send of an event; `batched`, say, would make Gradio treat it as many.
EVENT_FIELDS = {"data", "session_hash", "event_id", "fn_index", "trigger_id", "event_data"}


class GradioGate:
    """ASGI app around Gradio's own. What it raises is answered by the app that it is mounted in."""

    def __init__(self, app: ASGIApp, shared: AppState, page: gr.Blocks, callers: Callers) -> None:
        self.app, self.shared, self.page, self.callers = app, shared, page, callers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008, "reason": ""})
            return
        path = route_path(scope)
        found = find_route(scope["method"], path)
        if found is None:
            if allowed := find_methods(path):
                await refuse_method(scope["method"], allowed)(scope, receive, send)
                return
            raise HTTPException(404, f"There is nothing at {scope['path'][:100]}.")
        route, names = found
        if root_path(scope):
            scope = _adapt_to_root_path(scope)
        if route.access is RouteAccess.PUBLIC:
            await self.app(_drop_query(scope), receive, send)
            return
        owner = await self._identify(route, scope)
        scope = {**scope, OWNER: owner}
        with self.callers.requests.count(owner, route), suppress(ClientDisconnect):
            match route.answer:
                case Answer.UPLOAD:
                    answer = await self._upload(Request(scope, limit_body(receive, route.max_body)))
                    await answer(scope, receive, send)
                case Answer.FILE:
                    await self._file(names["path_or_url"], scope)(scope, receive, send)
                case Answer.GRADIO:
                    await self._forward_to_gradio(route, names, scope, receive, send)

    async def _identify(self, route: Route, scope: Scope) -> str:
        """Return who asks. Raises UnknownKey.

        An MCP client hands its URLs on to programs that do not have its cookie.
        """
        request = Request(scope)
        who = await get_caller(request, self.shared)
        is_tool = route.path.startswith(MCP) and not visitor_token(request.headers)
        is_unknown = scope.get(INTRODUCED) or (self.shared.visitors and is_tool)
        return ANONYMOUS if is_unknown else who.owner

    async def _upload(self, request: Request) -> Response:
        """Keep the files of a form for this caller; the answer is a list of their ids."""
        owner = request.scope[OWNER]
        async with request.form(max_files=MAX_FILES, max_fields=MAX_FILES) as form:
            sent = [file for file in form.getlist("files") if not isinstance(file, str)]
            try:
                ids = [
                    await self.callers.files.save(file.file, file.filename or "", owner)
                    for file in sent
                ]
            except OSError as error:
                raise HTTPException(503, "The server has no room for the file now.") from error
        return JSONResponse(ids)

    def _file(self, id: str, scope: Scope) -> Response:
        path = self.callers.files.find(id, scope[OWNER])
        if path is None or not path.is_file():
            raise HTTPException(404, "There is no such file of yours.")
        kind = media_type_of(path)
        is_shown = kind != "application/octet-stream"
        headers = [h for h in scope["headers"] if h[0] != b"range" or len(h[1]) <= MAX_RANGE]
        scope["headers"] = headers
        return FileResponse(
            path, headers={"x-content-type-options": "nosniff"}, media_type=kind,
            filename=path.name, content_disposition_type="inline" if is_shown else "attachment",
        )  # fmt: skip

    async def _forward_to_gradio(
        self, route: Route, names: dict[str, str], scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Hand a request on to Gradio, once its body and its session are known to be fit."""
        if scope["method"] == "POST":
            body = await read_json_body(receive, route.max_body)
            if not route.path.startswith(MCP):
                body = self._check_event(route, names, body, scope[OWNER])
                scope = _with_json(scope)
            receive = replay_body(body, receive)
        with self._stream(route, names, scope):
            await self.app(scope, receive, send)

    def _check_event(self, route: Route, names: dict[str, str], body: bytes, owner: str) -> bytes:
        """Return an event's body written anew, so that Gradio reads what was checked.

        Raises HTTPException, TooManyJobs.
        """
        event = _read_json(body)
        session_hash = event.get("session_hash")
        event_id = event.get("event_id")
        for value in (session_hash, event_id):
            if not isinstance(value, str | None):
                raise HTTPException(400, "session_hash and event_id must be strings.")
        if route.path == "/gradio_api/cancel":
            is_own = self.callers.sessions.owns(session_hash or "", owner)
            is_own = is_own and self._session_of(event_id or "") in (None, session_hash)
        else:
            is_own = session_hash is None or self.callers.sessions.claim(session_hash, owner)
        if not is_own:
            raise HTTPException(404, "There is no such session of yours.")
        if not self._has_function(event, names.get("api_name")):
            raise HTTPException(404, "There is no such function.")
        if route.path != "/gradio_api/call/v2/{api_name}":  # its fields are named by the function
            event = {name: value for name, value in event.items() if name in EVENT_FIELDS}
        return json.dumps(event).encode()

    def _has_function(self, event: dict[str, Any], api_name: str | None) -> bool:
        """Gradio takes an index before a name; `None` is a route without either."""
        index = event.get("fn_index")
        if index is not None:
            return index in self.page.fns if isinstance(index, int) else False
        return api_name is None or any(f.api_name == api_name for f in self.page.fns.values())

    def _stream(self, route: Route, names: dict[str, str], scope: Scope) -> Any:
        """A stream of events must be of the caller's own session, which it keeps."""
        if route.path == "/gradio_api/queue/data":
            given = Request(scope).query_params.getlist("session_hash")
            session_hash = given[0] if len(given) == 1 else ""
        elif "event_id" in names:
            session_hash = self._session_of(names["event_id"]) or names["event_id"]
        else:
            return nullcontext()
        if not self.callers.sessions.owns(session_hash, scope[OWNER]):
            raise HTTPException(404, "There is no such session of yours.")
        return self.callers.sessions.stream(session_hash)

    def _session_of(self, event_id: str) -> str | None:
        """The session of an event whose result nobody has read yet."""
        queue = event_queue(self.page)
        event = queue.event_ids_to_events.get(event_id)
        if event is not None:
            return str(event.session_hash)
        pending = queue.pending_event_ids_session.items()
        return next((session for session, ids in pending if event_id in ids), None)


def _drop_query(scope: Scope) -> Scope:
    """A query can ask for other content (`deep_link`, `page`): the page has one."""
    is_page = route_path(scope) in ("/", "/config")
    return {**scope, "query_string": b""} if is_page else scope


def _adapt_to_root_path(scope: Scope) -> Scope:
    """Return a scope for which Gradio finds the root path.

    With an X-Forwarded-Host it makes its URLs without it. It redirects MCP's path without a slash
    to a whole URL, to which proxies that remove the root path add it a second time.
    """
    if route_path(scope) == MCP:
        scope = {**scope, "path": f"{scope['path']}/"}
    host = Headers(scope=scope).get("x-forwarded-host", "").partition(",")[0].strip()
    if not host:
        return scope
    kept = [pair for pair in scope["headers"] if pair[0] not in (b"host", b"x-forwarded-host")]
    return {**scope, "headers": [*kept, (b"host", host.encode("latin-1"))]}


def _with_json(scope: Scope) -> Scope:
    of_body = (b"content-length", b"content-type", b"transfer-encoding", b"content-encoding")
    kept = [header for header in scope["headers"] if header[0] not in of_body]
    return {**scope, "headers": [*kept, (b"content-type", b"application/json")]}


def _read_json(body: bytes) -> dict[str, Any]:
    try:
        event = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "The body must be JSON.") from error
    if not isinstance(event, dict):
        raise HTTPException(400, "The body must be a JSON object.")
    return event
