"""Clips that go on from another clip, and clips that lead to one."""

from pathlib import Path

import pytest

import filmlet
from filmlet.core.events import Progress, Stage
from filmlet.core.request import ClipOptions
from filmlet.errors import InvalidRequest, NotSupported
from tests.helpers.clips import changes, distance, film, footage, frames_in, keep, work_for

pytestmark = pytest.mark.usefixtures("forked_decoders")


@pytest.mark.parametrize("size", [(96, 64), (70, 64)])
def test_extension_is_the_given_clip_and_what_the_model_adds(
    tiny_guided: Path, tmp_path: Path, size: tuple[int, int]
) -> None:
    given = keep(tmp_path / "given.mp4", footage(20, size=size))
    work = work_for(tiny_guided, size="128x128", frames=10, fps=24.0, extend=given)
    shape = work.effective.shape
    assert (shape.width, shape.height, shape.fps) == (*size, 12.0)
    assert (shape.frames, shape.source_frames, shape.new_frames, shape.context_frames) == (
        30,
        20,
        10,
        17,
    )
    assert shape.generated_frames == 33  # 17 + 10, and what is cut off
    told = changes(work)
    assert (told["fps"].requested, told["fps"].effective) == (24.0, 12.0)
    assert {"width", "height"} <= set(told)
    film(work, tmp_path / "long.mp4")
    made = frames_in(tmp_path / "long.mp4")
    assert made.shape == (30, size[1], size[0], 3)
    before = frames_in(Path(given))
    assert distance(made[:20], before) < 5
    other = work_for(tiny_guided, frames=10, extend=keep(tmp_path / "b.mp4", footage(20, 9, size)))
    film(other, tmp_path / "other.mp4")
    assert distance(frames_in(tmp_path / "other.mp4")[20:], made[20:]) > 1


def test_extension_left_while_it_grows_goes_on_to_the_same_bytes(
    tiny_guided: Path, tmp_path: Path
) -> None:
    given = keep(tmp_path / "given.mp4", footage(20))
    film(work_for(tiny_guided, frames=10, extend=given), tmp_path / "straight.mp4")
    work = work_for(tiny_guided, frames=10, extend=given)
    work.keep_in(tmp_path / "kept")
    told = film(work, tmp_path / "clip.mp4", Stage.DECODE)
    assert told[-1] == Progress(Stage.DECODE, 8, 30)  # of the given clip
    again = work_for(tiny_guided, frames=10, extend=given)
    again.keep_in(work.folder)
    film(again, tmp_path / "clip.mp4")
    assert (tmp_path / "clip.mp4").read_bytes() == (tmp_path / "straight.mp4").read_bytes()


def test_guide_of_an_extension_stands_among_the_new_frames(
    tiny_guided: Path, tmp_path: Path
) -> None:
    given, image = keep(tmp_path / "a.mp4", footage(20)), keep(tmp_path / "b.png", footage())
    work = work_for(tiny_guided, frames=16, extend=given, last_image=image)
    (guide,) = work.plan.guides
    assert work.effective.shape.generated_frames == 33
    assert (guide.frame, work.effective.guides[0].frame) == (32, 35)


def test_clip_can_be_led_to_by_what_the_model_makes_before_it(
    tiny_guided: Path, tmp_path: Path
) -> None:
    given, image = keep(tmp_path / "given.mp4", footage(20)), keep(tmp_path / "b.png", footage())
    work = work_for(tiny_guided, frames=10, extend=given, extend_backward=True, image=image)
    shape = work.effective.shape
    assert (shape.frames, shape.source_frames, shape.new_frames, shape.context_frames) == (
        30,
        20,
        10,
        17,
    )
    assert (shape.generated_frames, shape.padding_frames) == (33, 6)
    assert work.plan.source_clip
    assert (
        work.plan.source_clip.frame,
        work.plan.source_clip.first,
        work.plan.source_clip.frames,
    ) == (16, 0, 17)
    assert work.plan.guides[0].frame == 8, "the latent nearest to the first frame that is shown"
    film(work, tmp_path / "led.mp4")
    made = frames_in(tmp_path / "led.mp4")
    assert made.shape == (30, 64, 96, 3)
    assert distance(made[10:], frames_in(Path(given))) < 5
    alone = work_for(tiny_guided, frames=10, extend=given, extend_backward=True)
    film(alone, tmp_path / "alone.mp4")
    other = work_for(
        tiny_guided,
        frames=10,
        extend=keep(tmp_path / "c.mp4", footage(20, 9)),
        extend_backward=True,
    )
    film(other, tmp_path / "other.mp4")
    assert (
        distance(frames_in(tmp_path / "other.mp4")[:10], frames_in(tmp_path / "alone.mp4")[:10]) > 1
    )


def test_what_comes_before_a_clip_is_made_at_once_and_by_models_that_can(
    tiny_guided: Path, tmp_path: Path
) -> None:
    given = keep(tmp_path / "given.mp4", footage(20))
    with pytest.raises(NotSupported, match="at most 240 frames"):
        work_for(tiny_guided, frames=300, extend=given, extend_backward=True)
    with pytest.raises(NotSupported, match="after a clip only"):
        work_for("pocket", frames=9, extend=given, extend_backward=True)
    with pytest.raises(InvalidRequest, match="name one"):
        work_for(tiny_guided, frames=9, extend_backward=True)
    image = keep(tmp_path / "b.png", footage())
    with pytest.raises(InvalidRequest, match="The last 20 frames"):
        work_for(tiny_guided, frames=10, extend=given, extend_backward=True, last_image=image)


def test_pocket_goes_on_from_the_last_frame_of_a_clip(tmp_path: Path) -> None:
    small: ClipOptions = {"size": "64x64", "frames": 9, "steps": 2, "seed": 1}
    path = filmlet.generate("a red circle", **small).save(tmp_path / "a.mp4")
    clip = filmlet.generate("a red circle", extend=path, seconds=0.5, steps=2, seed=1)
    assert clip.frames.shape == (9 + 12, 64, 64, 3)
    assert clip.effective.shape.context_frames == 1
    assert distance(clip.frames[8], clip.frames[9]) < 25
    assert clip.effective.as_json()["seconds"] == pytest.approx(21 / 24, abs=1e-3)
