"""The process that decodes files from outside: what it cannot do, and how it is ended."""

import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from filmlet.errors import Cancelled, TooManyJobs
from filmlet.jobs import Queue
from filmlet.jobs.worker import Worker
from filmlet.media import InvalidMedia, iter_frames, probe, sandbox, stop_decoders_on
from filmlet.settings import Settings, bare_environment
from tests.helpers.attack_files import jpeg_of_scans
from tests.helpers.clips import footage, keep
from tests.helpers.queues import ask

A_MINUTE = 60  # what must come at once comes within it on any machine


def decoders() -> list[psutil.Process]:
    """Decoders that this process has started."""
    return [p for p in psutil.Process().children() if sandbox.PROGRAM in p.cmdline()]


def wait_decoder() -> psutil.Process:
    """The decoder that is about to be started."""
    for _ in range(A_MINUTE * 100):
        if found := decoders():
            return found[0]
        threading.Event().wait(0.01)
    raise AssertionError("no decoder was started")


CONFINED = """
import os, socket, sys
from filmlet.media.decoder import __main__ as decoder
decoder.import_tasks(is_video=True)
there = open(sys.argv[1], "rb")
decoder.limit_resources(5, 2**31)
for opens in (
    lambda: open(sys.argv[2]),
    lambda: open(sys.argv[2] + ".new", "w"),
    lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    lambda: os.pipe(),
):
    try:
        opens()
    except OSError as error:
        print(error.strerror)
print(there.read())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the kernel's limits")
def test_decoder_reads_its_file_and_can_open_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"sent")
    (tmp_path / "canary").write_text("secret")
    run = subprocess.run(
        [sys.executable, "-c", CONFINED, tmp_path / "file", tmp_path / "canary"],
        env=bare_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout.splitlines() == ["Too many open files"] * 4 + ["b'sent'"], run.stderr
    assert not (tmp_path / "canary.new").exists()


def test_decoders_are_told_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FILMLET_DATABASE_URL", "postgresql://me:secret@host/db")
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert "secret" not in str(bare_environment())


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A picture that takes minutes."""
    monkeypatch.setattr(sandbox, "SCANS", 10**6)
    file = tmp_path / "slow"
    file.write_bytes(jpeg_of_scans(5000))
    return file


@pytest.mark.parametrize("limit", ["CPU_S", "SILENCE_S", "MEMORY_BYTES"])
def test_decoder_that_takes_too_much_is_ended(
    limit: str, slow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = {"CPU_S": {("look", False): 1}, "SILENCE_S": 0.5, "MEMORY_BYTES": 40 * 2**20}[limit]
    monkeypatch.setattr(sandbox, limit, value)
    with pytest.raises(InvalidMedia, match=r"too much time or memory|not a whole"):
        probe(slow)
    assert not decoders()


def test_job_waits_longer_for_a_file_that_was_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "SCANS", 10**6)
    monkeypatch.setattr(sandbox, "CPU_S", {("look", False): 1, ("read", False): 300})
    file = tmp_path / "file"
    file.write_bytes(jpeg_of_scans(400))
    with pytest.raises(InvalidMedia, match="too much time or memory"):
        probe(file)
    with stop_decoders_on(threading.Event()):
        assert probe(file).width == 4000


def test_cancel_ends_a_decoder_at_once(slow: Path) -> None:
    cancel, raised = threading.Event(), []

    def run() -> None:
        with stop_decoders_on(cancel), pytest.raises(Cancelled) as error:
            probe(slow)
        raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    wait_decoder()
    cancel.set()
    thread.join(A_MINUTE)
    assert raised
    assert not decoders()


def test_frames_that_nobody_wants_any_more_end_their_decoder(tmp_path: Path) -> None:
    frames = iter_frames(Path(keep(tmp_path / "clip.mp4", footage(20))))
    next(frames)
    assert decoders()
    frames.close()
    assert not decoders()


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
def test_worker_that_reads_a_slow_file_hears_of_the_cancel(
    tmp_path: Path, slow: Path, settings: Settings, queue: Queue
) -> None:
    job = queue.submit(ask(Path("pocket"), image=keep(tmp_path / "a.png", footage())))
    (given,) = (queue.storage.local / job.id).iterdir()
    given.write_bytes(slow.read_bytes())
    worker = Worker(settings, queue=queue)
    thread = threading.Thread(target=worker.run_job, args=(job.id,))
    thread.start()
    wait_decoder()
    queue.cancel(job.id)
    assert worker.current
    worker.current.report_progress()  # as the pulse does
    thread.join(A_MINUTE)
    assert not thread.is_alive()
    assert queue.get_job(job.id).status == "cancelled"
    assert not decoders()


def test_few_files_are_looked_at_at_once(slow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "WAIT_S", 0.1)
    monkeypatch.setattr(sandbox, "CPU_S", {("look", False): 300})
    turns = [sandbox._limit_concurrent_decoders() for _ in range(sandbox.LOOKS_AT_ONCE)]
    for turn in turns:
        turn.__enter__()
    with pytest.raises(TooManyJobs):
        probe(slow)
    for turn in turns:
        turn.__exit__(None, None, None)
