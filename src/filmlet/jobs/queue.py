"""The queue: JobReader, and what changes jobs: submit, cancel, retry, delete. Needs no torch."""

import json
import secrets
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from filmlet.core.effective import EffectiveSettings
from filmlet.core.enhanced_prompt import EnhancedPrompt, to_enhanced_prompt
from filmlet.core.lora import Lora, LoraAdapter
from filmlet.core.request import ClipRequest
from filmlet.errors import DatabaseUnusable, FilmletError, IdempotencyKeyReused, JobConflict
from filmlet.jobs.database import Database, Row, Transaction, count_event
from filmlet.jobs.job import Job, Priority, Status
from filmlet.jobs.job_reader import FINAL_STATUSES, JobReader, get_row, workload_size
from filmlet.jobs.object_storage import open_storage
from filmlet.jobs.old_rows import load_json
from filmlet.jobs.rate_limits import Limits, record_usage
from filmlet.jobs.retention import Retention
from filmlet.jobs.serialization import file_names, request_from_row, with_file_names
from filmlet.jobs.webhooks import enqueue_webhook
from filmlet.pipeline.plan import Plan, make_plan
from filmlet.pipeline.requirements import check_disk, check_requirements
from filmlet.settings import Settings

QUEUE, WORKFLOW = "filmlet_clips", "filmlet_clip"
APPLICATION_VERSION = "1"  # of the workflow's arguments; a job waits for a worker that knows it
RANKS = {Priority.HIGH: 0, Priority.NORMAL: 1, Priority.LOW: 2}
NOT_RUNNING = (  # of an unfinished job: no worker that lives has it
    "(status = 'queued' or not exists (select 1 from filmlet_worker as w"
    " where w.id = filmlet_job.worker and w.dead = 0 and w.beat > {now} - :lease))"
)
CLASS_RANK = 100_000  # more than one user can have active


@dataclass(frozen=True)
class SubmitOptions:
    """Owner, priority and idempotency key of a new job.

    limits: of the owner; None: of the settings. source: the job that this one is made from.
    is_admin: may read all jobs.
    """

    owner: str = "local"
    priority: Priority = Priority.NORMAL
    idempotency_key: str | None = None
    limits: Limits | None = None
    source: str | None = None
    is_admin: bool = False


class Queue(JobReader):
    """Submits and changes the jobs of one database and one storage."""

    def __init__(self, settings: Settings) -> None:
        """Raises DatabaseUnusable, StorageUnusable."""
        super().__init__(Database(settings), settings)
        self.storage = open_storage(settings)
        self.retention = Retention(self.database, self.storage, settings, self.delete)

    def submit(
        self,
        request: ClipRequest,
        options: SubmitOptions = SubmitOptions(),
        source_job: str | None = None,
    ) -> Job:
        """Queue a clip: row and workflow in one transaction.

        source_job: the job in whose folder the request's files lie; None where they are paths.
        Raises what `make_plan` and `check_requirements` raise, DiskFull, and TooManyJobs.
        """
        job = f"clip_{secrets.token_hex(12)}"
        if not request.files:
            return self._insert(job, request, make_plan(request), options, {})
        self.retention.make_room(options.owner)
        try:  # Files come before the row: a worker may claim it at once.
            row = self._insert_with_files(job, request, options, source_job)
        except BaseException:
            self.storage.delete(job)
            raise
        if row.id != job:
            self.storage.delete(job)
        else:
            self._note_size(job)
        return row

    def _insert_with_files(
        self, job: str, request: ClipRequest, options: SubmitOptions, source_job: str | None
    ) -> Job:
        given = self._source_names(source_job) if source_job else {}
        try:
            stored, planned = self._copy_inputs(job, request, source_job)
        except FilmletError as error:
            error.args = (with_file_names(str(error), given),)
            raise
        sent = [Path(file).name for file in _list_files(request)]
        names = dict(
            zip(_list_files(stored), [given.get(name, name) for name in sent], strict=True)
        )
        return self._insert(job, stored, planned, options, names)

    def _source_names(self, job: str) -> dict[str, str]:
        """Return what the files of another job were called."""
        with self.database.read() as t:
            return file_names(get_row(t, job, None))

    def _note_size(self, job: str) -> None:
        """Record the bytes of a queued job's files: they count towards the disk limit."""
        size = self.storage.size(job)
        with self.database.transaction() as t:
            t.rows(
                "update filmlet_job set bytes = :bytes where id = :id and bytes = 0",
                bytes=size, id=job,
            )  # fmt: skip

    def _copy_inputs(
        self, job: str, request: ClipRequest, source_job: str | None
    ) -> tuple[ClipRequest, Plan]:
        """Copy the request's files into the job's folder, named by their content.

        Returns the request with those names, and its plan.
        """
        if source_job:
            self.storage.copy_to_local(source_job, job, *request.files)
        planned = make_plan(request, self.storage.folder(job) if source_job else None)
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
        """Return the LoRA by the name of its file in the job's folder; a Hub name stays."""
        if lora.is_on_hub or adapter is None:
            return lora
        self.storage.add_file(job, adapter.path, adapter.name)
        return replace(lora, source=adapter.name)

    def _insert(
        self,
        job: str,
        request: ClipRequest,
        planned: Plan,
        options: SubmitOptions,
        names: dict[str, str],
    ) -> Job:
        """Insert row and workflow, or return the job that has the same idempotency key.

        names: what the request's files were called where they came from.
        """
        if self.is_local:  # else its worker may be another machine
            check_requirements(planned, self.settings)
            check_disk(planned)
        seed = EffectiveSettings.random_seed() if request.seed is None else request.seed
        with self.database.transaction() as t:
            t.lock("submit")
            existing = options.idempotency_key is not None and t.row(
                "select * from filmlet_job where owner = :owner and key = :key",
                owner=options.owner, key=options.idempotency_key,
            )  # fmt: skip
            if existing:
                _check_same(existing, request, options)
                return self.jobs_from_rows(t, [existing])[0]
            seconds = planned.shape.new_frames / planned.shape.fps
            rank = self._check_limits(t, options, seconds)
            row = t.row(
                "insert into filmlet_job (id, owner, key, class, rank, request, model, seed, work,"
                " shape, source, file_names, created, queued) values (:id, :owner, :key, :class,"
                " :rank, :request, :model, :seed, :work, :shape, :source, :file_names, {now},"
                " {now}) returning *",
                **{"class": options.priority.value},
                id=job,
                owner=options.owner,
                key=options.idempotency_key,
                rank=rank,
                request=json.dumps(asdict(request)),
                model=planned.card.name,
                seed=seed,
                work=json.dumps(asdict(workload_size(planned))),
                shape=json.dumps(asdict(planned.shape)),
                source=options.source,
                file_names=json.dumps(names) if names else None,
            )
            record_usage(t, options.owner, seconds)
            self._enqueue(t, job, 1, rank)
        assert row
        with self.database.read() as t:
            return self.jobs_from_rows(t, [row])[0]

    def record_prompts(self, options: SubmitOptions, count: int) -> None:
        """Count prompts that are to be enhanced as that many submissions. Raises TooManyJobs."""
        limits = options.limits or Limits.from_settings(self.settings)
        with self.database.transaction() as t:
            t.lock("submit")
            limits.check_rate(t, options.owner, count)
            for _ in range(count):
                record_usage(t, options.owner, 0.0)

    def _check_limits(self, t: Transaction, options: SubmitOptions, seconds: float) -> int:
        """Return the job's rank in the queue. Raises TooManyJobs."""
        limits = options.limits or Limits.from_settings(self.settings)
        active = limits.check_admission(t, options.owner, self.settings.max_queued, seconds)
        # In one class, the owner with fewer unfinished jobs is first. DBOS reads 0 as "not given".
        return 1 + RANKS[options.priority] * CLASS_RANK + min(active, CLASS_RANK - 1)

    def _enqueue(self, t: Transaction, job: str, run: int, rank: int) -> None:
        from dbos import WorkflowSerializationFormat

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

    def remix(self, job: str, prompt: str | EnhancedPrompt, options: SubmitOptions) -> Job:
        """Submit the settings and the seed of another job with a new prompt.

        Raises UnknownJob and what `submit` raises.
        """
        with self.database.read() as t:
            row = get_row(t, job, None if options.is_admin else options.owner)
        request = request_from_row(row)
        new, *others = map(to_enhanced_prompt, (prompt, *request.extra_prompts))
        enhanced_prompts = (new, *(request.enhanced_prompts[1:] or others))
        request = replace(request, prompt=new.requested, enhanced_prompts=enhanced_prompts)
        if not any(prompt.source for prompt in enhanced_prompts):
            request = replace(request, enhanced_prompts=())
        return self.submit(request, replace(options, source=job), source_job=job)

    def extend(self, job: str, request: ClipRequest, options: SubmitOptions) -> Job:
        """Submit a clip that continues the clip of a finished job.

        Raises UnknownJob, JobConflict and what `submit` raises.
        """
        source = self.get_job(job, None if options.is_admin else options.owner)
        if source.clip is None:
            raise JobConflict(f"{job} is {source.status}; it has no clip to extend.")
        request = replace(request, extend=source.clip)
        return self.submit(request, replace(options, source=job), source_job=job)

    def refine(self, job: str, options: SubmitOptions) -> Job:
        """Submit the second stage of a finished draft; it starts from the draft's latents.

        Raises UnknownJob, JobConflict, TooManyJobs.
        """
        with self.database.read() as t:
            row = get_row(t, job, None if options.is_admin else options.owner)
        request = request_from_row(row)
        if not request.draft or row["status"] != Status.COMPLETED:
            raise JobConflict(f"{job} is no finished draft; there is nothing to refine.")
        request = replace(request, draft=False)
        return self.submit(request, replace(options, source=job), source_job=job)

    def set_priority(self, job: str, priority: Priority) -> Job:
        """Change the priority of a queued job. Raises UnknownJob, JobConflict."""
        with self.database.transaction() as t:
            row = get_row(t, job, None)
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
        """Remove a workflow from DBOS' queue if the database answers; left, it does nothing."""
        with suppress(DatabaseUnusable):
            self.database.cancel_workflow(f"{job}.{run}")

    def cancel(self, job: str, owner: str | None = None) -> Job:
        """Cancel a job: a queued one never starts, a running one stops within a step.

        One whose worker is gone or silent is cancelled at once: the worker that comes back finds
        it lost. A job that has ended stays as it is. Raises UnknownJob.
        """
        with self.database.transaction() as t:
            row = get_row(t, job, owner)
            asked = t.row(
                "update filmlet_job set cancel = coalesce(cancel, {now}), seq = seq + 1,"
                f" finished = case when {NOT_RUNNING} then {{now}} else finished end,"
                f" idle_s = case when {NOT_RUNNING} then 0 else idle_s end,"
                f" status = case when {NOT_RUNNING} then 'cancelled' else status end"
                " where id = :id and status in ('queued', 'running') returning status",
                id=job, lease=self.settings.lease_s,
            )  # fmt: skip
            is_over = asked is not None and asked["status"] == Status.CANCELLED
            if is_over:
                count_event(t, "jobs", Status.CANCELLED)
                enqueue_webhook(t, self.database, self.settings, job)
        self.etas.invalidate()
        if is_over:
            self._forget_workflow(job, row["run"])
        return self.get_job(job, owner)

    def retry(self, job: str, owner: str | None = None) -> Job:
        """Queue a failed or cancelled job again; it continues from its last finished stage.

        Raises UnknownJob, JobConflict, TooManyJobs.
        """
        with self.database.transaction() as t:
            t.lock("submit")
            row = get_row(t, job, owner)
            if row["status"] not in (Status.FAILED, Status.CANCELLED):
                raise JobConflict(
                    f"{job} is {row['status']}; only a failed or cancelled job can be retried."
                )
            limits = Limits.for_owner(t, row["owner"], self.settings)
            options = SubmitOptions(row["owner"], Priority(row["class"]), limits=limits)
            rank = self._check_limits(t, options, 0.0)
            t.rows(
                "update filmlet_job set status = 'queued', run = run + 1, rank = :rank,"
                " cancel = null, attempt = 0, trimmed = 0, failure = null, failure_code = null,"
                " worker = null,"
                " finished = null, idle_s = null, seq = seq + 1, queued = {now} where id = :id",
                id=job, rank=rank,
            )  # fmt: skip
            self._enqueue(t, job, row["run"] + 1, rank)
        self.etas.invalidate()
        return self.get_job(job, owner)

    def delete(self, job: str, owner: str | None = None) -> None:
        """Delete a job that has ended: workflows, row, then files. Raises UnknownJob, JobConflict.

        Files that a crash leaves behind are deleted by `Retention.delete_orphans`.
        """
        with self.database.read() as t:
            row = get_row(t, job, owner)
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
        """Delete what exceeds the limits of age and disk; return the number of deleted jobs."""
        return self.retention.sweep()


def _list_files(request: ClipRequest) -> list[str]:
    """Return all files that a request names, one as often as it names it."""
    files = [guide.file for guide in request.guides]
    files += [request.extend] if request.extend else []
    return files + [lora.source for lora in request.loras if not lora.is_on_hub]


def _check_same(row: Row, request: ClipRequest, options: SubmitOptions) -> None:
    """Raise IdempotencyKeyReused if a row was made from another request."""
    # Requests, not their text: a newer filmlet may write a field more.
    before = ClipRequest(**load_json(row["request"]))
    if (_as_asked(before), row["source"]) != (_as_asked(request), options.source):
        raise IdempotencyKeyReused(
            f"This Idempotency-Key made {row['id']} from another request; send a new key."
        )


def _as_asked(request: ClipRequest) -> tuple[ClipRequest, bool]:
    """Return the request without what its prompts became: they are not enhanced alike twice."""
    return replace(request, enhanced_prompts=()), bool(request.enhanced_prompts)
