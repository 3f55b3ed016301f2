"""Jobs that survive: a durable queue over DBOS, workers with leases, learned ETA."""

from filmlet.jobs.api_keys import ApiKey, ApiKeyStore, CreatedApiKey
from filmlet.jobs.job import (
    PREVIEW,
    Estimate,
    Failure,
    Forecast,
    Job,
    Priority,
    QueueStats,
    StageRecord,
    Status,
    WorkerInfo,
)
from filmlet.jobs.job_reader import JobReader
from filmlet.jobs.queue import Queue, SubmitOptions
from filmlet.jobs.rate_limits import Limits

__all__ = [
    "PREVIEW",
    "ApiKey",
    "ApiKeyStore",
    "CreatedApiKey",
    "Estimate",
    "Failure",
    "Forecast",
    "Job",
    "JobReader",
    "Limits",
    "Priority",
    "Queue",
    "QueueStats",
    "StageRecord",
    "Status",
    "SubmitOptions",
    "WorkerInfo",
]
