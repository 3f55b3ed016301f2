"""Properties of a given picture or video that are not shown as its file has them, as Changes."""

from collections.abc import Iterator
from typing import Any

from filmlet.core.shape import Change

BACKGROUND = "white"  # of what one can see through
SHOWN_BITS = 8
SQUARE_TOLERANCE = 0.03  # pixels that are nearly square are told as square


def media_notes(facts: dict[str, Any], fps: float | None) -> Iterator[Change]:
    """Changes whose field and reason are to be led by the file's name.

    facts: what the decoder found. fps: of a video, as it is read.
    """
    if facts.get("has_alpha"):
        reason = f"lies on {BACKGROUND} where it is transparent"
        yield Change("background", None, BACKGROUND, reason)
    if facts.get("has_sound"):
        yield Change("sound", True, False, "has sound, which is dropped")
    yield from _timing_notes(facts, fps)
    yield from _color_notes(facts)
    if facts.get("pictures", 1) > 1:
        reason = f"holds {facts['pictures']} pictures; the first is shown"
        yield Change("pictures", facts["pictures"], 1, reason)
    aspect = facts.get("pixel_aspect", 1)
    if abs(aspect - 1) > SQUARE_TOLERANCE:
        reason = f"says that its pixels are {aspect:.2g} times as wide as high; shown as square"
        yield Change("pixel_aspect", round(aspect, 4), 1, reason)
    if facts.get("is_odd_rotation"):
        reason = "has a rotation that is not a multiple of 90 degrees; shown as it is stored"
        yield Change("rotation", None, 0, reason)


def _timing_notes(facts: dict[str, Any], fps: float | None) -> Iterator[Change]:
    if fps is None:
        return
    if facts.get("is_uneven"):
        reason = f"has frames at uneven times; shown at {fps:g} a second, as long as it lasts"
        yield Change("frame_rate", "variable", round(fps, 3), reason)
    elif rate := facts.get("source_fps"):
        reason = f"has {rate:g} frames a second; shown at {fps:g}, as long as it lasts"
        yield Change("frame_rate", round(rate, 3), round(fps, 3), reason)


def _color_notes(facts: dict[str, Any]) -> Iterator[Change]:
    if facts.get("is_hdr"):
        reason = "is HDR; its brightness is compressed to what sRGB shows"
        yield Change("dynamic_range", "HDR", "SDR", reason)
    if facts.get("bits", SHOWN_BITS) > SHOWN_BITS:
        reason = f"has {facts['bits']} bits a channel; clips have {SHOWN_BITS}"
        yield Change("bits", facts["bits"], SHOWN_BITS, reason)
    if facts.get("is_profile_ignored"):
        reason = "has a colour profile that cannot be used; shown as sRGB"
        yield Change("color_profile", "embedded", "sRGB", reason)
    elif facts.get("is_cmyk_guessed"):
        reason = "is CMYK without a colour profile; its colours are a guess"
        yield Change("color_profile", None, "sRGB", reason)
