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
from typing import TypeVar, cast

from dbos import DBOS, WorkflowSerializationFormat

from filmlet import stages
from filmlet.denoising import last_window
from filmlet.engine.engines import machine
from filmlet.errors import Cancelled, DatabaseUnusable, FilmletError, WorkerTaken
from filmlet.events import Event, Finished, Preview, Progress, Stage
from filmlet.jobs import cost, webhooks
from filmlet.jobs.database import Row
from filmlet.jobs.held import Held
from filmlet.jobs.job import PREVIEW
from filmlet.jobs.queue import APPLICATION_VERSION, QUEUE, WORKFLOW, Queue
from filmlet.jobs.rows import request_of
from filmlet.media import save_still, stopping_decoders_on
from filmlet.plan import plan
from filmlet.settings import Settings
from filmlet.work import Work, prepare

Value = TypeVar("Value")
log = logging.getLogger("filmlet.worker")

ATTEMPTS = 3
PULSE_S = 0.2
SWEEP_S = 60.0
POLL_S = 0.2
NEVER = 1_000_000  # DBOS' own limit of attempts; ours counts, and says why
Film = Callable[[Work, Path, bool], Generator[Event]]
KEPT = {
    Stage.ENCODE: ("embeddings.safetensors",),
    Stage.DENOISE: ("latents.safetensors",),
    Stage.UPSAMPLE: ("upsampled.safetensors",),
    Stage.REFINE: ("refined.safetensors",),
    Stage.DECODE: ("decoded.mp4",),
    Stage.MUX: ("clip.mp4",),
}


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

    def run(self) -> None:
        """Take jobs until told to stop. Raises WorkerTaken where the name is in use."""
        with self.only_one() as home:
            self.enter(home)
            self._launch()
            log.info("worker %s waits for jobs", self.name)
            try:
                self._pulse()
            finally:
                try:
                    self.leave()
                except FilmletError as error:
                    log.warning("%s", error)

    @contextmanager
    def only_one(self) -> Iterator[str]:
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
                speed=self.speed or cost.probe(), machine=json.dumps(asdict(self.machine)),
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
                self.take(job)
            except DatabaseUnusable as error:
                # What became of the job cannot be recorded: unfinished, it is taken up again.
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

    def take(self, job: str) -> None:
        """Make one job's clip, or record why not."""
        if self.stop.is_set() or self.drain.is_set():
            _wait_for_the_end()
        held = Held.claim(self.queue.database, self.settings, job, self.name)
        if held is None:
            return
        if held.attempt > ATTEMPTS:
            held.fail("worker_died", f"The worker died {ATTEMPTS} times while making this clip.")
            return
        try:
            with stopping_decoders_on(held.stopped):
                self._film(held)
        except Cancelled:
            self._cancelled(held)
        except DatabaseUnusable:
            raise
        except FilmletError as error:
            log.info("%s failed: %s", job, error, extra={"job": job})
            held.fail(error.code, str(error))
        except Exception as error:  # the outermost line: whatever it was, the next job must run
            log.exception("%s", job, extra={"job": job})
            held.fail("internal", f"{type(error).__name__}: {error}")
        finally:
            self.held = None

    def _film(self, held: Held) -> None:
        self.held = held
        folder = self.queue.storage.fetch(held.id)
        row = self._draft_of(held) or held.row
        earlier = json.loads(row["effective"]) if row["effective"] else {}
        started = time.monotonic()
        planned, dtype = plan(request_of(held.row), folder), earlier.get("dtype")
        preparing = prepare(planned, self.settings, dtype, earlier.get("engine"))
        work = self._follow(held, folder, preparing)
        work.folder, work.cancelled, held.work = folder, held.stopped, work
        held.note_effective()
        self._follow(held, folder, self.film(work, folder / "clip.mp4", True))
        held.complete(self.queue.storage.size(held.id))
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
        match event:
            case Progress():
                held.seen(event)
                if event.stage == Stage.DECODE:
                    self.queue.storage.grow(held.id, "decoded.mp4.part")
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
                    self.queue.storage.grow(held.id, "decoded.mp4")
                self.queue.storage.store(held.id, *KEPT.get(event.stage, ()))
                held.record(event)

    def _cancelled(self, held: Held) -> None:
        """The job was cancelled; or the worker must stop, and another attempt goes on from here."""
        if self.stop.is_set():
            self.held = None
            _wait_for_the_end()
        log.info("%s cancelled", held.id, extra={"job": held.id})
        held.cancelled()

    # The pulse

    def _pulse(self) -> None:
        """Report, listen, live, reap; until told to stop, or the lease is lost."""
        beat_every = min(5.0, self.settings.lease_s / 6)
        beaten = swept = 0.0
        while not self.stop.wait(PULSE_S):
            if self.drain.is_set() and not self.held:
                return
            now = time.monotonic()
            try:
                if self.held:
                    self.held.report()
                if now - beaten >= beat_every:
                    self.beat()
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
        client = self.queue.database.client
        for row in dead:
            # Asked again at every beat: a database that restarts meanwhile must strand nothing.
            left = client.list_workflows(status="PENDING", executor_id=row["id"], load_input=False)
            if left:
                log.warning("worker %s is gone; its job goes on elsewhere", row["id"])
                for name in (QUEUE, webhooks.QUEUE):
                    own = [w.workflow_id for w in left if w.queue_name == name]
                    client.resume_workflows(own, queue_name=name)
            elif row["old"]:
                with self.queue.database.transaction() as t:
                    t.rows("delete from filmlet_worker where id = :id and dead = 1", id=row["id"])

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
    worker.run()
    logging.shutdown()
    # DBOS must not see the job in hand end: unfinished, it goes on in another process.
    os._exit(3 if worker.lost else 0)


def _peak_bytes() -> int:
    """The most memory that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _outlive_nobody(worker: Worker) -> None:
    sys.stdin.buffer.read()
    worker.stop.set()


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
