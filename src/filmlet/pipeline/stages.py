"""The story of one clip: prepare, load, encode, denoise, decode, mux."""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from filmlet.core.events import Event, Finished, Frames, Pixels, Progress, Stage
from filmlet.core.shape import Change, Shape
from filmlet.engine import selection
from filmlet.engine.arrays import Array, Tensors
from filmlet.engine.base import Embeddings, Engine
from filmlet.engine.conditioning import Shown
from filmlet.engine.placement import Lever, free, is_out_of_memory
from filmlet.errors import NotFinite, OutOfMemory
from filmlet.media import (
    VIDEOS,
    check_target,
    growing,
    part_of,
    place,
    tags,
)
from filmlet.pipeline.denoise import Making, Reel, Shelf, shoot
from filmlet.pipeline.prepare import Work, fold, loaded, timed


def run(work: Work) -> Generator[Event]:
    """Make the clip: Progress of each stage, a Preview a step, Frames cut to what was asked.

    Close the generator to stop within one model call. Where memory runs out the model is held in a
    leaner way, and what was made stays. A model that leaves the range of its dtype before the first
    frame is run once more in float32. Raises NotFinite and OutOfMemory where nothing helps.
    """
    shown = 0
    while True:
        try:
            for event in _make(work):
                if isinstance(event, Frames):
                    fresh = event.pixels[max(0, shown - work.drawn) :]
                    work.drawn += len(event.pixels)
                    if not len(fresh):
                        continue
                    event, shown = Frames(fresh), max(shown, work.drawn)
                yield event
            return
        except NotFinite as error:
            _run_in_float32(work, error, shown)
        except (MemoryError, RuntimeError) as error:
            _hold_less(work, error)


def film(
    work: Work, path: Path, force: bool = False, run: Callable[[Work], Generator[Event]] = run
) -> Generator[Event]:
    """Make the clip and write it to `path`; it grows beside it, or in the work's folder.

    run: what makes the frames; another process may.
    """
    form, shape = check_target(path, force), work.effective.shape
    work.is_planar = form in VIDEOS
    grown = work.file(f"decoded.{form}") or part_of(path)
    if work.folder and grown.exists():
        for stage in work.stages[1:-1]:
            yield Finished(stage, 0.0, reused=True)
    else:
        with closing(run(work)) as events:
            yield from _grow(events, work, grown, form)
    started = time.perf_counter()
    yield Progress(Stage.MUX, 0, shape.frames)
    try:
        place(grown, path, tags(work.effective), work.confirm)
    finally:
        if not work.folder:
            grown.unlink(missing_ok=True)
    yield Progress(Stage.MUX, shape.frames, shape.frames)
    yield Finished(Stage.MUX, time.perf_counter() - started)


def _grow(events: Generator[Event], work: Work, grown: Path, form: str) -> Generator[Event]:
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
    part = part_of(grown) if work.folder else grown
    # What the tags say is certain only now: the model may have been run again in float32.
    with growing(part, form, work.effective.shape, tags(work.effective)) as movie:
        movie.add(first.pixels)
        yield first
        finished: Finished | None = None
        for event in events:
            if isinstance(event, Frames):
                movie.add(event.pixels)
            if isinstance(event, Finished) and event.stage == Stage.DECODE:
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


def _make(work: Work) -> Generator[Event]:
    work.drawn = 0
    engine = yield from timed(Stage.LOAD, _load(work))
    work.made = {name: engine.take(tensors) for name, tensors in work.made.items()}
    told = yield from _kept(work, Stage.ENCODE, "embeddings", _encode(work, engine))
    made = yield from _kept(work, Stage.DENOISE, "latents", _denoise(work, engine, told))
    if work.effective.refine_sigmas:
        larger = _upsample(work, engine, made["latents"])
        made = yield from _kept(work, Stage.UPSAMPLE, "upsampled", larger)
        finer = _refine(work, engine, told, made)
        made = yield from _kept(work, Stage.REFINE, "refined", finer)
    yield from timed(Stage.DECODE, _decode(work, engine, made["latents"]))


def _kept(work: Work, stage: Stage, name: str, events: Making) -> Making:
    """A stage's result: what it was made to before, or read from the work's folder, or made now."""
    kept = work.made.get(name) or work.shelf.load(name)
    if kept is not None:
        yield Finished(stage, 0.0, reused=True)
    else:
        kept = yield from timed(stage, _saved(work.shelf, name, events))
    work.made[name] = kept
    return kept


def _saved(shelf: Shelf, name: str, events: Making) -> Making:
    made = yield from events
    shelf.save(name, made)
    return made


def encode(work: Work) -> Generator[Event]:
    """The first stage alone, kept in the work's folder: another process may do the others."""
    engine = yield from timed(Stage.LOAD, _load(work))
    yield from _kept(work, Stage.ENCODE, "embeddings", _encode(work, engine))


def _load(work: Work) -> Generator[Event, None, Engine]:
    key = work.plan.card, work.files, work.placement
    if key not in loaded:
        # One model at a time on a device: the other's memory is free before this one comes.
        for other in [k for k in loaded if k[2].device == work.placement.device]:
            del loaded[other]
        loaded[key] = yield from selection.load(*key)
    else:
        yield Progress(Stage.LOAD, 1, 1)
    return loaded[key]


def _encode(work: Work, engine: Engine) -> Making:
    yield Progress(Stage.ENCODE, 0, 1)
    readings = {"prompt": work.prompt} | ({"negative": work.negative} if work.negative else {})
    readings |= {f"then_{i}": text for i, text in enumerate(work.then, start=1)}
    if not all(map(engine.knows, readings.values())):
        yield from _bring(engine, Progress(Stage.ENCODE, 0, 1), "text_encoder")
    made = {name: engine.encode(reading) for name, reading in readings.items()}
    if work.shown:
        yield from _bring(engine, Progress(Stage.ENCODE, 0, 1), "encoder")
    made |= _seen(work, engine, work.first.shape)
    yield Progress(Stage.ENCODE, 1, 1)
    return made


def _bring(engine: Engine, told: Progress, *names: str) -> Generator[Event]:
    """Components that a stage needs; what it has told is told again, so that it can be stopped."""
    for _ in engine.bring(*names):
        yield told


def _dress(work: Work, engine: Engine, told: Progress) -> Generator[Event]:
    """The transformer, with the clip's LoRAs."""
    yield from _bring(engine, told, "transformer")
    for _ in engine.dress(work.loras):
        yield told


def _seen(work: Work, engine: Engine, shape: Shape) -> Tensors:
    """What is to be shown, as latents at the size of one stage."""
    whole, size = work.effective.shape, (shape.made_width, shape.made_height)
    return {
        f"guide_{i}": engine.see(given.pixels(whole, size)) for i, given in enumerate(work.shown)
    }


def _guides(work: Work, seen: Tensors) -> list[Shown]:
    return [
        Shown(seen[f"guide_{i}"], given.frame, given.strength) for i, given in enumerate(work.shown)
    ]


def _denoise(work: Work, engine: Engine, told: Tensors) -> Making:
    windows, texts = work.effective.windows, _texts(work, told)
    yield from _dress(
        work, engine, Progress(Stage.DENOISE, 0, len(windows) * len(work.first.sigmas))
    )
    reel = Reel(Stage.DENOISE, engine, work.first, windows, texts, _guides(work, told))
    return (yield from shoot(reel, work.shelf, work.cancelled))


def _texts(work: Work, told: Tensors) -> list[Embeddings]:
    """Of each prompt."""
    further = (told[f"then_{i}"] for i in range(1, len(work.then) + 1))
    return [Embeddings(text, told.get("negative")) for text in (told["prompt"], *further)]


def _upsample(work: Work, engine: Engine, latents: Array) -> Making:
    yield Progress(Stage.UPSAMPLE, 0, 1)
    yield from _bring(engine, Progress(Stage.UPSAMPLE, 0, 1), "upsampler", "encoder")
    made = {"latents": engine.upsample(latents, work.recipe)}
    made |= _seen(work, engine, work.recipe.shape)
    yield Progress(Stage.UPSAMPLE, 1, 1)
    return made


def _refine(work: Work, engine: Engine, told: Tensors, made: Tensors) -> Making:
    recipe = replace(work.recipe, sigmas=work.effective.refine_sigmas)
    windows, texts = work.effective.windows, _texts(work, told)
    yield from _dress(work, engine, Progress(Stage.REFINE, 0, len(windows) * len(recipe.sigmas)))
    reel = Reel(Stage.REFINE, engine, recipe, windows, texts, _guides(work, made), made["latents"])
    reel = replace(reel, before=len(windows) * len(work.effective.sigmas))
    return (yield from shoot(reel, work.shelf, work.cancelled))


def _decode(work: Work, engine: Engine, latents: Array) -> Generator[Event]:
    shape, done = work.effective.shape, 0
    yield Progress(Stage.DECODE, 0, shape.frames)
    yield from _bring(engine, Progress(Stage.DECODE, 0, shape.frames), "decoder")
    for pixels in _pictures(work, engine, latents):
        wanted = pixels[: shape.frames - done]
        if len(wanted):
            done += len(wanted)
            yield Frames(wanted)
            yield Progress(Stage.DECODE, done, shape.frames)
        if done == shape.frames:
            return  # the rest would only be cut off


def _pictures(work: Work, engine: Engine, latents: Array) -> Iterator[Pixels]:
    """The frames of the clip that is extended, if one is, then those that are new; or backward."""
    shape, hidden, clip = work.effective.shape, work.effective.shape.context, work.plan.clip
    if clip and shape.backward:
        yield from _leading(work, engine, latents)
        yield from clip.before(shape)
        return
    for pixels in engine.decode(latents, work.recipe, work.is_planar):
        if clip:  # not before the model has made a frame: it may have to be run again in float32
            yield from clip.before(shape)
            clip = None
        yield pixels[hidden:]
        hidden = max(0, hidden - len(pixels))


def _leading(work: Work, engine: Engine, latents: Array) -> Iterator[Pixels]:
    """The new frames of a clip that ends with a given one: neither the surplus nor the context."""
    shape, first = work.effective.shape, 0
    for pixels in engine.decode(latents, work.recipe, work.is_planar):
        start, stop = (max(0, n + shape.surplus - first) for n in (0, shape.new))
        if len(wanted := pixels[start:stop]):
            yield wanted
        first += len(pixels)
        if first >= shape.surplus + shape.new:
            return


def load_engine(work: Work) -> Engine:
    """The engine of a clip, ready before it is asked for."""
    return fold(_load(work))


def _run_in_float32(work: Work, error: NotFinite, shown: int) -> None:
    """Run in float32 from here on, and say so; what was kept has the old dtype."""
    if shown or work.placement.is_exact:
        loras = " and ".join(adapter.label for adapter in work.loras if adapter.strength)
        with_loras = f" with {loras}" if loras else ""
        raise NotFinite(
            f"{error} {work.plan.card.name}{with_loras} is damaged or its settings are too far "
            f"off; it was run in {work.placement.dtype} and no clip was written."
        ) from error
    work.confirm()
    work.made.clear()
    given = [adapter.path for adapter in work.loras]
    for file in work.folder.glob("*.safetensors") if work.folder else ():
        if file not in given:
            file.unlink()
    exact = work.placement.levers - {Lever.INT8}
    work.placement = replace(work.placement, dtype="float32", levers=exact, reason=str(error))
    _tell(work, str(error))


def _hold_less(work: Work, error: Exception) -> None:
    """One rung down the ladder, with all memory free; the stages that are over stay."""
    if not is_out_of_memory(error):
        raise error
    placement, leaner = work.placement, selection.leaner(work.placement)
    if leaner is None:
        shape = work.effective.shape
        raise OutOfMemory(
            f"{work.plan.card.name} has too little memory on {placement.device} for "
            f"{shape.width}x{shape.height} and {shape.frames} frames; make less of either."
        ) from error
    loaded.clear()
    error.__traceback__ = None  # its frames hold tensors
    free(placement.device)
    work.placement = leaner
    _tell(work, "memory ran out while it was made")


def _tell(work: Work, reason: str) -> None:
    """How the clip is made from here on, and why."""
    before, placement = work.effective, work.placement
    now: dict[str, Any] = {
        "dtype": placement.dtype,
        "hold": placement.hold.value,
        "engine": placement.library.value,
    }
    levers = tuple(sorted(placement.levers))
    pairs = ((name, getattr(before, name), value) for name, value in now.items())
    changes = [Change(name, old, new, reason) for name, old, new in pairs if old != new]
    changes += [Change(name, 1, 0, reason) for name in before.levers if name not in levers]
    work.effective = replace(before, **now, levers=levers, changes=(*before.changes, *changes))
