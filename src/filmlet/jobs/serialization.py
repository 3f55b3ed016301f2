"""Rows of the queue's table as jobs and requests."""

import json
from collections.abc import Mapping
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

CACHE_SIZE = 1000  # parsed columns of jobs
PROGRESS_WEIGHTS = {  # rough share of a clip's time
    Stage.FETCH: 0.0,  # once for each model; its own steps are shown instead
    Stage.LOAD: 0.05,
    Stage.ENCODE: 0.05,
    Stage.DENOISE: 0.6,
    Stage.DECODE_AUDIO: 0.0,  # short beside the frames; few clips have it
    Stage.DECODE: 0.28,
    Stage.MUX: 0.02,
}
TWO_STAGE_WEIGHTS = PROGRESS_WEIGHTS | {
    Stage.DENOISE: 0.2,
    Stage.UPSAMPLE: 0.03,
    Stage.REFINE: 0.37,
}

PLAIN_COLUMNS = (  # that a Job has under the same name
    "id", "owner", "model", "seed", "source", "done", "total", "preview", "attempt", "worker",
    "clip", "created", "started", "finished",
)  # fmt: skip


# These columns never change: they are parsed once, not for each reader.
@lru_cache(CACHE_SIZE)
def _parse_request(text: str) -> dict[str, Any]:
    return ClipRequest(**load_json(text)).explicit_settings()


@lru_cache(CACHE_SIZE)
def _parse_size(text: str) -> WorkloadSize:
    return WorkloadSize(**json.loads(text))


@lru_cache(CACHE_SIZE)
def _parse_shape(text: str) -> VideoShape:
    return VideoShape(**load_json(text))


def request_from_row(row: Row) -> ClipRequest:
    """Return the request of a row with its seed: every attempt makes the same clip."""
    return replace(ClipRequest(**load_json(row["request"])), seed=row["seed"])


def job_from_row(row: Row, queue_eta: QueueEta | None) -> Job:
    """Return a row as a job. queue_eta: may be None if the job has ended."""
    status, stage = Status(row["status"]), Stage(row["stage"]) if row["stage"] else None
    # It is cached, and may know the job from before it was started or ended.
    waiting = queue_eta if status == Status.QUEUED else None
    unfinished = None if status.is_final else queue_eta
    return Job(
        **{name: row[name] for name in PLAIN_COLUMNS},
        status=status,
        priority=Priority(row["class"]),
        requested=_parse_request(row["request"]),
        effective=_effective_from_row(row),
        shape=_parse_shape(row["shape"]) if row["shape"] else None,
        stage=stage,
        progress=_overall_progress(row, status, stage),
        position=waiting.positions.get(row["id"]) if waiting else None,
        eta=unfinished.etas.get(row["id"]) if unfinished else None,
        failure=_failure_from_row(row),
        stages=tuple(map(_stage_record, json.loads(row["stages"]))),
        cancel_latency_s=row["idle_s"],
        revision=row["seq"],
    )


def file_names(row: Row) -> dict[str, str]:
    """Return what the files of a job were called, by their names in its folder."""
    names: dict[str, str] = json.loads(row["file_names"] or "{}")
    return names


def with_file_names(text: str, names: Mapping[str, str]) -> str:
    """Return a message with files called as whoever sent them called them."""
    for stored, given in names.items():
        text = text.replace(stored, given)
    return text


def _effective_from_row(row: Row) -> dict[str, Any] | None:
    if not row["effective"]:
        return None
    effective, names = load_json(row["effective"]), file_names(row)
    for change in effective.get("changes", ()):
        change["reason"] = with_file_names(change["reason"], names)
    return effective


def _failure_from_row(row: Row) -> Failure | None:
    if not row["failure_code"]:
        return None
    return Failure(row["failure_code"], with_file_names(row["failure"], file_names(row)))


def _stage_record(record: dict[str, Any]) -> StageRecord:
    return StageRecord(**record | {"stage": Stage(record["stage"])})


def _overall_progress(row: Row, status: Status, stage: Stage | None) -> float:
    """Return the progress of a job, 0 to 1; it grows with the steps and never falls."""
    if status == Status.COMPLETED:
        return 1.0
    if stage is None or status == Status.QUEUED:
        return 0.0
    has_two_stages = _parse_size(row["work"]).refine_calls > 0
    weights = TWO_STAGE_WEIGHTS if has_two_stages else PROGRESS_WEIGHTS
    order = list(Stage)
    before = sum(weights.get(s, 0.0) for s in order[: order.index(stage)])
    share: float = row["done"] / max(1, row["total"])
    return round(before + weights[stage] * share, 4)
