"""Stages keep what they make: whatever stops a clip, it goes on from there to the same file."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from filmlet.clip import ENGINES
from filmlet.core.events import Event, Frames, Progress, Stage, StageFinished
from filmlet.core.request import ClipOptions, build_request
from filmlet.engine.torch import loader
from filmlet.errors import Cancelled
from filmlet.pipeline.plan import make_plan
from filmlet.settings import Settings
from tests.helpers.clips import ClipRun, prepare_run

SMALL: ClipOptions = {"size": "64x64", "frames": 25, "steps": 4, "seed": 2}
Stop = Callable[[Event], bool]


@pytest.fixture(autouse=True)
def _keep_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("filmlet.pipeline.denoise.CHECKPOINT_INTERVAL_S", -1.0)


def work_for(model: Path, folder: Path | None) -> ClipRun:
    settings = SMALL | {"model": str(model)}
    work = prepare_run(make_plan(build_request("a red ball", **settings)), Settings())
    work.keep_in(folder)
    return work


def film(work: ClipRun, path: Path, stop: Stop | None = None) -> list[Event]:
    """The events of a clip, up to the one at which it is left."""
    told = []
    events = work.write(path)
    for event in events:
        told.append(event)
        if stop and stop(event):
            events.close()
            break
    return told


def finished(events: list[Event]) -> dict[str, bool]:
    """Which stages are over, and whether their result was reused."""
    return {e.stage.value: e.reused for e in events if isinstance(e, StageFinished)}


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize(
    ("stop", "reused"),
    [
        (lambda e: isinstance(e, Progress) and e.stage == Stage.LOAD, set()),
        (lambda e: isinstance(e, StageFinished) and e.stage == Stage.ENCODE, {"encode"}),
        (lambda e: e == Progress(Stage.DENOISE, 2, 4), {"encode"}),
        (lambda e: isinstance(e, StageFinished) and e.stage == Stage.DENOISE,
         {"encode", "denoise"}),
        (lambda e: isinstance(e, Frames), {"encode", "denoise"}),
        (lambda e: isinstance(e, Progress) and e.stage == Stage.MUX,
         {"encode", "denoise", "decode"}),
    ],
)  # fmt: skip
def test_clip_left_in_any_stage_goes_on_to_the_same_bytes(
    tmp_path: Path, stop: Stop, reused: set[str], stochastic: bool, tiny: Path, tiny_noisy: Path
) -> None:
    model = tiny_noisy if stochastic else tiny
    film(work_for(model, None), tmp_path / "straight.mp4")
    left = film(work_for(model, tmp_path / "kept"), tmp_path / "clip.mp4", stop)
    assert not (tmp_path / "clip.mp4").exists()
    assert not any(finished(left).values())
    events = film(work_for(model, tmp_path / "kept"), tmp_path / "clip.mp4")
    assert {stage for stage, was in finished(events).items() if was} == reused
    assert (tmp_path / "clip.mp4").read_bytes() == (tmp_path / "straight.mp4").read_bytes()


def test_denoising_goes_on_from_the_step_it_was_left_at(tiny: Path, tmp_path: Path) -> None:
    film(
        work_for(tiny, tmp_path / "kept"), tmp_path / "clip.mp4",
        lambda e: e == Progress(Stage.DENOISE, 3, 4),
    )  # fmt: skip
    events = film(work_for(tiny, tmp_path / "kept"), tmp_path / "clip.mp4")
    steps = [e.done for e in events if isinstance(e, Progress) and e.stage == Stage.DENOISE]
    assert steps == [3, 4]


def test_kept_result_that_cannot_be_read_is_made_again(tiny: Path, tmp_path: Path) -> None:
    film(work_for(tiny, tmp_path / "kept"), tmp_path / "one.mp4")
    for name in ("latents.safetensors", "step.safetensors"):
        (tmp_path / "kept" / name).write_bytes(b"half")
    (tmp_path / "kept" / "decoded.mp4").unlink()
    events = film(work_for(tiny, tmp_path / "kept"), tmp_path / "two.mp4")
    assert finished(events)["denoise"] is False
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()


def test_cancelled_clip_stops_inside_a_model_call(tiny: Path, tmp_path: Path) -> None:
    work = work_for(tiny, tmp_path / "kept")
    events = work.write(tmp_path / "clip.mp4")
    for event in events:
        if event == Progress(Stage.DENOISE, 1, 4):
            break
    work.context.cancelled.set()
    told: list[Event] = []
    with pytest.raises(Cancelled):
        told.extend(events)
    assert not [e for e in told if isinstance(e, Progress)], "a whole step was made"


def test_loading_tells_its_bytes_and_can_be_stopped_between_them(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "PROGRESS_BYTES", 1000)
    ENGINES.clear()
    events = work_for(tiny, None).write(tmp_path / "clip.mp4")
    told = [next(events) for _ in range(4)]
    assert [e.stage for e in told if isinstance(e, Progress)] == [Stage.LOAD] * 4
    done, total = zip(*((e.done, e.total) for e in told if isinstance(e, Progress)), strict=True)
    assert list(done) == sorted(set(done))
    assert done[-1] < total[0]
    events.close()
    assert not ENGINES.engines
    assert list(tmp_path.iterdir()) == []
    again = list(work_for(tiny, None).write(tmp_path / "clip.mp4"))
    *_, last = (e for e in again if isinstance(e, Progress) and e.stage == Stage.LOAD)
    assert last.done == last.total


FULL_DISK = """
import resource, sys
from pathlib import Path
from filmlet.errors import DiskFull
from tests.pipeline.test_stages import film, work_for
work = work_for(Path(sys.argv[1]), Path(sys.argv[2]) / "kept")
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    film(work, Path(sys.argv[2]) / "clip.mp4")
except DiskFull as error:
    sys.exit(7)
"""


@pytest.mark.server
def test_no_room_for_what_a_stage_has_made_is_told_and_leaves_no_half(
    tiny: Path, tmp_path: Path
) -> None:
    words = [sys.executable, "-c", FULL_DISK, str(tiny), str(tmp_path)]
    run = subprocess.run(words, capture_output=True, text=True, check=False)
    assert run.returncode == 7, run.stderr
    assert list((tmp_path / "kept").iterdir()) == []
