"""`filmlet submit`, `jobs` and `worker`: the queue."""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from filmlet.cli.downloads import confirm_download
from filmlet.cli.durations import format_duration
from filmlet.cli.enhance import enhance_clip_request
from filmlet.cli.options import (
    Commands,
    add_actions,
    add_clip_options,
    add_download_option,
    add_log_option,
    add_quiet_option,
    add_variations_option,
    build_clip_request,
    split_by_seed,
    whole_number,
)
from filmlet.cli.process import print_out, to_json
from filmlet.errors import InvalidRequest

if TYPE_CHECKING:
    from filmlet.jobs import Job, Queue


DELETE_TIMEOUT_S = 10.0  # how long a delete waits for the worker
NO_WORKER = "filmlet: no worker is running; `filmlet worker` starts one, `filmlet serve` as well."


def add_queue_commands(commands: Commands) -> None:
    """Add `submit` and `jobs`."""
    command = commands.add_parser("submit", help="put a clip into the queue, print its id")
    command.set_defaults(run=submit, needs_server=True)
    add_clip_options(command)
    add_variations_option(command)
    add_download_option(command)
    command.add_argument("--priority", choices=("high", "normal", "low"), default="normal")
    command.add_argument("--key", help="idempotency key: two submissions with one key make one job")

    command = commands.add_parser("jobs", help=f"{', '.join(ACTIONS)} jobs")
    command.set_defaults(run=manage_jobs, needs_server=True)
    parsers = add_actions(command, {name: summary for name, (_, summary) in ACTIONS.items()})
    _add_limit(command, default=50)
    _add_limit(parsers["list"], default=argparse.SUPPRESS)
    for name, parser in parsers.items():
        if name != "list":
            parser.add_argument("id", metavar="ID", help="the job's id")
    parsers["save"].add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="file to write: .mp4, .webm, .gif or .webp (default: ID.mp4)",
    )
    parsers["save"].add_argument("--force", action="store_true", help="overwrite the file")


def _add_limit(command: argparse.ArgumentParser, default: object) -> None:
    command.add_argument(
        "--limit", type=whole_number, default=default, help="number of jobs to list (50)"
    )


def add_worker_command(commands: Commands) -> None:
    """Add `worker`."""
    command = commands.add_parser("worker", help="run jobs until told to stop")
    command.set_defaults(run=run_worker, needs_server=True)
    add_quiet_option(command, "log warnings only")
    command.add_argument(
        "--finish", action="store_true", help="finish the current job before stopping"
    )
    command.add_argument("--supervised", action="store_true", help="stop when stdin closes")
    add_log_option(command)


def submit(options: argparse.Namespace) -> int:
    """Queue a clip, or variations of it, and print their ids."""
    from filmlet.jobs import Priority, SubmitOptions
    from filmlet.pipeline.plan import make_plan

    if options.key and options.variations > 1:
        raise InvalidRequest("--key is for one job: leave it out with --variations.", param="key")
    request = enhance_clip_request(build_clip_request(options), options)
    indent = 2 if options.variations == 1 else None  # of several one is a line
    with _open_queue() as queue:
        if queue.is_local:  # else another machine fetches
            confirm_download(make_plan(request), queue.settings, agreed=options.yes)
        priority = Priority(options.priority)
        own_options = SubmitOptions(priority=priority, idempotency_key=options.key)
        jobs = []
        try:
            for variation in split_by_seed(request, options.variations):
                jobs.append(queue.submit(variation, own_options))
        finally:  # those before a refusal are queued
            for job in _without_promise(queue, jobs):
                print(to_json(asdict(job), indent=indent) if options.json else job.id)
    return 0


def manage_jobs(options: argparse.Namespace) -> int:
    """Read or change jobs."""
    act, _ = ACTIONS[options.action]
    with _open_queue() as queue:
        act(queue, options)
    return 0


def run_worker(options: argparse.Namespace) -> int:
    """Run jobs until told to stop."""
    from filmlet.core import logs
    from filmlet.jobs import worker_process
    from filmlet.settings import Settings

    logs.configure_logging(options.log, quiet=options.quiet)
    return worker_process.run_worker(
        Settings.from_environment(), finishes=options.finish, supervised=options.supervised
    )


def _list_jobs(queue: "Queue", options: argparse.Namespace) -> None:
    jobs = _without_promise(queue, queue.list_jobs(limit=options.limit))
    if options.json:
        print(to_json([asdict(job) for job in jobs]))
    for job in jobs if not options.json else ():
        print(format_line(job))


def _show_job(queue: "Queue", options: argparse.Namespace) -> None:
    (job,) = _without_promise(queue, [queue.get_job(options.id)])
    print(to_json(asdict(job)) if options.json else as_text(queue, job))


def _watch_job(queue: "Queue", options: argparse.Namespace) -> None:
    has_worker = True
    for job in queue.follow(options.id):
        if not job.status.is_final:
            had_worker, has_worker = has_worker, queue.has_worker()
            job = job if has_worker else replace(job, eta=None)
            if had_worker and not has_worker:
                print_out(NO_WORKER, sys.stderr)
        print(
            to_json(asdict(job), indent=None) if options.json else format_line(job),
            flush=True,
        )


def _cancel_job(queue: "Queue", options: argparse.Namespace) -> None:
    _print_job(queue.cancel(options.id), options)


def _retry_job(queue: "Queue", options: argparse.Namespace) -> None:
    _print_job(queue.retry(options.id), options)


def _refine_job(queue: "Queue", options: argparse.Namespace) -> None:
    from filmlet.jobs import SubmitOptions

    _print_job(queue.refine(options.id, SubmitOptions()), options)


def _without_promise(queue: "Queue", jobs: list["Job"]) -> list["Job"]:
    """Return the jobs as they are; without ETA, and with a word on stderr, where no worker runs."""
    if all(job.status.is_final for job in jobs) or queue.has_worker():
        return jobs
    print_out(NO_WORKER, sys.stderr)
    return [replace(job, eta=None) for job in jobs]


def _print_job(job: "Job", options: argparse.Namespace) -> None:
    print(to_json(asdict(job)) if options.json else format_line(job))


def _delete_job(queue: "Queue", options: argparse.Namespace) -> None:
    """Cancel, wait for the worker, delete. Raises UnknownJob, JobConflict."""
    from filmlet.errors import JobConflict

    until = time.monotonic() + DELETE_TIMEOUT_S
    job = queue.cancel(options.id)
    while not job.status.is_final:
        if time.monotonic() > until:
            raise JobConflict(f"{job.id} is about to stop; delete it again in a moment.")
        time.sleep(0.1)
        job = queue.get_job(job.id)
    queue.delete(job.id)
    print(
        to_json({"deleted": options.id}, indent=None) if options.json else f"{options.id} deleted"
    )


def _save_clip(queue: "Queue", options: argparse.Namespace) -> None:
    """Save the clip of a finished job in the format of the file. Raises what `save_clip` raises."""
    from filmlet.jobs.exports import save_clip

    job = queue.get_job(options.id)
    path = options.output or Path(f"{job.id}.mp4")
    changes = save_clip(queue, job, path, force=options.force)
    if options.json:
        print(to_json({"path": str(path), "changes": [asdict(change) for change in changes]}))
        return
    print(path)
    for change in changes:
        print(f"  note: {change.reason}")


Action = Callable[["Queue", argparse.Namespace], None]
ACTIONS: dict[str, tuple[Action, str]] = {
    "list": (_list_jobs, "list jobs, the newest first"),
    "show": (_show_job, "show a job with its stages and notes"),
    "watch": (_watch_job, "print a job at each change until it is over"),
    "save": (_save_clip, "save the clip of a finished job"),
    "cancel": (_cancel_job, "cancel a job that waits or runs"),
    "retry": (_retry_job, "queue a failed or cancelled job again"),
    "refine": (_refine_job, "queue the second stage of a finished draft"),
    "delete": (_delete_job, "delete a job and its files; one that runs is cancelled first"),
}


def format_line(job: "Job") -> str:
    """Return a job as one line."""
    from filmlet.jobs import Status

    columns = [job.id, f"{job.status:9}", f"{job.progress:4.0%}"]
    match job.status:
        case Status.QUEUED:
            columns.append(f"position {job.position}")
        case Status.RUNNING if job.stage:
            columns.append(f"{job.stage} {job.done}/{job.total}")
        case Status.FAILED if job.failure:
            columns.append(job.failure.message)
        case _:
            columns.append("")
    if job.eta:
        low, high = format_duration(job.eta.low), format_duration(job.eta.high)
        columns.append(f"done in {format_duration(job.eta.seconds)} ({low} to {high})")
    columns.append(repr(job.requested["prompt"]))
    return "  ".join(part for part in columns if part)


def as_text(queue: "Queue", job: "Job") -> str:
    """Return a job with its file, stages and changes, for people."""
    lines = [format_line(job)]
    if job.clip:
        lines.append(f"  {queue.storage.display_path(job.id, job.clip)}")
    for record in job.stages:
        how = "reused" if record.reused else f"{record.seconds:.2f} s"
        lines.append(f"  {record.stage}: {how} (attempt {record.attempt})")
    if job.effective:
        lines += [f"  note: {change['reason']}" for change in job.effective["changes"]]
    return "\n".join(lines)


@contextmanager
def _open_queue() -> Iterator["Queue"]:
    from filmlet.jobs import Queue
    from filmlet.settings import Settings

    queue = Queue(Settings.from_environment())
    try:
        yield queue
    finally:
        queue.close()
