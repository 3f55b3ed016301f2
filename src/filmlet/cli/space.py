"""`filmlet space`: Hugging Face Spaces."""

import argparse
from pathlib import Path

from filmlet.cli.options import Commands
from filmlet.cli.process import to_json
from filmlet.errors import InvalidRequest


def add_commands(commands: Commands) -> None:
    """Add `space create` and `space files`."""
    space = commands.add_parser("space", help="put the page on Hugging Face Spaces")
    actions: Commands = space.add_subparsers(dest="action", required=True, metavar="ACTION")
    make = actions.add_parser("create", help="create a Space, or bring it up to date")
    make.set_defaults(run=create_space, needs_server=True)
    make.add_argument("space", metavar="OWNER/NAME")
    _add_space_options(make)
    make.add_argument("--private", action="store_true", default=None, help="make the Space private")
    make.add_argument("--bucket", metavar="OWNER/NAME", help="storage bucket that keeps the clips")
    make.add_argument(
        "--secret", metavar="NAME", action="append", default=[],
        help="secret; its value is taken from the environment; repeatable",
    )  # fmt: skip
    make.add_argument(
        "--variable", metavar="NAME=VALUE", action="append", default=[],
        help="such as FILMLET_MAX_ACTIVE=2; repeatable",
    )  # fmt: skip
    make.add_argument("--dry-run", action="store_true", help="show what would change")
    make.add_argument("--json", action="store_true", help="print JSON")
    write = actions.add_parser("files", help="write the same files into a folder")
    write.set_defaults(run=write_space_files, needs_server=True)
    write.add_argument("folder", type=Path, metavar="DIR")
    _add_space_options(write)
    write.add_argument("--json", action="store_true", help="print JSON")


def _add_space_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", help="default model of the page (a new Space: pocket)")
    command.add_argument(
        "--hardware", help="zero-a10g, cpu-basic, l4x1, ... (a new Space: cpu-basic)"
    )
    command.add_argument(
        "--source", metavar="REQUIREMENT", help="pip requirement that installs filmlet"
    )


def write_space_files(options: argparse.Namespace) -> int:
    """Write the files of a Space into a folder."""
    from filmlet.spaces.space_files import SpaceConfig, write_files

    config = SpaceConfig(
        model=options.model or SpaceConfig.model,
        hardware=options.hardware or SpaceConfig.hardware,
        source=options.source,
    )
    written = write_files(config, options.folder)
    if options.json:
        print(to_json([str(path) for path in written]))
        return 0
    print(f"{len(written)} files in {options.folder}; try it there with python app.py")
    return 0


def create_space(options: argparse.Namespace) -> int:
    """Create a Space, or update it to the options."""
    from filmlet.settings import Settings, read_variable
    from filmlet.spaces import deploy

    owner, _, name = options.space.partition("/")
    if not owner or not name or "/" in name:
        raise InvalidRequest(f"A Space is called OWNER/NAME, not {options.space!r}.", param="space")
    secrets = {name: read_variable(name) for name in options.secret}
    variables = dict(_parse_pair(text) for text in options.variable)
    Settings.from_environment(secrets | variables)  # else the Space would not start with them
    spec = deploy.SpaceSpec(
        options.space,
        model=options.model,
        hardware=options.hardware,
        source=options.source,
        private=options.private,
        bucket=options.bucket,
        secrets=secrets,
        variables=variables,
    )
    done = []
    for text in deploy.deploy(spec, only_look=options.dry_run):
        done.append(text)
        if not options.json:
            print(f"would {text}" if options.dry_run else text)
    url = deploy.space_url(options.space)
    if options.json:
        print(to_json({"url": url, "dry_run": options.dry_run, "steps": done}))
    else:
        print(url if done else f"nothing to change: {url}")
    return 0


def _parse_pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not name or not sign:
        raise InvalidRequest(f"A variable is NAME=VALUE, not {text!r}.", param="variable")
    return name, value
