"""The shapes a model can make (Grid), that of a clip (Shape), what is not as asked (Change)."""

import math
from dataclasses import dataclass

from filmlet.core.request import ClipRequest
from filmlet.errors import InvalidRequest


@dataclass(frozen=True)
class Grid:
    """The shapes a model can make, and the ones it was made for.

    side, time: pixels and frames that one latent stands for; sides are multiples of `side`,
    frames are `time` x k + 1. scale: 2 where a second stage doubles the sides of the first.
    max_frames: that the model makes at once. A longer clip, up to max_seconds, is made in windows
    of so many frames that share `overlap`, `time` x k; 0 where the model goes on from none.
    """

    side: int = 32
    time: int = 8
    scale: int = 1
    width: int = 256
    height: int = 256
    frames: int = 25
    fps: float = 24.0
    min_side: int = 64
    max_side: int = 1280
    max_frames: int = 257
    max_fps: float = 60.0
    window: int = 257
    overlap: int = 0
    max_seconds: float = 60.0

    def next_side(self, pixels: int) -> int:
        """The smallest legal side that covers `pixels`."""
        return math.ceil(pixels / self.multiple) * self.multiple

    @property
    def multiple(self) -> int:
        """What the sides of a clip are made in."""
        return self.side * self.scale

    def next_frames(self, frames: int) -> int:
        """The smallest legal number of frames that covers `frames`."""
        return math.ceil((frames - 1) / self.time) * self.time + 1

    def latents(self, frames: int) -> int:
        """Latent frames that stand for so many."""
        return -(-(frames - 1) // self.time) + 1 if frames else 0

    def longest(self, fps: float) -> int:
        """Frames of the longest clip, in windows where need be."""
        return max(self.max_frames, int(self.max_seconds * fps) if self.overlap else 0)


@dataclass(frozen=True)
class Change:
    """One thing that is not done as asked, and the reason."""

    field: str
    requested: object
    effective: object
    reason: str


@dataclass(frozen=True)
class Shape:
    """width, height, frames: of the clip; made_*: of what the model makes before the cut.

    given: how many frames of it are a clip's that was given, the new ones come after them.
    context: how many of those, the last, the model sees and makes once more. backward: the new ones
    come before the clip, whose first frames the model sees.
    """

    width: int
    height: int
    frames: int
    fps: float
    made_width: int
    made_height: int
    made_frames: int
    given: int = 0
    context: int = 0
    backward: bool = False

    def halved(self) -> "Shape":
        """The shape of the first of two stages."""
        return Shape(
            width=even(self.width / 2),
            height=even(self.height / 2),
            frames=self.frames,
            fps=self.fps,
            made_width=self.made_width // 2,
            made_height=self.made_height // 2,
            made_frames=self.made_frames,
            given=self.given,
            context=self.context,
            backward=self.backward,
        )

    @property
    def rows(self) -> slice:
        """Of a made frame, that the clip shows: its middle."""
        top = (self.made_height - self.height) // 2
        return slice(top, top + self.height)

    @property
    def columns(self) -> slice:
        left = (self.made_width - self.width) // 2
        return slice(left, left + self.width)

    @property
    def surplus(self) -> int:
        """Made frames that no clip shows."""
        return self.made_frames - self.new - self.context

    @property
    def new(self) -> int:
        """How many frames are the model's."""
        return self.frames - self.given

    @property
    def is_cut(self) -> bool:
        return (self.width, self.height, self.new + self.context) != (
            self.made_width,
            self.made_height,
            self.made_frames,
        )


def even(pixels: float) -> int:
    """The nearest even number from above: video in 4:2:0 needs even sides."""
    return math.ceil(pixels / 2) * 2


def fit(request: ClipRequest, grid: Grid, context: int = 0) -> tuple[Shape, list[Change]]:
    """The shape that meets the request on this grid; InvalidRequest where none does.

    context: frames that are known and come before those that are asked for.
    """
    changes: list[Change] = []
    fps = request.fps or grid.fps
    _hold("fps", fps, 1, grid.max_fps)
    width = _side("width", request.width or grid.width, grid, changes)
    height = _side("height", request.height or grid.height, grid, changes)
    most = grid.longest(fps) - context
    usual = (grid.frames - 1) * len(request.prompts) + 1 - context
    frames = request.frames or min(usual, most)
    if request.seconds is not None:
        frames = max(1, round(request.seconds * fps))
        longest = most / fps
        if frames > most:
            raise InvalidRequest(
                f"seconds must be at most {longest:.2f} at {fps:g} frames a second, "
                f"got {request.seconds:g}.",
                param="seconds",
            )
        if not math.isclose(frames / fps, request.seconds, abs_tol=5e-4):
            reason = f"a clip has whole frames: {frames} at {fps:g} a second"
            changes.append(Change("seconds", request.seconds, round(frames / fps, 4), reason))
    _hold("frames", frames, 1, most)
    shape = Shape(
        width=width,
        height=height,
        frames=frames,
        fps=fps,
        made_width=grid.next_side(width),
        made_height=grid.next_side(height),
        made_frames=grid.next_frames(frames + context),
        context=context,
    )
    changes.extend(_cuts(shape, grid))
    return shape, changes


def _hold(param: str, value: float, lowest: float, highest: float) -> None:
    if not lowest <= value <= highest:
        raise InvalidRequest(
            f"{param} must be between {lowest:g} and {highest:g}, got {value:g}.", param=param
        )


def _side(name: str, pixels: int, grid: Grid, changes: list[Change]) -> int:
    if not grid.min_side <= pixels <= grid.max_side:
        raise InvalidRequest(
            f"{name} must be between {grid.min_side} and {grid.max_side} pixels, got {pixels}.",
            param="size",
        )
    side = even(pixels)
    if side != pixels:
        changes.append(Change(name, pixels, side, "video in 4:2:0 needs even sides"))
    return side


def _cuts(shape: Shape, grid: Grid) -> list[Change]:
    """Say what is made larger than asked and then cut."""
    cuts = []
    wanted = shape.frames + shape.context
    if shape.made_frames != wanted:
        reason = f"the model makes {grid.time}k+1 frames; the clip is trimmed to {wanted}"
        cuts.append(Change("made_frames", wanted, shape.made_frames, reason))
    for name in ("width", "height"):
        asked, made = getattr(shape, name), getattr(shape, f"made_{name}")
        if asked != made:
            reason = f"the model makes multiples of {grid.multiple}; the clip is cropped to {asked}"
            cuts.append(Change(f"made_{name}", asked, made, reason))
    return cuts
