"""Sound of videos by libav: what a player would let hear while the pictures are shown."""

from collections.abc import Iterator
from typing import Any, BinaryIO

import av
import numpy as np
from numpy.typing import NDArray

from filmlet.media.decoder.messages import Message, Unfit
from filmlet.media.decoder.videos import Footage, choose_audio_stream, open_container

STEREO = 2
CHANNELS = 16
MAX_DRIFT_S = 0.01  # between timestamps and samples, which follow each other without a gap
REPORT_FRAMES = 256  # so often it says that it goes on

Samples = NDArray[np.float32]


def read_audio(file: BinaryIO, order: dict[str, Any]) -> Iterator[Message]:
    """Sound from the first frame that is shown on, as (samples, 2) float32 behind lines that name
    their rate; no line where there is none.
    """
    start = _first_frame_time(file, order)
    file.seek(0)
    container = open_container(file, order)
    stream = choose_audio_stream(container, order["audio_decoders"])
    if stream is None:
        return
    timeline = None
    for number, frame in enumerate(container.decode(stream)):
        if timeline is None:
            _check_format(frame, order)
            timeline = Timeline(frame, start, order["visible_s"])
        piece = timeline.place(frame)
        if len(piece):
            yield {"sample_rate": timeline.rate}, piece.tobytes()
        elif number % REPORT_FRAMES == 0:
            yield {"skipped": number}, b""
        if timeline.is_full:
            return


def _first_frame_time(file: BinaryIO, order: dict[str, Any]) -> float:
    """Seconds at which the pictures begin."""
    time, _ = next(Footage(file, order).frames(), (None, None))
    return time or 0.0


def _check_format(frame: Any, order: dict[str, Any]) -> None:
    (lowest, highest), channels = order["audio_rates"], frame.layout.nb_channels
    if not lowest <= frame.sample_rate <= highest or not 0 < channels <= CHANNELS:
        raise Unfit(f"its sound has {channels} channels at {frame.sample_rate} Hz.")


class Timeline:
    """Sound in the order of its samples, from the first frame to the last.

    What comes before is cut, gaps are silent.
    """

    def __init__(self, first: Any, start: float, visible_s: float) -> None:
        self.rate, self.channels = first.sample_rate, first.layout.nb_channels
        self.start = start
        self.length = round(visible_s * self.rate)
        self.position: int | None = None  # of the next sample; 0 is the first that is heard
        self.given = 0
        # More channels are mixed down as 16 bits, which libav keeps from clipping.
        form = "fltp" if self.channels <= STEREO else "s16p"
        self.layout = first.layout if self.channels <= STEREO else "stereo"
        self.resampler = av.AudioResampler(format=form, layout=self.layout, rate=self.rate)

    @property
    def is_full(self) -> bool:
        return self.given >= self.length

    def place(self, frame: Any) -> Samples:
        """Return what is heard next, with the silence before it."""
        samples = self._to_stereo(frame)
        time = None if frame.pts is None else float(frame.pts * frame.time_base)
        self._move_to(time)
        assert self.position is not None
        begin = self.position
        self.position += len(samples)
        samples = samples[max(0, self.given - begin) : max(0, self.length - begin)]
        if not len(samples):
            return samples
        silence = np.zeros((max(0, begin - self.given), STEREO), np.float32)
        heard = np.concatenate([silence, samples])
        self.given += len(heard)
        return heard

    def _move_to(self, time: float | None) -> None:
        """Follow a timestamp where it says more than the rounding of its container."""
        if time is None:
            self.position = self.position or 0
            return
        place = round((time - self.start) * self.rate)
        if self.position is None or abs(place - self.position) > MAX_DRIFT_S * self.rate:
            self.position = place

    def _to_stereo(self, frame: Any) -> Samples:
        """Both sides of mono are the same: libav's would be quieter."""
        if (frame.sample_rate, frame.layout.nb_channels) != (self.rate, self.channels):
            raise Unfit("its sound changes its rate or its channels.")
        planes = [part.to_ndarray() for part in self.resampler.resample(frame)]
        sound = np.concatenate(planes, axis=1)
        if sound.dtype == np.int16:
            sound = sound.astype(np.float32) / 2**15
        return np.ascontiguousarray(np.broadcast_to(sound.T, (sound.shape[1], STEREO)), np.float32)
