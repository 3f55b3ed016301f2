"""The command line. Heavy imports wait until a command needs them."""

import argparse
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from filmlet import __version__, cli_space
from filmlet.errors import FilmletError, InvalidRequest, LibraryMissing
from filmlet.guide import parse_keyframe
from filmlet.lora import parse_lora
from filmlet.request import FORMATS, ClipRequest, clip_request, parse_number, parse_whole

if TYPE_CHECKING:
    from filmlet.events import Event
    from filmlet.plan import Plan
    from filmlet.work import Work


REFUSED = 2
UNREAD = 128 + 13  # a shell's status of a process that SIGPIPE has ended
CLIPS = Path("clips")
ALONE = ("generate", "models")  # commands that take none of the server's libraries


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or a polite kill; `code` is told as that of an error is.

    A kind of its own, for Python ends a process by SIGINT, whatever its exit status, once a plain
    KeyboardInterrupt has passed through code that was compiled from a string, as imports do.
    """

    code = "interrupted"


def _interrupt(*_: object) -> None:
    raise Interrupted("stopped; nothing was left behind.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0, or 2 with a sentence on stderr.

    Where nobody reads its output any more, it ends as if by SIGPIPE, without a word.
    """
    options = parser().parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    as_json = getattr(options, "json", False)
    try:
        status = COMMANDS[options.command](options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to come
        return UNREAD
    except (FilmletError, Interrupted) as error:
        return _refuse(error, as_json=as_json)
    except ModuleNotFoundError as error:
        if options.command in ALONE:
            raise
        needs = f"filmlet {options.command} takes {error.name}: pip install 'filmlet[server]'"
        return _refuse(LibraryMissing(needs), as_json=as_json)


class Command(argparse.ArgumentParser):
    """Takes its options before, between and after its words."""

    is_mixing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Those of `argparse` have nobody for words that follow an option, once some came first."""
        if self.is_mixing or self._subparsers:  # those of a command's own take theirs
            return super().parse_known_args(args, namespace)
        self.is_mixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self.is_mixing = False


def parser() -> argparse.ArgumentParser:
    """Every command and option."""
    top = argparse.ArgumentParser(
        prog="filmlet", description="Turn a sentence into a short video on this machine."
    )
    top.add_argument("--version", action="version", version=f"filmlet {__version__}")
    commands = top.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=Command
    )
    make = commands.add_parser("generate", help="make one clip", description="Make one clip.")
    _clip_options(make)
    make.add_argument("-o", "--output", type=Path, help="file to write (default: in clips/)")
    make.add_argument("--force", action="store_true", help="overwrite the file")
    make.add_argument("--format", help=f"{', '.join(FORMATS)} (default: as --output ends)")
    make.add_argument(
        "--preview", action="store_true", help="keep OUTPUT.preview.png up to date after each step"
    )
    queue = commands.add_parser("submit", help="put a clip into the queue, print its id")
    _clip_options(queue)
    queue.add_argument("--priority", choices=("high", "normal", "low"), default="normal")
    queue.add_argument("--key", help="asking twice under one key makes one job")
    look = commands.add_parser("jobs", help="list, show, watch, cancel, retry, refine, delete jobs")
    actions = ("list", "show", "watch", "cancel", "retry", "refine", "delete")
    look.add_argument("action", nargs="?", choices=actions, default="list")
    look.add_argument("id", nargs="?", help="the job's id")
    look.add_argument("--limit", type=int, default=50, help="how many to list (default: 50)")
    look.add_argument("--json", action="store_true", help="print JSON")
    _model_commands(commands)
    _server_commands(commands)
    cli_space.options(commands)
    return top


def _model_commands(commands: "argparse._SubParsersAction[Any]") -> None:
    """Which models there are, and what a clip would take."""
    known = commands.add_parser("models", help="list, show, pull, prune, export models")
    actions = ("list", "show", "pull", "prune", "export")
    known.add_argument("action", nargs="?", choices=actions, default="list")
    known.add_argument("names", nargs="*", metavar="NAME", help="of the catalogue, or OWNER/NAME")
    known.add_argument("--json", action="store_true", help="print JSON")
    ahead = commands.add_parser("plan", help="say what a clip would take, make none")
    _clip_options(ahead, is_made=False)


def _server_commands(commands: "argparse._SubParsersAction[Any]") -> None:
    """What a machine that makes clips for others runs."""
    work = commands.add_parser("worker", help="run jobs until told to stop")
    work.add_argument("--quiet", action="store_true", help="log warnings only")
    work.add_argument(
        "--finish", action="store_true", help="when told to stop, finish the job in hand"
    )
    work.add_argument("--supervised", action="store_true", help="stop when stdin closes")
    _log_option(work)
    web = commands.add_parser("serve", help="serve the API and make clips, on this machine")
    web.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    web.add_argument("--port", type=int, default=7860, help="port to listen on (7860)")
    web.add_argument("--open", action="store_true", help="let others in without a key")
    web.add_argument("--no-worker", action="store_true", help="make no clips here")
    web.add_argument(
        "--finish", action="store_true", help="when told to stop, finish the clip in hand"
    )
    _log_option(web)
    keys = commands.add_parser("keys", help="list, add, remove keys of the server's users")
    keys.add_argument("action", nargs="?", choices=("list", "add", "remove"), default="list")
    keys.add_argument("name", nargs="?", help="whose key")
    keys.add_argument("--admin", action="store_true", help="sees and cancels everybody's jobs")
    keys.add_argument("--max-active", type=int, metavar="N", help="unfinished jobs at once")
    keys.add_argument("--max-per-minute", type=int, metavar="N", help="jobs a minute")
    keys.add_argument("--seconds-per-day", type=float, metavar="S", help="of video, 0: any")
    keys.add_argument("--webhook", metavar="URL", help="is told when a job is over")
    keys.add_argument("--json", action="store_true", help="print JSON")


def _log_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--log", choices=("lines", "json"), default="lines", help="form of the log"
    )


def _clip_options(make: argparse.ArgumentParser, *, is_made: bool = True) -> None:
    """What a clip can be asked for."""
    words = 'what to show, such as "a cat moving left on white"'
    make.add_argument("prompt", help=words, nargs=None if is_made else "?", default="a clip")
    make.add_argument(
        "--then", metavar="PROMPT", action="append", default=[],
        help="what to show after that, for an equal share of the clip; may be said again",
    )  # fmt: skip
    make.add_argument("--model", default="pocket", help="name or folder (default: pocket)")
    make.add_argument("--seed", help="the same seed and settings give the same file")
    make.add_argument("--seconds", help="length of the clip")
    make.add_argument("--frames", help="length of the clip in frames, instead of --seconds")
    make.add_argument("--size", metavar="WxH", help="width x height in pixels")
    make.add_argument("--fps", help="frames a second")
    make.add_argument("--steps", help="model calls")
    make.add_argument("--negative-prompt", default="", help="what to avoid (needs guidance)")
    make.add_argument("--guidance", help="guidance scale; distilled models need none")
    make.add_argument("--force-guidance", action="store_true", help="guide a distilled model too")
    make.add_argument("--draft", action="store_true", help="the first of two stages alone")
    make.add_argument("--image", metavar="FILE", help="a picture, the clip's first frame")
    make.add_argument("--last-image", metavar="FILE", help="a picture, its last frame")
    make.add_argument(
        "--keyframe", metavar="FILE@FRAME[:STRENGTH]", action="append", default=[],
        help="a picture or a video that it shows from that frame on; may be said again",
    )  # fmt: skip
    make.add_argument("--extend", metavar="CLIP", help="a clip to go on from, new frames follow")
    make.add_argument("--backward", action="store_true", help="new frames come before --extend's")
    make.add_argument(
        "--lora", metavar="SOURCE[:STRENGTH]", action="append", default=[],
        help="a .safetensors file or a Hub name, owner/name[/file]; may be said again",
    )  # fmt: skip
    make.add_argument("--json", action="store_true", help="print one JSON object")


def submit(options: argparse.Namespace) -> int:
    """Put a clip into the queue."""
    from filmlet import cli_jobs

    return cli_jobs.submit(options, _request(options))


def jobs(options: argparse.Namespace) -> int:
    """Look at jobs or change them."""
    from filmlet import cli_jobs

    return cli_jobs.jobs(options)


def models(options: argparse.Namespace) -> int:
    """Look at models, fetch them or make room."""
    from filmlet import cli_models

    return cli_models.models(options)


def plan(options: argparse.Namespace) -> int:
    """Say what a clip would take."""
    from filmlet import cli_models

    return cli_models.plan(options, _request(options))


def worker(options: argparse.Namespace) -> int:
    """Run jobs."""
    from filmlet import cli_jobs

    return cli_jobs.worker(options)


def serve(options: argparse.Namespace) -> int:
    """Serve the API."""
    from filmlet import cli_serve

    return cli_serve.serve(options)


def keys(options: argparse.Namespace) -> int:
    """Look at keys or change them."""
    from filmlet import cli_serve

    return cli_serve.keys(options)


def generate(options: argparse.Namespace) -> int:
    """Make a clip as `options` ask and tell where it is."""
    from filmlet.plan import plan as planning

    started = time.perf_counter()
    request = _request(options)
    suffix = _suffix(options)
    planned = planning(request)
    with _room(options.output or CLIPS / "clip"):
        report = _film(options, planned, suffix, started)
    print(report.as_json() if options.json else report.as_text())
    return 0


def _film(options: argparse.Namespace, planned: "Plan", suffix: str, started: float) -> "Report":
    from filmlet.media import check_target

    if options.output:
        check_target(options.output, options.force)
    from filmlet import stages
    from filmlet.events import Finished
    from filmlet.settings import Settings
    from filmlet.work import prepare

    timings: dict[str, float] = {}
    with _bar(quiet=options.json) as bar:
        work = _shown(prepare(planned, Settings.from_environment()), bar.show)
        path = options.output or _free_name(planned.request.prompt, work.effective.seed, suffix)
        check_target(path, options.force)
        with (
            _preview(path if options.preview else None) as preview,
            closing(stages.film(work, path, options.force)) as events,
        ):
            for event in events:
                if isinstance(event, Finished):
                    before = timings.get(event.stage.value, 0.0)
                    timings[event.stage.value] = round(before + event.seconds, 3)
                bar.show(event)
                preview(event)
    return Report(path, work, timings, time.perf_counter() - started)


def _shown(events: "Generator[Event, None, Work]", show: Callable[["Event"], None]) -> "Work":
    """What the events come to, each of them shown."""
    with closing(events):
        while True:
            try:
                show(next(events))
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]


@contextmanager
def _room(path: Path) -> Iterator[None]:
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
    "space": cli_space.space,
}


@dataclass(frozen=True)
class Report:
    """What was made, for people and for programs."""

    path: Path
    work: "Work"
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
            "requested": self.work.plan.request.asked(),
            "effective": self.work.effective.as_json(),
            "seconds_taken": round(self.seconds, 3),
            "timings": self.timings,
        }
        return json.dumps(table, ensure_ascii=False, indent=2)


def _request(options: argparse.Namespace) -> ClipRequest:
    return clip_request(
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
        backward=options.backward,
        loras=[parse_lora(text) for text in options.lora],
        then=options.then,
        **_numbers(options),
    )


def _numbers(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that are numbers, those given."""
    numbers: dict[str, Any] = {}
    for name in ("seed", "frames", "steps", "seconds", "fps", "guidance"):
        text = getattr(options, name)
        if text is not None:
            whole = name in ("seed", "frames", "steps")
            numbers[name] = parse_whole(text, name) if whole else parse_number(text, name)
    return numbers


def _suffix(options: argparse.Namespace) -> str:
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


def _free_name(prompt: str, seed: int, suffix: str) -> Path:
    """A name in clips/ that says what the clip shows and is not taken."""
    words = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")[:48].rstrip("-") or "clip"
    path, number = CLIPS / f"{words}-{seed}{suffix}", 2
    while path.exists():
        path, number = path.with_name(f"{words}-{seed}-{number}{suffix}"), number + 1
    return path


class Bar(Protocol):
    """Whatever shows progress to a person."""

    def show(self, event: "Event") -> None: ...


class NoBar:
    """Shows nothing: for pipes and for --json."""

    def show(self, event: "Event") -> None:
        """Take one event."""


@contextmanager
def _bar(quiet: bool) -> Iterator[Bar]:
    """A progress bar with the stage's name where a person watches."""
    if quiet or not sys.stderr.isatty():
        yield NoBar()
        return
    from filmlet.bar import TerminalBar

    with TerminalBar() as bar:
        yield bar


@contextmanager
def _preview(clip: Path | None) -> Iterator[Callable[["Event"], None]]:
    """Keeps a picture beside the clip up to date; a clip that fails takes it along."""
    from filmlet.events import Preview
    from filmlet.media import save_still

    picture = clip.with_name(clip.name + ".preview.png") if clip else None

    def keep(event: "Event") -> None:
        if picture and isinstance(event, Preview):
            save_still(picture, event.image)

    try:
        yield keep
    except BaseException:
        if picture:
            picture.unlink(missing_ok=True)
        raise


def _refuse(error: FilmletError | Interrupted, *, as_json: bool) -> int:
    if as_json:
        param = getattr(error, "param", None)
        told = {"error": {"code": error.code, "message": str(error), "param": param}}
        print(json.dumps(told, ensure_ascii=False, indent=2))
    print(f"filmlet: {error} [{error.code}]", file=sys.stderr)
    return REFUSED
