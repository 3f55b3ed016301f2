"""The command line's words for the server: serve, keys."""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace

from filmlet.core import logs
from filmlet.errors import InvalidRequest
from filmlet.jobs import ApiKey, ApiKeyStore, CreatedApiKey, Limits
from filmlet.jobs.database import Database
from filmlet.settings import Settings


def serve(options: argparse.Namespace) -> int:
    """Serve until told to stop."""
    from filmlet import server

    logs.configure_logging(options.log)
    server.serve(
        Settings.from_environment(),
        server.ServerConfig(
            host=options.host,
            port=options.port,
            is_open=options.open,
            has_worker=not options.no_worker,
            drain_on_stop=options.finish,
            log=options.log,
            allowed_hosts=tuple(options.allowed_host),
        ),
    )
    return 0


def keys(options: argparse.Namespace) -> int:
    """Look at keys or change them."""
    if options.action != "list" and not options.name:
        raise InvalidRequest(f"Say whose key to {options.action}: its name.", param="name")
    if options.action == "add" and not (options.name.isprintable() and len(options.name) <= 200):
        raise InvalidRequest("A key's name is at most 200 characters of text.", param="name")
    settings = Settings.from_environment()
    with _open_key_store(settings) as key_store:
        match options.action:
            case "add":
                limits = _limits(options, Limits.from_settings(settings))
                granted = key_store.add(
                    options.name, admin=options.admin, limits=limits, webhook=options.webhook
                )
                print(_json(granted) if options.json else _text(granted))
            case "remove":
                key_store.remove(options.name)
                print(_json({"removed": options.name}) if options.json else "removed")
            case _ if options.json:
                print(_json(key_store.list_keys()))
            case _:
                _list_keys(key_store.list_keys())
    return 0


def _limits(options: argparse.Namespace, usual: Limits) -> Limits:
    values = {name: getattr(options, name) for name in vars(usual)}
    return replace(usual, **{name: value for name, value in values.items() if value is not None})


def _list_keys(keys: list[ApiKey]) -> None:
    for key in keys:
        limits = key.limits
        seconds = f", {limits.seconds_per_day:g} s a day" if limits.seconds_per_day else ""
        print(
            f"{key.name}{' (admin)' if key.admin else ''}: {limits.max_active} at once, "
            f"{limits.max_per_minute} a minute{seconds}"
        )


def _text(granted: CreatedApiKey) -> str:
    lines = [granted.secret, "This is shown only once; send it as Authorization: Bearer sk-..."]
    if granted.webhook_secret:
        lines.append(f"Webhooks are signed with {granted.webhook_secret}")
    return "\n".join(lines)


def _json(value: CreatedApiKey | list[ApiKey] | dict[str, str]) -> str:
    match value:
        case CreatedApiKey():
            plain: object = asdict(value)
        case list():
            plain = [asdict(key) for key in value]
        case _:
            plain = value
    return json.dumps(plain, ensure_ascii=False, indent=2)


@contextmanager
def _open_key_store(settings: Settings) -> Iterator[ApiKeyStore]:
    database = Database(settings)
    try:
        yield ApiKeyStore(database, settings)
    finally:
        database.close()
