"""Jobs that survive: a durable queue over DBOS, workers with leases, learned ETA."""

from filmlet.jobs.job import Estimate, Failure, Job, Priority, StageRecord, Status
from filmlet.jobs.queue import Asking, Queue

__all__ = ["Asking", "Estimate", "Failure", "Job", "Priority", "Queue", "StageRecord", "Status"]
