"""The command line: parser, signals, errors, exit status.

Each module of this package declares, reads and runs its commands; heavy imports are inside the
functions that run, so that `filmlet --help` loads none of them.
"""

import argparse
import select
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from filmlet.cli import config, enhance, generate, jobs, models, serve, space
from filmlet.cli.hints import describe_error
from filmlet.cli.options import IntermixedParser, ProgramParser
from filmlet.cli.process import (
    check_words,
    drop_output,
    explain_system_error,
    prepare_streams,
    print_out,
    to_json,
)
from filmlet.cli.version import VersionAction
from filmlet.errors import (
    FilmletError,
    InvalidRequest,
    InvalidSetting,
    MissingDependency,
    OutOfMemory,
)
from filmlet.settings import Settings, unknown_variables

EXIT_FAILURE = 1
EXIT_USAGE = 2  # what was asked cannot be done as it was said; argparse exits with 2 by itself
EXIT_SIGPIPE = 128 + 13  # a shell's status of a process that SIGPIPE has ended
SIGNAL_REPEAT_S = 0.01  # until an interruption that Python dropped is raised again


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM; `code` is that of an error.

    Not a plain KeyboardInterrupt: once one has passed through code that was compiled from a string,
    as imports do, Python ends the process by SIGINT whatever its exit status.
    """

    code = "interrupted"

    def __init__(self, number: int) -> None:
        super().__init__("stopped; unfinished files were deleted.")
        self.status = 128 + (number if number == signal.SIGTERM else signal.SIGINT)


interruptions: list[Interrupted] = []  # of this command


def _interrupt(number: int, _: object) -> None:
    interruptions.append(Interrupted(number))
    raise interruptions[-1]


@contextmanager
def _raise_on_signals() -> Iterator[None]:
    """Raise Interrupted on a signal; again by a timer where Python drops it in a callback.

    Afterwards the handlers are those of the caller again: a notebook's, or a test's.
    """
    interruptions.clear()
    report_unraisable = sys.unraisablehook

    def interrupt_again(dropped: "sys.UnraisableHookArgs") -> None:
        if isinstance(dropped.exc_value, Interrupted):
            signal.setitimer(signal.ITIMER_REAL, SIGNAL_REPEAT_S)
        else:
            report_unraisable(dropped)

    sys.unraisablehook = interrupt_again
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    handlers = {number: signal.signal(number, _interrupt) for number in numbers}
    try:
        yield
    finally:
        if interruptions:
            signal.setitimer(signal.ITIMER_REAL, 0)  # or the caller's handler would get it
        sys.unraisablehook = report_unraisable
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; each sets `run`, the function that runs it."""
    parser = ProgramParser(
        prog="filmlet", description="Turn a sentence into a short video on this machine."
    )
    parser.add_argument("--version", action=VersionAction)
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=IntermixedParser
    )
    generate.add_commands(commands)
    enhance.add_commands(commands)
    jobs.add_queue_commands(commands)
    models.add_commands(commands)
    jobs.add_worker_command(commands)
    serve.add_commands(commands)
    space.add_commands(commands)
    config.add_commands(commands, parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status: 0, or 1 or 2 with a sentence on stderr.

    It is 2 for options and variables that cannot be as they are, 1 for what failed. After a signal
    it is a shell's: 130 for SIGINT, 143 for SIGTERM. If nobody reads the output any more, it is
    that of SIGPIPE, and nothing is printed.
    """
    with _raise_on_signals():
        prepare_streams()
        return _run_command(arguments)


def _run_command(arguments: Sequence[str] | None) -> int:
    options = argparse.Namespace()
    try:
        build_parser().parse_args(arguments, options)
        check_words(options)
        Settings.from_environment()  # an odd one is told by every command, used or not
        _warn_of_variables()
        status: int = options.run(options)
        sys.stdout.flush()
        return status
    except BaseException as error:
        if isinstance(error, BrokenPipeError) and _is_pipe_closed():
            drop_output(sys.stdout)
            return EXIT_SIGPIPE
        known_error = _to_known_error(error, options)
        if known_error is None:
            raise
        return _print_error(known_error, options)


def _warn_of_variables() -> None:
    """Name the variables that look like settings and are none."""
    for name, nearest in unknown_variables().items():
        hint = f"did you mean {nearest}?" if nearest else "`filmlet config` lists them."
        print_out(f"filmlet: {name} is no setting; {hint}", sys.stderr)


def _to_known_error(
    error: BaseException, options: argparse.Namespace
) -> "FilmletError | Interrupted | None":
    """Return an error with a code; None for a mistake in the program."""
    match error:
        case FilmletError() | Interrupted():
            return error
        case Exception() if interruptions:  # a library turned it into an error of its own
            return interruptions[-1]
        case OSError():
            return explain_system_error(error)
        case MemoryError():
            return OutOfMemory("This machine has too little memory for that.")
        case ModuleNotFoundError() if getattr(options, "needs_server", False):
            return MissingDependency(
                f"filmlet {options.command} takes {error.name}: pip install 'filmlet[server]'"
            )
    return None


def _is_pipe_closed() -> bool:
    """Return whether the reader of stdout is gone."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)  # reports errors only
    return bool(output.poll(0))


def _print_error(error: FilmletError | Interrupted, options: argparse.Namespace) -> int:
    message = str(error)
    if isinstance(error, FilmletError):
        message = describe_error(error, options)
    if getattr(options, "json", False):
        param = getattr(error, "param", None)
        error_json = {"error": {"code": error.code, "message": message, "param": param}}
        print_out(to_json(error_json), sys.stdout)
    print_out(f"filmlet: {message} [{error.code}]", sys.stderr)
    match error:
        case Interrupted():
            return error.status
        case InvalidRequest() | InvalidSetting():
            return EXIT_USAGE
    return EXIT_FAILURE
