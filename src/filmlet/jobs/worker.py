"""The worker: takes jobs one at a time, keeps the model loaded, and is told at once to stop.

Two threads: DBOS runs a job's stages in one; the main one is the pulse, which reports progress,
hears of cancels, says that the worker lives, and hands the jobs of dead workers to the living.
"""

import fcntl
import json
import logging
import os
import resource
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, TypeVar, cast

from dbos import DBOS, WorkflowSerializationFormat

from filmlet.core.events import Event, Preview, Progress, Stage, StageFinished
from filmlet.engine.placement import trim_heap
from filmlet.engine.selection import device_info
from filmlet.errors import (
    Cancelled,
    DatabaseGone,
    DatabaseUnusable,
    FilmletError,
    JobLost,
    StorageUnusable,
    WorkerNameInUse,
)
from filmlet.jobs import cost_model, webhooks
from filmlet.jobs.claimed_job import ClaimedJob
from filmlet.jobs.database import Row
from filmlet.jobs.job import PREVIEW
from filmlet.jobs.old_rows import load_json
from filmlet.jobs.queue import APPLICATION_VERSION, QUEUE, WORKFLOW, Queue
from filmlet.jobs.retention import STAGE_FILES, useful
from filmlet.jobs.serialization import request_from_row
from filmlet.jobs.storage import GROWING
from filmlet.media import save_image, stopping_decoders_on, to_output_error
from filmlet.pipeline import stages
from filmlet.pipeline.denoise import completed_window_name
from filmlet.pipeline.plan import make_plan
from filmlet.pipeline.prepare import GenerationState, prepare
from filmlet.settings import Settings

Value = TypeVar("Value")
log = logging.getLogger("filmlet.worker")

ATTEMPTS = 3
HEARTBEAT_POLL_S = 0.2
CLEANUP_INTERVAL_S = 60.0
SWEEP_PAUSE_S = 5.0  # at least, between two sweeps
POLL_S = 0.2
UNLIMITED_ATTEMPTS = 1_000_000  # DBOS' own limit of attempts; ours counts, and says why
ClipWriter = Callable[[GenerationState, Path, bool], Generator[Event]]
LOST = 3  # the exit status after which another process should begin


class Worker:
    """One device's worker. `run_worker` returns when it is told to stop or has lost its lease."""

    def __init__(
        self, settings: Settings, film: ClipWriter | None = None, queue: Queue | None = None
    ) -> None:
        """film: in the place of stages.film.

        Raises DatabaseUnusable, StorageUnusable, and InvalidRequest for a device that is not.
        """
        self.settings = settings
        self.write_clip: ClipWriter = film or stages.write_clip
        self.queue = queue or Queue(settings)
        self.speed: float | None = None  # operations a second, None measures
        self.name = f"{settings.worker}:{settings.device or 'auto'}"
        self.token = secrets.token_hex(8)
        self.current: ClaimedJob | None = None
        self.machine = device_info(settings.device)
        self.stop = threading.Event()
        self.drain = threading.Event()  # finish the job in hand, take no other
        self.lease_lost = False
        self.last_db_contact = time.monotonic()  # when the database last answered
        self.turned = time.monotonic()  # when the pulse last began a turn
        self.sweeps = threading.Event()  # a job has ended: its files count now

    def run(self) -> None:
        """Take jobs until told to stop. Raises WorkerNameInUse where the name is in use."""
        with self.exclusive_lock() as home:
            self.register(home)
            self._launch()
            log.info("worker %s waits for jobs", self.name)
            self.turned = time.monotonic()
            for run in (self._watch, self.keep_swept):
                threading.Thread(target=run, name=run.__name__, daemon=True).start()
            try:
                self._heartbeat_loop()
            except Exception as error:  # whatever it was, jobs must not wait for this process
                log.exception("the pulse of worker %s", self.name)
                self._give_up_lease(f"{type(error).__name__}: {error}")
            finally:
                try:
                    self.unregister()
                except FilmletError as error:
                    log.warning("%s", error)

    @contextmanager
    def exclusive_lock(self) -> Iterator[str]:
        """A lock on this machine that a killed worker loses; yields the machine's own name."""
        home = self.settings.home
        name = self.name.replace("/", "_")
        with _opened(home / f"worker-{name}.lock") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise WorkerNameInUse(
                    f"A worker {self.name} is already at work here; "
                    "set FILMLET_WORKER to another name for a second one."
                ) from None
            yield _machine_id(home)

    def register(self, home: str) -> None:
        """Take the name: it is free, its holder is silent, or was on this machine and is gone."""
        with self.queue.database.transaction() as t:
            taken = t.row(
                "insert into filmlet_worker (id, token, home, device, speed, machine, beat)"
                " values (:id, :token, :home, :device, :speed, :machine, {now})"
                " on conflict (id) do update set token = excluded.token, home = excluded.home,"
                " device = excluded.device, speed = excluded.speed, machine = excluded.machine,"
                " beat = excluded.beat, dead = 0, model = ''"
                " where filmlet_worker.dead = 1 or filmlet_worker.home = excluded.home"
                " or filmlet_worker.beat < {now} - :lease returning id",
                id=self.name,
                token=self.token,
                home=home,
                device=self.machine.device,
                speed=self.speed or cost_model.measure_flops(),
                machine=json.dumps(asdict(self.machine)),
                lease=self.settings.lease_s,
            )
        if taken is None:
            raise WorkerNameInUse(
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
            max_recovery_attempts=UNLIMITED_ATTEMPTS,
            serialization_type=WorkflowSerializationFormat.PORTABLE,
        )
        def run_claimed_job(job: str) -> None:
            try:
                self.run_job(job, run_of(DBOS.workflow_id))
            except Exception as error:
                # What became of the job cannot be recorded: unfinished, it is taken up again.
                if not isinstance(error, FilmletError):
                    log.exception("%s", job, extra={"job": job})
                self.current = None
                self._give_up_lease(str(error))
                _block_forever()

        @DBOS.workflow(
            name=webhooks.WORKFLOW,
            max_recovery_attempts=UNLIMITED_ATTEMPTS,
            serialization_type=WorkflowSerializationFormat.PORTABLE,
        )
        def deliver_webhook(job: str, attempt: int) -> None:
            webhooks.deliver(self.queue.database, self.settings, job, attempt)

        DBOS.launch()
        DBOS.register_queue(QUEUE, worker_concurrency=1, polling_interval_sec=POLL_S)
        DBOS.register_queue(webhooks.QUEUE, worker_concurrency=8, polling_interval_sec=1.0)

    # The job's thread

    def run_job(self, job: str, run: int | None = None) -> None:
        """Make one job's clip, or record why not. run: of the workflow, None is any."""
        if self.stop.is_set() or self.drain.is_set():
            _block_forever()
        claimed_job = ClaimedJob.claim(self.queue.database, self.settings, job, self.name, run)
        if claimed_job is None:
            return
        if claimed_job.attempt > ATTEMPTS:
            self._fail(
                claimed_job, "worker_died", f"The worker died {ATTEMPTS} times while making it."
            )
            return
        try:
            with stopping_decoders_on(claimed_job.stopped):
                self._generate(claimed_job)
        except Cancelled:
            self._finish_cancelled(claimed_job)
        except JobLost as error:
            log.warning("%s", error, extra={"job": job})
        except DatabaseUnusable:
            raise
        except FilmletError as error:
            log.info("%s failed: %s", job, error, extra={"job": job})
            self._fail(claimed_job, error.code, str(error))
        except Exception as error:  # the outermost line: whatever it was, the next job must run
            log.exception("%s", job, extra={"job": job})
            self._fail(claimed_job, "internal", f"{type(error).__name__}: {error}")
        finally:
            self.current = None
            self.sweeps.set()

    def _fail(self, held: ClaimedJob, code: str, message: str) -> None:
        held.fail(code, message, self._size(held))

    def _size(self, held: ClaimedJob) -> int:
        """Bytes that are kept of a job; 0 where the storage does not answer, until a sweep asks."""
        try:
            return self.queue.storage.size(held.id)
        except StorageUnusable as error:
            log.warning("%s", error, extra={"job": held.id})
            return 0

    def _generate(self, claimed_job: ClaimedJob) -> None:
        self.current = claimed_job
        self.queue.storage.clear(claimed_job.id)
        folder = self.queue.storage.fetch(claimed_job.id)
        row = self._load_draft_results(claimed_job) or claimed_job.row
        earlier = load_json(row["effective"]) if row["effective"] else {}
        started = time.monotonic()
        planned, dtype = make_plan(request_from_row(claimed_job.row), folder), earlier.get("dtype")
        preparing = prepare(planned, self.settings, dtype, earlier.get("engine"))
        work = self._consume(claimed_job, folder, preparing)
        work.folder, work.cancelled, work.confirm = folder, claimed_job.stopped, claimed_job.confirm
        claimed_job.work = work
        claimed_job.save_effective()
        self._consume(claimed_job, folder, self.write_clip(work, folder / "clip.mp4", True))
        claimed_job.confirm()
        self.queue.storage.trim(claimed_job.id, useful(claimed_job.row) | {GROWING})
        if not claimed_job.complete(self._size(claimed_job)):
            raise JobLost(f"{claimed_job.id} was given to another worker.")
        self.queue.storage.clear_local(claimed_job.id)
        seconds = time.monotonic() - started
        log.info("%s completed in %.1f s", claimed_job.id, seconds, extra={"job": claimed_job.id})

    def _consume(
        self, claimed_job: ClaimedJob, folder: Path, events: Generator[Event, None, Value]
    ) -> Value:
        """Note what happens; what it comes to. Raises Cancelled."""
        with closing(events):
            while True:
                try:
                    event = next(events)
                except StopIteration as end:
                    return cast(Value, end.value)
                self._handle_event(claimed_job, folder, event)
                if claimed_job.stopped.is_set():
                    raise Cancelled("The clip was cancelled.")

    def _load_draft_results(self, claimed_job: ClaimedJob) -> Row | None:
        """The draft that this job finishes; its results are brought into the job's folder.

        Where they are gone, they are made anew, to the same bytes.
        """
        if claimed_job.attempt > 1 or not claimed_job.row["source"]:
            return None
        with self.queue.database.read() as t:
            row = t.row("select * from filmlet_job where id = :id", id=claimed_job.row["source"])
        if not row or not row["effective"]:
            return None
        draft, request = request_from_row(row), request_from_row(claimed_job.row)
        if not draft.draft or replace(draft, draft=False) != request:
            return None
        names = (*STAGE_FILES[Stage.ENCODE], *STAGE_FILES[Stage.DENOISE])
        self.queue.storage.copy_to_local(row["id"], claimed_job.id, *names)
        self.queue.storage.store(claimed_job.id, *names)
        return row

    def _handle_event(self, claimed_job: ClaimedJob, folder: Path, event: Event) -> None:
        """Remember an event, and keep what is there now. Raises JobLost."""
        claimed_job.confirm()
        match event:
            case Progress():
                claimed_job.update_progress(event)
                if event.stage == Stage.DECODE:
                    self.queue.storage.upload_new_bytes(claimed_job.id)
                windows = len(claimed_job.work.effective.windows) if claimed_job.work else 1
                if window := completed_window_name(event, windows):
                    self.queue.storage.store(claimed_job.id, f"{window}.safetensors")
            case Preview():
                save_image(folder / PREVIEW, event.image)
                self.queue.storage.store(
                    claimed_job.id, PREVIEW, "step.safetensors", "refine-step.safetensors"
                )
                claimed_job.previews += 1
            case StageFinished():
                if event.stage == Stage.DECODE:
                    self.queue.storage.upload_new_bytes(claimed_job.id)
                self.queue.storage.store(claimed_job.id, *STAGE_FILES.get(event.stage, ()))
                claimed_job.save_stage(event)

    def _finish_cancelled(self, claimed_job: ClaimedJob) -> None:
        """The job was cancelled; or the worker must stop, and another attempt goes on from here."""
        if self.stop.is_set():
            self.current = None
            _block_forever()
        if claimed_job.mark_cancelled(self._size(claimed_job)):
            log.info("%s cancelled", claimed_job.id, extra={"job": claimed_job.id})

    # The pulse

    def _heartbeat_loop(self) -> None:
        """Report, listen, live, reap; until told to stop, or the lease is lost."""
        beat_every = min(5.0, self.settings.lease_s / 6)
        beaten = 0.0
        while not self.stop.wait(HEARTBEAT_POLL_S):
            if self.drain.is_set() and not self.current:
                return
            now = self.turned = time.monotonic()
            try:
                if held := self.current:
                    held.report_progress()
                if now - beaten >= beat_every:
                    self.heartbeat()
                    self._requeue_dead_workers()
                    beaten = now
                self.last_db_contact = time.monotonic()
            except DatabaseGone as error:
                self._give_up_lease(str(error))
            except DatabaseUnusable as error:
                log.warning("%s", error)
                if time.monotonic() - self.last_db_contact > self.settings.lease_s:
                    self._give_up_lease("the database has not answered for a whole lease")
            except FilmletError as error:
                log.warning("%s", error)

    def heartbeat(self) -> None:
        with self.queue.database.transaction() as t:
            alive = t.row(
                "update filmlet_worker set beat = {now}, peak_bytes = :peak"
                " where id = :id and token = :token and dead = 0 returning id",
                id=self.name, token=self.token, peak=_peak_bytes(),
            )  # fmt: skip
        if alive is None:
            self._give_up_lease("its lease has run out and its jobs went to others")

    def _requeue_dead_workers(self) -> None:
        """Declare silent workers dead; what they had in hand goes back into the queue."""
        with self.queue.database.transaction() as t:
            t.rows(
                "update filmlet_worker set dead = 1 where dead = 0 and beat < {now} - :lease",
                lease=self.settings.lease_s,
            )
            dead = t.rows(
                "select id, beat < {now} - 86400 as old from filmlet_worker where dead = 1"
            )
        database = self.queue.database
        for row in dead:
            # Asked again at every beat: a database that restarts meanwhile must strand nothing.
            pending = database.pending_workflows(row["id"])
            if pending:
                log.warning("worker %s is gone; its job goes on elsewhere", row["id"])
                for name in (QUEUE, webhooks.QUEUE):
                    workflow_ids = [w.workflow_id for w in pending if w.queue_name == name]
                    database.resume_workflows(workflow_ids, name)
            elif row["old"]:
                with database.transaction() as t:
                    t.rows("delete from filmlet_worker where id = :id and dead = 1", id=row["id"])

    def _watch(self) -> None:
        """End the process where the pulse stands still: others have its job by now."""
        while not self.stop.wait(HEARTBEAT_POLL_S):
            if time.monotonic() - self.turned > 2 * self.settings.lease_s:
                log.error("worker %s stops: its pulse stood still for two leases", self.name)
                os._exit(LOST)

    def keep_swept(self) -> None:
        """Delete what is too much, once a minute and when a job has ended: it may take a while."""
        while not self.stop.is_set():
            self.sweeps.clear()
            trim_heap()
            try:
                self.queue.delete_expired()
            except FilmletError as error:
                log.warning("%s", error)
            except Exception:  # this thread is the last one that may end
                log.exception("the sweep of worker %s", self.name)
            self.stop.wait(SWEEP_PAUSE_S)
            self.sweeps.wait(CLEANUP_INTERVAL_S)

    def _give_up_lease(self, why: str) -> None:
        log.error("worker %s stops: %s", self.name, why)
        self.lease_lost = True
        self.stop.set()

    def unregister(self) -> None:
        """Stop what is in hand at its next step, and tell the others."""
        claimed_job = self.current
        if claimed_job:
            claimed_job.stop()
            for _ in range(100):
                if self.current is None:
                    break
                time.sleep(0.1)
        if self.lease_lost:
            return
        with self.queue.database.transaction() as t:
            t.rows(
                "update filmlet_worker set dead = 1 where id = :id and token = :token",
                id=self.name, token=self.token,
            )  # fmt: skip
            if claimed_job:
                claimed_job.release(t)


def run_worker(settings: Settings, *, finishes: bool = False, supervised: bool = False) -> int:
    """Work until SIGINT or SIGTERM; the exit status: 0, or 3 where the lease was lost.

    finishes: the first signal lets the job in hand end, the second does not. supervised: stop as
    well when stdin closes, for then whoever started this is gone.
    """
    worker = Worker(settings)
    if supervised:
        threading.Thread(target=_exit_with_parent, args=(worker,), daemon=True).start()

    def handle_signal(*_: object) -> None:
        is_second = worker.drain.is_set()
        (worker.stop if is_second or not finishes else worker.drain).set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle_signal)
    try:
        worker.run()
    except FilmletError:
        raise  # before it had begun: nothing runs yet
    except BaseException:
        log.exception("worker %s", worker.name)
        worker.lease_lost = True
    logging.shutdown()
    # DBOS must not see the job in hand end: unfinished, it goes on in another process.
    os._exit(LOST if worker.lease_lost else 0)


def run_of(workflow: str | None) -> int | None:
    """The run of the job whose workflow it is: `JOB.RUN`."""
    _, _, run = (workflow or "").rpartition(".")
    return int(run) if run.isdecimal() else None


def _peak_bytes() -> int:
    """The most memory that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _exit_with_parent(worker: Worker) -> None:
    # Not through sys.stdin: an interpreter that ends meanwhile would abort over its lock.
    while os.read(0, 4096):
        pass
    worker.stop.set()


@contextmanager
def _opened(lock: Path) -> Iterator[IO[str]]:
    """A file of the home folder. Raises OutputUnwritable where that may not be written."""
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("a+")
    except OSError as error:
        raise to_output_error(error, lock) from error
    with file:
        yield file


def _machine_id(home: Path) -> str:
    """A name for this home folder, made once: two machines may share a host name.

    Raises OutputUnwritable.
    """
    file = home / "machine"
    try:
        if not file.exists():
            part = file.with_name(f"machine.{os.getpid()}")
            part.write_text(secrets.token_hex(8))
            part.rename(file)
        return file.read_text()
    except OSError as error:
        raise to_output_error(error, file) from error


def _block_forever() -> None:
    """Leave a workflow unfinished: the process ends while it stands here."""
    while True:
        time.sleep(1)
