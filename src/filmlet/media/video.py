"""MP4 and WebM, encoded frame by frame while the clip is still being made."""

from fractions import Fraction
from pathlib import Path

import av
from av.container import OutputContainer
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream

from filmlet.events import Pixels
from filmlet.request import Shape

THREADS = 2  # fixed: the encoder's bytes depend on it
BT709 = 1
CODECS = {
    ".mp4": ("libx264", {"crf": "18", "preset": "veryfast", "bf": "0", "rc-lookahead": "8"}),
    ".webm": ("libvpx-vp9", {"crf": "24", "b": "0", "cpu-used": "6", "deadline": "good"}),
}
# A fragment every quarter second, flushed at once: a player can follow the growing file.
GROWING = {
    "movflags": "frag_keyframe+empty_moov+default_base_moof+use_metadata_tags",
    "frag_duration": "250000",
    "flush_packets": "1",
    "fflags": "+bitexact",
}
FINISHED = {"movflags": "faststart+use_metadata_tags", "fflags": "+bitexact"}
PLAIN = {"fflags": "+bitexact", "flush_packets": "1"}


class VideoFile:
    """One video in a growing file; H.264 in MP4 is rewritten with its index in front at the end."""

    def __init__(self, path: Path, part: Path, shape: Shape, tags: dict[str, str]) -> None:
        self.path, self.part, self.tags = path, part, tags
        self.is_mp4 = path.suffix.lower() == ".mp4"
        options = GROWING if self.is_mp4 else PLAIN
        self.container: OutputContainer = av.open(
            str(part), "w", format="mp4" if self.is_mp4 else "webm", options=options
        )
        self.container.metadata.update(tags)
        self.tick = 1 / Fraction(shape.fps).limit_denominator(1001)
        self.stream = self._stream(shape)
        self.written = 0

    def _stream(self, shape: Shape) -> VideoStream:
        codec, options = CODECS[self.path.suffix.lower()]
        stream = self.container.add_stream(codec, rate=1 / self.tick, options=dict(options))
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = shape.width, shape.height, "yuv420p"
        context = stream.codec_context
        context.time_base = self.tick
        context.thread_count = THREADS
        context.color_range = ColorRange.MPEG
        context.colorspace = context.color_primaries = context.color_trc = BT709
        return stream

    def add(self, pixels: Pixels) -> None:
        """Encode the next frames: (frames, height, width, 3) RGB."""
        for picture in pixels:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
                format="yuv420p",
                src_color_range=ColorRange.JPEG,
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
            )
            frame.pts, frame.time_base = self.written, self.tick
            self.container.mux(self.stream.encode(frame))
            self.written += 1

    def finish(self) -> None:
        """Flush the encoder and put the whole file in its place."""
        self.container.mux(self.stream.encode())
        self.container.close()
        if self.is_mp4:
            self._index_first()
        self.part.replace(self.path)

    def abandon(self) -> None:
        """Close what is open, whatever state it is in; the caller removes the file."""
        _close_quietly(self.container)
        self._rewritten.unlink(missing_ok=True)

    @property
    def _rewritten(self) -> Path:
        return self.part.with_name(self.part.name + "2")

    def _index_first(self) -> None:
        """Copy the packets into an MP4 whose index stands in front, for players on the web."""
        with (
            av.open(str(self.part)) as grown,
            av.open(str(self._rewritten), "w", format="mp4", options=FINISHED) as whole,
        ):
            whole.metadata.update(self.tags)
            source = grown.streams.video[0]
            target = whole.add_stream_from_template(source)
            for packet in grown.demux(source):
                if packet.dts is None:
                    continue
                packet.stream = target
                whole.mux(packet)
        self._rewritten.replace(self.part)


def _close_quietly(container: OutputContainer) -> None:
    try:
        container.close()
    except (av.FFmpegError, OSError):
        return  # it is being thrown away: the first error is the one to tell
