"""Options that several commands share, and the request that they make."""

import argparse
import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NoReturn, Protocol

from filmlet.core.guide import parse_keyframe
from filmlet.core.request import (
    FOREIGN_NAMES,
    MAX_SEED,
    ClipRequest,
    build_request,
    next_seeds,
    parse_float,
    parse_int,
)
from filmlet.errors import InvalidRequest

MAX_SECONDS = 1e9
MAX_VARIATIONS = 1000
PROMPT_OF_PLAN = "a clip"  # which takes as long as any other


class Commands(Protocol):
    """What `ArgumentParser.add_subparsers` returns: argparse has no public name for it."""

    def add_parser(
        self, name: str, *, help: str | None = None, description: str | None = None
    ) -> argparse.ArgumentParser:
        """Add a command."""


class ProgramParser(argparse.ArgumentParser):
    """The parser of all commands, which reports the options that none of them has."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong, and what an option of other programs is called here; exit."""
        for word in message.split():
            name = word.removeprefix("--").partition("=")[0].replace("-", "_")
            if word.startswith("--") and name in FOREIGN_NAMES:
                message += f"; --{name.replace('_', '-')} is called --{FOREIGN_NAMES[name]} here"
                break
        super().error(message)


class IntermixedParser(argparse.ArgumentParser):
    """Takes options before, between and after its positional arguments."""

    has_commands = False
    is_mixing = False

    def add_subparsers(self, **options: Any) -> Any:
        """Add commands of its own, which parse their arguments themselves."""
        self.has_commands = True
        return super().add_subparsers(**options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse intermixed arguments: argparse's own refuses positionals after an option."""
        if self.is_mixing or self.has_commands:
            return super().parse_known_args(args, namespace)
        self.is_mixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self.is_mixing = False


def add_actions(
    command: argparse.ArgumentParser, actions: Mapping[str, str]
) -> dict[str, argparse.ArgumentParser]:
    """Add the actions of a command, each with `--json`; without one it is the first.

    actions: what each does, by its name.
    """
    commands: Commands = command.add_subparsers(
        dest="action", metavar="ACTION", parser_class=IntermixedParser
    )
    parsers = {
        name: commands.add_parser(name, help=help, description=f"{help[:1].upper()}{help[1:]}.")
        for name, help in actions.items()
    }
    command.set_defaults(action=next(iter(actions)))
    command.add_argument("--json", action="store_true", help="print JSON")
    for parser in parsers.values():  # what stands before the action counts as well
        parser.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help="print JSON"
        )
    return parsers


def whole_number(text: str) -> int:
    """Parse a whole number that a database's integer can hold."""
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no whole number from 0 to 999999999")
    return int(text)


def seconds(text: str) -> float:
    """Parse a number of seconds."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no number from 0 to {MAX_SECONDS:.0f}")
    return seconds


def add_log_option(command: argparse.ArgumentParser) -> None:
    """Add `--log`."""
    command.add_argument("--log", choices=("lines", "json"), default="lines", help="log format")


def add_model_option(command: argparse.ArgumentParser) -> None:
    """Add `--model`."""
    command.add_argument(
        "--model",
        default="pocket",
        help="name, folder, .safetensors file or OWNER/NAME (default: pocket)",
    )


def add_enhancer_option(command: argparse.ArgumentParser) -> None:
    """Add `--enhancer`."""
    command.add_argument(
        "--enhancer", choices=("auto", "model"),
        help="have them written anew by the chat endpoint, or by the model's own text encoder",
    )  # fmt: skip


def add_clip_options(command: argparse.ArgumentParser, *, is_made: bool = True) -> None:
    """Add the options of a clip; the prompt may be left out unless it is made."""
    prompt_help = 'what to show, such as "a cat moving left on white"; quotes may be left out'
    command.add_argument(
        "prompt", metavar="PROMPT", help=prompt_help, nargs="+" if is_made else "*"
    )
    command.add_argument(
        "--then", metavar="PROMPT", action="append", default=[],
        help="a further prompt; all share the clip's length equally; repeatable",
    )  # fmt: skip
    command.add_argument(
        "--enhance", action="store_true",
        help="write the prompts anew in words that the model understands best; both are printed",
    )  # fmt: skip
    add_enhancer_option(command)
    add_model_option(command)
    command.add_argument("--seed", help="same seed and settings, same file (default: random)")
    command.add_argument("--seconds", help="length in seconds")
    command.add_argument("--frames", help="length in frames, instead of --seconds")
    command.add_argument("--size", metavar="WxH", help="width x height in pixels")
    command.add_argument("--fps", help="frames per second")
    command.add_argument("--steps", help="denoising steps")
    command.add_argument(
        "--negative-prompt", default="", help="negative prompt; needs guidance above 1"
    )
    command.add_argument("--guidance", help="guidance scale; distilled models run without")
    command.add_argument(
        "--force-guidance", action="store_true", help="allow guidance with a distilled model"
    )
    command.add_argument(
        "--draft",
        action="store_true",
        help="first stage of a two-stage model only, at half the size",
    )
    command.add_argument("--image", metavar="FILE", help="image for the first frame")
    command.add_argument("--last-image", metavar="FILE", help="image for the last frame")
    command.add_argument(
        "--keyframe", metavar="FILE@FRAME[:STRENGTH]", action="append", default=[],
        help="image or video that the clip shows from that frame on; repeatable",
    )  # fmt: skip
    command.add_argument("--extend", metavar="CLIP", help="video that the new frames continue")
    command.add_argument(
        "--backward", action="store_true", help="put the new frames before the video of --extend"
    )
    command.add_argument(
        "--lora", metavar="SOURCE[:STRENGTH]", action="append", default=[],
        help="a .safetensors file or a Hub name, OWNER/NAME[/FILE]; repeatable",
    )  # fmt: skip
    command.add_argument(
        "--no-audio", dest="audio", action="store_false",
        help="no sound; only models whose clips have some make any",
    )  # fmt: skip
    command.add_argument("--json", action="store_true", help="print one JSON object")


def add_download_option(command: argparse.ArgumentParser) -> None:
    """Add `--yes`."""
    command.add_argument(
        "-y", "--yes", action="store_true", help="download a model of gigabytes without asking"
    )


def add_quiet_option(command: argparse.ArgumentParser, help: str) -> None:
    """Add `--quiet`."""
    command.add_argument("-q", "--quiet", action="store_true", help=help)


def add_variations_option(command: argparse.ArgumentParser) -> None:
    """Add `--variations`."""
    command.add_argument(
        "--variations", metavar="N", type=whole_number, default=1,
        help="make N clips with seeds in a row; a file has its seed in the name",
    )  # fmt: skip


def split_by_seed(request: ClipRequest, count: int) -> list[ClipRequest]:
    """Return `count` requests with seeds in a row, a random first one. Raises InvalidRequest."""
    if not 1 <= count <= MAX_VARIATIONS:
        raise InvalidRequest(
            f"variations must be 1 to {MAX_VARIATIONS}, got {count}.", param="variations"
        )
    if count == 1:
        return [request]
    first = secrets.randbelow(MAX_SEED + 1) if request.seed is None else request.seed
    return [replace(request, seed=seed) for seed in next_seeds(first, count)]


def build_clip_request(options: argparse.Namespace) -> ClipRequest:
    """Return the request that the clip options make. Raises InvalidRequest."""
    return build_request(
        " ".join(options.prompt) if options.prompt else PROMPT_OF_PLAN,
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
        loras=options.lora,
        extra_prompts=options.then,
        audio=options.audio,
        **_parse_numbers(options),
    )


def _parse_numbers(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options that are numbers, those that were given."""
    numbers: dict[str, Any] = {}
    for name in ("seed", "frames", "steps", "seconds", "fps", "guidance"):
        text = getattr(options, name)
        if text is not None:
            is_int = name in ("seed", "frames", "steps")
            numbers[name] = parse_int(text, name) if is_int else parse_float(text, name)
    return numbers
