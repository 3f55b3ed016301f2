"""The files that a request names, looked at: what they are, and where a model can show them."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from filmlet.core.events import Pixels
from filmlet.core.guide import Guide
from filmlet.core.model_card import GuideKind, ModelCard
from filmlet.core.request import ClipRequest
from filmlet.core.shape import Change, Shape
from filmlet.core.windows import holding, split
from filmlet.errors import InvalidRequest, NotOffered
from filmlet.media import (
    BACKGROUND,
    Footage,
    Refused,
    covering,
    framed,
    look,
    read_picture,
    read_video,
)

CROPPED = 0.03  # of a picture, from which on it is told
PIECE = 8  # frames of a clip that are in memory at once


@dataclass(frozen=True)
class Given:
    """A file, the frames of it that are used (`first` and on), and where in the made clip.

    frame: of what the model makes; frames: 8k+1. is_clip: it is extended; not resized, therefore.
    """

    path: Path
    footage: Footage
    frame: int = 0
    strength: float = 1.0
    first: int = 0
    frames: int = 1
    is_clip: bool = False

    def as_guide(self, shape: Shape) -> Guide:
        """The same as a guide of the finished clip."""
        moved = -shape.surplus if shape.backward else shape.given - shape.context
        return Guide(self.footage.name, self.frame + moved, self.strength)

    def pixels(self, shape: Shape, size: tuple[int, int]) -> Pixels:
        """The frames that are used, each covering width x height: (frames, height, width, 3).

        One at a time is in memory as large as it was sent. Raises InvalidRequest, Cancelled.
        """
        with _refusals("extend" if self.is_clip else "guides"):
            if self.footage.fps is None:
                return covering(read_picture(self.path), *size)
            shown = np.empty((self.frames, size[1], size[0], 3), np.uint8)
            with closing(read_video(self.path, self.first, self.frames)) as frames:
                for i, frame in enumerate(frames):
                    one = frame[None]
                    if self.is_clip:
                        one = framed(one, shape.made_width, shape.made_height)
                    shown[i] = covering(one, *size)[0]
            return shown

    def before(self, shape: Shape) -> Iterator[Pixels]:
        """All frames, a few at a time, as they come before the new ones. Raises InvalidRequest."""
        with _refusals("extend"), closing(read_video(self.path, 0, shape.given)) as frames:
            while some := list(islice(frames, PIECE)):
                yield framed(np.stack(some), shape.width, shape.height)


def read_clip(request: ClipRequest, card: ModelCard, folder: Path | None) -> Given | None:
    """The clip to go on from, and as many of its last frames as the model is given."""
    if request.extend is None:
        return None
    path, footage = _look(request.extend, folder, "extend")
    if footage.fps is None:
        raise InvalidRequest("extend: this is a picture; only a video goes on.", param="extend")
    if request.draft:
        raise InvalidRequest(
            "An extension has the size of its clip; a draft would be half of it.", param="draft"
        )
    if request.backward and card.guides == GuideKind.FIRST_FRAME:
        raise NotOffered(f"{card.name} makes what comes after a clip only.", param="extend")
    seen = min(card.context, whole(footage.frames, card))
    first = 0 if request.backward else footage.frames - seen
    return Given(path, footage, first=first, frames=seen, is_clip=True)


def settled(request: ClipRequest, clip: Given, changes: list[Change]) -> ClipRequest:
    """The request with the size and the frame rate of the clip that it extends."""
    footage = clip.footage
    reason = "an extension goes on as its clip is"
    own = {"width": footage.width, "height": footage.height, "fps": footage.fps}
    for name, value in own.items():
        asked = getattr(request, name)
        if asked is not None and asked != value:
            changes.append(Change(name, asked, value, reason))
    return replace(request, width=footage.width, height=footage.height, fps=footage.fps)


def lengthened(request: ClipRequest, shape: Shape, clip: Given) -> tuple[Shape, Given]:
    """The shape with the given clip in front, or behind; and the clip where the model sees it."""
    given, backward = clip.footage.frames, request.backward
    if backward:
        clip = replace(clip, frame=shape.made_frames - shape.context)
    return replace(shape, frames=shape.frames + given, given=given, backward=backward), clip


def read_guides(
    request: ClipRequest, card: ModelCard, shape: Shape, folder: Path | None, changes: list[Change]
) -> tuple[Given, ...]:
    """The guides where the model can show them; a difference from what was asked is told."""
    placed: dict[int, Given] = {}
    for number, guide in enumerate(request.guides, start=1):
        given = _given(guide, card, shape, folder, len(request.prompts))
        changes.extend(_told(f"guide_{number}", guide, given, shape))
        if placed.setdefault(given.frame, given) is not given:
            frame = given.as_guide(shape).frame
            raise InvalidRequest(f"Two guides stand at frame {frame}.", param="guides")
    return tuple(placed.values())


def _given(guide: Guide, card: ModelCard, shape: Shape, folder: Path | None, prompts: int) -> Given:
    path, footage = _look(guide.file, folder, "guides")
    frame = _legal(guide, card, shape)
    windows = split(shape, card.grid, prompts)
    most = holding(windows, frame).end - frame
    if card.guides == GuideKind.FIRST_FRAME:
        if frame or shape.given:
            raise NotOffered(
                f"{card.name} takes a picture as the first frame only.", param="guides"
            )
        most = 1  # of a video it sees the first picture
    frames = whole(min(footage.frames, most, guide.frames or most), card)
    return Given(path, footage, frame, guide.strength, 0, frames)


def _legal(guide: Guide, card: ModelCard, shape: Shape) -> int:
    """The frame of the made clip, a multiple of `time`, that is nearest to the guide's."""
    asked = guide.frame if guide.frame >= 0 else shape.frames + guide.frame
    if not 0 <= asked < shape.frames:
        raise InvalidRequest(
            f"The clip has {shape.frames} frames; a guide cannot stand at {guide.frame}.",
            param="guides",
        )
    if asked >= shape.new if shape.backward else asked < shape.given:
        side = "last" if shape.backward else "first"
        raise InvalidRequest(
            f"The {side} {shape.given} frames are those of the clip that is extended; "
            f"a guide cannot stand at {guide.frame}.",
            param="guides",
        )
    time = card.grid.time
    if shape.backward:
        last = (shape.made_frames - shape.context - 1) // time * time
        return min(last, (asked + shape.surplus + time // 2) // time * time)
    first = -(-shape.context // time) * time
    made = asked - shape.given + shape.context
    return max(first, (made + time // 2) // time * time)


def whole(frames: int, card: ModelCard) -> int:
    """The longest 8k+1 frames within so many."""
    time = card.grid.time
    return (frames - 1) // time * time + 1


def _told(name: str, guide: Guide, given: Given, shape: Shape) -> Iterator[Change]:
    """What of a guide is not done as asked."""
    footage, frame = given.footage, given.as_guide(shape).frame
    asked = guide.frame if guide.frame >= 0 else shape.frames + guide.frame
    if frame != asked:
        reason = f"guides stand where a latent begins; {name} stands at frame {frame}"
        yield Change(f"{name}_frame", guide.frame, frame, reason)
    if footage.fps is not None and given.frames != footage.frames:
        reason = f"of {name} the clip shows {given.frames} frames"
        yield Change(f"{name}_frames", footage.frames, given.frames, reason)
    ratio = footage.width * shape.height / (footage.height * shape.width)
    cropped = 1 - min(ratio, 1 / ratio)
    if cropped > CROPPED:
        sizes = (f"{footage.width}x{footage.height}", f"{shape.width}x{shape.height}")
        reason = f"{name} is resized to cover the clip; {cropped:.0%} of it is cropped"
        yield Change(f"{name}_size", *sizes, reason)
    if footage.is_see_through:
        reason = f"{name} lies on {BACKGROUND} where one can see through it"
        yield Change(f"{name}_background", None, BACKGROUND, reason)


def _look(file: str, folder: Path | None, param: str) -> tuple[Path, Footage]:
    path = folder / file if folder else Path(file)
    with _refusals(param):
        return path, look(path)


@contextmanager
def _refusals(param: str) -> Iterator[None]:
    try:
        yield
    except Refused as refused:
        raise InvalidRequest(f"{param}: {refused}", param=param) from refused
