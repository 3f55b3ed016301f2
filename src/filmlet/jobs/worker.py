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

from filmlet.core.events import Event, Finished, Preview, Progress, Stage
from filmlet.engine.placement import trim_heap
from filmlet.engine.selection import machine
from filmlet.errors import (
    Cancelled,
    DatabaseGone,
    DatabaseUnusable,
    FilmletError,
    JobLost,
    StorageUnusable,
    WorkerTaken,
)
from filmlet.jobs import cost_model, webhooks
from filmlet.jobs.claimed_job import Held
from filmlet.jobs.database import Row
from filmlet.jobs.job import PREVIEW
from filmlet.jobs.queue import APPLICATION_VERSION, QUEUE, WORKFLOW, Queue
from filmlet.jobs.retention import KEPT, useful
from filmlet.jobs.serialization import request_of
from filmlet.jobs.storage import GROWING
from filmlet.media import explain, save_still, stopping_decoders_on
from filmlet.pipeline import stages
from filmlet.pipeline.denoise import last_window
from filmlet.pipeline.plan import plan
from filmlet.pipeline.prepare import Work, prepare
from filmlet.settings import Settings

Value = TypeVar("Value")
log = logging.getLogger("filmlet.worker")

ATTEMPTS = 3
PULSE_S = 0.2
SWEEP_S = 60.0
SWEEP_PAUSE_S = 5.0  # at least, between two sweeps
POLL_S = 0.2
NEVER = 1_000_000  # DBOS' own limit of attempts; ours counts, and says why
Film = Callable[[Work, Path, bool], Generator[Event]]
LOST = 3  # the exit status after which another process should begin


class Worker:
    """One device's worker. `run` returns when it is told to stop or has lost its lease."""

    def __init__(
        self, settings: Settings, film: Film | None = None, queue: Queue | None = None
    ) -> None:
        """film: in the place of stages.film.

        Raises DatabaseUnusable, StorageUnusable, and InvalidRequest for a device that is not.
        """
        self.settings = settings
        self.film: Film = film or stages.film
        self.queue = queue or Queue(settings)
        self.speed: float | None = None  # operations a second, None measures
        self.name = f"{settings.worker}:{settings.device or 'auto'}"
        self.token = secrets.token_hex(8)
        self.held: Held | None = None
        self.machine = machine(settings.device)
        self.stop = threading.Event()
        self.drain = threading.Event()  # finish the job in hand, take no other
        self.lost = False
        self.heard = time.monotonic()  # when the database last answered
        self.turned = time.monotonic()  # when the pulse last began a turn
        self.sweeps = threading.Event()  # a job has ended: its files count now

    def run(self) -> None:
        """Take jobs until told to stop. Raises WorkerTaken where the name is in use."""
        with self.only_one() as home:
            self.enter(home)
            self._launch()
            log.info("worker %s waits for jobs", self.name)
            self.turned = time.monotonic()
            for run in (self._watch, self.keep_swept):
                threading.Thread(target=run, name=run.__name__, daemon=True).start()
            try:
                self._pulse()
            except Exception as error:  # whatever it was, jobs must not wait for this process
                log.exception("the pulse of worker %s", self.name)
                self._lose(f"{type(error).__name__}: {error}")
            finally:
                try:
                    self.leave()
                except FilmletError as error:
                    log.warning("%s", error)

    @contextmanager
    def only_one(self) -> Iterator[str]:
        """A lock on this machine that a killed worker loses; yields the machine's own name."""
        home = self.settings.home
        name = self.name.replace("/", "_")
        with _opened(home / f"worker-{name}.lock") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise WorkerTaken(
                    f"A worker {self.name} is already at work here; "
                    "set FILMLET_WORKER to another name for a second one."
                ) from None
            yield _machine(home)

    def enter(self, home: str) -> None:
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
                id=self.name, token=self.token, home=home, device=self.machine.device,
                speed=self.speed or cost_model.probe(), machine=json.dumps(asdict(self.machine)),
                lease=self.settings.lease_s,
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
                self.take(job, run_of(DBOS.workflow_id))
            except Exception as error:
                # What became of the job cannot be recorded: unfinished, it is taken up again.
                if not isinstance(error, FilmletError):
                    log.exception("%s", job, extra={"job": job})
                self.held = None
                self._lose(str(error))
                _wait_for_the_end()

        @DBOS.workflow(
            name=webhooks.WORKFLOW,
            max_recovery_attempts=NEVER,
            serialization_type=WorkflowSerializationFormat.PORTABLE,
        )
        def tell(job: str, attempt: int) -> None:
            webhooks.deliver(self.queue.database, self.settings, job, attempt)

        DBOS.launch()
        DBOS.register_queue(QUEUE, worker_concurrency=1, polling_interval_sec=POLL_S)
        DBOS.register_queue(webhooks.QUEUE, worker_concurrency=8, polling_interval_sec=1.0)

    # The job's thread

    def take(self, job: str, run: int | None = None) -> None:
        """Make one job's clip, or record why not. run: of the workflow, None is any."""
        if self.stop.is_set() or self.drain.is_set():
            _wait_for_the_end()
        held = Held.claim(self.queue.database, self.settings, job, self.name, run)
        if held is None:
            return
        if held.attempt > ATTEMPTS:
            self._fail(held, "worker_died", f"The worker died {ATTEMPTS} times while making it.")
            return
        try:
            with stopping_decoders_on(held.stopped):
                self._film(held)
        except Cancelled:
            self._cancelled(held)
        except JobLost as error:
            log.warning("%s", error, extra={"job": job})
        except DatabaseUnusable:
            raise
        except FilmletError as error:
            log.info("%s failed: %s", job, error, extra={"job": job})
            self._fail(held, error.code, str(error))
        except Exception as error:  # the outermost line: whatever it was, the next job must run
            log.exception("%s", job, extra={"job": job})
            self._fail(held, "internal", f"{type(error).__name__}: {error}")
        finally:
            self.held = None
            self.sweeps.set()

    def _fail(self, held: Held, code: str, message: str) -> None:
        held.fail(code, message, self._size(held))

    def _size(self, held: Held) -> int:
        """Bytes that are kept of a job; 0 where the storage does not answer, until a sweep asks."""
        try:
            return self.queue.storage.size(held.id)
        except StorageUnusable as error:
            log.warning("%s", error, extra={"job": held.id})
            return 0

    def _film(self, held: Held) -> None:
        self.held = held
        self.queue.storage.clear(held.id)
        folder = self.queue.storage.fetch(held.id)
        row = self._draft_of(held) or held.row
        earlier = json.loads(row["effective"]) if row["effective"] else {}
        started = time.monotonic()
        planned, dtype = plan(request_of(held.row), folder), earlier.get("dtype")
        preparing = prepare(planned, self.settings, dtype, earlier.get("engine"))
        work = self._follow(held, folder, preparing)
        work.folder, work.cancelled, work.confirm = folder, held.stopped, held.confirm
        held.work = work
        held.note_effective()
        self._follow(held, folder, self.film(work, folder / "clip.mp4", True))
        held.confirm()
        self.queue.storage.trim(held.id, useful(held.row) | {GROWING})
        if not held.complete(self._size(held)):
            raise JobLost(f"{held.id} was given to another worker.")
        self.queue.storage.leave(held.id)
        seconds = time.monotonic() - started
        log.info("%s completed in %.1f s", held.id, seconds, extra={"job": held.id})

    def _follow(self, held: Held, folder: Path, events: Generator[Event, None, Value]) -> Value:
        """Note what happens; what it comes to. Raises Cancelled."""
        with closing(events):
            while True:
                try:
                    event = next(events)
                except StopIteration as end:
                    return cast(Value, end.value)
                self._note(held, folder, event)
                if held.stopped.is_set():
                    raise Cancelled("The clip was cancelled.")

    def _draft_of(self, held: Held) -> Row | None:
        """The draft that this job finishes; its results are brought into the job's folder.

        Where they are gone, they are made anew, to the same bytes.
        """
        if held.attempt > 1 or not held.row["source"]:
            return None
        with self.queue.database.reading() as t:
            row = t.row("select * from filmlet_job where id = :id", id=held.row["source"])
        if not row or not row["effective"]:
            return None
        draft, asked = request_of(row), request_of(held.row)
        if not draft.draft or replace(draft, draft=False) != asked:
            return None
        self.queue.storage.copy(row["id"], held.id, *KEPT[Stage.ENCODE], *KEPT[Stage.DENOISE])
        return row

    def _note(self, held: Held, folder: Path, event: Event) -> None:
        """Remember an event, and keep what is there now. Raises JobLost."""
        held.confirm()
        match event:
            case Progress():
                held.seen(event)
                if event.stage == Stage.DECODE:
                    self.queue.storage.grow(held.id)
                windows = len(held.work.effective.windows) if held.work else 1
                if window := last_window(event, windows):
                    self.queue.storage.store(held.id, f"{window}.safetensors")
            case Preview():
                save_still(folder / PREVIEW, event.image)
                self.queue.storage.store(
                    held.id, PREVIEW, "step.safetensors", "refine-step.safetensors"
                )
                held.previews += 1
            case Finished():
                if event.stage == Stage.DECODE:
                    self.queue.storage.grow(held.id)
                self.queue.storage.store(held.id, *KEPT.get(event.stage, ()))
                held.record(event)

    def _cancelled(self, held: Held) -> None:
        """The job was cancelled; or the worker must stop, and another attempt goes on from here."""
        if self.stop.is_set():
            self.held = None
            _wait_for_the_end()
        if held.cancelled(self._size(held)):
            log.info("%s cancelled", held.id, extra={"job": held.id})

    # The pulse

    def _pulse(self) -> None:
        """Report, listen, live, reap; until told to stop, or the lease is lost."""
        beat_every = min(5.0, self.settings.lease_s / 6)
        beaten = 0.0
        while not self.stop.wait(PULSE_S):
            if self.drain.is_set() and not self.held:
                return
            now = self.turned = time.monotonic()
            try:
                if held := self.held:
                    held.report()
                if now - beaten >= beat_every:
                    self.beat()
                    self._reap()
                    beaten = now
                self.heard = time.monotonic()
            except DatabaseGone as error:
                self._lose(str(error))
            except DatabaseUnusable as error:
                log.warning("%s", error)
                if time.monotonic() - self.heard > self.settings.lease_s:
                    self._lose("the database has not answered for a whole lease")
            except FilmletError as error:
                log.warning("%s", error)

    def beat(self) -> None:
        with self.queue.database.transaction() as t:
            alive = t.row(
                "update filmlet_worker set beat = {now}, peak_bytes = :peak"
                " where id = :id and token = :token and dead = 0 returning id",
                id=self.name, token=self.token, peak=_peak_bytes(),
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
        database = self.queue.database
        for row in dead:
            # Asked again at every beat: a database that restarts meanwhile must strand nothing.
            left = database.pending_workflows(row["id"])
            if left:
                log.warning("worker %s is gone; its job goes on elsewhere", row["id"])
                for name in (QUEUE, webhooks.QUEUE):
                    own = [w.workflow_id for w in left if w.queue_name == name]
                    database.resume_workflows(own, name)
            elif row["old"]:
                with database.transaction() as t:
                    t.rows("delete from filmlet_worker where id = :id and dead = 1", id=row["id"])

    def _watch(self) -> None:
        """End the process where the pulse stands still: others have its job by now."""
        while not self.stop.wait(PULSE_S):
            if time.monotonic() - self.turned > 2 * self.settings.lease_s:
                log.error("worker %s stops: its pulse stood still for two leases", self.name)
                os._exit(LOST)

    def keep_swept(self) -> None:
        """Delete what is too much, once a minute and when a job has ended: it may take a while."""
        while not self.stop.is_set():
            self.sweeps.clear()
            trim_heap()
            try:
                self.queue.sweep()
            except FilmletError as error:
                log.warning("%s", error)
            except Exception:  # this thread is the last one that may end
                log.exception("the sweep of worker %s", self.name)
            self.stop.wait(SWEEP_PAUSE_S)
            self.sweeps.wait(SWEEP_S)

    def _lose(self, why: str) -> None:
        log.error("worker %s stops: %s", self.name, why)
        self.lost = True
        self.stop.set()

    def leave(self) -> None:
        """Stop what is in hand at its next step, and tell the others."""
        held = self.held
        if held:
            held.stop()
            for _ in range(100):
                if self.held is None:
                    break
                time.sleep(0.1)
        if self.lost:
            return
        with self.queue.database.transaction() as t:
            t.rows(
                "update filmlet_worker set dead = 1 where id = :id and token = :token",
                id=self.name, token=self.token,
            )  # fmt: skip
            if held:
                held.give_back(t)


def run(settings: Settings, *, finishes: bool = False, supervised: bool = False) -> int:
    """Work until SIGINT or SIGTERM; the exit status: 0, or 3 where the lease was lost.

    finishes: the first signal lets the job in hand end, the second does not. supervised: stop as
    well when stdin closes, for then whoever started this is gone.
    """
    worker = Worker(settings)
    if supervised:
        threading.Thread(target=_outlive_nobody, args=(worker,), daemon=True).start()

    def told(*_: object) -> None:
        is_second = worker.drain.is_set()
        (worker.stop if is_second or not finishes else worker.drain).set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, told)
    try:
        worker.run()
    except FilmletError:
        raise  # before it had begun: nothing runs yet
    except BaseException:
        log.exception("worker %s", worker.name)
        worker.lost = True
    logging.shutdown()
    # DBOS must not see the job in hand end: unfinished, it goes on in another process.
    os._exit(LOST if worker.lost else 0)


def run_of(workflow: str | None) -> int | None:
    """The run of the job whose workflow it is: `JOB.RUN`."""
    _, _, run = (workflow or "").rpartition(".")
    return int(run) if run.isdecimal() else None


def _peak_bytes() -> int:
    """The most memory that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _outlive_nobody(worker: Worker) -> None:
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
        raise explain(error, lock) from error
    with file:
        yield file


def _machine(home: Path) -> str:
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
        raise explain(error, file) from error


def _wait_for_the_end() -> None:
    """Leave a workflow unfinished: the process ends while it stands here."""
    while True:
        time.sleep(1)
