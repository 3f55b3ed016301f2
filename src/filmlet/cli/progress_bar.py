"""Progress bars of the command line, on stderr."""

from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Lines

from filmlet.core.events import Event, Progress, Stage
from filmlet.models import DownloadProgress


class StageProgressBar:
    """Shows the stage in hand in one line, which goes when the clip is there."""

    def __init__(self) -> None:
        self.progress = Lines(
            TextColumn("{task.description:12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self.task = self.progress.add_task("")
        self.stage: Stage | None = None

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def update(self, event: Event) -> None:
        """Show the event's stage; a new one at once, however short it is."""
        if not isinstance(event, Progress):
            return
        self.progress.update(
            self.task,
            description=event.stage.value,
            completed=event.done,
            total=event.total,
            refresh=event.stage != self.stage,
        )
        self.stage = event.stage


class DownloadProgressBar:
    """Shows a bar for each file of a download, and one for all."""

    def __init__(self, quiet: bool) -> None:
        self.lines = Lines(
            TextColumn("{task.description:40.40}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True, quiet=quiet),
        )
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self.lines.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.lines.stop()

    def update(self, so_far: DownloadProgress) -> None:
        """Update the bars of the file and of all."""
        if not so_far.file:
            return  # nothing has come yet
        for name, done, total in (
            ("all", so_far.all_done, so_far.all_size),
            (so_far.file, so_far.done, so_far.size),
        ):
            if name not in self.tasks:
                self.tasks[name] = self.lines.add_task(name, total=total)
            self.lines.update(self.tasks[name], completed=done)
