"""Decoding what strangers send: in a process of its own, limited in time and memory, and killable.

What holds where: the process is killed when it is silent for `SILENCE_S`, or when the job that it
reads for is cancelled, on every system. Limits of CPU time and memory and the ban on opening files
and sockets are the kernel's (`resource`): on Linux all of them, on macOS all but memory's, on
Windows none. It is no wall against code that takes over the decoder: that has this user's rights.
"""

import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from contextvars import ContextVar
from typing import Any, BinaryIO

from filmlet.errors import Cancelled, TooManyJobs
from filmlet.media.formats import (
    AUDIO_DECODERS,
    AUDIO_RATES,
    DECODERS,
    IMAGE_PIXELS,
    SCANS,
    VIDEO_FPS,
    VIDEO_FRAMES,
    VIDEO_PIXELS,
    VIDEO_SECONDS,
    Format,
    InvalidMedia,
)
from filmlet.settings import bare_environment

PROGRAM = "filmlet.media.decoder"
CPU_S = {
    ("look", False): 20,
    ("look", True): 60,
    ("read", False): 60,
    ("read", True): 900,
    ("read_audio", True): 60,
    ("read_tags", True): 20,
}
MEMORY_BYTES = 2 * 2**30
SILENCE_S = 60.0  # between two answers
CHECK_S = 0.1
THREADS = 2
LINE_BYTES = 1000
PIXELS_BYTES = 64 * 2**20  # behind one line: the largest frame takes 28 MB
LOOKS_AT_ONCE = 2
WAIT_S = 20.0  # for one of them to end
TOO_MUCH = "reading it takes too much time or memory."
DAMAGED = {
    False: "this is not a whole PNG, JPEG, WebP, HEIC or AVIF picture.",
    True: "this video cannot be read; it may be cut off.",
}

Message = tuple[dict[str, Any], bytearray]
_looks = threading.BoundedSemaphore(LOOKS_AT_ONCE)
_stop: ContextVar[threading.Event | None] = ContextVar("stop", default=None)


@contextmanager
def stop_decoders_on(event: threading.Event) -> Iterator[None]:
    """Decoders of this thread are killed, and raise Cancelled, as soon as the event is set."""
    token = _stop.set(event)
    try:
        yield
    finally:
        _stop.reset(token)


def look_into(file: BinaryIO, form: Format) -> dict[str, Any]:
    """Return what the decoder says about a file. Raises InvalidMedia, Cancelled, TooManyJobs."""
    answer: dict[str, Any] = {}
    with (
        _limit_concurrent_decoders(),
        closing(run_decoder(file, form, {"task": "look"})) as answers,
    ):
        for answer, _ in answers:  # noqa: B007  # before the last, that it goes on
            pass
    if not answer:
        raise InvalidMedia(DAMAGED[form.is_video])
    return answer


def run_decoder(file: BinaryIO, form: Format, task: dict[str, Any]) -> Generator[Message]:
    """Yield the decoder's answers, each with the pixels that belong to it.

    file: an open one of the operating system, not used by others meanwhile. task: "look", "read",
    "read_audio" or "read_tags" with what a video is read by. Closing the generator kills the
    process. Raises InvalidMedia, Cancelled, TooManyJobs.
    """
    # What was looked at when it was submitted is not refused by a slower worker.
    patience = "read" if _stop.get() and task["task"] == "look" else task["task"]
    limits = {
        "cpu_s": CPU_S[patience, form.is_video], "memory_bytes": MEMORY_BYTES,
        "threads": THREADS, "pixels": VIDEO_PIXELS if form.is_video else IMAGE_PIXELS,
        "scans": SCANS, "frames": VIDEO_FRAMES, "seconds": VIDEO_SECONDS, "max_fps": VIDEO_FPS,
        "decoders": DECODERS, "audio_decoders": AUDIO_DECODERS,
        "audio_rates": AUDIO_RATES,
    }  # fmt: skip
    order = task | limits | {"format": form.value, "damaged": DAMAGED[form.is_video]}
    process = _start(json.dumps(order), file)
    watch = _Watch(process, _stop.get())
    try:
        yield from _answers(process, watch)
    finally:
        watch.end()
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def _start(order: str, file: BinaryIO) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", PROGRAM, order],
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=bare_environment(),
        )
    except OSError as error:
        reason = f"This machine can start no further process ({error.strerror}); try again."
        raise TooManyJobs(reason, retry_after_s=WAIT_S) from error


def _answers(process: subprocess.Popen[bytes], watch: "_Watch") -> Generator[Message]:
    assert process.stdout
    while True:
        with watch.waiting():
            answer, pixels = _receive(process.stdout)
        if reason := answer.get("refused"):
            raise InvalidMedia(str(reason))
        if answer.get("end"):
            return
        if not answer:  # it is gone
            raise watch.reason or InvalidMedia(TOO_MUCH)
        yield answer, pixels


def _receive(stdout: Any) -> Message:
    """Return one line and its pixels; nothing where the process died in between."""
    try:
        answer = json.loads(stdout.readline(LINE_BYTES))
        pixels = bytearray(min(int(answer.pop("bytes")), PIXELS_BYTES))
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}, bytearray()
    return (answer, pixels) if stdout.readinto(pixels) == len(pixels) else ({}, bytearray())


@contextmanager
def _limit_concurrent_decoders() -> Iterator[None]:
    """One of the few looks that are taken at once; a job's, which is one of few, takes no turn."""
    if _stop.get():
        yield
        return
    if not _looks.acquire(timeout=WAIT_S):
        raise TooManyJobs("Too many files are being looked at; try again.", retry_after_s=WAIT_S)
    try:
        yield
    finally:
        _looks.release()


class _Watch:
    """Kills a process that is silent for too long, or that nobody needs any more."""

    def __init__(self, process: subprocess.Popen[bytes], stop: threading.Event | None) -> None:
        self.process, self.stop = process, stop
        self.reason: Exception | None = None
        self.deadline = math.inf
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self.thread.start()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While somebody waits for an answer."""
        self.deadline = time.monotonic() + SILENCE_S
        try:
            yield
        finally:
            self.deadline = math.inf

    def end(self) -> None:
        self.over.set()
        self.thread.join()

    def _run(self) -> None:
        while not self.over.wait(CHECK_S):
            if self.stop and self.stop.is_set():
                self.reason = Cancelled("The clip was cancelled.")
            elif time.monotonic() > self.deadline:
                self.reason = InvalidMedia(TOO_MUCH)
            if self.reason:
                self.process.kill()
                return
