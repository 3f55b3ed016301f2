"""Worker processes that begin at once: forked from one that has imported everything already.

Only the imports are shared, and what libraries read while they are imported (OMP_NUM_THREADS). Each
has a process of its own, which can be killed at any moment.
"""

import multiprocessing
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[2]
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["filmlet.cli.main", "filmlet.jobs.worker", "tests.helpers.crashing_worker"]
)


class WorkerProcess:
    """`python -m MODULE WORDS`, without the seconds that importing torch takes."""

    def __init__(
        self, module: str, words: Sequence[str], environment: dict[str, str], said: Path
    ) -> None:
        self.said = said  # what it writes to stdout and stderr
        self._process = FORKS.Process(
            target=_become, args=(module, list(words), environment, said), daemon=True
        )
        self._process.start()

    def poll(self) -> int | None:
        """The exit status once it has ended; -9 where it was killed."""
        return self._process.exitcode

    def wait(self, seconds: float | None = None) -> int:
        """The exit status, waited for."""
        self._process.join(seconds)
        status = self._process.exitcode
        assert status is not None, f"it still runs: {self.said.read_text()}"
        return status

    def terminate(self) -> None:
        """Tell it to stop."""
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


def _become(module: str, words: list[str], environment: dict[str, str], said: Path) -> None:
    """In the new process: what an interpreter that is started anew would have and do."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    with said.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = [module, *words]
    sys.exit(import_module(module).main())
