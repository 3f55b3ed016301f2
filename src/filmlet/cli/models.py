"""`filmlet models` and `plan`: what models there are, and what a clip would take."""

import argparse
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filmlet.cli.durations import format_duration
from filmlet.cli.enhance import enhance_clip_request
from filmlet.cli.options import (
    Commands,
    add_actions,
    add_clip_options,
    add_quiet_option,
    build_clip_request,
)
from filmlet.cli.process import to_json
from filmlet.errors import FilmletError, MissingDependency, ModelNotFetched

if TYPE_CHECKING:
    from filmlet.core.model_card import ComponentSource, ModelCard
    from filmlet.core.request import ClipRequest
    from filmlet.jobs import Estimate, Forecast
    from filmlet.pipeline.plan import Plan
    from filmlet.settings import Settings

NO_ESTIMATE = "no estimate before a worker has made a clip on this GPU"


def add_commands(commands: Commands) -> None:
    """Add `models` and `plan`."""
    command = commands.add_parser("models", help=f"{', '.join(ACTIONS)} models")
    command.set_defaults(run=manage_models)
    parsers = add_actions(command, {name: summary for name, (_, summary) in ACTIONS.items()})
    for name, parser in parsers.items():
        if name != "list":
            parser.add_argument(
                "names",
                nargs="*" if name == "prune" else "+",
                metavar="NAME",
                help="name that `filmlet models` lists, or OWNER/NAME on the Hub",
            )
    add_quiet_option(parsers["pull"], "no progress bar")

    command = commands.add_parser(
        "plan", help="estimate download, memory and time of a clip; make none"
    )
    command.set_defaults(run=plan)
    add_clip_options(command, is_made=False)


def manage_models(options: argparse.Namespace) -> int:
    """List, show, download, delete or compile models."""
    act, _ = ACTIONS[options.action]
    act(options)
    return 0


def plan(options: argparse.Namespace) -> int:
    """Print what a clip would take on this machine."""
    from filmlet.engine.selection import (
        device_info,
        in_float32,
        machine_for_model,
        why_not_openvino_model,
    )
    from filmlet.settings import Settings

    request = enhance_clip_request(build_clip_request(options), options)
    settings = Settings.from_environment()
    forecast = _forecast(request, settings)
    planned = forecast.plan
    is_torchs = settings.engine == "torch" or bool(
        why_not_openvino_model(planned.card, planned.parameters, settings)
    )
    has_worker = forecast.machine is not None
    trouble = None
    try:
        machine = device_info(settings.device, is_torchs)
        if not is_torchs:
            machine = machine_for_model(machine, planned.card, planned.parameters, settings)
    except MissingDependency as error:
        trouble = str(error)
        machine = in_float32(device_info(settings.device))
    forecast = replace(forecast, machine=machine)
    enhancer = options.enhancer or settings.enhancer
    table = _plan_dict(forecast, enhancer) | {"trouble": trouble}
    if not has_worker and table["machine"]["device"] != "cpu":
        table["eta"] = None  # only a worker measures a GPU
    print(to_json(table) if options.json else _as_text(forecast, table))
    return 0


def _forecast(request: "ClipRequest", settings: "Settings") -> "Forecast":
    """Return what the queue has learned; without the extra `server`, what the CPU's speed says."""
    from filmlet.jobs.cost_model import CostModel, WorkloadSize, measure_flops
    from filmlet.jobs.job import Forecast
    from filmlet.pipeline.plan import make_plan
    from filmlet.pipeline.requirements import missing_bytes

    if find_spec("sqlalchemy") and find_spec("dbos"):
        from filmlet.jobs import Queue

        queue = Queue(settings)
        try:
            return queue.forecast(request)
        finally:
            queue.close()
    planned = make_plan(request)
    size = WorkloadSize.from_plan(planned, planned.parameters.transformer)
    eta = CostModel([], measure_flops()).estimate(size)
    return Forecast(planned, eta, 0, missing_bytes(planned), None)


def _list_models(options: argparse.Namespace) -> None:
    from filmlet.models import REGISTRY

    rows = [_model_row(card) for card in REGISTRY.values()]
    if options.json:
        print(to_json(rows))
        return
    print(f"{'':32} {'':14} {'size':>8}  {'on disk':>8}")
    for row in rows:
        status = (
            "bundled" if not row["bytes"] else "downloaded" if row["is_here"] else "not downloaded"
        )
        size = _format_gigabytes(row["bytes"] or row["bytes_on_disk"])
        line = f"{size:>8}  {_format_gigabytes(row['bytes_on_disk']):>8}"
        print(f"{row['name']:32} {status:14} {line}  {row['summary']}")


def _show_model(options: argparse.Namespace) -> None:
    from filmlet.models import get_card, list_vocabulary

    for name in options.names:
        card = get_card(name)
        parts = {part: asdict(source) for part, source in card.sources.present()}
        terms = {"licence": card.licence, "licence_terms": card.licence_terms}
        table = _model_row(card) | terms | {"components": parts}
        table |= {"words": list_vocabulary(card), "default": asdict(card.grid)}
        print(to_json(table) if options.json else _model_text(card, table))


def _pull_models(options: argparse.Namespace) -> None:
    from filmlet.cli.progress_bar import DownloadProgressBar
    from filmlet.models import REGISTRY, download_model, download_repository, get_card, hub_cache

    for name in options.names:
        is_own = hub_cache.is_name(name) and name not in REGISTRY
        events = download_repository(name) if is_own else download_model(get_card(name))
        with DownloadProgressBar(quiet=options.json or options.quiet) as bar:
            for so_far in events:
                bar.update(so_far)
        row = _model_row(get_card(name))
        print(
            to_json(row)
            if options.json
            else f"{name}: {_format_gigabytes(row['bytes_on_disk'])} on disk"
        )


def _prune_models(options: argparse.Namespace) -> None:
    from filmlet.models import delete_model, get_card, hub_cache

    freed = hub_cache.delete_partial_downloads() + sum(
        delete_model(get_card(name)) for name in options.names
    )
    print(to_json({"bytes_freed": freed}) if options.json else f"{_format_gigabytes(freed)} freed")


def _export_models(options: argparse.Namespace) -> None:
    from filmlet.core.events import drain
    from filmlet.engine.selection import export
    from filmlet.models import count_parameters, get_card, local_files
    from filmlet.settings import Settings

    settings = Settings.from_environment()
    cache = settings.cache
    for name in options.names:
        card, began = get_card(name), time.perf_counter()
        files = local_files(card)
        if files is None:
            raise ModelNotFetched(f"{name} is not on this machine.", model=name)
        counts = card.parameters or count_parameters(files)
        placement = drain(export(card, files, counts, settings))
        seconds = round(time.perf_counter() - began, 1)
        table = {
            "name": name,
            "dtype": placement.dtype,
            "optimizations": sorted(placement.optimizations),
            "reason": placement.reason,
            "cache": str(cache),
            "bytes_in_cache": sum(file.stat().st_size for file in cache.glob("*.blob")),
            "seconds": seconds,
        }
        line = f"{name}: compiled in {placement.dtype} in {seconds} s, stored in {cache}"
        print(to_json(table) if options.json else line)


ACTIONS: dict[str, tuple[Callable[[argparse.Namespace], None], str]] = {
    "list": (_list_models, "list models, and which are on this machine"),
    "show": (_show_model, "show files, licence and vocabulary of models"),
    "pull": (_pull_models, "download models"),
    "prune": (_prune_models, "delete partial downloads, and the models that are named"),
    "export": (_export_models, "compile models for OpenVINO"),
}


def _model_row(card: "ModelCard") -> dict[str, object]:
    from filmlet.models import disk_usage, local_files

    try:
        is_here, trouble = local_files(card) is not None, None
    except FilmletError as error:
        is_here, trouble = False, str(error)
    return {
        "name": card.name,
        "summary": card.summary,
        "revision": card.revision,
        "modalities": card.modalities,
        "is_here": is_here,
        "trouble": trouble,
        "bytes": card.size_bytes,
        "bytes_on_disk": disk_usage(card),
    }


def _model_text(card: "ModelCard", table: dict[str, object]) -> str:
    lines = [f"{card.name}, revision {card.revision}: {card.summary}", f"  {card.licence}"]
    lines.append(f"  makes {' and '.join(card.modalities)}")
    lines += [f"  {line}" for line in textwrap.wrap(card.licence_terms, 96)]
    for part, source in card.sources.present():
        where = f"{source.repo or source.root}/{source.path}"
        taken = sum(file.stat().st_size for file in _file_list(source))
        lines.append(f"  {part:13} {_format_gigabytes(source.size_bytes or taken):>8}  {where}")
    if table["trouble"]:
        lines.append(f"  unusable: {table['trouble']}")
    vocabulary = table["words"]
    if isinstance(vocabulary, list) and vocabulary:
        lines += ["  vocabulary:", *_wrap_words(vocabulary)]
    return "\n".join(lines)


def _file_list(source: "ComponentSource") -> list[Path]:
    from filmlet.models import hub_cache

    path = hub_cache.local_path(source)
    return hub_cache.files(path) if path and path.exists() else []


def _wrap_words(words: list[str]) -> Iterator[str]:
    line = "   "
    for word in words:
        if len(line) + len(word) > 98:
            yield line
            line = "   "
        line += f" {word}"
    yield line


def _plan_dict(forecast: "Forecast", enhancer: str) -> dict[str, Any]:
    """Return what a clip takes, as plain values; enhancer: of its prompts."""
    import shutil

    from filmlet.core.memory import memory_to_write
    from filmlet.models import hub_cache

    planned, machine, need = forecast.plan, forecast.machine, forecast.need
    assert machine
    needs = {n.offload.value: n.bytes for n in planned.memory_estimates(machine.bytes_per_value)}
    return {
        "model": planned.card.name,
        "shape": asdict(planned.shape),
        "calls": len(planned.sigmas) + len(planned.refine_sigmas),
        "audio": planned.has_audio,
        "stage_loras": {stage.value: s for stage, s in planned.distilled_lora_strengths.items()},
        "fetch_bytes": forecast.fetch,
        "disk_free": shutil.disk_usage(hub_cache.nearest_existing_folder(hub_cache.cache())).free,
        "machine": asdict(machine),
        "memory_by_hold": needs,
        "offload": need.offload if need else None,
        "enhancer_memory": memory_to_write(planned.parameters.text_encoder, machine.bytes_per_value)
        if enhancer == "model" and planned.card.has_language_model
        else None,
        "memory_missing": 0 if need else min(needs.values()) - machine.memory,
        "eta": asdict(forecast.eta),
        "ahead": forecast.ahead,
        "changes": [asdict(change) for change in planned.changes],
    }


def _as_text(forecast: "Forecast", table: dict[str, Any]) -> str:
    planned, machine, need = forecast.plan, forecast.machine, forecast.need
    assert machine
    eta = forecast.eta if table["eta"] else None
    shape = planned.shape
    lines = [
        f"{planned.card.name}: {shape.width}x{shape.height}, {shape.frames} frames at "
        f"{shape.fps:g} a second{', with sound' if planned.has_audio else ''}, "
        f"{table['calls']} model calls",
        f"  download {_format_gigabytes(forecast.fetch)}, "
        f"{_format_gigabytes(table['disk_free'])} of disk free",
        f"  device   {machine.device} ({machine.name}), {machine.dtype}, "
        f"{_format_gigabytes(machine.memory)} of memory free",
        f"  time     {_format_eta(eta) if eta else NO_ESTIMATE}"
        + (", and the download" if forecast.fetch else ""),
    ]
    if planned.distilled_lora_strengths:
        lines.insert(1, f"  lora     {_describe_stage_loras(planned)}")
    least = min(planned.memory_estimates(machine.bytes_per_value), key=lambda n: n.bytes)
    if need:
        lines.insert(-1, f"  offload  {need.offload}, about {_format_gigabytes(need.bytes)}")
    else:
        lines.insert(
            -1,
            "  offload  not enough memory: the smallest mode takes "
            f"{_format_gigabytes(least.bytes)}",
        )
    if table["enhancer_memory"]:
        memory = _format_gigabytes(table["enhancer_memory"])
        lines.append(f"  enhancer {memory} of memory, to have a prompt written by the model itself")
    notes = [change.reason for change in planned.changes]
    if table["trouble"]:
        notes.append(table["trouble"])
    return "\n".join([*lines, *(f"  note: {note}" for note in notes)])


def _describe_stage_loras(planned: "Plan") -> str:
    """Return which LoRA of the model itself its stages are computed with, and how strongly."""
    source = planned.card.sources.distilled_lora
    assert source
    strengths = planned.distilled_lora_strengths.items()
    stages = ", ".join(f"{stage.value} at {strength:g}" for stage, strength in strengths)
    return f"{source.path}: {stages}"


def _format_eta(eta: "Estimate") -> str:
    low, high = format_duration(eta.low), format_duration(eta.high)
    return f"{format_duration(eta.seconds)} ({low} to {high})"


def _format_gigabytes(count: object) -> str:
    assert isinstance(count, int)
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
