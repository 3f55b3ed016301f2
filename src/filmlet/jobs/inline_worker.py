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
from filmlet.jobs.worker import PULSE_S, Film, Worker
from filmlet.settings import Settings

log = logging.getLogger("filmlet.inline")

BEAT_S = 5.0


class Inline:
    """Makes jobs, each in a thread of its own; one living worker to whoever looks at the queue."""

    def __init__(self, settings: Settings, queue: Queue, film: Film, speed: float) -> None:
        """speed: of the GPU, operations a second, until clips have told what they take."""
        self.settings, self.queue, self.film = settings, queue, film
        self.worker = Worker(settings, film, queue)
        self.worker.speed = speed
        self.hands: dict[str, Worker] = {}  # by the job that each makes
        self.begins = threading.Lock()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Be there for jobs. What an earlier process had in hand waits again."""
        with self.worker.only_one() as home:
            self.worker.enter(home)
            self._requeue()
            pulse = threading.Thread(target=self._pulse, name="pulse", daemon=True)
            pulse.start()
            threading.Thread(target=self.worker.keep_swept, name="sweep", daemon=True).start()
            try:
                yield
            finally:
                self.worker.stop.set()
                pulse.join()
                for hand in list(self.hands.values()):
                    hand.stop.set()
                    hand.leave()
                self._requeue()
                self.worker.leave()

    def begin(self, job: str) -> None:
        """Make a waiting job, in a thread that has the caller's context. Raises UnknownJob."""
        with self.begins:
            if job in self.hands or self.queue.get(job).status != Status.QUEUED:
                return
            self.hands[job] = hand = Worker(self.settings, self.film, self.queue)
        run = copy_context().run
        threading.Thread(target=run, args=(self._make, job, hand), name=job, daemon=True).start()

    @contextmanager
    def making(self, job: Job) -> Iterator[None]:
        """A call that waits for the job: if it is cancelled so is the job, and the GPU is free."""
        self.begin(job.id)
        try:
            yield
        except asyncio.CancelledError:
            self.queue.cancel(job.id)
            raise

    def _make(self, job: str, hand: Worker) -> None:
        try:
            hand.take(job)
        except FilmletError as error:
            log.warning("%s: %s", job, error)
        finally:
            del self.hands[job]
            self.worker.sweeps.set()

    def _pulse(self) -> None:
        """Report, hear of cancels, live."""
        beaten = 0.0
        while not self.worker.stop.wait(PULSE_S):
            now = time.monotonic()
            try:
                for hand in list(self.hands.values()):
                    if held := hand.held:
                        held.report()
                if now - beaten >= BEAT_S:
                    self.worker.beat()
                    beaten = now
            except FilmletError as error:
                log.warning("%s", error)
            except Exception:  # without it no job would be heard of any more
                log.exception("the pulse")

    def _requeue(self) -> None:
        with suppress(FilmletError), self.queue.database.transaction() as t:
            t.rows(
                "update filmlet_job set status = 'queued', seq = seq + 1, queued = {now}"
                " where status = 'running' and cancel is null"
            )
            t.rows(
                "update filmlet_job set status = 'cancelled', finished = {now}, seq = seq + 1"
                " where status = 'running'"
            )
