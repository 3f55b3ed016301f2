"""Following jobs: however many readers a job has, the database is asked once."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from filmlet.errors import FilmletError
from filmlet.jobs import Job, Queue

EVERY_S = 0.2  # as often as a worker reports


def mark(job: Job) -> str:
    """What changes when anything about the job does."""
    return f"{job.seq}.{job.status}.{job.position or 0}"


@dataclass(eq=False)
class Watch:
    """One job that somebody follows. changed: set, and replaced, whenever `latest` is new."""

    latest: Job | FilmletError
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    readers: int = 0
    task: asyncio.Task[None] | None = None


class Hub:
    """The jobs that are being followed in this process."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.watches: dict[str, Watch] = {}

    async def follow(self, job: Job) -> AsyncIterator[Job]:
        """Yield the job as it is, then whenever it changed, until it is over or gone."""
        watch = self.watches.get(job.id)
        if watch is None:
            watch = self.watches[job.id] = Watch(job)
            watch.task = asyncio.create_task(self._look(job.id, watch))
        watch.readers += 1
        try:
            seen = None
            while True:
                latest, changed = watch.latest, watch.changed
                if isinstance(latest, FilmletError):
                    return
                if mark(latest) != seen:
                    seen = mark(latest)
                    yield latest
                if latest.status.is_over:
                    return
                if watch.changed is changed:
                    await changed.wait()
        finally:
            watch.readers -= 1
            if not watch.readers:
                self._leave(job.id, watch)

    async def _look(self, job: str, watch: Watch) -> None:
        while True:
            try:
                now: Job | FilmletError = await asyncio.to_thread(self.queue.get, job)
            except FilmletError as error:
                now = error
            before, watch.latest = watch.latest, now
            if isinstance(now, FilmletError):
                watch.changed.set()
                return
            if isinstance(before, FilmletError) or mark(now) != mark(before):
                old, watch.changed = watch.changed, asyncio.Event()
                old.set()
            if now.status.is_over:
                return
            await asyncio.sleep(EVERY_S)

    def _leave(self, job: str, watch: Watch) -> None:
        if watch.task:
            watch.task.cancel()
        if self.watches.get(job) is watch:
            del self.watches[job]
