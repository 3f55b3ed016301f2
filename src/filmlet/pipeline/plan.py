"""Plan: all that can be decided about a clip without a tensor; quick, fit for a web process."""

from dataclasses import dataclass, replace
from pathlib import Path

from filmlet.core.events import Stage
from filmlet.core.lora import Lora, LoraAdapter
from filmlet.core.memory import MemoryEstimate, estimate_memory, memory_to_merge
from filmlet.core.model_card import ComponentFiles, Components, ModelCard
from filmlet.core.request import ClipRequest
from filmlet.core.shape import Change, VideoShape, resolve_shape
from filmlet.core.windows import Window, split_into_windows, window_of_frame
from filmlet.errors import InvalidRequest, NotSupported, UnsuitedGuidance
from filmlet.models import count_parameters, get_card, inspect_loras, local_files
from filmlet.pipeline.media_inputs import (
    MediaInput,
    extend_shape,
    resolve_guides,
    resolve_source_clip,
    with_source_size,
)


@dataclass(frozen=True)
class Plan:
    """A request that a model can meet, and how. files: the model's, None until fetched.

    shape: of the clip. refine_sigmas: empty where one stage is all there is. guides: with the
    files that are shown; source_clip: that is extended, its last frames come before the new ones.
    loras: as requested, None for those that must be fetched. windows: that the model makes it in.
    """

    request: ClipRequest
    card: ModelCard
    files: ComponentFiles | None
    shape: VideoShape
    sigmas: tuple[float, ...]
    refine_sigmas: tuple[float, ...]
    guidance: float
    changes: tuple[Change, ...]
    guides: tuple[MediaInput, ...] = ()
    source_clip: MediaInput | None = None
    loras: tuple[LoraAdapter | None, ...] = ()
    windows: tuple[Window, ...] = ()

    @property
    def makes_audio(self) -> bool:
        """Whether the model makes sound for the clip."""
        return self.card.makes_audio and self.request.audio

    @property
    def keeps_audio(self) -> bool:
        """Whether the sound of the clip that is extended is kept."""
        return bool(self.source_clip and self.source_clip.info.has_audio and self.request.audio)

    @property
    def has_audio(self) -> bool:
        """Whether the clip has sound."""
        return self.makes_audio or self.keeps_audio

    @property
    def predictions_per_step(self) -> int:
        """How often the transformer runs in a step."""
        count, extra = (2 if self.guidance > 1 else 1), self.card.multimodal_guidance
        if extra:
            count += bool(extra.video.perturbation or extra.audio.perturbation)
            count += self.makes_audio and (extra.video.modality != 1 or extra.audio.modality != 1)
        return count

    @property
    def predictions_per_refine_step(self) -> int:
        """How often it runs in a step of the second stage."""
        return self.predictions_per_step if self.card.is_refine_guided else 1

    @property
    def distilled_lora_strengths(self) -> dict[Stage, float]:
        """Of the model's own LoRA, by the stages of this clip that are computed with it."""
        if not self.card.sources.distilled_lora:
            return {}
        stages = (Stage.DENOISE, Stage.REFINE) if self.refine_sigmas else (Stage.DENOISE,)
        strengths = zip(stages, self.card.distilled_lora_strengths, strict=False)
        return {stage: strength for stage, strength in strengths if strength}

    @property
    def has_loras(self) -> bool:
        """Whether LoRAs are merged into the transformer, the request's or the model's own."""
        return bool(self.request.loras or self.distilled_lora_strengths)

    @property
    def media_inputs(self) -> tuple[MediaInput, ...]:
        """Every file that is needed."""
        return (*self.guides, self.source_clip) if self.source_clip else self.guides

    @property
    def found_loras(self) -> tuple[LoraAdapter, ...]:
        """Those whose files are here."""
        return tuple(adapter for adapter in self.loras if adapter)

    @property
    def missing_loras(self) -> tuple[Lora, ...]:
        """Those that must be fetched."""
        pairs = zip(self.request.loras, self.loras, strict=True)
        return tuple(lora for lora, adapter in pairs if adapter is None)

    @property
    def parameters(self) -> Components[float]:
        """Number of values of each component of the model."""
        if self.card.parameters:
            return self.card.parameters
        assert self.files  # only a catalogue's model can be elsewhere
        return count_parameters(self.files)

    def memory_estimates(self, value_bytes: int) -> tuple[MemoryEstimate, ...]:
        """Memory that each way of holding the model takes, in a dtype of so many bytes."""
        card, time = self.card, self.card.grid.temporal_compression
        call = replace(
            self.shape, generated_frames=(self.max_latent_frames_per_call - 1) * time + 1
        )
        estimates = estimate_memory(
            self.parameters,
            call,
            card.grid,
            value_bytes,
            card.stored_bytes,
            has_guides=bool(self.media_inputs),
        )
        merging = memory_to_merge(self.parameters) if self.has_loras else 0
        return tuple(replace(need, bytes=need.bytes + merging) for need in estimates)

    @property
    def max_latent_frames_per_call(self) -> int:
        """Latent frames of the largest model call; guides add some to their window's."""
        time = self.card.grid.temporal_compression
        return max(len(w.latents(time)) + self._keyframe_latents(w) for w in self.windows)

    def _keyframe_latents(self, window: Window) -> int:
        guides = [
            g for g in self.guides if g.frame and window_of_frame(self.windows, g.frame) is window
        ]
        # Of a video that does not begin the clip, the first two; a picture is one.
        return sum(min(2, self.card.grid.latent_frames(g.frames)) for g in guides)


def make_plan(
    request: ClipRequest, folder: Path | None = None, card: ModelCard | None = None
) -> Plan:
    """Fit the request to its model; the files that it names lie in `folder`, if it is given.

    card: used instead of the one that the request names. Raises InvalidRequest, UnknownModel,
    CheckpointNotFound, CheckpointCorrupt.
    """
    original_request, card = request, card or get_card(request.model)
    changes = _enhancement_changes(request)
    clip = resolve_source_clip(request, card, folder)
    if request.extend_backward and not clip:
        raise InvalidRequest(
            "extend_backward says how a clip is extended; name one.", param="extend"
        )
    if clip:
        request = with_source_size(request, clip, card, changes)
    shape, cuts = resolve_shape(request, card.grid, clip.frames if clip else 0)
    changes += cuts
    if clip:
        shape, clip = extend_shape(request, shape, clip)
    refine_sigmas = card.refine_schedule.sigmas if card.refine_schedule else ()
    if request.draft:
        shape, refine_sigmas = _draft_shape(card, shape, changes), ()
    windows = _plan_windows(request, card, shape, changes)
    guides = resolve_guides(request, card, shape, folder, changes)
    sigmas = _resolve_sigmas(request, card, changes)
    guidance = _resolve_guidance(request, card)
    if request.guidance is not None and refine_sigmas and not card.is_refine_guided:
        reason = f"{card.name} refines with its distilled LoRA, which needs no guidance"
        changes.append(Change("refine_guidance", guidance, 1.0, reason))
    if request.negative_prompt and guidance <= 1:
        reason = f"{card.name} runs without guidance, which a negative prompt needs"
        changes.append(Change("negative_prompt", request.negative_prompt, "", reason))
    return Plan(
        request=original_request,
        card=card,
        files=local_files(card),
        shape=shape,
        sigmas=sigmas,
        refine_sigmas=refine_sigmas,
        guidance=guidance,
        changes=tuple(changes),
        guides=guides,
        source_clip=clip,
        loras=inspect_loras(request.loras, folder),
        windows=windows,
    )


def _enhancement_changes(request: ClipRequest) -> list[Change]:
    fields = ("prompt", *(f"then_{i + 1}" for i in range(len(request.extra_prompts))))
    return [
        Change(field, prompt.requested, prompt.text, f"enhanced by {prompt.source}")
        for field, prompt in zip(fields, request.enhanced_prompts, strict=False)
        if prompt.text != prompt.requested
    ]


def _draft_shape(card: ModelCard, shape: VideoShape, changes: list[Change]) -> VideoShape:
    if card.refine_schedule is None:
        raise NotSupported(f"{card.name} has one stage: it makes no drafts.", param="draft")
    half = shape.half_size()
    requested_size, draft_size = f"{shape.width}x{shape.height}", f"{half.width}x{half.height}"
    changes.append(
        Change("size", requested_size, draft_size, "a draft is the first stage, at half the size")
    )
    return half


def _plan_windows(
    request: ClipRequest, card: ModelCard, shape: VideoShape, changes: list[Change]
) -> tuple[Window, ...]:
    grid = card.grid
    if request.extra_prompts and not grid.overlap_frames:
        raise NotSupported(f"{card.name} takes one prompt a clip.", param="extra_prompts")
    windows = split_into_windows(shape, grid, len(request.prompts))
    if request.extend_backward and len(windows) > 1:
        max_frames = grid.max_frames - shape.context_frames
        raise NotSupported(
            "What comes before a clip is made at once, for one prompt: "
            f"at most {max_frames} frames.",
            param="frames" if not request.extra_prompts else "extra_prompts",
        )
    if len(windows) > 1:
        why = f"the model makes at most {grid.max_frames} frames at once"
        if shape.generated_frames <= grid.max_frames:
            why = "each prompt has its own part of the clip"
        each = f"windows of at most {grid.window_frames} frames that share {grid.overlap_frames}"
        reason = f"{why}; made in {len(windows)} {each}"
        changes.append(Change("windows", 1, len(windows), reason))
    return windows


def _resolve_sigmas(
    request: ClipRequest, card: ModelCard, changes: list[Change]
) -> tuple[float, ...]:
    steps = card.schedule.steps if request.steps is None else request.steps
    if steps > card.max_steps:
        raise InvalidRequest(
            f"steps must be between 1 and {card.max_steps}, got {steps}.", param="steps"
        )
    sigmas = card.schedule.sigmas_for(steps)
    if card.distilled and steps != card.schedule.steps:
        reason = f"{card.name} is distilled for {card.schedule.steps} steps; expect a weaker clip"
        changes.append(Change("sigmas", None, sigmas, reason))
    return sigmas


def _resolve_guidance(request: ClipRequest, card: ModelCard) -> float:
    if request.guidance is None:
        return card.guidance_scale
    if request.guidance < 1:
        raise InvalidRequest(
            f"guidance must be 1 (none) or more, got {request.guidance:g}.", param="guidance"
        )
    if card.distilled and request.guidance > 1 and not request.force_guidance:
        raise UnsuitedGuidance(
            f"{card.name} is distilled to run without guidance, and guidance {request.guidance:g} "
            "would spoil its clips."
        )
    return request.guidance
