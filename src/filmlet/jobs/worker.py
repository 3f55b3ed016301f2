"""The worker: runs jobs one at a time and keeps the model loaded between them.

A thread of DBOS runs the stages of a job. The main thread sends heartbeats: it reports progress,
reads cancels, renews the lease, and requeues the jobs of dead workers.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import NoReturn, TypeVar, cast

from dbos import DBOS, WorkflowSerializationFormat

from filmlet.core.events import Event, Preview, Progress, SettingsChanged, Stage, StageFinished
from filmlet.engine.placement import trim_heap
from filmlet.engine.selection import device_info
from filmlet.errors import (
    Cancelled,
    DatabaseGone,
    DatabaseUnusable,
    FilmletError,
    JobLost,
    StorageUnusable,
)
from filmlet.jobs import cost_model, webhooks
from filmlet.jobs.claimed_job import MAX_ATTEMPTS, ClaimedJob
from filmlet.jobs.database import Row
from filmlet.jobs.job import PREVIEW
from filmlet.jobs.old_rows import load_json
from filmlet.jobs.queue import APPLICATION_VERSION, QUEUE, WORKFLOW, Queue
from filmlet.jobs.retention import DRAFT_FILES, files_to_keep
from filmlet.jobs.serialization import request_from_row
from filmlet.jobs.storage import GROWING
from filmlet.jobs.worker_lease import WorkerLease
from filmlet.media import preferred_pixel_format, save_image, stop_decoders_on
from filmlet.pipeline import stages
from filmlet.pipeline.artifacts import RESULT_NAMES, ArtifactStore, result_file
from filmlet.pipeline.denoise import completed_window_name
from filmlet.pipeline.engine_cache import EngineCache
from filmlet.pipeline.plan import make_plan
from filmlet.pipeline.prepare import PreparedClip, prepare
from filmlet.pipeline.run_context import RunContext
from filmlet.settings import Settings

Value = TypeVar("Value")
log = logging.getLogger("filmlet.worker")

HEARTBEAT_POLL_S = 0.2
CLEANUP_INTERVAL_S = 60.0
SWEEP_PAUSE_S = 5.0  # minimum between two cleanups
POLL_S = 0.2
DBOS_RECOVERIES = 1_000_000  # DBOS' own limit would record no error
FrameGenerator = Callable[[PreparedClip, RunContext], Generator[Event]]
LOST = 3  # exit status after which another process should start


class Worker:
    """Runs the jobs of one device, until it is told to stop or has lost its lease."""

    def __init__(
        self,
        settings: Settings,
        generate: FrameGenerator = stages.generate_frames,
        queue: Queue | None = None,
        engines: EngineCache | None = None,
    ) -> None:
        """generate: makes the frames; another process may. engines: of several workers at once.

        Raises DatabaseUnusable, StorageUnusable, and InvalidRequest for an unknown device.
        """
        self.settings = settings
        self.generate = generate
        self.engines = engines or EngineCache()
        self.queue = queue or Queue(settings)
        self.lease = WorkerLease(self.queue.database, settings, device_info(settings.device))
        self.current: ClaimedJob | None = None
        self.stop = threading.Event()
        self.drain = threading.Event()  # finish the current job, take no other
        self.lease_lost = False
        self.last_db_contact = time.monotonic()  # when the database last answered
        self.last_beat_at = time.monotonic()  # when the heartbeat loop last began a turn
        self.sweeps = threading.Event()  # a job has ended: its files count towards the disk limit

    def run(self) -> None:
        """Run jobs until told to stop. Raises WorkerNameInUse."""
        with self.lease.exclusive_lock() as machine_id:
            self.lease.register(machine_id, cost_model.measure_flops())
            self._launch()
            log.info("worker %s waits for jobs", self.lease.name)
            self.last_beat_at = time.monotonic()
            for run in (self._watch, self.keep_swept):
                threading.Thread(target=run, name=run.__name__, daemon=True).start()
            try:
                self._heartbeat_loop()
            except Exception as error:  # whatever it was: jobs must not wait for this process
                log.exception("the heartbeat of worker %s", self.lease.name)
                self._give_up_lease(f"{type(error).__name__}: {error}")
            finally:
                try:
                    self.unregister()
                except FilmletError as error:
                    log.warning("%s", error)

    def _launch(self) -> None:
        """Start DBOS under the worker's name: workflows that it left unfinished start again."""
        DBOS(
            config={
                "name": "filmlet",
                "system_database_url": self.queue.database.url,
                "executor_id": self.lease.name,
                "application_version": APPLICATION_VERSION,
                "log_level": "CRITICAL",
            }
        )

        @DBOS.workflow(
            name=WORKFLOW,
            max_recovery_attempts=DBOS_RECOVERIES,
            serialization_type=WorkflowSerializationFormat.PORTABLE,
        )
        def run_claimed_job(job: str) -> None:
            try:
                self.run_job(job, parse_run_number(DBOS.workflow_id))
            except Exception as error:
                # The result cannot be recorded: the workflow stays unfinished and starts again.
                if not isinstance(error, FilmletError):
                    log.exception("%s", job, extra={"job": job})
                self.current = None
                self._give_up_lease(str(error))
                _block_until_process_exit()

        @DBOS.workflow(
            name=webhooks.WORKFLOW,
            max_recovery_attempts=DBOS_RECOVERIES,
            serialization_type=WorkflowSerializationFormat.PORTABLE,
        )
        def deliver_webhook(job: str, attempt: int) -> None:
            webhooks.deliver(self.queue.database, self.settings, job, attempt)

        DBOS.launch()
        DBOS.register_queue(QUEUE, worker_concurrency=1, polling_interval_sec=POLL_S)
        DBOS.register_queue(webhooks.QUEUE, worker_concurrency=8, polling_interval_sec=1.0)

    # The job's thread

    def run_job(self, job: str, run: int | None = None) -> None:
        """Make the clip of one job, or record why not. run: of the workflow; None is any."""
        if self.stop.is_set() or self.drain.is_set():
            _block_until_process_exit()
        claimed_job = ClaimedJob.claim(
            self.queue.database, self.settings, job, self.lease.name, run
        )
        if claimed_job is None:
            return
        if claimed_job.attempt > MAX_ATTEMPTS:
            reason = f"The worker died {MAX_ATTEMPTS} times while making it."
            self._fail(claimed_job, "worker_died", reason)
            return
        try:
            with stop_decoders_on(claimed_job.stopped):
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
        except Exception as error:  # whatever it was, the next job must run
            log.exception("%s", job, extra={"job": job})
            self._fail(claimed_job, "internal", f"{type(error).__name__}: {error}")
        finally:
            self.current = None
            self.sweeps.set()

    def _fail(self, claimed_job: ClaimedJob, code: str, message: str) -> None:
        claimed_job.fail(code, message, self._size(claimed_job))

    def _size(self, claimed_job: ClaimedJob) -> int:
        """Return the bytes of a job's files; 0 if the storage fails, until the next cleanup."""
        try:
            return self.queue.storage.size(claimed_job.id)
        except StorageUnusable as error:
            log.warning("%s", error, extra={"job": claimed_job.id})
            return 0

    def _generate(self, claimed_job: ClaimedJob) -> None:
        self.current = claimed_job
        self.queue.storage.clear(claimed_job.id)
        folder = self.queue.storage.fetch(claimed_job.id)
        row = self._load_draft_results(claimed_job) or claimed_job.row
        earlier = load_json(row["effective"]) if row["effective"] else {}
        started = time.monotonic()
        # Planned again, after submit: files and models may have changed since.
        planned, dtype = make_plan(request_from_row(claimed_job.row), folder), earlier.get("dtype")
        preparing = prepare(planned, self.settings, dtype, earlier.get("engine"), self.engines)
        clip = self._consume(claimed_job, folder, preparing)
        claimed_job.save_effective(clip.effective)
        path = folder / result_file(Stage.MUX)
        artifacts = ArtifactStore(folder, claimed_job.confirm)
        context = RunContext(
            self.engines, artifacts, claimed_job.stopped, preferred_pixel_format(path)
        )
        frames = self.generate(clip, context)
        writing = stages.write_clip(frames, clip, context, path, force=True)
        self._consume(claimed_job, folder, writing)
        claimed_job.confirm()
        self.queue.storage.trim(claimed_job.id, files_to_keep(claimed_job.row) | {GROWING})
        if not claimed_job.complete(self._size(claimed_job)):
            raise JobLost(f"{claimed_job.id} was given to another worker.")
        self.queue.storage.clear_local(claimed_job.id)
        seconds = time.monotonic() - started
        log.info("%s completed in %.1f s", claimed_job.id, seconds, extra={"job": claimed_job.id})

    def _consume(
        self, claimed_job: ClaimedJob, folder: Path, events: Generator[Event, None, Value]
    ) -> Value:
        """Handle all events; return the generator's result. Raises Cancelled."""
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
        """Copy the results of the draft that this job refines; return the draft's row.

        Missing results are computed again, with the same bytes.
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
        self.queue.storage.copy_to_local(row["id"], claimed_job.id, *DRAFT_FILES)
        self.queue.storage.store(claimed_job.id, *DRAFT_FILES)
        return row

    def _handle_event(self, claimed_job: ClaimedJob, folder: Path, event: Event) -> None:
        """Record an event and store the files that it announces. Raises JobLost."""
        claimed_job.confirm()
        match event:
            case Progress():
                claimed_job.update_progress(event)
                if event.stage == Stage.DECODE:
                    self.queue.storage.upload_new_bytes(claimed_job.id)
                windows = len(claimed_job.effective.windows) if claimed_job.effective else 1
                if window := completed_window_name(event, windows):
                    self.queue.storage.store(claimed_job.id, f"{window}.safetensors")
            case Preview():
                save_image(folder / PREVIEW, event.image)
                self.queue.storage.store(
                    claimed_job.id, PREVIEW, "step.safetensors", "refine-step.safetensors"
                )
                claimed_job.previews += 1
            case SettingsChanged():
                claimed_job.save_effective(event.effective)
            case StageFinished():
                if event.stage == Stage.DECODE:
                    self.queue.storage.upload_new_bytes(claimed_job.id)
                if event.stage in RESULT_NAMES:
                    self.queue.storage.store(claimed_job.id, result_file(event.stage))
                claimed_job.save_stage(event)

    def _finish_cancelled(self, claimed_job: ClaimedJob) -> None:
        """Record the cancel; if the worker is stopping, leave the job to the next attempt."""
        if self.stop.is_set():
            self.current = None
            _block_until_process_exit()
        if claimed_job.mark_cancelled(self._size(claimed_job)):
            log.info("%s cancelled", claimed_job.id, extra={"job": claimed_job.id})

    # The main thread

    def _heartbeat_loop(self) -> None:
        """Report progress, read cancels, renew the lease; return when told to stop."""
        interval_s = min(5.0, self.settings.lease_s / 6)
        renewed_at = 0.0
        while not self.stop.wait(HEARTBEAT_POLL_S):
            if self.drain.is_set() and not self.current:
                return
            now = self.last_beat_at = time.monotonic()
            try:
                if claimed_job := self.current:
                    claimed_job.report_progress()
                if now - renewed_at >= interval_s:
                    self.heartbeat()
                    self.lease.requeue_dead_workers()
                    renewed_at = now
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
        """Renew the lease, or stop the worker if it is lost. Raises DatabaseUnusable."""
        if not self.lease.renew():
            self._give_up_lease("its lease has run out and its jobs went to others")

    def _watch(self) -> None:
        """End the process if the heartbeat loop hangs: others have its job by now."""
        while not self.stop.wait(HEARTBEAT_POLL_S):
            if time.monotonic() - self.last_beat_at > 2 * self.settings.lease_s:
                log.error("worker %s stops: no heartbeat for two leases", self.lease.name)
                os._exit(LOST)

    def keep_swept(self) -> None:
        """Delete expired jobs and files once a minute, and when a job has ended."""
        while not self.stop.is_set():
            self.sweeps.clear()
            trim_heap()
            try:
                self.queue.delete_expired()
            except FilmletError as error:
                log.warning("%s", error)
            except Exception:  # nothing restarts this thread
                log.exception("the sweep of worker %s", self.lease.name)
            self.stop.wait(SWEEP_PAUSE_S)
            self.sweeps.wait(CLEANUP_INTERVAL_S)

    def _give_up_lease(self, why: str) -> None:
        log.error("worker %s stops: %s", self.lease.name, why)
        self.lease_lost = True
        self.stop.set()

    def unregister(self) -> None:
        """Stop the current job at its next step, and give lease and job back."""
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
            self.lease.release(t)
            if claimed_job:
                claimed_job.release(t)
        if claimed_job:
            claimed_job.mark_cancelled(self._size(claimed_job))
            self._requeue_workflow(claimed_job)

    def _requeue_workflow(self, claimed_job: ClaimedJob) -> None:
        """Let another worker take the job at once; without this, its next heartbeat does."""
        workflow = f"{claimed_job.id}.{claimed_job.row['run']}"
        with suppress(DatabaseUnusable):
            pending = self.queue.database.pending_workflows(self.lease.name)
            if workflow in [status.workflow_id for status in pending]:
                self.queue.database.resume_workflows([workflow], QUEUE)


def parse_run_number(workflow: str | None) -> int | None:
    """Return the run in a workflow id, `JOB.RUN`."""
    _, _, run = (workflow or "").rpartition(".")
    return int(run) if run.isdecimal() else None


def _block_until_process_exit() -> NoReturn:
    """Keep this workflow unfinished until the process ends.

    DBOS records a workflow as done when its function returns or raises. A job that must go on in
    another process may do neither: only a pending workflow is started again, by this worker's next
    process or by `WorkerLease.requeue_dead_workers`. The main thread waits ten seconds at most
    for it (`unregister`), and `os._exit` ends both.
    """
    while True:
        time.sleep(1)
