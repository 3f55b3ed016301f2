"""A small Hub on loopback: real files, the Hub's paths and headers, faults that are asked for."""

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LARGE = 100_000  # bytes from which on a file is kept as the Hub keeps large ones
COMMIT = "8984fa25007f376c1a299016d0957a37a2f797bb"


@dataclass
class Faults:
    """What goes wrong. status: of a repository, with the Hub's own error code; dropped: how often
    a transfer of a file breaks in its middle; slow: seconds between its pieces; wrong: a file whose
    bytes are not what was told; token: without it nothing is given.
    """

    status: dict[str, tuple[int, str]] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    slow: dict[str, float] = field(default_factory=dict)
    wrong: set[str] = field(default_factory=set)
    token: str = ""


@dataclass
class Hub:
    """The server: folders by repository, what it was asked, its faults."""

    url: str
    repositories: dict[str, Path]
    faults: Faults = field(default_factory=Faults)
    asked: list[str] = field(default_factory=list)

    def given(self, kind: str = "GET") -> list[str]:
        """The files whose bytes were asked for."""
        resolved = [a for a in self.asked if a.startswith(f"{kind} ") and "/resolve/" in a]
        return [a.partition("/resolve/")[2].partition("/")[2] for a in resolved]


@contextmanager
def serve_repositories(repositories: dict[str, Path]) -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_port}", repositories)
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def commit_of(revision: str) -> str:
    """Every commit that is asked for is there; branches are at one."""
    return revision if re.fullmatch("[0-9a-f]{40}", revision) else COMMIT


class Handler(BaseHTTPRequestHandler):
    commit = COMMIT
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return self.server.hub  # type: ignore[attr-defined, no-any-return]

    def log_message(self, *_: object) -> None:
        """Nothing: tests look at `asked`."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def answer(self, body: bytes = b"") -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        _, first, *rest = path.split("/")
        if first == "api" and len(rest) > 3:
            self.commit = commit_of(rest[4] if len(rest) > 4 else "")
            self.about("/".join(rest[1:3]), rest[3], [p for p in rest[5:] if p], body)
        elif len(rest) > 2 and rest[1] == "resolve":
            self.commit = commit_of(rest[2])
            self.file(f"{first}/{rest[0]}", "/".join(rest[3:]))
        else:
            self.refuse(404, "RepoNotFound")

    def allowed(self, repo: str) -> Path | None:
        status, code = self.hub.faults.status.get(repo, (0, ""))
        token = self.hub.faults.token
        if token and self.headers.get("Authorization") != f"Bearer {token}":
            status, code = 401, "GatedRepo"
        if status or repo not in self.hub.repositories:
            self.refuse(status or 404, code or "RepoNotFound")
            return None
        return self.hub.repositories[repo]

    def about(self, repo: str, kind: str, path: list[str], body: bytes) -> None:
        root = self.allowed(repo)
        if root is None:
            return None
        if kind == "revision":
            self.tell({"id": repo, "sha": self.commit, "siblings": []})
        elif kind == "tree":
            folder = root.joinpath(*path)
            if not folder.is_dir():
                return self.refuse(404, "EntryNotFound")
            found = folder.rglob("*") if "recursive=true" in self.path.lower() else folder.iterdir()
            self.tell([entry(root, f) for f in sorted(found) if f.is_file()])
        elif kind == "paths-info":
            named = unquote(body.decode())
            paths = [p for part in named.split("&") for p in [part.removeprefix("paths=")]]
            files = [root / p for p in paths if (root / p).is_file()]
            self.tell([entry(root, f) for f in files])
        return None

    def file(self, repo: str, name: str) -> None:
        root = self.allowed(repo)
        if root is None:
            return None
        path = root / name
        if not path.is_file():
            return self.refuse(404, "EntryNotFound")
        told, data = entry(root, path), path.read_bytes()
        if name in self.hub.faults.wrong:
            data = bytes(len(data))
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", self.commit)
        self.send_header("ETag", f'"{told["oid"]}"')
        if "lfs" in told:
            self.send_header("X-Linked-Etag", f'"{told["lfs"]["oid"]}"')
            self.send_header("X-Linked-Size", str(len(data)))
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command == "GET":
            self.send(name, data[start:])
        return None

    def send(self, name: str, data: bytes) -> None:
        faults = self.hub.faults
        if faults.dropped.get(name, 0):
            faults.dropped[name] -= 1
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return
        pause, piece = faults.slow.get(name, 0.0), max(1, len(data) // 20)
        for at in range(0, len(data), piece):
            try:
                self.wfile.write(data[at : at + piece])
                self.wfile.flush()
            except OSError:
                self.close_connection = True
                return
            time.sleep(pause)

    def tell(self, table: object) -> None:
        data = json.dumps(table).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def entry(root: Path, file: Path) -> dict[str, object]:
    """A file as the Hub lists it: large ones by SHA-256, small ones by git's hash."""
    data = file.read_bytes()
    blob = hashlib.sha1(f"blob {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()
    told: dict[str, object] = {
        "type": "file", "path": str(file.relative_to(root)), "size": len(data), "oid": blob,
    }  # fmt: skip
    if len(data) >= LARGE or file.suffix == ".safetensors":
        digest = hashlib.sha256(data).hexdigest()
        told["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 130}
    return told
