"""Pictures: PNG, JPEG, WebP, AVIF by Pillow, HEIC by pillow-heif; what lies beside the pixels."""

import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, BinaryIO

from PIL import Image

from filmlet.media.decoder import colors
from filmlet.media.decoder.messages import Message, Unfit

SOS, EOI = 0xDA, 0xD9
MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
BACKGROUND, OPAQUE = "white", 255
STRIP_PIXELS = 2**20
HEAD_BYTES = 2**16  # in which the colours of PNG and AVIF are named
ORIENTATION, INTEROPERABILITY, COLOR_SPACE, EXIF_IFD = 0x0112, 0xA005, 0xA001, 0x8769
SIDEWAYS = 5  # from this orientation on, width and height change places
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
DRAFT_FACTOR = 4  # of a JPEG beyond the limit, a half of each side is decoded
USUAL_GAMMA, TOLERANCE = 1 / 2.2, 0.02
HIGH_BYTES = [value >> 8 for value in range(2**16)]


def count_scans(data: bytes) -> int:
    """Return the scans of a JPEG's first picture."""
    scans, place = 0, 2
    while found := MARKER.search(data, place):
        kind, place = data[found.start() + 1], found.end()
        if kind == EOI:
            break
        scans += kind == SOS
        place += int.from_bytes(data[place : place + 2])
    return scans


def open_picture(file: BinaryIO, order: dict[str, Any]) -> Image.Image:
    """Open a picture as stored, not decoded yet; a huge JPEG is opened at half its size."""
    kind, pixels = order["format"], order["pixels"]
    if kind == "JPEG" and count_scans(file.read()) > order["scans"]:
        raise Unfit(f"it is made of too many scans; at most {order['scans']}.")
    if kind == "HEIF" and kind not in Image.OPEN:
        raise Unfit("this is a HEIC picture; the package pillow-heif, which reads it, is missing.")
    file.seek(0)
    image = Image.open(file, formats=[kind])
    width, height = image.size
    most = pixels * DRAFT_FACTOR if kind == "JPEG" else pixels
    if width * height > most:
        raise Unfit(f"{width}x{height} pixels are too many; at most {most // 10**6} million.")
    if width * height > pixels:
        image.draft(None, (-(-width // 2), -(-height // 2)))
        if image.width * image.height > pixels:
            raise Unfit(f"{width}x{height} pixels are too many; at most {pixels // 10**6} million.")
    return image


class Picture:
    """A decoded picture and what its file says of it."""

    def __init__(self, file: BinaryIO, order: dict[str, Any]) -> None:
        self.kind = order["format"]
        image = open_picture(file, order)
        self.pictures = 1 if self.kind == "JPEG" else getattr(image, "n_frames", 1)
        image.load()
        file.seek(0)
        self.head = file.read(HEAD_BYTES)
        self.info = image.info
        self.has_alpha = bool(image.has_transparency_data)
        self.is_deep = image.mode.startswith("I")
        self.is_cmyk = image.mode == "CMYK"
        self.exif = _read_exif(image)
        self.transfer = 0
        self.to_srgb = self._to_srgb(image.mode)
        self.image = self._apply_orientation(image)

    def _apply_orientation(self, image: Image.Image) -> Image.Image:
        """Orientation of EXIF; that of HEIC is applied by libheif. As stored if it is odd."""
        if self.kind == "HEIF":
            return image
        turn = UPRIGHT.get(self.exif["orientation"])
        return image if turn is None else image.transpose(turn)

    def _to_srgb(self, mode: str) -> colors.ToSrgb:
        plain = {"1": "L", "LA": "L", "CMYK": "CMYK", "L": "L"}.get(mode, "RGB")
        plain = "L" if self.is_deep else plain
        with suppress(ArithmeticError, struct.error, ValueError, TypeError):
            return colors.ToSrgb.from_profile(plain, self._profile())
        return colors.ToSrgb(plain, is_ignored=True)

    def _profile(self) -> bytes | None:
        """Return an embedded profile, or one of what the file says in other words; None is sRGB."""
        if cicp := self._cicp():
            self.transfer = cicp[1]
        if cicp and (self.kind == "PNG" or colors.is_hdr(self.transfer)):
            return colors.cicp_profile(*cicp)
        if profile := self.info.get("icc_profile"):
            return bytes(profile)
        if cicp:
            return colors.cicp_profile(*cicp)
        if self.exif["is_adobe_rgb"]:
            return colors.make_profile(colors.ADOBE_RGB, 563 / 256)
        return None if "srgb" in self.info else self._png_profile()

    def _cicp(self) -> tuple[int, int] | None:
        """Primaries and transfer curve by their numbers."""
        if nclx := self.info.get("nclx_profile"):
            return int(nclx["color_primaries"]), int(nclx["transfer_characteristics"])
        if self.kind == "AVIF" and (place := self.head.find(b"colrnclx")) > 0:
            return struct.unpack_from(">HH", self.head, place + 8)
        if self.kind == "PNG" and (place := self.head.find(b"\0\0\0\4cICP")) > 0:
            return self.head[place + 8], self.head[place + 9]
        return None

    def _png_profile(self) -> bytes | None:
        gamma = self.info.get("gamma", USUAL_GAMMA)
        white, *rgb = pairs(self.info.get("chromaticity", (0,) * 8))
        primaries = (*rgb, white) if all(white) else colors.SRGB
        values = zip(sum(primaries, ()), sum(colors.SRGB, ()), strict=True)
        is_srgb = all(abs(a - b) < TOLERANCE for a, b in values)
        if is_srgb and abs(gamma / USUAL_GAMMA - 1) < TOLERANCE:
            return None
        return colors.make_profile(primaries, 1 / gamma)

    def facts(self) -> dict[str, Any]:
        """Properties of the file that are not shown as it says, or not at all."""
        return {
            "has_alpha": self._is_transparent(),
            "pictures": self.pictures,
            "bits": self._bits(),
            "is_hdr": colors.is_hdr(self.transfer),
            "is_profile_ignored": self.to_srgb.is_ignored,
            "is_cmyk_guessed": self.is_cmyk and self.to_srgb.transform is None,
            "pixel_aspect": self._pixel_aspect(),
        }

    def _is_transparent(self) -> bool:
        """Return whether one can see through any of it."""
        return self.has_alpha and self._alpha(self.image).getextrema()[0] < OPAQUE

    def _bits(self) -> int:
        """Bits of a channel."""
        if self.kind == "PNG":
            return max(8, self.head[24])
        if self.kind == "AVIF" and 0 < (place := self.head.find(b"av1C")) < len(self.head) - 7:
            return 8 + 2 * (self.head[place + 6] >> 6 & 1) + 2 * (self.head[place + 6] >> 5 & 1)
        return int(self.info.get("bit_depth", 8))

    def _pixel_aspect(self) -> float:
        """Width of a pixel by its height, as the file says; viewers of pictures ignore it."""
        is_ratio = self.info.get("jfif_unit") == 0
        density = self.info.get("jfif_density" if is_ratio else "dpi")
        x, y = self.info.get("aspect") or density or (1, 1)
        return float(y / x) if x > 0 and y > 0 else 1.0

    def rgb(self, strip: Image.Image) -> Image.Image:
        """Return a part of it: opaque, in sRGB."""
        alpha = self._alpha(strip) if self.has_alpha else None
        if self.is_deep:
            strip = strip.convert("I").point(HIGH_BYTES, "L")
        elif self.has_alpha:
            strip = strip.convert("RGBA").convert("RGB")
        rgb = self.to_srgb.convert(strip)
        return rgb if alpha is None else lay_on_background(rgb, alpha)

    def _alpha(self, strip: Image.Image) -> Image.Image:
        if not self.is_deep:
            return strip.convert("RGBA").getchannel("A")
        clear = self.info["transparency"]
        return strip.convert("I").point([255 * (value != clear) for value in range(2**16)], "L")


def lay_on_background(rgb: Image.Image, alpha: Image.Image) -> Image.Image:
    rgb.putalpha(alpha)
    ground = Image.new("RGBA", rgb.size, BACKGROUND)
    return Image.alpha_composite(ground, rgb).convert("RGB")


def pairs(values: Any) -> list[tuple[float, float]]:
    return list(zip(values[::2], values[1::2], strict=True))


def _read_exif(image: Image.Image) -> dict[str, Any]:
    """Orientation and Adobe RGB, as far as they can be read: EXIF holds anything."""
    orientation, is_adobe_rgb = 1, False
    with suppress(Exception):
        orientation = image.getexif().get(ORIENTATION, 1)
    with suppress(Exception):
        is_adobe_rgb = image.getexif().get_ifd(EXIF_IFD).get(COLOR_SPACE) == 2
    with suppress(Exception):
        interoperability = image.getexif().get_ifd(INTEROPERABILITY)
        is_adobe_rgb |= str(interoperability.get(1)).strip("\0 ") == "R03"
    return {
        "orientation": orientation if orientation in tuple(UPRIGHT) else 1,
        "is_adobe_rgb": is_adobe_rgb,
    }


def look_at_picture(file: BinaryIO, order: dict[str, Any]) -> Iterator[Message]:
    """Its size, and what is worth telling."""
    picture = Picture(file, order)
    size = {"width": picture.image.width, "height": picture.image.height}
    yield size | {"facts": picture.facts()}, b""


def read_picture(file: BinaryIO, order: dict[str, Any]) -> Iterator[Message]:
    """Its pixels in strips: upright, opaque, in sRGB."""
    picture = Picture(file, order)
    image = picture.image
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        strip = picture.rgb(image.crop((0, top, image.width, min(top + rows, image.height))))
        yield {"width": strip.width, "height": strip.height}, strip.tobytes()
