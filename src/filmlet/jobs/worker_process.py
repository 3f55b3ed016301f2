"""The worker as a process: signals, a parent that may end, the exit status."""

import logging
import os
import signal
import threading

from filmlet.errors import FilmletError
from filmlet.jobs.worker import LOST, Worker
from filmlet.settings import Settings

log = logging.getLogger("filmlet.worker")


def run_worker(settings: Settings, *, finishes: bool = False, supervised: bool = False) -> int:
    """Run a worker until SIGINT or SIGTERM; return the exit status: 0, or 3 if the lease is lost.

    finishes: the first signal lets the current job finish, the second does not. supervised: stop
    when stdin closes as well, because the process that started this one has ended.
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
        log.exception("worker %s", worker.lease.name)
        worker.lease_lost = True
    logging.shutdown()
    # DBOS must not see the current job end: unfinished, it goes on in another process.
    os._exit(LOST if worker.lease_lost else 0)


def _exit_with_parent(worker: Worker) -> None:
    # Not through sys.stdin: an interpreter that ends meanwhile would abort over its lock.
    while os.read(0, 4096):
        pass
    worker.stop.set()
