"""A job claimed by a worker, and every statement that the worker makes about it.

Each statement names worker and attempt: a worker that has lost the job changes nothing.
"""

import json
import threading
import time
from dataclasses import dataclass, field
from typing import Self

from filmlet.core.effective import EffectiveSettings
from filmlet.core.events import Progress, Stage, StageFinished
from filmlet.errors import JobLost
from filmlet.jobs.cost_model import WorkloadSize
from filmlet.jobs.database import Database, Row, Transaction, count_event
from filmlet.jobs.job import Status
from filmlet.jobs.webhooks import enqueue_webhook
from filmlet.settings import Settings

# Claims of one job; the next one fails it with `worker_died`. Only a worker that dies or loses its
# lease uses one up: an error of the clip fails the job at once, a worker that is told to stop takes
# its claim back (`release`), and a user's retry begins again at none.
MAX_ATTEMPTS = 3
CONFIRMED_S = 1.0  # after a report; no lease is shorter
CANCEL_POLL_S = 0.35  # between two reports without progress


@dataclass(eq=False)
class ClaimedJob:
    """One job in hand. `last_report` is what was last reported of `latest`; `effective` is there
    once known.
    """

    database: Database
    settings: Settings
    row: Row
    effective: EffectiveSettings | None = None
    stopped: threading.Event = field(default_factory=threading.Event)
    latest: Progress | None = None
    previews: int = 0  # so many were made; each takes the place of the one before
    last_report: tuple[Progress | None, int] = (None, 0)
    last_report_at: float = 0.0
    confirmed_at: float = field(default_factory=time.monotonic)  # that the job was still ours
    stage_start: Progress | None = None  # of the stage in hand
    records: list[dict[str, object]] = field(default_factory=list)

    @classmethod
    def claim(
        cls, database: Database, settings: Settings, job: str, worker: str, run: int | None = None
    ) -> Self | None:
        """Start the next attempt; return None if the job was deleted or cancelled meanwhile.

        run: of the workflow that claims it, None is any. A job that was moved or retried has a
        new workflow: one that was taken out of the queue just before must not make it as well.
        """
        with database.transaction() as t:
            row = t.row(
                "update filmlet_job set status = 'running', worker = :worker,"
                " attempt = attempt + 1, started = coalesce(started, {now}), beat = {now},"
                " seq = seq + 1 where id = :id and run = coalesce(:run, run) and cancel is null"
                " and status in ('queued', 'running') returning *",
                id=job, worker=worker, run=run,
            )  # fmt: skip
            if row is None:
                gone = t.row(
                    "update filmlet_job set status = 'cancelled', finished = {now},"
                    " idle_s = {now} - cancel, seq = seq + 1"
                    " where id = :id and run = coalesce(:run, run)"
                    " and cancel is not null and status in ('queued', 'running') returning id",
                    id=job, run=run,
                )  # fmt: skip
                if gone:
                    count_event(t, "jobs", Status.CANCELLED)
                    enqueue_webhook(t, database, settings, job)
        return cls(database, settings, row, records=json.loads(row["stages"])) if row else None

    @property
    def id(self) -> str:
        return str(self.row["id"])

    @property
    def attempt(self) -> int:
        return int(self.row["attempt"])

    def update_progress(self, progress: Progress) -> None:
        """Set the progress that `report_progress` writes next."""
        if self.stage_start is None or self.stage_start.stage != progress.stage:
            self.stage_start = progress
        self.latest = progress

    def stop(self) -> None:
        """Stop the work, inside a model call if need be."""
        self.stopped.set()

    def report_progress(self) -> None:
        """Write progress and heartbeat and read a cancel, in one statement."""
        latest, now = (self.latest, self.previews), time.monotonic()
        if latest == self.last_report and now - self.last_report_at < CANCEL_POLL_S:
            return
        progress = self.latest or Progress(Stage.LOAD, 0, 1)
        with self.database.transaction() as t:
            row = t.row(
                "update filmlet_job set stage = :stage, done = :done, total = :total,"
                " preview = :preview, seq = seq + :changed, beat = {now}"
                " where id = :id and worker = :worker and attempt = :attempt and run = :run"
                " and status = 'running' returning cancel",
                stage=progress.stage.value, done=progress.done, total=progress.total,
                preview=str(self.previews) if self.previews else None,
                changed=int(latest != self.last_report), **self._where_owned,
            )  # fmt: skip
        self.last_report, self.last_report_at = latest, now
        if row is None or row["cancel"] is not None:
            self.stop()
        if row:
            self.confirmed_at = now

    def confirm(self) -> None:
        """Check that the job is still this worker's, before a file gets its name. Raises JobLost.

        A process that was suspended for longer than its lease resumes at any line.
        """
        if time.monotonic() - self.confirmed_at < CONFIRMED_S:
            return
        now = time.monotonic()
        with self.database.read() as t:
            row = t.row(
                "select id from filmlet_job where id = :id and worker = :worker"
                " and attempt = :attempt and run = :run and status = 'running'",
                **self._where_owned,
            )
        if row is None:
            self.stop()
            raise JobLost(f"{self.id} was given to another worker or deleted.")
        self.confirmed_at = now

    def save_effective(self, effective: EffectiveSettings) -> None:
        """Save the effective settings."""
        self.effective = effective
        with self.database.transaction() as t:
            t.rows(
                "update filmlet_job set effective = :effective, seq = seq + 1"
                " where id = :id and worker = :worker and attempt = :attempt and run = :run",
                effective=self._effective_json, **self._where_owned,
            )  # fmt: skip

    def save_stage(self, event: StageFinished) -> None:
        """Save a finished stage, and its seconds as a sample for the cost model."""
        self.records.append(
            {
                "stage": event.stage.value,
                "attempt": self.attempt,
                "seconds": round(event.seconds, 4),
                "reused": event.reused,
            }
        )
        sample = None if event.reused else self._cost_sample(event)
        with self.database.transaction() as t:
            t.rows(
                "update filmlet_job set stages = :stages,"
                " effective = coalesce(:effective, effective), seq = seq + 1"
                " where id = :id and worker = :worker and attempt = :attempt and run = :run",
                stages=json.dumps(self.records),
                effective=self._effective_json,
                **self._where_owned,
            )
            if not event.reused:
                count_event(t, "stage", event.stage.value, event.seconds)
            if sample:
                units, seconds = sample
                t.rows(
                    "insert into filmlet_cost values"
                    " (:model, :device, :stage, :units, :seconds, {now})",
                    model=self.row["model"], device=self._device_name,
                    stage=event.stage.value, units=units, seconds=seconds,
                )  # fmt: skip
            t.rows(
                "update filmlet_worker set model = :model where id = :id",
                model=self.row["model"], id=self.row["worker"],
            )  # fmt: skip

    def complete(self, size: int) -> bool:
        """Mark the job as completed; return whether it was still this worker's.

        size: bytes of the job's files.
        """
        with self.database.transaction() as t:
            ended = t.row(
                "update filmlet_job set status = 'completed', clip = 'clip.mp4', bytes = :bytes,"
                " stage = 'mux', done = 1, total = 1,"
                " effective = :effective, finished = {now}, seq = seq + 1"
                " where id = :id and worker = :worker and attempt = :attempt and run = :run"
                " and status = 'running' returning started - queued as waited",
                bytes=size, effective=self._effective_json, **self._where_owned,
            )  # fmt: skip
            if ended:
                count_event(t, "jobs", Status.COMPLETED)
                count_event(t, "wait", "", max(0.0, ended["waited"]))
                enqueue_webhook(t, self.database, self.settings, self.id)
        return ended is not None

    def fail(self, code: str, message: str, size: int) -> bool:
        """Mark the job as failed; return whether it was still this worker's.

        size: bytes of the job's files.
        """
        with self.database.transaction() as t:
            ended = t.row(
                "update filmlet_job set status = 'failed', failure_code = :code,"
                " failure = :message, bytes = :bytes, finished = {now}, seq = seq + 1"
                " where id = :id and worker = :worker and attempt = :attempt and run = :run"
                " and status = 'running' returning id",
                code=code, message=message, bytes=size, **self._where_owned,
            )  # fmt: skip
            if ended:
                count_event(t, "jobs", Status.FAILED)
                count_event(t, "failure", code)
                enqueue_webhook(t, self.database, self.settings, self.id)
        return ended is not None

    def mark_cancelled(self, size: int) -> bool:
        """Mark the job as cancelled, the worker being free; return whether it was still its job.

        size: bytes of the job's files.
        """
        with self.database.transaction() as t:
            ended = t.row(
                "update filmlet_job set status = 'cancelled', bytes = :bytes, finished = {now},"
                " idle_s = {now} - cancel, seq = seq + 1"
                " where id = :id and worker = :worker and attempt = :attempt and run = :run"
                " and status = 'running' and cancel is not null returning idle_s",
                bytes=size, **self._where_owned,
            )  # fmt: skip
            if ended:
                count_event(t, "jobs", Status.CANCELLED)
                count_event(t, "cancel", "", ended["idle_s"])
                enqueue_webhook(t, self.database, self.settings, self.id)
        return ended is not None

    def release(self, t: Transaction) -> None:
        """Give the job back to the queue, and take back the attempt: the worker was told to stop.

        One that is to be cancelled stays: `mark_cancelled` ends it.
        """
        t.rows(
            "update filmlet_job set attempt = attempt - 1, status = 'queued', worker = null,"
            " seq = seq + 1"
            " where id = :id and worker = :worker and attempt = :attempt and run = :run"
            " and status = 'running' and cancel is null",
            **self._where_owned,
        )

    @property
    def _where_owned(self) -> dict[str, object]:
        return {
            "id": self.id, "worker": self.row["worker"], "attempt": self.attempt,
            "run": self.row["run"],
        }  # fmt: skip

    @property
    def _device_name(self) -> str:
        assert self.effective
        return self.effective.device

    @property
    def _effective_json(self) -> str | None:
        return json.dumps(self.effective.as_json()) if self.effective else None

    def _cost_sample(self, event: StageFinished) -> tuple[float, float] | None:
        """Return units and seconds of a stage for the cost model; None if it says nothing."""
        size = WorkloadSize(**json.loads(self.row["work"]))
        if event.stage == Stage.FETCH or (event.stage == Stage.LOAD and event.seconds < 0.05):
            return None
        seconds = event.seconds
        if event.stage in (Stage.DENOISE, Stage.REFINE):
            begun = self.stage_start
            remaining = (
                1 - begun.done / begun.total if begun and begun.stage == event.stage else 1.0
            )
            if not remaining:  # every window was there
                return None
            seconds /= size.calls_of(event.stage) * remaining
        return size.units(event.stage), seconds
