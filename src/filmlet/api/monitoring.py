"""Health, readiness, metrics, queue and models."""

import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import date
from typing import Literal

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from pydantic import BaseModel

from filmlet import __version__
from filmlet.api.dependencies import AdminDep, AppStateDep, CallerDep, get_caller, require_admin
from filmlet.api.error_handlers import error_response
from filmlet.api.openapi import refusals
from filmlet.api.schemas import ErrorBody, Model, ModelList, Video
from filmlet.api.serializer import SerializerDep
from filmlet.api.submissions import check_model
from filmlet.errors import FilmletError, UnknownModel
from filmlet.jobs import JobReader, QueueStats
from filmlet.models import REGISTRY, local_files

router = APIRouter()
SINCE = int(time.mktime(date(2026, 11, 22).timetuple()))


class Health(BaseModel):
    """The web process is alive."""

    status: str
    version: str


class Ready(BaseModel):
    """Whether clips can be made now: workers, and the models that they have loaded."""

    ready: bool
    workers: int
    loaded: list[str]
    queued: int
    running: int


@router.get("/health", tags=["operations"], responses=refusals(413, 500))
async def get_health() -> Health:
    """Liveness: needs no database, no worker and no thread."""
    return Health(status="ok", version=__version__)


@router.get("/ready", tags=["operations"], responses={**refusals(413, 500), 503: {"model": Ready}})
def get_readiness(shared: AppStateDep, response: Response) -> Ready:
    """Readiness: 200 if a worker is alive, else 503."""
    now = shared.queue.stats()
    if not now.workers:
        response.status_code = 503
    return Ready(
        ready=bool(now.workers),
        workers=len(now.workers),
        loaded=sorted({worker.model for worker in now.workers} - {""}),
        queued=now.jobs.get("queued", 0),
        running=now.jobs.get("running", 0),
    )


class QueueWorker(BaseModel):
    """A running worker and the model that it has loaded."""

    id: str
    device: str
    model: str
    peak_bytes: int


class QueueJob(BaseModel):
    """An unfinished video and the name of its key."""

    owner: str
    video: Video


class QueueStatus(BaseModel):
    """All unfinished videos in their order, and all workers."""

    object: Literal["queue"] = "queue"
    workers: list[QueueWorker]
    jobs: list[QueueJob]


@router.get("/v1/queue", tags=["operations"], responses=refusals(401, 403, 413, 500, 503))
def get_queue(shared: AppStateDep, who: AdminDep, serializer: SerializerDep) -> QueueStatus:
    """List all unfinished jobs and the workers; admins only."""
    del who
    names = {key.id: key.name for key in shared.keys.list_keys()}
    jobs = shared.queue.unfinished_jobs()
    return QueueStatus(
        workers=[QueueWorker(**asdict(worker)) for worker in shared.queue.stats().workers],
        jobs=[
            QueueJob(owner=names.get(job.owner, job.owner), video=serializer.serialize(job))
            for job in jobs
        ],
    )


async def allow_metrics(request: Request, shared: AppStateDep) -> None:
    """Check that the caller may read metrics. Raises UnknownKey, PermissionDenied."""
    match shared.settings.metrics:
        case "off":
            raise HTTPException(404, "This server shows no metrics.")
        case "key":
            await require_admin(await get_caller(request, shared))


@router.get(
    "/metrics",
    tags=["operations"],
    response_class=Response,
    dependencies=[Depends(allow_metrics)],
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
        **refusals(401, 403, 404, 413, 500, 503),
    },
)
def get_metrics(shared: AppStateDep) -> Response:
    """Prometheus metrics, counted in the database: the same from every web process."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(QueueCollector(shared.queue))
    return Response(generate_latest(registry), media_type="text/plain; version=0.0.4")


class QueueCollector:
    """Counts of the database as Prometheus metrics."""

    def __init__(self, reader: JobReader) -> None:
        self.now: QueueStats = reader.stats()

    def collect(self) -> Iterator[Metric]:
        now = self.now
        depth = GaugeMetricFamily("filmlet_jobs", "Unfinished jobs.", labels=["status"])
        for status in ("queued", "running"):
            depth.add_metric([status], now.jobs.get(status, 0))
        yield depth
        yield GaugeMetricFamily(
            "filmlet_workers", "Workers that are alive.", value=len(now.workers)
        )
        memory = GaugeMetricFamily(
            "filmlet_worker_peak_memory_bytes",
            "Peak memory of a worker process.",
            labels=["worker"],
        )
        for worker in now.workers:
            memory.add_metric([worker.id], worker.peak_bytes)
        yield memory
        oldest = "Age of the oldest queued job."
        yield GaugeMetricFamily("filmlet_oldest_wait_seconds", oldest, value=now.oldest_wait_s)
        for name, label, text in (
            ("jobs", "status", "Jobs that ended"),
            ("failure", "code", "Failures"),
            ("stage", "stage", "Computed stages"),
            ("wait", "", "Jobs that were started"),
            ("cancel", "", "Cancels of running jobs"),
        ):
            counts = [t for t in now.tallies if t.name == name]
            labels = [label] if label else []
            total = CounterMetricFamily(f"filmlet_{name}", f"{text}.", labels=labels)
            for count in counts:
                total.add_metric([count.label] if label else [], count.count)
            yield total
            if name in ("stage", "wait", "cancel"):
                taken = CounterMetricFamily(
                    f"filmlet_{name}_seconds", f"{text}: total seconds.", labels=labels
                )
                for count in counts:
                    taken.add_metric([count.label] if label else [], count.seconds)
                yield taken


@router.get("/v1/models", tags=["models"], responses=refusals(401, 413, 500, 503))
def list_models(who: CallerDep) -> ModelList:
    """List all models of the registry."""
    del who
    return ModelList(data=[_model_info(name) for name in REGISTRY])


@router.get(
    "/v1/models/{id}",
    tags=["models"],
    response_model=Model,
    responses=refusals(401, 404, 413, 500, 503),
)
def get_model(id: str, who: CallerDep) -> Model | Response:
    """Get a model."""
    del who
    try:
        return _model_info(check_model(id))
    except UnknownModel as error:
        body = ErrorBody(
            message=str(error), type="invalid_request_error", param="model", code=error.code
        )
        return error_response(404, body)


def _model_info(name: str) -> Model:
    card = REGISTRY[name]
    try:
        available = local_files(card) is not None
    except FilmletError:
        available = False
    return Model(
        id=name,
        created=SINCE,
        owned_by=card.sources.transformer.repo.partition("/")[0] or "filmlet",
        summary=card.summary,
        licence=card.licence,
        available=available,
        bytes=card.size_bytes,
        default_size=f"{card.grid.width}x{card.grid.height}",
        default_seconds=round(card.grid.frames / card.grid.fps, 4),
        max_side=card.grid.max_side,
        max_frames=card.grid.max_frames,
        max_seconds=round(card.grid.max_total_frames(card.grid.fps) / card.grid.fps, 4),
        has_draft=card.refine_schedule is not None,
        guides=card.guide_support,
        modalities=list(card.modalities),
    )
