"""The Python API."""

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

import filmlet
from filmlet.clip import Clip
from filmlet.core.request import ClipOptions, build_request
from filmlet.pipeline.plan import make_plan
from filmlet.settings import Settings
from tests.helpers.clips import prepare_run

SMALL: ClipOptions = {"size": "64x64", "frames": 9, "steps": 3, "seed": 2}


def test_clip_has_its_frames_its_settings_and_its_times(tiny: Path) -> None:
    clip = filmlet.generate("a red castle", model=str(tiny), **SMALL)
    assert clip.frames.shape == (9, 64, 64, 3)
    assert clip.frames.dtype == np.uint8
    assert clip.requested.frames == 9
    assert clip.effective.unknown_words == ("castle",)
    assert clip.poster.shape == (64, 64, 3)
    assert clip.timings["denoise"] > 0
    assert "64x64, 9 frames" in repr(clip)


@pytest.mark.parametrize("engine", ["auto", "torch"])
@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_saved_and_filmed_clips_are_the_same_file(
    engine: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FILMLET_ENGINE", engine)
    clip = filmlet.generate("a red circle", **SMALL)
    saved = clip.save(tmp_path / f"saved{suffix}")
    work = prepare_run(
        make_plan(build_request("a red circle", **SMALL)), Settings.from_environment()
    )
    for _ in work.write(tmp_path / f"filmed{suffix}"):
        pass
    assert saved.read_bytes() == (tmp_path / f"filmed{suffix}").read_bytes()
    with pytest.raises(filmlet.FilmletError, match="already there"):
        clip.save(saved)


def test_notebook_shows_a_player(tiny: Path) -> None:
    html = filmlet.generate("a ball", model=str(tiny), **SMALL)._repr_html_()
    assert html.startswith("<video")
    assert "data:video/mp4;base64," in html


def test_stream_tells_every_stage_in_order_and_ends_with_all_frames() -> None:
    events = list(filmlet.stream("a red circle", **SMALL))
    stages_told = [e.stage for e in events if isinstance(e, filmlet.Progress)]
    assert list(dict.fromkeys(stages_told)) == ["load", "encode", "denoise", "decode"]
    steps = [e.done for e in events if isinstance(e, filmlet.Progress) and e.stage == "denoise"]
    assert steps == [0, 1, 2, 3]
    previews = [e for e in events if isinstance(e, filmlet.Preview)]
    assert [p.step for p in previews] == [1, 2, 3]
    assert previews[0].image.shape == (8, 8, 3)
    assert sum(len(e.pixels) for e in events if isinstance(e, filmlet.Frames)) == 9


def test_closing_a_stream_stops_within_one_step(tiny: Path) -> None:
    request: ClipOptions = {**SMALL, "model": str(tiny), "steps": 40}
    stream = filmlet.stream("a ball", **request)
    engine = None
    for event in stream:
        if isinstance(event, filmlet.Progress) and event.stage == "denoise" and event.done == 2:
            work = prepare_run(make_plan(build_request("a ball", **request)), Settings())
            engine = work.engine()
            break
    assert engine is not None
    calls: list[int] = []
    handle = engine.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    stream.close()
    handle.remove()
    assert calls == []
    assert next(stream, None) is None


def test_last_preview_looks_like_the_clip(pocket_clip: Clip) -> None:
    previews = [
        e.image
        for e in filmlet.stream("a red circle moving left on a white background", seed=1)
        if isinstance(e, filmlet.Preview)
    ]
    middle = pocket_clip.frames[len(pocket_clip.frames) // 2]
    small = middle.reshape(32, 8, 32, 8, 3).mean((1, 3))
    assert np.abs(previews[-1].astype(float) - small).mean() < 25


def test_two_clips_of_one_seed_are_equal_and_of_two_seeds_are_not(pocket_clip: Clip) -> None:
    prompt = pocket_clip.requested.prompt
    again, other = (filmlet.generate(prompt, seed=seed) for seed in (1, 2))
    assert (again.frames == pocket_clip.frames).all()
    assert (other.frames != pocket_clip.frames).any()


def test_negative_prompt_without_guidance_is_reported(pocket_clip: Clip) -> None:
    request = build_request(pocket_clip.requested.prompt, negative_prompt="a cat")
    effective = prepare_run(make_plan(request), Settings()).effective
    (change,) = effective.changes
    assert (change.field, effective.negative_prompt) == ("negative_prompt", "")


def test_negative_prompt_that_is_cut_or_unknown_is_told(tiny: Path) -> None:
    request = build_request("a ball", model=str(tiny), negative_prompt="red castle " * 200)
    changes = prepare_run(make_plan(request), Settings()).effective.changes
    assert {c.field for c in changes} == {"negative_prompt", "negative_prompt_words"}


def test_forced_guidance_is_done_and_changes_the_clip(tiny: Path) -> None:
    with pytest.raises(filmlet.InvalidRequest, match="without guidance"):
        filmlet.generate("a red circle", guidance=2.0)
    forced = filmlet.generate("a red circle", guidance=2.0, force_guidance=True, **SMALL)
    plain = filmlet.generate("a red circle", **SMALL)
    assert forced.effective.guidance == 2.0
    assert (forced.frames != plain.frames).any()
    full = filmlet.generate("a red ball", model=str(tiny), **SMALL)
    assert full.effective.guidance == 3.0


def test_clip_round_trips_through_a_player(pocket_clip: Clip, tmp_path: Path) -> None:
    path = pocket_clip.save(tmp_path / "clip.mp4")
    with av.open(str(path)) as file:
        back = np.stack([f.to_ndarray(format="rgb24") for f in file.decode(video=0)])
    assert back.shape == pocket_clip.frames.shape
    error = (back.astype(float) - pocket_clip.frames) ** 2
    assert 10 * np.log10(255**2 / error.mean()) > 30


@pytest.mark.usefixtures("forked_decoders")
def test_pictures_in_memory_are_what_their_files_are(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    kept = Image.fromarray(pixels)
    kept.save(tmp_path / "image.png")
    named = filmlet.generate("a ball", image=tmp_path / "image.png", **SMALL)
    plain = filmlet.generate("a ball", **SMALL)
    assert not np.array_equal(named.frames, plain.frames)
    for picture in (kept, pixels, kept.convert("CMYK")):
        clip = filmlet.generate("a ball", image=picture, **SMALL)
        assert clip.effective.guides[0].frame == 0
        if not (isinstance(picture, Image.Image) and picture.mode == "CMYK"):
            assert np.array_equal(clip.frames, named.frames)
    for event in filmlet.stream("a ball", image=kept, **SMALL):
        if isinstance(event, filmlet.Frames):
            assert np.array_equal(event.pixels[0], named.frames[0])
            break


@pytest.mark.parametrize("picture", [np.zeros(3), np.zeros((8, 8, 3, 3)), np.array(["a"]), 3.0])
def test_what_is_no_picture_is_refused(picture: object) -> None:
    with pytest.raises(filmlet.InvalidRequest):
        filmlet.generate("a ball", image=picture, **SMALL)


def test_numbers_of_numpy_make_the_same_clip() -> None:
    plain = filmlet.generate("a ball", **SMALL)
    of_numpy = filmlet.generate(
        np.str_("a ball"), size=(64, np.int64(64)), frames=np.int64(9), steps=np.int8(3),
        seed=np.uint32(2),
    )  # fmt: skip
    assert np.array_equal(of_numpy.frames, plain.frames)
    assert of_numpy.effective == plain.effective


FORK = """
import os, sys
import filmlet

def attempt(expects_error):
    process = os.fork()
    if process == 0:
        try:
            filmlet.generate("a ball", size="64x64", frames=9, steps=1)
            os._exit(int(expects_error))
        except filmlet.FilmletError as error:
            os._exit(0 if expects_error and error.code == "forked_process" else 1)
    assert os.waitpid(process, 0)[1] == 0

attempt(False)
filmlet.generate("a ball", size="64x64", frames=9, steps=1)
attempt(True)
filmlet.generate("a ball", size="64x64", frames=9, steps=1)
"""


def test_forked_process_works_or_says_that_it_cannot() -> None:
    words = [sys.executable, "-W", "ignore", "-c", FORK]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
