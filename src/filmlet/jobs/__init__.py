"""Jobs that survive: a durable queue over DBOS, workers with leases, learned ETA."""

from filmlet.jobs.job import (
    PREVIEW,
    Census,
    Estimate,
    Failure,
    Forecast,
    Job,
    Living,
    Priority,
    StageRecord,
    Status,
)
from filmlet.jobs.keys import Granted, Key, Keys
from filmlet.jobs.limits import Limits
from filmlet.jobs.queue import Asking, Queue

__all__ = [
    "PREVIEW",
    "Asking",
    "Census",
    "Estimate",
    "Failure",
    "Forecast",
    "Granted",
    "Job",
    "Key",
    "Keys",
    "Limits",
    "Living",
    "Priority",
    "Queue",
    "StageRecord",
    "Status",
]
