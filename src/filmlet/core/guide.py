"""Pictures and videos that a clip is to show: which file, at which frame, how exactly."""

from dataclasses import dataclass

from filmlet.core.plain_values import to_float, to_int, to_path
from filmlet.errors import InvalidRequest, abbreviate

MAX_GUIDES = 16
MAX_FRAME = 10**9


@dataclass(frozen=True)
class Guide:
    """A picture, or a video, that the clip shows from `frame` on.

    file: a path; in the queue, the name of a file in the job's own folder. frame: of the finished
    clip; negative counts from its end, -1 is the last. strength: above 0; 1 shows it as it is,
    less leaves the model more room. frames: of a video at most so many, None is as many as fit.
    Raises InvalidRequest.
    """

    file: str
    frame: int = 0
    strength: float = 1.0
    frames: int | None = None

    def __post_init__(self) -> None:
        file = to_path(self.file)
        if file is None or "\0" in file:
            raise InvalidRequest(
                f"A guide needs a file, got {abbreviate(self.file)}.", param="guides"
            )
        frame = to_int(self.frame)
        if frame is None or abs(frame) > MAX_FRAME:
            raise InvalidRequest(
                f"The frame of a guide must be a whole number, got {abbreviate(self.frame)}.",
                param="guides",
            )
        frames = None if self.frames is None else to_int(self.frames) or 0
        if frames is not None and not 1 <= frames <= MAX_FRAME:
            raise InvalidRequest(
                f"A guide shows at least one frame of a video, got {abbreviate(self.frames)}.",
                param="guides",
            )
        strength = to_float(self.strength)
        if strength is None or not 0 < strength <= 1:
            raise InvalidRequest(
                f"The strength of a guide must be above 0 and at most 1, "
                f"got {abbreviate(self.strength)}.",
                param="guides",
            )
        plain = {"file": file, "frame": frame, "frames": frames, "strength": strength}
        for name, value in plain.items():
            object.__setattr__(self, name, value)


def parse_guides(value: object) -> tuple[Guide, ...]:
    """Guides, or tables of their fields as they come out of JSON. Raises InvalidRequest."""
    wrong = "guides must be a list of file, frame and strength."
    if not isinstance(value, (tuple, list)):
        raise InvalidRequest(wrong, param="guides")
    if len(value) > MAX_GUIDES:
        raise InvalidRequest(
            f"{len(value)} guides are too many; at most {MAX_GUIDES}.", param="guides"
        )
    try:
        return tuple(g if isinstance(g, Guide) else Guide(**g) for g in value)
    except TypeError as error:
        raise InvalidRequest(wrong, param="guides") from error


def parse_keyframe(text: str) -> Guide:
    """`cat.png@48` or `cat.png@48:0.7`: a file, its frame and its strength."""
    file, _, position = text.rpartition("@")
    frame, colon, strength = position.partition(":")
    try:
        return Guide(file, int(frame), float(strength) if colon else 1.0)
    except ValueError:
        raise InvalidRequest(
            f"A keyframe is FILE@FRAME or FILE@FRAME:STRENGTH, got {abbreviate(text)}.",
            param="guides",
        ) from None
