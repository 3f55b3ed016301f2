"""One clip, ready to be made: its model is here, its prompt is read, its place is chosen."""

import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from pathlib import Path

from filmlet.core.effective import EffectiveSettings
from filmlet.core.events import Event, Progress, Stage, with_timing
from filmlet.core.lora import LoraAdapter
from filmlet.core.model_card import ComponentFiles, ModelCard
from filmlet.core.shape import Change
from filmlet.engine import selection
from filmlet.engine.arrays import Tensors
from filmlet.engine.base import KILOBYTE, DenoiseParams, to_kilobytes
from filmlet.engine.configs import check_loras, check_vocabulary
from filmlet.engine.placement import (
    Backend,
    Placement,
)
from filmlet.engine.tokenizer import TokenizedPrompt, Tokenizer, load_tokenizer, tokenize
from filmlet.errors import CheckpointCorrupt, CheckpointNotFound
from filmlet.models import download_model, fetch_lora, inspect_lora, local_files
from filmlet.pipeline.artifacts import ArtifactStore
from filmlet.pipeline.engine_choice import choose_placement, requested_optimizations
from filmlet.pipeline.media_inputs import MediaInput
from filmlet.pipeline.plan import Plan
from filmlet.settings import Settings

CHECKPOINT_INTERVAL_S = 5.0  # a crash while denoising costs one step, or this much


@dataclass(eq=False)
class GenerationState:
    """One clip, ready to be made. `effective` changes only if it must be run in another way.

    results: what the stages have come to, by name; decoded_frames: frames that the decoder has
    given. folder:
    where the stages keep what they make; what is there is not made again. None keeps
    nothing. cancelled: set from another thread, it stops the work inside a model call.
    """

    plan: Plan
    files: ComponentFiles
    loras: tuple[LoraAdapter, ...]
    placement: Placement
    prompt: TokenizedPrompt
    negative: TokenizedPrompt | None
    effective: EffectiveSettings
    results: dict[str, Tensors] = field(default_factory=dict)
    decoded_frames: int = 0
    folder: Path | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    extra_prompts: tuple[TokenizedPrompt, ...] = ()  # of further prompts
    accepts_yuv: bool = False  # frames go into a video, whose encoder takes Planes
    confirm: Callable[[], None] = lambda: None  # raises if the folder is another attempt's now

    def artifact_path(self, name: str) -> Path | None:
        """Where a result of this name is kept, if at all."""
        return self.folder / name if self.folder else None

    @property
    def artifacts(self) -> ArtifactStore:
        """Where stages put what they make."""
        return ArtifactStore(self.folder, self.placement, CHECKPOINT_INTERVAL_S, self.confirm)

    @property
    def denoise_params(self) -> DenoiseParams:
        """The clip's shape and its first stage's levels."""
        done = self.effective
        return DenoiseParams(done.shape, done.sigmas, done.guidance, done.seed, self.loras)

    @property
    def first_stage_params(self) -> DenoiseParams:
        """Its first stage, which is all of it where there is no second."""
        return (
            self.denoise_params.first_stage()
            if self.effective.refine_sigmas
            else self.denoise_params
        )

    @property
    def guide_inputs(self) -> tuple[MediaInput, ...]:
        """What guides the model; the end of a clip that is extended is the first of it."""
        clip = self.plan.source_clip
        return (clip, *self.plan.guides) if clip else self.plan.guides

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Those of this clip, in order."""
        second = () if self.effective.refine_sigmas else (Stage.UPSAMPLE, Stage.REFINE)
        return tuple(s for s in Stage if s not in (Stage.FETCH, *second))


def prepare(
    plan: Plan, settings: Settings, dtype: str | None = None, engine: str | None = None
) -> Generator[Event, None, GenerationState]:
    """Fetch what is missing of the model, read the prompt and choose where to compute.

    Nothing heavy is loaded yet. dtype, engine: of an earlier attempt, so that its bytes come again;
    None chooses. Raises what `download_model` of models raises.
    """
    card, request = plan.card, plan.request
    files, loras = plan.files, tuple(adapter for adapter in plan.loras if adapter)
    if files is None or None in plan.loras:
        files, loras = yield from with_timing(Stage.FETCH, _download_missing(plan, settings))
    if used := [adapter for adapter in loras if adapter.strength]:
        check_loras(files, used)
    tokenizer = _load_tokenizer(files.tokenizer)
    prompt = tokenize(tokenizer, request.prompt, card.max_tokens)
    negative = None
    if plan.guidance > 1:
        negative = tokenize(tokenizer, request.negative_prompt, card.max_tokens)
    extra_prompts = tuple(
        tokenize(tokenizer, text, card.max_tokens) for text in request.extra_prompts
    )
    readings = (prompt, *extra_prompts, *([negative] if negative else []))
    check_vocabulary(files, max(int(reading.ids.max()) for reading in readings))
    changes = list(_prompt_changes("prompt", prompt, request.prompt, card))
    for i, (reading, text) in enumerate(
        zip(extra_prompts, request.extra_prompts, strict=True), start=1
    ):
        changes += _prompt_changes(f"then_{i}", reading, text, card)
    if negative:
        changes += _prompt_changes("negative_prompt", negative, request.negative_prompt, card)
    placement, fallback_reason = choose_placement(plan, files, loras, settings, (dtype, engine))
    if fallback_reason and (engine or settings.engine) == Backend.OPENVINO:
        changes.append(Change("engine", Backend.OPENVINO, placement.backend, fallback_reason))
    for lever in requested_optimizations(settings):
        if reason := selection.why_not_optimization(lever, placement, loras):
            changes.append(Change(lever.value, 1, 0, reason))
    effective = EffectiveSettings(
        prompt=prompt.text,
        prompt_tokens=prompt.token_count,
        negative_prompt=negative.text if negative else "",
        unknown_words=tuple(
            dict.fromkeys(
                word for tokenized in (prompt, *extra_prompts) for word in tokenized.unknown_words
            )
        ),
        model=card.name,
        revision=card.revision,
        seed=EffectiveSettings.random_seed() if request.seed is None else request.seed,
        shape=plan.shape,
        sigmas=plan.sigmas,
        refine_sigmas=plan.refine_sigmas,
        guidance=plan.guidance,
        device=placement.device,
        dtype=placement.dtype,
        offload=placement.offload.value,
        guides=tuple(guide.as_guide(plan.shape) for guide in plan.guides),
        extend=plan.source_clip.info.name if plan.source_clip else None,
        loras=tuple(adapter.to_applied() for adapter in loras),
        changes=(*plan.changes, *changes),
        extra_prompts=tuple(reading.text for reading in extra_prompts),
        windows=plan.windows,
        engine=placement.backend.value,
        optimizations=tuple(sorted(placement.optimizations)),
    )
    return GenerationState(
        plan, files, loras, placement, prompt, negative, effective, extra_prompts=extra_prompts
    )


def _download_missing(
    plan: Plan, settings: Settings
) -> Generator[Event, None, tuple[ComponentFiles, tuple[LoraAdapter, ...]]]:
    """The model's files and its LoRAs, all of them here."""
    card, requested_loras = plan.card, plan.request.loras
    if not settings.allow_download:
        raise CheckpointNotFound(
            f"Weights of {card.name} or of its LoRAs are not on this machine, which fetches none "
            f"by itself: filmlet models pull {card.name}"
        )
    missing = [
        lora for lora, adapter in zip(requested_loras, plan.loras, strict=True) if adapter is None
    ]
    for so_far in chain(download_model(card), *map(fetch_lora, missing)):
        done = so_far.all_done // KILOBYTE
        yield Progress(Stage.FETCH, done, to_kilobytes(so_far.all_size))
    files = local_files(card)
    if files is None:
        raise CheckpointCorrupt(f"{card.name} was fetched and is not whole; try again.")
    pairs = zip(requested_loras, plan.loras, strict=True)
    return files, tuple(adapter or inspect_lora(lora) for lora, adapter in pairs)


@lru_cache(maxsize=4)
def _load_tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


def _prompt_changes(
    field: str, reading: TokenizedPrompt, prompt: str, card: ModelCard
) -> Iterator[Change]:
    """What of a prompt does not reach the model."""
    if reading.truncated_text:
        reason = (
            f"{card.name} reads {card.max_tokens} tokens; "
            f"this was cut off: {reading.truncated_text!r}"
        )
        yield Change(field, prompt, reading.text, reason)
    if reading.unknown_words:
        unknown_words = ", ".join(repr(word) for word in reading.unknown_words)
        reason = f"{card.name} does not know: {unknown_words}"
        yield Change(f"{field}_words", list(reading.unknown_words), [], reason)
