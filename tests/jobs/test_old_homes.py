"""A home that the commit 62c1b00 has written opens: its jobs are there, and go on."""

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from filmlet.core.request import ClipRequest
from filmlet.jobs import Queue, Status, SubmitOptions
from filmlet.jobs.old_rows import load_json
from filmlet.settings import Settings
from tests.helpers.queues import is_over, wait
from tests.helpers.tiny_checkpoint import make_checkpoint

DATA = Path(__file__).parent / "data"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def old_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the worker of that home ran in, with its tiny checkpoint `two`."""
    with tarfile.open(DATA / "home-62c1b00.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    make_checkpoint(tmp_path / "two", timed=True, two_stages=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def queue(old_home: Path) -> Iterator[Queue]:
    queue = Queue(Settings(home=old_home / "home", worker="one"))
    yield queue
    queue.close()


def test_old_rows_are_read_under_the_new_names(old_home: Path, queue: Queue) -> None:
    ids = json.loads((old_home / "ids.json").read_text())
    jobs = {name: queue.get_job(id) for name, id in ids.items()}
    finished = ("completed", "draft", "extension")
    assert all(jobs[name].status == Status.COMPLETED for name in finished)
    assert jobs["failed"].failure
    assert jobs["failed"].failure.code == "checkpoint_damaged"
    assert jobs["queued"].requested["extra_prompts"] == ("the white ball",)

    completed = jobs["completed"]
    assert completed.shape
    assert (completed.shape.width, completed.shape.generated_width) == (80, 128)
    assert completed.effective
    assert completed.effective["offload"] == "none"
    assert [change["field"] for change in completed.effective["changes"]] == ["generated_width"]
    assert completed.clip
    with queue.storage.open(completed.id, "clip.mp4") as clip:
        assert clip.read(8)[4:] == b"ftyp"


@pytest.mark.server
def test_old_jobs_go_on_from_where_they_were(old_home: Path, queue: Queue) -> None:
    ids = json.loads((old_home / "ids.json").read_text())
    refined = queue.refine(ids["draft"], SubmitOptions()).id
    environment = os.environ | {
        "FILMLET_HOME": str(old_home / "home"), "FILMLET_WORKER": "one", "FILMLET_DEVICE": "cpu",
        "FILMLET_ENGINE": "torch", "PYTHONPATH": str(ROOT / "src"),
    }  # fmt: skip
    command = [sys.executable, "-m", "filmlet", "worker", "--quiet"]
    with subprocess.Popen(command, cwd=old_home, env=environment) as worker:
        try:
            unfinished = wait(queue, ids["unfinished"], is_over)
            assert unfinished.status == Status.COMPLETED, unfinished.failure
            assert {r.stage.value for r in unfinished.stages if r.reused} == {"encode"}
            for job in (ids["queued"], refined):
                done = wait(queue, job, is_over)
                assert done.status == Status.COMPLETED, done.failure
        finally:
            worker.terminate()


def test_row_of_today_is_left_as_it_is() -> None:
    request = json.dumps(vars(ClipRequest("a red ball", extra_prompts=("a cat",))))
    assert load_json(request) == json.loads(request)


def test_old_windows_and_offload_modes_have_their_new_names() -> None:
    old = {"hold": "turns", "windows": [{"first": 0, "end": 9, "shared": 0, "prompt": 1}]}
    window = {"start_frame": 0, "end_frame": 9, "overlap_frames": 0, "prompt_index": 1}
    assert load_json(json.dumps(old)) == {"offload": "model", "windows": [window]}
