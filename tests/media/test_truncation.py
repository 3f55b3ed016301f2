"""Videos that end in their middle, as downloads and recordings do: refused at every cut."""

import io
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
import pytest

from filmlet.core.request import build_request
from filmlet.errors import InvalidRequest
from filmlet.media import InvalidMedia, probe
from filmlet.pipeline.plan import make_plan

FRAMES = 48
CLUSTER = bytes.fromhex("1f43b675")
UNKNOWN = bytes.fromhex("01ffffffffffffff")  # a size that is not known yet
FRAGMENTS = "frag_keyframe+empty_moov"


class Pipe(io.RawIOBase):
    """What cannot be written to again at its beginning: sizes are not known there."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        self.data += bytes(data)  # type: ignore[call-overload]
        return len(bytes(data))  # type: ignore[call-overload]


def encode(form: str, codec: str, to: object, **options: str) -> None:
    noise = np.random.default_rng(0)
    with av.open(to, "w", format=form, options=options) as container:  # type: ignore[call-overload]
        stream = container.add_stream(codec, rate=24)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.gop_size = 12
        for _ in range(FRAMES):
            pixels = noise.integers(0, 256, (64, 96, 3), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def to_file(form: str, codec: str, **options: str) -> bytes:
    file = io.BytesIO()
    encode(form, codec, file, **options)
    return file.getvalue()


def to_named_file(form: str, codec: str, **options: str) -> bytes:
    """As `to_file`, for what the encoder opens once more by its name."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        encode(form, codec, str(path), **options)
        return path.read_bytes()


def to_pipe(form: str, codec: str, **options: str) -> bytes:
    pipe = Pipe()
    encode(form, codec, pipe, **options)
    return bytes(pipe.data)


def as_browsers_record() -> bytes:
    """A WebM whose clusters do not say how long they are, either."""
    data = to_pipe("webm", "libvpx")
    assert UNKNOWN in data[:100], "the segment says how long it is"
    for place in [i for i in range(len(data)) if data.startswith(CLUSTER, i)]:
        first = data[place + 4]
        size_bytes = 9 - first.bit_length()
        number = (1 << 7 * size_bytes) - 1 | 1 << 7 * size_bytes  # all bits: not known
        unknown = number.to_bytes(size_bytes)
        data = data[: place + 4] + unknown + data[place + 4 + size_bytes :]
    return data


KINDS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "webm": ("webm", lambda: to_file("webm", "libvpx")),
    "webm of a pipe": ("webm", lambda: to_pipe("webm", "libvpx")),
    "webm of a browser": ("webm", as_browsers_record),
    "mkv": ("mkv", lambda: to_file("matroska", "libx264")),
    "mp4": ("mp4", lambda: to_file("mp4", "libx264")),
    "mp4, index first": ("mp4", lambda: to_named_file("mp4", "libx264", movflags="faststart")),
    "mp4 of fragments": ("mp4", lambda: to_file("mp4", "libx264", movflags=FRAGMENTS)),
    "mp4 for DASH": ("mp4", lambda: to_file("mp4", "libx264", movflags=f"dash+{FRAGMENTS}")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_video_that_is_cut_off_is_refused_and_a_whole_one_read(kind: str, tmp_path: Path) -> None:
    suffix, make = KINDS[kind]
    data = make()
    file = tmp_path / f"a.{suffix}"
    for whole in (data, data + bytes(100)):
        file.write_bytes(whole)
        assert probe(file).frames == FRAMES
    for part in (0.3, 0.5, 0.613, 0.75, 0.9, 0.99):
        file.write_bytes(data[: int(len(data) * part)])
        with pytest.raises(InvalidMedia, match="cut off"):
            probe(file)
    with pytest.raises(InvalidRequest, match=rf"a\.{suffix}: this video .*cut off") as refused:
        make_plan(build_request("a ball", extend=file, frames=8))
    assert str(tmp_path) not in str(refused.value)
