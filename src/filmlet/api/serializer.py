"""Jobs as the API shows them: what is the same for all jobs of one answer, in one place."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request, Response

from filmlet.api.dependencies import AppState, AppStateDep, Caller
from filmlet.api.root_path import root_path
from filmlet.api.schemas import Video, VideoList, poll_after_ms
from filmlet.jobs import Job


@dataclass(frozen=True)
class VideoSerializer:
    """Makes the videos of an answer. root_path: that their URLs begin with."""

    shared: AppState
    root_path: str

    def serialize(self, job: Job) -> Video:
        return Video.from_job(job, self.shared.settings.keep_days, self.root_path)

    def list_page(self, who: Caller, limit: int, **filters: Any) -> VideoList:
        """Return a page of what a caller may see; filters: as `JobReader.list_jobs` takes it."""
        jobs = self.shared.queue.list_jobs(who.visible_owner, limit=limit + 1, **filters)
        data = [self.serialize(job) for job in jobs[:limit]]
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return VideoList(data=data, first_id=first, last_id=last, has_more=len(jobs) > limit)


def poll_headers(job: Job) -> dict[str, str]:
    """The header that says when asking again is worth it."""
    return {} if job.status.is_final else {"openai-poll-after-ms": str(poll_after_ms(job))}


async def get_serializer(request: Request, shared: AppStateDep) -> VideoSerializer:
    """Return what makes the videos of the answer to a request."""
    return VideoSerializer(shared, root_path(request.scope))


SerializerDep = Annotated[VideoSerializer, Depends(get_serializer)]


async def get_responder(serializer: SerializerDep, response: Response) -> Callable[[Job], Video]:
    """Return what answers a request with a job, and says when to poll again."""

    def respond(job: Job) -> Video:
        response.headers.update(poll_headers(job))
        return serializer.serialize(job)

    return respond


RespondDep = Annotated[Callable[[Job], Video], Depends(get_responder)]
