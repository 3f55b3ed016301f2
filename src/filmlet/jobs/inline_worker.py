"""Jobs made in this process as soon as they are begun: where a GPU is lent for one call.

Whoever lends it has a queue of its own, which says whose turn it is; and lends to whoever calls, so
that a job must be begun by a call of the visitor who wants it, in that call's own context.
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
from filmlet.jobs.worker import HEARTBEAT_POLL_S, ClipWriter, Worker
from filmlet.settings import Settings

log = logging.getLogger("filmlet.inline")

HEARTBEAT_S = 5.0


class InlineWorker:
    """Makes jobs, each in a thread of its own; one living worker to whoever looks at the queue."""

    def __init__(self, settings: Settings, queue: Queue, film: ClipWriter, speed: float) -> None:
        """speed: of the GPU, operations a second, until clips have told what they take."""
        self.settings, self.queue, self.write_clip = settings, queue, film
        self.worker = Worker(settings, film, queue)
        self.worker.speed = speed
        self.workers_by_job: dict[str, Worker] = {}  # by the job that each makes
        self.begins = threading.Lock()

    @contextmanager
    def run_registered(self) -> Iterator[None]:
        """Be there for jobs. What an earlier process had in hand waits again."""
        with self.worker.exclusive_lock() as home:
            self.worker.register(home)
            self._requeue_running_jobs()
            pulse = threading.Thread(target=self._heartbeat_loop, name="pulse", daemon=True)
            pulse.start()
            threading.Thread(target=self.worker.keep_swept, name="sweep", daemon=True).start()
            try:
                yield
            finally:
                self.worker.stop.set()
                pulse.join()
                for hand in list(self.workers_by_job.values()):
                    hand.stop.set()
                    hand.unregister()
                self._requeue_running_jobs()
                self.worker.unregister()

    def start(self, job: str) -> None:
        """Make a waiting job, in a thread that has the caller's context. Raises UnknownJob."""
        with self.begins:
            if job in self.workers_by_job or self.queue.get_job(job).status != Status.QUEUED:
                return
            self.workers_by_job[job] = hand = Worker(self.settings, self.write_clip, self.queue)
        run = copy_context().run
        threading.Thread(target=run, args=(self._run, job, hand), name=job, daemon=True).start()

    @contextmanager
    def run_in_call(self, job: Job) -> Iterator[None]:
        """A call that waits for the job: if it is cancelled so is the job, and the GPU is free."""
        self.start(job.id)
        try:
            yield
        except asyncio.CancelledError:
            self.queue.cancel(job.id)
            raise

    def _run(self, job: str, hand: Worker) -> None:
        try:
            hand.run_job(job)
        except FilmletError as error:
            log.warning("%s: %s", job, error)
        finally:
            del self.workers_by_job[job]
            self.worker.sweeps.set()

    def _heartbeat_loop(self) -> None:
        """Report, hear of cancels, live."""
        beaten = 0.0
        while not self.worker.stop.wait(HEARTBEAT_POLL_S):
            now = time.monotonic()
            try:
                for hand in list(self.workers_by_job.values()):
                    if claimed_job := hand.current:
                        claimed_job.report_progress()
                if now - beaten >= HEARTBEAT_S:
                    self.worker.heartbeat()
                    beaten = now
            except FilmletError as error:
                log.warning("%s", error)
            except Exception:  # without it no job would be heard of any more
                log.exception("the pulse")

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
