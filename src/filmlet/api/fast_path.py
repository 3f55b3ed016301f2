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

from filmlet.api.dependencies import CALLER, House
from filmlet.api.schemas import Video
from filmlet.api.videos import listed, polling
from filmlet.errors import FilmletError

T = TypeVar("T")
ONE = re.compile(r"/v1/videos/(clip_[0-9a-f]{24})")
ALL = "/v1/videos"
LIMIT = re.compile(rb"limit=([1-9][0-9]?)|")


class Quick:
    """Answers what it can, and hands on the rest; stands behind `Identity`."""

    def __init__(self, app: ASGIApp, house: House) -> None:
        self.app, self.house = app, house

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = None
        if scope["type"] == "http" and scope["method"] == "GET":
            with suppress(FilmletError):  # the plain route will say so
                answer = await self._answer(scope)
        await (answer or self.app)(scope, receive, send)

    async def _answer(self, scope: Scope) -> Response | None:
        house, path, query = self.house, scope["path"], scope["query_string"]
        if (one := ONE.fullmatch(path)) and not query:
            who = scope[CALLER]
            job = await self._look(house.queue.get, one[1], who.sees)
            text = Video.of(job, house.settings.keep_days).model_dump_json()
            return Response(text, headers=polling(job), media_type="application/json")
        if path == ALL and (limit := LIMIT.fullmatch(query)):
            who = scope[CALLER]
            page = await self._look(listed, house, who, int(limit[1] or 20))
            return Response(page.model_dump_json(), media_type="application/json")
        return None

    async def _look(self, do: Callable[..., T], *given: object) -> T:
        """A thread costs more than a look at a file, and less than waiting for another machine."""
        return do(*given) if self.house.queue.is_near else await run_in_threadpool(do, *given)
