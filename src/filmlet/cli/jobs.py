"""The command line's words for the queue: submit, jobs, worker."""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

from filmlet.core import logs
from filmlet.core.request import ClipRequest
from filmlet.errors import InvalidRequest
from filmlet.jobs import Job, Priority, Queue, Status, SubmitOptions
from filmlet.settings import Settings


def submit(options: argparse.Namespace, request: ClipRequest) -> int:
    """Put a clip into the queue and print its id."""
    with _queue() as queue:
        asking = SubmitOptions(priority=Priority(options.priority), idempotency_key=options.key)
        job = queue.submit(request, asking)
    print(as_json(job) if options.json else job.id)
    return 0


def jobs(options: argparse.Namespace) -> int:
    """Look at jobs or change them."""
    if options.action != "list" and options.id is None:
        raise InvalidRequest(f"Say which job to {options.action}: its id.", param="id")
    with _queue() as queue:
        ACTIONS[options.action](queue, options)
    return 0


def worker(options: argparse.Namespace) -> int:
    """Run jobs until told to stop."""
    from filmlet.jobs.worker_process import run_worker

    logs.configure_logging(options.log, quiet=options.quiet)
    return run_worker(
        Settings.from_environment(), finishes=options.finish, supervised=options.supervised
    )


def _list_jobs(queue: Queue, options: argparse.Namespace) -> None:
    jobs = queue.list_jobs(limit=options.limit)
    if options.json:
        print(json.dumps([_table(job) for job in jobs], ensure_ascii=False, indent=2))
    for job in jobs if not options.json else ():
        print(line(job))


def _show_job(queue: Queue, options: argparse.Namespace) -> None:
    job = queue.get_job(options.id)
    print(as_json(job) if options.json else as_text(queue, job))


def _watch_job(queue: Queue, options: argparse.Namespace) -> None:
    for job in queue.follow(options.id):
        print(
            json.dumps(_table(job), ensure_ascii=False) if options.json else line(job), flush=True
        )


def _change_job(change: Callable[[Queue, str], Job]) -> Callable[[Queue, argparse.Namespace], None]:
    def run(queue: Queue, options: argparse.Namespace) -> None:
        job = change(queue, options.id)
        print(as_json(job) if options.json else line(job))

    return run


def _delete_job(queue: Queue, options: argparse.Namespace) -> None:
    queue.delete(options.id)
    print(json.dumps({"deleted": options.id}) if options.json else f"{options.id} deleted")


ACTIONS: dict[str, Callable[[Queue, argparse.Namespace], None]] = {
    "list": _list_jobs,
    "show": _show_job,
    "watch": _watch_job,
    "cancel": _change_job(Queue.cancel),
    "retry": _change_job(Queue.retry),
    "refine": _change_job(lambda queue, job: queue.refine(job, SubmitOptions())),
    "delete": _delete_job,
}


def line(job: Job) -> str:
    """One line a job."""
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
        columns.append(f"done in {job.eta.seconds:.0f} s ({job.eta.low:.0f} to {job.eta.high:.0f})")
    columns.append(repr(job.requested["prompt"]))
    return "  ".join(part for part in columns if part)


def as_text(queue: Queue, job: Job) -> str:
    """All that a person wants to know of one job."""
    lines = [line(job)]
    if job.clip:
        lines.append(f"  {queue.storage.display_path(job.id, job.clip)}")
    for record in job.stages:
        how = "reused" if record.reused else f"{record.seconds:.2f} s"
        lines.append(f"  {record.stage}: {how} (attempt {record.attempt})")
    if job.effective:
        lines += [f"  note: {change['reason']}" for change in job.effective["changes"]]
    return "\n".join(lines)


def as_json(job: Job) -> str:
    """The whole job as one JSON object."""
    return json.dumps(_table(job), ensure_ascii=False, indent=2)


def _table(job: Job) -> dict[str, object]:
    return asdict(job)


@contextmanager
def _queue() -> Iterator[Queue]:
    queue = Queue(Settings.from_environment())
    try:
        yield queue
    finally:
        queue.close()
