"""Jobs that survive: a durable queue over DBOS, workers with leases, learned ETA.

Names are imported when they are first used: an estimate needs no database.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filmlet.jobs.api_keys import ApiKey, ApiKeyStore, CreatedApiKey
    from filmlet.jobs.job import (
        CLIP_FORMAT,
        EXPORT_FILES,
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

_LAZY_IMPORTS = {
    "ApiKey": "api_keys",
    "ApiKeyStore": "api_keys",
    "CreatedApiKey": "api_keys",
    "JobReader": "job_reader",
    "Limits": "rate_limits",
    "Queue": "queue",
    "SubmitOptions": "queue",
}

__all__ = [
    "CLIP_FORMAT",
    "EXPORT_FILES",
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


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module 'filmlet.jobs' has no attribute {name!r}")
    return getattr(import_module(f"filmlet.jobs.{_LAZY_IMPORTS.get(name, 'job')}"), name)
