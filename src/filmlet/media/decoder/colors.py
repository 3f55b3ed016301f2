"""Colours as sRGB shows them, by Pillow's LittleCMS: embedded profiles, CICP numbers, PNG chunks.

CICP: ITU-T H.273, the numbers of primaries and transfer curves in videos, HEIC, AVIF and PNG.
"""

import io
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageCms

Matrix = Sequence[Sequence[float]]
Point = tuple[float, float]  # x, y of CIE 1931

D65, DCI_WHITE = (0.3127, 0.3290), (0.314, 0.351)
SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), D65)  # red, green, blue, white
ADOBE_RGB = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), D65)
P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), D65)
CICP_PRIMARIES = {
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), D65),  # BT.2020
    11: (*P3[:3], DCI_WHITE),
    12: P3,
}
LINEAR, PQ, HLG = 8, 16, 18  # transfer curves of CICP
GAMMAS = {4: 2.2, 5: 2.8, LINEAR: 1.0}
D50_XYZ = (0.9642, 1.0, 0.8249)  # what profiles are relative to
BRADFORD = ((0.8951, 0.2664, -0.1614), (-0.7502, 1.7135, 0.0367), (0.0389, -0.0685, 1.0296))
WHITE_NITS, HLG_PEAK_NITS = 203.0, 1000.0  # ITU-R BT.2408
KNEE = 0.7  # of linear light; what is above is compressed below 1
CURVE_ENTRIES = 4096
BLACK_POINT = ImageCms.Flags.BLACKPOINTCOMPENSATION


def invert_matrix(m: Matrix) -> list[list[float]]:
    """Return the inverse of a 3x3 matrix. Raises ZeroDivisionError."""
    (a, b, c), (d, e, f), (g, h, i) = m
    cofactors = (
        (e * i - f * h, c * h - b * i, b * f - c * e),
        (f * g - d * i, a * i - c * g, c * d - a * f),
        (d * h - e * g, b * g - a * h, a * e - b * d),
    )
    determinant = a * cofactors[0][0] + b * cofactors[1][0] + c * cofactors[2][0]
    return [[value / determinant for value in row] for row in cofactors]


def multiply(m: Matrix, vector: Sequence[float]) -> list[float]:
    return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in m]


def to_xyz(point: Point) -> list[float]:
    x, y = point
    return [x / y, 1.0, (1 - x - y) / y]


def adapt_to_d50(colorant: Sequence[float], white: Sequence[float]) -> list[float]:
    """XYZ seen under another white (Bradford), as profiles store it."""
    cone, own, there = (multiply(BRADFORD, xyz) for xyz in (colorant, white, D50_XYZ))
    scaled = [c * t / o for c, o, t in zip(cone, own, there, strict=True)]
    return multiply(invert_matrix(BRADFORD), scaled)


def srgb_to_linear(signal: float) -> float:
    return signal / 12.92 if signal <= 0.04045 else ((signal + 0.055) / 1.055) ** 2.4


def compress_highlights(light: float) -> float:
    """Light relative to white, below 1; up to the knee as it is."""
    above = light - KNEE
    return light if above <= 0 else KNEE + (1 - KNEE) * (1 - math.exp(-above / (1 - KNEE)))


def pq_to_linear(signal: float) -> float:
    """SMPTE ST 2084, compressed to what sRGB shows."""
    root = signal ** (32 / 2523)
    ratio = max(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)
    nits = 10_000 * ratio ** (8192 / 1305)
    return compress_highlights(nits / WHITE_NITS)


def hlg_to_linear(signal: float) -> float:
    """ARIB STD-B67 on a display of 1000 nits, compressed to what sRGB shows."""
    scene = (
        signal**2 / 3
        if signal <= 0.5
        else (math.exp((signal - 0.55991073) / 0.17883277) + 0.28466892) / 12
    )
    return compress_highlights(HLG_PEAK_NITS * scene**1.2 / WHITE_NITS)


def transfer_curve(transfer: int) -> bytes | float:
    """Return a table of 16-bit values, or a gamma, for a curve of CICP."""
    if transfer in GAMMAS:
        return GAMMAS[transfer]
    curves: dict[int, Callable[[float], float]] = {PQ: pq_to_linear, HLG: hlg_to_linear}
    curve = curves.get(transfer, srgb_to_linear)
    values = [curve(i / (CURVE_ENTRIES - 1)) for i in range(CURVE_ENTRIES)]
    return struct.pack(f">{CURVE_ENTRIES}H", *(min(65535, round(v * 65535)) for v in values))


def make_profile(primaries: Sequence[Point], curve: bytes | float) -> bytes:
    """Make an ICC profile (version 2, matrix, curves). Raises ZeroDivisionError, struct.error."""
    *colors, white = map(to_xyz, primaries)
    columns = list(zip(*colors, strict=True))
    scales = multiply(invert_matrix(columns), white)
    colorants = [
        adapt_to_d50([value * scale for value in xyz], white)
        for xyz, scale in zip(colors, scales, strict=True)
    ]
    if isinstance(curve, float):
        curve = struct.pack(">H", round(curve * 256))
    trc = b"curv\0\0\0\0" + struct.pack(">I", len(curve) // 2) + curve
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 6) + b"given\0" + bytes(78),
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": _xyz_tag(D50_XYZ),
    }
    for name, colorant in zip((b"r", b"g", b"b"), colorants, strict=True):
        tags[name + b"XYZ"], tags[name + b"TRC"] = _xyz_tag(colorant), trc
    offset = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", offset + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4sI", offset + len(body), b"lcms", 0x02100000) + b"mntrRGB XYZ "
    head += bytes(12) + b"acsp" + bytes(28) + _xyz_tag(D50_XYZ)[8:] + bytes(48)
    return head + table + body


def _xyz_tag(xyz: Sequence[float]) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in xyz))


def cicp_profile(primaries: int, transfer: int) -> bytes | None:
    """Return a profile of what CICP's numbers say; None where that is sRGB or close to it."""
    is_plain = transfer not in (PQ, HLG, *GAMMAS)
    if primaries not in CICP_PRIMARIES and is_plain:
        return None
    return make_profile(CICP_PRIMARIES.get(primaries, SRGB), transfer_curve(transfer))


def is_hdr(transfer: int) -> bool:
    return transfer in (PQ, HLG)


@dataclass
class ToSrgb:
    """Conversion of pictures of one mode to RGB in sRGB; without a profile they are taken for it.

    mode: that the profile is for. is_ignored: the profile is damaged, or of another kind.
    """

    mode: str
    transform: Any = None
    is_ignored: bool = False

    @classmethod
    def from_profile(cls, mode: str, profile: bytes | None) -> "ToSrgb":
        """mode: of the picture, without its alpha."""
        if not profile:
            return cls(mode)
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if ImageCms.getProfileDescription(source).startswith("sRGB"):
                return cls(mode)
            space = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}[source.profile.xcolor_space.strip()]
            if space != mode and (space, mode) != ("RGB", "L"):
                return cls(mode, is_ignored=True)
            target = ImageCms.createProfile("sRGB")
            intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
            transform = ImageCms.buildTransform(source, target, space, "RGB", intent, BLACK_POINT)
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError, KeyError):
            return cls(mode, is_ignored=True)
        return cls(space, transform)

    def convert(self, image: Image.Image) -> Image.Image:
        """Return the picture, which has no alpha, as RGB."""
        if self.transform is None:
            return image.convert("RGB")
        return ImageCms.applyTransform(image.convert(self.mode), self.transform) or image
