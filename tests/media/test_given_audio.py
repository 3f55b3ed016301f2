"""Sound of given videos is what a player lets hear while their frames are shown."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from filmlet.core.events import Audio
from filmlet.media import InvalidMedia, probe, read_audio, save_image
from filmlet.media.decoder import sounds
from tests.helpers.clips import keep
from tests.helpers.sounds import LOUD, FlashClip

CLIP = FlashClip(frames=49, flash=24)  # two seconds, a click at one


def click(audio: Audio | None) -> float:
    """Seconds."""
    assert audio is not None
    return float(np.flatnonzero(np.abs(audio.samples[:, 0]) > LOUD)[0]) / audio.sample_rate


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
@pytest.mark.parametrize("sample_rate", [16_000, 24_000, 44_100, 48_000])
def test_sound_of_our_own_clips_comes_back(tmp_path: Path, suffix: str, sample_rate: int) -> None:
    path = CLIP.write(tmp_path / f"clip{suffix}")
    audio = read_audio(path, sample_rate)
    assert probe(path).has_audio
    assert audio is not None
    assert audio.samples.dtype == np.float32
    assert audio.samples.shape == (round(49 / 24 * sample_rate), 2)
    assert audio.sample_rate == sample_rate
    assert click(audio) == pytest.approx(1, abs=2 / 16_000)
    assert np.abs(audio.samples).max() <= 1


def test_sound_of_a_growing_file_is_in_sync(tmp_path: Path) -> None:
    path = CLIP.write_growing(tmp_path / "clip.mp4")
    assert click(read_audio(path, 48_000)) == pytest.approx(1, abs=2 / 48_000)


def with_sound(
    path: Path, samples: NDArray[Any], *, form: str = "fltp", layout: str = "stereo",
    codec: str = "aac", rate: int = 48_000, start_s: float = 0.0, frames_from_s: float = 0.0,
) -> Path:  # fmt: skip
    """Two seconds of white frames; samples: (channels, samples), heard from `start_s` on."""
    with av.open(str(path), "w") as made:
        stream: Any = made.add_stream("libx264", rate=24, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        tone: Any = made.add_stream(codec, rate=rate, layout=layout)
        for number in range(48):
            frame = av.VideoFrame.from_ndarray(np.full((64, 96, 3), 255, np.uint8))
            frame.pts, frame.time_base = number + round(frames_from_s * 24), Fraction(1, 24)
            made.mux(stream.encode(frame))
        made.mux(stream.encode())
        for begin in range(0, samples.shape[1], 1024):
            sound = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(samples[:, begin : begin + 1024]), form, layout
            )
            sound.sample_rate, sound.time_base = rate, Fraction(1, rate)
            sound.pts = begin + round(start_s * rate)
            made.mux(tone.encode(sound))
        made.mux(tone.encode())
    return path


def pulse(channels: int, at_s: float, seconds: float = 2, rate: int = 48_000) -> NDArray[Any]:
    samples = np.zeros((channels, round(seconds * rate)), np.float32)
    samples[:, round(at_s * rate) : round((at_s + 0.004) * rate)] = 0.6
    return samples


def test_sound_that_begins_later_than_the_picture_is_silent_before(tmp_path: Path) -> None:
    audio = read_audio(with_sound(tmp_path / "c.mp4", pulse(2, 0.5), start_s=0.25), 48_000)
    assert click(audio) == pytest.approx(0.75, abs=1e-3)  # its edit list has milliseconds
    assert audio is not None
    assert np.abs(audio.samples[:11_000]).max() < 1e-3


def test_sound_before_the_first_frame_is_cut(tmp_path: Path) -> None:
    audio = read_audio(with_sound(tmp_path / "c.mp4", pulse(2, 1.0), frames_from_s=0.5), 48_000)
    assert click(audio) == pytest.approx(0.5, abs=2 / 48_000)
    assert audio is not None
    assert len(audio.samples) == 96_000


def test_sound_that_an_edit_list_hides_is_not_heard(tmp_path: Path) -> None:
    """As a cut without encoding leaves it: the file has it, its index begins later."""
    whole, path = with_sound(tmp_path / "whole.mp4", pulse(2, 1.5)), tmp_path / "cut.mp4"
    with av.open(str(whole)) as source, av.open(str(path), "w") as made:
        copies = {s.index: made.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if packet.dts is None:
                continue
            moved = round(1 / packet.time_base)
            packet.pts, packet.dts = packet.pts - moved, packet.dts - moved
            packet.stream = copies[packet.stream.index]
            made.mux(packet)
    audio = read_audio(path, 48_000)
    assert audio is not None
    assert len(audio.samples) == 48_000
    assert click(audio) == pytest.approx(0.5, abs=2 / 48_000)


@pytest.mark.parametrize(
    ("codec", "form", "suffix"),
    [("libopus", "flt", ".webm"), ("flac", "s16", ".mkv"), ("pcm_s16le", "s16", ".mov")],
)
def test_what_phones_and_editors_record_is_read(
    tmp_path: Path, codec: str, form: str, suffix: str
) -> None:
    samples = pulse(2, 1.0).T.reshape(1, -1)
    if form == "s16":
        samples = (samples * 2**15).astype(np.int16)
    path = interleaved(tmp_path / f"clip{suffix}", samples, form, codec)
    assert click(read_audio(path, 24_000)) == pytest.approx(1, abs=2 / 24_000)


def interleaved(path: Path, samples: NDArray[Any], form: str, codec: str) -> Path:
    """As `with_sound`; samples: (1, 2 * samples), left and right in turn."""
    with av.open(str(path), "w") as made:
        video = "libvpx-vp9" if path.suffix == ".webm" else "libx264"
        stream: Any = made.add_stream(video, rate=24)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        tone: Any = made.add_stream(codec, rate=48_000, layout="stereo")
        for _ in range(48):
            made.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 96, 3), np.uint8))))
        made.mux(stream.encode())
        sound = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), form, "stereo")
        sound.sample_rate, sound.pts, sound.time_base = 48_000, 0, Fraction(1, 48_000)
        made.mux(tone.encode(sound))
        made.mux(tone.encode())
    return path


@pytest.mark.parametrize(("layout", "channels"), [("mono", 1), ("stereo", 2), ("5.1", 6)])
def test_other_channels_become_two_as_loud(tmp_path: Path, layout: str, channels: int) -> None:
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(96_000) / 48_000)
    samples = np.repeat(tone[None].astype(np.float32), channels, axis=0)
    audio = read_audio(with_sound(tmp_path / "c.mp4", samples, layout=layout), 48_000)
    assert audio is not None
    left, right = np.abs(audio.samples[10_000:80_000]).mean(axis=0)
    assert left == pytest.approx(np.abs(tone).mean(), rel=0.02)
    assert right == pytest.approx(left, rel=0.02)


def test_video_without_sound_and_picture_have_none(tmp_path: Path) -> None:
    silent = FlashClip(frames=9)
    picture = tmp_path / "picture.png"
    save_image(picture, silent.pixels[0])
    assert read_audio(picture, 48_000) is None
    assert read_audio(Path(keep(tmp_path / "clip.mp4", silent.pixels)), 48_000) is None


def test_sound_of_a_codec_that_is_not_read_counts_as_none(tmp_path: Path) -> None:
    silence = np.zeros((1, 192_000), np.int16)
    path = interleaved(tmp_path / "c.mkv", silence, "s16", "mp2")
    assert not probe(path).has_audio
    assert read_audio(path, 48_000) is None


def test_values_that_are_no_numbers_are_silent(tmp_path: Path) -> None:
    samples = np.full((1, 192_000), np.nan, np.float32)
    samples[0, 96_000:] = 9.0
    audio = read_audio(interleaved(tmp_path / "c.mov", samples, "flt", "pcm_f32le"), 48_000)
    assert audio is not None
    assert np.abs(audio.samples[:40_000]).max() == 0
    assert audio.samples.max() == 1


@pytest.mark.parametrize("seed", range(6))
def test_damaged_sound_is_refused_or_in_bounds(tmp_path: Path, seed: int) -> None:
    path = CLIP.write(tmp_path / "clip.mp4")
    data, random = bytearray(path.read_bytes()), np.random.default_rng(seed)
    for place in random.integers(0, len(data), 60):
        data[place] = random.integers(256)
    path.write_bytes(data)
    try:
        audio = read_audio(path, 48_000)
    except InvalidMedia:
        return
    assert audio is None or np.abs(audio.samples).max() <= 1


def test_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = CLIP.write(tmp_path / "clip.mp4")
    path.write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(InvalidMedia, match="cut off"):
        read_audio(path, 48_000)


def test_audio_is_never_longer_than_the_frames(tmp_path: Path) -> None:
    path = with_sound(tmp_path / "c.mp4", pulse(2, 1.0, seconds=30))
    audio = read_audio(path, 48_000)
    assert audio is not None
    assert len(audio.samples) == 96_000


def test_decoder_stops_at_the_end_of_the_picture(tmp_path: Path) -> None:
    path = with_sound(tmp_path / "c.mp4", pulse(2, 1.0, seconds=30))
    order = {
        "task": "read_audio", "format": "mov", "decoders": ["h264"], "audio_decoders": ["aac"],
        "audio_rates": [4000, 192_000], "pixels": 10**7, "threads": 1, "visible_s": 2.0,
    }  # fmt: skip
    with path.open("rb") as file:
        given = sum(len(sound) for _, sound in sounds.read_audio(file, order))
    assert given == 96_000 * 8
