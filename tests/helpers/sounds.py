"""Clips with a click and a flash at the same time, and where files have them."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from filmlet.core.events import Audio, Pixels
from filmlet.core.shape import VideoShape
from filmlet.media import write_video
from filmlet.media.video_writer import VideoWriter

WIDTH, HEIGHT = 96, 64
CLICK_S, LOUD, BRIGHT = 0.004, 0.3, 128


@dataclass(frozen=True)
class FlashClip:
    """White from frame `flash` on, when its click begins."""

    fps: float = 24.0
    frames: int = 25
    flash: int = 8
    sample_rate: int = 48_000
    sound_s: float | None = None  # as long as the frames

    @property
    def tick(self) -> Fraction:
        """Seconds of a frame, as the file has it."""
        return 1 / Fraction(self.fps).limit_denominator(1001)

    @property
    def shape(self) -> VideoShape:
        return VideoShape(WIDTH, HEIGHT, self.frames, self.fps, WIDTH, HEIGHT, self.frames)

    @property
    def pixels(self) -> Pixels:
        pixels = np.zeros((self.frames, HEIGHT, WIDTH, 3), np.uint8)
        pixels[self.flash :] = 255
        return pixels

    @property
    def audio(self) -> Audio:
        seconds = self.frames * self.tick if self.sound_s is None else self.sound_s
        samples = np.zeros((round(seconds * self.sample_rate), 2), np.float32)
        start = round(self.flash * self.tick * self.sample_rate)
        samples[start : start + round(CLICK_S * self.sample_rate)] = 0.8
        return Audio(samples, self.sample_rate)

    def write(self, path: Path, chunk: int = 7) -> Path:
        """The finished file."""
        with write_video(path, self.shape, {"title": "flash"}, True, self.audio) as movie:
            for start in range(0, self.frames, chunk):
                movie.add(self.pixels[start : start + chunk])
        return path

    def write_growing(self, path: Path, frames: int | None = None) -> Path:
        """The file as it is after so many frames; whole after all of them."""
        form = path.suffix.removeprefix(".")
        movie = VideoWriter(path, form, self.shape, {"title": "flash"}, self.audio)
        movie.add(self.pixels[:frames])
        if frames is None:
            movie.close()
            return path
        written = path.read_bytes()
        movie.discard()
        path.write_bytes(written)
        return path


@dataclass(frozen=True)
class FoundAudio:
    """Sound that libav decodes of a file. samples: (samples, 2); length_s: as its index says."""

    click_s: float | None
    samples: NDArray[np.float32]
    start_s: float
    length_s: float
    sample_rate: int
    codec: str


def look_at_audio(path: Path) -> FoundAudio:
    with av.open(str(path)) as file:
        stream = file.streams.audio[0]
        pieces = list(file.decode(stream))
        length, rate = float((stream.duration or 0) * stream.time_base), stream.rate
        codec = stream.codec_context.codec.canonical_name
    resampler = av.AudioResampler(format="fltp", layout="stereo", rate=rate)
    planes = [part.to_ndarray() for piece in pieces for part in resampler.resample(piece)]
    samples = np.concatenate(planes, axis=1).T
    start = float(pieces[0].pts * pieces[0].time_base)
    loud = np.flatnonzero(np.abs(samples[:, 0]) > LOUD)
    click = start + loud[0] / rate if len(loud) else None
    return FoundAudio(click, samples, start, length, rate, codec)


def frame_brightness(path: Path) -> list[tuple[float, float]]:
    """The seconds at which each frame is shown, and how bright it is, 0 to 255."""
    with av.open(str(path)) as file:
        return [
            (frame.time, float(frame.to_ndarray(format="gray").mean()))
            for frame in file.decode(video=0)
        ]


def find_flash(path: Path) -> float | None:
    """Seconds."""
    return next((time for time, bright in frame_brightness(path) if bright > BRIGHT), None)


def audio_packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as file:
        return [bytes(packet) for packet in file.demux(file.streams.audio[0]) if packet.size]
