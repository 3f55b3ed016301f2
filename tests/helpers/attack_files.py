"""Pictures and videos made to hurt whoever decodes them; small, made in a moment."""

import io
import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

# libav takes "ftyp" with this brand for a picture, and what follows for likelier.
SDP = (
    b"ftypjp2 \nv=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    b"m=video %d RTP/AVP 96\na=rtpmap:96 H264/90000\n"
)


def jpeg_of_scans(scans: int, side: int = 4000) -> bytes:
    """A progressive JPEG whose last scan comes again and again: each is a pass over all of it."""
    file = io.BytesIO()
    Image.new("L", (side, side), 90).save(file, "JPEG", progressive=True)
    body = file.getvalue()[:-2]
    last = body[body.rindex(b"\xff\xda") :]
    return body + last * (scans - body.count(b"\xff\xda")) + b"\xff\xd9"


def png_of(*chunks: tuple[bytes, bytes], size: tuple[int, int] = (8, 8)) -> bytes:
    """A PNG in grey with more chunks in front of its pixels."""
    width, height = size
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + bytes(width)) * height, 9)
    parts = ((b"IHDR", head), *chunks, (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in parts
    )


def packed_zeros(size: int) -> bytes:
    """So many zeros, as zlib packs them: a thousandth of it."""
    packer = zlib.compressobj(9)
    block = bytes(2**20)
    return b"".join(packer.compress(block) for _ in range(size >> 20)) + packer.flush()


def webp_of_frames(frames: int) -> bytes:
    """An animation of so many small pictures."""
    file = io.BytesIO()
    pictures = [Image.new("RGB", (16, 16), (i % 256, i // 256, 0)) for i in range(frames)]
    pictures[0].save(file, "WEBP", save_all=True, append_images=pictures[1:], duration=10)
    return file.getvalue()


def webm_without_duration(path: Path, frames: int, fps: int = 60) -> Path:
    """A WebM that does not say how long it is: the same packet again and again."""
    with av.open(str(path), "w", format="webm", options={"live": "1"}) as file:
        stream = file.add_stream("libvpx", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, fps)
        picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))
        picture.pts = 0
        first = [*stream.encode(picture), *stream.encode()][0]
        data = bytes(first)
        for number in range(frames):
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, Fraction(1, fps)
            packet.pts = packet.dts = number
            packet.is_keyframe = True
            file.mux(packet)
    return path


def sdp_behind_ftyp(port: int) -> bytes:
    """What libav, left to guess, takes for the description of a stream, and listens on the port."""
    return b"1234" + SDP % port


def sdp_in_jpeg(port: int) -> bytes:
    """The same behind the marker of a JPEG's APP1."""
    return b"\xff\xd8\xff\xe1" + SDP % port


def turn_a_quarter(clip: bytes) -> bytes:
    """An MP4 that says it is to be shown a quarter turned to the right."""
    place = clip.index(b"tkhd") + 4 + 40
    one = 0x10000
    matrix = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 0x40000000)
    return clip[:place] + matrix + clip[place + len(matrix) :]
