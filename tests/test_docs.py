"""The documentation: tables as the code has them, links and files that exist, examples that run."""

import re
import shlex
from collections.abc import Iterator
from importlib.metadata import files
from pathlib import Path

import pytest
import yaml

from filmlet.cli.main import build_parser
from filmlet.settings import Settings
from tools import generate_docs

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
# The changelog names what was there when it was written.
PAGES = sorted({*ROOT.glob("*.md"), *DOCS.rglob("*.md")} - {ROOT / "CHANGELOG.md"})
EXAMPLES = {path.name: path.read_text() for path in (ROOT / "examples").glob("*.py")}
TOP_FOLDERS = ("bench", "conformance", "docs", "examples", "recipe", "tests", "tools", "src")
PACKAGES = ("core", "models", "media", "engine", "pipeline", "jobs", "api", "ui", "spaces", "cli")


def code_blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def filmlet_commands(page: Path) -> Iterator[list[str]]:
    """Yield the arguments of every filmlet command in the shell blocks of a page."""
    for block in code_blocks(page, "sh"):
        for line in block.splitlines():
            if line.startswith("filmlet "):
                yield shlex.split(line, comments=True)[1:]


def named_files(page: Path) -> Iterator[str]:
    """Yield paths in code font: `docs/x.md`, or `engine/y.py` inside src/filmlet."""
    names = "|".join((*TOP_FOLDERS, *PACKAGES))
    for path in re.findall(rf"`((?:{names})/[\w./-]*\.\w+)`", page.read_text()):
        is_in_package = path.split("/")[0] in PACKAGES
        yield f"src/filmlet/{path}" if is_in_package else path


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", heading.lower()).strip() for heading in headings)
    return {re.sub(r"\s", "-", heading) for heading in plain}


def test_tables_are_as_the_code_has_them() -> None:
    outdated = [str(page.relative_to(ROOT)) for page in generate_docs.outdated_pages()]
    assert not outdated, "run python -m tools.generate_docs"


def test_tables_are_all_in_a_page() -> None:
    text = "".join(page.read_text() for page in DOCS.rglob("*.md"))
    for name in generate_docs.TABLES:
        assert f"<!-- table: {name} -->" in text, name


def test_outdated_table_is_found() -> None:
    page = "# x\n<!-- table: settings -->\n| FILMLET_OLD |\n<!-- end of table -->\n"
    assert "FILMLET_HOME" in generate_docs.update(page)
    assert "FILMLET_OLD" not in generate_docs.update(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        target, _, anchor = link.partition("#")
        if target.startswith(("http://", "https://")):
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), link
        assert not anchor or anchor in anchors(file), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_in_code_font_exist(page: Path) -> None:
    missing = [path for path in named_files(page) if not list(ROOT.glob(path))]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_ones_that_filmlet_takes(page: Path) -> None:
    for arguments in filmlet_commands(page):
        assert build_parser().parse_args(arguments).command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_name_files_that_are_there(page: Path) -> None:
    """A file is in the repository, or an earlier command of the page wrote it."""
    written: set[str | None] = set()
    for arguments in filmlet_commands(page):
        options = vars(build_parser().parse_args(arguments))
        for name in (options.get("image"), options.get("last_image"), options.get("extend")):
            assert name is None or name in written or (ROOT / name).is_file(), name
        written.add(str(options["output"]) if options.get("output") else None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_variables_are_settings(page: Path) -> None:
    settings = {f"FILMLET_{name.upper()}" for name in vars(Settings())} | {"FILMLET_"}
    assert set(re.findall(r"FILMLET_[A-Z_0-9]*", page.read_text())) <= settings


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_examples_are_files_of_examples(page: Path) -> None:
    for block in code_blocks(page, "python"):
        assert block in EXAMPLES.values(), block


def test_examples_are_short_and_compile() -> None:
    for name, text in EXAMPLES.items():
        assert len(text.splitlines()) < 20, name
        compile(text, name, "exec")


def test_architecture_is_one_page() -> None:
    assert len((ROOT / "ARCHITECTURE.md").read_text().splitlines()) < 120


def test_site_shows_every_page() -> None:
    nav = (ROOT / "mkdocs.yml").read_text()
    for page in DOCS.rglob("*.md"):
        assert str(page.relative_to(DOCS)) in nav, page


def test_workflow_runs_make_check_and_make_test() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "checks.yml").read_text())["jobs"]
    steps = {step.get("run") for job in jobs.values() for step in job["steps"]}
    assert {"make check", "make test", "make docs"} <= steps
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {run.split()[1] for run in steps if run and run.startswith("make ")} <= targets


def test_makefile_commands_in_pages_are_targets() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        text = "\n".join(code_blocks(page, "sh")) + "\n".join(
            re.findall(r"`[^`\n]+`", page.read_text())
        )
        assert set(re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE)) <= targets, page


def test_libraries_that_wheels_contain_are_named_with_their_licences() -> None:
    (path,) = (f for f in files("pillow-heif") or () if f.name == "LICENSES_bundled.txt")
    text = path.read_text()
    bundled = dict(re.findall(r"Name: (\w+)\nLicense: (\w+)\n", text))
    assert bundled == {"libheif": "LGPLv3", "libde265": "LGPLv3", "x265": "GPLv2"}
    assert 'License for "pillow-heif" binary wheels: GPLv2' in text
    section = (DOCS / "operations.md").read_text().partition("## Licences")[2]
    assert "libheif, libde265 | LGPL-3.0" in section
    assert "x265 | GPL-2.0" in section
