"""What docs/deploy says: each command, variable and metric in it is one that there is."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

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


def test_image_runs_as_somebody_who_may_do_little_and_says_that_it_lives() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert "USER 1000" in lines
    assert any(line.startswith("HEALTHCHECK") for line in lines)
    ignored = (ROOT / ".dockerignore").read_text().split()
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY ") and "--" not in line]
    for name in (name for names in copied for name in names):
        assert f"!{name}" in ignored


def deployments() -> list[dict[str, Any]]:
    return [one["spec"]["template"]["spec"] for one in MANIFEST if one["kind"] == "Deployment"]


def test_every_pod_meets_the_restricted_standard() -> None:
    for pod in deployments():
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
            }  # fmt: skip
            assert container["resources"]["limits"]["memory"]
        assert all({*volume} <= {"name", "emptyDir"} for volume in pod["volumes"])


def test_workers_are_as_many_as_clips_are_made_and_half_of_those_that_wait() -> None:
    (scaled,) = (one["spec"] for one in MANIFEST if one["kind"] == "ScaledObject")
    modifiers = scaled["advanced"]["scalingModifiers"]
    names = {trigger["name"] for trigger in scaled["triggers"]}
    assert names == {*re.findall(r"[a-z]+", modifiers["formula"])}
    waiting_and_made = {"queued": 4, "running": 3}
    wanted = eval(modifiers["formula"], {}, waiting_and_made) / float(modifiers["target"])
    assert wanted == 5


UNITS = sorted(DEPLOY.glob("*.service"))


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_service_names_folders_that_it_may_write(unit: Path) -> None:
    text = unit.read_text()
    found = dict(
        re.findall(r"(\w+)=(/\S+)", " ".join(re.findall(r"^Environment=(.*)$", text, re.M)))
    )
    assert re.search("^StateDirectory=filmlet$", text, re.M)
    assert re.search("^CacheDirectory=filmlet$", text, re.M)
    assert found["FILMLET_HOME"] == "/var/lib/filmlet"
    assert found["FILMLET_CACHE"].startswith("/var/cache/filmlet/")
    assert found["HF_HOME"].startswith("/var/cache/filmlet/")


def test_service_is_set_up_by_the_commands_that_are_shown() -> None:
    shown = (DEPLOY / "README.md").read_text()
    (user,) = {*re.findall(r"^User=(\w+)$", UNITS[-1].read_text(), re.M)}
    assert re.search(f"^useradd .* {user}$", shown, re.M)
    (keys,) = re.findall(
        rf"^runuser -u {user} -- env (\S+) /opt/filmlet/bin/filmlet (.*)$", shown, re.M
    )
    assert f"Environment={keys[0]} " in UNITS[-1].read_text()
    assert build_parser().parse_args(shlex.split(keys[1])).command == "keys"


def test_proxy_in_front_of_the_containers_can_be_named() -> None:
    for name in ("web", "worker"):
        value = COMPOSE["services"][name]["environment"]["FILMLET_FORWARDED_ALLOW_IPS"]
        assert value.startswith("${FILMLET_FORWARDED_ALLOW_IPS:-")
    assert "FILMLET_FORWARDED_ALLOW_IPS" in MANIFEST[0]["data"]


def test_package_says_what_it_runs_on_and_is_typed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    allowed = SpecifierSet(project["requires-python"])
    listed = re.findall(r"Python :: (3\.\d+)", " ".join(project["classifiers"]))
    assert listed == [f"3.{n}" for n in range(20) if f"3.{n}" in allowed]
    assert "Typing :: Typed" in project["classifiers"]
    assert (ROOT / "src" / "filmlet" / "py.typed").read_bytes() == b""
    (uvloop,) = (
        one for one in map(Requirement, project["optional-dependencies"]["server"])
        if one.name == "uvloop"
    )  # fmt: skip
    assert uvloop.marker
    assert not uvloop.marker.evaluate({"sys_platform": "win32"})
    assert uvloop.marker.evaluate({"sys_platform": "linux"})


def test_clients_keep_their_pod() -> None:
    (service,) = (one for one in MANIFEST if one["kind"] == "Service")
    assert service["spec"]["sessionAffinity"] == "ClientIP"
