"""The command line's words for the queue: submit, jobs, worker."""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

from filmlet.core import logs
from filmlet.core.request import ClipRequest
from filmlet.errors import InvalidRequest
from filmlet.jobs import Asking, Job, Priority, Queue, Status
from filmlet.settings import Settings


def submit(options: argparse.Namespace, request: ClipRequest) -> int:
    """Put a clip into the queue and print its id."""
    with _queue() as queue:
        asking = Asking(priority=Priority(options.priority), key=options.key)
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
    from filmlet.jobs.worker import run

    logs.begin(options.log, quiet=options.quiet)
    return run(Settings.from_environment(), finishes=options.finish, supervised=options.supervised)


def _list(queue: Queue, options: argparse.Namespace) -> None:
    found = queue.jobs(limit=options.limit)
    if options.json:
        print(json.dumps([_table(job) for job in found], ensure_ascii=False, indent=2))
    for job in found if not options.json else ():
        print(line(job))


def _show(queue: Queue, options: argparse.Namespace) -> None:
    job = queue.get(options.id)
    print(as_json(job) if options.json else as_text(queue, job))


def _watch(queue: Queue, options: argparse.Namespace) -> None:
    for job in queue.follow(options.id):
        print(
            json.dumps(_table(job), ensure_ascii=False) if options.json else line(job), flush=True
        )


def _change(change: Callable[[Queue, str], Job]) -> Callable[[Queue, argparse.Namespace], None]:
    def run(queue: Queue, options: argparse.Namespace) -> None:
        job = change(queue, options.id)
        print(as_json(job) if options.json else line(job))

    return run


def _delete(queue: Queue, options: argparse.Namespace) -> None:
    queue.delete(options.id)
    print(json.dumps({"deleted": options.id}) if options.json else f"{options.id} deleted")


ACTIONS: dict[str, Callable[[Queue, argparse.Namespace], None]] = {
    "list": _list,
    "show": _show,
    "watch": _watch,
    "cancel": _change(Queue.cancel),
    "retry": _change(Queue.retry),
    "refine": _change(lambda queue, job: queue.refine(job, Asking())),
    "delete": _delete,
}


def line(job: Job) -> str:
    """One line a job."""
    told = [job.id, f"{job.status:9}", f"{job.progress:4.0%}"]
    match job.status:
        case Status.QUEUED:
            told.append(f"position {job.position}")
        case Status.RUNNING if job.stage:
            told.append(f"{job.stage} {job.done}/{job.total}")
        case Status.FAILED if job.failure:
            told.append(job.failure.message)
        case _:
            told.append("")
    if job.eta:
        told.append(f"done in {job.eta.seconds:.0f} s ({job.eta.low:.0f} to {job.eta.high:.0f})")
    told.append(repr(job.requested["prompt"]))
    return "  ".join(part for part in told if part)


def as_text(queue: Queue, job: Job) -> str:
    """All that a person wants to know of one job."""
    lines = [line(job)]
    if job.clip:
        lines.append(f"  {queue.storage.where(job.id, job.clip)}")
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
