"""Reads the queue: jobs and their ETA, forecasts, figures. Needs no torch."""

import time
from collections.abc import Iterator, Sequence

from filmlet.core.events import Stage
from filmlet.core.request import ClipRequest, validate_text
from filmlet.engine.selection import machine_for_model
from filmlet.errors import UnknownJob
from filmlet.jobs.cost_model import WorkloadSize
from filmlet.jobs.database import Database, Reader, Row
from filmlet.jobs.job import Estimate, EventCount, Forecast, Job, QueueStats, Status, WorkerInfo
from filmlet.jobs.queue_eta import QueueEtaCache
from filmlet.jobs.serialization import job_from_row
from filmlet.pipeline.plan import Plan, make_plan
from filmlet.pipeline.requirements import missing_bytes
from filmlet.settings import Settings

FOLLOW_EVERY_S = 0.15
FINAL_STATUSES = tuple(status.value for status in Status if status.is_final)


class JobReader:
    """Reads the jobs of one database and changes none."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database = database
        self.settings = settings
        self.etas = QueueEtaCache()

    @property
    def is_local(self) -> bool:
        """Whether the database is a file of this machine: reading it needs no thread of its own."""
        return self.database.is_sqlite

    def get_job(self, job: str, owner: str | None = None) -> Job:
        """Return one job; `owner` None may see all. Raises UnknownJob."""
        with self.database.read() as t:
            return self.jobs_from_rows(t, [get_row(t, job, owner)])[0]

    def list_jobs(
        self,
        owner: str | None = None,
        *,
        limit: int = 50,
        after: str | None = None,
        oldest_first: bool = False,
        search: str = "",
        ids: Sequence[str] | None = None,
    ) -> list[Job]:
        """Return a page of jobs, newest first; `after` is the last id of the page before.

        search: text that the prompt contains, in any case. ids: of the jobs to choose from.
        Raises UnknownJob, InvalidRequest.
        """
        validate_text("search", search)
        names = {f"id_{i}": id for i, id in enumerate(ids or ())}
        id_list = ", ".join(f":{name}" for name in names) or "null"
        beyond, order = (">", "asc") if oldest_first else ("<", "desc")
        conditions = {
            "owner = :owner": owner,
            f"(created, id) {beyond} (:since, :after)": after,
            "lower({prompt}) like :like escape '!'": search.strip() or None,
            f"id in ({id_list})": ids,
        }
        # Only what is asked for is in the statement: an index then gives the page by itself.
        condition = " and ".join(
            clause for clause, value in conditions.items() if value is not None
        )
        with self.database.read() as t:
            since = get_row(t, after, owner)["created"] if after else None
            rows = t.rows(
                f"select * from filmlet_job where {condition or '1 = 1'}"
                f" order by created {order}, id {order} limit :limit",
                owner=owner,
                after=after,
                since=since or 0.0,
                limit=limit,
                like=_like_pattern(search),
                **names,
            )
            return self.jobs_from_rows(t, rows)

    def unfinished_jobs(self, limit: int = 200) -> list[Job]:
        """Return all unfinished jobs: the running ones, then the queued ones in their order."""
        with self.database.read() as t:
            rows = t.rows(
                "select * from filmlet_job where status in ('queued', 'running')"
                " order by case status when 'running' then 0 else 1 end, rank, queued, id"
                " limit :limit",
                limit=limit,
            )
            return self.jobs_from_rows(t, rows)

    def follow(self, job: str, owner: str | None = None) -> Iterator[Job]:
        """Yield the job at first and at each change, until it has ended. Raises UnknownJob."""
        previous: tuple[object, ...] | None = None
        while True:
            now = self.get_job(job, owner)
            if (now.revision, now.status, now.position) != previous:
                previous = now.revision, now.status, now.position
                yield now
            if now.status.is_final:
                return
            time.sleep(FOLLOW_EVERY_S)

    def forecast(self, request: ClipRequest) -> Forecast:
        """Return plan, ETA and download of a request that is not queued.

        Raises what `make_plan` raises.
        """
        planned = make_plan(request)
        with self.database.read() as t:
            queue_eta = self.etas.compute(t)
            eta = queue_eta.eta_if_submitted(t, planned.card.name, workload_size(planned))
        fetch = missing_bytes(planned)
        machine = queue_eta.machine
        if machine:
            machine = machine_for_model(machine, planned.card, planned.parameters, self.settings)
        return Forecast(planned, eta, len(queue_eta.etas), fetch, machine)

    def estimate_cost(self, planned: Plan, stages: Sequence[Stage]) -> Estimate:
        """Estimate the seconds that some stages of a clip take on the workers of now."""
        with self.database.read() as t:
            queue_eta = self.etas.compute(t)
            return queue_eta.of_stages(t, planned.card.name, workload_size(planned), stages)

    def has_worker(self) -> bool:
        """Return whether a worker is alive."""
        with self.database.read() as t:
            row = t.row(
                "select id from filmlet_worker where dead = 0 and beat > {now} - :lease limit 1",
                lease=self.settings.lease_s,
            )
        return row is not None

    def stats(self) -> QueueStats:
        """Return counts of jobs, workers and events."""
        with self.database.read() as t:
            counts = t.rows(
                "select status, count(*) as count, {now} - min(queued) as oldest from filmlet_job"
                " where status in ('queued', 'running') group by status"
            )
            workers = t.rows(
                "select id, device, model, peak_bytes from filmlet_worker"
                " where dead = 0 and beat > {now} - :lease",
                lease=self.settings.lease_s,
            )
            tallies = t.rows("select * from filmlet_tally order by name, label")
        waiting = [row["oldest"] for row in counts if row["status"] == Status.QUEUED]
        return QueueStats(
            jobs={row["status"]: row["count"] for row in counts},
            workers=tuple(WorkerInfo(**row) for row in workers),
            oldest_wait_s=max(0.0, *waiting, 0.0),
            tallies=tuple(EventCount(**row) for row in tallies),
        )

    def jobs_from_rows(self, t: Reader, rows: Sequence[Row]) -> list[Job]:
        """Return rows as jobs, with position and ETA of the unfinished ones."""
        unfinished = [row for row in rows if row["status"] not in FINAL_STATUSES]
        queue_eta = self.etas.for_jobs(t, unfinished) if unfinished else None
        return [job_from_row(row, queue_eta) for row in rows]

    def close(self) -> None:
        """Close the connections to the database."""
        self.database.close()


def get_row(t: Reader, job: str, owner: str | None) -> Row:
    """Return the row of a job; `owner` None may see all. Raises UnknownJob."""
    row = t.row("select * from filmlet_job where id = :id", id=job)
    if row is None or (owner is not None and row["owner"] != owner):
        raise UnknownJob(f"There is no job {job!r}.")
    return row


def workload_size(planned: Plan) -> WorkloadSize:
    """Return what the cost of a clip depends on; weights are not loaded."""
    return WorkloadSize.from_plan(planned, planned.parameters.transformer)


def _like_pattern(search: str) -> str:
    """Return the pattern of `like` that finds the text literally (escape character !)."""
    text = search.strip().lower()
    for wildcard in "!%_":
        text = text.replace(wildcard, f"!{wildcard}")
    return f"%{text}%"
