"""What lies beside the pixels of a given picture or video is applied, or told as a Change."""

import io
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageCms

from filmlet.core.request import build_request
from filmlet.core.shape import Change
from filmlet.errors import InvalidRequest
from filmlet.media import InvalidMedia, iter_frames, probe, read_image
from filmlet.media.decoder import colors
from filmlet.pipeline.plan import make_plan
from tests.helpers.given_files import (
    COLORS,
    UNTURN,
    box,
    corners,
    cut_without_encoding,
    four_colors,
    heic_of_tiles,
    is_near,
    jpeg_with_exif,
    make_png,
    marked_frames,
    numbers_of,
    song_with_cover,
    wide_gamut,
    with_matrix,
    write_clip,
)

pytestmark = pytest.mark.usefixtures("forked_decoders")

PROPHOTO = ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001), (0.3457, 0.3585))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "file"


def notes(path: Path) -> dict[str, Change]:
    return {note.field: note for note in probe(path).notes}


def changes(**settings: object) -> dict[str, Change]:
    return {c.field: c for c in make_plan(build_request("a ball", **settings)).changes}


def shows_four_colors(path: Path, by: int = 3) -> bool:
    return is_near(corners(read_image(path)[0]), COLORS, by)


# Pictures


@pytest.mark.parametrize("orientation", UNTURN)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "avif"])
def test_picture_is_upright_in_each_orientation(
    tmp_path: Path, orientation: int, suffix: str
) -> None:
    exif, path = Image.Exif(), tmp_path / f"file.{suffix}"
    exif[0x0112] = orientation
    four_colors().transpose(UNTURN[orientation]).save(path, exif=exif)
    assert (probe(path).width, probe(path).height) == (256, 192)
    assert shows_four_colors(path, 8)


@pytest.mark.parametrize(
    "odd",
    [
        (0x011A, 10, 1, struct.pack("<I", 38)),  # -1/0
        (0x011A, 12, 1, struct.pack("<I", 46)),  # NaN
        (0x011A, 2, 4, b"72\0\0"),
        (0x8769, 4, 1, struct.pack("<I", 10**9)),
        (0x8825, 7, 2**31, b"abcd"),
    ],
    ids=["rational", "nan", "text", "beyond", "huge"],
)
def test_jpeg_is_upright_whatever_else_its_exif_says(odd: tuple, file: Path) -> None:
    side = four_colors().transpose(Image.Transpose.ROTATE_90)
    file.write_bytes(jpeg_with_exif(side, [(0x0112, 3, 1, struct.pack("<HH", 6, 0)), odd]))
    assert shows_four_colors(file)
    assert changes(image=file, size="256x192") == {}


def test_png_whose_exif_has_no_head_is_shown_as_stored(file: Path) -> None:
    exif = b"\0\x08\0\x02\x01\x12\0\x03" * 3
    file.write_bytes(make_png(np.asarray(four_colors()), (b"eXIf", exif)))
    assert shows_four_colors(file)


@pytest.mark.parametrize("quarter_turns", range(4))
def test_heic_of_tiles_is_whole_and_upright(quarter_turns: int, file: Path) -> None:
    picture = four_colors(400, 300)
    stored = picture.rotate(-90 * quarter_turns, expand=True)
    file.write_bytes(heic_of_tiles(stored, quarter_turns))
    assert (probe(file).width, probe(file).height) == (400, 300)
    assert probe(file).fps is None
    assert shows_four_colors(file)


@pytest.mark.parametrize("suffix", ["heic", "avif"])
def test_alpha_of_heic_and_avif_lies_on_white(suffix: str, file: Path) -> None:
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    if suffix == "heic":
        pillow_heif.from_pillow(image).save(file)
    else:
        image.save(file, "AVIF")
    assert corners(read_image(file)[0]) == [(255, 255, 255)] * 4
    assert notes(file)["background"].effective == "white"


def test_what_a_phone_appends_to_a_picture_is_no_matter(file: Path) -> None:
    for end in (b"SEFH" + bytes(30) + b"SEFT", bytes(5), box(b"mpvd", bytes(1000))):
        file.write_bytes(heic_of_tiles(four_colors(400, 300)) + end)
        assert shows_four_colors(file)


def test_damaged_heic_is_refused_in_a_sentence(file: Path) -> None:
    whole = heic_of_tiles(four_colors(400, 300))
    for data in (whole[:-500], whole[:600], whole[:40] + bytes(2000)):
        file.write_bytes(data)
        with pytest.raises(InvalidMedia, match=r"not a whole|too much|cut off"):
            read_image(file)


@pytest.mark.parametrize(
    ("primaries", "gamma"),
    [(colors.P3, 2.2), (colors.ADOBE_RGB, 2.19921875), (PROPHOTO, 1.8)],
    ids=["p3", "adobe", "prophoto"],
)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "avif"])
def test_profile_is_converted_to_srgb(
    primaries: tuple, gamma: float, suffix: str, tmp_path: Path
) -> None:
    image, profile = wide_gamut(primaries, gamma)
    options = {"quality": 97} if suffix == "jpg" else {"lossless": True} if suffix == "webp" else {}
    image.save(tmp_path / f"file.{suffix}", icc_profile=profile, **options)
    assert shows_four_colors(tmp_path / f"file.{suffix}", 8)


def test_colours_that_are_named_without_a_profile_are_converted(file: Path) -> None:
    p3, _ = wide_gamut(colors.P3, 2.2)
    xy = (*colors.D65, *(value for point in colors.P3[:3] for value in point))
    chromaticities = struct.pack(">8I", *(round(value * 100_000) for value in xy))
    gamma = struct.pack(">I", 45455)
    file.write_bytes(make_png(np.asarray(p3), (b"gAMA", gamma), (b"cHRM", chromaticities)))
    assert shows_four_colors(file)
    srgb = colors.make_profile(colors.P3, colors.transfer_curve(13))
    numbers = ImageCms.profileToProfile(
        four_colors(), ImageCms.createProfile("sRGB"), ImageCms.ImageCmsProfile(io.BytesIO(srgb))
    )
    assert numbers
    file.write_bytes(make_png(np.asarray(numbers), (b"cICP", bytes([12, 13, 0, 1]))))
    assert shows_four_colors(file)
    light = np.round((np.asarray(four_colors()) / 255) ** 2.2 * 255).astype(np.uint8)
    file.write_bytes(make_png(light, (b"gAMA", struct.pack(">I", 100_000))))
    assert shows_four_colors(file, 8)


def test_adobe_rgb_that_only_exif_names_is_converted(file: Path) -> None:
    image, _ = wide_gamut(colors.ADOBE_RGB, 563 / 256)
    exif = Image.Exif()
    exif[0x8769] = {0xA001: 2}
    image.save(file, "JPEG", quality=97, exif=exif)
    assert shows_four_colors(file)


def test_srgb_stays_as_it_is_with_a_profile_or_without(file: Path) -> None:
    four_colors().save(file, "PNG")
    plain = read_image(file)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    four_colors().save(file, "PNG", icc_profile=profile)
    assert np.array_equal(read_image(file), plain)
    assert notes(file) == {}


def test_profile_that_cannot_be_used_is_told(file: Path) -> None:
    four_colors().save(file, "PNG", icc_profile=b"no profile" * 20)
    assert shows_four_colors(file)
    assert changes(image=file, size="256x192")["guide_1_color_profile"].effective == "sRGB"
    four_colors().convert("CMYK").save(file, "JPEG", quality=95)
    assert "guess" in notes(file)["color_profile"].reason


def test_sixteen_bits_are_shown_in_eight_and_told(file: Path) -> None:
    ramp = np.tile(np.arange(256, dtype=np.uint16) * 257, (192, 1))
    file.write_bytes(make_png(ramp))
    shown = read_image(file)[0]
    assert np.array_equal(shown[0, :, 0], np.arange(256))
    assert (notes(file)["bits"].requested, notes(file)["bits"].effective) == (16, 8)
    file.write_bytes(make_png(np.asarray(four_colors()).astype(np.uint16) * 257))
    assert shows_four_colors(file, 0)
    ramp[:, :128] = 1000
    file.write_bytes(make_png(ramp, (b"tRNS", struct.pack(">H", 1000))))
    assert read_image(file)[0, 0, 0].tolist() == [255, 255, 255]
    assert read_image(file)[0, 0, 200].tolist() == [200, 200, 200]


def test_alpha_that_hides_nothing_is_not_told(file: Path) -> None:
    image = four_colors().convert("RGBA")
    image.save(file, "PNG")
    assert shows_four_colors(file, 0)
    assert notes(file) == {}
    image.putpixel((3, 3), (0, 0, 0, 254))
    image.save(file, "PNG")
    assert notes(file).keys() == {"background"}


def test_what_of_a_picture_is_not_shown_is_told(tmp_path: Path) -> None:
    other = four_colors().transpose(Image.Transpose.ROTATE_180)
    four_colors().save(tmp_path / "a.webp", save_all=True, append_images=[other], lossless=True)
    assert shows_four_colors(tmp_path / "a.webp")
    assert notes(tmp_path / "a.webp")["pictures"].requested == 2
    four_colors().save(tmp_path / "fax.jpg", dpi=(204, 98), quality=95)
    assert notes(tmp_path / "fax.jpg")["pixel_aspect"].effective == 1
    assert changes(image=tmp_path / "fax.jpg", size="256x192").keys() == {"guide_1_pixel_aspect"}


def test_photos_of_phones_are_read_whatever_their_size(file: Path) -> None:
    for size, read in (((8064, 6048), (8064, 6048)), ((12_000, 9000), (6000, 4500))):
        Image.new("RGB", size, COLORS[0]).save(file, "JPEG")
        assert (probe(file).width, probe(file).height) == read
    assert is_near([read_image(file)[0, 4000, 5000]], [COLORS[0]], 2)


# Videos


def test_edit_list_hides_frames_and_the_visible_ones_go_on(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "whole.mp4", marked_frames(48), options={"g": "48", "bf": "2"})
    cut = cut_without_encoding(whole, tmp_path / "cut.mp4", 0.5)
    assert probe(cut).frames == 36
    assert numbers_of(iter_frames(cut)) == list(range(12, 48))
    plan = make_plan(build_request("a ball", extend=cut, frames=8))
    assert (plan.shape.frames, plan.shape.source_frames) == (44, 36)


def test_uneven_frames_are_shown_when_they_are_to_be_seen_and_told(tmp_path: Path) -> None:
    times = [i / 24 for i in range(24)] + [1 + i / 6 for i in range(6)]
    path = write_clip(tmp_path / "vfr.mp4", marked_frames(30), times=times)
    found = probe(path)
    assert (found.fps, found.frames) == (24, 45)
    shown = numbers_of(iter_frames(path))
    assert shown == [*range(24), *(24 + i // 4 for i in range(21))]
    assert numbers_of(iter_frames(path, 20, 10)) == shown[20:30]
    told = changes(extend=path, frames=8)["extend_frame_rate"]
    assert (told.requested, told.effective) == ("variable", 24)


def test_frames_that_a_phone_left_out_are_shown_longer(tmp_path: Path) -> None:
    numbers = [i for i in range(44) if i % 13 != 5]
    times = [i / 30 for i in numbers]
    path = write_clip(tmp_path / "drops.mp4", marked_frames(44)[numbers], rate=30, times=times)
    assert (probe(path).fps, probe(path).frames) == (30, 44)
    assert numbers_of(iter_frames(path)) == [i - (i % 13 == 5) for i in range(44)]


@pytest.mark.parametrize("suffix", ["mp4", "webm"])
@pytest.mark.parametrize("rate", [24, 30, Fraction(30_000, 1001), 60])
def test_even_frames_are_read_one_by_one(tmp_path: Path, suffix: str, rate: Fraction) -> None:
    codec = {"mp4": "libx264", "webm": "libvpx"}[suffix]
    path = write_clip(tmp_path / f"clip.{suffix}", marked_frames(40), rate, codec)
    found = probe(path)
    assert (found.frames, found.is_resampled, found.every) == (40, False, 1)
    assert found.fps == pytest.approx(float(rate), rel=1e-3)
    assert numbers_of(iter_frames(path)) == list(range(40))


@pytest.mark.parametrize(("rate", "fps", "every"), [(240, 60, 4), (120, 60, 2), (90, 45, 2)])
def test_faster_videos_are_shown_at_a_rate_that_clips_have(
    tmp_path: Path, rate: int, fps: int, every: int
) -> None:
    path = write_clip(tmp_path / "fast.mp4", marked_frames(48), rate)
    assert (probe(path).fps, probe(path).frames) == (fps, 48 // every)
    assert numbers_of(iter_frames(path, 2, 5)) == [every * i for i in range(2, 7)]
    told = changes(extend=path, frames=8)["extend_frame_rate"]
    assert (told.requested, told.effective) == (rate, fps)


def test_slow_video_lasts_as_long_as_it_does(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "slow.mp4", marked_frames(4), Fraction(1, 2))
    assert probe(path).fps == 1
    assert numbers_of(iter_frames(path))[:6] == [0, 0, 1, 1, 2, 2]
    assert "extend_frame_rate" in changes(extend=path, frames=8)


def test_larger_clip_is_made_smaller_and_told(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "large.mp4", marked_frames(9, (1920, 1080)))
    plan = make_plan(build_request("a ball", extend=path, frames=8))
    assert (plan.shape.width, plan.shape.height) == (512, 288)
    (told,) = plan.changes
    assert (told.field, told.requested, told.effective) == ("extend_size", "1920x1080", "512x288")
    assert plan.source_clip
    (first, *_) = plan.source_clip.source_frames(plan.shape)
    assert first.shape[1:] == (288, 512, 3)
    assert is_near(corners(first[0]), COLORS, 8)
    narrow = write_clip(tmp_path / "narrow.mp4", marked_frames(9, (1920, 64)))
    with pytest.raises(InvalidRequest, match=r"narrow\.mp4: the clip is shown at 512x18"):
        make_plan(build_request("a ball", extend=narrow, frames=8))


MATRICES = {
    (-1, 0, 0, 1): (1, 0, 3, 2), (-1, 0, 0, -1): (3, 2, 1, 0), (1, 0, 0, -1): (2, 3, 0, 1),
    (0, 1, -1, 0): (2, 0, 3, 1), (0, -1, 1, 0): (1, 3, 0, 2), (0, 1, 1, 0): (0, 2, 1, 3),
    (0, -1, -1, 0): (3, 1, 2, 0),
}  # fmt: skip  # and which of the four colours are where


@pytest.mark.parametrize("matrix", MATRICES)
def test_video_is_turned_and_mirrored_as_it_says(matrix: tuple, tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", marked_frames(3, (128, 96)))
    path.write_bytes(with_matrix(path.read_bytes(), matrix))
    frame = next(iter_frames(path))
    size = (96, 128) if matrix[0] == 0 else (128, 96)
    assert (probe(path).width, probe(path).height) == size == frame.shape[1::-1]
    assert is_near(corners(frame), [COLORS[i] for i in MATRICES[matrix]], 8)


def test_pixels_that_are_not_square_are_shown_as_wide_as_they_are(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", marked_frames(3), aspect=Fraction(2, 1))
    assert (probe(path).width, probe(path).height) == (256, 96)
    assert next(iter_frames(path)).shape == (96, 256, 3)
    write_clip(path, marked_frames(3), aspect=Fraction(8, 9))
    assert next(iter_frames(path)).shape == (96, 114, 3)


def test_pixels_of_absurd_width_are_refused(tmp_path: Path) -> None:
    frames = marked_frames(3, (1280, 96))
    path = write_clip(tmp_path / "clip.mp4", frames, aspect=Fraction(90, 1))
    with pytest.raises(InvalidMedia, match="pixels are too many"):
        probe(path)


@pytest.mark.parametrize("codec", ["libvpx-vp9", "libvpx"])
def test_transparent_webm_lies_on_white(codec: str, tmp_path: Path) -> None:
    alpha = np.full((9, 96, 128), 255, np.uint8)
    alpha[:, :, :64] = 0
    path = tmp_path / "alpha.webm"
    write_clip(
        path, marked_frames(9), codec=codec, pix_fmt="yuva420p", alpha=alpha,
        options={"auto-alt-ref": "0"},
    )  # fmt: skip
    assert probe(path).frames == 9
    (*_, last) = iter_frames(path)
    white = (255, 255, 255)
    assert is_near(corners(last), [white, COLORS[1], white, COLORS[3]], 25)
    assert changes(image=path, size="128x96")["guide_1_background"].effective == "white"


def test_sound_of_a_clip_is_kept_where_it_is_extended_and_told(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "sound.mp4", marked_frames(24), sound=True)
    told = changes(extend=path, frames=8)["extend_sound"]
    assert told.effective == "the given clip"
    assert "new frames are silent" in told.reason
    assert "extend_sound" not in changes(extend=path, frames=8, audio=False)
    told = changes(image=path, size="128x96")["guide_1_sound"]
    assert (told.requested, told.effective) == (True, False)


def test_bit_depth_and_colours_of_hdr_are_converted_and_told(tmp_path: Path) -> None:
    path = write_clip(
        tmp_path / "hdr.mp4", marked_frames(3), codec="libx265", pix_fmt="yuv420p10le",
        options={"x265-params": "log-level=none:colorprim=bt2020:transfer=smpte2084"},
    )  # fmt: skip
    assert notes(path).keys() == {"dynamic_range", "bits"}
    bar = 255 * next(iter_frames(path))[2, 64, 0] / 255
    assert bar < 8


@pytest.mark.parametrize("transfer", [colors.PQ, colors.HLG])
def test_white_of_hdr_is_nearly_white_of_srgb(transfer: int) -> None:
    signal = {colors.PQ: 0.5807, colors.HLG: 0.75}[transfer]  # 203 nits
    curve = {colors.PQ: colors.pq_to_linear, colors.HLG: colors.hlg_to_linear}[transfer]
    assert 0.85 < curve(signal) < 0.95
    assert 0.95 < curve(1) <= 1
    assert curve(0) == pytest.approx(0, abs=1e-6)


def test_files_that_are_no_videos_are_refused_by_what_they_are(tmp_path: Path) -> None:
    song = song_with_cover(tmp_path / "song.mp4")
    with pytest.raises(InvalidRequest, match=r"song\.mp4: there are no moving pictures"):
        make_plan(build_request("a ball", extend=song, frames=8))
    whole = write_clip(tmp_path / "a.mp4", marked_frames(48), options={"g": "1"})
    whole.write_bytes(_index_first(whole)[:-3000])
    with pytest.raises(InvalidMedia, match="cut off"):
        probe(whole)


def _index_first(path: Path) -> bytes:
    import av

    with av.open(str(path)) as source:
        target = path.with_name("first.mp4")
        with av.open(str(target), "w", options={"movflags": "faststart"}) as made:
            copied = made.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = copied
                    made.mux(packet)
    return target.read_bytes()


def test_minute_of_a_phone_is_not_too_long(tmp_path: Path) -> None:
    frames = np.zeros((1, 64, 64, 3), np.uint8).repeat(605, 0)
    assert probe(write_clip(tmp_path / "minute.mp4", frames[:603], 10)).frames == 603
    with pytest.raises(InvalidMedia, match="too long; at most 60 s"):
        probe(write_clip(tmp_path / "long.mp4", frames.repeat(2, 0)[:620], 10))


def test_name_with_a_colon_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_clip(tmp_path / "clip.mp4", marked_frames(9)).rename("a:b.mp4")
    plan = make_plan(build_request("a ball", extend=path.name, frames=8))
    assert plan.shape.source_frames == 9
