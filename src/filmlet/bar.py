"""The progress bar of the command line: one line a stage, on stderr."""

from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Lines

from filmlet.events import Event, Progress, Stage


class TerminalBar:
    """A context in which events become bars."""

    def __init__(self) -> None:
        self.lines = Lines(
            TextColumn("{task.description:8}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        )
        self.tasks: dict[Stage, TaskID] = {}

    def __enter__(self) -> Self:
        self.lines.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.lines.stop()

    def show(self, event: Event) -> None:
        """Move the bar of the stage that the event tells of."""
        if not isinstance(event, Progress):
            return
        if event.stage not in self.tasks:
            self.tasks[event.stage] = self.lines.add_task(event.stage.value, total=event.total)
        self.lines.update(self.tasks[event.stage], completed=event.done)
