"""The server under load on loopback: `python -m bench.server_load` writes LOAD.md.

Clients create, poll and list for a minute while one long clip is made; half of them ask when the
server says, half every second. The clients compute on the same machine as server and worker, so
they do no more than they must: a request is a few bytes, written and read by hand.
"""

import argparse
import asyncio
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory

import httpx2
import psutil

from bench.__main__ import processor

FRAMES = 1433  # of the clip: most of the minute, not only the beginning, where all create
LONG = {"prompt": "a red circle moving left on white", "size": "384x256", "seed": 1}
SMALL = {"prompt": "a ball", "size": "64x64", "frames": 1, "steps": 1, "priority": "low"}


@dataclass
class LatencyLog:
    """Milliseconds of each kind of request, and what went wrong."""

    poll: list[float] = field(default_factory=list)
    page: list[float] = field(default_factory=list)
    create: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@contextmanager
def server(home: Path) -> Iterator[tuple[str, psutil.Process]]:
    """A server with its worker; yields its address and its web process."""
    told = {"FILMLET_HOME": str(home), "FILMLET_MAX_ACTIVE": "1000"}
    told |= {"FILMLET_MAX_PER_MINUTE": "100000"}
    with subprocess.Popen(
        [sys.executable, "-m", "filmlet", "serve", "--port", "0"],
        env=os.environ | told, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stderr
        line = next(line for line in process.stderr if "listens on" in line)
        address = re.search(r"http://\S+", line)
        assert address
        try:
            while httpx2.get(f"{address[0]}/ready").status_code != 200:
                time.sleep(0.2)
            yield address[0], psutil.Process(process.pid)
        finally:
            process.terminate()
            process.stderr.read()


def long_clip(client: httpx2.Client, frames: int = FRAMES) -> str:
    answer = client.post(
        "/v1/videos", json=LONG | {"frames": frames, "priority": "high"}
    ).raise_for_status()
    return str(answer.json()["id"])


def wait(client: httpx2.Client, job: str) -> float:
    """Seconds of work that the job took, without waiting."""
    while True:
        video = client.get(f"/v1/videos/{job}").json()
        if video["status"] == "completed":
            return sum(stage["seconds"] for stage in video["stages"] if stage["stage"] != "load")
        assert video["status"] != "failed", video
        time.sleep(0.5)


@dataclass
class Client:
    """One kept connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, line: str, times: list[float], body: bytes = b"") -> tuple[str, bytes]:
        """Head and body of the answer. Raises OSError, ValueError, EOFError."""
        began = time.perf_counter()
        head = f"{line} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        self.writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
        told = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
        answer = await self.reader.readexactly(int(header(told, "content-length")))
        times.append(1000 * (time.perf_counter() - began))
        if not told.startswith("http/1.1 200"):
            raise ValueError(told.partition("\r")[0])
        return told, answer


def header(head: str, name: str, default: str = "") -> str:
    found = re.search(rf"^{name}: (.*)\r$", head, re.MULTILINE)
    return found[1] if found else default


async def run_client(url: str, number: int, until: float, seen: LatencyLog) -> None:
    """One client: creates a clip, polls it, looks at the list now and then."""
    await asyncio.sleep(number / 100)
    host, port = url.removeprefix("http://").split(":")
    try:
        client = Client(*await asyncio.open_connection(host, int(port)))
        made = await client.ask("POST /v1/videos", seen.create, json.dumps(SMALL).encode())
        job, asked = json.loads(made[1])["id"], 0
        while time.monotonic() < until:
            head, _ = await client.ask(f"GET /v1/videos/{job}", seen.poll)
            asked += 1
            if asked % 5 == 0:
                await client.ask("GET /v1/videos?limit=20", seen.page)
            told = float(header(head, "openai-poll-after-ms", "1000")) / 1000
            await asyncio.sleep(told if number % 2 else 1.0)
        client.writer.close()
    except (OSError, ValueError, EOFError) as error:
        seen.errors.append(repr(error))


async def run_clients(url: str, count: int, seconds: float) -> LatencyLog:
    seen, until = LatencyLog(), time.monotonic() + seconds
    await asyncio.gather(*(run_client(url, i, until, seen) for i in range(count)))
    return seen


def line(name: str, times: list[float]) -> str:
    cuts = quantiles(times, n=100)
    return f"| {name} | {len(times)} | {cuts[49]:.0f} ms | {cuts[94]:.0f} ms | {cuts[98]:.0f} ms |"


def main() -> None:
    options = argparse.ArgumentParser(prog="bench.server_load", description=__doc__)
    options.add_argument("--clients", type=int, default=200)
    options.add_argument("--seconds", type=float, default=60)
    options.add_argument("--to", type=Path, default=Path(__file__).parent / "LOAD.md")
    chosen = options.parse_args()
    with (
        TemporaryDirectory() as folder,
        server(Path(folder)) as (url, web),
        httpx2.Client(base_url=url, timeout=60) as client,
    ):
        wait(client, long_clip(client, 257))  # loads the model
        before_it = wait(client, long_clip(client))
        job = long_clip(client)
        os.nice(19)  # clients belong on other machines: what they compute is not the server's
        before = web.cpu_times()
        seen = asyncio.run(run_clients(url, chosen.clients, chosen.seconds))
        after = web.cpu_times()
        busy = wait(client, job)
        after_it = wait(client, long_clip(client))
        alone = (before_it + after_it) / 2
    asked = len(seen.poll) + len(seen.page) + len(seen.create)
    spent = 1000 * (after.user + after.system - before.user - before.system) / asked
    kinds = (("poll", seen.poll), ("list of 20", seen.page), ("create", seen.create))
    text = f"""# The server under load

{datetime.now(UTC):%Y-%m-%d}, {processor()}, Python {platform.python_version()},
SQLite, one worker, pocket: `python -m bench.server_load`.

{chosen.clients} clients create, poll and list for {chosen.seconds:.0f} s while a clip of
{FRAMES} frames at 384x256 is made; half of them poll when told, half every second. Clients,
server and worker share the machine; the clients run at the lowest priority, as if they were
elsewhere.

| | requests | median | 95 % | 99 % |
|---|---|---|---|---|
{chr(10).join(line(*kind) for kind in kinds)}

Errors: {len(seen.errors)}. The clip took {before_it:.1f} s before, {busy:.1f} s under load and
{after_it:.1f} s after: {busy / alone:.2f}x. A request cost the web process {spent:.1f} ms of CPU.
"""
    chosen.to.write_text(text)
    print(text, *seen.errors[:3])


if __name__ == "__main__":
    main()
