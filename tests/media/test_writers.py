"""Every file is read back by the libraries that players use."""

import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import av
import numpy as np
import pytest
from PIL import Image

from filmlet.core.events import Pixels
from filmlet.core.shape import VideoShape
from filmlet.errors import InvalidRequest, OutputExists, OutputUnwritable
from filmlet.media import check_output_path, open_writer, poster, write_video
from filmlet.media.video_writer import VideoWriter

SHAPE = VideoShape(96, 64, 20, 24.0, 96, 64, 25)
TAGS = {"title": "a red ball", "seed": "3", "provenance": "AI-generated", "comment": "AI-generated"}


def moving_square(frames: int = SHAPE.frames) -> Pixels:
    pixels = np.full((frames, 64, 96, 3), 255, np.uint8)
    for i, picture in enumerate(pixels):
        picture[20:40, 2 * i : 2 * i + 20] = (220, 30, 40)
    return pixels


def write(path: Path, pixels: Pixels, chunk: int = 7) -> Path:
    with write_video(path, SHAPE, TAGS) as movie:
        for start in range(0, len(pixels), chunk):
            movie.add(pixels[start : start + chunk])
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
@pytest.mark.parametrize("fps", [24.0, 29.97, 12.5, 60.0])
def test_video_has_the_exact_rate_size_and_number_of_frames(
    tmp_path: Path, suffix: str, fps: float
) -> None:
    path = tmp_path / f"clip{suffix}"
    with write_video(path, replace(SHAPE, fps=fps), TAGS) as movie:
        movie.add(moving_square())
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        frames = list(file.decode(stream))
        assert stream.average_rate == pytest.approx(fps, rel=1e-3)
        assert file.start_time in (0, None)
        assert (stream.width, stream.height, stream.pix_fmt) == (96, 64, "yuv420p")
    assert len(frames) == SHAPE.frames
    times = [frame.time for frame in frames]
    assert times == pytest.approx([i / fps for i in range(len(frames))], abs=2e-3)


def test_colours_survive_the_way_through_yuv(tmp_path: Path) -> None:
    pixels = moving_square()
    with av.open(str(write(tmp_path / "clip.mp4", pixels))) as file:
        back = np.stack([f.to_ndarray(format="rgb24") for f in file.decode(video=0)])
    assert np.abs(back[:, 24:36, 45:55].astype(int) - pixels[:, 24:36, 45:55]).mean() < 6
    assert np.abs(back[:, :10].astype(int) - 255).mean() < 3


def test_metadata_can_be_read_back(tmp_path: Path) -> None:
    for suffix in (".mp4", ".webm"):
        with av.open(str(write(tmp_path / f"clip{suffix}", moving_square()))) as file:
            found = {name.lower(): value for name, value in file.metadata.items()}
        assert TAGS.items() <= found.items()
    with Image.open(write(tmp_path / "clip.gif", moving_square())) as image:
        assert json.loads(image.info["comment"]) == TAGS
    with Image.open(write(tmp_path / "clip.webp", moving_square())) as image:
        assert b"AI-generated" in image.info["xmp"]


SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
XMP_BOX = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")


def xmp_of(path: Path) -> ElementTree.Element:
    """The XMP packet of a file, from where the format has it."""
    data = path.read_bytes()
    if path.suffix == ".mp4":
        place = data.index(b"uuid" + XMP_BOX) - 4
        size = int.from_bytes(data[place : place + 4])
        assert place + size == len(data), "the box does not end the file"
        return ElementTree.fromstring(data[place + 24 :])
    if path.suffix == ".gif":
        place = data.index(b"\x21\xff\x0bXMP DataXMP") + 14
        packet, _, end = data[place:].partition(b"\x01\xff\xfe")
        assert end.endswith(b"\x01\x00\x00\x00;"), "the block does not end where readers look"
        return ElementTree.fromstring(packet)
    if path.suffix == ".webp":
        with Image.open(path) as image:
            return ElementTree.fromstring(image.info["xmp"])
    with av.open(str(path)) as file:
        return ElementTree.fromstring(file.metadata["XMP"])


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif", ".webp"])
def test_xmp_names_the_source_as_a_trained_algorithm(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"clip{suffix}", moving_square())
    (said,) = xmp_of(path).iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")
    name = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
    assert said.attrib[name] == SOURCE
    assert "AI-generated" in said.attrib["{http://purl.org/dc/elements/1.1/}description"]
    if suffix in (".gif", ".webp"):
        with Image.open(path) as image:
            assert image.n_frames == SHAPE.frames
    else:
        with av.open(str(path)) as file:
            assert len(list(file.decode(video=0))) == SHAPE.frames


@pytest.mark.parametrize("name", ["12:30:05", "file:x", "http://a", "concat:a|b", "a%d", "é 日"])
@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
def test_name_is_a_name_whatever_protocol_it_looks_like(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, suffix: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(name.replace("/", "") + suffix)
    write(path, moving_square())
    assert [left.name for left in tmp_path.iterdir()] == [path.name]
    assert path.stat().st_size > 1000


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_animations_have_every_frame_and_the_right_length(tmp_path: Path, suffix: str) -> None:
    with Image.open(write(tmp_path / f"clip{suffix}", moving_square())) as image:
        assert image.n_frames == SHAPE.frames
        total = 0
        for i in range(image.n_frames):
            image.seek(i)
            image.load()
            total += image.info["duration"]
    assert total == pytest.approx(1000 * SHAPE.frames / SHAPE.fps, abs=10)


def test_index_of_a_finished_mp4_stands_in_front(tmp_path: Path) -> None:
    data = write(tmp_path / "clip.mp4", moving_square()).read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")
    assert b"moof" not in data


def test_growing_mp4_can_already_be_played(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    with write_video(path, SHAPE, TAGS) as movie:
        for piece in np.split(np.repeat(moving_square(), 5, axis=0), 5):
            movie.add(piece)  # the last may not be encoded yet
        (part,) = tmp_path.glob("clip.mp4.*.part")
        with av.open(str(part)) as file:
            readable = sum(1 for _ in file.decode(video=0))
        assert readable > 40
        assert not path.exists()
    assert path.exists()


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif", ".webp"])
def test_same_frames_give_the_same_bytes_however_they_are_cut(tmp_path: Path, suffix: str) -> None:
    one = write(tmp_path / f"one{suffix}", moving_square(), chunk=1).read_bytes()
    two = write(tmp_path / f"two{suffix}", moving_square(), chunk=20).read_bytes()
    assert one == two


def test_first_piece_of_a_growing_clip_can_be_played_before_the_second_is_there(
    tmp_path: Path,
) -> None:
    movie = VideoWriter(tmp_path / "clip.mp4", "mp4", SHAPE, TAGS)
    movie.add(moving_square(8))
    with av.open(str(tmp_path / "clip.mp4")) as file:
        assert len(list(file.decode(video=0))) >= 2
    movie.discard()


def test_same_frames_give_the_same_bytes_whatever_was_in_memory(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    seen = set()
    for _ in range(300):
        dirt = [noise.integers(0, 255, size, np.uint8) for size in noise.integers(100, 5000, 100)]
        path = tmp_path / "clip.mp4"
        with open_writer(path, "mp4", replace(SHAPE, width=32), TAGS) as movie:
            movie.add(moving_square()[:, :, :32])
        seen.add(path.read_bytes())
        del dirt
    assert len(seen) == 1


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif", ".webp"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, GeneratorExit])
def test_leaving_early_leaves_nothing_behind(
    tmp_path: Path, suffix: str, error: type[BaseException]
) -> None:
    def leave() -> None:
        with write_video(tmp_path / f"clip{suffix}", SHAPE, TAGS) as movie:
            movie.add(moving_square())
            raise error

    with pytest.raises(error):
        leave()
    assert list(tmp_path.iterdir()) == []


def test_encoder_in_a_thread_of_its_own_writes_the_same_bytes(tmp_path: Path) -> None:
    straight, pixels = VideoWriter(tmp_path / "straight.mp4", "mp4", SHAPE, TAGS), moving_square()
    straight.add(pixels)
    straight.close()
    with open_writer(tmp_path / "aside.mp4", "mp4", SHAPE, TAGS) as movie:
        for start in range(0, len(pixels), 3):
            movie.add(pixels[start : start + 3])
    assert (tmp_path / "aside.mp4").read_bytes() == (tmp_path / "straight.mp4").read_bytes()


def test_encoder_in_a_thread_of_its_own_is_one_piece_behind_at_most(tmp_path: Path) -> None:
    threads = []
    with open_writer(tmp_path / "clip.mp4", "mp4", SHAPE, TAGS) as movie:
        encoder, add = movie.movie, movie.movie.add
        encoder.add = lambda pixels: (threads.append(threading.current_thread()), add(pixels))
        for count in range(1, 5):
            movie.add(moving_square(2))
            assert len(threads) >= count - 1
    assert len(threads) == 4
    assert threading.main_thread() not in threads


def test_what_fails_in_the_encoders_thread_is_told_by_the_next_call(tmp_path: Path) -> None:
    def fail(_: Pixels) -> None:
        raise OSError(5, "it is away")

    def write() -> None:
        with open_writer(tmp_path / "clip.mp4", "mp4", SHAPE, TAGS) as movie:
            movie.movie.add = fail
            movie.add(moving_square(2))
            movie.add(moving_square(2))

    with pytest.raises(OutputUnwritable, match="it is away"):
        write()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, GeneratorExit])
def test_leaving_early_ends_the_encoders_thread(tmp_path: Path, error: type[BaseException]) -> None:
    def leave() -> None:
        with open_writer(tmp_path / "clip.mp4", "mp4", SHAPE, TAGS) as movie:
            movie.add(moving_square())
            raise error

    with pytest.raises(error):
        leave()
    assert list(tmp_path.iterdir()) == []
    assert not [t for t in threading.enumerate() if t.name.startswith("encoder")]


FULL_DISK = """
import resource, sys
from pathlib import Path
import numpy as np
from filmlet.errors import DiskFull
from filmlet.media import write_video
from tests.media.test_writers import SHAPE, TAGS
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
noise = np.random.default_rng(0).integers(0, 255, (20, 64, 96, 3), dtype=np.uint8)
try:
    with write_video(Path(sys.argv[1]), SHAPE, TAGS) as movie:
        for _ in range(10):
            movie.add(noise)
except DiskFull as error:
    print(error.code, error)
    sys.exit(7)
"""


@pytest.mark.server
@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif", ".webp"])
def test_no_room_is_told_and_nothing_is_left(tmp_path: Path, suffix: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / f"clip{suffix}")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 7, run.stderr
    assert run.stdout.startswith("disk_full There is no room")
    assert list(tmp_path.iterdir()) == []


def test_targets_that_cannot_be_written_are_refused_before_any_work(tmp_path: Path) -> None:
    there = write(tmp_path / "there.mp4", moving_square(2))
    with pytest.raises(OutputExists, match="already there"):
        check_output_path(there, force=False)
    assert check_output_path(there, force=True) == "mp4"
    with pytest.raises(InvalidRequest, match=r"\.webm"):
        check_output_path(tmp_path / "clip.avi", force=False)
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(OutputUnwritable, match="folder"):
        check_output_path(tmp_path / "folder.mp4", force=True)
    with pytest.raises(OutputUnwritable):
        check_output_path(there / "clip.mp4", force=False)
    with pytest.raises(OutputUnwritable):
        check_output_path(Path("/proc/clip.mp4"), force=False)


def test_poster_is_the_middle_frame() -> None:
    pixels = moving_square(9)
    assert (poster(pixels) == pixels[4]).all()
