"""`filmlet generate`: a clip, or variations of it, made in this process."""

import argparse
import re
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from filmlet.cli.downloads import confirm_download
from filmlet.cli.enhance import enhance_clip_request
from filmlet.cli.options import (
    Commands,
    add_clip_options,
    add_download_option,
    add_quiet_option,
    add_variations_option,
    build_clip_request,
    split_by_seed,
)
from filmlet.cli.process import show_file, to_json
from filmlet.core.request import FORMATS, ClipRequest
from filmlet.errors import InvalidRequest

if TYPE_CHECKING:
    from filmlet.core.effective import EffectiveSettings
    from filmlet.core.events import Event
    from filmlet.pipeline.engine_cache import EngineCache
    from filmlet.pipeline.plan import Plan
    from filmlet.pipeline.prepare import PreparedClip

CLIPS = Path("clips")


def add_commands(commands: Commands) -> None:
    """Add `generate`."""
    command = commands.add_parser("generate", help="make one clip", description="Make one clip.")
    command.set_defaults(run=generate)
    add_clip_options(command)
    add_variations_option(command)
    add_download_option(command)
    command.add_argument("-o", "--output", type=Path, help="file to write (default: in clips/)")
    add_quiet_option(command, "no progress bar; print the path only")
    command.add_argument("--force", action="store_true", help="overwrite the file")
    command.add_argument("--format", help=f"{', '.join(FORMATS)} (default: as --output ends)")
    command.add_argument("--show", action="store_true", help="open the clip once it is finished")
    command.add_argument(
        "--preview", action="store_true", help="keep OUTPUT.preview.png up to date after each step"
    )


def generate(options: argparse.Namespace) -> int:
    """Make a clip, or variations of it, and print their paths as they are finished."""
    from filmlet.pipeline.engine_cache import EngineCache
    from filmlet.pipeline.plan import make_plan

    started = time.perf_counter()
    suffix = _output_suffix(options)
    request = enhance_clip_request(build_clip_request(options), options)
    engines = EngineCache()  # which all variations share
    for variation in split_by_seed(request, options.variations):
        planned = fit_to_format(make_plan(variation), suffix.removeprefix("."))
        output = options.output
        if output and options.variations > 1:
            output = output.with_stem(f"{output.stem}-{variation.seed}")
        with _cleanup_new_folders(output or CLIPS / "clip"):
            report = _generate(options, planned, output, engines, started)
        _print_report(options, replace(report, request=variation))
        started = time.perf_counter()
    return 0


def _print_report(options: argparse.Namespace, report: "Report") -> None:
    """Print what was made; of several clips in JSON one a line."""
    if options.json:
        print(report.as_json(indent=2 if options.variations == 1 else None))
    else:
        print(str(report.path) if options.quiet else report.as_text(), flush=True)
    if options.show:
        show_file(report.path)


def fit_to_format(planned: "Plan", form: str) -> "Plan":
    """Return the plan without the sound that the file would not hold."""
    from filmlet.core.effective import format_changes

    changes = tuple(format_changes(form, planned.has_audio))
    if not changes:
        return planned
    silent = replace(planned.request, audio=False)
    return replace(planned, request=silent, changes=(*planned.changes, *changes))


def _generate(
    options: argparse.Namespace,
    planned: "Plan",
    output: Path | None,
    engines: "EngineCache",
    started: float,
) -> "Report":
    """Make one clip. output: None for a name in clips/."""
    from filmlet.media import check_output_path, reserve_path

    if output:
        check_output_path(output, options.force)
    from filmlet.core.events import SettingsChanged, StageFinished
    from filmlet.pipeline import stages
    from filmlet.pipeline.prepare import prepare
    from filmlet.pipeline.run_context import RunContext
    from filmlet.settings import Settings

    settings = Settings.from_environment()
    confirm_download(planned, settings, agreed=options.yes)
    timings: dict[str, float] = {}
    with _progress_bar(quiet=options.json or options.quiet) as bar:
        clip = _drain_with_progress(prepare(planned, settings, engines=engines), bar.update)
        effective = clip.effective
        suffix = _output_suffix(options)
        paths = [output] if output else _default_paths(planned, effective, suffix)
        force = options.force and output is not None
        with (
            reserve_path(paths, force) as path,
            _save_previews(path if options.preview else None) as preview,
            closing(stages.generate_clip(clip, RunContext(engines), path, force)) as events,
        ):
            for event in events:
                if isinstance(event, StageFinished):
                    before = timings.get(event.stage.value, 0.0)
                    timings[event.stage.value] = round(before + event.seconds, 3)
                if isinstance(event, SettingsChanged):
                    effective = event.effective
                bar.update(event)
                preview(event)
    return Report(path, planned.request, effective, timings, time.perf_counter() - started)


def _drain_with_progress(
    events: "Generator[Event, None, PreparedClip]", show: Callable[["Event"], None]
) -> "PreparedClip":
    """Show all events; return the generator's result."""
    with closing(events):
        while True:
            try:
                show(next(events))
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]


@contextmanager
def _cleanup_new_folders(path: Path) -> Iterator[None]:
    """Delete the folders that are created for a clip if it fails."""
    new = [folder for folder in path.parents if not folder.exists()]
    try:
        yield
    except BaseException:
        for folder in new:
            with suppress(OSError):
                folder.rmdir()
        raise


@dataclass(frozen=True)
class Report:
    """The clip that was made, as text and as JSON."""

    path: Path
    request: ClipRequest
    effective: "EffectiveSettings"
    timings: dict[str, float]
    seconds: float

    def as_text(self) -> str:
        done = self.effective
        shape = done.shape
        lines = [
            str(self.path),
            f"  seed {done.seed}, {shape.width}x{shape.height}, {shape.frames} frames at "
            f"{shape.fps:g} a second{', with sound' if done.audio else ''}, "
            f"{self.seconds:.1f} s taken",
        ]
        lines += [f"  note: {change.reason}" for change in done.changes]
        return "\n".join(lines)

    def as_json(self, *, indent: int | None = 2) -> str:
        table = {
            "path": str(self.path),
            "seed": self.effective.seed,
            "requested": self.request.explicit_settings(),
            "effective": self.effective.as_json(),
            "seconds_taken": round(self.seconds, 3),
            "timings": self.timings,
        }
        return to_json(table, indent=indent)


def _output_suffix(options: argparse.Namespace) -> str:
    """Return the file's suffix. Raises InvalidRequest if --format and --output disagree."""
    if options.format is not None and options.format not in FORMATS:
        raise InvalidRequest(
            f"format must be one of {', '.join(FORMATS)}, got {options.format!r}.", param="format"
        )
    if options.output is None:
        return f".{options.format or 'mp4'}"
    suffix = options.output.suffix.lower()
    if options.format is not None and suffix != f".{options.format}":
        raise InvalidRequest(
            f"--output {options.output} does not end in .{options.format}.", param="format"
        )
    return str(suffix)


def _default_paths(planned: "Plan", effective: "EffectiveSettings", suffix: str) -> Iterator[Path]:
    """Yield the names in clips/ that a clip may have, by its prompt and seed, the best first."""
    prompt = planned.request.prompt.lower()
    slug = re.sub(r"[^\w]+", "-", prompt).strip("-")[:48].rstrip("-") or "clip"
    yield CLIPS / f"{slug}-{effective.seed}{suffix}"
    for number in count(2):
        yield CLIPS / f"{slug}-{effective.seed}-{number}{suffix}"


class ProgressReporter(Protocol):
    """Shows progress to a person."""

    def update(self, event: "Event") -> None: ...


class NullProgressBar:
    """Shows nothing: for pipes and --json."""

    def update(self, event: "Event") -> None:
        """Ignore an event."""


@contextmanager
def _progress_bar(quiet: bool) -> Iterator[ProgressReporter]:
    """Yield a progress bar, which shows nothing if stderr is not a terminal."""
    if quiet or not sys.stderr.isatty():
        yield NullProgressBar()
        return
    from filmlet.cli.progress_bar import StageProgressBar

    with StageProgressBar() as bar:
        yield bar


@contextmanager
def _save_previews(clip: Path | None) -> Iterator[Callable[["Event"], None]]:
    """Yield a function that saves previews beside the clip; they are deleted if it fails."""
    from filmlet.core.events import Preview
    from filmlet.media import save_image

    picture = clip.with_name(clip.name + ".preview.png") if clip else None

    def save_preview(event: "Event") -> None:
        if picture and isinstance(event, Preview):
            save_image(picture, event.image)

    try:
        yield save_preview
    except BaseException:
        if picture:
            picture.unlink(missing_ok=True)
        raise
