"""A worker that kills itself, once: `python -m tests.helpers.crashing_worker STAGE DONE MARKER`."""

import os
import signal
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

from filmlet.core.events import Event, Progress
from filmlet.jobs.worker_process import run_worker
from filmlet.pipeline import denoise, stages
from filmlet.settings import Settings


def main() -> None:
    stage, done, marker = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    make = stages.write_clip

    def write_clip(*args: Any, **options: Any) -> Generator[Event]:
        for event in make(*args, **options):
            here = isinstance(event, Progress) and event.stage == stage and event.done >= done
            if here and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield event

    stages.write_clip = write_clip
    denoise.CHECKPOINT_INTERVAL_S = -1.0
    sys.exit(run_worker(Settings.from_environment()))


if __name__ == "__main__":
    main()
