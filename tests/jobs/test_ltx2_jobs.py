"""Jobs of LTX-2: a worker that dies in any stage costs none that is finished; the sound alone."""

import signal
from io import BytesIO
from pathlib import Path

import av
import pytest

from filmlet.core.events import Stage
from filmlet.jobs import Queue, Status
from tests.helpers.ltx2_engines import get_twin
from tests.helpers.queues import Start, ask, is_over, wait, without_queue
from tests.helpers.tiny_ltx2_files import make_full_model

pytestmark = pytest.mark.server

SMALL = {"size": "128x128", "frames": 17, "steps": None, "seed": 5}


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("stage", "done", "reused"),
    [
        ("denoise", 3, {"encode"}),
        ("refine", 2, {"encode", "denoise", "upsample"}),
        ("decode_audio", 1, {"encode", "denoise", "upsample", "refine"}),
        ("decode", 9, {"encode", "denoise", "upsample", "refine", "decode_audio"}),
    ],
)
def test_killed_worker_costs_no_finished_stage_of_picture_and_sound(
    tmp_path: Path, queue: Queue, start: Start, stage: str, done: int, reused: set[str]
) -> None:
    request = ask(get_twin("2.5").folder, **SMALL)
    job = queue.submit(request).id
    dying = (stage, str(done), str(tmp_path / "marker"))
    assert start(*dying, module="tests.helpers.crashing_worker").wait(120) == -signal.SIGKILL
    start(*dying, module="tests.helpers.crashing_worker")
    after = wait(queue, job, is_over)
    assert after.status == Status.COMPLETED, after.failure
    assert {r.stage.value for r in after.stages if r.attempt == 2 and r.reused} == reused
    computed = [r.stage for r in after.stages if not r.reused and r.stage != Stage.LOAD]
    assert len(computed) == len(set(computed))
    with queue.storage.open(job, "clip.mp4") as clip:
        content = clip.read()
    assert content == without_queue(request, after, tmp_path / "straight.mp4")
    with av.open(BytesIO(content)) as file:
        assert {stream.type for stream in file.streams} == {"video", "audio"}


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
@pytest.mark.parametrize("stage", ["upsample", "refine"])
def test_killed_worker_goes_on_with_the_distilled_lora_of_the_second_stage(
    tmp_path: Path, queue: Queue, start: Start, stage: str
) -> None:
    folder = make_full_model(get_twin("2.3").folder, tmp_path / "full")
    request = ask(folder, **SMALL | {"steps": 2})
    job = queue.submit(request).id
    dying = (stage, "1", str(tmp_path / "marker"))
    assert start(*dying, module="tests.helpers.crashing_worker").wait(120) == -signal.SIGKILL
    start(*dying, module="tests.helpers.crashing_worker")
    after = wait(queue, job, is_over)
    assert after.status == Status.COMPLETED, after.failure
    assert "denoise" in {r.stage.value for r in after.stages if r.attempt == 2 and r.reused}
    with queue.storage.open(job, "clip.mp4") as clip:
        assert clip.read() == without_queue(request, after, tmp_path / "straight.mp4")
