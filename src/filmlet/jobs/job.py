"""A job and its parts, as data."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from filmlet.core.events import Stage
from filmlet.core.memory import DeviceInfo, MemoryEstimate, choose_offload_mode
from filmlet.core.request import FORMATS
from filmlet.core.shape import VideoShape
from filmlet.pipeline.plan import Plan

PREVIEW = "preview.png"  # of a job's files, the latest rough picture
CLIP_FORMAT = "mp4"  # that every job makes
EXPORT_FILES = {form: f"export.{form}" for form in FORMATS if form != CLIP_FORMAT}


class Status(StrEnum):
    """Status of a job; the last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in (Status.COMPLETED, Status.FAILED, Status.CANCELLED)


class Priority(StrEnum):
    """Priority of a job; a higher one always comes first."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


@dataclass(frozen=True)
class StageRecord:
    """One stage of one attempt; reused: its result was there already."""

    stage: Stage
    attempt: int
    seconds: float
    reused: bool


@dataclass(frozen=True, order=True)
class Estimate:
    """Seconds from now, with a range that should hold for four of five jobs."""

    seconds: float
    low: float
    high: float


@dataclass(frozen=True)
class Forecast:
    """Plan and ETA of a clip that is not queued.

    ahead: unfinished jobs before it. fetch: bytes of weights that are not here yet. machine: that
    of a worker, None while none is alive.
    """

    plan: Plan
    eta: Estimate
    ahead: int
    fetch: int
    machine: DeviceInfo | None

    @property
    def need(self) -> MemoryEstimate | None:
        """Offload mode and memory; None if it does not fit or no worker is known."""
        if self.machine is None:
            return None
        return choose_offload_mode(
            self.plan.memory_estimates(self.machine.bytes_per_value), self.machine.memory
        )


@dataclass(frozen=True)
class Failure:
    """Why a job has no clip: a stable code and a message."""

    code: str
    message: str


@dataclass(frozen=True)
class Job:
    """One requested clip and its state.

    requested, effective: settings as asked and as done (None before the first start). shape: of
    the clip, known from the start. source: the job that this one varies or extends. progress: 0
    to 1. position: 1 is next, None unless queued. eta: None once over. clip: its name in the
    storage. Times are seconds since 1970 by the database's clock. cancel_latency_s: from the wish
    to cancel to the worker's being free.
    """

    id: str
    owner: str
    status: Status
    priority: Priority
    requested: dict[str, Any]
    effective: dict[str, Any] | None
    model: str
    seed: int
    shape: VideoShape | None
    source: str | None
    stage: Stage | None
    done: int
    total: int
    progress: float
    preview: str | None  # another word with every new picture
    position: int | None
    eta: Estimate | None
    failure: Failure | None
    stages: tuple[StageRecord, ...]
    attempt: int
    worker: str | None
    clip: str | None
    created: float
    started: float | None
    finished: float | None
    cancel_latency_s: float | None
    revision: int


@dataclass(frozen=True)
class EventCount:
    """A count of one kind of event in all time, and the seconds it took."""

    name: str
    label: str
    count: int
    seconds: float


@dataclass(frozen=True)
class WorkerInfo:
    """A running worker. model: that it has loaded, "" before the first clip."""

    id: str
    device: str
    model: str
    peak_bytes: int


@dataclass(frozen=True)
class QueueStats:
    """Counts of the whole queue. jobs: by status, the unfinished ones."""

    jobs: dict[str, int]
    workers: tuple[WorkerInfo, ...]
    oldest_wait_s: float
    tallies: tuple[EventCount, ...]
