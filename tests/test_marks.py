"""Marks say what a test takes: `make check` leaves out what is not a matter of seconds."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.helpers import marks

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "filmlet", "serve", "--port", "0"],
        ["-c", "from filmlet.cli.main import main; main()"],
        ["-m", "recipe"],
        ["app.py"],
    ],
)
def test_unmarked_test_starts_no_process_of_filmlet(words: list[str]) -> None:
    with pytest.raises(AssertionError, match=r"needs pytest\.mark\.(server|training)"):
        subprocess.run([sys.executable, *words], check=False)


def test_unmarked_test_starts_no_browser() -> None:
    with pytest.raises(AssertionError, match=r"needs pytest\.mark\.browser"):
        subprocess.run(["chromium", "--version"], check=False)


def test_unmarked_test_forks_no_process_of_filmlet(tmp_path: Path) -> None:
    from tests.helpers.forked_processes import run_filmlet

    with pytest.raises(AssertionError, match=r"needs pytest\.mark\.server"):
        run_filmlet("--version", cwd=tmp_path)


def test_unmarked_test_computes_for_seconds_only(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(marks, "MAX_CPU_S", -1.0)
    with (
        pytest.raises(AssertionError, match="mark the test `compile`"),
        marks.guard_cpu_time(request.node),
    ):
        pass
    with marks.guard_cpu_time(request.node):
        request.node.add_marker("compile")


@pytest.mark.server
def test_marked_test_starts_what_its_mark_allows() -> None:
    with pytest.raises(AssertionError, match=r"needs pytest\.mark\.browser"):
        marks.require_mark("browser")
    marks.require_mark("server")


@pytest.mark.parametrize("fixture", ["postgres", "s3"])
def test_database_or_storage_that_a_parameter_names_is_marked(
    request: pytest.FixtureRequest, fixture: str
) -> None:
    assert request.node.get_closest_marker("server")
    assert fixture in request.node.callspec.params.values()


@pytest.mark.parametrize(
    ("expression", "is_left_out"),
    [
        ("not (server or browser)", True),
        ("not (browser or compile)", False),
        ("not gpu and not hub and not slow", False),
        ("server", False),
        ("", False),
    ],
)
def test_file_of_which_nothing_is_chosen_is_not_imported(
    tmp_path: Path, expression: str, is_left_out: bool
) -> None:
    file = tmp_path / "test_it.py"
    file.write_text("import pytest\n\npytestmark = [needs_chromium, pytest.mark.server]\n")
    assert marks.has_only_left_out(file, expression) is is_left_out
    file.write_text("@pytest.mark.server\ndef test_one():\n    pass\n")
    assert not marks.has_only_left_out(file, expression)


def test_make_check_leaves_out_every_heavy_mark() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert f"HEAVY := {' or '.join(marks.HEAVY)}\n" in makefile
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert [text.partition(":")[0] for text in options["markers"]] == list(marks.HEAVY)
