"""The settings that a clip is made with, and a reason for each difference from the request."""

import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from filmlet.core.guide import Guide
from filmlet.core.lora import AppliedLora, StageLora
from filmlet.core.request import MAX_SEED, SILENT_FORMATS
from filmlet.core.shape import Change, VideoShape
from filmlet.core.windows import Window


def format_changes(form: str, has_audio: bool) -> Iterator[Change]:
    """What of a clip a file of this format does not hold."""
    if has_audio and form in SILENT_FORMATS:
        name = {"gif": "GIF", "webp": "WebP"}[form]
        yield Change("audio", True, False, f"{name} holds no sound; MP4 and WebM do")


@dataclass(frozen=True)
class EffectiveSettings:
    """What is really done, with a reason for each difference from the request."""

    prompt: str  # as the model reads it
    prompt_tokens: int
    negative_prompt: str
    unknown_words: tuple[str, ...]
    model: str
    revision: str
    seed: int
    shape: VideoShape
    sigmas: tuple[float, ...]  # noise level before each model call
    refine_sigmas: tuple[float, ...]  # of the second stage, where there is one
    guidance: float
    device: str
    dtype: str
    offload: str  # how much of the model is in memory at once
    guides: tuple[Guide, ...]  # files by their content, frames as they stand in the clip
    extend: str | None
    loras: tuple[AppliedLora, ...]  # files by their content, or Hub names
    changes: tuple[Change, ...]
    extra_prompts: tuple[str, ...] = ()  # further prompts, as the model reads them
    windows: tuple[Window, ...] = ()  # that the clip is made in; frames of what the model makes
    engine: str = "torch"  # what computes transformer and decoder
    optimizations: tuple[str, ...] = ()  # that are used; fp8 and int8 are lossy
    audio: bool = False  # whether the clip has sound
    model_terms: str = ""  # licence of the model and what it asks of whoever passes the clip on
    stage_loras: tuple[StageLora, ...] = ()  # of the model itself, besides `loras`

    def as_json(self) -> dict[str, object]:
        """Plain values, the shape spread out and the number of steps beside its sigmas."""
        table: dict[str, object] = asdict(self)
        del table["shape"]
        if len(self.windows) < 2:  # nothing to tell: the file of a short clip stays as it was
            del table["extra_prompts"], table["windows"]
        for name in ("optimizations", "audio", "model_terms", "stage_loras"):
            if not table[name]:
                del table[name]
        seconds = round(self.shape.frames / self.shape.fps, 4)
        return table | asdict(self.shape) | {"seconds": seconds, "steps": len(self.sigmas)}

    def in_format(self, form: str) -> "EffectiveSettings":
        """Those of a file of this format, which may hold no sound."""
        changes = list(format_changes(form, self.audio))
        if not changes:
            return self
        return replace(self, audio=False, changes=(*self.changes, *changes))

    @classmethod
    def random_seed(cls) -> int:
        """Return a seed for a request that names none."""
        return secrets.randbelow(MAX_SEED + 1)
