"""What docs/deploy says: each command, variable and metric in it is one that there is."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from filmlet.cli.main import build_parser
from filmlet.settings import Settings

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "docs" / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
MANIFEST: list[dict[str, Any]] = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
TEXTS = [ROOT / "Dockerfile", ROOT / "compose.yaml", *sorted(DEPLOY.iterdir())]


def commands() -> Iterator[list[str]]:
    """The words after `filmlet` of every command that is started or shown."""
    for service in COMPOSE["services"].values():
        if service.get("image") == "filmlet":
            yield service["command"]
    for one in MANIFEST:
        if one["kind"] == "Deployment":
            yield from (c["args"] for c in one["spec"]["template"]["spec"]["containers"])
    for unit in DEPLOY.glob("*.service"):
        yield re.findall(r"^ExecStart=\S+ (.*)$", unit.read_text(), re.M)[0].split()
    for block in re.findall(r"```sh\n(.*?)```", (DEPLOY / "README.md").read_text(), re.S):
        for line in block.splitlines():
            if line.startswith("filmlet "):
                yield shlex.split(line)[1:]


def test_every_command_is_one_that_the_command_line_takes() -> None:
    shown = list(commands())
    assert len(shown) >= 9
    for words in shown:
        assert build_parser().parse_args(words).command


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_every_variable_is_a_setting(path: Path) -> None:
    settings = {f"FILMLET_{name.upper()}" for name in vars(Settings())}
    assert set(re.findall(r"FILMLET_[A-Z_]+", path.read_text())) <= settings


def test_workers_are_scaled_by_metrics_that_there_are() -> None:
    source = (ROOT / "src" / "filmlet" / "api" / "monitoring.py").read_text()
    (scaled,) = (one for one in MANIFEST if one["kind"] == "ScaledObject")
    for trigger in scaled["spec"]["triggers"]:
        name, status = re.fullmatch(
            r'(\w+)\{status="(\w+)"\}', trigger["metadata"]["valueLocation"]
        ).groups()  # type: ignore[union-attr]
        assert f'"{name}"' in source
        assert f'"{status}"' in source


def test_the_image_runs_as_somebody_who_may_do_little_and_says_that_it_lives() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert "USER 1000" in lines
    assert any(line.startswith("HEALTHCHECK") for line in lines)
    ignored = (ROOT / ".dockerignore").read_text().split()
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY ") and "--" not in line]
    for name in (name for names in copied for name in names):
        assert f"!{name}" in ignored


def test_every_pod_may_do_little_and_is_asked_whether_it_lives() -> None:
    for one in (one for one in MANIFEST if one["kind"] == "Deployment"):
        pod = one["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert all(c["resources"]["limits"]["memory"] for c in pod["containers"])
