"""A worker's name: taken under a lease, kept by heartbeats, taken over from silent workers."""

import fcntl
import json
import logging
import os
import resource
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO

from filmlet.core.memory import DeviceInfo
from filmlet.errors import WorkerNameInUse
from filmlet.jobs import webhooks
from filmlet.jobs.database import Database, Transaction
from filmlet.jobs.queue import QUEUE
from filmlet.media import to_output_error
from filmlet.settings import Settings

log = logging.getLogger("filmlet.worker")


class WorkerLease:
    """The row of one worker. It holds while the worker's heartbeats come within `lease_s`.

    name: of the worker. token: of this process; machine: the device that it computes on.
    """

    def __init__(self, database: Database, settings: Settings, machine: DeviceInfo) -> None:
        self.database = database
        self.settings = settings
        self.machine = machine
        self.name = f"{settings.worker}:{settings.device or 'auto'}"
        self.token = secrets.token_hex(8)

    @contextmanager
    def exclusive_lock(self) -> Iterator[str]:
        """Hold a lock on this machine that ends with the process; yield the machine's id.

        Raises WorkerNameInUse, OutputUnwritable.
        """
        home = self.settings.home
        file_name = self.name.replace("/", "_")
        with _open_lock_file(home / f"worker-{file_name}.lock") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise WorkerNameInUse(
                    f"A worker {self.name} is already at work here; "
                    "set FILMLET_WORKER to another name for a second one."
                ) from None
            yield _machine_id(home)

    def register(self, machine_id: str, flops: float) -> None:
        """Take the name if it is free, its holder is silent, or ran on this machine and ended.

        flops: operations a second. Raises WorkerNameInUse.
        """
        with self.database.transaction() as t:
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
                home=machine_id,
                device=self.machine.device,
                speed=flops,
                machine=json.dumps(asdict(self.machine)),
                lease=self.settings.lease_s,
            )
        if taken is None:
            raise WorkerNameInUse(
                f"A worker {self.name} is alive on another machine; "
                "set FILMLET_WORKER to a name of its own."
            )

    def renew(self) -> bool:
        """Send a heartbeat; return whether the name is still this process's."""
        with self.database.transaction() as t:
            row = t.row(
                "update filmlet_worker set beat = {now}, peak_bytes = :peak"
                " where id = :id and token = :token and dead = 0 returning id",
                id=self.name, token=self.token, peak=_peak_memory_bytes(),
            )  # fmt: skip
        return row is not None

    def release(self, t: Transaction) -> None:
        """Give the name back, so that others need not wait for the lease to run out."""
        t.rows(
            "update filmlet_worker set dead = 1 where id = :id and token = :token",
            id=self.name, token=self.token,
        )  # fmt: skip

    def requeue_dead_workers(self) -> None:
        """Mark silent workers as dead, and put the workflows that they hold into the queue."""
        with self.database.transaction() as t:
            t.rows(
                "update filmlet_worker set dead = 1 where dead = 0 and beat < {now} - :lease",
                lease=self.settings.lease_s,
            )
            dead = t.rows(
                "select id, beat < {now} - 86400 as old from filmlet_worker where dead = 1"
            )
        for row in dead:
            # Asked at every heartbeat, not once: the database may have restarted in between.
            pending = self.database.pending_workflows(row["id"])
            if pending:
                log.warning("worker %s is gone; its job goes on elsewhere", row["id"])
                for name in (QUEUE, webhooks.QUEUE):
                    workflow_ids = [w.workflow_id for w in pending if w.queue_name == name]
                    self.database.resume_workflows(workflow_ids, name)
            elif row["old"]:
                with self.database.transaction() as t:
                    t.rows("delete from filmlet_worker where id = :id and dead = 1", id=row["id"])


@contextmanager
def _open_lock_file(path: Path) -> Iterator[IO[str]]:
    """Open a file of the home folder. Raises OutputUnwritable."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise to_output_error(error, path) from error
    with file:
        yield file


def _machine_id(home: Path) -> str:
    """Return the random id of this home folder: two machines may share a host name.

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


def _peak_memory_bytes() -> int:
    """Return the largest memory that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
