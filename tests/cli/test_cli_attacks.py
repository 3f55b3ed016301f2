"""Odd input on the command line, and a process without what others have: one sentence, no trace."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from filmlet.cli import main
from filmlet.settings import Settings
from tests.helpers.servers import wait_until

FILMLET = [sys.executable, "-m", "filmlet"]
DIGITS = "9" * 400
NOT_UTF8 = "\udcff\udcfe"
LONG = "a" * 100_000


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FILMLET_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def status_of(*words: str) -> int:
    try:
        return main.main(list(words))
    except SystemExit as end:  # argparse's own
        return int(str(end.code))


@pytest.mark.parametrize(
    "words",
    [
        ("plan", "--model", LONG), ("plan", "--model", "a" * 300), ("plan", "--model", "a\x1b[31m"),
        ("models", "show", LONG), ("models", "show", NOT_UTF8), ("models", "export", NOT_UTF8),
        ("models", "show", "-x"), ("models", "pull", f"{NOT_UTF8}/x"),
        ("jobs", "show", NOT_UTF8), ("jobs", "show", "../../etc"), ("jobs", "delete", ".."),
        ("jobs", "--limit", DIGITS), ("jobs", "--limit", "-1"), ("jobs", "--limit", "²"),
        ("submit", "ball", "--key", NOT_UTF8), ("submit", NOT_UTF8),
        ("keys", "add", NOT_UTF8), ("keys", "add", "a\x1bb\n"), ("keys", "add", LONG),
        ("keys", "add", "q", "--max-active", DIGITS), ("keys", "add", "q", "--max-active", "-5"),
        ("keys", "add", "q", "--seconds-per-day", "nan"),
        ("keys", "add", "q", "--webhook", "http://u:p@example.com/"),
        ("serve", "--port", DIGITS), ("serve", "--port", "-1"),
        ("plan", "--lora", f"{LONG}.safetensors"), ("plan", "--lora", f"{NOT_UTF8}.safetensors"),
        ("plan", "--lora", "pipe.safetensors"), ("plan", "--lora", "folder.safetensors"),
        ("plan", "--model", "pipe.safetensors"), ("plan", "--model", "zero.safetensors"),
    ],
    ids=lambda words: " ".join(words)[:30].encode("ascii", "replace").decode(),
)  # fmt: skip
def test_odd_words_are_refused_with_a_sentence(
    words: tuple[str, ...], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(home / "pipe.safetensors")
    (home / "zero.safetensors").symlink_to("/dev/zero")
    (home / "folder.safetensors").mkdir()
    assert status_of(*words) in (1, 2)
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert len(told) < 3000


def run(*words: str, **more: Any) -> "subprocess.CompletedProcess[str]":
    words = (*FILMLET, *words)
    piped = {} if "stdout" in more else {"capture_output": True}
    return subprocess.run(words, text=True, check=False, timeout=120, **piped, **more)


@pytest.mark.server
@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_process_without_streams_writes_into_none_of_its_files(
    closed: tuple[int, ...], home: Path
) -> None:
    """The first file that is opened would get the number of stdout."""

    def close() -> None:
        for number in closed:
            os.close(number)

    words = ("generate", "a red circle", "--size", "64x64", "--frames", "9", "--steps", "1")
    done = run(*words, "-o", "a.mp4", preexec_fn=close)
    assert done.returncode == 0, done.stderr
    assert (home / "a.mp4").read_bytes()[4:8] == b"ftyp"
    assert not done.stderr


@pytest.mark.server
def test_full_disk_behind_stdout_is_said_once() -> None:
    with Path("/dev/full").open("w") as full:
        done = run("models", "--json", stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr.endswith("No space left on device; make room and try again. [disk_full]\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.server
def test_terminal_of_few_letters_and_a_missing_home_are_enough(home: Path) -> None:
    bare = {"PATH": os.environ["PATH"], "PYTHONIOENCODING": "ascii", "HOME": "/nowhere/at/all"}
    env = bare | {"PYTHONPATH": os.environ.get("PYTHONPATH", ""), "HF_HOME": str(home / "hub")}
    done = run("plan", "a snowman ☃", "--model", "nobody/☃", env=env)
    assert done.returncode == 2
    assert "\\u2603" in done.stderr
    assert run("models", env=env).returncode == 0


def test_user_without_a_home_is_only_asked_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)
    found = Settings.from_environment({"FILMLET_HOME": "/a", "FILMLET_CACHE": "/b"})
    assert (found.home, found.cache) == (Path("/a"), Path("/b"))


@pytest.mark.server
def test_full_disk_is_said_by_its_code(home: Path) -> None:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    done = run("space", "files", str(home / "space"), preexec_fn=limit)
    assert done.returncode == 1
    assert "[disk_full]" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.server
@pytest.mark.parametrize("library", ["select", "_sqlite3", "_multiarray_umath"])
def test_ctrl_c_while_libraries_are_read_leaves_no_trace(library: str) -> None:
    words = [*FILMLET, "jobs", "watch", "nothing"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as done:
        mapped = Path(f"/proc/{done.pid}/maps")
        wait_until(lambda: library in mapped.read_text() or done.poll() is not None)
        done.send_signal(signal.SIGINT)
        _, told = done.communicate(timeout=60)
    # 1: it was over before; -2: it did not listen yet, and the system ended it
    assert done.returncode in (130, 1, -signal.SIGINT), told
    assert "Traceback" not in told
