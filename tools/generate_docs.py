"""Tables of the documentation, generated from the code.

`python -m tools.generate_docs` rewrites the tables in docs/; `--check` only names the pages that
are out of date and exits with 1. A table stands between two comments:

    <!-- table: settings -->
    <!-- end of table -->
"""

import argparse
import inspect
import re
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fastapi.routing import APIRoute
from prometheus_client.core import CounterMetricFamily

from filmlet import errors
from filmlet.api import monitoring, prompts, session, videos
from filmlet.api.error_handlers import STATUSES
from filmlet.cli.main import build_parser
from filmlet.jobs import Queue
from filmlet.models import REGISTRY
from filmlet.settings import Settings

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"(<!-- table: ([a-z-]+) -->\n)(.*?)(<!-- end of table -->)", re.DOTALL)
REMEDY = "What to do: "
COLUMNS = ("Option", "Meaning")
CLIP_COMMANDS = ("generate", "submit", "plan")
Row = Sequence[str]


def table(header: Row, rows: Sequence[Row]) -> str:
    """Return a Markdown table. Line breaks and bars inside cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(map(_cell, line)) + " |\n" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def settings_table() -> str:
    """Return name, default and meaning of every environment variable of `Settings`."""
    meanings = read_field_descriptions(inspect.getdoc(Settings) or "", Settings)
    rows = [
        (f"`FILMLET_{field.name.upper()}`", _default(field), meanings.get(field.name, ""))
        for field in fields(Settings)
    ]
    return table(("Variable", "Default", "Meaning"), rows)


def read_field_descriptions(docstring: str, dataclass: type) -> dict[str, str]:
    """Return the text after `name:` (or `name, other:`) for each field that a docstring names."""
    name = "|".join(field.name for field in fields(dataclass))
    start = re.compile(rf"(?:^|(?<=[\s(]))((?:{name})(?:, (?:{name}))*)( \([^)]*\))?:\s")
    found = list(start.finditer(docstring))
    ends = [match.start() for match in found[1:]] + [len(docstring)]

    table_of: dict[str, str] = {}
    for match, end in zip(found, ends, strict=True):
        text = docstring[match.end() : end].strip().rstrip(";")
        if match[2]:
            text = f"{text.rstrip('.')}{match[2]}."
        table_of |= dict.fromkeys(match[1].split(", "), text[0].upper() + text[1:])
    return table_of


def _default(field: Any) -> str:
    value = field.default if field.default is not MISSING else field.default_factory()
    if value is None:
        return "not set"
    if isinstance(value, Path):
        return f"`~/{value.relative_to(Path.home())}`"
    if value == socket.gethostname():
        return "the host name"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def errors_table() -> str:
    """Return code, HTTP status, cause and (where a docstring says it) remedy of every error."""
    rows = []
    for code, error in sorted(_errors_by_code().items()):
        cause, _, remedy = (inspect.getdoc(error) or "").partition(REMEDY)
        status = next(status for kind, status, _ in STATUSES if issubclass(error, kind))
        rows.append((f"`{code}`", str(status), cause, remedy))
    if not any(remedy for *_, remedy in rows):
        return table(("Code", "HTTP", "Cause"), [row[:3] for row in rows])
    return table(("Code", "HTTP", "Cause", "What to do"), rows)


def _errors_by_code() -> dict[str, type[errors.FilmletError]]:
    """Return each code with the first class of the tree that has it."""
    found: dict[str, type[errors.FilmletError]] = {}
    waiting = list(errors.FilmletError.__subclasses__())
    while waiting:
        error = waiting.pop(0)
        waiting += error.__subclasses__()
        found.setdefault(error.code if isinstance(error.code, str) else "invalid_PARAMETER", error)
    del found[errors.FilmletError.code]  # of errors whose code another process chose
    return found


def metrics_table() -> str:
    """Return name, labels, type and meaning of every metric of the queue."""
    with TemporaryDirectory() as home:
        queue = Queue(Settings(home=Path(home)))
        try:
            families = list(monitoring.QueueCollector(queue).collect())
        finally:
            queue.close()

    rows = []
    for family in families:
        suffix = "_total" if isinstance(family, CounterMetricFamily) else ""
        labels = ", ".join(f"`{label}`" for label in family._labelnames)  # type: ignore[attr-defined]
        rows.append((f"`{family.name}{suffix}`", labels, family.type, family.documentation))
    return table(("Metric", "Labels", "Type", "Meaning"), rows)


def routes_table() -> str:
    """Return method, path and meaning of every route of the API."""
    routers = (videos.router, prompts.router, monitoring.router, session.router)
    routes = [r for router in routers for r in router.routes if isinstance(r, APIRoute)]
    rows = [
        (", ".join(sorted(route.methods or ())), f"`{route.path}`", _first_line(route.endpoint))
        for route in routes
    ]
    return table(("Method", "Path", "Meaning"), rows)


def _first_line(function: object) -> str:
    return (inspect.getdoc(function) or "").partition("\n\n")[0]


def models_table() -> str:
    """Return name, size, licence and defaults of every model of the registry."""
    rows = []
    for card in REGISTRY.values():
        grid, size = (
            card.grid,
            f"{card.size_bytes / 1e9:.1f} GB" if card.size_bytes else "in the package",
        )
        clip = f"{grid.width}x{grid.height}, {grid.frames} frames at {grid.fps:g} fps"
        rows.append((f"`{card.name}`", card.summary, size, clip, card.licence))
    return table(("Name", "Description", "Download", "Default clip", "Licence"), rows)


def commands_table() -> str:
    """Return usage and options of every command; options of a clip are listed once."""
    commands = list(_commands(build_parser(), ""))
    clip = _shared_options([command for name, command, _ in commands if name in CLIP_COMMANDS])
    names = ", ".join(f"`{name}`" for name in CLIP_COMMANDS)
    text = [f"\n### Options of a clip\n\nAccepted by {names}.\n\n", table(COLUMNS, clip)]
    for name, command, summary in commands:
        rows = _option_rows(command)
        if name in CLIP_COMMANDS:
            rows = [row for row in rows if row not in clip]
        positionals = " ".join(_positional(a) for a in command._actions if not a.option_strings)
        text.append(f"\n### {name}\n\n{summary[:1].upper() + summary[1:]}.\n\n")
        text.append(f"```text\nfilmlet {name} [OPTIONS] {positionals}".rstrip() + "\n```\n\n")
        text.append(table(COLUMNS, rows))
    return "".join(text) + "\n"


def _commands(
    top: argparse.ArgumentParser, prefix: str
) -> Iterator[tuple[str, argparse.ArgumentParser, str]]:
    """Yield name, parser and summary of each command, without those that only hold others."""
    for action in top._actions:
        if not isinstance(action, argparse._SubParsersAction):
            continue
        summaries = {choice.dest: choice.help or "" for choice in action._choices_actions}
        for name, command in action.choices.items():
            nested = list(_commands(command, f"{prefix}{name} "))
            yield from nested or [(f"{prefix}{name}", command, summaries[name])]


def _shared_options(commands: Sequence[argparse.ArgumentParser]) -> list[Row]:
    first, *others = (_option_rows(command) for command in commands)
    return [row for row in first if row[0].startswith("`-") and all(row in o for o in others)]


def _option_rows(command: argparse.ArgumentParser) -> list[Row]:
    """Return flags and meaning of each option; the positional ones first."""
    actions = [a for a in command._actions if "--help" not in a.option_strings]
    return [(_flags(action), _meaning(action)) for action in actions]


def _flags(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{_name(action)}`"
    value = "" if action.nargs == 0 else f" {_name(action)}"
    return ", ".join(f"`{flag}{value}`" for flag in action.option_strings)


def _name(action: argparse.Action) -> str:
    return str(action.metavar or action.dest.upper())


def _positional(action: argparse.Action) -> str:
    forms = {"?": "[{}]", "*": "[{} ...]"}
    return forms.get(str(action.nargs), "{}").format(_name(action))


def _meaning(action: argparse.Action) -> str:
    """Return the help text with choices and default."""
    text = action.help or ""
    if action.choices:
        choices = ", ".join(f"`{choice}`" for choice in action.choices)
        text = f"{text}: {choices}" if text else choices
    has_default = isinstance(action.default, (str, int)) and not isinstance(action.default, bool)
    has_default = has_default and action.default != argparse.SUPPRESS
    if action.option_strings and has_default and action.default != "" and "(" not in text:
        text = f"{text} (default: {action.default})"
    return text


TABLES = {
    "commands": commands_table,
    "errors": errors_table,
    "metrics": metrics_table,
    "models": models_table,
    "routes": routes_table,
    "settings": settings_table,
}


def update(text: str) -> str:
    """Return a page with all its tables as the code has them now."""
    return BLOCK.sub(lambda match: match[1] + TABLES[match[2]]() + match[4], text)


def outdated_pages() -> dict[Path, str]:
    """Return the new text of every page that is not up to date."""
    pages = {page: page.read_text(encoding="utf-8") for page in sorted(DOCS.rglob("*.md"))}
    updated = {page: update(text) for page, text in pages.items() if BLOCK.search(text)}
    return {page: text for page, text in updated.items() if text != pages[page]}


def main() -> int:
    """Rewrite the pages, or with --check only name them."""
    options = argparse.ArgumentParser(description="Generate the tables of the documentation.")
    options.add_argument("--check", action="store_true", help="write nothing, exit 1 if outdated")
    is_check = options.parse_args().check
    outdated = outdated_pages()
    for page, text in outdated.items():
        print(f"{page.relative_to(DOCS.parent)} {'is out of date' if is_check else 'written'}")
        if not is_check:
            page.write_text(text, encoding="utf-8")
    return 1 if is_check and outdated else 0


if __name__ == "__main__":
    sys.exit(main())
