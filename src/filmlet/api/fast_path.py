"""What a server is asked most, answered ahead of the router: one video, and the newest ones.

The router and its checks cost several times what the answer does. Whatever is not answered here
goes on to the plain routes, which say the same; refusals are theirs.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from filmlet.api.dependencies import CALLER, AppState
from filmlet.api.schemas import Video
from filmlet.api.videos import poll_headers, video_page
from filmlet.errors import FilmletError

T = TypeVar("T")
VIDEO_PATH = re.compile(r"/v1/videos/(clip_[0-9a-f]{24})")
LIST_PATH = "/v1/videos"
LIMIT = re.compile(rb"limit=([1-9][0-9]?)|")


class FastPathMiddleware:
    """Answers what it can, and hands on the rest; stands behind `Identity`."""

    def __init__(self, app: ASGIApp, shared: AppState) -> None:
        self.app, self.shared = app, shared

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = None
        if scope["type"] == "http" and scope["method"] == "GET":
            with suppress(FilmletError):  # the plain route will say so
                answer = await self._answer(scope)
        await (answer or self.app)(scope, receive, send)

    async def _answer(self, scope: Scope) -> Response | None:
        shared, path, query = self.shared, scope["path"], scope["query_string"]
        if (match := VIDEO_PATH.fullmatch(path)) and not query:
            who = scope[CALLER]
            job = await self._look(shared.queue.get_job, match[1], who.visible_owner)
            text = Video.from_job(job, shared.settings.keep_days).model_dump_json()
            return Response(text, headers=poll_headers(job), media_type="application/json")
        if path == LIST_PATH and (limit := LIMIT.fullmatch(query)):
            who = scope[CALLER]
            page = await self._look(video_page, shared, who, int(limit[1] or 20))
            return Response(page.model_dump_json(), media_type="application/json")
        return None

    async def _look(self, do: Callable[..., T], *args: object) -> T:
        """A thread costs more than a look at a file, and less than waiting for another machine."""
        return do(*args) if self.shared.queue.is_local else await run_in_threadpool(do, *args)
