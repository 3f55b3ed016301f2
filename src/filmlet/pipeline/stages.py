"""The story of one clip: prepare, load, encode, denoise, decode, mux."""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from filmlet.core.events import (
    Event,
    Frames,
    Pixels,
    Progress,
    Stage,
    StageFinished,
    drain,
    with_timing,
)
from filmlet.core.shape import Change, VideoShape
from filmlet.engine import selection
from filmlet.engine.arrays import Array, Tensors
from filmlet.engine.base import Engine, PromptEmbeds
from filmlet.engine.conditioning import GuideLatents
from filmlet.engine.placement import Optimization, is_out_of_memory, release_memory
from filmlet.errors import NonFiniteValues, OutOfMemory
from filmlet.media import (
    CODECS,
    check_output_path,
    metadata_tags,
    open_writer,
    partial_path,
    publish,
)
from filmlet.pipeline.artifacts import ArtifactStore
from filmlet.pipeline.denoise import DenoisePass, StageGenerator, run_denoise_pass
from filmlet.pipeline.engine_cache import loaded
from filmlet.pipeline.prepare import GenerationState


def generate_frames(work: GenerationState) -> Generator[Event]:
    """Make the clip: Progress of each stage, a Preview a step, Frames cut to what was asked.

    Close the generator to stop within one model call. Where memory runs out the model is held in a
    leaner way, and what was made stays. A model that leaves the range of its dtype before the first
    frame is run once more in float32. Raises NonFiniteValues and OutOfMemory where nothing helps.
    """
    shown = 0
    while True:
        try:
            for event in _run_stages(work):
                if isinstance(event, Frames):
                    fresh = event.pixels[max(0, shown - work.decoded_frames) :]
                    work.decoded_frames += len(event.pixels)
                    if not len(fresh):
                        continue
                    event, shown = Frames(fresh), max(shown, work.decoded_frames)
                yield event
            return
        except NonFiniteValues as error:
            _retry_in_float32(work, error, shown)
        except (MemoryError, RuntimeError) as error:
            _retry_with_more_offload(work, error)


def write_clip(
    work: GenerationState,
    path: Path,
    force: bool = False,
    run: Callable[[GenerationState], Generator[Event]] = generate_frames,
) -> Generator[Event]:
    """Make the clip and write it to `path`; it grows beside it, or in the work's folder.

    run: what makes the frames; another process may.
    """
    form, shape = check_output_path(path, force), work.effective.shape
    work.accepts_yuv = form in CODECS
    grown = work.artifact_path(f"decoded.{form}") or partial_path(path)
    if work.folder and grown.exists():
        for stage in work.stages[1:-1]:
            yield StageFinished(stage, 0.0, reused=True)
    else:
        with closing(run(work)) as events:
            yield from _encode_to_file(events, work, grown, form)
    started = time.perf_counter()
    yield Progress(Stage.MUX, 0, shape.frames)
    try:
        publish(grown, path, metadata_tags(work.effective), work.confirm)
    finally:
        if not work.folder:
            grown.unlink(missing_ok=True)
    yield Progress(Stage.MUX, shape.frames, shape.frames)
    yield StageFinished(Stage.MUX, time.perf_counter() - started)


def _encode_to_file(
    events: Generator[Event], work: GenerationState, grown: Path, form: str
) -> Generator[Event]:
    """Decode into a file that can be played meanwhile; it has its name when it is whole.

    That the stage is finished is said after that: whoever hears it may take the file.
    """
    first: Frames | None = None
    for event in events:
        if isinstance(event, Frames):
            first = event
            break
        yield event
    if first is None:
        return
    part = partial_path(grown) if work.folder else grown
    # What the tags say is certain only now: the model may have been run again in float32.
    with open_writer(part, form, work.effective.shape, metadata_tags(work.effective)) as movie:
        movie.add(first.pixels)
        yield first
        finished: StageFinished | None = None
        for event in events:
            if isinstance(event, Frames):
                movie.add(event.pixels)
            if isinstance(event, StageFinished) and event.stage == Stage.DECODE:
                finished = event
            else:
                yield event
    if work.folder:
        _name(part, grown, work.confirm)
    if finished:
        yield finished


def _name(part: Path, grown: Path, confirm: Callable[[], None]) -> None:
    """Give a whole file its name. Raises what `confirm` does; the file is gone then."""
    try:
        confirm()
        part.replace(grown)
    finally:
        part.unlink(missing_ok=True)


def _run_stages(work: GenerationState) -> Generator[Event]:
    work.decoded_frames = 0
    engine = yield from with_timing(Stage.LOAD, _load_stage(work))
    work.results = {name: engine.to_device(tensors) for name, tensors in work.results.items()}
    encoded = yield from _load_or_run(work, Stage.ENCODE, "embeddings", _encode_stage(work, engine))
    results = yield from _load_or_run(
        work, Stage.DENOISE, "latents", _denoise_stage(work, engine, encoded)
    )
    if work.effective.refine_sigmas:
        larger = _upsample_stage(work, engine, results["latents"])
        results = yield from _load_or_run(work, Stage.UPSAMPLE, "upsampled", larger)
        finer = _refine_stage(work, engine, encoded, results)
        results = yield from _load_or_run(work, Stage.REFINE, "refined", finer)
    yield from with_timing(Stage.DECODE, _decode_stage(work, engine, results["latents"]))


def _load_or_run(
    work: GenerationState, stage: Stage, name: str, events: StageGenerator
) -> StageGenerator:
    """A stage's result: what it was made to before, or read from the work's folder, or made now."""
    saved = work.results.get(name) or work.artifacts.load(name)
    if saved is not None:
        yield StageFinished(stage, 0.0, reused=True)
    else:
        saved = yield from with_timing(stage, _run_and_save(work.artifacts, name, events))
    work.results[name] = saved
    return saved


def _run_and_save(shelf: ArtifactStore, name: str, events: StageGenerator) -> StageGenerator:
    result = yield from events
    shelf.save(name, result)
    return result


def encode_only(work: GenerationState) -> Generator[Event]:
    """The first stage alone, kept in the work's folder: another process may do the others."""
    engine = yield from with_timing(Stage.LOAD, _load_stage(work))
    yield from _load_or_run(work, Stage.ENCODE, "embeddings", _encode_stage(work, engine))


def _load_stage(work: GenerationState) -> Generator[Event, None, Engine]:
    key = work.plan.card, work.files, work.placement
    if key not in loaded:
        # One model at a time on a device: the other's memory is free before this one comes.
        for other in [k for k in loaded if k[2].device == work.placement.device]:
            del loaded[other]
        loaded[key] = yield from selection.load_engine(*key)
    else:
        yield Progress(Stage.LOAD, 1, 1)
    return loaded[key]


def _encode_stage(work: GenerationState, engine: Engine) -> StageGenerator:
    yield Progress(Stage.ENCODE, 0, 1)
    readings = {"prompt": work.prompt} | ({"negative": work.negative} if work.negative else {})
    readings |= {f"then_{i}": text for i, text in enumerate(work.extra_prompts, start=1)}
    if not all(map(engine.has_cached, readings.values())):
        yield from _load_components(engine, Progress(Stage.ENCODE, 0, 1), "text_encoder")
    encoded = {name: engine.encode_prompt(reading) for name, reading in readings.items()}
    if work.guide_inputs:
        yield from _load_components(engine, Progress(Stage.ENCODE, 0, 1), "encoder")
    encoded |= _encode_guides(work, engine, work.first_stage_params.shape)
    yield Progress(Stage.ENCODE, 1, 1)
    return encoded


def _load_components(engine: Engine, progress: Progress, *names: str) -> Generator[Event]:
    """Components that a stage needs; what it has told is told again, so that it can be stopped."""
    for _ in engine.load_components(*names):
        yield progress


def _load_transformer_with_loras(
    work: GenerationState, engine: Engine, progress: Progress
) -> Generator[Event]:
    """The transformer, with the clip's LoRAs."""
    yield from _load_components(engine, progress, "transformer")
    for _ in engine.set_loras(work.loras):
        yield progress


def _encode_guides(work: GenerationState, engine: Engine, shape: VideoShape) -> Tensors:
    """What is to be shown, as latents at the size of one stage."""
    full_shape, size = work.effective.shape, (shape.generated_width, shape.generated_height)
    return {
        f"guide_{i}": engine.encode_frames(guide_input.pixels(full_shape, size))
        for i, guide_input in enumerate(work.guide_inputs)
    }


def _guide_latents(work: GenerationState, encoded: Tensors) -> list[GuideLatents]:
    return [
        GuideLatents(encoded[f"guide_{i}"], guide_input.frame, guide_input.strength)
        for i, guide_input in enumerate(work.guide_inputs)
    ]


def _denoise_stage(work: GenerationState, engine: Engine, encoded: Tensors) -> StageGenerator:
    windows, texts = work.effective.windows, _prompt_embeds(work, encoded)
    yield from _load_transformer_with_loras(
        work, engine, Progress(Stage.DENOISE, 0, len(windows) * len(work.first_stage_params.sigmas))
    )
    reel = DenoisePass(
        Stage.DENOISE,
        engine,
        work.first_stage_params,
        windows,
        texts,
        _guide_latents(work, encoded),
    )
    return (yield from run_denoise_pass(reel, work.artifacts, work.cancelled))


def _prompt_embeds(work: GenerationState, encoded: Tensors) -> list[PromptEmbeds]:
    """Of each prompt."""
    further = (encoded[f"then_{i}"] for i in range(1, len(work.extra_prompts) + 1))
    return [PromptEmbeds(text, encoded.get("negative")) for text in (encoded["prompt"], *further)]


def _upsample_stage(work: GenerationState, engine: Engine, latents: Array) -> StageGenerator:
    yield Progress(Stage.UPSAMPLE, 0, 1)
    yield from _load_components(engine, Progress(Stage.UPSAMPLE, 0, 1), "upsampler", "encoder")
    upsampled = {"latents": engine.upsample(latents, work.denoise_params)}
    upsampled |= _encode_guides(work, engine, work.denoise_params.shape)
    yield Progress(Stage.UPSAMPLE, 1, 1)
    return upsampled


def _refine_stage(
    work: GenerationState, engine: Engine, encoded: Tensors, upsampled: Tensors
) -> StageGenerator:
    recipe = replace(work.denoise_params, sigmas=work.effective.refine_sigmas)
    windows, texts = work.effective.windows, _prompt_embeds(work, encoded)
    yield from _load_transformer_with_loras(
        work, engine, Progress(Stage.REFINE, 0, len(windows) * len(recipe.sigmas))
    )
    reel = DenoisePass(
        Stage.REFINE,
        engine,
        recipe,
        windows,
        texts,
        _guide_latents(work, upsampled),
        upsampled["latents"],
    )
    reel = replace(reel, first_preview_step=len(windows) * len(work.effective.sigmas))
    return (yield from run_denoise_pass(reel, work.artifacts, work.cancelled))


def _decode_stage(work: GenerationState, engine: Engine, latents: Array) -> Generator[Event]:
    shape, done = work.effective.shape, 0
    yield Progress(Stage.DECODE, 0, shape.frames)
    yield from _load_components(engine, Progress(Stage.DECODE, 0, shape.frames), "decoder")
    for pixels in _clip_frames(work, engine, latents):
        frames = pixels[: shape.frames - done]
        if len(frames):
            done += len(frames)
            yield Frames(frames)
            yield Progress(Stage.DECODE, done, shape.frames)
        if done == shape.frames:
            return  # the rest would only be cut off


def _clip_frames(work: GenerationState, engine: Engine, latents: Array) -> Iterator[Pixels]:
    """The frames of the clip that is extended, if one is, then those that are new; or backward."""
    shape, hidden, clip = (
        work.effective.shape,
        work.effective.shape.context_frames,
        work.plan.source_clip,
    )
    if clip and shape.extend_backward:
        yield from _frames_before_source(work, engine, latents)
        yield from clip.source_frames(shape)
        return
    for pixels in engine.decode(latents, work.denoise_params, work.accepts_yuv):
        if clip:  # not before the model has made a frame: it may have to be run again in float32
            yield from clip.source_frames(shape)
            clip = None
        yield pixels[hidden:]
        hidden = max(0, hidden - len(pixels))


def _frames_before_source(
    work: GenerationState, engine: Engine, latents: Array
) -> Iterator[Pixels]:
    """The new frames of a clip that ends with a given one: neither the surplus nor the context."""
    shape, first = work.effective.shape, 0
    for pixels in engine.decode(latents, work.denoise_params, work.accepts_yuv):
        start, stop = (max(0, n + shape.padding_frames - first) for n in (0, shape.new_frames))
        if len(frames := pixels[start:stop]):
            yield frames
        first += len(pixels)
        if first >= shape.padding_frames + shape.new_frames:
            return


def load_engine(work: GenerationState) -> Engine:
    """The engine of a clip, ready before it is asked for."""
    return drain(_load_stage(work))


def _retry_in_float32(work: GenerationState, error: NonFiniteValues, shown: int) -> None:
    """Run in float32 from here on, and say so; what was kept has the old dtype."""
    if shown or work.placement.is_full_precision:
        loras = " and ".join(adapter.label for adapter in work.loras if adapter.strength)
        with_loras = f" with {loras}" if loras else ""
        raise NonFiniteValues(
            f"{error} {work.plan.card.name}{with_loras} is damaged or its settings are too far "
            f"off; it was run in {work.placement.dtype} and no clip was written."
        ) from error
    work.confirm()
    work.results.clear()
    lora_paths = [adapter.path for adapter in work.loras]
    for file in work.folder.glob("*.safetensors") if work.folder else ():
        if file not in lora_paths:
            file.unlink()
    exact = work.placement.optimizations - {Optimization.INT8}
    work.placement = replace(
        work.placement, dtype="float32", optimizations=exact, reason=str(error)
    )
    _record_placement_change(work, str(error))


def _retry_with_more_offload(work: GenerationState, error: Exception) -> None:
    """One rung down the ladder, with all memory free; the stages that are over stay."""
    if not is_out_of_memory(error):
        raise error
    placement, leaner = work.placement, selection.with_more_offload(work.placement)
    if leaner is None:
        shape = work.effective.shape
        raise OutOfMemory(
            f"{work.plan.card.name} has too little memory on {placement.device} for "
            f"{shape.width}x{shape.height} and {shape.frames} frames; make less of either."
        ) from error
    loaded.clear()
    error.__traceback__ = None  # its frames hold tensors
    release_memory(placement.device)
    work.placement = leaner
    _record_placement_change(work, "memory ran out while it was made")


def _record_placement_change(work: GenerationState, reason: str) -> None:
    """How the clip is made from here on, and why."""
    before, placement = work.effective, work.placement
    now: dict[str, Any] = {
        "dtype": placement.dtype,
        "offload": placement.offload.value,
        "engine": placement.backend.value,
    }
    levers = tuple(sorted(placement.optimizations))
    pairs = ((name, getattr(before, name), value) for name, value in now.items())
    changes = [Change(name, old, new, reason) for name, old, new in pairs if old != new]
    changes += [Change(name, 1, 0, reason) for name in before.optimizations if name not in levers]
    work.effective = replace(
        before, **now, optimizations=levers, changes=(*before.changes, *changes)
    )
