"""Files from strangers: refused or read within limits, whatever is in them."""

import io
import os
import struct
import subprocess
import sys
import threading
import tracemalloc
from contextlib import suppress
from pathlib import Path

import av
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image, ImageOps

from filmlet.core.events import Pixels
from filmlet.core.request import build_request
from filmlet.core.shape import VideoShape
from filmlet.errors import InvalidRequest
from filmlet.media import InvalidMedia, iter_frames, probe, read_image, resize_to_cover
from filmlet.media.decoder import colors
from filmlet.media.images import spritesheet, thumbnail
from filmlet.pipeline.media_inputs import MediaInput
from filmlet.pipeline.plan import make_plan
from tests.helpers.attack_files import (
    jpeg_of_scans,
    packed_zeros,
    png_of,
    sdp_behind_ftyp,
    sdp_in_jpeg,
    turn_a_quarter,
    webm_without_duration,
    webp_of_frames,
)
from tests.helpers.clips import footage, keep
from tests.helpers.given_files import four_colors, heic_of_tiles, wide_gamut
from tests.helpers.servers import Running, refusal

pytestmark = pytest.mark.usefixtures("forked_decoders")
A_MINUTE = 60  # what must come at once comes within it on any machine


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "file"


# What a file is


@pytest.mark.parametrize("make", [sdp_behind_ftyp, sdp_in_jpeg])
def test_description_of_a_stream_is_no_video_and_opens_no_port(make, file: Path) -> None:
    file.write_bytes(make(45_678))
    refused: list[Exception] = []

    def run() -> None:
        try:
            probe(file)
        except InvalidMedia as error:
            refused.append(error)

    thread = threading.Thread(target=run, daemon=True)  # libav would wait for packets for ever
    thread.start()
    thread.join(A_MINUTE)
    assert refused
    if (ports := Path("/proc/net/udp")).exists():
        assert f":{45_678:04X} " not in ports.read_text()


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{}'\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n",
        "<svg><image href='{}'/></svg>",
        "%!PS-Adobe-3.0 EPSF-3.0\n",
    ],
)
def test_text_that_names_other_files_is_refused(text: str, file: Path, tmp_path: Path) -> None:
    other = keep(tmp_path / "other.mp4", footage(9))
    for head in ("", "\x00\x00\x00\x10ftypjp2 ", "\x00\x00\x00\x20ftypisom"):
        file.write_text(head + text.format(other))
        with pytest.raises(InvalidMedia):
            probe(file)
        with pytest.raises(InvalidMedia):
            next(iter_frames(file))


# Pictures


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (jpeg_of_scans(1000), "too many scans"),
        (png_of((b"zTXt", b"a\0\0" + packed_zeros(2**28))), "not a whole"),
        (png_of((b"iCCP", b"a\0\0" + packed_zeros(2**28))), "not a whole"),
        (png_of(size=(20_000, 20_000)), "20000x20000 pixels are too many"),
        (png_of()[:-30], "not a whole"),
        (b"\xff\xd8\xff" + bytes(1000), "not a whole"),
        (b"RIFF\xff\xff\xff\xffWEBPVP8 ", "not a whole"),
        (b"", "not a whole"),
    ],
    ids=["scans", "text", "profile", "size", "cut", "jpeg", "webp", "empty"],
)
def test_pictures_that_cost_too_much_are_refused(data: bytes, says: str, file: Path) -> None:
    file.write_bytes(data)
    with pytest.raises(InvalidMedia, match=says):
        probe(file)
    with pytest.raises(InvalidRequest, match=says) as refused:
        make_plan(build_request("a ball", image=file))
    assert refused.value.param == "guides"


def test_animation_of_thousands_of_frames_is_its_first_picture(file: Path) -> None:
    file.write_bytes(webp_of_frames(3000))
    assert (probe(file).width, probe(file).fps) == (16, None)
    assert read_image(file).shape == (1, 16, 16, 3)


def plain(path: Path) -> Pixels:
    """The picture as Pillow gives it in this process."""
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.has_transparency_data:
            ground = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(ground, image.convert("RGBA"))
        return np.asarray(image.convert("RGB"))[None]


def test_picture_of_any_kind_is_the_same_from_a_decoder(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (30, 20, 4), np.uint8)
    image = Image.fromarray(np.tile(noise, (40, 50, 1)))  # more than a strip
    small, exif = Image.fromarray(noise), Image.Exif()
    for number, orientation in enumerate((2, 6, 8)):
        exif[0x0112] = orientation
        small.convert("RGB").save(tmp_path / f"turned-{number}.jpg", exif=exif)
    small.convert("RGB").save(tmp_path / "plain.png")
    image.save(tmp_path / "clear.png")
    small.convert("LA").save(tmp_path / "clear-grey.png")
    image.convert("RGB").quantize().save(tmp_path / "palette.png", transparency=bytes(range(256)))
    small.convert("L").save(tmp_path / "key.png", transparency=7)
    small.convert("1").save(tmp_path / "bits.png")
    small.convert("CMYK").save(tmp_path / "inks.jpg")
    small.convert("RGB").save(tmp_path / "scans.jpg", progressive=True)
    small.save(tmp_path / "clear.webp")
    deep = np.arange(1200 * 1000, dtype=np.uint32).reshape(1200, 1000).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    for path in tmp_path.iterdir():
        assert np.array_equal(read_image(path), plain(path)), path.name


@pytest.mark.parametrize("orientation", [b"\x03\x00", b"\x05\x00", b"\x0b\x00", b"\xff\xff"])
def test_picture_whose_orientation_cannot_be_read_is_shown_as_stored(
    orientation: bytes, file: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    wrong = exif.tobytes().replace(b"\x12\x01\x03\x00", b"\x12\x01" + orientation)
    for end in (None, -3):
        Image.new("RGB", (40, 20)).save(file, "JPEG", exif=wrong[:end])
        assert read_image(file).shape[1:3] in ((20, 40), (40, 20))
        assert probe(file).height in (20, 40)


def with_size(heic: bytes, width: int, height: int) -> bytes:
    """A HEIC of tiles that says another size of the whole."""
    place, grid = heic.rindex(b"ispe") + 8, heic.rindex(b"idat") + 8
    sides = struct.pack(">HH", min(width, 65_535), min(height, 65_535))
    data = bytearray(heic)
    data[place : place + 8] = struct.pack(">II", width, height)
    data[grid : grid + 4] = sides
    return bytes(data)


@pytest.mark.parametrize(
    ("size", "says"),
    [((60_000, 60_000), "60000x60000 pixels are too many"), ((8000, 7900), "not a whole")],
)
def test_heic_that_says_a_huge_size_is_refused(
    size: tuple[int, int], says: str, file: Path
) -> None:
    file.write_bytes(with_size(heic_of_tiles(four_colors(400, 300)), *size))
    with pytest.raises(InvalidMedia, match=says):
        probe(file)


def test_damaged_heic_and_avif_are_read_or_refused_in_a_sentence(file: Path) -> None:
    avif = io.BytesIO()
    four_colors().save(avif, "AVIF")
    noise = np.random.default_rng(4)
    for whole in (heic_of_tiles(four_colors(400, 300)), avif.getvalue()):
        for _ in range(8):
            data = np.frombuffer(whole, np.uint8).copy()
            data[noise.integers(24, len(data) // 2, 5)] = noise.integers(0, 256, 5)
            file.write_bytes(data.tobytes())
            with suppress(InvalidMedia):
                assert read_image(file).shape[3] == 3


def test_profile_that_is_damaged_is_read_or_told(file: Path) -> None:
    image, profile = wide_gamut(colors.P3, 2.2)
    noise = np.random.default_rng(5)
    for _ in range(8):
        data = np.frombuffer(profile, np.uint8).copy()
        data[noise.integers(0, len(data), 8)] = noise.integers(0, 256, 8)
        image.save(file, "PNG", icc_profile=data.tobytes())
        assert read_image(file).shape == (1, 192, 256, 3)


# Videos


@pytest.mark.parametrize(
    ("frames", "fps", "says"),
    [(20_000, 60, "too long; at most 60 s"), (15_000, 1000, "too many frames; at most 14400")],
)
def test_frames_are_counted_whatever_a_video_says(
    client: TestClient, tmp_path: Path, frames: int, fps: int, says: str
) -> None:
    video = webm_without_duration(tmp_path / "long.webm", frames, fps)
    with av.open(str(video)) as opened:
        assert opened.duration is None
    with pytest.raises(InvalidMedia, match=says):
        probe(video)
    files = {"video": ("a.webm", video.read_bytes())}
    answer = client.post("/v1/videos/extensions", data={"prompt": "a"}, files=files)
    assert refusal(answer)["code"] == "invalid_video"
    assert client.get("/v1/videos").json()["data"] == []


def test_video_without_a_duration_is_as_long_as_its_frames(tmp_path: Path) -> None:
    video = probe(webm_without_duration(tmp_path / "short.webm", 600))
    assert (video.frames, video.fps, video.width) == (600, 60.0, 64)


def test_video_is_the_same_from_a_decoder_and_upright(tmp_path: Path) -> None:
    for name in ("clip.mp4", "clip.webm"):
        path = Path(keep(tmp_path / name, footage(20)))
        with av.open(str(path)) as opened:
            frames = [frame.to_ndarray(format="rgb24") for frame in opened.decode(video=0)]
        assert np.array_equal(list(iter_frames(path)), frames)
        assert np.array_equal(list(iter_frames(path, 15, 3)), frames[15:18])
    (tmp_path / "turned.mp4").write_bytes(turn_a_quarter((tmp_path / "clip.mp4").read_bytes()))
    found = probe(tmp_path / "turned.mp4")
    assert (found.width, found.height) == (64, 96)
    with av.open(str(tmp_path / "clip.mp4")) as opened:
        first = next(opened.decode(video=0)).to_ndarray(format="rgb24")
    assert np.array_equal(next(iter_frames(tmp_path / "turned.mp4")), np.rot90(first, -1))


def test_video_with_sound_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as made:
        pictures = made.add_stream("libx264", rate=12)
        pictures.width, pictures.height, pictures.pix_fmt = 64, 64, "yuv420p"
        sound = made.add_stream("aac", rate=48_000)
        for number in range(12):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))
            frame.pts = number
            made.mux(pictures.encode(frame))
        made.mux(pictures.encode())
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        tone.sample_rate = 48_000
        made.mux(sound.encode(tone))
        made.mux(sound.encode())
    assert probe(path).frames == 12


@pytest.mark.parametrize("name", ["mjpeg", "rawvideo", "ffv1"])
def test_only_decoders_that_are_named_are_used(tmp_path: Path, name: str) -> None:
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as made:
        stream = made.add_stream(name, rate=12)
        stream.width, stream.height = 64, 64
        stream.pix_fmt = "yuvj420p" if name == "mjpeg" else "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))
        made.mux(stream.encode(frame))
        made.mux(stream.encode())
    with pytest.raises(InvalidMedia, match=r"not read here|cannot be read"):
        probe(path)


# Doors


def test_pictures_of_many_scans_do_not_hold_the_api(shared_server: Running) -> None:
    data, answers = jpeg_of_scans(1000), []

    def send() -> None:
        files = {"input_reference": ("a.jpg", data, "image/jpeg")}
        answers.append(shared_server.client.post("/v1/videos", data={"prompt": "a"}, files=files))

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert shared_server.client.get("/v1/videos").status_code == 200
    for thread in threads:
        thread.join(A_MINUTE)
    assert [refusal(answer)["code"] for answer in answers] == ["invalid_input_reference"] * 8


@pytest.mark.server
@pytest.mark.skipif(sys.platform == "win32", reason="there are no named pipes")
def test_command_line_refuses_what_is_no_file_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for option, path in (("--image", tmp_path / "pipe"), ("--extend", "/dev/zero")):
        run = subprocess.run(
            [sys.executable, "-m", "filmlet", "generate", "a ball", option, str(path)],
            cwd=tmp_path, capture_output=True, text=True, check=False, timeout=A_MINUTE,
        )  # fmt: skip
        assert run.returncode, run.stdout
        assert "it is a pipe, a socket or a device" in run.stderr


# Our own clips


def test_pictures_of_a_clip_take_a_frame_of_memory_at_a_time(tmp_path: Path) -> None:
    pixels = footage(300, size=(320, 240))
    data = Path(keep(tmp_path / "clip.mp4", pixels)).read_bytes()
    with av.open(io.BytesIO(data)) as opened:
        frames = [frame.to_ndarray(format="rgb24") for frame in opened.decode(video=0)]
    expected = io.BytesIO()
    Image.fromarray(frames[150]).save(expected, "WEBP", quality=85)
    tracemalloc.start()
    sheet, middle = spritesheet(io.BytesIO(data)), thumbnail(io.BytesIO(data))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert middle == expected.getvalue()
    assert peak < 20 * 2**20 < pixels.nbytes
    with Image.open(io.BytesIO(sheet)) as image:
        assert image.size == (800, 600)
        last = np.asarray(image.crop((640, 480, 800, 600))).astype(int)
    small = Image.fromarray(frames[-1]).resize((160, 120), Image.Resampling.LANCZOS)
    assert np.abs(last - np.asarray(small)).mean() < 5


def test_guide_takes_a_frame_of_memory_at_its_own_size(tmp_path: Path) -> None:
    video = Path(keep(tmp_path / "guide.mp4", footage(33, size=(640, 480))))
    guide = MediaInput(video, probe(video), first=8, frames=25)
    shape = VideoShape(96, 64, 25, 24.0, 96, 64, 25)
    expected = resize_to_cover(np.stack(list(iter_frames(video)))[8:], 96, 64)
    tracemalloc.start()
    pixels = guide.pixels(shape, (96, 64))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.array_equal(pixels, expected)
    assert peak < 10 * 2**20 < 25 * 640 * 480 * 3
