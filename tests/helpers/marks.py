"""Marks that say what a test takes, and a guard that fails a test without the mark.

`make check` runs the tests without any of HEAVY, so a test that starts a server without saying so
would make it slow. The guard watches the processes that a test starts, and the CPU time of the
tests' own process for what is computed there.
"""

import re
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

HEAVY = ("server", "browser", "compile", "training", "slow", "gpu", "hub")
MAX_CPU_S = 20.0  # of a test without a mark; most take a tenth of a second, the first imports torch
FIXTURE_MARKS = {
    "serve": "server",
    "shared_server": "server",
    "server": "server",  # one of a module, as the next four
    "web": "server",
    "keyed": "server",
    "zero": "server",
    "space": "server",  # in a thread of the tests' process, with Gradio
    "start": "server",
    "postgres": "server",
    "s3": "server",
    "browser": "browser",
    "cached": "server",  # a loopback Hub, and the process that downloads
}
PARAMETERS = {"postgres", "s3"}  # of the fixtures `settings` and `remote`, which ask for these
COMMAND_MARKS = {  # patterns of command lines
    r"chrom|playwright": "browser",
    r"-m recipe\b": "training",
    r"-m filmlet( |$)|filmlet\.(cli\.main|jobs\.worker|models\.download_process)": "server",
    r"\b(postgres|initdb|pg_ctl)\b|\bapp\.py\b|fake_zerogpu": "server",
}

_marks: frozenset[str] | None = None  # of the running test


def add_fixture_marks(items: Sequence[pytest.Item]) -> None:
    """Give each test the marks of its fixtures, also of those that a fixture's parameter names."""
    for item in items:
        names = {*getattr(item, "fixturenames", ())}
        if call := getattr(item, "callspec", None):
            names |= {name for name in call.params.values() if isinstance(name, str)} & PARAMETERS
        for mark in sorted({FIXTURE_MARKS[name] for name in names & FIXTURE_MARKS.keys()}):
            item.add_marker(mark)


def has_only_left_out(path: Path, expression: str) -> bool:
    """Whether a file says at its top that `-m 'not (a or b)'` leaves out each of its tests.

    It need not be imported then, nor what it imports.
    """
    left_out = re.fullmatch(r"not \(([\w ]+)\)", expression)
    at_top = re.search(r"^pytestmark = (.+)$", path.read_text(), re.MULTILINE)
    if not left_out or not at_top:
        return False
    names = re.findall(r"pytest\.mark\.(\w+)", at_top.group(1))
    return not set(names).isdisjoint(left_out.group(1).split(" or "))


@contextmanager
def guard_processes(item: pytest.Item) -> Iterator[None]:
    """Refuse processes that the marks of the test do not allow, also to its fixtures.

    Not at their end: what a session shares ends with whichever test is the last.
    """
    global _marks
    _marks = frozenset(mark.name for mark in item.iter_markers())
    try:
        yield
    finally:
        _marks = None


@contextmanager
def guard_cpu_time(item: pytest.Item) -> Generator[None]:
    """Fail a test without marks that computes for long in the tests' own process."""
    started = time.process_time()
    yield
    seconds = time.process_time() - started
    if not any(item.get_closest_marker(mark) for mark in HEAVY):
        assert seconds <= MAX_CPU_S, f"{seconds:.0f} s of CPU time: mark the test `compile`"


def required_mark(command: str) -> str | None:
    """The mark that a test needs to start a process with this command line."""
    found = (mark for pattern, mark in COMMAND_MARKS.items() if re.search(pattern, command))
    return next(found, None)


def require_mark(mark: str | None) -> None:
    """Raise AssertionError if a test without the mark is running."""
    if mark and _marks is not None and mark not in _marks:
        raise AssertionError(f"what this test starts needs pytest.mark.{mark}")


def _check_process(event: str, details: tuple[object, ...]) -> None:
    if event == "subprocess.Popen":
        words = details[1] if isinstance(details[1], list | tuple) else [details[1]]
        require_mark(required_mark(" ".join(map(str, words))))


def install_guard() -> None:
    """Check each process that Python code starts from now on. Python removes no audit hook."""
    sys.addaudithook(_check_process)
