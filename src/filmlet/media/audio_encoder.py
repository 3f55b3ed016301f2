"""The sound of a video file: AAC in MP4, Opus in WebM, both 48 kHz stereo."""

from fractions import Fraction

from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.packet import Packet

from filmlet.core.events import Audio
from filmlet.media.audio_samples import fit_length, resample, to_frame

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
