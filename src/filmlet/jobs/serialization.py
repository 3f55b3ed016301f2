"""Rows of the queue's table as the jobs that its readers see."""

import json
from dataclasses import replace
from functools import lru_cache
from typing import Any

from filmlet.core.events import Stage
from filmlet.core.request import ClipRequest
from filmlet.core.shape import VideoShape
from filmlet.jobs.cost_model import WorkloadSize
from filmlet.jobs.database import Row
from filmlet.jobs.job import Failure, Job, Priority, StageRecord, Status
from filmlet.jobs.old_rows import load_json
from filmlet.jobs.queue_eta import QueueEta

REMEMBERED = 1000  # requests, as they are shown
PROGRESS_WEIGHTS = {  # of a clip's time, roughly: what `progress` shows when a stage is over
    Stage.FETCH: 0.0,  # once in a model's life; the stage's own steps tell it
    Stage.LOAD: 0.05,
    Stage.ENCODE: 0.05,
    Stage.DENOISE: 0.6,
    Stage.DECODE: 0.28,
    Stage.MUX: 0.02,
}
TWO_STAGES = PROGRESS_WEIGHTS | {Stage.DENOISE: 0.2, Stage.UPSAMPLE: 0.03, Stage.REFINE: 0.37}


# What was asked for never changes: it is taken apart once, not for everybody who looks.
@lru_cache(REMEMBERED)
def _parse_request(text: str) -> dict[str, Any]:
    return ClipRequest(**load_json(text)).explicit_settings()


@lru_cache(REMEMBERED)
def _parse_size(text: str) -> WorkloadSize:
    return WorkloadSize(**json.loads(text))


@lru_cache(REMEMBERED)
def _parse_shape(text: str) -> VideoShape:
    return VideoShape(**load_json(text))


def request_from_row(row: Row) -> ClipRequest:
    """The request of a row, its seed fixed: every attempt makes the same clip."""
    return replace(ClipRequest(**load_json(row["request"])), seed=row["seed"])


def job_from_row(row: Row, outlook: QueueEta | None) -> Job:
    """As `outlook` sees it; None where it is over."""
    status, stage = Status(row["status"]), Stage(row["stage"]) if row["stage"] else None
    is_open = outlook is not None and not status.is_final
    failure = Failure(row["failure_code"], row["failure"]) if row["failure_code"] else None
    records: list[dict[str, Any]] = json.loads(row["stages"])
    two = _parse_size(row["work"]).refine_calls > 0
    return Job(
        id=row["id"],
        owner=row["owner"],
        status=status,
        priority=Priority(row["class"]),
        requested=_parse_request(row["request"]),
        effective=load_json(row["effective"]) if row["effective"] else None,
        model=row["model"],
        seed=row["seed"],
        shape=_parse_shape(row["shape"]) if row["shape"] else None,
        source=row["source"],
        stage=stage,
        done=row["done"],
        total=row["total"],
        progress=_overall_progress(
            status,
            stage,
            row["done"] / max(1, row["total"]),
            TWO_STAGES if two else PROGRESS_WEIGHTS,
        ),
        preview=row["preview"],
        position=outlook.positions.get(row["id"]) if outlook and status == Status.QUEUED else None,
        eta=outlook.etas.get(row["id"]) if outlook and is_open else None,
        failure=failure,
        stages=tuple(
            StageRecord(Stage(r["stage"]), r["attempt"], r["seconds"], r["reused"]) for r in records
        ),
        attempt=row["attempt"],
        worker=row["worker"],
        clip=row["clip"],
        created=row["created"],
        started=row["started"],
        finished=row["finished"],
        cancel_latency_s=row["idle_s"],
        revision=row["seq"],
    )


def _overall_progress(
    status: Status, stage: Stage | None, share: float, shares: dict[Stage, float]
) -> float:
    """Between 0 and 1: it moves with the steps and never back."""
    if status == Status.COMPLETED:
        return 1.0
    if stage is None or status == Status.QUEUED:
        return 0.0
    order = list(Stage)
    before = sum(shares.get(s, 0.0) for s in order[: order.index(stage)])
    return round(before + shares[stage] * share, 4)
