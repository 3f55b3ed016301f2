"""Writes what a Space installs: the tested set, resolved as the platform does it.

The platform installs requirements.txt together with Gradio's extras and `spaces`, and those hold
pydantic back. `python -m tests.helpers.space_requirements` asks pip, which needs an index.
"""

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from filmlet.spaces.space_files import PINS

ROOT = Path(__file__).parents[2]
EXTRAS = ("gradio[oauth,mcp]", "uvicorn>=0.14.0", "websockets>=10.4", "spaces")
HELD_BACK = ("pydantic", "pydantic_core")  # by gradio[mcp]
OF_TORCH = re.compile("torch$|triton|nvidia-|cuda-|setuptools$")  # as its build and hardware want


def list_direct_requirements() -> list[str]:
    """What a Space of filmlet asks for: it serves, and has torch for every model."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return [*project["dependencies"], *extras["server"], *extras["torch"]]


def parse_pins(text: str) -> dict[str, str]:
    """Versions by name, both as written."""
    lines = (line for line in text.splitlines() if "==" in line and not line.startswith("#"))
    return {name: version for name, _, version in (line.partition("==") for line in lines)}


def resolve() -> dict[str, str]:
    """What pip would install on the platform, without torch and its own."""
    known = parse_pins((ROOT / "constraints.txt").read_text())
    with tempfile.TemporaryDirectory() as folder:
        constraints, report = Path(folder) / "constraints.txt", Path(folder) / "report.json"
        kept = [f"{k}=={v}" for k, v in known.items() if k not in HELD_BACK]
        constraints.write_text("\n".join(kept))
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed",
             "--report", str(report), "-c", str(constraints), *list_direct_requirements(), *EXTRAS],
            check=True,
        )  # fmt: skip
        found = [one["metadata"] for one in json.loads(report.read_text())["install"]]
    return {m["name"]: m["version"] for m in found if not OF_TORCH.match(m["name"])}


if __name__ == "__main__":
    lines = sorted((f"{k}=={v}" for k, v in resolve().items()), key=str.lower)
    PINS.write_text("\n".join(lines) + "\n")
