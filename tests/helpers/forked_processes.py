"""Commands, servers and workers that start at once: forked from a process that has the imports.

Only the imports are shared, and what libraries read while they are imported (OMP_NUM_THREADS,
HF_ENDPOINT). Each has a process of its own, which can be killed at any moment. Importing torch,
diffusers and Gradio takes ten seconds of a CPU, which most commands of a test would spend.
"""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.helpers.marks import require_mark

ROOT = Path(__file__).parents[2]
COMMAND_LINE = "filmlet.cli.main"
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        COMMAND_LINE, "filmlet.jobs.worker", "filmlet.engine.torch.engine",
        "filmlet.engine.openvino.engine", "filmlet.server", "tests.helpers.crashing_worker",
    ]
)  # fmt: skip


class ForkedProcess:
    """`python -m MODULE WORDS`; the methods are those of subprocess.Popen."""

    def __init__(
        self,
        words: Sequence[str],
        environment: dict[str, str],
        stderr: Path,
        *,
        module: str = COMMAND_LINE,
        cwd: Path = ROOT,
        stdout: Path | None = None,
    ) -> None:
        """stderr, stdout: files that get what it writes, stdout with stderr if not named."""
        require_mark("server")
        self.stderr = stderr
        for file in {stderr, stdout or stderr}:
            file.touch()
        self._process = FORKS.Process(
            target=_become, args=(module, list(words), environment, cwd, stderr, stdout or stderr)
        )
        self._process.daemon = True
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid
        return self._process.pid

    def poll(self) -> int | None:
        """The exit status once it has ended; -9 where it was killed."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        status = self._process.exitcode
        if status is None:
            raise subprocess.TimeoutExpired(self.stderr.read_text(), timeout or 0.0)
        return status

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


def run_filmlet(
    *words: object, cwd: Path, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Run `filmlet WORDS` to its end; environment: in addition to that of the tests."""
    with TemporaryDirectory() as folder:
        stdout, stderr = (Path(folder) / name for name in ("stdout", "stderr"))
        process = ForkedProcess(
            [*map(str, words)], os.environ | environment, stderr, cwd=cwd, stdout=stdout
        )
        status = process.wait(300)
        return subprocess.CompletedProcess([*words], status, stdout.read_text(), stderr.read_text())


def _become(
    module: str, words: list[str], environment: dict[str, str], cwd: Path,
    stderr: Path, stdout: Path,
) -> None:  # fmt: skip
    """In the new process: what an interpreter that is started anew would have and do."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for number, path in ((1, stdout), (2, stderr)):
        with path.open("ab") as file:
            os.dup2(file.fileno(), number)
    sys.argv = [module, *words]
    sys.exit(import_module(module).main())
