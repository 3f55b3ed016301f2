"""The command line. Heavy imports wait until a command needs them."""

import argparse
import json
import re
import select
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from filmlet.cli import space
from filmlet.cli.options import build_parser
from filmlet.cli.process import (
    check_words,
    drop_output,
    explain_system_error,
    prepare_streams,
    print_out,
)
from filmlet.core.guide import parse_keyframe
from filmlet.core.lora import parse_lora
from filmlet.core.request import FORMATS, ClipRequest, build_request, parse_float, parse_int
from filmlet.errors import FilmletError, InvalidRequest, MissingDependency, OutOfMemory

if TYPE_CHECKING:
    from filmlet.core.events import Event
    from filmlet.pipeline.plan import Plan
    from filmlet.pipeline.prepare import GenerationState


EXIT_ERROR = 2
EXIT_SIGPIPE = 128 + 13  # a shell's status of a process that SIGPIPE has ended
CLIPS = Path("clips")
AGAIN_S = 0.01  # until an interruption that was dropped is raised once more
COMMANDS_WITHOUT_SERVER = (
    "generate",
    "models",
)  # commands that take none of the server's libraries


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or a polite kill; `code` is told as that of an error is.

    A kind of its own, for Python ends a process by SIGINT, whatever its exit status, once a plain
    KeyboardInterrupt has passed through code that was compiled from a string, as imports do.
    """

    code = "interrupted"

    def __init__(self, number: int) -> None:
        super().__init__("stopped; nothing was left behind.")
        self.status = 128 + (number if number == signal.SIGTERM else signal.SIGINT)


heard: list[Interrupted] = []  # those that this command was told


def _interrupt(number: int, _: object) -> None:
    heard.append(Interrupted(number))
    raise heard[-1]


def _install_signal_handlers() -> None:
    """Be interrupted wherever it is. Python drops what its own callbacks raise: then once more."""
    heard.clear()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, _interrupt)
    tell = sys.unraisablehook

    def interrupt_again(dropped: "sys.UnraisableHookArgs") -> None:
        if isinstance(dropped.exc_value, Interrupted):
            signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
        else:
            tell(dropped)

    sys.unraisablehook = interrupt_again


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0, or 2 with a sentence on stderr.

    Interrupted, it is a shell's status of that: 130 by Ctrl-C, 143 by SIGTERM. Where nobody reads
    its output any more, it ends as if by SIGPIPE, without a word.
    """
    _install_signal_handlers()
    prepare_streams()
    options = argparse.Namespace()
    try:
        build_parser().parse_args(arguments, options)
        check_words(options)
        status = COMMANDS[options.command](options)
        sys.stdout.flush()
        return status
    except BaseException as error:
        if isinstance(error, BrokenPipeError) and _is_pipe_closed():
            drop_output(sys.stdout)
            return EXIT_SIGPIPE
        told = _explain_errors(error, options)
        if told is None:
            raise
        return _print_error(told, options)


def _explain_errors(
    error: BaseException, options: argparse.Namespace
) -> "FilmletError | Interrupted | None":
    """What is said of an error, if it is none of ours; None is a mistake in the program."""
    match error:
        case FilmletError() | Interrupted():
            return error
        case Exception() if heard:  # a library made another error of the interruption
            return heard[-1]
        case OSError():
            return explain_system_error(error)
        case MemoryError():
            return OutOfMemory("This machine has too little memory for that.")
        case ModuleNotFoundError() if options.command not in COMMANDS_WITHOUT_SERVER:
            needs = f"filmlet {options.command} takes {error.name}: pip install 'filmlet[server]'"
            return MissingDependency(needs)
    return None


def _is_pipe_closed() -> bool:
    """Whether nobody reads any more what is printed."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)  # tells errors alone
    return bool(output.poll(0))


def submit(options: argparse.Namespace) -> int:
    """Put a clip into the queue."""
    from filmlet.cli import jobs as cli_jobs

    return cli_jobs.submit(options, _build_request(options))


def jobs(options: argparse.Namespace) -> int:
    """Look at jobs or change them."""
    from filmlet.cli import jobs as cli_jobs

    return cli_jobs.jobs(options)


def models(options: argparse.Namespace) -> int:
    """Look at models, fetch them or make room."""
    from filmlet.cli import models as cli_models

    return cli_models.models(options)


def plan(options: argparse.Namespace) -> int:
    """Say what a clip would take."""
    from filmlet.cli import models as cli_models

    return cli_models.plan(options, _build_request(options))


def worker(options: argparse.Namespace) -> int:
    """Run jobs."""
    from filmlet.cli import jobs as cli_jobs

    return cli_jobs.worker(options)


def serve(options: argparse.Namespace) -> int:
    """Serve the API."""
    from filmlet.cli import serve as cli_serve

    return cli_serve.serve(options)


def keys(options: argparse.Namespace) -> int:
    """Look at keys or change them."""
    from filmlet.cli import serve as cli_serve

    return cli_serve.keys(options)


def generate(options: argparse.Namespace) -> int:
    """Make a clip as `options` ask and tell where it is."""
    from filmlet.pipeline.plan import make_plan as planning

    started = time.perf_counter()
    request = _build_request(options)
    suffix = _output_suffix(options)
    planned = planning(request)
    with _cleanup_new_folders(options.output or CLIPS / "clip"):
        report = _generate(options, planned, suffix, started)
    print(report.as_json() if options.json else report.as_text())
    return 0


def _generate(
    options: argparse.Namespace, planned: "Plan", suffix: str, started: float
) -> "Report":
    from filmlet.media import check_output_path

    if options.output:
        check_output_path(options.output, options.force)
    from filmlet.core.events import StageFinished
    from filmlet.pipeline import stages
    from filmlet.pipeline.prepare import prepare
    from filmlet.settings import Settings

    timings: dict[str, float] = {}
    with _progress_bar(quiet=options.json) as bar:
        work = _drain_with_progress(prepare(planned, Settings.from_environment()), bar.update)
        path = options.output or _unused_path(planned.request.prompt, work.effective.seed, suffix)
        check_output_path(path, options.force)
        with (
            _save_previews(path if options.preview else None) as preview,
            closing(stages.write_clip(work, path, options.force)) as events,
        ):
            for event in events:
                if isinstance(event, StageFinished):
                    before = timings.get(event.stage.value, 0.0)
                    timings[event.stage.value] = round(before + event.seconds, 3)
                bar.update(event)
                preview(event)
    return Report(path, work, timings, time.perf_counter() - started)


def _drain_with_progress(
    events: "Generator[Event, None, GenerationState]", show: Callable[["Event"], None]
) -> "GenerationState":
    """What the events come to, each of them shown."""
    with closing(events):
        while True:
            try:
                show(next(events))
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]


@contextmanager
def _cleanup_new_folders(path: Path) -> Iterator[None]:
    """Folders that are made for a clip go with it if it fails."""
    new = [folder for folder in path.parents if not folder.exists()]
    try:
        yield
    except BaseException:
        for folder in new:
            with suppress(OSError):
                folder.rmdir()
        raise


COMMANDS = {
    "generate": generate,
    "submit": submit,
    "jobs": jobs,
    "models": models,
    "plan": plan,
    "worker": worker,
    "serve": serve,
    "keys": keys,
    "space": space.space,
}


@dataclass(frozen=True)
class Report:
    """What was made, for people and for programs."""

    path: Path
    work: "GenerationState"
    timings: dict[str, float]
    seconds: float

    def as_text(self) -> str:
        done = self.work.effective
        shape = done.shape
        lines = [
            str(self.path),
            f"  seed {done.seed}, {shape.width}x{shape.height}, {shape.frames} frames at "
            f"{shape.fps:g} a second, {self.seconds:.1f} s taken",
        ]
        lines += [f"  note: {change.reason}" for change in done.changes]
        return "\n".join(lines)

    def as_json(self) -> str:
        table = {
            "path": str(self.path),
            "seed": self.work.effective.seed,
            "requested": self.work.plan.request.explicit_settings(),
            "effective": self.work.effective.as_json(),
            "seconds_taken": round(self.seconds, 3),
            "timings": self.timings,
        }
        return json.dumps(table, ensure_ascii=False, indent=2)


def _build_request(options: argparse.Namespace) -> ClipRequest:
    return build_request(
        options.prompt,
        size=options.size,
        model=options.model,
        negative_prompt=options.negative_prompt,
        force_guidance=options.force_guidance,
        draft=options.draft,
        image=options.image,
        last_image=options.last_image,
        guides=[parse_keyframe(text) for text in options.keyframe],
        extend=options.extend,
        extend_backward=options.backward,
        loras=[parse_lora(text) for text in options.lora],
        extra_prompts=options.then,
        **_parse_numbers(options),
    )


def _parse_numbers(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that are numbers, those given."""
    numbers: dict[str, Any] = {}
    for name in ("seed", "frames", "steps", "seconds", "fps", "guidance"):
        text = getattr(options, name)
        if text is not None:
            is_int = name in ("seed", "frames", "steps")
            numbers[name] = parse_int(text, name) if is_int else parse_float(text, name)
    return numbers


def _output_suffix(options: argparse.Namespace) -> str:
    """The file's suffix; --format and --output must agree."""
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


def _unused_path(prompt: str, seed: int, suffix: str) -> Path:
    """A name in clips/ that says what the clip shows and is not taken."""
    slug = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")[:48].rstrip("-") or "clip"
    path, number = CLIPS / f"{slug}-{seed}{suffix}", 2
    while path.exists():
        path, number = path.with_name(f"{slug}-{seed}-{number}{suffix}"), number + 1
    return path


class ProgressReporter(Protocol):
    """Whatever shows progress to a person."""

    def update(self, event: "Event") -> None: ...


class NullProgressBar:
    """Shows nothing: for pipes and for --json."""

    def update(self, event: "Event") -> None:
        """Take one event."""


@contextmanager
def _progress_bar(quiet: bool) -> Iterator[ProgressReporter]:
    """A progress bar with the stage's name where a person watches."""
    if quiet or not sys.stderr.isatty():
        yield NullProgressBar()
        return
    from filmlet.cli.progress_bar import StageProgressBar

    with StageProgressBar() as bar:
        yield bar


@contextmanager
def _save_previews(clip: Path | None) -> Iterator[Callable[["Event"], None]]:
    """Keeps a picture beside the clip up to date; a clip that fails takes it along."""
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


def _print_error(error: FilmletError | Interrupted, options: argparse.Namespace) -> int:
    if getattr(options, "json", False):
        param = getattr(error, "param", None)
        error_json = {"error": {"code": error.code, "message": str(error), "param": param}}
        print_out(json.dumps(error_json, ensure_ascii=False, indent=2), sys.stdout)
    print_out(f"filmlet: {error} [{error.code}]", sys.stderr)
    return error.status if isinstance(error, Interrupted) else EXIT_ERROR
