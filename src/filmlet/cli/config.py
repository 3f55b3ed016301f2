"""`filmlet config` and `completion`: what is set here, and words for a shell to complete."""

import argparse
from dataclasses import asdict

from filmlet.cli.completion import SHELLS
from filmlet.cli.options import Commands
from filmlet.cli.process import to_json
from filmlet.settings import list_settings


def add_commands(commands: Commands, parser: argparse.ArgumentParser) -> None:
    """Add `config` and `completion`. parser: of all commands."""
    command = commands.add_parser("config", help="list all settings, and where each is from")
    command.set_defaults(run=show_config)
    command.add_argument("--json", action="store_true", help="print JSON")

    command = commands.add_parser("completion", help="print a script that completes in a shell")
    command.set_defaults(run=lambda options: print_completion(options, parser))
    command.add_argument("shell", choices=tuple(SHELLS), help="shell")


def show_config(options: argparse.Namespace) -> int:
    """Print every setting; secrets are masked."""
    settings = list_settings()
    if options.json:
        print(to_json([asdict(setting) for setting in settings]))
        return 0
    width = max(len(setting.variable) for setting in settings)
    for setting in settings:
        value = "not set" if setting.value is None else setting.value
        source = "default" if setting.source == "default" else f"from {setting.source}"
        print(f"{setting.variable:{width}}  {value}  ({source})")
    return 0


def print_completion(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Print the script of a shell."""
    print(SHELLS[options.shell](parser), end="")
    return 0
