"""A run of items within a budget: one that raises is reported, and what is there is written."""

import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from types import FrameType

import torch

from bench.gpu.measure import Figure, Limits
from bench.gpu.models import RandomModel
from bench.gpu.sizes import ModelSize
from filmlet.engine.placement import Placement, release_memory

PATIENCE = 3.0


class ItemStatus(StrEnum):
    WAITING = "waiting"
    MEASURED = "measured"
    SKIPPED = "skipped"
    FAILED = "failed"


class NotApplicableError(Exception):
    """An item cannot be measured on this device."""


class BudgetSpentError(Exception):
    """The time of an item, or of all of them, is over in the middle of one."""


@dataclass(frozen=True)
class Measurement:
    """What an item found. text: Markdown that stands below the figures."""

    figures: list[Figure] = field(default_factory=list)
    text: str = ""


@dataclass(frozen=True)
class Item:
    """One thing to measure. expected_s: on an H200; it is skipped where less time is left."""

    name: str
    expected_s: float
    measure: Callable[["Session"], Measurement]


@dataclass
class ItemResult:
    """reason: why it was skipped, or failed."""

    name: str
    status: ItemStatus = ItemStatus.WAITING
    reason: str = ""
    took_s: float = 0.0
    found: Measurement = field(default_factory=Measurement)


class Session:
    """What items share. started: of the monotonic clock, in seconds, as `budget_s`.

    patience: how many times as long as expected an item may take.
    """

    def __init__(
        self,
        placement: Placement,
        started: float,
        budget_s: float,
        runs: int,
        patience: float = PATIENCE,
    ) -> None:
        self.placement, self.runs, self.patience = placement, runs, patience
        self.started, self.budget_s = started, budget_s
        self.limits: Limits | None = None
        self._model: RandomModel | None = None

    @property
    def left_s(self) -> float:
        return self.started + self.budget_s - time.monotonic()

    def model(self, size: ModelSize) -> RandomModel:
        """The model of a size; one is in memory at a time, and stays for the next item."""
        if self._model is None or self._model.size != size:
            self.forget_model()
            self._model = RandomModel(size, self.placement)
        return self._model

    def forget_model(self) -> None:
        self._model = None
        release_memory(self.placement.device)

    def run(self, items: Sequence[Item]) -> Iterator[list[ItemResult]]:
        """Measure one after the other; yields all results after each."""
        results = [ItemResult(item.name) for item in items]
        for item, result in zip(items, results, strict=True):
            started = time.monotonic()
            self._run_item(item, result)
            result.took_s = time.monotonic() - started
            yield results

    def _run_item(self, item: Item, result: ItemResult) -> None:
        if self.left_s < item.expected_s:
            result.status = ItemStatus.SKIPPED
            result.reason = f"{max(0.0, self.left_s):.0f} s left, it takes {item.expected_s:.0f}"
            return
        torch.compiler.reset()  # or recompilations of several models add up to torch's limit
        try:
            with time_limit(min(self.left_s, self.patience * item.expected_s)):
                result.found = item.measure(self)
            result.status = ItemStatus.MEASURED
        except NotApplicableError as error:
            result.status, result.reason = ItemStatus.SKIPPED, str(error)
        except Exception as error:
            result.status, result.reason = ItemStatus.FAILED, describe_error(error)
        if result.status is ItemStatus.FAILED:
            self.forget_model()  # it may be half changed


def describe_error(error: Exception) -> str:
    """Its class and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else 'no message'}"


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise BudgetSpentError in the main thread once so many seconds are over."""

    def interrupt(_: int, __: FrameType | None) -> None:
        raise BudgetSpentError(f"stopped after {seconds:.1f} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, max(0.001, seconds))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def write_json(path: Path, about: dict[str, str], results: Sequence[ItemResult]) -> None:
    """All that was found; the file is whole at any time."""
    table = {"about": about, "items": [asdict(result) for result in results]}
    write_whole(path, json.dumps(table, indent=1) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Replace a file at once."""
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_text(text)
    unfinished.replace(path)
