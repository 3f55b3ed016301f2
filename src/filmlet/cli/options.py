"""The command line's commands and options, as argparse has them."""

import argparse
from pathlib import Path
from typing import Any

from filmlet import __version__
from filmlet.cli import space
from filmlet.core.request import FORMATS

MAX_SECONDS = 1e9


class IntermixedParser(argparse.ArgumentParser):
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


def build_parser() -> argparse.ArgumentParser:
    """Every command and option."""
    top = argparse.ArgumentParser(
        prog="filmlet", description="Turn a sentence into a short video on this machine."
    )
    top.add_argument("--version", action="version", version=f"filmlet {__version__}")
    commands = top.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=IntermixedParser
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
    queue.add_argument("--key", help="idempotency key: two submissions with one key make one job")
    look = commands.add_parser("jobs", help="list, show, watch, cancel, retry, refine, delete jobs")
    actions = ("list", "show", "watch", "cancel", "retry", "refine", "delete")
    look.add_argument("action", nargs="?", choices=actions, default="list")
    look.add_argument("id", nargs="?", help="the job's id")
    look.add_argument(
        "--limit", type=_whole_number, default=50, help="number of jobs to list (default: 50)"
    )
    look.add_argument("--json", action="store_true", help="print JSON")
    _model_commands(commands)
    _server_commands(commands)
    space.add_commands(commands)
    return top


def _whole_number(text: str) -> int:
    """From 0 on, and small enough for a database's integer."""
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no whole number from 0 to 999999999")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no number from 0 to {MAX_SECONDS:.0f}")
    return seconds


def _model_commands(commands: "argparse._SubParsersAction[Any]") -> None:
    """Which models there are, and what a clip would take."""
    models = commands.add_parser("models", help="list, show, pull, prune, export models")
    actions = ("list", "show", "pull", "prune", "export")
    models.add_argument("action", nargs="?", choices=actions, default="list")
    models.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="name that `filmlet models` lists, or OWNER/NAME on the Hub",
    )
    models.add_argument("--json", action="store_true", help="print JSON")
    ahead = commands.add_parser(
        "plan", help="estimate download, memory and time of a clip; make none"
    )
    _clip_options(ahead, is_made=False)


def _server_commands(commands: "argparse._SubParsersAction[Any]") -> None:
    """What a machine that makes clips for others runs."""
    work = commands.add_parser("worker", help="run jobs until told to stop")
    work.add_argument("--quiet", action="store_true", help="log warnings only")
    work.add_argument(
        "--finish", action="store_true", help="finish the current job before stopping"
    )
    work.add_argument("--supervised", action="store_true", help="stop when stdin closes")
    _log_option(work)
    web = commands.add_parser("serve", help="serve page and API, and run a worker")
    web.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    web.add_argument("--port", type=_whole_number, default=7860, help="port to listen on (7860)")
    web.add_argument("--open", action="store_true", help="accept requests without a key")
    web.add_argument(
        "--allowed-host", metavar="NAME", action="append", default=[],
        help="a name that it answers to, of a proxy before it; may be said again",
    )  # fmt: skip
    web.add_argument("--no-worker", action="store_true", help="start no worker")
    web.add_argument(
        "--finish", action="store_true", help="finish the current clip before stopping"
    )
    _log_option(web)
    keys = commands.add_parser("keys", help="list, add, remove keys of the server's users")
    keys.add_argument("action", nargs="?", choices=("list", "add", "remove"), default="list")
    keys.add_argument("name", nargs="?", help="name of the key")
    keys.add_argument("--admin", action="store_true", help="may see and cancel all jobs")
    keys.add_argument(
        "--max-active", type=_whole_number, metavar="N", help="unfinished jobs at once"
    )
    keys.add_argument("--max-per-minute", type=_whole_number, metavar="N", help="jobs a minute")
    keys.add_argument(
        "--seconds-per-day",
        type=_seconds,
        metavar="S",
        help="seconds of video a day; 0 is unlimited",
    )
    keys.add_argument("--webhook", metavar="URL", help="URL to call when a job ends")
    keys.add_argument("--json", action="store_true", help="print JSON")


def _log_option(command: argparse.ArgumentParser) -> None:
    command.add_argument("--log", choices=("lines", "json"), default="lines", help="log format")


def _clip_options(make: argparse.ArgumentParser, *, is_made: bool = True) -> None:
    """What a clip can be asked for."""
    prompt_help = 'what to show, such as "a cat moving left on white"'
    make.add_argument("prompt", help=prompt_help, nargs=None if is_made else "?", default="a clip")
    make.add_argument(
        "--then", metavar="PROMPT", action="append", default=[],
        help="a further prompt; all share the clip's length equally; repeatable",
    )  # fmt: skip
    make.add_argument(
        "--model",
        default="pocket",
        help="name, folder, .safetensors file or OWNER/NAME (default: pocket)",
    )
    make.add_argument("--seed", help="same seed and settings, same file (default: random)")
    make.add_argument("--seconds", help="length in seconds")
    make.add_argument("--frames", help="length in frames, instead of --seconds")
    make.add_argument("--size", metavar="WxH", help="width x height in pixels")
    make.add_argument("--fps", help="frames per second")
    make.add_argument("--steps", help="denoising steps")
    make.add_argument(
        "--negative-prompt", default="", help="negative prompt; needs guidance above 1"
    )
    make.add_argument("--guidance", help="guidance scale; distilled models run without")
    make.add_argument(
        "--force-guidance", action="store_true", help="allow guidance with a distilled model"
    )
    make.add_argument(
        "--draft",
        action="store_true",
        help="first stage of a two-stage model only, at half the size",
    )
    make.add_argument("--image", metavar="FILE", help="image for the first frame")
    make.add_argument("--last-image", metavar="FILE", help="image for the last frame")
    make.add_argument(
        "--keyframe", metavar="FILE@FRAME[:STRENGTH]", action="append", default=[],
        help="image or video that the clip shows from that frame on; repeatable",
    )  # fmt: skip
    make.add_argument("--extend", metavar="CLIP", help="video that the new frames continue")
    make.add_argument(
        "--backward", action="store_true", help="put the new frames before the video of --extend"
    )
    make.add_argument(
        "--lora", metavar="SOURCE[:STRENGTH]", action="append", default=[],
        help="a .safetensors file or a Hub name, OWNER/NAME[/FILE]; repeatable",
    )  # fmt: skip
    make.add_argument("--json", action="store_true", help="print one JSON object")
