"""`filmlet serve` begins and ends as people expect."""

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest

from filmlet.settings import Settings
from tests.helpers.servers import Serve, wait_until

pytestmark = pytest.mark.server


def test_ctrl_c_with_open_streams_ends_the_server_at_once(home: Settings, serve: Serve) -> None:
    server = serve(home, "--no-worker")
    job = server.job()
    seen: list[bytes] = []
    ends: list[str] = []

    def follow(path: str) -> None:
        with httpx2.Client(base_url=server.url, timeout=60) as client:
            try:
                with client.stream("GET", path) as answer:
                    for chunk in answer.iter_bytes():
                        seen.append(chunk)
                ends.append("complete")
            except httpx2.HTTPError as error:
                ends.append(type(error).__name__)

    streams = [
        threading.Thread(target=follow, args=(f"/v1/videos/{job}/events",)),
        threading.Thread(target=follow, args=("/gradio_api/heartbeat/abc",)),
    ]
    for stream in streams:
        stream.start()
    wait_until(lambda: bool(seen), 30)
    started = time.monotonic()
    os.kill(server.process.pid, signal.SIGINT)
    server.process.wait(30)
    seconds = time.monotonic() - started
    for stream in streams:
        stream.join(30)
    log = "".join(server.log)
    assert "Traceback" not in log, log
    assert "complete" in ends
    assert seconds < 4, "two on an idle machine"


@pytest.mark.parametrize(("root_path", "page"), [(None, ""), ("/films", "/films/")])
def test_open_shows_the_page_in_the_browser(
    home: Settings, serve: Serve, tmp_path: Path, root_path: str | None, page: str
) -> None:
    shown, browser = tmp_path / "shown", tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {shown}\n')
    browser.chmod(0o700)
    settings = replace(home, root_path=root_path)
    server = serve(settings, "--no-worker", "--open", BROWSER=f"{browser} %s")
    wait_until(lambda: shown.exists() and bool(shown.read_text()), 30)
    assert shown.read_text().strip() == server.url + page
    assert server.client.get("/v1/videos").status_code == 200, "keys are as without the option"
