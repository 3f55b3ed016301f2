"""`filmlet serve` and `keys`: the server and its users."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from filmlet.cli.options import Commands, add_actions, add_log_option, seconds, whole_number
from filmlet.cli.process import to_json
from filmlet.errors import InvalidRequest

if TYPE_CHECKING:
    from filmlet.jobs import ApiKey, ApiKeyStore, CreatedApiKey, Limits
    from filmlet.settings import Settings

ACTIONS = {"list": "list keys", "add": "make a key and show it once", "remove": "remove a key"}


def add_commands(commands: Commands) -> None:
    """Add `serve` and `keys`."""
    command = commands.add_parser("serve", help="serve page and API, and run a worker")
    command.set_defaults(run=serve, needs_server=True)
    command.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    command.add_argument("--port", type=whole_number, default=7860, help="port to listen on (7860)")
    command.add_argument("--no-keys", action="store_true", help="accept requests without a key")
    command.add_argument(
        "--open", action="store_true", help="open the page in the browser once it can be reached"
    )
    command.add_argument(
        "--allowed-host", metavar="NAME", action="append", default=[],
        help="a host name that it answers to, such as a proxy's; repeatable",
    )  # fmt: skip
    command.add_argument("--no-worker", action="store_true", help="start no worker")
    command.add_argument(
        "--finish", action="store_true", help="finish the current clip before stopping"
    )
    add_log_option(command)

    command = commands.add_parser("keys", help=f"{', '.join(ACTIONS)} keys of the server's users")
    command.set_defaults(run=manage_keys, needs_server=True)
    parsers = add_actions(command, ACTIONS)
    for name in ("add", "remove"):
        parsers[name].add_argument("name", metavar="NAME", help="name of the key")
    _add_key_options(parsers["add"])


def _add_key_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--admin", action="store_true", help="may see and cancel all jobs")
    command.add_argument(
        "--max-active", type=whole_number, metavar="N", help="unfinished jobs at once"
    )
    command.add_argument("--max-per-minute", type=whole_number, metavar="N", help="jobs a minute")
    command.add_argument(
        "--seconds-per-day", type=seconds, metavar="S",
        help="seconds of video a day; 0 is unlimited",
    )  # fmt: skip
    command.add_argument("--webhook", metavar="URL", help="URL to call when a job ends")


def serve(options: argparse.Namespace) -> int:
    """Serve until told to stop."""
    from filmlet import server
    from filmlet.core import logs
    from filmlet.settings import Settings

    logs.configure_logging(options.log)
    server.serve(
        Settings.from_environment(),
        server.ServerConfig(
            host=options.host,
            port=options.port,
            is_open=options.no_keys,
            opens_browser=options.open,
            has_worker=not options.no_worker,
            drain_on_stop=options.finish,
            log=options.log,
            allowed_hosts=tuple(options.allowed_host),
        ),
    )
    return 0


def manage_keys(options: argparse.Namespace) -> int:
    """List, add or remove keys."""
    from filmlet.jobs import Limits
    from filmlet.settings import Settings

    if options.action == "add" and not (options.name.isprintable() and len(options.name) <= 200):
        raise InvalidRequest("A key's name is at most 200 characters of text.", param="name")
    settings = Settings.from_environment()
    with _open_key_store(settings) as key_store:
        match options.action:
            case "add":
                limits = _parse_limits(options, Limits.from_settings(settings))
                created = key_store.add(
                    options.name, admin=options.admin, limits=limits, webhook=options.webhook
                )
                print(to_json(asdict(created)) if options.json else _format_created_key(created))
            case "remove":
                key_store.remove(options.name)
                print(to_json({"removed": options.name}) if options.json else "removed")
            case _ if options.json:
                print(to_json([asdict(key) for key in key_store.list_keys()]))
            case _:
                _list_keys(key_store.list_keys())
    return 0


def _parse_limits(options: argparse.Namespace, defaults: "Limits") -> "Limits":
    values = {name: getattr(options, name) for name in vars(defaults)}
    return replace(defaults, **{name: value for name, value in values.items() if value is not None})


def _list_keys(keys: list["ApiKey"]) -> None:
    for key in keys:
        limits = key.limits
        seconds = f", {limits.seconds_per_day:g} s a day" if limits.seconds_per_day else ""
        print(
            f"{key.name}{' (admin)' if key.admin else ''}: {limits.max_active} at once, "
            f"{limits.max_per_minute} a minute{seconds}"
        )


def _format_created_key(created: "CreatedApiKey") -> str:
    lines = [created.secret, "The key is shown only once; send it as Authorization: Bearer sk-..."]
    if created.webhook_secret:
        lines.append(f"Webhooks are signed with {created.webhook_secret}")
    return "\n".join(lines)


@contextmanager
def _open_key_store(settings: "Settings") -> Iterator["ApiKeyStore"]:
    from filmlet.jobs import ApiKeyStore
    from filmlet.jobs.database import Database

    database = Database(settings)
    try:
        yield ApiKeyStore(database, settings)
    finally:
        database.close()
