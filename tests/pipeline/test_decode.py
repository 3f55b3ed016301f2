"""Frames are trimmed in one place: what the model makes, and what of it the clip shows."""

from collections.abc import Iterator

import numpy as np
import pytest

from filmlet.core.events import Pixels
from filmlet.core.shape import VideoShape
from filmlet.pipeline.decode import crop_frames

GENERATED = 25


def shape(new: int, context: int = 0, *, backward: bool = False) -> VideoShape:
    """Of a clip with so many new frames beside 30 that it extends."""
    source = 30 if context else 0
    return VideoShape(
        2, 2, source + new, 24.0, 2, 2, GENERATED,
        source_frames=source, context_frames=context, extend_backward=backward,
    )  # fmt: skip


def pieces(*sizes: int) -> Iterator[Pixels]:
    """Frames whose values are their numbers."""
    first = 0
    for size in sizes:
        numbers = np.arange(first, first + size, dtype=np.uint8)
        yield np.broadcast_to(numbers[:, None, None, None], (size, 2, 2, 3))
        first += size


def shown(frames: Iterator[Pixels]) -> list[int]:
    found = list(frames)
    assert all(len(pixels) for pixels in found), "an empty piece"
    return [int(frame[0, 0, 0]) for pixels in found for frame in pixels]


@pytest.mark.parametrize("sizes", [(25,), (1, 8, 8, 8), (1,) * 25, (9, 0, 16)])
@pytest.mark.parametrize(
    ("clip", "first", "last"),
    [
        (shape(25), 0, 25),
        (shape(20), 0, 20),  # padding behind
        (shape(12, context=9), 9, 21),  # context in front, padding behind
        (shape(12, context=9, backward=True), 4, 16),  # padding in front, context behind
    ],
)
def test_only_the_new_frames_are_left(
    sizes: tuple[int, ...], clip: VideoShape, first: int, last: int
) -> None:
    assert shown(crop_frames(pieces(*sizes), clip)) == list(range(first, last))
    for already in (1, 7, clip.new_frames):
        rest = shown(crop_frames(pieces(*sizes), clip, already))
        assert rest == list(range(first + already, last))


def test_no_piece_behind_the_last_new_frame_is_made() -> None:
    frames = pieces(1, 8, 8, 8)
    assert len(shown(crop_frames(frames, shape(9)))) == 9
    assert len(list(frames)) == 2, "a piece was made that nobody sees"


def test_planes_are_cut_as_pixels_are() -> None:
    planes = iter([np.zeros((9, 3, 2), np.uint8), np.ones((16, 3, 2), np.uint8)])
    assert [len(piece) for piece in crop_frames(planes, shape(12))] == [9, 3]
