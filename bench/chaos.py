"""Jobs under kills and dropped connections: `python -m bench.chaos [--postgres URL] [--kills N]`.

Two workers on one home make the smallest clips while they are killed at random moments of a fixed
seed; with PostgreSQL, connections are dropped as well, and the server is started anew by a command
of yours. Each job must end once, with the bytes that it has without any fault.
"""

import argparse
import hashlib
import os
import random
import shlex
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from filmlet.core.request import ClipRequest, build_request
from filmlet.errors import DatabaseUnusable
from filmlet.jobs import Queue, Status
from filmlet.settings import Settings

SEED, LEASE_S, NAMES = 1, 6.0, ("one", "two")
KINDS = 4  # of clips; each has other bytes
AUDIT = {
    "sqlite": (
        "create table audit (id text)",
        "create trigger completed after update of status on filmlet_job"
        " when new.status = 'completed' begin insert into audit values (new.id); end",
    ),
    "postgres": (
        "create table audit (id text)",
        "create function note() returns trigger as"
        " $$ begin insert into audit values (new.id); return new; end $$ language plpgsql",
        "create trigger completed after update of status on filmlet_job for each row"
        " when (new.status = 'completed') execute function note()",
    ),
}


@dataclass(frozen=True)
class Faults:
    """What happens to so many jobs."""

    jobs: int
    kills: int
    drops: int
    limit_s: float
    restarts: int = 0  # of the database server
    restart_command: str = ""


@dataclass(eq=False)
class Figures:
    """What came of them."""

    states: Counter[str] = field(default_factory=Counter)
    doubled: int = 0
    other_bytes: int = 0
    kills: int = 0
    drops: int = 0
    server_restarts: int = 0
    worker_exits: int = 0  # by themselves
    seconds: float = 0.0


def request_of(number: int, steps: int) -> ClipRequest:
    return build_request("a red ball", size="64x64", frames=9, steps=steps, seed=number % KINDS)


class Workers:
    """Worker processes that are started again when they end."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.running = {name: self._start(name) for name in NAMES}

    def _start(self, name: str) -> subprocess.Popen[bytes]:
        environment = replace(self.settings, worker=name).to_environ()
        command = [sys.executable, "-m", "filmlet", "worker", "--quiet"]
        return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)

    def kill(self, name: str) -> None:
        self.running[name].kill()
        self.running[name].wait()
        self.running[name] = self._start(name)

    def revive(self) -> int:
        """Start those again that ended by themselves; how many."""
        ended = [name for name, process in self.running.items() if process.poll() is not None]
        for name in ended:
            self.running[name] = self._start(name)
        return len(ended)

    def close(self) -> None:
        for process in self.running.values():
            process.kill()
            process.wait()


def ended_jobs(queue: Queue, before: int) -> int:
    """How many jobs have ended; the last known number while the database cannot be asked."""
    try:
        with queue.database.read() as t:
            row = t.row("select count(*) as ended from filmlet_job where finished > 0")
    except DatabaseUnusable:
        return before
    assert row
    return int(row["ended"])


def drop_connections(queue: Queue) -> None:
    """End every connection to this database but the one that asks."""
    with queue.database.transaction() as t:
        t.rows(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )


def run(settings: Settings, faults: Faults, steps: int = 2) -> Figures:
    """Make the jobs under the faults, for as long as the limit; what is not over then is named."""
    queue, figures, choice = Queue(settings), Figures(), random.Random(SEED)
    with queue.database.transaction() as t:
        for statement in AUDIT["sqlite" if queue.database.is_sqlite else "postgres"]:
            t.rows(statement)
    ids = [queue.submit(request_of(i, steps)).id for i in range(faults.jobs)]
    todo = sorted(_times(choice, faults), key=lambda pair: pair[0])
    workers, began = Workers(settings), time.monotonic()
    try:
        ended = 0
        while (ended := ended_jobs(queue, ended)) < len(ids) or todo:
            if time.monotonic() - began > faults.limit_s:
                break
            while todo and (ended >= todo[0][0] or ended == len(ids)):
                _, fault = todo.pop(0)
                time.sleep(choice.uniform(0, 0.3))  # into whatever is then in hand
                match fault:
                    case "kill":
                        workers.kill(choice.choice(NAMES))
                        figures.kills += 1
                    case "drop":
                        drop_connections(queue)
                        figures.drops += 1
                    case "restart":
                        subprocess.run(shlex.split(faults.restart_command), check=True)
                        figures.server_restarts += 1
            figures.worker_exits += workers.revive()
            time.sleep(0.05)
    finally:
        workers.close()
    figures.seconds = time.monotonic() - began
    _count(queue, ids, figures)
    queue.close()
    return figures


def _times(choice: random.Random, faults: Faults) -> list[tuple[int, str]]:
    """After how many ended jobs each fault comes, and which."""
    kinds = ["kill"] * faults.kills + ["drop"] * faults.drops + ["restart"] * faults.restarts
    return [(choice.randrange(max(1, faults.jobs - 5)), kind) for kind in kinds]


def _count(queue: Queue, ids: list[str], figures: Figures) -> None:
    with queue.database.read() as t:
        completed = Counter(row["id"] for row in t.rows("select id from audit"))
    figures.doubled = sum(count - 1 for count in completed.values())
    seen: dict[int, Counter[str]] = {}
    for number, id in enumerate(ids):
        job = queue.get_job(id)
        figures.states[job.status.value] += 1
        if job.status == Status.COMPLETED:
            digest = hashlib.sha256(queue.storage.read(id, "clip.mp4")).hexdigest()
            seen.setdefault(number % KINDS, Counter())[digest] += 1
    figures.other_bytes = sum(c.total() - max(c.values()) for c in seen.values())


def row_of(name: str, faults: Faults, figures: Figures) -> str:
    over = sum(count for state, count in figures.states.items() if Status(state).is_final)
    left = faults.jobs - over
    states = ", ".join(f"{count} {state}" for state, count in sorted(figures.states.items()))
    return (
        f"| {name} | {faults.jobs} | {figures.kills} | {figures.drops} | {figures.server_restarts} "
        f"| {figures.worker_exits} "
        f"| {states} | {left} | {figures.doubled} | {figures.other_bytes} | {figures.seconds:.0f} |"
    )


HEAD = (
    "| | jobs | kills | drops | restarts | worker exits | states | not over | doubled "
    "| other bytes | seconds |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    options = argparse.ArgumentParser(prog="bench.chaos", description=__doc__)
    options.add_argument("--postgres", help="URL of an empty PostgreSQL database (default: SQLite)")
    options.add_argument("--jobs", type=int, default=220)
    options.add_argument("--kills", type=int, default=163)
    options.add_argument("--drops", type=int, default=0)
    options.add_argument("--restarts", type=int, default=0, help="of the database server")
    options.add_argument("--restart-command", default="", help="that starts it anew")
    options.add_argument("--limit", type=float, default=1800.0, help="seconds")
    chosen = options.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    faults = Faults(
        chosen.jobs, chosen.kills, chosen.drops, chosen.limit, chosen.restarts,
        chosen.restart_command,
    )  # fmt: skip
    with TemporaryDirectory() as folder:
        settings = Settings(
            home=Path(folder), database_url=chosen.postgres, lease_s=LEASE_S, max_active=10_000,
            max_per_minute=10_000,
        )  # fmt: skip
        figures = run(settings, faults)
    print(HEAD)
    print(row_of("PostgreSQL" if chosen.postgres else "SQLite", faults, figures))


if __name__ == "__main__":
    main()
