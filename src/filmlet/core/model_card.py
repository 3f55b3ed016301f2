"""One row of the catalogue: a checkpoint and the recipe that it is run with, as data."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Generic, Literal, TypeAlias, TypeVar

from filmlet.core.schedules import FixedSigmas, LinearQuadraticSigmas, Schedule
from filmlet.core.shape import ShapeConstraints

Location = TypeVar("Location")

POCKET_REVISION = "4"  # of the checkpoint in the package


class ModelFamily(StrEnum):
    """The architectures that are run, by the names of diffusers' modules."""

    LTX_VIDEO = "ltx-video"  # LTXVideoTransformer3DModel, 0.9.x: picture alone
    LTX2 = "ltx-2"  # LTX2VideoTransformer3DModel, 2.0 to 2.5: picture and sound


class GuideSupport(StrEnum):
    """The guides that a model was trained with."""

    FIRST_FRAME = "first_frame"  # one picture, with which the clip begins
    ANY_FRAME = "any_frame"  # pictures and videos, anywhere


@dataclass(frozen=True)
class ComponentSource:
    """Source of a component: a folder, or a file, of a repository or of this machine.

    repo: its name at the Hub, else `root` is a folder here. path: inside of it. revision: a commit,
    or a branch's name. size_bytes: about how many, 0 where nobody knows.
    """

    path: str
    repo: str = ""
    revision: str = ""
    root: Path | None = None
    size_bytes: int = 0


@dataclass(frozen=True)
class Components(Generic[Location]):
    """The components of a checkpoint, each a ComponentSource, or a Path once it is here.

    A place is a folder in diffusers' layout, or one .safetensors file in Lightricks' own names
    that may hold several of them. preview: latents to colours, filmlet's own. connectors: of LTX-2,
    between its text encoder and its transformer. audio_vae, vocoder: of models that make sound.
    distilled_lora: a LoRA file that makes the transformer a distilled one, in the stages that
    `ModelCard.distilled_lora_strengths` says.
    """

    transformer: Location
    vae: Location
    text_encoder: Location
    tokenizer: Location
    upsampler: Location | None = None
    preview: Location | None = None
    connectors: Location | None = None
    audio_vae: Location | None = None
    vocoder: Location | None = None
    distilled_lora: Location | None = None

    @property
    def family(self) -> ModelFamily:
        """Of the architecture: only LTX-2 has connectors."""
        return ModelFamily.LTX_VIDEO if self.connectors is None else ModelFamily.LTX2

    def present(self) -> Iterator[tuple[str, Location]]:
        """Yield names and places of those that the checkpoint has."""
        for component in fields(self):
            location = getattr(self, component.name)
            if location is not None:
                yield component.name, location


ComponentSources: TypeAlias = Components[ComponentSource]
ComponentFiles: TypeAlias = Components[Path]


@dataclass(frozen=True)
class GuidanceScales:
    """How far the clean estimate of one modality is moved away from weaker ones.

    prompt: from that of the negative prompt (CFG), 1 is not at all. perturbation: from that of a
    model whose self-attention passes its values on in some blocks (STG), 0 is not at all. modality:
    from that of this modality alone, 1 is not at all. rescale: how much of the estimate's own
    deviation it gets back, 0 to 1.
    """

    prompt: float = 1.0
    perturbation: float = 0.0
    modality: float = 1.0
    rescale: float = 0.0


@dataclass(frozen=True)
class MultimodalGuidance:
    """The guidance of a full model of picture and sound. perturbed_blocks: of its transformer."""

    video: GuidanceScales
    audio: GuidanceScales
    perturbed_blocks: tuple[int, ...] = ()


@dataclass(frozen=True)
class ModelCard:
    """One model as data: its files, its schedule, and the values it is run with.

    parameters: how many values each component has, None where only the files tell.
    stored_bytes: of one of the transformer's values in its file.
    guidance_scale: classifier-free guidance scale it is run with, 1 where that is trained in.
    guidance_rescale: how much of the prompt's own spread the guided values get back.
    stochastic_sampling: noise is drawn anew before each call.
    refine_schedule: levels of a second, larger stage. is_refine_guided: whether that has the
    guidance of the first.
    distilled_lora_strengths: of `sources.distilled_lora`, in the first and in the second stage.
    tone_map_compression_ratio: how far large latents are pulled in before decoding.
    max_prompt_tokens: a prompt is padded or cut to so many (`models.tokenizer.tokenize`); what is
    cut is a `Change`.
    decode_timestep, decode_noise_scale: what a timestep-conditioned VAE decoder is given.
    guide_support: the guides it takes; image_cond_noise_scale: noise that is added to exact ones,
    which keeps clips from standing still.
    context_frames: frames of a clip that it is given to extend it, 8k+1.
    is_condition_pipeline: made for LTXConditionPipeline (0.9.5 on), which counts a latent's time
    from the first of its frames and hides the padding from the text encoder; LTXPipeline does
    neither.
    multimodal_guidance: of a full model of picture and sound; a request's guidance takes the place
    of its picture's CFG.
    ancestral_sampling: each step of the first stage goes below its next level and comes back to it
    by new noise.
    image_crf: pictures that are given are compressed as one frame of H.264 by this factor before
    they are encoded, for the model was trained on frames of videos; None: of models that take them
    as they are.
    has_language_model: whether its text encoder follows instructions, and can write prompts.
    version: of an LTX-2 model, "2.0", "2.3" or "2.5", which its recipe depends on.
    licence_terms: what whoever uses the model or passes it on has to do, in a sentence or two,
    where the licence's name does not say it.
    """

    name: str
    summary: str
    licence: str
    schedule: Schedule
    sources: ComponentSources
    grid: ShapeConstraints = field(default_factory=ShapeConstraints)
    parameters: Components[float] | None = None
    stored_bytes: int = 2
    distilled: bool = True
    guidance_scale: float = 1.0
    guidance_rescale: float = 0.0
    stochastic_sampling: bool = False
    refine_schedule: FixedSigmas | LinearQuadraticSigmas | None = None
    is_refine_guided: bool = True
    distilled_lora_strengths: tuple[float, float] = (0.0, 1.0)
    tone_map_compression_ratio: float = 0.0
    max_prompt_tokens: int = 256
    max_steps: int = 100
    decode_timestep: float = 0.0
    decode_noise_scale: float = 0.0
    guide_support: GuideSupport = GuideSupport.FIRST_FRAME
    image_cond_noise_scale: float = 0.0
    context_frames: int = 1
    is_condition_pipeline: bool = False
    family: ModelFamily = ModelFamily.LTX_VIDEO
    multimodal_guidance: MultimodalGuidance | None = None
    ancestral_sampling: bool = False
    image_crf: int | None = None
    has_language_model: bool = False
    version: str = ""
    licence_terms: str = ""

    @property
    def terms(self) -> str:
        """Licence and duties, of a model whose duties go with its clips; else empty."""
        return f"{self.licence}. {self.licence_terms}" if self.licence_terms else ""

    @property
    def makes_audio(self) -> bool:
        """Whether its clips have sound."""
        return self.family is ModelFamily.LTX2

    @property
    def guide_step(self) -> int:
        """Guides begin at multiples of so many frames."""
        return 1 if self.family is ModelFamily.LTX2 else self.grid.temporal_compression

    @property
    def modalities(self) -> tuple[Literal["video", "audio"], ...]:
        """What its clips consist of."""
        return ("video", "audio") if self.makes_audio else ("video",)

    @property
    def revision(self) -> str:
        """Revision of the transformer: short where it is a commit."""
        name = self.sources.transformer.revision
        return name[:12] if len(name) == 40 else name

    @property
    def size_bytes(self) -> int:
        """Bytes of all its files; a file that holds two components counts once."""
        return sum(source.size_bytes for source in {source for _, source in self.sources.present()})
