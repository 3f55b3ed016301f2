"""A worker that waits after each step of denoising: `python -m tests.helpers.slow_worker MARKER`.

It is in the middle of a clip for seconds, whatever the machine, and takes no CPU time for that.
Once the file MARKER exists, it waits no more.
"""

import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from filmlet.cli import main as cli
from filmlet.core.events import Event, Progress, Stage
from filmlet.pipeline import stages

STEP_S = 0.1


def main() -> None:
    marker = Path(sys.argv[1])
    write = stages.write_clip

    def write_clip(*args: Any, **options: Any) -> Generator[Event]:
        for event in write(*args, **options):
            yield event
            if isinstance(event, Progress) and event.stage == Stage.DENOISE and not marker.exists():
                time.sleep(STEP_S)

    stages.write_clip = write_clip
    sys.exit(cli.main(["worker"]))


if __name__ == "__main__":
    main()
