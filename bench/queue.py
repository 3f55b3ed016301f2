"""The queue measured with real workers on pocket: `python -m bench.queue` writes JOBS.md."""

import argparse
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from bench.__main__ import processor
from filmlet.core.request import build_request
from filmlet.jobs import Job, Queue, Status
from filmlet.settings import Settings

PROMPT = "a red circle moving left on a white background"
SIZES = ((128, 128), (192, 192), (256, 256), (320, 192), (384, 256))


@contextmanager
def worker(settings: Settings) -> Iterator[int]:
    """A worker process; yields its id."""
    told = {f"FILMLET_{k.upper()}": str(v) for k, v in vars(settings).items() if v is not None}
    with subprocess.Popen(
        [sys.executable, "-m", "filmlet", "worker", "--quiet"], env=os.environ | told
    ) as process:
        try:
            yield process.pid
        finally:
            process.terminate()


def wait(queue: Queue, job: str, until: Callable[[Job], bool]) -> Job:
    while True:
        now = queue.get_job(job)
        if until(now):
            return now
        time.sleep(0.01)


def is_over(job: Job) -> bool:
    return job.status.is_final


def small(queue: Queue) -> Job:
    return queue.submit(build_request(PROMPT, size="64x64", frames=1, steps=1))


def submit_to_start(queue: Queue, runs: int) -> list[float]:
    """Seconds by the database's clock, worker idle and loaded."""
    waits = []
    for _ in range(runs):
        done = wait(queue, small(queue).id, is_over)
        waits.append((done.started or 0.0) - done.created)
        time.sleep(random.uniform(0.1, 0.4))
    return waits


def throughput(queue: Queue, count: int) -> tuple[float, float]:
    """Submissions a second, and smallest clips a second through one worker."""
    began = time.perf_counter()
    ids = [small(queue).id for _ in range(count)]
    submitted = time.perf_counter()
    for job in ids:
        wait(queue, job, is_over)
    return count / (submitted - began), count / (time.perf_counter() - began)


def report_ms(queue: Queue, count: int) -> float:
    """Milliseconds of the statement that reports progress, beats and asks for a cancel."""
    job = queue.list_jobs(limit=1)[0]
    times = []
    for i in range(count):
        began = time.perf_counter()
        with queue.database.transaction() as t:
            t.rows(
                "update filmlet_job set done = :i, seq = seq + 1, beat = {now}"
                " where id = :id and attempt = :attempt returning cancel",
                i=i, id=job.id, attempt=job.attempt,
            )  # fmt: skip
        times.append(1000 * (time.perf_counter() - began))
    return median(times)


def idle_share(pid: int, seconds: float) -> float:
    """Share of one core that a waiting worker takes."""

    def spent() -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    before = spent()
    time.sleep(seconds)
    return (spent() - before) / seconds


@dataclass(frozen=True)
class EtaSample:
    """An estimate at submission, and what came of it."""

    low: float
    told: float
    high: float
    was: float


def estimates(queue: Queue, count: int, choice: random.Random) -> list[EtaSample]:
    """Clips of mixed shapes, one after the other, each with what was told when it was submitted."""
    guesses = []
    for _ in range(count):
        width, height = choice.choice(SIZES)
        frames, steps = choice.choice((9, 25, 49, 97)), choice.choice((4, 8, 12))
        request = build_request(PROMPT, size=f"{width}x{height}", frames=frames, steps=steps)
        job = queue.submit(request)
        assert job.eta
        done = wait(queue, job.id, is_over)
        was = (done.finished or 0.0) - done.created
        guesses.append(EtaSample(job.eta.low, job.eta.seconds, job.eta.high, was))
    return guesses


def cancels(queue: Queue, count: int, choice: random.Random) -> list[float]:
    """Seconds from the wish to cancel to the worker's being free, at random moments of a clip."""
    idle: list[float] = []
    while len(idle) < count:
        job = queue.submit(build_request(PROMPT, size="384x256", frames=97, steps=12)).id
        wait(queue, job, lambda j: j.status == Status.RUNNING)
        time.sleep(choice.uniform(0, 6))
        queue.cancel(job)
        over = wait(queue, job, is_over)
        if over.status == Status.CANCELLED:
            assert over.cancel_latency_s is not None
            idle.append(over.cancel_latency_s)
    return idle


def table(name: str, rows: list[tuple[str, str]]) -> list[str]:
    return [f"## {name}", "", "| | |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows), ""]


def report(folder: Path, url: str | None, jobs: int, stops: int) -> str:
    settings = Settings(home=folder, database_url=url, max_per_minute=10_000, max_active=10_000)
    queue, choice = Queue(settings), random.Random(0)
    with worker(settings) as pid:
        wait(queue, small(queue).id, is_over)
        starts = submit_to_start(queue, 20)
        idle = idle_share(pid, 10)
        submitted, made = throughput(queue, 50)
        guesses = estimates(queue, 10 + jobs, choice)[10:]
        idles = cancels(queue, stops, choice)
    milliseconds = report_ms(queue, 200)
    queue.close()
    errors = [abs(g.told - g.was) / g.was for g in guesses]
    inside = [g.low <= g.was <= g.high for g in guesses]
    width = median((g.high - g.low) / g.told for g in guesses)
    return "\n".join(
        [
            "# The queue, measured",
            "",
            f"{datetime.now(UTC):%Y-%m-%d}, {processor()}, Python {platform.python_version()},",
            f"{'PostgreSQL' if url else 'SQLite'}, one worker, pocket as it runs by itself: "
            "`python -m bench.queue`.",
            "",
            *table(
                "Costs of the queue itself",
                [
                    ("submit to start, worker idle, median", f"{1000 * median(starts):.0f} ms"),
                    ("the same, worst of 20", f"{1000 * max(starts):.0f} ms"),
                    ("one progress report, median of 200", f"{milliseconds:.1f} ms"),
                    ("submissions a second", f"{submitted:.0f}"),
                    ("smallest clips a second through one worker", f"{made:.1f}"),
                    ("a waiting worker, share of one core", f"{100 * idle:.1f} %"),
                ],
            ),
            *table(
                f"Estimates at submission, {jobs} clips of mixed shapes after the first 10",
                [
                    ("median absolute error (bar: 20 %)", f"{100 * median(errors):.0f} %"),
                    (
                        "inside the band (bar: 80 %)",
                        f"{100 * sum(inside) / len(inside):.0f} %",
                    ),
                    ("width of the band, median", f"{100 * width:.0f} % of the estimate"),
                ],
            ),
            *table(
                f"Cancel to idle, {stops} at random moments of a 97-frame 384x256 clip",
                [
                    ("median", f"{1000 * median(idles):.0f} ms"),
                    ("worst", f"{1000 * max(idles):.0f} ms"),
                ],
            ),
        ]
    )


def main() -> None:
    options = argparse.ArgumentParser(prog="bench.queue", description=__doc__)
    options.add_argument("--database", help="a database URL (default: SQLite)")
    options.add_argument("--jobs", type=int, default=30)
    options.add_argument("--cancels", type=int, default=50)
    options.add_argument("--output", type=Path, default=Path(__file__).parent / "JOBS.md")
    chosen = options.parse_args()
    with TemporaryDirectory() as folder:
        text = report(Path(folder), chosen.database, chosen.jobs, chosen.cancels)
    chosen.output.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
