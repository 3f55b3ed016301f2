"""Jobs that survive: a durable queue over DBOS, workers with leases, learned ETA."""

from filmlet.jobs.api_keys import Granted, Key, Keys
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
from filmlet.jobs.queue import Asking, Queue
from filmlet.jobs.rate_limits import Limits

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
