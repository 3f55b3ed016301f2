"""The sound of a clip: as long as its frames, the given part sample by sample as it was."""

import numpy as np
import pytest
from numpy.typing import NDArray

from filmlet.core.events import Audio
from filmlet.core.shape import VideoShape
from filmlet.pipeline.decode import join_audio

RATE = 48_000


def shape(frames: int, fps: float = 24.0, **more: int | bool) -> VideoShape:
    return VideoShape(64, 64, frames, fps, 64, 64, 97, **more)  # type: ignore[arg-type]


def ramp(seconds: float, start: float) -> NDArray[np.float32]:
    """Every sample differs."""
    count = round(seconds * RATE)
    return (start + np.arange(2 * count).reshape(count, 2) / 1e7).astype(np.float32)


@pytest.mark.parametrize("fps", [24.0, 25.0, 30.0, 29.97])
def test_sound_ends_with_the_last_frame(fps: float) -> None:
    made = Audio(ramp(10, 0.1), RATE)
    joined = join_audio(shape(50, fps), RATE, made, None)
    assert np.array_equal(joined, made.samples[: round(50 / fps * RATE)])
    short = join_audio(shape(50, fps), RATE, Audio(made.samples[:1000], RATE), None)
    assert len(short) == len(joined)
    assert not short[1000:].any()


def test_extension_keeps_the_given_samples_and_goes_on_after_the_context() -> None:
    given, made = Audio(ramp(2, 0.1), RATE), Audio(ramp(4, 0.5), RATE)
    whole = shape(48 + 24, source_frames=48, context_frames=25)
    joined = join_audio(whole, RATE, made, given)
    assert len(joined) == 3 * RATE
    assert np.array_equal(joined[: 2 * RATE], given.samples)
    begin = round(25 / 24 * RATE)
    assert np.array_equal(joined[2 * RATE :], made.samples[begin : begin + RATE])


def test_new_frames_of_a_model_without_sound_are_silent() -> None:
    given = Audio(ramp(2, 0.1), RATE)
    after = join_audio(shape(72, source_frames=48, context_frames=1), RATE, None, given)
    assert np.array_equal(after[: 2 * RATE], given.samples)
    assert not after[2 * RATE :].any()
    before = join_audio(
        shape(72, source_frames=48, context_frames=1, extend_backward=True), RATE, None, given
    )
    assert not before[:RATE].any()
    assert np.array_equal(before[RATE:], given.samples)
