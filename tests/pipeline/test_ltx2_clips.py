"""Whole clips of LTX-2's twins: picture and sound, left in any stage, guided, extended, silent."""

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from filmlet.core.events import Audio, Event, Progress, Stage, StageFinished
from filmlet.core.memory import OffloadMode
from filmlet.errors import NotSupported
from filmlet.media.reader import read_audio
from filmlet.models import REGISTRY
from tests.helpers.clips import ClipRun, film, footage, frames_in, keep
from tests.helpers.clips import work_for as make_work
from tests.helpers.ltx2_engines import get_twin
from tests.helpers.tiny_ltx2 import VERSIONS

pytestmark = pytest.mark.compile
RATE = 48_000


def work_for(version: str = "2.3", **settings: object) -> ClipRun:
    small = {"size": "128x128", "frames": 17, "steps": None, "seed": 5}
    return make_work(get_twin(version).folder, **(small | settings))


def sound_of(path: Path) -> NDArray[np.float32]:
    heard = read_audio(path, RATE)
    assert heard
    return heard.samples


def streams(path: Path) -> set[str]:
    with av.open(str(path)) as file:
        return {stream.type for stream in file.streams}


def made_audio(events: list[Event]) -> Audio:
    (sound,) = (event for event in events if isinstance(event, Audio))
    return sound


@pytest.mark.parametrize("version", VERSIONS)
def test_clip_has_sound_as_long_as_its_picture_and_the_same_bytes_twice(
    version: str, tmp_path: Path
) -> None:
    events = film(work_for(version), tmp_path / "one.mp4")
    film(work_for(version), tmp_path / "two.mp4")
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()
    assert streams(tmp_path / "one.mp4") == {"video", "audio"}
    sound = made_audio(events)
    assert len(sound.samples) == round(17 / 24 * sound.sample_rate)
    assert np.abs(sound.samples).max() > 0.01
    assert len(sound_of(tmp_path / "one.mp4")) == round(17 / 24 * RATE)
    done = [event.stage for event in events if isinstance(event, StageFinished)]
    assert done == [*work_for(version).clip.stages]


def blurred(frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Means of 8 x 8 pixels: encoding a twin's noise again changes each of them."""
    count, height, width, _ = frames.shape
    return frames.reshape(count, height // 8, 8, width // 8, 8, 3).mean(axis=(2, 4))


LEFT = (Stage.DENOISE, Stage.UPSAMPLE, Stage.REFINE, Stage.DECODE_AUDIO, Stage.DECODE)


@pytest.mark.parametrize("version", ["2.3", "2.5"])
@pytest.mark.parametrize("left", LEFT)
def test_clip_left_in_any_stage_goes_on_to_the_same_bytes(
    version: str, left: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("filmlet.pipeline.denoise.CHECKPOINT_INTERVAL_S", -1.0)
    picture = keep(tmp_path / "last.png", footage(size=(128, 128)))
    film(work_for(version, last_image=picture), tmp_path / "straight.mp4")
    film(work_for(version, last_image=picture).keep_in(tmp_path / "kept"), tmp_path / "a.mp4", left)
    second = work_for(version, last_image=picture).keep_in(tmp_path / "kept")
    events = film(second, tmp_path / "clip.mp4")
    reused = {e.stage for e in events if isinstance(e, StageFinished) and e.reused}
    order = second.clip.stages
    assert reused == set(order[1 : order.index(left)])
    assert (tmp_path / "clip.mp4").read_bytes() == (tmp_path / "straight.mp4").read_bytes()


def test_without_sound_nothing_of_it_is_made(tmp_path: Path) -> None:
    work = work_for(audio=False).keep_in(tmp_path / "kept")
    events = film(work, tmp_path / "clip.mp4")
    assert streams(tmp_path / "clip.mp4") == {"video"}
    assert Stage.DECODE_AUDIO not in {e.stage for e in events if isinstance(e, Progress)}
    assert not work.effective.audio
    assert not (tmp_path / "kept" / "audio.safetensors").exists()


@pytest.mark.parametrize("form", ["webm", "gif"])
def test_other_formats_hold_what_they_can(form: str, tmp_path: Path) -> None:
    film(work_for(), tmp_path / f"clip.{form}")
    has_sound = "audio" in streams(tmp_path / f"clip.{form}")
    assert has_sound == (form == "webm")


def test_pictures_are_laid_in_at_the_frames_that_were_asked_for(tmp_path: Path) -> None:
    picture = keep(tmp_path / "picture.png", footage(size=(128, 128)))
    work = work_for(image=picture, last_image=picture)
    assert [guide.frame for guide in work.effective.guides] == [0, 16]
    film(work, tmp_path / "clip.mp4")
    film(work_for(), tmp_path / "free.mp4")
    guided, free = frames_in(tmp_path / "clip.mp4"), frames_in(tmp_path / "free.mp4")
    assert np.abs(guided.astype(int) - free).mean() > 1


def test_extension_keeps_frames_and_sound_of_its_clip(tmp_path: Path) -> None:
    film(work_for(frames=33), tmp_path / "first.mp4")
    work = work_for(size=None, frames=16, extend=str(tmp_path / "first.mp4"))
    events = film(work, tmp_path / "longer.mp4")
    before, after = (frames_in(tmp_path / f"{name}.mp4") for name in ("first", "longer"))
    assert len(after) == 33 + 16
    assert np.abs(blurred(after[:33]) - blurred(before)).mean() < 2
    given, played = sound_of(tmp_path / "first.mp4"), made_audio(events).samples
    assert np.array_equal(played[: len(given)], given)
    assert len(played) == round(49 / 24 * RATE)
    assert np.abs(played[len(given) :]).max() > 0.01
    with pytest.raises(NotSupported, match="after a clip only"):
        work_for(size=None, frames=16, extend=str(tmp_path / "first.mp4"), extend_backward=True)


def test_streamed_layers_give_the_same_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film(work_for(), tmp_path / "held.mp4")
    for room in (0, 10**9):
        monkeypatch.setattr("filmlet.engine.torch.block_offload.free_memory", lambda _, r=room: r)
        work = work_for()
        placement = replace(work.clip.placement, offload=OffloadMode.SEQUENTIAL)
        work.clip = replace(work.clip, placement=placement)
        film(work, tmp_path / "streamed.mp4")
        assert (tmp_path / "streamed.mp4").read_bytes() == (tmp_path / "held.mp4").read_bytes()


def test_terms_of_a_model_go_with_its_clips(tmp_path: Path) -> None:
    work = work_for(audio=False)
    terms = REGISTRY["ltx-2.3-22b-distilled"].terms
    assert "passes on its licence" in terms
    work.clip = replace(work.clip, effective=replace(work.effective, model_terms=terms))
    film(work, tmp_path / "clip.mp4")
    with av.open(str(tmp_path / "clip.mp4")) as file:
        assert file.metadata["license"] == terms
    assert not REGISTRY["pocket"].terms
