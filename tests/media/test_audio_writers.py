"""Sound of a written file, measured to the sample by decoding it: with its frames, as long as they
are.
"""

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from filmlet.core.events import Audio
from filmlet.media import write_video
from filmlet.media.video_writer import VideoWriter
from tests.helpers.sounds import FlashClip, find_flash, frame_brightness, look_at_audio

SAMPLE = 1 / 48_000
AAC_FRAME = 1024 / 48_000
RATES = [24_000, 48_000]
FPS = [24.0, 25.0, 30.0, 29.97]


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
@pytest.mark.parametrize("sample_rate", RATES)
@pytest.mark.parametrize("fps", FPS)
@pytest.mark.parametrize("finished", [True, False])
def test_click_comes_with_its_flash_to_the_sample(
    tmp_path: Path, suffix: str, sample_rate: int, fps: float, finished: bool
) -> None:
    clip = FlashClip(fps, sample_rate=sample_rate)
    path = tmp_path / f"clip{suffix}"
    clip.write(path) if finished else clip.write_growing(path)
    assert len(frame_brightness(path)) == clip.frames
    found = look_at_audio(path)
    assert found.codec == {".mp4": "aac", ".webm": "opus"}[suffix]
    assert found.sample_rate == 48_000
    assert find_flash(path) == pytest.approx(float(clip.flash * clip.tick), abs=1.1e-3)  # of WebM
    assert found.click_s == pytest.approx(float(clip.flash * clip.tick), abs=2 * SAMPLE)


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
@pytest.mark.parametrize("sound_s", [0.0, 0.3, 1.0, 9.0])
@pytest.mark.parametrize("frames", [1, 2, 25])
def test_sound_is_as_long_as_the_picture(
    tmp_path: Path, suffix: str, sound_s: float, frames: int
) -> None:
    clip = FlashClip(frames=frames, flash=0, sound_s=sound_s)
    path = clip.write(tmp_path / f"clip{suffix}")
    found, length = look_at_audio(path), float(frames * clip.tick)
    assert len(frame_brightness(path)) == frames
    assert found.start_s == pytest.approx(0, abs=1e-3)
    assert 0 <= len(found.samples) * SAMPLE - length + SAMPLE < AAC_FRAME
    silent = found.samples[round((sound_s + 0.01) * 48_000) :]
    assert not len(silent) or np.abs(silent).max() < 1e-2


@pytest.mark.parametrize("frames", [1, 33, 35])
def test_index_of_a_finished_mp4_ends_sound_and_picture_together(
    tmp_path: Path, frames: int
) -> None:
    clip = FlashClip(frames=frames, flash=0)
    path = clip.write(tmp_path / "clip.mp4")
    with av.open(str(path)) as file:
        for stream in file.streams:
            length = float(stream.duration * stream.time_base)
            assert length == pytest.approx(frames / 24, abs=SAMPLE)
    data = path.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_same_sound_gives_the_same_bytes_however_frames_are_cut(
    tmp_path: Path, suffix: str
) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (30_000, 2)).astype(np.float32)
    clip, written = FlashClip(), []
    for name, chunk in (("one", 1), ("two", 25)):
        path = tmp_path / f"{name}{suffix}"
        with write_video(path, clip.shape, {}, audio=Audio(noise, 24_000)) as movie:
            for start in range(0, clip.frames, chunk):
                movie.add(clip.pixels[start : start + chunk])
        written.append(path.read_bytes())
    assert written[0] == written[1]


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_channels_keep_their_sides(tmp_path: Path, suffix: str) -> None:
    clip = FlashClip()
    tone = np.sin(2 * np.pi * 440 * np.arange(50_000) / 48_000) * 0.5
    left_only = np.stack([tone, np.zeros(50_000)], axis=1).astype(np.float32)
    path = tmp_path / f"clip{suffix}"
    with write_video(path, clip.shape, {}, audio=Audio(left_only, 48_000)) as movie:
        movie.add(clip.pixels)
    left, right = np.abs(look_at_audio(path).samples[5000:45_000]).mean(axis=0)
    assert left == pytest.approx(np.abs(tone).mean(), rel=0.05)
    assert right < 0.01


def test_sound_that_is_resampled_stays_the_same_sound(tmp_path: Path) -> None:
    clip = FlashClip()
    tone = np.sin(2 * np.pi * 440 * np.arange(25_000) / 24_000)[:, None] * [0.5, 0.5]
    path = tmp_path / "clip.mp4"
    with write_video(path, clip.shape, {}, audio=Audio(tone.astype(np.float32), 24_000)) as movie:
        movie.add(clip.pixels)
    wanted = np.sin(2 * np.pi * 440 * np.arange(50_000) / 48_000) * 0.5
    found = look_at_audio(path).samples[:50_000, 0]
    assert np.abs(found - wanted)[2000:48_000].max() < 0.03


def test_growing_mp4_has_the_sound_of_the_frames_that_are_there(tmp_path: Path) -> None:
    clip = FlashClip(frames=97, flash=8)
    path = clip.write_growing(tmp_path / "clip.mp4", frames=60)
    found, shown = look_at_audio(path), frame_brightness(path)
    assert 40 < len(shown) < 60
    assert found.click_s == pytest.approx(8 / 24, abs=2 * SAMPLE)
    assert len(found.samples) * SAMPLE > shown[-1][0]


def test_growing_mp4_with_sound_shows_frames_as_early_as_one_without(tmp_path: Path) -> None:
    clip, silent = FlashClip(), tmp_path / "silent.mp4"
    path = clip.write_growing(tmp_path / "clip.mp4", frames=9)
    movie = VideoWriter(silent, "mp4", clip.shape, {})
    movie.add(clip.pixels[:9])
    without = frame_brightness(silent)
    movie.discard()
    assert len(frame_brightness(path)) >= len(without) >= 2


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_animations_are_written_without_sound(tmp_path: Path, suffix: str) -> None:
    clip = FlashClip()
    with Image.open(clip.write(tmp_path / f"clip{suffix}")) as image:
        assert image.n_frames > 1


def test_metadata_stands_in_files_with_sound(tmp_path: Path) -> None:
    clip = FlashClip()
    for path in (
        clip.write(tmp_path / "clip.mp4"),
        clip.write(tmp_path / "clip.webm"),
        clip.write_growing(tmp_path / "growing.mp4"),
    ):
        with av.open(str(path)) as file:
            found = {name.lower(): value for name, value in file.metadata.items()}
        assert found["title"] == "flash", path.name


def test_longer_sound_at_an_odd_rate_is_in_sync(tmp_path: Path) -> None:
    clip = replace(FlashClip(), sample_rate=44_100, frames=121, flash=100)
    found = look_at_audio(clip.write(tmp_path / "clip.mp4"))
    assert found.click_s == pytest.approx(100 / 24, abs=2 * SAMPLE)
