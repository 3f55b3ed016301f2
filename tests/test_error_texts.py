"""Errors say what is wrong in words that every way in has; each way in adds its own."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from filmlet import errors
from filmlet.api import create_app
from filmlet.cli.hints import describe_error
from filmlet.settings import Settings
from filmlet.ui.messages import error_html
from tests.helpers.servers import SMALL, refusal

SOURCE = Path(errors.__file__).parent
COMMANDS = "generate|plan|submit|jobs|models|keys|serve|worker|space|queue"
COMMAND_LINE = re.compile(rf"(?<![\w-])--[a-z]|filmlet ({COMMANDS})\b")
# Programs that are started, files that are written for people at a shell, and the command line.
OTHER_READERS = ("cli/", "spaces/space_files.py")
STARTED = {"--supervised", "--log", "--finish"}


@dataclass(frozen=True)
class Text:
    """A text of the program and where it stands."""

    place: str
    text: str


def texts_outside_the_command_line() -> Iterator[Text]:
    """All texts of the program but docstrings."""
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        if name.startswith(OTHER_READERS):
            continue
        tree = ast.parse(path.read_text())
        alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
            if is_text and id(node) not in alone:
                yield Text(f"{name}:{node.lineno}", node.value)


def test_no_text_outside_the_command_line_has_its_words() -> None:
    found = [
        text
        for text in texts_outside_the_command_line()
        if COMMAND_LINE.search(text.text) and text.text not in STARTED
    ]
    assert found == []


@pytest.mark.parametrize(
    "fields",
    [
        {"guidance": 3},
        {"model": "acme/tiny"},
        {"model": "pockt"},
        {"size": "4096x64"},
        {"num_frames": 9},
        {"loras": ["acme/one:x"]},
        {"seconds": "1", "frames": 9},
        {"extra_prompts": [""]},
        {"draft": True},
        {"prompt": ""},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_client_reads_no_words_of_the_command_line(
    client: TestClient, fields: dict[str, object]
) -> None:
    for path in ("", "/plan"):
        answer = client.post(f"/v1/videos{path}", json=SMALL | fields)
        assert answer.status_code == 400
        assert not COMMAND_LINE.search(refusal(answer)["message"])
    missing = client.get("/v1/videos/clip_" + "0" * 24)
    assert missing.status_code == 404
    assert not COMMAND_LINE.search(refusal(missing)["message"])


def test_who_comes_through_a_proxy_reads_none_either(tmp_path: Path) -> None:
    app = create_app(Settings(home=tmp_path), is_local=True)
    with TestClient(app, headers={"x-forwarded-for": "192.0.2.1"}) as client:
        answer = client.get("/v1/videos")
    assert answer.status_code == 401
    assert not COMMAND_LINE.search(refusal(answer)["message"])


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (errors.UnsuitedGuidance("No."), "--force-guidance"),
        (errors.ModelNotFetched("No.", model="acme/a"), "`filmlet models pull acme/a`"),
        (errors.OutputExists("No."), "--force"),
        (errors.UnknownKey("No."), "`filmlet keys`"),
        (errors.UnknownJob("No."), "`filmlet jobs`"),
        (errors.ApiKeyRequired("No."), "`filmlet keys add NAME`"),
        (errors.AddressUnusable("No."), "--port"),
    ],
)
def test_command_line_says_what_to_type(error: errors.FilmletError, hint: str) -> None:
    assert hint in describe_error(error)
    assert describe_error(error).startswith("No. ")
    assert COMMAND_LINE.search(describe_error(error))
    assert not COMMAND_LINE.search(error_html(error))


def test_other_errors_are_as_they_are_on_the_command_line() -> None:
    assert describe_error(errors.DiskFull("The disk is full.")) == "The disk is full."
