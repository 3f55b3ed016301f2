"""Samples of sound: another rate, another length, frames of libav."""

from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray

from filmlet.core.events import Audio


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
