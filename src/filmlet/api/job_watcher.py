"""Distribution of job updates: one database poll a job for any number of readers."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from fastapi.concurrency import run_in_threadpool

from filmlet.errors import FilmletError, UnknownKey
from filmlet.jobs import Job, JobReader

POLL_S = 0.2  # as often as a worker reports
RECHECK_S = 3.0  # between two checks of a reader's rights

T = TypeVar("T")


def revision_tag(job: Job) -> str:
    """Return a tag that changes whenever the job does."""
    return f"{job.revision}.{job.status}.{job.position or 0}"


@dataclass(eq=False)
class WatchedJob:
    """A job with readers. changed: set, and replaced, at each change of `latest`."""

    latest: Job | FilmletError
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    readers: int = 0
    task: asyncio.Task[None] | None = None


class JobWatcher:
    """Polls the jobs that have readers in this process."""

    def __init__(self, reader: JobReader) -> None:
        self.reader = reader
        self.watches: dict[str, WatchedJob] = {}

    async def follow(self, job: Job) -> AsyncGenerator[Job]:
        """Yield the job at first and at each change, until it has ended or is deleted."""
        watch = self.watches.get(job.id)
        if watch is None:
            watch = self.watches[job.id] = WatchedJob(job)
            watch.task = asyncio.create_task(self._poll(job.id, watch))
        watch.readers += 1
        try:
            last_revision = None
            while True:
                latest, changed = watch.latest, watch.changed
                if isinstance(latest, FilmletError):
                    return
                if revision_tag(latest) != last_revision:
                    last_revision = revision_tag(latest)
                    yield latest
                if latest.status.is_final:
                    return
                if watch.changed is changed:
                    await changed.wait()
        finally:
            watch.readers -= 1
            if not watch.readers:
                self._unsubscribe(job.id, watch)

    async def _poll(self, job: str, watch: WatchedJob) -> None:
        while True:
            try:
                now: Job | FilmletError = await run_in_threadpool(self.reader.get_job, job)
            except FilmletError as error:
                now = error
            before, watch.latest = watch.latest, now
            if isinstance(now, FilmletError):
                watch.changed.set()
                return
            if isinstance(before, FilmletError) or revision_tag(now) != revision_tag(before):
                old, watch.changed = watch.changed, asyncio.Event()
                old.set()
            if now.status.is_final:
                return
            await asyncio.sleep(POLL_S)

    def _unsubscribe(self, job: str, watch: WatchedJob) -> None:
        if watch.task:
            watch.task.cancel()
        if self.watches.get(job) is watch:
            del self.watches[job]


async def while_allowed(
    source: AsyncGenerator[T], is_allowed: Callable[[], Awaitable[bool]]
) -> AsyncGenerator[T]:
    """Yield what `source` does. Raises UnknownKey soon after `is_allowed` has become false."""
    following: asyncio.Future[T] | None = None
    checked = asyncio.get_running_loop().time()
    try:
        while True:
            following = following or asyncio.ensure_future(anext(source))
            await asyncio.wait([following], timeout=RECHECK_S)
            now = asyncio.get_running_loop().time()
            if now - checked >= RECHECK_S:
                checked = now
                if not await is_allowed():
                    raise UnknownKey("The key of this request is not valid any more.")
            if following.done():
                try:
                    item = following.result()
                except StopAsyncIteration:
                    return
                following = None
                yield item
    finally:
        if following is not None:
            following.cancel()
            await asyncio.wait([following])
        await source.aclose()
