"""Gigabytes are fetched with consent only: at a terminal by an answer, elsewhere by --yes."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from filmlet.cli import main as cli

WORDS = ("a ship", "--model", "ltxv-2b-0.9.8-distilled", "--size", "64x64", "--frames", "9")


@pytest.mark.parametrize("command", ["generate", "submit"])
def test_without_a_terminal_gigabytes_take_yes(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("FILMLET_HOME", str(tmp_path / "home"))
    assert cli.main([command, *WORDS]) != 0
    said = capsys.readouterr().err
    assert f"25.9 GB would be downloaded to {tmp_path}/hub" in said
    assert "--yes" in said
    assert "[checkpoint_missing]" in said


@pytest.mark.server
@pytest.mark.parametrize(
    ("answer", "says"), [("n", "nothing was downloaded"), ("", "nothing was"), ("y", "HF_HUB_OFF")]
)
def test_at_a_terminal_gigabytes_are_asked_for(answer: str, says: str, tmp_path: Path) -> None:
    master, slave = pty.openpty()
    words = [sys.executable, "-m", "filmlet", "generate", *WORDS]
    env = os.environ | {"HF_HOME": str(tmp_path / "hf"), "COLUMNS": "400"}
    with subprocess.Popen(
        words, cwd=tmp_path, stdin=slave, stdout=slave, stderr=slave, env=env
    ) as process:
        os.close(slave)
        shown = read_until(master, b"[y/N]")
        os.write(master, f"{answer}\n".encode())
        shown += read_until(master, None)
    os.close(master)
    assert f"Download 25.9 GB to {tmp_path}/hf/hub?" in shown
    assert says in shown
    assert process.returncode != 0


def read_until(terminal: int, end: bytes | None) -> str:
    """What a terminal shows until it has shown that, or the process has ended."""
    shown = b""
    while end is None or end not in shown:
        try:
            piece = os.read(terminal, 4096)
        except OSError:
            break
        if not piece:
            break
        shown += piece
    return shown.decode()
