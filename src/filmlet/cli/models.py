"""The command line's words for models: list, show, pull, prune, export, and plan."""

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from filmlet.core.model_card import ModelCard, Source
from filmlet.core.request import ClipRequest
from filmlet.errors import CheckpointMissing, FilmletError, InvalidRequest
from filmlet.models import CARDS, drop, fetch, find, hub_cache, locate, repository, size, vocabulary
from filmlet.settings import Settings

if TYPE_CHECKING:
    from filmlet.jobs import Forecast


def models(options: argparse.Namespace) -> int:
    """Look at models, fetch them or make room."""
    if options.action in ("show", "pull", "export") and not options.names:
        raise InvalidRequest(f"Say which model to {options.action}: its name.", param="model")
    ACTIONS[options.action](options)
    return 0


def plan(options: argparse.Namespace, request: ClipRequest) -> int:
    """Say what a clip would take on this machine."""
    from filmlet.engine.selection import machine, torchs
    from filmlet.jobs import Queue

    settings = Settings.from_environment()
    queue = Queue(settings)
    try:
        forecast = queue.forecast(request)
    finally:
        queue.close()
    planned = forecast.plan
    is_torchs = settings.engine == "torch" or bool(torchs(planned.card, planned.parameters))
    forecast = replace(forecast, machine=machine(settings.device, is_torchs))
    table = _outlay(forecast)
    print(_json(table) if options.json else _as_text(forecast, table))
    return 0


def _list(options: argparse.Namespace) -> None:
    rows = [_row(card) for card in CARDS.values()]
    if options.json:
        print(_json(rows))
        return
    print(f"{'':30} {'':14} {'in all':>8}  {'on disk':>8}")
    for row in rows:
        there = "bundled" if not row["bytes"] else "here" if row["is_here"] else "to be fetched"
        whole = _gigabytes(row["bytes"] or row["bytes_on_disk"])
        told = f"{whole:>8}  {_gigabytes(row['bytes_on_disk']):>8}"
        print(f"{row['name']:30} {there:14} {told}  {row['summary']}")


def _show(options: argparse.Namespace) -> None:
    for name in options.names:
        card = find(name)
        parts = {part: asdict(source) for part, source in card.sources.there()}
        table = _row(card) | {"licence": card.licence, "components": parts}
        table |= {"words": vocabulary(card), "default": asdict(card.grid)}
        print(_json(table) if options.json else _told(card, table))


def _pull(options: argparse.Namespace) -> None:
    from filmlet.cli.progress_bar import FetchBar

    for name in options.names:
        is_own = hub_cache.is_name(name) and name not in CARDS
        events = repository(name) if is_own else fetch(find(name))
        with FetchBar(quiet=options.json) as bar:
            for so_far in events:
                bar.show(so_far)
        row = _row(find(name))
        print(_json(row) if options.json else f"{name}: {_gigabytes(row['bytes_on_disk'])} here")


def _prune(options: argparse.Namespace) -> None:
    freed = hub_cache.sweep() + sum(drop(find(name)) for name in options.names)
    print(_json({"bytes_freed": freed}) if options.json else f"{_gigabytes(freed)} freed")


def _export(options: argparse.Namespace) -> None:
    from filmlet.engine.selection import export
    from filmlet.models import parameters
    from filmlet.pipeline.prepare import fold

    settings = Settings.from_environment()
    cache = settings.cache
    for name in options.names:
        card, began = find(name), time.perf_counter()
        files = locate(card)
        if files is None:
            raise CheckpointMissing(f"{name} is not on this machine: filmlet models pull {name}")
        counts = card.parameters or parameters(files)
        made = fold(export(card, files, counts, cache, settings.int8 > 0))
        seconds = round(time.perf_counter() - began, 1)
        table = {
            "name": name,
            "dtype": made.dtype,
            "levers": sorted(made.levers),
            "reason": made.reason,
            "cache": str(cache),
            "bytes_in_cache": sum(file.stat().st_size for file in cache.glob("*.blob")),
            "seconds": seconds,
        }
        told = f"{name}: compiled in {made.dtype}, {seconds} s, kept in {cache}"
        print(_json(table) if options.json else told)


ACTIONS: dict[str, Callable[[argparse.Namespace], None]] = {
    "list": _list,
    "show": _show,
    "pull": _pull,
    "prune": _prune,
    "export": _export,
}


def _row(card: ModelCard) -> dict[str, object]:
    try:
        is_here, trouble = locate(card) is not None, None
    except FilmletError as error:
        is_here, trouble = False, str(error)
    return {
        "name": card.name,
        "summary": card.summary,
        "revision": card.revision,
        "is_here": is_here,
        "trouble": trouble,
        "bytes": card.bytes,
        "bytes_on_disk": size(card),
    }


def _told(card: ModelCard, table: dict[str, object]) -> str:
    lines = [f"{card.name}, revision {card.revision}: {card.summary}", f"  {card.licence}"]
    for part, source in card.sources.there():
        where = f"{source.repo or source.root}/{source.path}"
        taken = sum(file.stat().st_size for file in _files(source))
        lines.append(f"  {part:13} {_gigabytes(source.bytes or taken):>8}  {where}")
    if table["trouble"]:
        lines.append(f"  it cannot be used: {table['trouble']}")
    words = table["words"]
    if isinstance(words, list) and words:
        lines += ["  knows these words:", *_wrapped(words)]
    return "\n".join(lines)


def _files(source: Source) -> list[Path]:
    place = hub_cache.place(source)
    return hub_cache.files(place) if place and place.exists() else []


def _wrapped(words: list[str]) -> Iterator[str]:
    line = "   "
    for word in words:
        if len(line) + len(word) > 98:
            yield line
            line = "   "
        line += f" {word}"
    yield line


def _outlay(forecast: "Forecast") -> dict[str, object]:
    """What a clip takes, as plain values."""
    planned, machine, need = forecast.plan, forecast.machine, forecast.need
    assert machine
    needs = {n.hold.value: n.bytes for n in planned.needs(machine.value_bytes)}
    return {
        "model": planned.card.name,
        "shape": asdict(planned.shape),
        "calls": len(planned.sigmas) + len(planned.refine_sigmas),
        "fetch_bytes": forecast.fetch,
        "disk_free": shutil.disk_usage(hub_cache.existing(hub_cache.cache())).free,
        "machine": asdict(machine),
        "memory_by_hold": needs,
        "hold": need.hold if need else None,
        "memory_missing": 0 if need else min(needs.values()) - machine.memory,
        "eta": asdict(forecast.eta),
        "ahead": forecast.ahead,
        "changes": [asdict(change) for change in planned.changes],
    }


def _as_text(forecast: "Forecast", table: dict[str, object]) -> str:
    planned, machine, need, eta = forecast.plan, forecast.machine, forecast.need, forecast.eta
    assert machine
    shape = planned.shape
    lines = [
        f"{planned.card.name}: {shape.width}x{shape.height}, {shape.frames} frames at "
        f"{shape.fps:g} a second, {table['calls']} model calls",
        f"  fetch  {_gigabytes(forecast.fetch)}, {_gigabytes(table['disk_free'])} of disk free",
        f"  device {machine.device} ({machine.name}), {machine.dtype}, "
        f"{_gigabytes(machine.memory)} of memory free",
        f"  time   {_time(eta.seconds)} ({_time(eta.low)} to {_time(eta.high)})"
        + (", and the fetch" if forecast.fetch else ""),
    ]
    least = min(planned.needs(machine.value_bytes), key=lambda n: n.bytes)
    if need:
        lines.insert(3, f"  hold   {need.hold}, about {_gigabytes(need.bytes)}")
    else:
        lines.insert(3, f"  hold   no way: the leanest takes {_gigabytes(least.bytes)}")
    return "\n".join([*lines, *(f"  note: {change.reason}" for change in planned.changes)])


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _gigabytes(count: object) -> str:
    assert isinstance(count, int)
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _json(table: object) -> str:
    return json.dumps(table, ensure_ascii=False, indent=2, default=str)
