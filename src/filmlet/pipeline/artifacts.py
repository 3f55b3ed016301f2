"""Results of stages: in memory for this run, in a job's folder for the next.

| file in the folder | content | there |
|---|---|---|
| `embeddings.safetensors` | `EncodedInputs` | after encode |
| `step`, `refine-step.safetensors` | latents of the latest step | while denoising, refining |
| `latents-N`, `refined-N.safetensors` | latents of window N | of clips in several windows |
| `latents.safetensors` | latents of the clip; of two stages, the first's | after denoise |
| `upsampled.safetensors` | `UpsampledInputs` | after upsample |
| `refined.safetensors` | latents of the clip | after refine |
| `audio.safetensors` | samples of the clip's sound | after decode_audio |
| `decoded.mp4.HEX.part` | the clip, playable while it grows | while decoding |
| `decoded.mp4` | the whole clip, its index at its end | after decode |
| `clip.mp4.HEX.part` | the whole clip with its tags, its index first | while muxing |
| `clip.mp4` | the clip | after mux |
| `export.webm`, `.gif`, `.webp` | the clip in another format | once a server was asked for it |

A file of another format has its suffix. Without a folder the clip grows beside its path.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import count, takewhile
from pathlib import Path

from filmlet.core.events import Stage
from filmlet.engine import tensor_files
from filmlet.engine.arrays import Array, Tensors
from filmlet.engine.base import Engine
from filmlet.engine.latents import Latents, latents_from_tensors, latents_to_tensors
from filmlet.media import to_output_error

RESULT_NAMES = {
    Stage.ENCODE: "embeddings",
    Stage.DENOISE: "latents",
    Stage.UPSAMPLE: "upsampled",
    Stage.REFINE: "refined",
    Stage.DECODE_AUDIO: "audio",
    Stage.DECODE: "decoded",
    Stage.MUX: "clip",
}


def result_file(stage: Stage, video_suffix: str = "mp4") -> str:
    """Return the name of the file of a stage's result. Raises KeyError where a stage has none."""
    suffix = video_suffix if stage in (Stage.DECODE, Stage.MUX) else "safetensors"
    return f"{RESULT_NAMES[stage]}.{suffix}"


@dataclass(frozen=True, eq=False)
class EncodedInputs:
    """A clip's encoded prompts and guides, the inputs of the transformer.

    prompts, negative: (1, tokens, channels) each, without padding. guides: (1, channels, frames,
    height, width) each, at the first stage's size. context_audio: the sound of the context of a
    clip that is extended, (1, tokens, channels).
    """

    prompts: tuple[Array, ...]
    negative: Array | None = None
    guides: tuple[Array, ...] = ()
    context_audio: Array | None = None

    def to_tensors(self) -> Tensors:
        """Return the content of embeddings.safetensors."""
        first, *others = self.prompts
        tensors = {"prompt": first}
        if self.negative is not None:
            tensors["negative"] = self.negative
        if self.context_audio is not None:
            tensors["context_audio"] = self.context_audio
        tensors |= {f"then_{number}": prompt for number, prompt in enumerate(others, start=1)}
        return tensors | _guides_to_tensors(self.guides)

    @classmethod
    def from_tensors(cls, tensors: Tensors) -> "EncodedInputs":
        """Return the inverse of `to_tensors`."""
        prompts = (tensors["prompt"], *_collect_numbered(tensors, "then_", 1))
        guides, audio = _guides_from_tensors(tensors), tensors.get("context_audio")
        return cls(prompts, tensors.get("negative"), guides, audio)


@dataclass(frozen=True, eq=False)
class UpsampledInputs:
    """What a second stage begins with, at its size: latents and guides."""

    latents: Latents
    guides: tuple[Array, ...] = ()

    def to_tensors(self) -> Tensors:
        """The content of upsampled.safetensors."""
        return latents_to_tensors(self.latents) | _guides_to_tensors(self.guides)

    @classmethod
    def from_tensors(cls, tensors: Tensors) -> "UpsampledInputs":
        """The inverse of `to_tensors`."""
        return cls(latents_from_tensors(tensors), _guides_from_tensors(tensors))


def _guides_to_tensors(guides: Sequence[Array]) -> Tensors:
    return {f"guide_{number}": guide for number, guide in enumerate(guides)}


def _guides_from_tensors(tensors: Tensors) -> tuple[Array, ...]:
    return _collect_numbered(tensors, "guide_", 0)


def _collect_numbered(tensors: Tensors, prefix: str, first: int) -> tuple[Array, ...]:
    """Return the tensors named prefix + first, first + 1, ... as far as they go."""
    names = (f"{prefix}{number}" for number in count(first))
    return tuple(tensors[name] for name in takewhile(tensors.__contains__, names))


@dataclass(eq=False)
class ArtifactStore:
    """Results of one clip's stages by name. folder: None keeps them in memory only.

    confirm: raises if the folder belongs to another attempt now.
    """

    folder: Path | None = None
    confirm: Callable[[], None] = lambda: None
    results: dict[str, Tensors] = field(default_factory=dict)

    def path(self, name: str) -> Path | None:
        """Return the path of a file in the folder, if there is one."""
        return self.folder / name if self.folder else None

    def load_result(self, name: str, engine: Engine) -> Tensors | None:
        """Return a stage's result in arrays of the engine; None if the stage has to run."""
        result = self.results.get(name)
        if result is None:
            result = self.load(name, engine)
        if result is not None:
            self.results[name] = engine.to_device(result)
        return self.results.get(name)

    def save_result(self, name: str, tensors: Tensors) -> None:
        """Save a stage's result. Raises what `save` raises."""
        self.save(name, tensors)
        self.results[name] = tensors

    def load(self, name: str, engine: Engine) -> Tensors | None:
        """Return tensors of the folder, if they can be read."""
        file = self.path(f"{name}.safetensors")
        return tensor_files.load(file, engine.placement) if file else None

    def save(self, name: str, tensors: Tensors) -> None:
        """Write tensors into the folder, if there is one. Raises DiskFull, OutputUnwritable."""
        file = self.path(f"{name}.safetensors")
        if not file:
            return
        try:
            tensor_files.save(file, tensors, self.confirm)
        except OSError as error:
            raise to_output_error(error, file) from error

    def clear(self, keep: Collection[Path] = ()) -> None:
        """Delete every result, so that all stages run again. keep: .safetensors files of others."""
        self.confirm()
        self.results.clear()
        for file in self.folder.glob("*.safetensors") if self.folder else ():
            if file not in keep:
                file.unlink()
