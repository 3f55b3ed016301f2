"""A clip, ready to be made: its model is here, its prompts are tokenized, its engine is chosen."""

from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import chain

from filmlet.core.effective import EffectiveSettings
from filmlet.core.events import Event, Progress, Stage, with_timing
from filmlet.core.lora import LoraAdapter, StageLora
from filmlet.core.model_card import ComponentFiles, ModelCard, ModelFamily
from filmlet.core.shape import Change
from filmlet.engine.base import KILOBYTE, DenoiseParams, to_kilobytes
from filmlet.engine.configs import check_loras, check_vocabulary
from filmlet.engine.placement import Placement
from filmlet.errors import CheckpointCorrupt, InvalidRequest, ModelNotFetched
from filmlet.models import (
    download_model,
    fetch_lora,
    inspect_lora,
    inspect_model_lora,
    local_files,
)
from filmlet.models.tokenizer import TokenizedPrompt, get_tokenizer, tokenize
from filmlet.pipeline.engine_cache import EngineCache
from filmlet.pipeline.engine_choice import EngineChoice, choose_engine
from filmlet.pipeline.media_inputs import MediaInput
from filmlet.pipeline.plan import Plan
from filmlet.pipeline.requirements import check_requirements
from filmlet.settings import Settings


@dataclass(frozen=True, eq=False)
class TokenizedPrompts:
    """The prompts of a clip, one after the other in time; `negative` only under guidance."""

    prompts: tuple[TokenizedPrompt, ...]
    negative: TokenizedPrompt | None = None

    @property
    def all(self) -> tuple[TokenizedPrompt, ...]:
        return (*self.prompts, self.negative) if self.negative else self.prompts


@dataclass(frozen=True, eq=False)
class PreparedClip:
    """A clip, ready to be made. To make it in another way, `replace` placement and effective."""

    plan: Plan
    files: ComponentFiles
    loras: tuple[LoraAdapter, ...]
    prompts: TokenizedPrompts
    placement: Placement
    effective: EffectiveSettings
    stage_loras: Mapping[Stage, LoraAdapter] = field(default_factory=dict)  # of the model itself

    @property
    def denoise_params(self) -> DenoiseParams:
        """The clip's shape and its first stage's sigmas."""
        done = self.effective
        loras, makes_audio = self._loras_of(Stage.DENOISE), self.plan.makes_audio
        return DenoiseParams(done.shape, done.sigmas, done.guidance, done.seed, loras, makes_audio)

    @property
    def first_stage_params(self) -> DenoiseParams:
        """Its first stage, which is all of it where there is no second."""
        params = self.denoise_params
        return params.first_stage() if self.effective.refine_sigmas else params

    @property
    def refine_params(self) -> DenoiseParams:
        """Its second stage."""
        params, is_guided = self.denoise_params, self.plan.card.is_refine_guided
        return replace(
            params,
            sigmas=self.effective.refine_sigmas,
            guidance=params.guidance if is_guided else 1.0,
            loras=self._loras_of(Stage.REFINE),
            is_guided=is_guided,
        )

    def _loras_of(self, stage: Stage) -> tuple[LoraAdapter, ...]:
        """Return those of a stage: the request's, then the model's own."""
        own = self.stage_loras.get(stage)
        return (*self.loras, own) if own else self.loras

    @property
    def guide_inputs(self) -> tuple[MediaInput, ...]:
        """Guides of the model; the end of a clip that is extended is the first of them."""
        clip = self.plan.source_clip
        return (clip, *self.plan.guides) if clip else self.plan.guides

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Those of this clip, in order."""
        absent = {Stage.FETCH}
        if not self.effective.refine_sigmas:
            absent |= {Stage.UPSAMPLE, Stage.REFINE}
        if not self.effective.audio:
            absent.add(Stage.DECODE_AUDIO)
        return tuple(stage for stage in Stage if stage not in absent)


def prepare(
    plan: Plan,
    settings: Settings,
    dtype: str | None = None,
    engine: str | None = None,
    engines: EngineCache | None = None,
) -> Generator[Event, None, PreparedClip]:
    """Fetch what is missing, tokenize the prompts and choose the engine; no weights are loaded.

    dtype, engine: of an earlier attempt, so that its bytes come again; None chooses. engines: that
    are in memory. Raises what `download_model` raises.
    """
    plan = yield from _fetch_missing(plan, settings)
    assert plan.files
    if used := [adapter for adapter in plan.found_loras if adapter.strength]:
        check_loras(plan.files, used)
    stage_loras = _inspect_stage_loras(plan)
    prompts = _tokenize_prompts(plan)
    choice = choose_engine(plan, settings, engines or EngineCache(), dtype, engine)
    effective = replace(
        _effective_settings(plan, prompts, choice),
        stage_loras=tuple(
            StageLora(**asdict(adapter.to_applied()), stage=stage.value)
            for stage, adapter in stage_loras.items()
        ),
    )
    return PreparedClip(
        plan, plan.files, plan.found_loras, prompts, choice.placement, effective, stage_loras
    )


def _inspect_stage_loras(plan: Plan) -> dict[Stage, LoraAdapter]:
    """Return the model's own LoRA at the strength of each stage. Raises CheckpointCorrupt."""
    strengths = plan.distilled_lora_strengths
    if not strengths:
        return {}
    source, files = plan.card.sources.distilled_lora, plan.files
    assert source
    assert files
    assert files.distilled_lora
    path = files.distilled_lora
    adapter = inspect_model_lora(path, source)
    try:
        check_loras(files, [adapter])
    except InvalidRequest as error:
        raise CheckpointCorrupt(f"{path} is not the LoRA of this model: {error}") from error
    return {stage: replace(adapter, strength=strength) for stage, strength in strengths.items()}


def _fetch_missing(plan: Plan, settings: Settings) -> Generator[Event, None, Plan]:
    """Return the plan with the model's files and its LoRAs, all of them here."""
    if plan.files and not plan.missing_loras:
        return plan
    if not settings.allow_download:
        raise ModelNotFetched(
            f"Weights of {plan.card.name} or of its LoRAs are not on this machine, which fetches "
            "none by itself.",
            model=plan.request.model,
        )
    check_requirements(plan, settings)
    yield from with_timing(Stage.FETCH, _download(plan))
    files = local_files(plan.card)
    if files is None:
        raise CheckpointCorrupt(f"{plan.card.name} was fetched and is not whole; try again.")
    pairs = zip(plan.request.loras, plan.loras, strict=True)
    return replace(
        plan, files=files, loras=tuple(adapter or inspect_lora(lora) for lora, adapter in pairs)
    )


def _download(plan: Plan) -> Generator[Event]:
    for progress in chain(download_model(plan.card), *map(fetch_lora, plan.missing_loras)):
        done = progress.all_done // KILOBYTE
        yield Progress(Stage.FETCH, done, to_kilobytes(progress.all_size))


def _tokenize_prompts(plan: Plan) -> TokenizedPrompts:
    """Raises CheckpointCorrupt where the text encoder does not know a token."""
    assert plan.files
    tokenizer, card = get_tokenizer(plan.files.tokenizer), plan.card

    def read(prompt: str) -> TokenizedPrompt:
        text = prompt.strip() if card.family is ModelFamily.LTX2 else prompt
        return tokenize(tokenizer, text, card.max_prompt_tokens)

    prompts = tuple(map(read, plan.request.prompts))
    negative = read(plan.request.negative_prompt) if plan.guidance > 1 else None
    tokenized = TokenizedPrompts(prompts, negative)
    check_vocabulary(plan.files, max(int(prompt.ids.max()) for prompt in tokenized.all))
    return tokenized


def _effective_settings(
    plan: Plan, tokenized: TokenizedPrompts, choice: EngineChoice
) -> EffectiveSettings:
    request, placement = plan.request, choice.placement
    first, *extra_prompts = tokenized.prompts
    unknown_words = (word for prompt in tokenized.prompts for word in prompt.unknown_words)
    return EffectiveSettings(
        prompt=first.text,
        prompt_tokens=first.token_count,
        negative_prompt=tokenized.negative.text if tokenized.negative else "",
        unknown_words=tuple(dict.fromkeys(unknown_words)),
        model=plan.card.name,
        revision=plan.card.revision,
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
        loras=tuple(adapter.to_applied() for adapter in plan.found_loras),
        changes=(*plan.changes, *_prompts_changes(plan, tokenized), *choice.changes),
        extra_prompts=tuple(prompt.text for prompt in extra_prompts),
        windows=plan.windows,
        engine=placement.backend.value,
        optimizations=tuple(sorted(placement.optimizations)),
        audio=plan.has_audio,
        model_terms=plan.card.terms,
    )


def _prompts_changes(plan: Plan, tokenized: TokenizedPrompts) -> Iterator[Change]:
    names = ("prompt", *(f"then_{i}" for i in range(1, len(tokenized.prompts))))
    for name, prompt, text in zip(names, tokenized.prompts, plan.request.prompts, strict=True):
        yield from _prompt_changes(name, prompt, text, plan.card)
    if tokenized.negative:
        text = plan.request.negative_prompt
        yield from _prompt_changes("negative_prompt", tokenized.negative, text, plan.card)


def _prompt_changes(
    field: str, prompt: TokenizedPrompt, text: str, card: ModelCard
) -> Iterator[Change]:
    """Yield what of a prompt reaches the model in other words, or does not reach it."""
    if prompt.emoji:
        pairs = ", ".join(f"{sign} as {words!r}" for sign, words in prompt.emoji.items())
        yield Change(field, text, prompt.text, f"{card.name} reads emoji as words: {pairs}")
    if prompt.truncated_text:
        reason = (
            f"{card.name} reads {card.max_prompt_tokens} tokens; "
            f"this was cut off: {prompt.truncated_text!r}"
        )
        yield Change(field, text, prompt.text, reason)
    if prompt.unknown_words:
        unknown_words = ", ".join(repr(word) for word in prompt.unknown_words)
        reason = f"{card.name} does not know: {unknown_words}"
        yield Change(f"{field}_words", list(prompt.unknown_words), [], reason)
