"""The sound of a video file: AAC in MP4, Opus in WebM, both 48 kHz stereo."""

from fractions import Fraction

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.packet import Packet
from numpy.typing import NDArray

from filmlet.core.events import Audio

SAMPLE_RATE = 48_000  # Hz, of every file; Opus has no other
ENCODERS = {"mp4": ("aac", 192_000), "webm": ("libopus", 128_000)}  # and bits a second


class AudioEncoder:
    """A stream of sound in an open container, encoded as far as its frames are.

    It ends where they do: the rest of longer sound is cut, shorter sound is followed by silence.
    """

    def __init__(self, container: OutputContainer, form: str, audio: Audio) -> None:
        codec, bit_rate = ENCODERS[form]
        stream = container.add_stream(codec, rate=SAMPLE_RATE, layout="stereo")
        assert isinstance(stream, AudioStream)
        stream.bit_rate = bit_rate
        self.stream = stream
        self.samples = resample(audio, SAMPLE_RATE).samples
        self.position = 0  # in samples

    def encode_until(self, end: Fraction) -> list[Packet]:
        """Return the packets that are complete with the sound up to `end`, in seconds."""
        stop = round(end * SAMPLE_RATE)
        piece = fit_length(self.samples[self.position : stop], stop - self.position)
        if not len(piece):
            return []
        frame = to_frame(piece, SAMPLE_RATE)
        frame.pts, self.position = self.position, stop
        return self.stream.encode(frame)

    def flush(self) -> list[Packet]:
        """Return the last packets."""
        return self.stream.encode()


def resample(audio: Audio, sample_rate: int) -> Audio:
    """Return the same sound at another rate, as long to the sample."""
    if audio.sample_rate == sample_rate:
        return audio
    resampler = av.AudioResampler(format="fltp", layout="stereo", rate=sample_rate)
    frame = to_frame(audio.samples, audio.sample_rate)
    frame.pts = 0
    pieces = [*resampler.resample(frame), *resampler.resample(None)]
    samples = np.concatenate([piece.to_ndarray() for piece in pieces], axis=1).T
    length = round(len(audio.samples) * sample_rate / audio.sample_rate)
    return Audio(fit_length(samples, length), sample_rate)


def fit_length(samples: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """Return (length, 2): cut, or followed by silence."""
    return np.pad(samples[:length], ((0, max(0, length - len(samples))), (0, 0)))


def to_frame(samples: NDArray[np.float32], sample_rate: int) -> av.AudioFrame:
    """(samples, 2) as libav takes them."""
    planes = np.ascontiguousarray(samples.T, np.float32)
    frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout="stereo")
    frame.sample_rate, frame.time_base = sample_rate, Fraction(1, sample_rate)
    return frame
