"""The events that a running clip yields."""

import time
from collections.abc import Generator
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from filmlet.core.effective import EffectiveSettings

Value = TypeVar("Value")
Pixels = NDArray[np.uint8]  # (frames, height, width, 3), RGB
PixelValues = Pixels | NDArray[np.float32]  # the same from 0 to 255, where it is not rounded
# (frames, height * 3 / 2, width): Y, and below it U and V at half the sides, one after the other;
# BT.709 in the range of television. What an encoder takes as it is.
YuvPlanes = NDArray[np.uint8]


class PixelFormat(StrEnum):
    """A format of frames, by ffmpeg's name."""

    RGB24 = "rgb24"  # Pixels
    YUV420P = "yuv420p"  # YuvPlanes


class Stage(StrEnum):
    """The stages of one clip, in the order they run."""

    FETCH = "fetch"  # weights that are not on this machine, in bytes
    LOAD = "load"
    ENCODE = "encode"
    DENOISE = "denoise"
    UPSAMPLE = "upsample"  # of models with two stages: the draft's latents at twice the sides,
    REFINE = "refine"  # and the few steps that fill them
    DECODE_AUDIO = "decode_audio"  # of models that make sound: it is whole before the first frame
    DECODE = "decode"
    MUX = "mux"


@dataclass(frozen=True)
class Progress:
    """`done` of `total` units of a stage are finished: steps, frames; the first opens the stage."""

    stage: Stage
    done: int
    total: int


@dataclass(frozen=True)
class StageFinished:
    """A stage is over; `reused` if its result was there from an earlier attempt."""

    stage: Stage
    seconds: float
    reused: bool = False


@dataclass(frozen=True, eq=False)
class Preview:
    """A rough picture of the clip's middle after `step` model calls: (height, width, 3) uint8."""

    step: int
    image: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Frames:
    """The next finished frames of the clip, in order.

    pixels: RGB; YuvPlanes where these are wanted and the engine makes them.
    """

    pixels: Pixels | YuvPlanes


@dataclass(frozen=True, eq=False)
class Audio:
    """The sound of the clip, as long as its frames: it comes before the first of them.

    samples: (samples, 2) float32, left and right, in [-1, 1]. sample_rate: in Hz.
    """

    samples: NDArray[np.float32]
    sample_rate: int


@dataclass(frozen=True)
class SettingsChanged:
    """The clip is made in another way from here on, with the reason among its changes."""

    effective: EffectiveSettings


Event = Progress | StageFinished | Preview | Audio | Frames | SettingsChanged


def with_timing(
    stage: Stage, events: Generator[Event, None, Value]
) -> Generator[Event, None, Value]:
    """Yield a stage's events, and at the end how long it took."""
    started = time.perf_counter()
    value = yield from events
    yield StageFinished(stage, time.perf_counter() - started)
    return value


def drain(events: Generator[object, None, Value]) -> Value:
    """Run a generator to its end and return its value; its events are dropped."""
    while True:
        try:
            next(events)
        except StopIteration as end:
            return cast(Value, end.value)
