"""A job as its readers see it."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from filmlet.core.events import Stage
from filmlet.core.memory import DeviceInfo, MemoryEstimate, choose_offload_mode
from filmlet.core.shape import VideoShape
from filmlet.pipeline.plan import Plan

PREVIEW = "preview.png"  # of a job's files, the latest rough picture


class Status(StrEnum):
    """The life of a job; the last three are ends."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in (Status.COMPLETED, Status.FAILED, Status.CANCELLED)


class Priority(StrEnum):
    """Classes of jobs: a higher one always goes first."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


@dataclass(frozen=True)
class StageRecord:
    """One stage of one attempt: how long it took, or that its result was there."""

    stage: Stage
    attempt: int
    seconds: float
    reused: bool


@dataclass(frozen=True, order=True)
class Estimate:
    """Seconds from now, with the band that four of five jobs should end in."""

    seconds: float
    low: float
    high: float


@dataclass(frozen=True)
class Forecast:
    """What a clip would come to if it were asked for now.

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
        """How the model would be held; None where it has no room, or nobody knows."""
        if self.machine is None:
            return None
        return choose_offload_mode(
            self.plan.memory_estimates(self.machine.bytes_per_value), self.machine.memory
        )


@dataclass(frozen=True)
class Failure:
    """Why a job has no clip: a stable code and a sentence."""

    code: str
    message: str


@dataclass(frozen=True)
class Job:
    """One clip that was asked for, and what has become of it.

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
    """How often something happened since the database was made, and the seconds it took."""

    name: str
    label: str
    count: int
    seconds: float


@dataclass(frozen=True)
class WorkerInfo:
    """A worker that is alive. model: that it holds in memory, "" before the first clip."""

    id: str
    device: str
    model: str
    peak_bytes: int


@dataclass(frozen=True)
class QueueStats:
    """The queue as a whole. jobs: how many are queued and running."""

    jobs: dict[str, int]
    workers: tuple[WorkerInfo, ...]
    oldest_wait_s: float
    tallies: tuple[EventCount, ...]
