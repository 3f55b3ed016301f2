"""LoRAs that change a model for one clip: which file or Hub name, how strongly, what is in it."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from filmlet.core.plain_values import to_float, to_path
from filmlet.errors import InvalidRequest, abbreviate

MAX_LORAS = 8
MAX_STRENGTH = 4.0
SUFFIX = ".safetensors"
PICKLE_SUFFIXES = ("bin", "ckpt", "pkl", "pt", "pth")
HUB_NAME_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")  # an owner or a name on the Hub
HUB_PATH_PART = re.compile(r"[\w,()+=. -]+")  # of a file's path in a repository


@dataclass(frozen=True)
class Lora:
    """A LoRA, and how much of it: 1 as it was trained, 0 nothing of it, below 0 the opposite.

    source: a .safetensors file, or a Hub name, owner/name or owner/name/file.safetensors. How it
    is written decides, not what is there: a file three folders deep begins with ./ or /. In the
    queue, the name of a file in the job's own folder. Raises InvalidRequest.
    """

    source: str
    strength: float = 1.0

    def __post_init__(self) -> None:
        source, strength = to_path(self.source), to_float(self.strength)
        if source is None or "\0" in source:
            raise InvalidRequest(
                f"A LoRA needs a file or a Hub name, got {abbreviate(self.source)}.", param="loras"
            )
        object.__setattr__(self, "source", source)
        is_readable = self.is_on_hub or self.source.lower().endswith(SUFFIX)
        if not is_readable or self.source.lower().rpartition(".")[2] in PICKLE_SUFFIXES:
            raise InvalidRequest(
                f"A LoRA is a {SUFFIX} file, owner/name or owner/name/file{SUFFIX} on the Hub, "
                f"got {abbreviate(self.source)}; no other kind of file is read.",
                param="loras",
            )
        if strength is None or not -MAX_STRENGTH <= strength <= MAX_STRENGTH:
            raise InvalidRequest(
                f"The strength of a LoRA must be between -{MAX_STRENGTH:g} and {MAX_STRENGTH:g}, "
                f"got {abbreviate(self.strength)}.",
                param="loras",
            )
        object.__setattr__(self, "strength", strength)

    @property
    def is_on_hub(self) -> bool:
        """Whether `source` names a repository of the Hub, or a file in one."""
        owner, *rest = self.source.split("/")
        if not rest or not HUB_NAME_PART.fullmatch(owner) or not HUB_NAME_PART.fullmatch(rest[0]):
            return False
        inside = [part for part in rest[1:] if HUB_PATH_PART.fullmatch(part) and part.strip(".")]
        is_file = self.source.lower().endswith(SUFFIX)
        return inside == rest[1:] and is_file == bool(inside)


@dataclass(frozen=True)
class LoraLayer:
    """Two matrices that change one linear layer: its weight gains scale x up @ down.

    layer: by its name in diffusers; down, up, alpha: names of tensors in the file. shape:
    (out, in) of the layer's weight. scale: where there is no alpha, which stands for alpha / rank.
    """

    layer: str
    down: str
    up: str
    shape: tuple[int, int]
    rank: int
    scale: float = 1.0
    alpha: str | None = None


@dataclass(frozen=True)
class AppliedLora:
    """What was done with a LoRA. file, sha256: by its content; rank: the largest of its layers."""

    file: str
    sha256: str
    strength: float
    rank: int
    layers: int


@dataclass(frozen=True)
class StageLora(AppliedLora):
    """A LoRA of the model itself, which one stage is computed with. stage: its name."""

    stage: str


@dataclass(frozen=True)
class LoraAdapter:
    """A LoRA whose file was looked at. name: a Hub name, or one made from the content.

    base: the model that it says to be for, "2.0", "2.3", "2.5" or "LTX-Video"; "" if it says none.
    """

    path: Path
    name: str
    sha256: str
    strength: float
    layers: tuple[LoraLayer, ...]
    base: str = ""

    @property
    def key(self) -> tuple[str, float]:
        """Identity of the change: LoRAs that change a model in the same way have the same key."""
        return self.sha256, self.strength

    @property
    def label(self) -> str:
        """Name for people: its Hub name, or its file's name."""
        return self.name if "/" in self.name else self.path.name

    def to_applied(self) -> AppliedLora:
        """Return the same for the report; of a strength of 0 nothing is used."""
        layers = len(self.layers) if self.strength else 0
        rank = max(pair.rank for pair in self.layers)
        return AppliedLora(self.name, self.sha256[:16], self.strength, rank, layers)


def parse_loras(value: object) -> tuple[Lora, ...]:
    """LoRAs, tables of their fields as they come out of JSON, or the command line's words.

    Raises InvalidRequest.
    """
    wrong = "loras must be a list of source and strength."
    if not isinstance(value, (tuple, list)):
        raise InvalidRequest(wrong, param="loras")
    if len(value) > MAX_LORAS:
        raise InvalidRequest(
            f"{len(value)} LoRAs are too many; at most {MAX_LORAS}.", param="loras"
        )
    try:
        return tuple(_parse_one(item) for item in value)
    except TypeError as error:
        raise InvalidRequest(wrong, param="loras") from error


def _parse_one(value: object) -> Lora:
    match value:
        case Lora():
            return value
        case str():
            return parse_lora(value)
        case os.PathLike():
            return Lora(os.fspath(value))
        case dict():
            return Lora(**value)
    raise TypeError(f"{value!r} is no LoRA")


def parse_lora(text: str) -> Lora:
    """`style.safetensors`, `owner/name:0.7`: a file or a Hub name, and its strength."""
    source, colon, strength = text.rpartition(":")
    if not colon or text.lower().endswith(SUFFIX):
        return Lora(text)
    try:
        return Lora(source, float(strength))
    except ValueError:
        raise InvalidRequest(
            f"A LoRA is SOURCE or SOURCE:STRENGTH, got {abbreviate(text)}.", param="loras"
        ) from None
