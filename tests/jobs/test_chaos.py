"""Kills, stops and dropped connections at random moments: no job is lost or made twice."""

import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench.chaos import Faults, run
from filmlet.core.events import Stage
from filmlet.jobs import Queue, Status
from filmlet.settings import Settings
from tests.helpers.queues import ask, environment, is_over, wait, without_queue

pytestmark = pytest.mark.slow


def test_no_job_is_lost_or_doubled_under_kills_and_dropped_connections(settings: Settings) -> None:
    settings = replace(settings, lease_s=6.0, max_active=1000)
    drops = 0 if settings.database_url is None else 6
    figures = run(settings, Faults(jobs=24, kills=8, drops=drops, limit_s=900))
    assert figures.kills == 8
    assert figures.states[Status.COMPLETED] + figures.states[Status.FAILED] == 24
    assert figures.states[Status.FAILED] <= 1  # it was in hand at three kills, and says so
    assert (figures.doubled, figures.other_bytes) == (0, 0)


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
def test_stopped_worker_that_wakes_while_another_decodes_breaks_nothing(
    tiny: Path, settings: Settings, tmp_path: Path
) -> None:
    settings = replace(settings, lease_s=8.0)
    queue = Queue(settings)
    request = ask(tiny, frames=97, size="256x256")

    def begin(name: str) -> subprocess.Popen[bytes]:
        told = environment(replace(settings, worker=name))
        return subprocess.Popen([sys.executable, "-m", "filmlet", "worker", "--quiet"], env=told)

    def decodes(worker: str, job: str) -> None:
        wait(queue, job, lambda j: j.worker == f"{worker}:auto" and j.stage == Stage.DECODE, 300)

    first, jobs = begin("one"), [queue.submit(request).id for _ in range(3)]
    decodes("one", jobs[0])
    first.send_signal(signal.SIGSTOP)
    second = begin("two")
    try:
        decodes("two", jobs[0])
        first.send_signal(signal.SIGCONT)
        assert first.wait(120) == 3  # its lease was lost
        over = [wait(queue, job, is_over, 300) for job in jobs]
        assert [job.status for job in over] == [Status.COMPLETED] * 3, over
        made = without_queue(request, over[0], tmp_path / "straight.mp4")
        for job in jobs:
            assert queue.storage.read(job, "clip.mp4") == made
            assert not [f for f in queue.storage.folder(job).iterdir() if ".part" in f.name]
    finally:
        for worker in (first, second):
            worker.kill()
            worker.wait()
        queue.close()


GROWTH = """
import sys
from pathlib import Path
from filmlet.pipeline import stages
from filmlet.engine.placement import trim_heap
from filmlet.pipeline.plan import make_plan
from filmlet.core.request import build_request
from filmlet.settings import Settings
from filmlet.core.events import drain
from tests.helpers.clips import prepare_run

sizes = [(w, h) for w in range(64, 320, 32) for h in range(64, 352, 32)]
for number, (width, height) in enumerate(sizes[:65], start=1):
    request = build_request("a ball", seed=1, steps=1, frames=9, size=f"{width}x{height}")
    work = prepare_run(make_plan(request), Settings.from_environment())
    for _ in work.write(Path(sys.argv[1]), True):
        pass
    if number in (5, 65):
        trim_heap()
        print(Path("/proc/self/status").read_text())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_memory_does_not_grow_with_the_number_of_shapes(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, str(tmp_path / "clip.mp4")], capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    few, many = (int(kilobytes) for kilobytes in re.findall(r"VmRSS:\s+(\d+)", done.stdout))
    assert many - few < 150_000  # OpenVINO's own cache: 250 MB
