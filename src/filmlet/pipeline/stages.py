"""The stages of one clip: load, encode, denoise, upsample, refine, decode, mux."""

import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from filmlet.core.effective import EffectiveSettings
from filmlet.core.events import (
    Audio,
    Event,
    Frames,
    Progress,
    SettingsChanged,
    Stage,
    StageFinished,
    drain,
    with_timing,
)
from filmlet.core.shape import VideoShape
from filmlet.engine.arrays import Array
from filmlet.engine.base import DenoiseParams, Engine, PromptEmbeds
from filmlet.engine.conditioning import GuideLatents
from filmlet.engine.latents import Latents, latents_from_tensors
from filmlet.engine.placement import release_memory
from filmlet.errors import NonFiniteValues
from filmlet.media import (
    check_output_path,
    metadata_tags,
    open_writer,
    partial_path,
    preferred_pixel_format,
    publish,
)
from filmlet.pipeline import placement_fallback
from filmlet.pipeline.artifacts import (
    RESULT_NAMES,
    ArtifactStore,
    EncodedInputs,
    UpsampledInputs,
    result_file,
)
from filmlet.pipeline.decode import audio_from_tensors, decode_audio_stage, decode_stage
from filmlet.pipeline.denoise import DenoisePass, StageGenerator, run_denoise_pass
from filmlet.pipeline.engine_cache import EngineCache
from filmlet.pipeline.prepare import PreparedClip
from filmlet.pipeline.run_context import RunContext


def generate_clip(
    clip: PreparedClip, context: RunContext, path: Path, force: bool = False
) -> Generator[Event]:
    """Make the clip and write it to `path`."""
    context = replace(context, pixel_format=preferred_pixel_format(path))
    return write_clip(generate_frames(clip, context), clip, context, path, force)


def generate_frames(clip: PreparedClip, context: RunContext) -> Generator[Event]:
    """Make the clip: Progress of each stage, a Preview a step, Frames cut to what was asked.

    Close the generator to stop within one model call. Where memory runs out more of the model is
    offloaded, and what was made stays. A model that leaves the range of its dtype before the first
    frame is run once more in float32. SettingsChanged says so. Raises NonFiniteValues and
    OutOfMemory where nothing helps.
    """
    emitted = 0
    while True:
        try:
            for event in _run_stages(clip, context, emitted):
                if isinstance(event, Frames):
                    emitted += len(event.pixels)
                yield event
            return
        except NonFiniteValues as error:
            clip = placement_fallback.fall_back_to_float32(clip, error, emitted)
            context.artifacts.clear(keep=[adapter.path for adapter in clip.loras])
        except (MemoryError, RuntimeError) as error:
            device = clip.placement.device
            clip = placement_fallback.fall_back_to_more_offload(clip, error)
            context.engines.clear()
            error.__traceback__ = None  # its frames hold tensors
            release_memory(device)
        yield SettingsChanged(clip.effective)


def write_clip(
    events: Generator[Event],
    clip: PreparedClip,
    context: RunContext,
    path: Path,
    force: bool = False,
) -> Generator[Event]:
    """Write the frames among a clip's events to `path`, and yield all events.

    The file grows beside it, or in the job's folder, where a whole one is not made again.
    """
    form, store, effective = check_output_path(path, force), context.artifacts, clip.effective
    growing_path = store.path(result_file(Stage.DECODE, form)) or partial_path(path)
    with closing(events):
        if store.folder and growing_path.exists():
            for stage in clip.stages[1:-1]:
                yield StageFinished(stage, 0.0, reused=True)
        else:
            effective = yield from _encode_to_file(events, effective, store, growing_path, form)
    started = time.perf_counter()
    frames = effective.shape.frames
    yield Progress(Stage.MUX, 0, frames)
    try:
        publish(growing_path, path, metadata_tags(effective), force, store.confirm)
    finally:
        if not store.folder:
            growing_path.unlink(missing_ok=True)
    yield Progress(Stage.MUX, frames, frames)
    yield StageFinished(Stage.MUX, time.perf_counter() - started)


def _encode_to_file(
    events: Generator[Event],
    effective: EffectiveSettings,
    store: ArtifactStore,
    grown: Path,
    form: str,
) -> Generator[Event, None, EffectiveSettings]:
    """Encode into a file that can be played meanwhile; it has its name when it is whole.

    That the stage is finished is said after that: whoever hears it may take the file. Returns the
    settings that the clip was made with.
    """
    first, audio, effective = yield from _run_to_first_frames(events, effective)
    if first is None:
        return effective
    part = partial_path(grown) if store.folder else grown
    finished: StageFinished | None = None
    # What the tags say is certain only now: the model may have been run again in float32.
    with open_writer(part, form, effective.shape, metadata_tags(effective), audio) as movie:
        movie.add(first.pixels)
        yield first
        for event in events:
            match event:
                case Frames():
                    movie.add(event.pixels)
                case SettingsChanged():
                    effective = event.effective
                case StageFinished(Stage.DECODE):
                    finished = event
                    continue
            yield event
    if store.folder:
        _rename(part, grown, store)
    if finished:
        yield finished
    return effective


def _run_to_first_frames(
    events: Generator[Event], effective: EffectiveSettings
) -> Generator[Event, None, tuple[Frames | None, Audio | None, EffectiveSettings]]:
    """Yield the events before the first frames; return these, the sound and the settings."""
    audio = None
    for event in events:
        match event:
            case Frames():
                return event, audio, effective
            case Audio():
                audio = event
            case SettingsChanged():
                effective = event.effective
        yield event
    return None, None, effective


def _rename(part: Path, grown: Path, store: ArtifactStore) -> None:
    """Give a whole file its name. Raises what `store.confirm` does; the file is gone then."""
    try:
        store.confirm()
        part.replace(grown)
    finally:
        part.unlink(missing_ok=True)


def _run_stages(clip: PreparedClip, context: RunContext, emitted: int) -> Generator[Event]:
    """emitted: frames of the clip that an earlier run has given."""
    engine = yield from _run_load_stage(clip, context)
    encoded = yield from _run_encode_stage(clip, context, engine)
    events = _denoise_stage(clip, context, engine, encoded)
    result = yield from run_stage(context, engine, Stage.DENOISE, events)
    if clip.effective.refine_sigmas:
        events = _upsample_stage(clip, engine, latents_from_tensors(result))
        result = yield from run_stage(context, engine, Stage.UPSAMPLE, events)
        upsampled = UpsampledInputs.from_tensors(result)
        events = _refine_stage(clip, context, engine, encoded, upsampled)
        result = yield from run_stage(context, engine, Stage.REFINE, events)
    latents = latents_from_tensors(result)
    if clip.effective.audio:
        events = decode_audio_stage(clip, context, engine, latents)
        sound = yield from run_stage(context, engine, Stage.DECODE_AUDIO, events)
        yield audio_from_tensors(sound)
    frames = decode_stage(clip, context, engine, latents, emitted)
    yield from with_timing(Stage.DECODE, frames)


def encode_only(clip: PreparedClip, context: RunContext) -> Generator[Event]:
    """Run the first stage alone, into the job's folder: another process may run the others."""
    engine = yield from _run_load_stage(clip, context)
    yield from _run_encode_stage(clip, context, engine)


def _run_load_stage(clip: PreparedClip, context: RunContext) -> Generator[Event, None, Engine]:
    return (yield from with_timing(Stage.LOAD, _load_engine(clip, context.engines)))


def _run_encode_stage(
    clip: PreparedClip, context: RunContext, engine: Engine
) -> Generator[Event, None, EncodedInputs]:
    events = _encode_stage(clip, engine)
    result = yield from run_stage(context, engine, Stage.ENCODE, events)
    return EncodedInputs.from_tensors(result)


def run_stage(
    context: RunContext, engine: Engine, stage: Stage, events: StageGenerator
) -> StageGenerator:
    """Return the result of a stage: what an earlier run has saved, or else of `events`, saved."""
    started, name = time.perf_counter(), RESULT_NAMES[stage]
    result = context.artifacts.load_result(name, engine)
    if result is not None:
        yield StageFinished(stage, 0.0, reused=True)
        return result
    result = yield from events
    context.artifacts.save_result(name, result)
    yield StageFinished(stage, time.perf_counter() - started)
    return result


def load_engine(clip: PreparedClip, engines: EngineCache) -> Engine:
    """Return the engine of a clip, loaded before it is asked for."""
    return drain(_load_engine(clip, engines))


def _load_engine(clip: PreparedClip, engines: EngineCache) -> Generator[Event, None, Engine]:
    return engines.get(clip.plan.card, clip.files, clip.placement)


def _encode_stage(clip: PreparedClip, engine: Engine) -> StageGenerator:
    """Returns `EncodedInputs` as tensors."""
    progress = Progress(Stage.ENCODE, 0, 1)
    yield progress
    new = [prompt for prompt in clip.prompts.all if not engine.has_cached(prompt)]
    if new:
        yield from _load_components(engine, progress, "text_encoder")
        states = [engine.encode_text(prompt) for prompt in new]
        if clip.files.connectors:
            yield from _load_components(engine, progress, "connectors")
        for prompt, text in zip(new, states, strict=True):
            engine.connect_prompt(prompt, text)
    prompts = tuple(map(engine.encode_prompt, clip.prompts.prompts))
    negative = clip.prompts.negative and engine.encode_prompt(clip.prompts.negative)
    if clip.guide_inputs:
        yield from _load_components(engine, progress, "encoder")
    guides = _encode_guides(clip, engine, clip.first_stage_params.shape)
    audio = None
    if clip.plan.keeps_audio and clip.plan.makes_audio:
        yield from _load_components(engine, progress, "audio_vae")
        audio = _encode_context_audio(clip, engine)
    yield Progress(Stage.ENCODE, 1, 1)
    return EncodedInputs(prompts, negative, guides, audio).to_tensors()


def _encode_context_audio(clip: PreparedClip, engine: Engine) -> Array:
    """Return the sound of the frames that the model sees of a clip that it extends."""
    shape, source = clip.effective.shape, clip.plan.source_clip
    assert source
    rate = engine.audio_sample_rate
    heard = source.audio(rate)
    assert heard
    first = round(source.first / shape.fps * rate)
    context = Audio(heard.samples[first:], rate)
    return engine.encode_audio(context, shape.context_frames, shape.fps)


def _load_components(engine: Engine, progress: Progress, *names: str) -> Generator[Event]:
    """Load what a stage needs; its latest progress is repeated, so that it can be stopped."""
    for _ in engine.load_components(*names):
        yield progress


def _encode_guides(clip: PreparedClip, engine: Engine, shape: VideoShape) -> tuple[Array, ...]:
    """Return the guides as latents at the size of one stage."""
    full_shape, size = clip.effective.shape, (shape.generated_width, shape.generated_height)
    crf = clip.plan.card.image_crf
    return tuple(
        engine.encode_frames(guide.pixels(full_shape, size, crf)) for guide in clip.guide_inputs
    )


def _denoise_stage(
    clip: PreparedClip, context: RunContext, engine: Engine, encoded: EncodedInputs
) -> StageGenerator:
    params = clip.first_stage_params
    task = DenoisePass(
        Stage.DENOISE,
        engine,
        params,
        clip.effective.windows,
        _prompt_embeds(encoded, params),
        _guide_latents(clip, encoded.guides, encoded.context_audio),
    )
    progress = Progress(task.stage, 0, task.total_steps)
    yield from _load_components(engine, progress, "transformer")
    return (yield from run_denoise_pass(task, context.artifacts, context.cancelled))


def _refine_stage(
    clip: PreparedClip,
    context: RunContext,
    engine: Engine,
    encoded: EncodedInputs,
    upsampled: UpsampledInputs,
) -> StageGenerator:
    windows, params = clip.effective.windows, clip.refine_params
    task = DenoisePass(
        Stage.REFINE,
        engine,
        params,
        windows,
        _prompt_embeds(encoded, params),
        _guide_latents(clip, upsampled.guides, encoded.context_audio),
        init_latents=upsampled.latents,
        first_preview_step=len(windows) * len(clip.effective.sigmas),
    )
    progress = Progress(task.stage, 0, task.total_steps)
    yield from _load_components(engine, progress, "transformer")
    return (yield from run_denoise_pass(task, context.artifacts, context.cancelled))


def _prompt_embeds(encoded: EncodedInputs, params: DenoiseParams) -> list[PromptEmbeds]:
    """Return the embeddings of each prompt for a stage."""
    negative = encoded.negative if params.is_guided else None
    return [PromptEmbeds(prompt, negative) for prompt in encoded.prompts]


def _guide_latents(
    clip: PreparedClip, latents: Sequence[Array], context_audio: Array | None
) -> list[GuideLatents]:
    return [
        GuideLatents(
            guide_latents,
            guide.frame,
            guide.strength,
            context_audio if guide.is_extended_clip else None,
        )
        for guide_latents, guide in zip(latents, clip.guide_inputs, strict=True)
    ]


def _upsample_stage(clip: PreparedClip, engine: Engine, latents: Latents) -> StageGenerator:
    """Returns `UpsampledInputs` as tensors."""
    progress, params = Progress(Stage.UPSAMPLE, 0, 1), clip.denoise_params
    yield progress
    yield from _load_components(engine, progress, "upsampler", "encoder")
    larger = engine.upsample(latents, params)
    guides = _encode_guides(clip, engine, params.shape)
    yield Progress(Stage.UPSAMPLE, 1, 1)
    return UpsampledInputs(larger, guides).to_tensors()
