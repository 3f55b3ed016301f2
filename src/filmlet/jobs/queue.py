"""The queue as its users see it: submit, look, wait, cancel, retry, delete. Needs no torch."""

import json
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

from dbos import WorkflowSerializationFormat

from filmlet.core.effective import EffectiveSettings
from filmlet.core.events import Stage
from filmlet.core.lora import Lora, LoraAdapter
from filmlet.core.prompts import validate_text
from filmlet.core.request import ClipRequest
from filmlet.engine.selection import in_float32, why_not_openvino_model
from filmlet.errors import DatabaseUnusable, IdempotencyKeyReused, JobConflict, UnknownJob
from filmlet.jobs.cost_model import WorkloadSize
from filmlet.jobs.database import Database, Reader, Row, Transaction, count_event
from filmlet.jobs.job import (
    Estimate,
    EventCount,
    Forecast,
    Job,
    Priority,
    QueueStats,
    Status,
    WorkerInfo,
)
from filmlet.jobs.queue_eta import QueueEtaCache
from filmlet.jobs.rate_limits import Limits, record_usage
from filmlet.jobs.retention import Retention
from filmlet.jobs.serialization import job_from_row, request_from_row
from filmlet.jobs.storage import Storage
from filmlet.jobs.webhooks import enqueue_webhook
from filmlet.models import disk_usage as disk_use
from filmlet.pipeline.plan import Plan, make_plan
from filmlet.settings import Settings

QUEUE, WORKFLOW = "filmlet_clips", "filmlet_clip"
APPLICATION_VERSION = "1"  # of the workflow's arguments; a job waits for a worker that knows it
RANKS = {Priority.HIGH: 0, Priority.NORMAL: 1, Priority.LOW: 2}
CLASS_RANK = 100_000  # more than one user can have active
FOLLOW_EVERY_S = 0.15
FINAL_STATUSES = tuple(status.value for status in Status if status.is_final)


@dataclass(frozen=True)
class SubmitOptions:
    """Who asks, how urgent it is, and the key under which asking twice makes one job.

    limits: of this user, None takes the settings'. source: the job that this one varies.
    is_admin: may look at everybody's jobs.
    """

    owner: str = "local"
    priority: Priority = Priority.NORMAL
    idempotency_key: str | None = None
    limits: Limits | None = None
    source: str | None = None
    is_admin: bool = False


class Queue:
    """Jobs of one database and one storage."""

    def __init__(self, settings: Settings) -> None:
        """Raises DatabaseUnusable, StorageUnusable."""
        self.settings = settings
        self.database = Database(settings)
        self.storage = Storage(settings)
        self._outlooks = QueueEtaCache()
        self.retention = Retention(self.database, self.storage, settings, self.delete)

    @property
    def is_local(self) -> bool:
        """Whether its database is a file of this machine, which a look does not wait for."""
        return self.database.is_sqlite

    def submit(
        self,
        request: ClipRequest,
        asking: SubmitOptions = SubmitOptions(),
        given_by: str | None = None,
    ) -> Job:
        """Put a clip into the queue: row and workflow in one transaction.

        given_by: the job in whose folder the request's files lie; None where they are paths.
        Raises what `make_plan` raises, and TooManyJobs.
        """
        job = f"clip_{secrets.token_hex(12)}"
        if not request.files:
            return self._insert(job, request, make_plan(request), asking)
        self.retention.make_room(asking.owner)
        try:  # The files are there before the row is: a worker may take it at once.
            row = self._insert(job, *self._copy_inputs(job, request, given_by), asking)
        except BaseException:
            self.storage.delete(job)
            raise
        if row.id != job:
            self.storage.delete(job)
        else:
            self._note_size(job)
        return row

    def _note_size(self, job: str) -> None:
        """Bytes of a waiting job's files count, too."""
        size = self.storage.size(job)
        with self.database.transaction() as t:
            t.rows(
                "update filmlet_job set bytes = :bytes where id = :id and bytes = 0",
                bytes=size, id=job,
            )  # fmt: skip

    def _copy_inputs(
        self, job: str, request: ClipRequest, given_by: str | None
    ) -> tuple[ClipRequest, Plan]:
        """The request with its files in the job's folder, named by what is in them."""
        if given_by:
            self.storage.copy_to_local(given_by, job, *request.files)
        planned = make_plan(request, self.storage.folder(job) if given_by else None)
        pairs = zip(request.guides, planned.guides, strict=True)
        guides = tuple(replace(guide, file=media_input.info.name) for guide, media_input in pairs)
        for media_input in planned.media_inputs:
            self.storage.add_file(job, media_input.path, media_input.info.name)
        loras = tuple(
            self._copy_lora(job, *pair) for pair in zip(request.loras, planned.loras, strict=True)
        )
        self.storage.clear_local(job)
        clip = planned.source_clip.info.name if planned.source_clip else None
        return replace(request, guides=guides, extend=clip, loras=loras), planned

    def _copy_lora(self, job: str, lora: Lora, adapter: LoraAdapter | None) -> Lora:
        """The LoRA by the name of its file in the job's folder; a Hub name stays as it is."""
        if lora.is_on_hub or adapter is None:
            return lora
        self.storage.add_file(job, adapter.path, adapter.name)
        return replace(lora, source=adapter.name)

    def _insert(self, job: str, request: ClipRequest, planned: Plan, asking: SubmitOptions) -> Job:
        """Row and workflow; the job that was made before under the same key, if there is one."""
        seed = EffectiveSettings.random_seed() if request.seed is None else request.seed
        with self.database.transaction() as t:
            t.lock("submit")
            existing = asking.idempotency_key is not None and t.row(
                "select * from filmlet_job where owner = :owner and key = :key",
                owner=asking.owner, key=asking.idempotency_key,
            )  # fmt: skip
            if existing:
                _check_same(existing, request, asking)
                return self._jobs_from_rows(t, [existing])[0]
            seconds = planned.shape.new_frames / planned.shape.fps
            rank = self._check_limits(t, asking, seconds)
            row = t.row(
                "insert into filmlet_job (id, owner, key, class, rank, request, model, seed, work,"
                " shape, source, created, queued) values (:id, :owner, :key, :class, :rank,"
                " :request, :model, :seed, :work, :shape, :source, {now}, {now}) returning *",
                **{"class": asking.priority.value},
                id=job,
                owner=asking.owner,
                key=asking.idempotency_key,
                rank=rank,
                request=json.dumps(asdict(request)),
                model=planned.card.name,
                seed=seed,
                work=json.dumps(asdict(workload_size(planned))),
                shape=json.dumps(asdict(planned.shape)),
                source=asking.source,
            )
            record_usage(t, asking.owner, seconds)
            self._enqueue(t, job, 1, rank)
        assert row
        with self.database.read() as t:
            return self._jobs_from_rows(t, [row])[0]

    def _check_limits(self, t: Transaction, asking: SubmitOptions, seconds: float) -> int:
        """The job's rank in the queue; raises TooManyJobs over a limit."""
        limits = asking.limits or Limits.from_settings(self.settings)
        active = limits.check_admission(t, asking.owner, self.settings.max_queued, seconds)
        # Among equals, who has fewer unfinished jobs goes first. 0 would be DBOS' "not given".
        return 1 + RANKS[asking.priority] * CLASS_RANK + min(active, CLASS_RANK - 1)

    def _enqueue(self, t: Transaction, job: str, run: int, rank: int) -> None:
        self.database.client.enqueue_in_transaction(
            t.connection,
            {
                "queue_name": QUEUE,
                "workflow_name": WORKFLOW,
                "workflow_id": f"{job}.{run}",
                "priority": rank,
                "app_version": APPLICATION_VERSION,
                "serialization_type": WorkflowSerializationFormat.PORTABLE,
            },
            job,
        )

    def get_job(self, job: str, owner: str | None = None) -> Job:
        """One job; `owner` None may see all. Raises UnknownJob."""
        with self.database.read() as t:
            return self._jobs_from_rows(t, [_get_row(t, job, owner)])[0]

    def list_jobs(
        self,
        owner: str | None = None,
        *,
        limit: int = 50,
        after: str | None = None,
        oldest_first: bool = False,
        search: str = "",
    ) -> list[Job]:
        """Jobs, the newest first; `after` the id that the last page ended with.

        search: what the prompt contains, in any case. Raises UnknownJob, InvalidRequest.
        """
        validate_text("search", search)
        beyond, order = (">", "asc") if oldest_first else ("<", "desc")
        conditions = {
            "owner = :owner": owner,
            f"(created, id) {beyond} (:since, :after)": after,
            "lower({prompt}) like :like escape '!'": search.strip() or None,
        }
        # Only what is asked for is in the statement: an index then gives the page by itself.
        condition = " and ".join(
            clause for clause, value in conditions.items() if value is not None
        )
        with self.database.read() as t:
            since = _get_row(t, after, owner)["created"] if after else None
            rows = t.rows(
                f"select * from filmlet_job where {condition or '1 = 1'}"
                f" order by created {order}, id {order} limit :limit",
                owner=owner,
                after=after,
                since=since or 0.0,
                limit=limit,
                like=_like_pattern(search),
            )
            return self._jobs_from_rows(t, rows)

    def unfinished_jobs(self, limit: int = 200) -> list[Job]:
        """Everybody's jobs that are not over, in the order in which they will be."""
        with self.database.read() as t:
            rows = t.rows(
                "select * from filmlet_job where status in ('queued', 'running')"
                " order by case status when 'running' then 0 else 1 end, rank, queued, id"
                " limit :limit",
                limit=limit,
            )
            return self._jobs_from_rows(t, rows)

    def remix(self, job: str, prompt: str, asking: SubmitOptions) -> Job:
        """A new job with the settings and the seed of another and a prompt of its own.

        Raises UnknownJob and what `submit` raises.
        """
        with self.database.read() as t:
            row = _get_row(t, job, None if asking.is_admin else asking.owner)
        request, asking = replace(request_from_row(row), prompt=prompt), replace(asking, source=job)
        return self.submit(request, asking, given_by=job)

    def extend(self, job: str, request: ClipRequest, asking: SubmitOptions) -> Job:
        """A new job that goes on from the clip of a finished one.

        Raises UnknownJob, JobConflict and what `submit` raises.
        """
        source = self.get_job(job, None if asking.is_admin else asking.owner)
        if source.clip is None:
            raise JobConflict(f"{job} is {source.status}; it has no clip to extend.")
        request = replace(request, extend=source.clip)
        return self.submit(request, replace(asking, source=job), given_by=job)

    def forecast(self, request: ClipRequest) -> Forecast:
        """What this request would come to now; nothing is queued. Raises what `make_plan`
        raises.
        """
        planned = make_plan(request)
        with self.database.read() as t:
            outlook = self._outlooks.compute(t)
            eta = outlook.eta_if_submitted(t, planned.card.name, workload_size(planned))
        fetch = 0 if planned.files else max(0, planned.card.size_bytes - disk_use(planned.card))
        machine = outlook.machine
        if machine and why_not_openvino_model(planned.card, planned.parameters):
            machine = in_float32(machine)
        return Forecast(planned, eta, len(outlook.etas), fetch, machine)

    def estimate_cost(self, planned: Plan, stages: Sequence[Stage]) -> Estimate:
        """Seconds that some stages of a clip take where jobs are made now."""
        with self.database.read() as t:
            outlook = self._outlooks.compute(t)
            return outlook.of_stages(t, planned.card.name, workload_size(planned), stages)

    def set_priority(self, job: str, priority: Priority) -> Job:
        """Move a waiting job into another class. Raises UnknownJob, JobConflict."""
        with self.database.transaction() as t:
            row = _get_row(t, job, None)
            rank = 1 + RANKS[priority] * CLASS_RANK + (row["rank"] - 1) % CLASS_RANK
            moved = t.row(
                "update filmlet_job set class = :class, rank = :rank, run = run + 1, seq = seq + 1"
                " where id = :id and status = 'queued' returning run",
                **{"class": priority.value}, id=job, rank=rank,
            )  # fmt: skip
            if moved is None:
                raise JobConflict(f"{job} is {row['status']}; only a waiting job can be moved.")
            self._enqueue(t, job, moved["run"], rank)
        self._forget_workflow(job, row["run"])
        return self.get_job(job)

    def _forget_workflow(self, job: str, run: int) -> None:
        """Take a workflow out of the queue, if the database answers: it would do nothing there."""
        with suppress(DatabaseUnusable):
            self.database.cancel_workflow(f"{job}.{run}")

    def follow(self, job: str, owner: str | None = None) -> Iterator[Job]:
        """Yield the job whenever something about it changed, until it is over."""
        previous: tuple[object, ...] | None = None
        while True:
            now = self.get_job(job, owner)
            if (now.revision, now.status, now.position) != previous:
                previous = now.revision, now.status, now.position
                yield now
            if now.status.is_final:
                return
            time.sleep(FOLLOW_EVERY_S)

    def cancel(self, job: str, owner: str | None = None) -> Job:
        """A queued job never starts, a running one stops within a step; an ended one stays."""
        with self.database.transaction() as t:
            row = _get_row(t, job, owner)
            t.rows(
                "update filmlet_job set cancel = coalesce(cancel, {now}), seq = seq + 1,"
                " finished = case when status = 'queued' then {now} else finished end,"
                " idle_s = case when status = 'queued' then 0 else idle_s end,"
                " status = case when status = 'queued' then 'cancelled' else status end"
                " where id = :id and status in ('queued', 'running')",
                id=job,
            )
            if row["status"] == Status.QUEUED:
                count_event(t, "jobs", Status.CANCELLED)
                enqueue_webhook(t, self.database, self.settings, job)
        self._outlooks.invalidate()
        if row["status"] == Status.QUEUED:
            self._forget_workflow(job, row["run"])
        return self.get_job(job, owner)

    def retry(self, job: str, owner: str | None = None) -> Job:
        """Queue a failed or cancelled job again; it goes on from its last finished stage.

        Raises JobConflict, TooManyJobs.
        """
        with self.database.transaction() as t:
            t.lock("submit")
            row = _get_row(t, job, owner)
            if row["status"] not in (Status.FAILED, Status.CANCELLED):
                raise JobConflict(
                    f"{job} is {row['status']}; only a failed or cancelled job can be retried."
                )
            limits = Limits.for_owner(t, row["owner"], self.settings)
            asking = SubmitOptions(row["owner"], Priority(row["class"]), limits=limits)
            rank = self._check_limits(t, asking, 0.0)
            t.rows(
                "update filmlet_job set status = 'queued', run = run + 1, rank = :rank,"
                " cancel = null, attempt = 0, trimmed = 0, failure = null, failure_code = null,"
                " worker = null,"
                " finished = null, idle_s = null, seq = seq + 1, queued = {now} where id = :id",
                id=job, rank=rank,
            )  # fmt: skip
            self._enqueue(t, job, row["run"] + 1, rank)
        self._outlooks.invalidate()
        return self.get_job(job, owner)

    def delete(self, job: str, owner: str | None = None) -> None:
        """Remove a job that is over, with its clip. Raises JobConflict.

        Its row goes last but one: until then it can be asked for again. Files that stay behind
        are removed by a sweep.
        """
        with self.database.read() as t:
            row = _get_row(t, job, owner)
        if row["status"] not in FINAL_STATUSES:
            raise JobConflict(f"{job} is {row['status']}; cancel it first.")
        self.database.delete_workflows([f"{job}.{n + 1}" for n in range(row["run"])])
        with self.database.transaction() as t:
            gone = t.row(
                "delete from filmlet_job where id = :id and run = :run and finished is not null"
                " returning id",
                id=job, run=row["run"],
            )  # fmt: skip
        if gone is None:
            raise JobConflict(f"{job} was retried or deleted meanwhile.")
        self.storage.delete(job)

    def delete_expired(self) -> int:
        """Remove what the settings do not allow any more; how many jobs went."""
        return self.retention.sweep()

    def refine(self, job: str, asking: SubmitOptions) -> Job:
        """A new job that finishes a draft: it starts from the draft's own latents.

        Raises UnknownJob, JobConflict, TooManyJobs.
        """
        with self.database.read() as t:
            row = _get_row(t, job, None if asking.is_admin else asking.owner)
        request = request_from_row(row)
        if not request.draft or row["status"] != Status.COMPLETED:
            raise JobConflict(f"{job} is no finished draft; there is nothing to refine.")
        refine_request, asking = replace(request, draft=False), replace(asking, source=job)
        return self.submit(refine_request, asking, given_by=job)

    def stats(self) -> QueueStats:
        """The whole queue in figures."""
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

    def _jobs_from_rows(self, t: Reader, rows: Sequence[Row]) -> list[Job]:
        open = [row for row in rows if row["status"] not in FINAL_STATUSES]
        outlook = self._outlooks.for_jobs(t, open) if open else None
        return [job_from_row(row, outlook) for row in rows]

    def close(self) -> None:
        """Let go of the database."""
        self.database.close()


def _check_same(row: Row, request: ClipRequest, asking: SubmitOptions) -> None:
    """Whether a row was asked for by the same request. Raises IdempotencyKeyReused."""
    # Requests, not their text: a newer filmlet may write a field more.
    before = ClipRequest(**json.loads(row["request"]))
    if (before, row["source"]) != (request, asking.source):
        raise IdempotencyKeyReused(
            f"This Idempotency-Key made {row['id']} from another request; send a new key."
        )


def workload_size(planned: Plan) -> WorkloadSize:
    """What the clip's cost depends on; read off the files, nothing is loaded."""
    return WorkloadSize.from_plan(planned, planned.parameters.transformer)


def _like_pattern(search: str) -> str:
    """A pattern that finds the text itself, whatever signs are in it."""
    text = search.strip().lower()
    for sign in "!%_":
        text = text.replace(sign, f"!{sign}")
    return f"%{text}%"


def _get_row(t: Reader, job: str, owner: str | None) -> Row:
    row = t.row("select * from filmlet_job where id = :id", id=job)
    if row is None or (owner is not None and row["owner"] != owner):
        raise UnknownJob(f"There is no job {job!r}; `filmlet jobs` lists yours.")
    return row
