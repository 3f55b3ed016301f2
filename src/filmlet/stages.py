"""The story of one clip: prepare, load, encode, denoise, decode, mux."""

import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar, cast

import torch
from torch import Tensor

from filmlet.card import ModelCard
from filmlet.denoising import Making, Reel, Shelf, shoot
from filmlet.engine import ltx
from filmlet.engine.artefacts import Tensors
from filmlet.engine.guiding import Shown
from filmlet.engine.ltx import Embeddings, LtxEngine, Recipe
from filmlet.engine.placement import Placement, choose
from filmlet.engine.text import Reading, Tokenizer, load_tokenizer, read
from filmlet.errors import NotFinite
from filmlet.events import Event, Finished, Frames, Pixels, Progress, Stage
from filmlet.given import Given
from filmlet.media import (
    check_target,
    covering,
    growing,
    part_of,
    place,
    tags,
)
from filmlet.plan import Plan
from filmlet.request import Change, Effective, Shape
from filmlet.settings import Settings

Value = TypeVar("Value")
_engines: dict[tuple[ModelCard, Path, Placement], LtxEngine] = {}  # the last one, for the next clip
KEEP_EVERY_S = 5.0  # a crash while denoising costs one step, or this much


@dataclass(eq=False)
class Work:
    """One clip, ready to be made. `effective` changes only if it must be run in float32.

    folder: where the stages keep what they make; what is there is not made again. None keeps
    nothing. cancelled: set from another thread, it stops the work inside a model call.
    """

    plan: Plan
    placement: Placement
    prompt: Reading
    negative: Reading | None
    effective: Effective
    folder: Path | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    then: tuple[Reading, ...] = ()  # of further prompts

    def file(self, name: str) -> Path | None:
        """Where a result of this name is kept, if at all."""
        return self.folder / name if self.folder else None

    @property
    def shelf(self) -> Shelf:
        """Where stages put what they make."""
        return Shelf(self.folder, self.placement.device, KEEP_EVERY_S)

    @property
    def recipe(self) -> Recipe:
        """The clip's shape and its first stage's levels."""
        done = self.effective
        return Recipe(done.shape, done.sigmas, done.guidance, done.seed)

    @property
    def first(self) -> Recipe:
        """Its first stage, which is all of it where there is no second."""
        return self.recipe.first() if self.effective.refine_sigmas else self.recipe

    @property
    def shown(self) -> tuple[Given, ...]:
        """What guides the model; the end of a clip that is extended is the first of it."""
        clip = self.plan.clip
        return (clip, *self.plan.guides) if clip else self.plan.guides

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Those of this clip, in order."""
        second = (Stage.UPSAMPLE, Stage.REFINE)
        return tuple(s for s in Stage if self.effective.refine_sigmas or s not in second)


def prepare(plan: Plan, settings: Settings, dtype: str | None = None) -> Work:
    """Read the prompt and choose where to compute; nothing heavy is loaded yet.

    dtype: of an earlier attempt, so that its bytes come again; None chooses.
    """
    card, request = plan.card, plan.request
    tokenizer = _tokenizer(plan.folder)
    prompt = read(tokenizer, request.prompt, card.max_tokens)
    negative = None
    if plan.guidance > 1:
        negative = read(tokenizer, request.negative_prompt, card.max_tokens)
    then = tuple(read(tokenizer, text, card.max_tokens) for text in request.then)
    told = list(_told("prompt", prompt, request.prompt, card))
    for i, (reading, text) in enumerate(zip(then, request.then, strict=True), start=1):
        told += _told(f"then_{i}", reading, text, card)
    if negative:
        told += _told("negative_prompt", negative, request.negative_prompt, card)
    placement = choose(settings.device)
    if dtype and dtype != placement.dtype_name:
        placement = replace(placement, dtype=getattr(torch, dtype), reason="as it was begun")
    effective = Effective(
        prompt=prompt.text,
        prompt_tokens=prompt.tokens,
        negative_prompt=negative.text if negative else "",
        unknown_words=tuple(dict.fromkeys(word for one in (prompt, *then) for word in one.unknown)),
        model=card.name,
        revision=card.revision,
        seed=Effective.fresh_seed() if request.seed is None else request.seed,
        shape=plan.shape,
        sigmas=plan.sigmas,
        refine_sigmas=plan.refine_sigmas,
        guidance=plan.guidance,
        device=placement.device,
        dtype=placement.dtype_name,
        guides=tuple(guide.as_guide(plan.shape) for guide in plan.guides),
        extend=plan.clip.footage.name if plan.clip else None,
        changes=(*plan.changes, *told),
        then=tuple(reading.text for reading in then),
        windows=plan.windows,
    )
    return Work(plan, placement, prompt, negative, effective, then=then)


def run(work: Work) -> Generator[Event]:
    """Make the clip: Progress of each stage, a Preview a step, Frames cut to what was asked.

    Close the generator to stop within one model call. A model that leaves the range of its dtype
    before the first frame is run once more in float32. Raises NotFinite where that does not help.
    """
    shown = False
    try:
        for event in _make(work):
            shown = shown or isinstance(event, Frames)
            yield event
    except NotFinite as error:
        if shown or work.placement.dtype == torch.float32:
            raise NotFinite(
                f"{error} {work.plan.card.name} is damaged or its settings are too far off; "
                f"it was run in {work.placement.dtype_name} and no clip was written."
            ) from error
        _fall_back(work, str(error))
        yield from _make(work)


def film(work: Work, path: Path, force: bool = False) -> Generator[Event]:
    """Make the clip and write it to `path`; it grows beside it, or in the work's folder."""
    form, shape = check_target(path, force), work.effective.shape
    grown = work.file(f"decoded.{form}") or part_of(path)
    if work.folder and grown.exists():
        for stage in work.stages[1:-1]:
            yield Finished(stage, 0.0, reused=True)
    else:
        yield from _grow(work, grown, form)
    started = time.perf_counter()
    yield Progress(Stage.MUX, 0, shape.frames)
    try:
        place(grown, path, tags(work.effective))
    finally:
        if not work.folder:
            grown.unlink(missing_ok=True)
    yield Progress(Stage.MUX, shape.frames, shape.frames)
    yield Finished(Stage.MUX, time.perf_counter() - started)


def _grow(work: Work, grown: Path, form: str) -> Generator[Event]:
    """Decode into a file that can be played meanwhile; it has its name when it is whole."""
    events = run(work)
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
        for event in events:
            if isinstance(event, Frames):
                movie.add(event.pixels)
            yield event
    part.replace(grown)


def _make(work: Work) -> Generator[Event]:
    engine = yield from _timed(Stage.LOAD, _load(work))
    told = yield from _kept(work, Stage.ENCODE, "embeddings", _encode(work, engine))
    made = yield from _kept(work, Stage.DENOISE, "latents", _denoise(work, engine, told))
    if work.effective.refine_sigmas:
        larger = _upsample(work, engine, made["latents"])
        made = yield from _kept(work, Stage.UPSAMPLE, "upsampled", larger)
        finer = _refine(work, engine, told, made)
        made = yield from _kept(work, Stage.REFINE, "refined", finer)
    yield from _timed(Stage.DECODE, _decode(work, engine, made["latents"]))


def _timed(stage: Stage, events: Generator[Event, None, Value]) -> Generator[Event, None, Value]:
    """A stage's events, and at the end how long it took."""
    started = time.perf_counter()
    value = yield from events
    yield Finished(stage, time.perf_counter() - started)
    return value


def _kept(work: Work, stage: Stage, name: str, events: Making) -> Making:
    """A stage's result: read from the work's folder, or made and kept there."""
    kept = work.shelf.load(name)
    if kept is not None:
        yield Finished(stage, 0.0, reused=True)
        return kept
    made = yield from _timed(stage, _saved(work.shelf, name, events))
    return made


def _saved(shelf: Shelf, name: str, events: Making) -> Making:
    made = yield from events
    shelf.save(name, made)
    return made


def _load(work: Work) -> Generator[Event, None, LtxEngine]:
    key = work.plan.card, work.plan.folder, work.placement
    if key not in _engines:
        _engines.clear()  # one model at a time: the other's memory is free before this one comes
        _engines[key] = yield from ltx.load(*key)
    else:
        yield Progress(Stage.LOAD, 1, 1)
    return _engines[key]


def _encode(work: Work, engine: LtxEngine) -> Making:
    yield Progress(Stage.ENCODE, 0, 1)
    made = {"prompt": engine.encode(work.prompt)}
    if work.negative:
        made["negative"] = engine.encode(work.negative)
    made |= {f"then_{i}": engine.encode(text) for i, text in enumerate(work.then, start=1)}
    made |= _seen(work, engine, work.first.shape)
    yield Progress(Stage.ENCODE, 1, 1)
    return made


def _seen(work: Work, engine: LtxEngine, shape: Shape) -> Tensors:
    """What is to be shown, as latents at the size of one stage."""
    whole, size = work.effective.shape, (shape.made_width, shape.made_height)
    return {
        f"guide_{i}": engine.see(covering(given.pixels(whole), *size))
        for i, given in enumerate(work.shown)
    }


def _guides(work: Work, seen: Tensors) -> list[Shown]:
    return [
        Shown(seen[f"guide_{i}"], given.frame, given.strength) for i, given in enumerate(work.shown)
    ]


def _denoise(work: Work, engine: LtxEngine, told: Tensors) -> Making:
    windows, texts = work.effective.windows, _texts(work, told)
    reel = Reel(Stage.DENOISE, engine, work.first, windows, texts, _guides(work, told))
    return shoot(reel, work.shelf, work.cancelled)


def _texts(work: Work, told: Tensors) -> list[Embeddings]:
    """Of each prompt."""
    further = (told[f"then_{i}"] for i in range(1, len(work.then) + 1))
    return [Embeddings(text, told.get("negative")) for text in (told["prompt"], *further)]


def _upsample(work: Work, engine: LtxEngine, latents: Tensor) -> Making:
    yield Progress(Stage.UPSAMPLE, 0, 1)
    made = {"latents": engine.upsample(latents, work.recipe)}
    made |= _seen(work, engine, work.recipe.shape)
    yield Progress(Stage.UPSAMPLE, 1, 1)
    return made


def _refine(work: Work, engine: LtxEngine, told: Tensors, made: Tensors) -> Making:
    recipe = replace(work.recipe, sigmas=work.effective.refine_sigmas)
    windows, texts = work.effective.windows, _texts(work, told)
    reel = Reel(Stage.REFINE, engine, recipe, windows, texts, _guides(work, made), made["latents"])
    reel = replace(reel, before=len(windows) * len(work.effective.sigmas))
    return shoot(reel, work.shelf, work.cancelled)


def _decode(work: Work, engine: LtxEngine, latents: Tensor) -> Generator[Event]:
    shape, done = work.effective.shape, 0
    yield Progress(Stage.DECODE, 0, shape.frames)
    for pixels in _pictures(work, engine, latents):
        wanted = pixels[: shape.frames - done]
        if len(wanted):
            done += len(wanted)
            yield Frames(wanted)
            yield Progress(Stage.DECODE, done, shape.frames)
        if done == shape.frames:
            return  # the rest would only be cut off


def _pictures(work: Work, engine: LtxEngine, latents: Tensor) -> Iterator[Pixels]:
    """The frames of the clip that is extended, if one is, then those that are new."""
    shape, hidden, clip = work.effective.shape, work.effective.shape.context, work.plan.clip
    for pixels in engine.decode(latents, work.recipe):
        if clip:  # not before the model has made a frame: it may have to be run again in float32
            yield from clip.before(shape)
            clip = None
        yield cut(pixels, shape)[hidden:]
        hidden = max(0, hidden - len(pixels))


def cut(pixels: Pixels, shape: Shape) -> Pixels:
    """The middle of each made frame, at the size that was asked for."""
    top = (shape.made_height - shape.height) // 2
    left = (shape.made_width - shape.width) // 2
    return pixels[:, top : top + shape.height, left : left + shape.width]


def load_engine(work: Work) -> LtxEngine:
    """The engine of a clip, ready before it is asked for."""
    return fold(_load(work))


def fold(events: Generator[Event, None, Value]) -> Value:
    """What a stage comes to, its events unheard."""
    while True:
        try:
            next(events)
        except StopIteration as end:
            return cast(Value, end.value)


@lru_cache(maxsize=4)
def _tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


def _fall_back(work: Work, error: str) -> None:
    """Run in float32 from here on, and say so; what was kept has the old dtype."""
    for file in work.folder.glob("*.safetensors") if work.folder else ():
        file.unlink()
    change = Change("dtype", work.effective.dtype, "float32", error)
    work.placement = replace(work.placement, dtype=torch.float32, reason=error)
    work.effective = replace(
        work.effective, dtype="float32", changes=(*work.effective.changes, change)
    )


def _told(field: str, reading: Reading, prompt: str, card: ModelCard) -> Iterator[Change]:
    """What of a prompt does not reach the model."""
    if reading.cut:
        reason = f"{card.name} reads {card.max_tokens} tokens; this was cut off: {reading.cut!r}"
        yield Change(field, prompt, reading.text, reason)
    if reading.unknown:
        words = ", ".join(repr(word) for word in reading.unknown)
        reason = f"{card.name} does not know: {words}"
        yield Change(f"{field}_words", list(reading.unknown), [], reason)
