"""Runs jobs in this process, each inside the call that waits for it (ZeroGPU).

ZeroGPU has a queue of its own and bills the visitor who calls, so a job must be started by a call
of the visitor who wants it, in the context of that call.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context

from filmlet.errors import FilmletError
from filmlet.jobs.job import Job, Status
from filmlet.jobs.queue import Queue
from filmlet.jobs.worker import HEARTBEAT_POLL_S, FrameGenerator, Worker
from filmlet.pipeline.engine_cache import EngineCache
from filmlet.settings import Settings

log = logging.getLogger("filmlet.inline")

HEARTBEAT_S = 5.0


class InlineWorker:
    """Runs each job in a thread of its own; in the queue it is one worker."""

    def __init__(
        self,
        settings: Settings,
        queue: Queue,
        generate: FrameGenerator,
        engines: EngineCache,
        flops: float,
    ) -> None:
        """engines: that are in memory.

        flops: operations a second of the GPU; used until stages have been measured.
        """
        self.settings, self.queue = settings, queue
        self.generate, self.engines = generate, engines
        self.worker = Worker(settings, generate, queue, engines)
        self.flops = flops
        self.workers_by_job: dict[str, Worker] = {}  # the job that each runs
        self.start_lock = threading.Lock()

    @contextmanager
    def run_registered(self) -> Iterator[None]:
        """Be registered as a worker meanwhile; jobs of an earlier process are queued again."""
        with self.worker.lease.exclusive_lock() as machine_id:
            self.worker.lease.register(machine_id, self.flops)
            self._requeue_running_jobs()
            heartbeat = threading.Thread(target=self._heartbeat_loop, name="heartbeat", daemon=True)
            heartbeat.start()
            threading.Thread(target=self.worker.keep_swept, name="sweep", daemon=True).start()
            try:
                yield
            finally:
                self.worker.stop.set()
                heartbeat.join()
                for worker in list(self.workers_by_job.values()):
                    worker.stop.set()
                    worker.unregister()
                self._requeue_running_jobs()
                self.worker.unregister()

    def start(self, job: str) -> None:
        """Run a queued job in a thread that has the caller's context. Raises UnknownJob."""
        with self.start_lock:
            if job in self.workers_by_job or self.queue.get_job(job).status != Status.QUEUED:
                return
            worker = Worker(self.settings, self.generate, self.queue, self.engines)
            self.workers_by_job[job] = worker
        run = copy_context().run
        threading.Thread(target=run, args=(self._run, job, worker), name=job, daemon=True).start()

    @contextmanager
    def run_in_call(self, job: Job) -> Iterator[None]:
        """Run the job while the caller waits; if the call is cancelled, so is the job."""
        self.start(job.id)
        try:
            yield
        except asyncio.CancelledError:
            self.queue.cancel(job.id)
            raise

    def _run(self, job: str, worker: Worker) -> None:
        try:
            worker.run_job(job)
        except FilmletError as error:
            log.warning("%s: %s", job, error)
        finally:
            del self.workers_by_job[job]
            self.worker.sweeps.set()

    def _heartbeat_loop(self) -> None:
        """Report progress, read cancels, renew the lease."""
        renewed_at = 0.0
        while not self.worker.stop.wait(HEARTBEAT_POLL_S):
            now = time.monotonic()
            try:
                for worker in list(self.workers_by_job.values()):
                    if claimed_job := worker.current:
                        claimed_job.report_progress()
                if now - renewed_at >= HEARTBEAT_S:
                    self.worker.heartbeat()
                    renewed_at = now
            except FilmletError as error:
                log.warning("%s", error)
            except Exception:  # without this thread no progress would be reported
                log.exception("the heartbeat")

    def _requeue_running_jobs(self) -> None:
        with suppress(FilmletError), self.queue.database.transaction() as t:
            t.rows(
                "update filmlet_job set status = 'queued', seq = seq + 1, queued = {now}"
                " where status = 'running' and cancel is null"
            )
            t.rows(
                "update filmlet_job set status = 'cancelled', finished = {now}, seq = seq + 1"
                " where status = 'running'"
            )
