"""nginx and Caddy before the tests' servers, with the documentation's configurations."""

import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.helpers.servers import wait_until

DOCS = Path(__file__).parents[2] / "docs" / "deploy" / "README.md"
LANGUAGES = {"nginx": "nginx", "caddy": "caddyfile"}  # of their snippets, by program
MakeConfig = Callable[[int], str]  # of the port that the proxy listens on
StartProxy = Callable[[MakeConfig], str]  # returns its address


def read_snippets(program: str) -> list[str]:
    """Return the configurations of a proxy in the documentation, in their order."""
    pattern = rf"```{LANGUAGES[program]}\n(.*?)```"
    return re.findall(pattern, DOCS.read_text(), re.DOTALL)


@contextmanager
def run_proxies(program: str) -> Iterator[StartProxy]:
    """Yield a function that starts nginx or Caddy; they end with the context."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed")
    processes: list[subprocess.Popen[bytes]] = []

    def start(make_config: MakeConfig) -> str:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        place = folder / str(port)
        place.mkdir()
        place.chmod(0o777)
        config = place / "config"
        text = make_config(port)
        config.write_text(_nginx_file(text, place) if program == "nginx" else _caddy_file(text))
        command = (
            [path, "-c", str(config), "-e", "stderr"]
            if program == "nginx"
            else [path, "run", "--config", str(config), "--adapter", "caddyfile"]
        )
        environment = {"HOME": str(place), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        with (place / "log").open("wb") as log:
            processes.append(subprocess.Popen(command, stderr=log, stdout=log, env=environment))

        def listens() -> bool:
            assert processes[-1].poll() is None, (place / "log").read_text()
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        wait_until(listens, 30)
        return f"http://127.0.0.1:{port}"

    # nginx works as another user where root starts it, to whom pytest's own folders are closed.
    with TemporaryDirectory(prefix="filmlet-proxy-") as name:
        folder = Path(name)
        folder.chmod(0o777)
        try:
            yield start
        finally:
            for process in processes:
                process.terminate()
                process.wait(20)


def _nginx_file(http: str, folder: Path) -> str:
    places = "".join(
        f"{name}_temp_path {folder}/{name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return (
        f"daemon off; pid {folder}/pid; error_log stderr; worker_processes 1;\n"
        "events { worker_connections 200; }\n"
        f"http {{ access_log off; {places} {http} }}\n"
    )


def _caddy_file(sites: str) -> str:
    return f"{{\n admin off\n default_bind 127.0.0.1\n}}\n{sites}"
