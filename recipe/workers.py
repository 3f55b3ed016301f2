"""Processes of one thread each that train together: every step averages their gradients.

Two threads of one process wait for each other at every operation, these only once a step.
"""

import argparse
import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

PATIENCE = timedelta(hours=2)  # one worker may judge or encode while another waits
WATCH_S = 5.0


def start(
    work: Callable[[argparse.Namespace], None], chosen: argparse.Namespace, count: int
) -> None:
    """Run `work(chosen)` in `count` processes; returns when all are done, raises if one fails."""
    rendezvous = chosen.folder / "workers"
    rendezvous.unlink(missing_ok=True)
    given = (work, chosen, count, str(rendezvous.absolute()), os.getpid())
    spawn(_run_worker, given, nprocs=count)


def _run_worker(
    number: int,
    work: Callable[[argparse.Namespace], None],
    chosen: argparse.Namespace,
    count: int,
    rendezvous: str,
    parent: int,
) -> None:
    threading.Thread(target=_follow_parent, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=number, world_size=count, timeout=PATIENCE
    )
    work(chosen)
    dist.destroy_process_group()


def _follow_parent(parent: int) -> None:
    """End this worker soon after its parent: a killed run must not go on in secret."""
    while os.getppid() == parent:
        time.sleep(WATCH_S)
    os._exit(1)


def rank() -> int:
    """The number of this worker, 0 in a process alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """How many workers there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def wait_for_all() -> None:
    """Return when every worker is here."""
    if dist.is_initialized():
        dist.barrier()
