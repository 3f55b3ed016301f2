"""A stand-in for what lends GPUs on ZeroGPU, and a Space that borrows from it on a CPU.

The real `spaces` package asks it, forks, pickles and gives back; only CUDA itself is left out.
`python -m tests.helpers.fake_zerogpu` runs app.py of the current folder like that.
"""

import runpy
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta

import uvicorn
from fastapi import FastAPI, Request, Response


@dataclass
class Lender:
    """What was asked of it. refusal: how the next call is answered, None lends."""

    url: str = ""
    calls: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    refusal: str | None = None

    def asked(self, what: str) -> list[dict[str, str]]:
        return [query for name, query in self.calls if name == what]

    @property
    def lent(self) -> int:
        """GPUs that are out now."""
        return len(self.asked("schedule")) - len(self.asked("release"))


def app(lender: Lender) -> FastAPI:
    api = FastAPI()

    @api.post("/{what}")
    def call(what: str, request: Request) -> Response:
        if what != "schedule" or lender.refusal is None:
            lender.calls.append((what, dict(request.query_params)))
        if what != "schedule":
            return Response()
        match lender.refusal:
            case None:
                number = len(lender.calls)
                gpu = {"idle": True, "nvidiaIndex": number, "nvidiaUUID": "GPU-0"}
                return _json(gpu | {"allowToken": f"token-{number}"})
            case "quota":
                return _json({"left": 20, "wait": timedelta(hours=1).total_seconds()}, 429)
            case "duration":
                return _json({"left": 20, "wait": -1}, 429)
            case "busy":
                return Response("event: failed\n", media_type="text/event-stream")
            case _:
                return Response(status_code=503)

    return api


def _json(table: dict[str, object], status: int = 200) -> Response:
    from fastapi.responses import JSONResponse

    return JSONResponse(table, status)


def free_port() -> str:
    """One that nobody listens on now, and that no system gives to whoever asks for any.

    Of those that systems give (from 32768, from 49152) another test may get it before it is used.
    """
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return str(port)


@contextmanager
def serve_app(api: FastAPI) -> Iterator[str]:
    """Serve an app on loopback, in a thread; yields its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(api, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)
    listener.close()


def without_cuda() -> None:
    """Import `spaces` as on ZeroGPU, where it stands in for CUDA until a GPU is lent, and undo that
    part: a CPU stays a CPU, in the forked process too."""
    import torch

    # What a build without CUDA has not, and `spaces` looks at while it is imported.
    torch._C._cuda_init, torch.version.cuda = (lambda: None), "13.0"
    torch.cuda._is_in_bad_fork = torch.cuda.is_available
    import spaces.zero.torch as emulation

    torch.version.cuda = None

    emulation.unpatch()
    for name in ("enter_mode", "unpatch", "init", "move"):
        setattr(emulation, name, lambda *_, **__: None)


if __name__ == "__main__":
    without_cuda()
    runpy.run_path("app.py", run_name="__main__")
