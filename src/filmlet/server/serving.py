"""One machine's server: the web process, and a worker that is started again when it dies."""

import gc
import ipaddress
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import webbrowser
from dataclasses import dataclass

import uvicorn
from starlette.types import ASGIApp

from filmlet import api, ui
from filmlet.api.anonymous_users import Visitors
from filmlet.errors import AddressUnusable, ApiKeyRequired
from filmlet.jobs import ApiKeyStore
from filmlet.jobs.database import Database
from filmlet.server.forwarded import ForwardedHeaders
from filmlet.server.open_responses import OpenResponses
from filmlet.server.protocol import Connections, make_protocol_class
from filmlet.server.root_path import RootPathMiddleware
from filmlet.settings import Settings

log = logging.getLogger("filmlet.server")

LOOPBACK = ["localhost", "127.0.0.1", "[::1]"]
KEEP_S = 75  # longer than a client waits between two polls
CLOSE_S = 1  # for answers that are still under way when the server stops
REQUEUE_S = 15.0  # for a worker to put its job back
RESET_BACKOFF_S = 60.0  # a worker that lived so long starts anew at once
SPARE_FILES = 200  # descriptors for files and the database, beside connections
WEB_NICE = 5  # what clients ask for takes turns with the clip that is made


@dataclass(frozen=True)
class ServerConfig:
    """How to serve. is_open: anybody may ask, without a key and from anywhere.

    has_worker: this machine makes clips too. drain_on_stop: the job in hand is finished before the
    server stops, otherwise it goes back into the queue. log: `lines` or `json`. visitors: each
    browser is a user of its own. allowed_hosts: names beside its own that the server answers to;
    on another address than loopback it answers to any where there are none. opens_browser: with
    the page, once it can be reached.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    is_open: bool = False
    has_worker: bool = True
    drain_on_stop: bool = False
    log: str = "lines"
    visitors: Visitors | None = None
    allowed_hosts: tuple[str, ...] = ()
    opens_browser: bool = False

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it, by its own names."""
        return _is_loopback(self.host)

    @property
    def demands_keys(self) -> bool:
        """A name of its own means a proxy, behind which others ask."""
        return not self.is_open and (not self.is_local or bool(self.allowed_hosts))

    @property
    def hosts(self) -> list[str] | None:
        """Names that it answers to, None is any."""
        if not self.is_local and not self.allowed_hosts:
            return None
        return [*LOOPBACK, *self.allowed_hosts]


def serve(settings: Settings, serving: ServerConfig) -> None:
    """Serve until SIGINT or SIGTERM. Raises AddressUnusable, ApiKeyRequired, DatabaseUnusable."""
    if serving.demands_keys:
        _require_api_keys(settings, ", ".join(serving.allowed_hosts) or serving.host)
    app = api.create_app(
        settings,
        serving.hosts,
        demands_keys=serving.demands_keys,
        visitors=serving.visitors,
        is_local=serving.is_local and not serving.is_open,
    )
    ui.mount(app, app.state.filmlet)
    with _bind_socket(serving.host, serving.port) as listener:
        host, port = listener.getsockname()[:2]
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)  # uvicorn raises them again after its shutdown
        worker = WorkerSupervisor(settings, serving) if serving.has_worker else None
        if worker:
            os.nice(WEB_NICE)  # of this thread and those it starts: not of the one that watches
        gc.freeze()  # objects of the start stay: collecting them took a sixth of the time
        log.info("filmlet listens on http://%s:%s", host, port)
        if serving.opens_browser:  # the socket listens: the page waits until it is answered
            shown = (host, port, settings.root_path or "")
            threading.Thread(target=_open_browser, args=shown, daemon=True).start()
        try:
            WebServer(app, settings, worker).run(sockets=[listener])
        finally:
            if worker:
                worker.stop()


class WebServer(uvicorn.Server):
    """uvicorn's server, which ends streams when it stops, and tells the worker at once."""

    def __init__(self, app: ASGIApp, settings: Settings, worker: "WorkerSupervisor | None") -> None:
        self.responses = OpenResponses(app)
        self.worker = worker
        super().__init__(_configure(self.responses, settings))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop to listen, end what is streamed, and wait for other answers."""
        if self.worker:
            self.worker.request_stop()
        self.responses.close()
        await super().shutdown(sockets)


def _configure(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    inner = RootPathMiddleware(app, settings.root_path)
    front = ForwardedHeaders(inner, settings.forwarded_allow_ips)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    most = max(1, min(settings.max_connections, hard - SPARE_FILES))
    connections = Connections(most, settings.max_connections_per_address, front.proxies)
    return uvicorn.Config(
        front, http=make_protocol_class(connections), ws="none", proxy_headers=False,
        log_config=None, access_log=False, timeout_graceful_shutdown=CLOSE_S, server_header=False,
        timeout_keep_alive=KEEP_S,
    )  # fmt: skip


def _open_browser(host: str, port: int, root_path: str) -> None:
    """Open the page in this machine's browser, below its root path: cookies are valid there."""
    name = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    url = f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"
    url += f"{root_path.rstrip('/')}/" if root_path else ""
    if not webbrowser.open(url):
        log.warning("no browser was found; the page is at %s", url)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _require_api_keys(settings: Settings, host: str) -> None:
    database = Database(settings)
    try:
        if not ApiKeyStore(database, settings).list_keys():
            raise ApiKeyRequired(f"{host} can be reached by others and there is no key yet.")
    finally:
        database.close()


def _bind_socket(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=512)
    except (OSError, OverflowError) as error:
        raise AddressUnusable(f"{host}:{port} cannot be listened on: {error}.") from error


class WorkerSupervisor:
    """A worker process that is started again, with growing pauses, until it is told to stop."""

    def __init__(self, settings: Settings, serving: ServerConfig) -> None:
        self.environment = settings.to_environ()
        self.finishes = serving.drain_on_stop
        self.command = [sys.executable, "-m", "filmlet", "worker", "--supervised"]
        self.command += ["--log", serving.log]
        if serving.drain_on_stop:
            self.command.append("--finish")
        self.stopping = threading.Event()
        self.process = self._start()
        self.watch = threading.Thread(target=self._restart_loop, name="supervisor", daemon=True)
        self.watch.start()

    def _start(self) -> subprocess.Popen[bytes]:
        # A process group of its own: Ctrl-C is for the server, which tells the worker once. Its
        # stdin closes when this process is gone, however it went.
        return subprocess.Popen(
            self.command, stdin=subprocess.PIPE, process_group=0, env=self.environment
        )

    def _restart_loop(self) -> None:
        pause = 1.0
        while True:
            started = time.monotonic()
            status = self.process.wait()
            assert self.process.stdin
            self.process.stdin.close()
            if self.stopping.is_set():
                return
            pause = 1.0 if time.monotonic() - started > RESET_BACKOFF_S else min(30.0, pause * 2)
            log.warning("the worker ended with status %d; again in %.0f s", status, pause)
            if self.stopping.wait(pause):
                return
            self.process = self._start()

    def request_stop(self) -> None:
        """Tell the worker to stop, once: a second signal would end a clip that it finishes."""
        if not self.stopping.is_set():
            self.stopping.set()
            self.process.terminate()

    def stop(self) -> None:
        """Tell the worker, and wait: for its clip, or until the job is back in the queue."""
        self.request_stop()
        try:
            self.process.wait(None if self.finishes else REQUEUE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.watch.join(1)
