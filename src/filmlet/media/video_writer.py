"""MP4 and WebM, encoded frame by frame while the clip is still being made."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from filmlet.core import cpu
from filmlet.core.events import Audio, Pixels, YuvPlanes
from filmlet.core.shape import VideoShape
from filmlet.media.audio_encoder import SAMPLE_RATE, AudioEncoder
from filmlet.media.metadata import xmp_mp4_box, xmp_packet

THREADS = 2  # fixed: the encoder's bytes depend on it
BT709 = 1
PLANAR = 2  # axes of a picture in planes
# x264's AVX-512 code for its macroblock tree reads what was in memory before: of small clips one
# in some hundreds came out as another file. Its AVX2 code makes the same one every time, as fast.
WITHOUT_AVX512 = {"x264-params": "asm=avx2,fma3,bmi1,bmi2,lzcnt"}
CODECS = {
    "mp4": ("libx264", {"crf": "18", "preset": "veryfast", "bf": "0", "rc-lookahead": "4"}),
    "webm": ("libvpx-vp9", {"crf": "24", "b": "0", "cpu-used": "6", "deadline": "good"}),
}
# A fragment a frame, flushed at once: a player can follow the growing file frame by frame.
FRAGMENTED = {
    "movflags": "frag_every_frame+empty_moov+default_base_moof+use_metadata_tags",
    "flush_packets": "1",
    "fflags": "+bitexact",
}
# Sound breaks with a fragment a frame: half of its packets are lost. Fragments of 40 ms instead,
# and an index that waits for the first: it knows the priming, by which sound would be late.
FRAGMENTED_WITH_AUDIO = FRAGMENTED | {
    "movflags": "empty_moov+default_base_moof+delay_moov+use_metadata_tags",
    "frag_duration": "40000",  # microseconds
}
FINISHED = {"movflags": "faststart+use_metadata_tags", "fflags": "+bitexact"}
# Edit lists count in it; in milliseconds they would end sound before the picture.
FINISHED_WITH_AUDIO = FINISHED | {"movie_timescale": str(SAMPLE_RATE)}
WEBM_OPTIONS = {"fflags": "+bitexact", "flush_packets": "1"}


class VideoWriter:
    """One video in a file that can be played while it grows."""

    def __init__(
        self,
        path: Path,
        form: str,
        shape: VideoShape,
        tags: dict[str, str],
        audio: Audio | None = None,
    ) -> None:
        options = WEBM_OPTIONS
        if form == "mp4":
            options = FRAGMENTED_WITH_AUDIO if audio else FRAGMENTED
        name = plain_name(path)
        self.container: OutputContainer = av.open(name, "w", form, options=options)
        self.container.metadata.update(tags)
        if form == "webm":
            self.container.metadata["XMP"] = xmp_packet(tags.get("comment", ""))
        self.tick = 1 / Fraction(shape.fps).limit_denominator(1001)
        self.stream = self._add_stream(form, shape)
        self.audio = AudioEncoder(self.container, form, audio) if audio else None
        self.converter = VideoReformatter()  # one for all frames: a new one takes milliseconds
        self.written = 0

    def _add_stream(self, form: str, shape: VideoShape) -> VideoStream:
        codec, options = CODECS[form]
        if codec == "libx264" and "avx512f" in cpu.cpu_flags():
            options = options | WITHOUT_AVX512
        stream = self.container.add_stream(codec, rate=1 / self.tick, options=dict(options))
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = shape.width, shape.height, "yuv420p"
        context = stream.codec_context
        context.time_base = self.tick
        context.thread_count = THREADS
        context.color_range = ColorRange.MPEG
        context.colorspace = context.color_primaries = context.color_trc = BT709
        return stream

    def add(self, pixels: Pixels | YuvPlanes) -> None:
        """Encode the next frames, in RGB or as the encoder takes them; each after its sound."""
        for picture in pixels:
            if self.audio:
                self.container.mux(self.audio.encode_until((self.written + 1) * self.tick))
            frame = self._in_planes(picture)
            frame.pts, frame.time_base = self.written, self.tick
            self.container.mux(self.stream.encode(frame))
            self.written += 1

    def _in_planes(self, picture: NDArray[np.uint8]) -> av.VideoFrame:
        """(height, width, 3), or (height * 3 / 2, width) that is in planes already."""
        if picture.ndim == PLANAR:
            frame = av.VideoFrame.from_ndarray(picture, format="yuv420p")
            frame.color_range, frame.colorspace = ColorRange.MPEG, Colorspace.ITU709
            return frame
        return self.converter.reformat(
            av.VideoFrame.from_ndarray(picture, format="rgb24"),
            format="yuv420p",
            threads=1,
            src_color_range=ColorRange.JPEG,
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
        )

    def close(self) -> None:
        """Flush the encoder; the file is whole."""
        if self.audio:
            self.container.mux(self.audio.flush())
        self.container.mux(self.stream.encode())
        self.container.close()

    def discard(self) -> None:
        """Close what is open, whatever state it is in; the caller removes the file."""
        try:
            self.container.close()
        except (av.FFmpegError, OSError):
            return  # it is being thrown away: the first error is the one to tell


def faststart(growing_path: Path, complete_path: Path, tags: dict[str, str]) -> None:
    """Copy the packets of a grown MP4 into one whose index stands in front, for the web.

    XMP comes at its end.
    """
    with av.open(plain_name(growing_path), "r", "mov") as source:
        streams = (*source.streams.video, *source.streams.audio)
        options = FINISHED_WITH_AUDIO if source.streams.audio else FINISHED
        with av.open(plain_name(complete_path), "w", "mp4", options=options) as target:
            target.metadata.update(tags)
            copies = {s.index: target.add_stream_from_template(s) for s in streams}
            for packet in source.demux():
                if packet.dts is None:
                    continue
                packet.stream = copies[packet.stream.index]
                target.mux(packet)
    with complete_path.open("ab") as file:
        file.write(xmp_mp4_box(xmp_packet(tags.get("comment", ""))))


def plain_name(path: Path) -> str:
    """Return a path as libav takes it: text before a colon is part of the name, no protocol."""
    return f"file:{path}"
