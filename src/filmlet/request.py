"""What is asked (ClipRequest), what will be done (Effective), and why the two differ (Change)."""

import math
import os
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypedDict, Unpack

from filmlet.errors import InvalidRequest
from filmlet.guide import Guide, read_guides
from filmlet.lora import Lora, UsedLora, read_loras
from filmlet.prompts import check_text, read_then
from filmlet.windows import Window

MAX_SEED = 2**32 - 1
FORMATS = ("mp4", "webm", "gif", "webp")


@dataclass(frozen=True)
class ClipRequest:
    """One clip as the user asks for it; None leaves a setting to the model.

    width, height: pixels; seconds or frames: length, not both; fps: frames a second;
    steps: model calls; guidance: classifier-free guidance scale, 1 means none. draft: of a model
    with two stages the first alone, at half the size. guides: pictures and videos that the clip
    shows. extend: a clip that this one goes on from; it comes first, seconds or frames are added;
    backward: it comes last, and they lead to it.
    loras: what changes the model for this clip; several add up.
    then: further prompts; they share the clip's length with the first, one after the other.
    Raises InvalidRequest for anything that no model could mean.
    """

    prompt: str
    negative_prompt: str = ""
    model: str = "pocket"
    seed: int | None = None
    width: int | None = None
    height: int | None = None
    seconds: float | None = None
    frames: int | None = None
    fps: float | None = None
    steps: int | None = None
    guidance: float | None = None
    force_guidance: bool = False
    draft: bool = False
    guides: tuple[Guide, ...] = ()
    extend: str | None = None
    backward: bool = False
    loras: tuple[Lora, ...] = ()
    then: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in ("prompt", "negative_prompt", "model"):
            check_text(field, getattr(self, field))
        if not self.prompt.strip():
            raise InvalidRequest(
                'The prompt is empty; say what to show, such as "a cat moving left on white".',
                param="prompt",
            )
        if self.seconds is not None and self.frames is not None:
            raise InvalidRequest("Give seconds or frames, not both.", param="frames")
        for name in ("seed", "width", "height", "frames", "steps"):
            _check_number(name, getattr(self, name), int)
        for name in ("seconds", "fps", "guidance"):
            _check_number(name, getattr(self, name), float)
        object.__setattr__(self, "guides", read_guides(self.guides))
        object.__setattr__(self, "loras", read_loras(self.loras))
        object.__setattr__(self, "then", read_then(self.then))
        if self.extend is not None and (not isinstance(self.extend, str) or not self.extend):
            raise InvalidRequest(f"extend must name a file, got {self.extend!r}.", param="extend")

    def asked(self) -> dict[str, object]:
        """The settings that were given as plain values, defaults left out."""
        table = asdict(self)
        return {f.name: table[f.name] for f in fields(self) if getattr(self, f.name) != f.default}

    @property
    def prompts(self) -> tuple[str, ...]:
        """All of them, in order."""
        return (self.prompt, *self.then)

    @property
    def files(self) -> tuple[str, ...]:
        """The files that it names."""
        named = [guide.file for guide in self.guides]
        named += [self.extend] if self.extend else []
        named += [lora.source for lora in self.loras if not lora.is_on_hub]
        return tuple(dict.fromkeys(named))


def _check_number(name: str, value: object, kind: type[int] | type[float]) -> None:
    """None, or a finite number above 0 of the kind; a seed may be 0 and is bounded."""
    if value is None:
        return
    param = "size" if name in ("width", "height") else name
    if isinstance(value, bool) or not isinstance(value, (int, kind)):
        noun = "a whole number" if kind is int else "a number"
        raise InvalidRequest(f"{name} must be {noun}, got {value!r}.", param=param)
    if name == "seed":
        if not 0 <= value <= MAX_SEED:
            raise InvalidRequest(f"seed must be 0 to {MAX_SEED}, got {value}.", param=param)
    elif not (math.isfinite(value) and value > 0):
        raise InvalidRequest(f"{name} must be a number above 0, got {value:g}.", param=param)


def parse_size(text: str) -> tuple[int, int]:
    """`256x384` -> (width 256, height 384)."""
    width, by, height = text.lower().replace("×", "x").partition("x")
    if not (by and width.strip().isdecimal() and height.strip().isdecimal()):
        raise InvalidRequest(
            f"size must be WIDTHxHEIGHT in pixels, such as 256x256, got {text!r}.", param="size"
        )
    return int(width), int(height)


def parse_number(text: str, param: str) -> float:
    """A number from the command line, or InvalidRequest that names its setting."""
    try:
        return float(text)
    except ValueError:
        raise InvalidRequest(f"{param} must be a number, got {text!r}.", param=param) from None


def parse_whole(text: str, param: str) -> int:
    """A whole number from the command line, or InvalidRequest that names its setting."""
    try:
        return int(text)
    except ValueError:
        raise InvalidRequest(
            f"{param} must be a whole number, got {text!r}.", param=param
        ) from None


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


@dataclass(frozen=True)
class Effective:
    """What is really done, with a reason for each difference from the request."""

    prompt: str  # as the model reads it
    prompt_tokens: int
    negative_prompt: str
    unknown_words: tuple[str, ...]
    model: str
    revision: str
    seed: int
    shape: Shape
    sigmas: tuple[float, ...]  # noise level before each model call
    refine_sigmas: tuple[float, ...]  # of the second stage, where there is one
    guidance: float
    device: str
    dtype: str
    hold: str  # how much of the model is in memory at once
    guides: tuple[Guide, ...]  # files by their content, frames as they stand in the clip
    extend: str | None
    loras: tuple[UsedLora, ...]  # files by their content, or Hub names
    changes: tuple[Change, ...]
    then: tuple[str, ...] = ()  # further prompts, as the model reads them
    windows: tuple[Window, ...] = ()  # that the clip is made in; frames of what the model makes
    engine: str = "torch"  # what computes transformer and decoder
    levers: tuple[str, ...] = ()  # that are used; fp8 and int8 are lossy

    def as_json(self) -> dict[str, object]:
        """Plain values, the shape spread out and the number of steps beside its sigmas."""
        table: dict[str, object] = asdict(self)
        del table["shape"]
        if len(self.windows) < 2:  # nothing to tell: the file of a short clip stays as it was
            del table["then"], table["windows"]
        if not self.levers:
            del table["levers"]
        seconds = round(self.shape.frames / self.shape.fps, 4)
        return table | asdict(self.shape) | {"seconds": seconds, "steps": len(self.sigmas)}

    @classmethod
    def fresh_seed(cls) -> int:
        """A seed for a request that names none."""
        return secrets.randbelow(MAX_SEED + 1)


class ClipSettings(TypedDict, total=False):
    """The settings of a clip in the command line's words; ClipRequest says what they mean."""

    negative_prompt: str
    model: str
    seed: int
    size: str  # "WIDTHxHEIGHT"
    seconds: float
    frames: int
    fps: float
    steps: int
    guidance: float
    force_guidance: bool
    draft: bool
    image: str | os.PathLike[str]  # the clip's first frame
    last_image: str | os.PathLike[str]  # its last
    guides: Sequence[Guide]  # anywhere
    extend: str | os.PathLike[str]
    backward: bool
    loras: Sequence[Lora | str | os.PathLike[str]]  # text as the command line takes it
    then: Sequence[str]  # further prompts, one after the other


def clip_request(prompt: str, **settings: Unpack[ClipSettings]) -> ClipRequest:
    """A request in the command line's words; a setting that is None counts as not given."""
    unknown = settings.keys() - ClipSettings.__annotations__.keys()
    if unknown:
        raise InvalidRequest(
            f"There is no setting {min(unknown)!r}; there are "
            f"{', '.join(ClipSettings.__annotations__)}.",
            param="settings",
        )
    given: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    size = given.pop("size", None)
    if size is not None:
        given["width"], given["height"] = parse_size(size)
    ends = {name: frame for name, frame in (("image", 0), ("last_image", -1)) if name in given}
    guides = [Guide(os.fspath(given.pop(name)), frame) for name, frame in ends.items()]
    given["guides"] = (*guides, *given.get("guides", ()))
    if "extend" in given:
        given["extend"] = os.fspath(given["extend"])
    return ClipRequest(prompt, **given)
