"""The sound of a finished clip, alone."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import av

from filmlet.media.metadata import xmp_mp4_box, xmp_packet
from filmlet.media.video_writer import FINISHED_WITH_AUDIO, plain_name


def extract_audio(clip: BinaryIO) -> bytes | None:
    """Return the sound of a finished MP4 of ours as M4A, None where it has none.

    Its packets are copied, its tags are the clip's. The same clip gives the same bytes.
    """
    with av.open(clip, "r", "mov") as source, TemporaryDirectory(prefix="filmlet-") as folder:
        if not source.streams.audio:
            return None
        path = Path(folder) / "sound.m4a"  # a file: the index cannot be put in front in memory
        with av.open(plain_name(path), "w", "ipod", options=FINISHED_WITH_AUDIO) as target:
            target.metadata.update(source.metadata)
            copied = target.add_stream_from_template(source.streams.audio[0])
            for packet in source.demux(source.streams.audio[0]):
                if packet.dts is None:
                    continue
                packet.stream = copied
                target.mux(packet)
        return path.read_bytes() + xmp_mp4_box(xmp_packet(source.metadata.get("comment", "")))
