"""A finished clip in another format: its frames, its sound, its time and its tags."""

import json
from pathlib import Path

import av
import pytest
from PIL import Image

from filmlet import convert_clip
from filmlet.core.events import Audio
from filmlet.errors import InvalidRequest, OutputExists
from filmlet.media import write_video
from filmlet.media.metadata import TAGS
from tests.helpers.sounds import FlashClip, find_flash, look_at_audio

pytestmark = pytest.mark.usefixtures("forked_decoders")
SETTINGS = {"prompt": "a flash", "audio": True, "changes": []}
CLIP_TAGS = dict.fromkeys(TAGS, "?") | {
    "title": "a flash", "prompt": "a flash", "seed": "7", "license": "Apache-2.0; keep ärger",
    "provenance": "AI-generated", "comment": "AI-generated", "effective": json.dumps(SETTINGS),
}  # fmt: skip


def make_clip(path: Path, *, has_audio: bool = True, fps: float = 29.97) -> Path:
    clip = FlashClip(fps)
    audio: Audio | None = clip.audio if has_audio else None
    with write_video(path, clip.shape, CLIP_TAGS, audio=audio) as movie:
        movie.add(clip.pixels)
    return path


def read_tags(path: Path) -> dict[str, str]:
    """Tags by libav and Pillow."""
    if path.suffix == ".gif":
        with Image.open(path) as image:
            return dict(json.loads(image.info["comment"]))
    with av.open(str(path)) as file:
        return {name.lower(): value for name, value in file.metadata.items()}


@pytest.mark.parametrize("source", [".mp4", ".webm"])
def test_video_keeps_frames_rate_sound_and_tags(tmp_path: Path, source: str) -> None:
    clip, target = make_clip(tmp_path / f"a{source}"), tmp_path / "b.webm"
    if source == ".webm":
        target = tmp_path / "b.mp4"
    assert convert_clip(clip, target) == ()
    with av.open(str(target)) as file:
        stream = file.streams.video[0]
        assert float(stream.average_rate) == pytest.approx(29.97, rel=1e-3)
        assert (stream.width, stream.height) == (96, 64)
        assert sum(1 for _ in file.decode(stream)) == FlashClip().frames
    found, flash = look_at_audio(target), find_flash(target)
    assert found.codec == ("opus" if target.suffix == ".webm" else "aac")
    assert flash == pytest.approx(8 / 29.97, abs=1.1e-3)
    assert found.click_s == pytest.approx(8 / 29.97, abs=1.1e-3)
    assert CLIP_TAGS.items() <= read_tags(target).items()


@pytest.mark.parametrize("form", ["gif", "webp"])
def test_animation_lasts_as_long_and_says_that_it_is_silent(tmp_path: Path, form: str) -> None:
    target = tmp_path / f"b.{form}"
    (change,) = convert_clip(str(make_clip(tmp_path / "a.mp4")), str(target))
    assert (change.field, change.requested, change.effective) == ("audio", True, False)
    with Image.open(target) as image:
        total, said = 0, image.info.get("comment", b"") + image.info.get("xmp", b"")
        for i in range(image.n_frames):
            image.seek(i)
            image.load()
            brightness = image.convert("L").getpixel((5, 5))
            assert (brightness > 128) == (total > 1000 * 7.5 / 29.97)  # equal frames are joined
            total += image.info["duration"]
    assert total == pytest.approx(1000 * FlashClip().frames / 29.97, abs=10)
    assert b"AI-generated" in said
    assert b"a flash" in said
    if form == "gif":
        settings = json.loads(read_tags(target)["effective"])
        assert "audio" not in settings
        assert [c["field"] for c in settings["changes"]] == ["audio"]
        assert read_tags(target)["license"] == "Apache-2.0; keep ärger"


def test_clip_without_sound_loses_nothing(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a.mp4", has_audio=False, fps=1.0)
    assert convert_clip(clip, tmp_path / "b.gif") == ()
    assert json.loads(read_tags(tmp_path / "b.gif")["effective"]) == SETTINGS
    assert convert_clip(clip, tmp_path / "b.webm") == ()
    with av.open(str(tmp_path / "b.webm")) as file:
        assert file.streams.video[0].average_rate == 1
        assert not file.streams.audio


def test_same_format_is_copied_and_no_file_is_replaced(tmp_path: Path) -> None:
    clip, target = make_clip(tmp_path / "a.mp4"), tmp_path / "b.mp4"
    convert_clip(clip, target)
    assert target.read_bytes() == clip.read_bytes()
    with pytest.raises(OutputExists):
        convert_clip(clip, target)
    with pytest.raises(OutputExists):
        convert_clip(clip, clip)
    convert_clip(clip, target, force=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


def test_what_filmlet_did_not_make_is_not_said_to_be_its(tmp_path: Path) -> None:
    foreign, cut = FlashClip().write(tmp_path / "phone.mp4"), tmp_path / "cut.mp4"
    with pytest.raises(InvalidRequest, match=r"phone.mp4: only a clip that filmlet made"):
        convert_clip(foreign, tmp_path / "b.gif")
    data = make_clip(tmp_path / "a.mp4").read_bytes()
    cut.write_bytes(data[: len(data) // 2])
    with pytest.raises(InvalidRequest, match=r"^cut.mp4: "):
        convert_clip(cut, tmp_path / "b.gif")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for name in ("a.png", "nothing.mp4"):
        with pytest.raises(InvalidRequest, match=f"^{name}: "):
            convert_clip(tmp_path / name, tmp_path / "b.gif")
    with pytest.raises(InvalidRequest, match="does not end in one of"):
        convert_clip(foreign, tmp_path / "b.avi")
    assert not list(tmp_path.glob("b.*"))


@pytest.mark.parametrize("effective", ["", "[]", "nonsense", '{"changes": []'])
def test_tags_that_cannot_be_read_are_kept_as_they_are(tmp_path: Path, effective: str) -> None:
    clip = FlashClip()
    tags = {"provenance": "AI-generated", "effective": effective}
    with write_video(tmp_path / "a.mp4", clip.shape, tags, audio=clip.audio) as movie:
        movie.add(clip.pixels)
    convert_clip(tmp_path / "a.mp4", tmp_path / "b.gif")
    assert read_tags(tmp_path / "b.gif").get("effective", "") == effective
