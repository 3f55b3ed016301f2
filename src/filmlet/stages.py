"""The story of one clip: prepare, load, encode, denoise, decode, mux."""

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar, cast

import torch
from torch import Tensor

from filmlet.card import ModelCard
from filmlet.engine import artefacts, ltx
from filmlet.engine.artefacts import Tensors
from filmlet.engine.denoise import Step
from filmlet.engine.guiding import Shown
from filmlet.engine.ltx import Embeddings, LtxEngine, Recipe, Start
from filmlet.engine.placement import Placement, choose
from filmlet.engine.text import Reading, Tokenizer, load_tokenizer, read
from filmlet.errors import NotFinite
from filmlet.events import Event, Finished, Frames, Pixels, Preview, Progress, Stage
from filmlet.given import Given
from filmlet.media import (
    check_target,
    covering,
    explain,
    growing,
    part_of,
    place,
    tags,
)
from filmlet.plan import Plan
from filmlet.request import Change, Effective, Shape
from filmlet.settings import Settings

Value = TypeVar("Value")
Making = Generator[Event, None, Tensors]
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

    def file(self, name: str) -> Path | None:
        """Where a result of this name is kept, if at all."""
        return self.folder / name if self.folder else None

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
    told = list(_told("prompt", prompt, request.prompt, card))
    if negative:
        told += _told("negative_prompt", negative, request.negative_prompt, card)
    placement = choose(settings.device)
    if dtype and dtype != placement.dtype_name:
        placement = replace(placement, dtype=getattr(torch, dtype), reason="as it was begun")
    effective = Effective(
        prompt=prompt.text,
        prompt_tokens=prompt.tokens,
        negative_prompt=negative.text if negative else "",
        unknown_words=prompt.unknown,
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
    )
    return Work(plan, placement, prompt, negative, effective)


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


def film(
    work: Work, path: Path, force: bool = False, run: Callable[[Work], Generator[Event]] = run
) -> Generator[Event]:
    """Make the clip and write it to `path`; it grows beside it, or in the work's folder.

    run: what makes the frames; another process may.
    """
    form, shape = check_target(path, force), work.effective.shape
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
        place(grown, path, tags(work.effective))
    finally:
        if not work.folder:
            grown.unlink(missing_ok=True)
    yield Progress(Stage.MUX, shape.frames, shape.frames)
    yield Finished(Stage.MUX, time.perf_counter() - started)


def _grow(events: Generator[Event], work: Work, grown: Path, form: str) -> Generator[Event]:
    """Decode into a file that can be played meanwhile; it has its name when it is whole."""
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
    embeddings = Embeddings(told["prompt"], told.get("negative"))
    denoising = _denoise(work, engine, embeddings, _guides(work, told))
    made = yield from _kept(work, Stage.DENOISE, "latents", denoising)
    if work.effective.refine_sigmas:
        larger = _upsample(work, engine, made["latents"])
        made = yield from _kept(work, Stage.UPSAMPLE, "upsampled", larger)
        finer = _refine(work, engine, embeddings, made)
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
    file = work.file(f"{name}.safetensors")
    kept = artefacts.load(file, work.placement.device) if file else None
    if kept is not None:
        yield Finished(stage, 0.0, reused=True)
        return kept
    made = yield from _timed(stage, _saved(file, events))
    return made


def _saved(file: Path | None, events: Making) -> Making:
    made = yield from events
    if file:
        _keep(file, made)
    return made


def _keep(file: Path, made: Tensors) -> None:
    try:
        artefacts.save(file, made)
    except OSError as error:
        raise explain(error, file) from error


def encode(work: Work) -> Generator[Event]:
    """The first stage alone, kept in the work's folder: another process may do the others."""
    engine = yield from _timed(Stage.LOAD, _load(work))
    yield from _kept(work, Stage.ENCODE, "embeddings", _encode(work, engine))


def _load(work: Work) -> Generator[Event, None, LtxEngine]:
    key = work.plan.card, work.plan.folder, work.placement
    if key not in _engines:
        # One model at a time on a device: the other's memory is free before this one comes.
        for other in [k for k in _engines if k[2].device == work.placement.device]:
            del _engines[other]
        _engines[key] = yield from ltx.load(*key)
    else:
        yield Progress(Stage.LOAD, 1, 1)
    return _engines[key]


def _encode(work: Work, engine: LtxEngine) -> Making:
    yield Progress(Stage.ENCODE, 0, 1)
    made = {"prompt": engine.encode(work.prompt)}
    if work.negative:
        made["negative"] = engine.encode(work.negative)
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


def _denoise(work: Work, engine: LtxEngine, embeddings: Embeddings, guides: list[Shown]) -> Making:
    start = _left_at(work.file("step.safetensors"), engine)
    steps = engine.denoise(embeddings, work.first, start, guides)
    return (yield from _stepped(work, engine, work.first, Stage.DENOISE, start, steps))


def _upsample(work: Work, engine: LtxEngine, latents: Tensor) -> Making:
    yield Progress(Stage.UPSAMPLE, 0, 1)
    made = {"latents": engine.upsample(latents, work.recipe)}
    made |= _seen(work, engine, work.recipe.shape)
    yield Progress(Stage.UPSAMPLE, 1, 1)
    return made


def _refine(work: Work, engine: LtxEngine, embeddings: Embeddings, made: Tensors) -> Making:
    recipe = replace(work.recipe, sigmas=work.effective.refine_sigmas)
    start = _left_at(work.file("refine-step.safetensors"), engine)
    steps = engine.refine(embeddings, recipe, made["latents"], start, _guides(work, made))
    return (yield from _stepped(work, engine, recipe, Stage.REFINE, start, steps))


def _stepped(
    work: Work, engine: LtxEngine, recipe: Recipe, stage: Stage, start: Start | None,
    steps: Iterator[Step],
) -> Making:  # fmt: skip
    """Steps as events; the latest is kept, so that a crash costs little."""
    file = work.file("refine-step.safetensors" if stage == Stage.REFINE else "step.safetensors")
    total, saved = len(recipe.sigmas), time.monotonic()
    before = len(work.effective.sigmas) if stage == Stage.REFINE else 0
    yield Progress(stage, start.done if start else 0, total)
    with engine.stopping(lambda: not work.cancelled.is_set()):
        for step in steps:
            if file and step.done < total and time.monotonic() - saved > KEEP_EVERY_S:
                left = {"latents": step.latents, "done": torch.tensor(step.done)}
                _keep(file, left if step.beside is None else left | {"beside": step.beside})
                saved = time.monotonic()
            yield Progress(stage, step.done, total)
            image = engine.preview(step.clean, recipe.shape)
            if image is not None:
                yield Preview(before + step.done, image)
    return {"latents": step.latents}


def _left_at(file: Path | None, engine: LtxEngine) -> Start | None:
    """The step that an earlier attempt had come to."""
    kept = artefacts.load(file, engine.placement.device) if file else None
    return Start(int(kept["done"]), kept["latents"], kept.get("beside")) if kept else None


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
