"""Decoders that start at once: each is forked from a process that has only its imports.

A decoder has a process of its own with its limits, as `sandbox` starts it; the interpreter and the
libraries of its kind of file, 0.1 to 0.2 s of a CPU for each file of a test, are started once.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from filmlet.media.decoder import __main__ as decoder
from filmlet.settings import bare_environment

ORDER_BYTES = 65_536


class DecoderServer:
    """The process that decoders of pictures, or of videos, are forked from."""

    def __init__(self, is_video: bool) -> None:
        self._lock = threading.Lock()
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(theirs.fileno()), str(int(is_video))],
                env=bare_environment(),
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )

    def ask(self, request: dict[str, object], files: tuple[int, ...] = ()) -> int:
        with self._lock:
            socket.send_fds(self._channel, [json.dumps(request).encode()], files)
            return int(self._channel.recv(100))

    def close(self) -> None:
        self._channel.close()
        self._process.wait()


class ForkedDecoder:
    """A decoder; what `sandbox` uses of subprocess.Popen."""

    def __init__(self, server: DecoderServer, order: str, file: BinaryIO) -> None:
        reading, writing = os.pipe()
        self.stdout = os.fdopen(reading, "rb")
        self._server = server
        try:
            self._pid = server.ask({"order": order}, (file.fileno(), writing))
        finally:
            os.close(writing)

    def kill(self) -> None:
        self._server.ask({"kill": self._pid})

    def wait(self) -> int:
        return self._server.ask({"wait": self._pid})


@contextmanager
def serve_decoders() -> Iterator[dict[bool, DecoderServer]]:
    """The servers of pictures (False) and of videos (True)."""
    servers = {is_video: DecoderServer(is_video) for is_video in (False, True)}
    try:
        yield servers
    finally:
        for server in servers.values():
            server.close()


def start_decoder(servers: dict[bool, DecoderServer], order: str, file: BinaryIO) -> ForkedDecoder:
    """What takes the place of `sandbox._start`."""
    is_video = json.loads(order)["format"] in decoder.VIDEOS
    return ForkedDecoder(servers[is_video], order, file)


def _serve(channel: socket.socket, is_video: bool) -> None:
    decoder.import_tasks(is_video)
    while True:
        message, files, _, _ = socket.recv_fds(channel, ORDER_BYTES, 2)
        if not message:
            return
        channel.send(str(_answer(json.loads(message), files, channel)).encode())


def _answer(request: dict[str, object], files: list[int], channel: socket.socket) -> int:
    match request:
        case {"order": str(order)}:
            pid = os.fork()
            if not pid:
                channel.close()
                _decode(order, *files)
            for file in files:
                os.close(file)
            return pid
        case {"kill": int(pid)}:
            # Until it is waited for, no other process has its number.
            os.kill(pid, signal.SIGKILL)
            return 0
        case {"wait": int(pid)}:
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    raise ValueError(request)


def _decode(order: str, file: int, answers: int) -> None:
    """What an interpreter that is started for the order does."""
    for number, own in ((0, file), (1, answers)):
        os.dup2(own, number)
        os.close(own)
    sys.argv = [sys.argv[0], order]
    with suppress(BaseException):
        decoder.main()
        os._exit(0)
    os._exit(1)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])), bool(int(sys.argv[2])))
