"""The worker: takes jobs one at a time, keeps the model loaded, and is told at once to stop.

Two threads: DBOS runs a job's stages in one; the main one is the pulse, which reports progress,
hears of cancels, says that the worker lives, and hands the jobs of dead workers to the living.
"""

import fcntl
import json
import logging
import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dbos import DBOS, WorkflowSerializationFormat

from filmlet import stages
from filmlet.errors import Cancelled, DatabaseUnusable, FilmletError, WorkerTaken
from filmlet.events import Event, Finished, Preview, Progress, Stage
from filmlet.jobs import cost
from filmlet.jobs.cost import Size
from filmlet.jobs.database import Row
from filmlet.jobs.queue import APPLICATION_VERSION, QUEUE, WORKFLOW, Queue, request_of
from filmlet.media import save_still
from filmlet.plan import plan
from filmlet.settings import Settings

log = logging.getLogger("filmlet.worker")

ATTEMPTS = 3
PULSE_S = 0.2
LISTEN_S = 0.35  # between two questions for a cancel while nothing else is to be told
SWEEP_S = 60.0
POLL_S = 0.2
NEVER = 1_000_000  # DBOS' own limit of attempts; ours counts, and says why
KEPT = {
    Stage.ENCODE: ("embeddings.safetensors",),
    Stage.DENOISE: ("latents.safetensors",),
    Stage.DECODE: ("decoded.mp4",),
    Stage.MUX: ("clip.mp4",),
}


@dataclass(eq=False)
class Running:
    """The job in hand. `told` is what the pulse has reported of `latest`."""

    row: Row
    work: stages.Work
    latest: Progress | None = None
    preview: str | None = None
    told: tuple[Progress | None, str | None] = (None, None)
    told_at: float = 0.0
    begun: Progress | None = None  # of the stage in hand
    records: list[dict[str, object]] = field(default_factory=list)


class Worker:
    """One device's worker. `run` returns when it is told to stop or has lost its lease."""

    def __init__(self, settings: Settings) -> None:
        """Raises DatabaseUnusable, StorageUnusable."""
        self.settings = settings
        self.queue = Queue(settings)
        self.name = f"{settings.worker}:{settings.device or 'auto'}"
        self.token = secrets.token_hex(8)
        self.running: Running | None = None
        self.stop = threading.Event()
        self.lost = False
        self.heard = time.monotonic()  # when the database last answered

    def run(self) -> None:
        """Take jobs until told to stop. Raises WorkerTaken where the name is in use."""
        with self._only_one() as home:
            self._enter(home)
            self._launch()
            log.info("worker %s waits for jobs", self.name)
            try:
                self._pulse()
            finally:
                try:
                    self._leave()
                except FilmletError as error:
                    log.warning("%s", error)

    @contextmanager
    def _only_one(self) -> Iterator[str]:
        """A lock on this machine that a killed worker loses; yields the machine's own name."""
        home = self.settings.home
        home.mkdir(parents=True, exist_ok=True)
        name = self.name.replace("/", "_")
        with (home / f"worker-{name}.lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise WorkerTaken(
                    f"A worker {self.name} is already at work here; "
                    "set FILMLET_WORKER to another name for a second one."
                ) from None
            yield _machine(home)

    def _enter(self, home: str) -> None:
        """Take the name: it is free, its holder is silent, or was on this machine and is gone."""
        with self.queue.database.transaction() as t:
            taken = t.row(
                "insert into filmlet_worker (id, token, home, device, speed, beat)"
                " values (:id, :token, :home, :device, :speed, {now})"
                " on conflict (id) do update set token = excluded.token, home = excluded.home,"
                " device = excluded.device, speed = excluded.speed, beat = excluded.beat,"
                " dead = 0, model = ''"
                " where filmlet_worker.dead = 1 or filmlet_worker.home = excluded.home"
                " or filmlet_worker.beat < {now} - :lease returning id",
                id=self.name, token=self.token, home=home, device=self.settings.device or "cpu",
                speed=cost.probe(), lease=self.settings.lease_s,
            )  # fmt: skip
        if taken is None:
            raise WorkerTaken(
                f"A worker {self.name} is alive on another machine; "
                "set FILMLET_WORKER to a name of its own."
            )

    def _launch(self) -> None:
        """Start DBOS under our name: what a predecessor of it left unfinished is taken up again."""
        DBOS(
            config={
                "name": "filmlet",
                "system_database_url": self.queue.database.url,
                "executor_id": self.name,
                "application_version": APPLICATION_VERSION,
                "log_level": "CRITICAL",
            }
        )

        @DBOS.workflow(
            name=WORKFLOW,
            max_recovery_attempts=NEVER,
            serialization_type=WorkflowSerializationFormat.PORTABLE,
        )
        def make(job: str) -> None:
            try:
                self._take(job)
            except DatabaseUnusable as error:
                # What became of the job cannot be recorded: unfinished, it is taken up again.
                self.running = None
                self._lose(str(error))
                _wait_for_the_end()

        DBOS.launch()
        DBOS.register_queue(QUEUE, worker_concurrency=1, polling_interval_sec=POLL_S)

    # The job's thread

    def _take(self, job: str) -> None:
        """Make one job's clip, or record why not."""
        if self.stop.is_set():
            _wait_for_the_end()
        row = self._claim(job)
        if row is None:
            self._let_go(job)
            return
        if row["attempt"] > ATTEMPTS:
            self._fail(
                row, "worker_died", f"The worker died {ATTEMPTS} times while making this clip."
            )
            return
        try:
            self._film(row)
        except Cancelled:
            self._cancelled(row)
        except DatabaseUnusable:
            raise
        except FilmletError as error:
            self._fail(row, error.code, str(error))
        except Exception as error:  # the outermost line: whatever it was, the next job must run
            log.exception("%s", job)
            self._fail(row, "internal", f"{type(error).__name__}: {error}")
        finally:
            self.running = None

    def _claim(self, job: str) -> Row | None:
        with self.queue.database.transaction() as t:
            return t.row(
                "update filmlet_job set status = 'running', worker = :worker,"
                " attempt = attempt + 1, started = coalesce(started, {now}), beat = {now},"
                " seq = seq + 1 where id = :id and cancel is null"
                " and status in ('queued', 'running') returning *",
                id=job, worker=self.name,
            )  # fmt: skip

    def _let_go(self, job: str) -> None:
        """The job was deleted, or cancelled while it waited or its worker died."""
        with self.queue.database.transaction() as t:
            t.rows(
                "update filmlet_job set status = 'cancelled', finished = {now},"
                " idle_s = {now} - cancel, seq = seq + 1"
                " where id = :id and cancel is not null and status in ('queued', 'running')",
                id=job,
            )

    def _film(self, row: Row) -> None:
        folder = self.queue.storage.fetch(row["id"])
        planned = plan(request_of(row))
        earlier = json.loads(row["effective"])["dtype"] if row["effective"] else None
        work = stages.prepare(planned, self.settings, earlier)
        work.folder = folder
        running = Running(row, work, records=json.loads(row["stages"]))
        self.running = running
        self._note_effective(running)
        started = time.monotonic()
        for event in stages.film(work, folder / "clip.mp4", force=True):
            self._note(running, event)
            if work.cancelled.is_set():
                raise Cancelled("The clip was cancelled.")
        self._complete(running)
        log.info("%s completed in %.1f s", row["id"], time.monotonic() - started)

    def _note(self, running: Running, event: Event) -> None:
        job = running.row["id"]
        match event:
            case Progress():
                if running.begun is None or running.begun.stage != event.stage:
                    running.begun = event
                running.latest = event
            case Preview():
                assert running.work.folder
                before, running.preview = running.preview, f"preview-{event.step}.png"
                save_still(running.work.folder / running.preview, event.image)
                self.queue.storage.store(job, running.preview, "step.safetensors")
                if before:
                    (running.work.folder / before).unlink(missing_ok=True)
            case Finished():
                self.queue.storage.store(job, *KEPT.get(event.stage, ()))
                self._record(running, event)

    def _record(self, running: Running, event: Finished) -> None:
        """Add the stage to the job's record, and what it took to what is known of costs."""
        row = running.row
        running.records.append(
            {
                "stage": event.stage.value,
                "attempt": row["attempt"],
                "seconds": round(event.seconds, 4),
                "reused": event.reused,
            }
        )
        sample = None if event.reused else _sample(running, event)
        with self.queue.database.transaction() as t:
            t.rows(
                "update filmlet_job set stages = :stages, effective = :effective, seq = seq + 1"
                " where id = :id and worker = :worker and attempt = :attempt",
                stages=json.dumps(running.records),
                effective=json.dumps(running.work.effective.as_json()), **_mine(row),
            )  # fmt: skip
            if sample:
                units, seconds = sample
                t.rows(
                    "insert into filmlet_cost values"
                    " (:model, :device, :stage, :units, :seconds, {now})",
                    model=row["model"], device=self.settings.device or "cpu",
                    stage=event.stage.value, units=units, seconds=seconds,
                )  # fmt: skip
            t.rows(
                "update filmlet_worker set model = :model where id = :id",
                model=row["model"], id=self.name,
            )  # fmt: skip

    def _note_effective(self, running: Running) -> None:
        with self.queue.database.transaction() as t:
            t.rows(
                "update filmlet_job set effective = :effective, seq = seq + 1"
                " where id = :id and worker = :worker and attempt = :attempt",
                effective=json.dumps(running.work.effective.as_json()), **_mine(running.row),
            )  # fmt: skip

    def _complete(self, running: Running) -> None:
        job = running.row["id"]
        size = self.queue.storage.size(job)
        with self.queue.database.transaction() as t:
            t.rows(
                "update filmlet_job set status = 'completed', clip = 'clip.mp4', bytes = :bytes,"
                " effective = :effective, finished = {now}, seq = seq + 1"
                " where id = :id and worker = :worker and attempt = :attempt",
                bytes=size, effective=json.dumps(running.work.effective.as_json()),
                **_mine(running.row),
            )  # fmt: skip
        self.queue.storage.leave(job)

    def _fail(self, row: Row, code: str, message: str) -> None:
        log.info("%s failed: %s", row["id"], message)
        with self.queue.database.transaction() as t:
            t.rows(
                "update filmlet_job set status = 'failed', failure_code = :code,"
                " failure = :message, finished = {now}, seq = seq + 1"
                " where id = :id and worker = :worker and attempt = :attempt",
                code=code, message=message, **_mine(row),
            )  # fmt: skip

    def _cancelled(self, row: Row) -> None:
        """The job was cancelled; or the worker must stop, and another attempt goes on from here."""
        if self.stop.is_set():
            self.running = None
            _wait_for_the_end()
        log.info("%s cancelled", row["id"])
        with self.queue.database.transaction() as t:
            t.rows(
                "update filmlet_job set status = 'cancelled', finished = {now},"
                " idle_s = {now} - cancel, seq = seq + 1"
                " where id = :id and worker = :worker and attempt = :attempt",
                **_mine(row),
            )

    # The pulse

    def _pulse(self) -> None:
        """Report, listen, live, reap; until told to stop, or the lease is lost."""
        beat_every = min(5.0, self.settings.lease_s / 6)
        beaten = swept = 0.0
        while not self.stop.wait(PULSE_S):
            now = time.monotonic()
            try:
                if self.running:
                    self._report(self.running)
                if now - beaten >= beat_every:
                    self._beat()
                    self._reap()
                    beaten = now
                if now - swept >= SWEEP_S:
                    self.queue.sweep()
                    swept = now
                self.heard = time.monotonic()
            except DatabaseUnusable as error:
                log.warning("%s", error)
                if time.monotonic() - self.heard > self.settings.lease_s:
                    self._lose("the database has not answered for a whole lease")
            except FilmletError as error:
                log.warning("%s", error)

    def _report(self, running: Running) -> None:
        """Progress, sign of life and the wish to cancel in one statement."""
        latest, now = (running.latest, running.preview), time.monotonic()
        if latest == running.told and now - running.told_at < LISTEN_S:
            return
        progress = running.latest or Progress(Stage.LOAD, 0, 1)
        with self.queue.database.transaction() as t:
            mine = t.row(
                "update filmlet_job set stage = :stage, done = :done, total = :total,"
                " preview = :preview, seq = seq + :changed, beat = {now}"
                " where id = :id and worker = :worker and attempt = :attempt"
                " and status = 'running' returning cancel",
                stage=progress.stage.value, done=progress.done, total=progress.total,
                preview=running.preview, changed=int(latest != running.told),
                **_mine(running.row),
            )  # fmt: skip
        running.told, running.told_at = latest, now
        if self.running is running and (mine is None or mine["cancel"] is not None):
            running.work.cancelled.set()

    def _beat(self) -> None:
        with self.queue.database.transaction() as t:
            alive = t.row(
                "update filmlet_worker set beat = {now}"
                " where id = :id and token = :token and dead = 0 returning id",
                id=self.name, token=self.token,
            )  # fmt: skip
        if alive is None:
            self._lose("its lease has run out and its jobs went to others")

    def _reap(self) -> None:
        """Declare silent workers dead; what they had in hand goes back into the queue."""
        with self.queue.database.transaction() as t:
            t.rows(
                "update filmlet_worker set dead = 1 where dead = 0 and beat < {now} - :lease",
                lease=self.settings.lease_s,
            )
            dead = t.rows(
                "select id, beat < {now} - 86400 as old from filmlet_worker where dead = 1"
            )
        client = self.queue.database.client
        for row in dead:
            # Asked again at every beat: a database that restarts meanwhile must strand nothing.
            left = client.list_workflows(status="PENDING", executor_id=row["id"], load_input=False)
            if left:
                log.warning("worker %s is gone; its job goes on elsewhere", row["id"])
                client.resume_workflows([w.workflow_id for w in left], queue_name=QUEUE)
            elif row["old"]:
                with self.queue.database.transaction() as t:
                    t.rows("delete from filmlet_worker where id = :id and dead = 1", id=row["id"])

    def _lose(self, why: str) -> None:
        log.error("worker %s stops: %s", self.name, why)
        self.lost = True
        self.stop.set()

    def _leave(self) -> None:
        """Stop what is in hand at its next step, and tell the others."""
        running = self.running
        if running:
            running.work.cancelled.set()
            for _ in range(100):
                if self.running is None:
                    break
                time.sleep(0.1)
        if self.lost:
            return
        with self.queue.database.transaction() as t:
            t.rows(
                "update filmlet_worker set dead = 1 where id = :id and token = :token",
                id=self.name, token=self.token,
            )  # fmt: skip
            if running:
                t.rows(
                    "update filmlet_job set attempt = attempt - 1"
                    " where id = :id and worker = :worker and attempt = :attempt"
                    " and status = 'running'",
                    **_mine(running.row),
                )


def run(settings: Settings) -> int:
    """Work until SIGINT or SIGTERM; the exit status: 0, or 3 where the lease was lost."""
    worker = Worker(settings)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: worker.stop.set())
    worker.run()
    logging.shutdown()
    # DBOS must not see the job in hand end: unfinished, it goes on in another process.
    os._exit(3 if worker.lost else 0)


def _sample(running: Running, event: Finished) -> tuple[float, float] | None:
    """Units and seconds of a stage for the cost model; a model that was loaded costs nothing."""
    size, begun = Size(**json.loads(running.row["work"])), running.begun
    if event.stage == Stage.LOAD and event.seconds < 0.05:
        return None
    seconds = event.seconds
    if event.stage == Stage.DENOISE:
        done = begun.done if begun and begun.stage == Stage.DENOISE else 0
        steps = len(running.work.effective.sigmas)
        seconds /= size.calls * (steps - done) / steps
    return size.units(event.stage), seconds


def _mine(row: Row) -> dict[str, object]:
    """What a statement must name to change a job only while it is ours."""
    return {"id": row["id"], "worker": row["worker"], "attempt": row["attempt"]}


def _machine(home: Path) -> str:
    """A name for this home folder, made once: two machines may share a host name."""
    file = home / "machine"
    if not file.exists():
        part = file.with_name(f"machine.{os.getpid()}")
        part.write_text(secrets.token_hex(8))
        part.rename(file)
    return file.read_text()


def _wait_for_the_end() -> None:
    """Leave a workflow unfinished: the process ends while it stands here."""
    while True:
        time.sleep(1)
