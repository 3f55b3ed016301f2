"""ClipRequest, the request for one clip, and the parsing of its fields."""

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypedDict, Unpack

from filmlet.core.enhanced_prompt import EnhancedPrompt, to_enhanced_prompt
from filmlet.core.guide import Guide, parse_guides
from filmlet.core.lora import Lora, parse_loras
from filmlet.core.plain_values import to_bool, to_float, to_int, to_path
from filmlet.errors import InvalidRequest, abbreviate

MAX_SEED = 2**32 - 1
MAX_PROMPTS = 32
MAX_NUMBER = 10**9  # of any other setting, whatever the model
FORMATS = ("mp4", "webm", "gif", "webp")
SILENT_FORMATS = ("gif", "webp")  # animations hold no sound
# What diffusers, vLLM and other servers call our settings.
FOREIGN_NAMES = {
    "num_frames": "frames",
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "cfg_scale": "guidance",
    "width": "size",
    "height": "size",
    "resolution": "size",
    "duration": "seconds",
    "num_seconds": "seconds",
    "frame_rate": "fps",
}


@dataclass(frozen=True)
class ClipRequest:
    """One clip as the user asks for it; None leaves a setting to the model.

    width, height: pixels; seconds or frames: length, not both; fps: frames a second;
    steps: model calls; guidance: classifier-free guidance scale, 1 means none. draft: of a model
    with two stages the first alone, at half the size. guides: pictures and videos that the clip
    shows. extend: a clip that this one goes on from; it comes first, seconds or frames are added;
    extend_backward: it comes last, and they lead to it.
    loras: what changes the model for this clip; several add up.
    extra_prompts: further prompts; they share the clip's length with the first, one after the
    other. audio: sound, of a model that makes it. enhanced_prompts: what the model reads instead of
    the prompts, one for each, or none at all. Raises InvalidRequest for anything that no model
    could mean.
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
    extend_backward: bool = False
    loras: tuple[Lora, ...] = ()
    extra_prompts: tuple[str, ...] = ()
    audio: bool = True
    enhanced_prompts: tuple[EnhancedPrompt, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.model, os.PathLike):
            self._set("model", to_path(self.model))
        for name in ("prompt", "negative_prompt", "model"):
            self._set(name, validate_text(name, getattr(self, name)))
        if not self.prompt.strip():
            raise InvalidRequest(
                'The prompt is empty; say what to show, such as "a cat moving left on white".',
                param="prompt",
            )
        if self.seconds is not None and self.frames is not None:
            raise InvalidRequest("Give seconds or frames, not both.", param="frames")
        for name in ("seed", "width", "height", "frames", "steps"):
            self._set(name, _check_number(name, getattr(self, name), int))
        for name in ("seconds", "fps", "guidance"):
            self._set(name, _check_number(name, getattr(self, name), float))
        for name in ("force_guidance", "draft", "extend_backward", "audio"):
            self._set(name, _check_bool(name, getattr(self, name)))
        self._set("guides", parse_guides(self.guides))
        self._set("loras", parse_loras(self.loras))
        self._set("extra_prompts", parse_extra_prompts(self.extra_prompts))
        asked = (self.prompt, *self.extra_prompts)
        self._set("enhanced_prompts", parse_enhanced_prompts(self.enhanced_prompts, asked))
        if self.extend is not None:
            self._set("extend", parse_file("extend", self.extend))

    def _set(self, name: str, value: object) -> None:
        """Set a field to its value in Python's own type, while the request is made."""
        object.__setattr__(self, name, value)

    def explicit_settings(self) -> dict[str, object]:
        """Return the settings that were given as plain values, defaults left out."""
        table = asdict(self)
        return {f.name: table[f.name] for f in fields(self) if getattr(self, f.name) != f.default}

    @property
    def prompts(self) -> tuple[str, ...]:
        """All of them, in order, as the model is to read them."""
        if self.enhanced_prompts:
            return tuple(prompt.text for prompt in self.enhanced_prompts)
        return (self.prompt, *self.extra_prompts)

    @property
    def files(self) -> tuple[str, ...]:
        """The files that it names."""
        named = [guide.file for guide in self.guides]
        named += [self.extend] if self.extend else []
        named += [lora.source for lora in self.loras if not lora.is_on_hub]
        return tuple(dict.fromkeys(named))


def validate_text(param: str, text: object) -> str:
    """Text that every file, database and tokenizer can hold. Raises InvalidRequest."""
    if not isinstance(text, str):
        raise InvalidRequest(f"{param} must be text.", param=param)
    try:
        text.encode()  # fails at half of a surrogate
    except UnicodeEncodeError:
        is_text = False
    else:
        is_text = "\0" not in text  # PostgreSQL cannot store it
    if not is_text:
        raise InvalidRequest(f"{param} has characters that are no text.", param=param)
    return str.__str__(text)  # of a subclass, such as numpy's, too


def parse_file(param: str, value: object) -> str:
    """Return a path as text. Raises InvalidRequest."""
    path = to_path(value)
    if path is None:
        raise InvalidRequest(
            f"{param} must name a file, got {abbreviate(value)}. A picture in memory is taken as "
            "image or last_image of filmlet.generate.",
            param=param,
        )
    return path


def _check_bool(param: str, value: object) -> bool:
    truth = to_bool(value)
    if truth is None:
        raise InvalidRequest(
            f"{param} must be True or False, got {abbreviate(value)}.", param=param
        )
    return truth


def parse_extra_prompts(value: object) -> tuple[str, ...]:
    """Return the prompts after the first. Raises InvalidRequest."""
    if not isinstance(value, (tuple, list)) or len(value) >= MAX_PROMPTS:
        raise InvalidRequest(
            f"extra_prompts is a list of at most {MAX_PROMPTS - 1} prompts.", param="extra_prompts"
        )
    prompts = tuple(validate_text("extra_prompts", prompt) for prompt in value)
    if not all(prompt.strip() for prompt in prompts):
        raise InvalidRequest(
            "An extra prompt is empty; write it or leave it out.", param="extra_prompts"
        )
    return prompts


def parse_enhanced_prompts(value: object, asked: tuple[str, ...]) -> tuple[EnhancedPrompt, ...]:
    """Return them from objects or, as a row has them, from tables. Raises InvalidRequest.

    asked: all prompts of the request.
    """
    given = value if isinstance(value, (tuple, list)) else (value,)
    try:
        prompts = [EnhancedPrompt(**item) if isinstance(item, dict) else item for item in given]
    except TypeError:
        prompts = [None]
    found = tuple(getattr(prompt, "requested", None) for prompt in prompts)
    if prompts and found != asked:
        raise InvalidRequest(
            "enhanced_prompts must have one for each prompt, or none.", param="enhanced_prompts"
        )
    for prompt in prompts:
        if not validate_text("enhanced_prompts", prompt.text).strip():
            raise InvalidRequest("An enhanced prompt is empty.", param="enhanced_prompts")
    return tuple(prompts)


def next_seeds(seed: int, count: int) -> list[int]:
    """Return a seed and those after it; the largest is followed by 0."""
    return [(seed + number) % (MAX_SEED + 1) for number in range(count)]


def _check_number(name: str, given: object, kind: type[int] | type[float]) -> int | float | None:
    """None, or a number above 0 of the kind, within bounds; a seed may be 0."""
    if given is None:
        return None
    param = "size" if name in ("width", "height") else name
    value = to_int(given) if kind is int else to_float(given)
    if value is None:
        noun = "a whole number" if kind is int else "a number"
        raise InvalidRequest(f"{name} must be {noun}, got {abbreviate(given)}.", param=param)
    if name == "seed":
        if not 0 <= value <= MAX_SEED:
            raise InvalidRequest(
                f"seed must be 0 to {MAX_SEED}, got {abbreviate(value)}.", param=param
            )
    elif not value > 0:  # NaN is neither
        raise InvalidRequest(
            f"{name} must be a number above 0, got {abbreviate(value)}.", param=param
        )
    elif value > MAX_NUMBER:
        raise InvalidRequest(f"{name} is too large: {abbreviate(value)}.", param=param)
    return value


def parse_size(size: object) -> tuple[int, int]:
    """`256x384`, or a pair of numbers -> (width 256, height 384). Raises InvalidRequest."""
    if isinstance(size, str):
        return _parse_size_text(size)
    sides = [to_int(side) for side in size] if isinstance(size, Iterable) else []
    if len(sides) != 2 or sides[0] is None or sides[1] is None:
        raise InvalidRequest(
            f"size must be WIDTHxHEIGHT or a pair of whole numbers, got {abbreviate(size)}.",
            param="size",
        )
    return sides[0], sides[1]


def _parse_size_text(text: str) -> tuple[int, int]:
    width, by, height = text.lower().replace("×", "x").partition("x")
    sides = [side.strip() for side in (width, height)]
    if not by or not all(side.isdecimal() and len(side) < 10 for side in sides):
        raise InvalidRequest(
            f"size must be WIDTHxHEIGHT in pixels, such as 256x256, got {abbreviate(text)}.",
            param="size",
        )
    return int(width), int(height)


def parse_float(text: str, param: str) -> float:
    """Return a number from the command line, or InvalidRequest that names its setting."""
    try:
        return float(text)
    except ValueError:
        raise InvalidRequest(
            f"{param} must be a number, got {abbreviate(text)}.", param=param
        ) from None


def parse_int(text: str, param: str) -> int:
    """Return a whole number from the command line, or InvalidRequest that names its setting."""
    try:
        return int(text)
    except ValueError:
        raise InvalidRequest(
            f"{param} must be a whole number, got {abbreviate(text)}.", param=param
        ) from None


def explain_foreign_name(name: str, names: Collection[str]) -> str:
    """Return a sentence that says what a setting of other programs is called here, or "".

    names: of the settings that there are.
    """
    own = FOREIGN_NAMES.get(name.replace("-", "_"))
    if own not in names:
        return ""
    return "Give size as WIDTHxHEIGHT." if own == "size" else f"It is called {own} here."


class ClipOptions(TypedDict, total=False):
    """The settings of a clip in the command line's words; ClipRequest says what they mean."""

    negative_prompt: str
    model: str | os.PathLike[str]
    seed: int
    size: str | Sequence[int]  # "WIDTHxHEIGHT", or both
    seconds: float
    frames: int
    fps: float
    steps: int
    guidance: float
    force_guidance: bool
    draft: bool
    image: str | os.PathLike[str] | object  # the clip's first frame
    last_image: str | os.PathLike[str] | object  # its last
    guides: Sequence[Guide]  # anywhere
    extend: str | os.PathLike[str]
    extend_backward: bool
    loras: Sequence[Lora | str | os.PathLike[str]]  # text as the command line takes it
    extra_prompts: Sequence[str | EnhancedPrompt]  # further prompts, one after the other
    audio: bool  # sound, of a model that makes it


def build_request(prompt: str | EnhancedPrompt, **settings: Unpack[ClipOptions]) -> ClipRequest:
    """Return a request in the command line's words; a setting that is None counts as not given."""
    unknown = settings.keys() - ClipOptions.__annotations__.keys()
    if unknown:
        name = min(unknown)
        hint = explain_foreign_name(name, ClipOptions.__annotations__)
        hint = hint or f"There are {', '.join(ClipOptions.__annotations__)}."
        raise InvalidRequest(f"There is no setting {name!r}. {hint}", param="settings")
    values: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    size = values.pop("size", None)
    if size is not None:
        values["width"], values["height"] = parse_size(size)
    ends = {name: frame for name, frame in (("image", 0), ("last_image", -1)) if name in values}
    guides = [Guide(parse_file(name, values.pop(name)), frame) for name, frame in ends.items()]
    values["guides"] = (*guides, *parse_guides(values.get("guides", ())))
    if isinstance(values.get("extra_prompts"), (tuple, list)):
        prompt, *values["extra_prompts"] = _set_enhanced(values, prompt, *values["extra_prompts"])
    else:
        (prompt,) = _set_enhanced(values, prompt)
    return ClipRequest(prompt, **values)


def _set_enhanced(values: dict[str, Any], *prompts: Any) -> tuple[str, ...]:
    """Return the prompts as they were asked; set `enhanced_prompts` where one was enhanced."""
    if any(isinstance(prompt, EnhancedPrompt) for prompt in prompts):
        values["enhanced_prompts"] = tuple(map(to_enhanced_prompt, prompts))
    return tuple(p.requested if isinstance(p, EnhancedPrompt) else p for p in prompts)
