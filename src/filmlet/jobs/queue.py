"""The queue as its users see it: submit, look, wait, cancel, retry, delete. Needs no torch."""

import json
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from dbos import WorkflowSerializationFormat

from filmlet.errors import JobConflict, TooManyJobs, UnknownJob
from filmlet.events import Stage
from filmlet.jobs import cost
from filmlet.jobs.cost import CostModel, Sample, Size
from filmlet.jobs.database import Database, Row, Transaction
from filmlet.jobs.job import Estimate, Failure, Job, Priority, StageRecord, Status
from filmlet.jobs.storage import Storage
from filmlet.plan import Plan, plan
from filmlet.request import ClipRequest, Effective
from filmlet.settings import Settings

QUEUE, WORKFLOW = "filmlet_clips", "filmlet_clip"
APPLICATION_VERSION = "1"  # of the workflow's arguments; a job waits for a worker that knows it
RANKS = {Priority.HIGH: 0, Priority.NORMAL: 1, Priority.LOW: 2}
CLASS_RANK = 100_000  # more than one user can have active
FOLLOW_EVERY_S = 0.15
TAKE = Estimate(0.15, 0.0, 0.4)  # until an idle worker has seen the job
OVER = tuple(status.value for status in Status if status.is_over)
SHARES = {  # of a clip's time, roughly: what `progress` shows when a stage is over
    Stage.LOAD: 0.05,
    Stage.ENCODE: 0.05,
    Stage.DENOISE: 0.6,
    Stage.DECODE: 0.28,
    Stage.MUX: 0.02,
}


@dataclass(frozen=True)
class Asking:
    """Who asks, how urgent it is, and the key under which asking twice makes one job."""

    owner: str = "local"
    priority: Priority = Priority.NORMAL
    key: str | None = None


class Queue:
    """Jobs of one database and one storage."""

    def __init__(self, settings: Settings) -> None:
        """Raises DatabaseUnusable, StorageUnusable."""
        self.settings = settings
        self.database = Database(settings)
        self.storage = Storage(settings)

    def submit(self, request: ClipRequest, asking: Asking = Asking()) -> Job:
        """Put a clip into the queue: row and workflow in one transaction.

        Raises what `plan` raises, and TooManyJobs.
        """
        planned = plan(request)
        job = f"clip_{secrets.token_hex(12)}"
        seed = Effective.fresh_seed() if request.seed is None else request.seed
        with self.database.transaction() as t:
            t.lock("submit")
            there = t.row(
                "select id from filmlet_job where owner = :owner and key = :key",
                owner=asking.owner, key=asking.key,
            )  # fmt: skip
            if there:
                return self.get(there["id"], asking.owner)
            rank = self._admit(t, asking)
            t.rows(
                "insert into filmlet_job"
                " (id, owner, key, class, rank, request, model, seed, work, created, queued)"
                " values (:id, :owner, :key, :class, :rank, :request, :model, :seed, :work,"
                " {now}, {now})",
                **{"class": asking.priority.value}, id=job, owner=asking.owner, key=asking.key,
                rank=rank, request=json.dumps(asdict(request)), model=planned.card.name,
                seed=seed, work=json.dumps(asdict(size_of(planned))),
            )  # fmt: skip
            self._enqueue(t, job, 1, rank)
        return self.get(job, asking.owner)

    def _admit(self, t: Transaction, asking: Asking) -> int:
        """The job's rank in the queue; raises TooManyJobs over a limit."""
        limits = self.settings
        counts = t.row(
            "select count(*) filter (where status = 'queued') as queued,"
            " count(*) filter (where owner = :owner and status in ('queued', 'running')) as active,"
            " count(*) filter (where owner = :owner and created > {now} - 60) as recent,"
            " min(case when owner = :owner and created > {now} - 60 then created end) as oldest,"
            " {now} as now from filmlet_job"
            " where status in ('queued', 'running') or created > {now} - 60",
            owner=asking.owner,
        )
        assert counts
        if counts["queued"] >= limits.max_queued:
            raise TooManyJobs(
                f"The queue is full ({limits.max_queued} jobs); try again in a minute.",
                retry_after_s=60,
            )
        if counts["active"] >= limits.max_active:
            raise TooManyJobs(
                f"You have {counts['active']} unfinished jobs and may have {limits.max_active}; "
                "try again when one is over.",
                retry_after_s=30,
            )
        if counts["recent"] >= limits.max_per_minute:
            wait = max(1.0, counts["oldest"] + 60 - counts["now"])
            raise TooManyJobs(
                f"You submitted {counts['recent']} jobs within a minute, the limit is "
                f"{limits.max_per_minute}; try again in {wait:.0f} s.",
                retry_after_s=wait,
            )
        # Among equals, who has fewer unfinished jobs goes first. 0 would be DBOS' "not given".
        active: int = min(counts["active"], CLASS_RANK - 1)
        return 1 + RANKS[asking.priority] * CLASS_RANK + active

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

    def get(self, job: str, owner: str | None = None) -> Job:
        """One job; `owner` None may see all. Raises UnknownJob."""
        with self.database.reading() as t:
            return self._jobs(t, [_row(t, job, owner)])[0]

    def jobs(
        self, owner: str | None = None, *, limit: int = 50, after: str | None = None
    ) -> list[Job]:
        """Jobs, the newest first; `after` the id that the last page ended with."""
        with self.database.reading() as t:
            since = _row(t, after, owner)["created"] if after else None
            rows = t.rows(
                "select * from filmlet_job where (cast(:owner as text) is null or owner = :owner)"
                " and (cast(:after as text) is null or (created, id) < (:since, :after))"
                " order by created desc, id desc limit :limit",
                owner=owner, after=after, since=since or 0.0, limit=limit,
            )  # fmt: skip
            return self._jobs(t, rows)

    def follow(self, job: str, owner: str | None = None) -> Iterator[Job]:
        """Yield the job whenever something about it changed, until it is over."""
        seen: tuple[object, ...] | None = None
        while True:
            now = self.get(job, owner)
            if (now.seq, now.status, now.position) != seen:
                seen = now.seq, now.status, now.position
                yield now
            if now.status.is_over:
                return
            time.sleep(FOLLOW_EVERY_S)

    def cancel(self, job: str, owner: str | None = None) -> Job:
        """A queued job never starts, a running one stops within a step; an ended one stays."""
        with self.database.transaction() as t:
            row = _row(t, job, owner)
            t.rows(
                "update filmlet_job set cancel = coalesce(cancel, {now}), seq = seq + 1,"
                " finished = case when status = 'queued' then {now} else finished end,"
                " idle_s = case when status = 'queued' then 0 else idle_s end,"
                " status = case when status = 'queued' then 'cancelled' else status end"
                " where id = :id and status in ('queued', 'running')",
                id=job,
            )
        if row["status"] == Status.QUEUED:
            self.database.client.cancel_workflow(f"{job}.{row['run']}")
        return self.get(job, owner)

    def retry(self, job: str, owner: str | None = None) -> Job:
        """Queue a failed or cancelled job again; it goes on from its last finished stage.

        Raises JobConflict, TooManyJobs.
        """
        with self.database.transaction() as t:
            t.lock("submit")
            row = _row(t, job, owner)
            if row["status"] not in (Status.FAILED, Status.CANCELLED):
                raise JobConflict(
                    f"{job} is {row['status']}; only a failed or cancelled job can be retried."
                )
            rank = self._admit(t, Asking(row["owner"], Priority(row["class"])))
            t.rows(
                "update filmlet_job set status = 'queued', run = run + 1, rank = :rank,"
                " cancel = null, attempt = 0, failure = null, failure_code = null, worker = null,"
                " finished = null, idle_s = null, seq = seq + 1, queued = {now} where id = :id",
                id=job, rank=rank,
            )  # fmt: skip
            self._enqueue(t, job, row["run"] + 1, rank)
        return self.get(job, owner)

    def delete(self, job: str, owner: str | None = None) -> None:
        """Remove a job that is over, with its clip. Raises JobConflict."""
        with self.database.transaction() as t:
            row = _row(t, job, owner)
            if row["status"] not in OVER:
                raise JobConflict(f"{job} is {row['status']}; cancel it first.")
            t.rows("delete from filmlet_job where id = :id", id=job)
        self.database.client.delete_workflows([f"{job}.{n + 1}" for n in range(row["run"])])
        self.storage.delete(job)

    def sweep(self) -> int:
        """Delete what is over and older than the settings allow, oldest first; how many went."""
        with self.database.reading() as t:
            rows = t.rows(
                "select id, bytes, finished < {now} - :age as old from filmlet_job"
                " where status in ('completed', 'failed', 'cancelled') order by finished",
                age=self.settings.keep_days * 86400,
            )  # fmt: skip
        taken, allowed = sum(row["bytes"] for row in rows), self.settings.keep_gb * 1e9
        gone = 0
        for row in rows:
            if row["old"] or taken > allowed:
                try:
                    self.delete(row["id"])
                except (UnknownJob, JobConflict):
                    continue  # another sweep was here, or its owner retries it
                taken -= row["bytes"]
                gone += 1
        return gone

    def _jobs(self, t: Transaction, rows: Sequence[Row]) -> list[Job]:
        outlook = _Outlook(t) if any(row["status"] not in OVER for row in rows) else None
        return [_job(row, outlook) for row in rows]

    def close(self) -> None:
        """Let go of the database."""
        self.database.close()


def size_of(planned: Plan) -> Size:
    """What the clip's cost depends on; read off the files, nothing is loaded."""
    files = (planned.folder / "transformer").glob("*.safetensors")
    return Size.of(planned, parameters=sum(file.stat().st_size for file in files) / 2)


def request_of(row: Row) -> ClipRequest:
    """The request of a row, its seed fixed: every attempt makes the same clip."""
    return replace(ClipRequest(**json.loads(row["request"])), seed=row["seed"])


def _row(t: Transaction, job: str, owner: str | None) -> Row:
    row = t.row("select * from filmlet_job where id = :id", id=job)
    if row is None or (owner is not None and row["owner"] != owner):
        raise UnknownJob(f"There is no job {job!r}; `filmlet jobs` lists yours.")
    return row


class _Outlook:
    """What is ahead of each unfinished job: position in the queue and time."""

    def __init__(self, t: Transaction) -> None:
        self.models: dict[str, CostModel] = {}
        self.t = t
        workers = t.rows("select id, device, speed, model from filmlet_worker where dead = 0")
        self.loaded = {str(w["model"]) for w in workers}
        self.device = str(workers[0]["device"]) if workers else "cpu"
        self.speed = float(workers[0]["speed"]) if workers else cost.probe()
        rows = t.rows(
            "select id, status, model, work, stage, done, total"
            " from filmlet_job where status in ('queued', 'running')"
            " order by case status when 'running' then 0 else 1 end, rank, queued, id"
        )
        self.positions: dict[str, int] = {}
        self.etas: dict[str, Estimate] = {}
        free = [Estimate(0, 0, 0)] * max(1, len(workers))
        for row in rows:
            start = min(free, key=lambda e: e.seconds)
            own = self._left(row)
            if row["status"] == Status.QUEUED:
                self.positions[row["id"]] = len(self.positions) + 1
                own = _after(_after(start, TAKE), own)
            free[free.index(start)] = own
            self.etas[row["id"]] = own

    def _left(self, row: Row) -> Estimate:
        """Seconds of work that a job still needs by itself."""
        model = self._model(row["model"])
        size = Size(**json.loads(row["work"]))
        stages = [s for s in Stage if s != Stage.LOAD or row["model"] not in self.loaded]
        if row["status"] == Status.QUEUED or row["stage"] not in stages:
            return model.estimate(size, stages)
        now = Stage(row["stage"])
        share = row["done"] / max(1, row["total"])
        later = [model.part(stage, size) for stage in stages[stages.index(now) + 1 :]]
        current = model.part(now, size)
        return cost.total([replace(current, seconds=current.seconds * (1 - share)), *later])

    def _model(self, name: str) -> CostModel:
        if name not in self.models:
            rows = self.t.rows(
                "select stage, units, seconds from filmlet_cost"
                " where model = :model and device = :device order by at desc limit 400",
                model=name, device=self.device,
            )  # fmt: skip
            samples = [Sample(Stage(r["stage"]), r["units"], r["seconds"]) for r in reversed(rows)]
            self.models[name] = CostModel(samples, self.speed)
        return self.models[name]


def _after(first: Estimate, then: Estimate) -> Estimate:
    return Estimate(first.seconds + then.seconds, first.low + then.low, first.high + then.high)


def _job(row: Row, outlook: _Outlook | None) -> Job:
    status, stage = Status(row["status"]), Stage(row["stage"]) if row["stage"] else None
    is_open = outlook is not None and not status.is_over
    failure = Failure(row["failure_code"], row["failure"]) if row["failure_code"] else None
    records: list[dict[str, Any]] = json.loads(row["stages"])
    return Job(
        id=row["id"],
        owner=row["owner"],
        status=status,
        priority=Priority(row["class"]),
        requested=ClipRequest(**json.loads(row["request"])).asked(),
        effective=json.loads(row["effective"]) if row["effective"] else None,
        stage=stage,
        done=row["done"],
        total=row["total"],
        progress=_progress(status, stage, row["done"] / max(1, row["total"])),
        preview=row["preview"],
        position=outlook.positions.get(row["id"]) if outlook and is_open else None,
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
        idle_s=row["idle_s"],
        seq=row["seq"],
    )


def _progress(status: Status, stage: Stage | None, share: float) -> float:
    """Between 0 and 1: it moves with the steps and never back."""
    if status == Status.COMPLETED:
        return 1.0
    if stage is None or status == Status.QUEUED:
        return 0.0
    before = sum(SHARES[s] for s in Stage if list(Stage).index(s) < list(Stage).index(stage))
    return round(before + SHARES[stage] * share, 4)
