"""The files that a request names, looked at: what they are, and where a model can show them."""

import math
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from filmlet.core.events import Audio, Pixels, PixelValues
from filmlet.core.guide import Guide
from filmlet.core.model_card import GuideSupport, ModelCard, ModelFamily
from filmlet.core.request import ClipRequest
from filmlet.core.shape import Change, ShapeConstraints, VideoShape
from filmlet.core.windows import split_into_windows, window_of_frame
from filmlet.errors import InvalidRequest, NotSupported
from filmlet.media import (
    InvalidMedia,
    MediaInfo,
    conditioning_image,
    pad_to,
    probe,
    read_audio,
    read_image,
    read_video,
    resize_to_cover,
)

CROP_WARNING_RATIO = 0.03  # of a picture, from which on it is told
SAME_FPS = 0.005  # frame rates that differ by less than this part are one
ROUNDING = 1e-6  # of a frame
FRAMES_PER_CHUNK = 8  # frames of a clip that are in memory at once


@dataclass(frozen=True)
class MediaInput:
    """A file, the frames of it that are used (`first` and on), and where in the made clip.

    frame: of what the model makes; frames: 8k+1. is_extended_clip: it is extended; not resized,
    therefore. shown_fps: of the clip, where the file has another rate: its frames are chosen by
    their time then.
    """

    path: Path
    info: MediaInfo
    frame: int = 0
    strength: float = 1.0
    first: int = 0
    frames: int = 1
    is_extended_clip: bool = False
    shown_fps: float | None = None

    def source_numbers(self) -> list[int]:
        """The frame of the file that each frame of the clip shows: what a player shows then."""
        step = self.info.fps / self.shown_fps if self.info.fps and self.shown_fps else 1.0
        last = self.info.frames - 1
        shown = range(self.first, self.first + self.frames)
        return [min(last, math.floor(number * step + ROUNDING)) for number in shown]

    def as_guide(self, shape: VideoShape) -> Guide:
        """Return the same as a guide of the finished clip."""
        moved = (
            -shape.padding_frames
            if shape.extend_backward
            else shape.source_frames - shape.context_frames
        )
        return Guide(self.info.name, self.frame + moved, self.strength)

    def pixels(
        self, shape: VideoShape, size: tuple[int, int], image_crf: int | None = None
    ) -> PixelValues:
        """The frames that are used, each covering width x height: (frames, height, width, 3).

        image_crf: how much a picture is compressed first; None: it is resized alone. One at a time
        is in memory as large as it was sent. Raises InvalidRequest, Cancelled.
        """
        with _as_invalid_request(self.path, "extend" if self.is_extended_clip else "guides"):
            if self.info.fps is None:
                picture = read_image(self.path)
                if image_crf is None:
                    return resize_to_cover(picture, *size)
                return conditioning_image(picture, image_crf, *size)
            shown = np.empty((self.frames, size[1], size[0], 3), np.uint8)
            numbers = np.array(self.source_numbers())
            first, count = int(numbers[0]), int(numbers[-1] - numbers[0] + 1)
            with closing(read_video(self.path, first, count)) as frames:
                for number, frame in enumerate(frames, start=first):
                    places = numbers == number
                    if not places.any():
                        continue
                    one = frame[None]
                    if self.is_extended_clip:
                        one = _fit_clip(one, shape)
                        one = pad_to(one, shape.generated_width, shape.generated_height)
                    shown[places] = resize_to_cover(one, *size)
            return shown

    def audio(self, sample_rate: int) -> Audio | None:
        """The sound of the whole file at a rate in Hz. Raises InvalidRequest, Cancelled."""
        with _as_invalid_request(self.path, "extend" if self.is_extended_clip else "guides"):
            return read_audio(self.path, sample_rate)

    def source_frames(self, shape: VideoShape, first: int = 0) -> Iterator[Pixels]:
        """Yield frames of the clip that is extended, from `first` on, a few at a time.

        Raises InvalidRequest.
        """
        if first >= shape.source_frames:
            return
        with (
            _as_invalid_request(self.path, "extend"),
            closing(read_video(self.path, first, shape.source_frames - first)) as frames,
        ):
            while some := list(islice(frames, FRAMES_PER_CHUNK)):
                yield _fit_clip(np.stack(some), shape)


def _fit_clip(pixels: Pixels, shape: VideoShape) -> Pixels:
    """Frames of a clip that is extended at the size of the whole: made smaller, or padded."""
    if pixels.shape[2] > shape.width or pixels.shape[1] > shape.height:
        return resize_to_cover(pixels, shape.width, shape.height)
    return pad_to(pixels, shape.width, shape.height)


def resolve_source_clip(
    request: ClipRequest, card: ModelCard, folder: Path | None
) -> MediaInput | None:
    """Return the clip to go on from, and as many of its last frames as the model is given."""
    if request.extend is None:
        return None
    path, footage = _probe(request.extend, folder, "extend")
    if footage.fps is None:
        raise InvalidRequest(
            f"{path.name}: this is a picture; only a video can be extended.", param="extend"
        )
    if request.draft:
        raise InvalidRequest(
            "An extension has the size of its clip; a draft would be half of it.", param="draft"
        )
    is_forward_only = (
        card.guide_support == GuideSupport.FIRST_FRAME or card.family is ModelFamily.LTX2
    )
    if request.extend_backward and is_forward_only:
        raise NotSupported(f"{card.name} makes what comes after a clip only.", param="extend")
    frame_count = min(card.context_frames, largest_valid_frames(footage.frames, card))
    first = 0 if request.extend_backward else footage.frames - frame_count
    return MediaInput(path, footage, first=first, frames=frame_count, is_extended_clip=True)


def with_source_size(
    request: ClipRequest, clip: MediaInput, card: ModelCard, changes: list[Change]
) -> ClipRequest:
    """The request with the size and the frame rate of the clip that it extends."""
    footage, grid = clip.info, card.grid
    width, height = _fit_size(clip, grid)
    if (width, height) != (footage.width, footage.height):
        sizes = f"{footage.width}x{footage.height}", f"{width}x{height}"
        reason = f"the model makes at most {grid.max_side} pixels a side; the clip is made smaller"
        changes.append(Change("extend_size", *sizes, reason))
    changes.extend(
        note for note in _media_changes("extend", "the clip", footage)
        if not (footage.has_audio and note.field == "extend_sound")
    )  # fmt: skip
    if footage.has_audio and request.audio and not card.makes_audio:
        reason = f"{card.name} makes no sound: the clip keeps its own, new frames are silent"
        changes.append(Change("extend_sound", "all of the clip", "the given clip", reason))
    reason = "an extension keeps the size and frame rate of its clip"
    source = {"width": width, "height": height, "fps": footage.fps}
    for name, value in source.items():
        requested = getattr(request, name)
        if requested is not None and requested != value:
            changes.append(Change(name, requested, value, reason))
    return replace(request, width=width, height=height, fps=footage.fps)


def _fit_size(clip: MediaInput, grid: ShapeConstraints) -> tuple[int, int]:
    """Return the size of a clip that is extended, made smaller to what the model can make.

    Raises InvalidRequest.
    """
    width, height = clip.info.width, clip.info.height
    scale = grid.max_side / max(width, height)
    if scale < 1:
        width, height = (max(2, round(side * scale / 2) * 2) for side in (width, height))
    if min(width, height) < grid.min_side:
        raise InvalidRequest(
            f"{clip.path.name}: the clip is shown at {width}x{height}; the model makes sides of "
            f"{grid.min_side} to {grid.max_side} pixels.",
            param="extend",
        )
    return width, height


def extend_shape(
    request: ClipRequest, shape: VideoShape, clip: MediaInput
) -> tuple[VideoShape, MediaInput]:
    """The shape with the given clip in front, or behind; and the clip where the model sees it."""
    source_frames, extend_backward = clip.info.frames, request.extend_backward
    if extend_backward:
        clip = replace(clip, frame=shape.generated_frames - shape.context_frames)
    return replace(
        shape,
        frames=shape.frames + source_frames,
        source_frames=source_frames,
        extend_backward=extend_backward,
    ), clip


def resolve_guides(
    request: ClipRequest,
    card: ModelCard,
    shape: VideoShape,
    folder: Path | None,
    changes: list[Change],
) -> tuple[MediaInput, ...]:
    """Return the guides where the model can show them; a difference from what was asked is told."""
    placed: dict[int, MediaInput] = {}
    for number, guide in enumerate(request.guides, start=1):
        media_input = _resolve_guide(guide, card, shape, folder, len(request.prompts))
        changes.extend(_guide_changes(f"guide_{number}", guide, media_input, shape))
        if placed.setdefault(media_input.frame, media_input) is not media_input:
            frame = media_input.as_guide(shape).frame
            raise InvalidRequest(f"Two guides stand at frame {frame}.", param="guides")
    return tuple(placed.values())


def _resolve_guide(
    guide: Guide, card: ModelCard, shape: VideoShape, folder: Path | None, prompts: int
) -> MediaInput:
    path, footage = _probe(guide.file, folder, "guides")
    frame = _snap_to_latent_frame(guide, card, shape)
    windows = split_into_windows(shape, card.grid, prompts)
    max_frames = window_of_frame(windows, frame).end_frame - frame
    if card.guide_support == GuideSupport.FIRST_FRAME:
        if frame or shape.source_frames:
            raise NotSupported(
                f"{card.name} takes a picture as the first frame only.", param="guides"
            )
        max_frames = 1  # of a video it sees the first picture
    shown_fps = None if _has_rate(footage, shape.fps) else shape.fps
    most = min(_frames_at(footage, shape.fps), max_frames, guide.frames or max_frames)
    frames = largest_valid_frames(most, card)
    return MediaInput(path, footage, frame, guide.strength, 0, frames, shown_fps=shown_fps)


def _has_rate(footage: MediaInfo, fps: float) -> bool:
    """Return whether a video has this rate; a picture has any."""
    return footage.fps is None or abs(footage.fps / fps - 1) <= SAME_FPS


def _frames_at(footage: MediaInfo, fps: float) -> int:
    """Return how many frames a file is at this rate, as long as it lasts."""
    if footage.fps is None or _has_rate(footage, fps):
        return footage.frames
    return max(1, round(footage.frames * fps / footage.fps))


def _snap_to_latent_frame(guide: Guide, card: ModelCard, shape: VideoShape) -> int:
    """The frame of the made clip, a multiple of `card.guide_step`, nearest to the guide's."""
    requested = guide.frame if guide.frame >= 0 else shape.frames + guide.frame
    if not 0 <= requested < shape.frames:
        raise InvalidRequest(
            f"The clip has {shape.frames} frames; a guide cannot stand at {guide.frame}.",
            param="guides",
        )
    if requested >= shape.new_frames if shape.extend_backward else requested < shape.source_frames:
        side = "last" if shape.extend_backward else "first"
        raise InvalidRequest(
            f"The {side} {shape.source_frames} frames are those of the clip that is extended; "
            f"a guide cannot stand at {guide.frame}.",
            param="guides",
        )
    time = card.guide_step
    if shape.extend_backward:
        last = (shape.generated_frames - shape.context_frames - 1) // time * time
        return min(last, (requested + shape.padding_frames + time // 2) // time * time)
    first = -(-shape.context_frames // time) * time
    model_frame = requested - shape.source_frames + shape.context_frames
    return max(first, (model_frame + time // 2) // time * time)


def largest_valid_frames(frames: int, card: ModelCard) -> int:
    """Return the longest 8k+1 frames within so many."""
    time = card.grid.temporal_compression
    return (frames - 1) // time * time + 1


def _guide_changes(
    name: str, guide: Guide, media_input: MediaInput, shape: VideoShape
) -> Iterator[Change]:
    """Yield what of a guide is not done as asked."""
    footage, frame = media_input.info, media_input.as_guide(shape).frame
    requested = guide.frame if guide.frame >= 0 else shape.frames + guide.frame
    if frame != requested:
        reason = (
            f"a guide must begin at the first frame of a latent; {name} stands at frame {frame}"
        )
        yield Change(f"{name}_frame", guide.frame, frame, reason)
    frames = _frames_at(footage, shape.fps)
    if footage.fps is not None and media_input.frames != frames:
        reason = f"of {name} the clip shows {media_input.frames} frames"
        yield Change(f"{name}_frames", frames, media_input.frames, reason)
    ratio = footage.width * shape.height / (footage.height * shape.width)
    cropped = 1 - min(ratio, 1 / ratio)
    if cropped > CROP_WARNING_RATIO:
        sizes = (f"{footage.width}x{footage.height}", f"{shape.width}x{shape.height}")
        reason = f"{name} is resized to cover the clip; {cropped:.0%} of it is cropped"
        yield Change(f"{name}_size", *sizes, reason)
    if media_input.frames > 1 and footage.fps and media_input.shown_fps:
        reason = (
            f"{name} has {footage.fps:g} frames a second; shown at {shape.fps:g}, as long as it "
            "lasts"
        )
        yield Change(f"{name}_fps", round(footage.fps, 3), shape.fps, reason)
    yield from _media_changes(name, name, footage)


def _media_changes(field: str, name: str, footage: MediaInfo) -> Iterator[Change]:
    """Yield what of a file is not shown as it is."""
    for note in footage.notes:
        yield replace(note, field=f"{field}_{note.field}", reason=f"{name} {note.reason}")


def _probe(file: str, folder: Path | None, param: str) -> tuple[Path, MediaInfo]:
    path = folder / file if folder else Path(file)
    with _as_invalid_request(path, param):
        return path, probe(path)


@contextmanager
def _as_invalid_request(path: Path, param: str) -> Iterator[None]:
    """Name the file, but not its folder: that is the server's where a client has sent it."""
    try:
        yield
    except InvalidMedia as refused:
        raise InvalidRequest(f"{path.name}: {refused}", param=param) from refused
