"""The latents of a clip: of its picture and, where a model makes it, of its sound."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

from filmlet.engine.arrays import Array, Tensors

Value = TypeVar("Value")
AUDIO_LATENTS = "audio_latents"  # name in a file, beside "latents"


@dataclass(frozen=True, eq=False)
class Modalities(Generic[Value]):
    """One thing for the picture, and one for the sound; audio: None of clips without sound."""

    video: Value
    audio: Value | None = None

    def map(self, function: Callable[..., Any], *others: "Modalities[Any]") -> "Modalities[Any]":
        """Apply `function` to each modality's value, and to those of `others`."""
        video = function(self.video, *(other.video for other in others))
        if self.audio is None:
            return Modalities(video)
        return Modalities(video, function(self.audio, *(other.audio for other in others)))


Latents: TypeAlias = Modalities[Array]  # (1, tokens, channels) each, normalised


def latents_to_tensors(latents: Latents) -> Tensors:
    """The content of a file of latents."""
    tensors = {"latents": latents.video}
    if latents.audio is not None:
        tensors[AUDIO_LATENTS] = latents.audio
    return tensors


def latents_from_tensors(tensors: Tensors) -> Latents:
    """The inverse of `latents_to_tensors`; other tensors are not read."""
    return Modalities(tensors["latents"], tensors.get(AUDIO_LATENTS))
