"""Sound of a clip in Python and on the command line: collected, saved, told."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from filmlet import Clip
from filmlet.cli.generate import fit_to_format
from filmlet.core.events import Event, Stage, StageFinished
from filmlet.core.model_card import ModelFamily
from filmlet.core.request import ClipRequest
from filmlet.media import preferred_pixel_format
from filmlet.models import REGISTRY
from filmlet.pipeline import stages
from filmlet.pipeline.plan import make_plan
from tests.helpers.clips import ClipRun, work_for
from tests.helpers.sounding_worker import generate_with_sound
from tests.helpers.sounds import FlashClip, look_at_audio


def clip_with_sound(tiny: Path) -> Clip:
    run = work_for(tiny, size="96x64")
    flash = FlashClip(frames=25)
    effective = replace(run.effective, audio=True)
    return Clip(flash.pixels, run.plan.request, effective, {}, flash.audio)


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_saved_clip_has_its_sound(tiny: Path, tmp_path: Path, suffix: str) -> None:
    path = clip_with_sound(tiny).save(tmp_path / f"clip{suffix}")
    assert look_at_audio(path).click_s == pytest.approx(8 / 24, abs=2 / 48_000)


@pytest.mark.parametrize(("suffix", "name"), [(".gif", "GIF"), (".webp", "WebP")])
def test_saved_animation_says_that_it_holds_no_sound(
    tiny: Path, tmp_path: Path, suffix: str, name: str
) -> None:
    path = clip_with_sound(tiny).save(tmp_path / f"clip{suffix}")
    assert f"{name} holds no sound".encode() in path.read_bytes()


def test_effective_settings_of_an_animation_have_no_sound(tiny: Path) -> None:
    effective = clip_with_sound(tiny).effective
    assert effective.in_format("mp4") is effective
    silent = effective.in_format("gif")
    assert not silent.audio
    assert silent.changes[-1].field == "audio"
    assert replace(effective, audio=False).in_format("gif").changes == effective.changes


def test_plan_of_an_animation_makes_no_sound() -> None:
    card = replace(REGISTRY["pocket"], family=ModelFamily.LTX2)
    planned = make_plan(ClipRequest("a red ball"), card=card)
    assert planned.makes_audio
    assert fit_to_format(planned, "mp4") is planned
    silent = fit_to_format(planned, "gif")
    assert not silent.makes_audio
    (change,) = [change for change in silent.changes if change.field == "audio"]
    assert (change.requested, change.effective) == (True, False)
    assert "GIF holds no sound" in change.reason
    unasked = make_plan(ClipRequest("a red ball", audio=False), card=card)
    assert not unasked.makes_audio
    assert fit_to_format(unasked, "gif") is unasked


def write(run: ClipRun, path: Path) -> list[Event]:
    context = replace(run.context, pixel_format=preferred_pixel_format(path))
    clip = replace(run.clip, effective=replace(run.effective, audio=True))
    events = generate_with_sound(clip, context)
    return list(stages.write_clip(events, clip, context, path, force=True))


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_written_clip_has_the_sound_that_comes_before_its_frames(
    tiny: Path, tmp_path: Path, suffix: str
) -> None:
    run, path = work_for(tiny), tmp_path / f"clip{suffix}"
    write(run, path)
    assert look_at_audio(path).click_s == pytest.approx(12 / 24, abs=2 / 48_000)


def test_decoded_clip_of_an_earlier_run_keeps_its_sound(tiny: Path, tmp_path: Path) -> None:
    """The whole file is in the job's folder: no stage runs again."""
    run, path = work_for(tiny).keep_in(tmp_path / "job"), tmp_path / "clip.mp4"
    write(run, path)
    first = path.read_bytes()
    path.unlink()
    again = write(run, path)
    *reused, mux = [event for event in again if isinstance(event, StageFinished)]
    assert all(event.reused for event in reused)
    assert mux.stage is Stage.MUX
    assert path.read_bytes() == first
    assert look_at_audio(path).click_s == pytest.approx(12 / 24, abs=2 / 48_000)


def test_sound_of_a_clip_is_written_the_same_twice(tiny: Path, tmp_path: Path) -> None:
    paths = [tmp_path / "one.mp4", tmp_path / "two.mp4"]
    for path in paths:
        write(work_for(tiny), path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert np.abs(look_at_audio(paths[0]).samples).max() > 0.3
