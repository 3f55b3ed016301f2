"""The shapes that a model can make, the shape of a clip, and changes of what was asked."""

import math
from dataclasses import dataclass

from filmlet.core.request import ClipRequest
from filmlet.errors import InvalidRequest


@dataclass(frozen=True)
class ShapeConstraints:
    """The shapes a model can make, and the ones it was made for.

    spatial_compression, temporal_compression: pixels and frames that one latent stands for; sides
    are multiples of `spatial_compression`,
    frames are `temporal_compression` x k + 1. upscale_factor: 2 where a second stage doubles the
    sides of the first.
    max_frames: that the model makes at once. A longer clip, up to max_seconds, is made in windows
    of so many frames that share `overlap_frames`, `temporal_compression` x k; 0 where the model
    goes on from none, and a clip of few frames a second ends at max_seconds, too.
    """

    spatial_compression: int = 32
    temporal_compression: int = 8
    upscale_factor: int = 1
    width: int = 256
    height: int = 256
    frames: int = 25
    fps: float = 24.0
    min_side: int = 64
    max_side: int = 1280
    max_frames: int = 257
    max_fps: float = 60.0
    window_frames: int = 257
    overlap_frames: int = 0
    max_seconds: float = 60.0

    def round_up_side(self, pixels: int) -> int:
        """Return the smallest legal side that covers `pixels`."""
        return math.ceil(pixels / self.side_multiple) * self.side_multiple

    @property
    def side_multiple(self) -> int:
        """Sides of a clip are multiples of this, in pixels."""
        return self.spatial_compression * self.upscale_factor

    def nearest_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the size within the limits that is nearest in its proportions, uncropped."""
        scale = min(1.0, self.max_side / max(width, height))
        scale = max(scale, self.min_side / min(width, height))
        lowest = self.round_up_side(self.min_side)
        highest = self.max_side // self.side_multiple * self.side_multiple
        sides = (round(side * scale / self.side_multiple) for side in (width, height))
        wide, high = (min(highest, max(lowest, side * self.side_multiple)) for side in sides)
        return wide, high

    def round_up_frames(self, frames: int) -> int:
        """Return the smallest legal number of frames that covers `frames`."""
        return math.ceil((frames - 1) / self.temporal_compression) * self.temporal_compression + 1

    def latent_frames(self, frames: int) -> int:
        """Latent frames that stand for so many."""
        return -(-(frames - 1) // self.temporal_compression) + 1 if frames else 0

    def max_total_frames(self, fps: float) -> int:
        """Frames of the longest clip, in windows where need be."""
        in_time = int(self.max_seconds * fps)
        if self.overlap_frames:
            return max(self.max_frames, in_time)
        return min(self.max_frames, self.round_up_frames(in_time + 1))


@dataclass(frozen=True)
class Change:
    """One thing that is not done as asked, and the reason."""

    field: str
    requested: object
    effective: object
    reason: str


@dataclass(frozen=True)
class VideoShape:
    """width, height, frames: of the clip; generated_*: of what the model makes before the cut.

    source_frames: how many frames of it are a clip's that was given, the new ones come after them.
    context_frames: how many of those, the last, the model sees and makes once more.
    extend_backward: the new ones come before the clip, whose first frames the model sees.
    """

    width: int
    height: int
    frames: int
    fps: float
    generated_width: int
    generated_height: int
    generated_frames: int
    source_frames: int = 0
    context_frames: int = 0
    extend_backward: bool = False

    def half_size(self) -> "VideoShape":
        """Return the shape of the first of two stages."""
        return VideoShape(
            width=round_up_even(self.width / 2),
            height=round_up_even(self.height / 2),
            frames=self.frames,
            fps=self.fps,
            generated_width=self.generated_width // 2,
            generated_height=self.generated_height // 2,
            generated_frames=self.generated_frames,
            source_frames=self.source_frames,
            context_frames=self.context_frames,
            extend_backward=self.extend_backward,
        )

    @property
    def crop_rows(self) -> slice:
        """Rows of a generated frame that the clip shows: its middle."""
        top = (self.generated_height - self.height) // 2
        return slice(top, top + self.height)

    @property
    def crop_columns(self) -> slice:
        left = (self.generated_width - self.width) // 2
        return slice(left, left + self.width)

    @property
    def padding_frames(self) -> int:
        """Made frames that no clip shows."""
        return self.generated_frames - self.new_frames - self.context_frames

    @property
    def new_frames(self) -> int:
        """Number of frames that the model makes."""
        return self.frames - self.source_frames

    @property
    def needs_crop(self) -> bool:
        return (self.width, self.height, self.new_frames + self.context_frames) != (
            self.generated_width,
            self.generated_height,
            self.generated_frames,
        )


def round_up_even(pixels: float) -> int:
    """Return the nearest even number from above: video in 4:2:0 needs even sides."""
    return math.ceil(pixels / 2) * 2


def resolve_shape(
    request: ClipRequest, grid: ShapeConstraints, context: int = 0
) -> tuple[VideoShape, list[Change]]:
    """Return the shape that meets the request on this grid; InvalidRequest where none does.

    context: frames that are known and come before those that are asked for.
    """
    changes: list[Change] = []
    fps = request.fps or grid.fps
    _check_range("fps", fps, 1, grid.max_fps)
    width, height = _resolve_size(request.width or grid.width, request.height or grid.height, grid)
    for name, requested, side in (
        ("width", request.width, width),
        ("height", request.height, height),
    ):
        if requested not in (None, side):
            changes.append(Change(name, requested, side, "video in 4:2:0 needs even sides"))
    max_frames = grid.max_total_frames(fps) - context
    usual = (grid.frames - 1) * len(request.prompts) + 1 - context
    frames = request.frames or min(usual, max_frames)
    if request.seconds is not None:
        frames = max(1, round(request.seconds * fps))
        longest = max_frames / fps
        if frames > max_frames:
            raise InvalidRequest(
                f"seconds must be at most {longest:.2f} at {fps:g} frames a second, "
                f"got {request.seconds:g}.",
                param="seconds",
            )
        if not math.isclose(frames / fps, request.seconds, abs_tol=5e-4):
            reason = f"a clip has whole frames: {frames} at {fps:g} a second"
            changes.append(Change("seconds", request.seconds, round(frames / fps, 4), reason))
    _check_range("frames", frames, 1, max_frames)
    shape = VideoShape(
        width=width,
        height=height,
        frames=frames,
        fps=fps,
        generated_width=grid.round_up_side(width),
        generated_height=grid.round_up_side(height),
        generated_frames=grid.round_up_frames(frames + context),
        context_frames=context,
    )
    changes.extend(_crop_changes(shape, grid))
    return shape, changes


def _check_range(param: str, value: float, lowest: float, highest: float) -> None:
    if not lowest <= value <= highest:
        raise InvalidRequest(
            f"{param} must be between {lowest:g} and {highest:g}, got {value:g}.", param=param
        )


def _resolve_size(width: int, height: int, grid: ShapeConstraints) -> tuple[int, int]:
    """Return even sides. Raises InvalidRequest, which names the nearest size within the limits."""
    for name, pixels in (("width", width), ("height", height)):
        if not grid.min_side <= pixels <= grid.max_side:
            nearest = "x".join(map(str, grid.nearest_size(width, height)))
            raise InvalidRequest(
                f"{name} must be between {grid.min_side} and {grid.max_side} pixels, got {pixels}; "
                f"the nearest size is {nearest}.",
                param="size",
            )
    return round_up_even(width), round_up_even(height)


def _crop_changes(shape: VideoShape, grid: ShapeConstraints) -> list[Change]:
    """Say which sides are made larger than asked and then cropped.

    Frames that are made beyond the end are no change: those before them stay as they are.
    """
    cuts = []
    for name in ("width", "height"):
        requested, generated = getattr(shape, name), getattr(shape, f"generated_{name}")
        if requested != generated:
            reason = (
                f"the model makes multiples of {grid.side_multiple}; "
                f"the clip is cropped to {requested}"
            )
            cuts.append(Change(f"generated_{name}", requested, generated, reason))
    return cuts
