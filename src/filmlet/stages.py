"""The story of one clip: prepare, load, encode, denoise, decode, mux."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch

from filmlet.card import ModelCard
from filmlet.engine import ltx
from filmlet.engine.denoise import Step
from filmlet.engine.ltx import Embeddings, LtxEngine, Recipe
from filmlet.engine.placement import Placement, choose
from filmlet.engine.text import Reading, Tokenizer, load_tokenizer, read
from filmlet.errors import NotFinite
from filmlet.events import Event, Frames, Pixels, Preview, Progress, Stage
from filmlet.media import tags, writing
from filmlet.plan import Plan
from filmlet.request import Change, Effective, Shape
from filmlet.settings import Settings

Denoising = Generator[Event, None, Step]


@dataclass(eq=False)
class Work:
    """One clip, ready to be made. `effective` changes only if it must be run in float32."""

    plan: Plan
    placement: Placement
    prompt: Reading
    negative: Reading | None
    effective: Effective

    @property
    def recipe(self) -> Recipe:
        done = self.effective
        return Recipe(done.shape, done.sigmas, done.guidance, done.seed)


def prepare(plan: Plan, settings: Settings) -> Work:
    """Read the prompt and choose where to compute; nothing heavy is loaded yet."""
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
        guidance=plan.guidance,
        device=placement.device,
        dtype=placement.dtype_name,
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


def film(work: Work, path: Path, force: bool = False) -> Generator[Event]:
    """Make the clip and write it to `path` while it is being decoded."""
    events = run(work)
    for event in events:
        if isinstance(event, Frames):
            first = event
            break
        yield event
    shape = work.effective.shape
    with writing(path, shape, tags(work.effective), force) as movie:
        movie.add(first.pixels)
        yield first
        for event in events:
            if isinstance(event, Frames):
                movie.add(event.pixels)
            yield event
        yield Progress(Stage.MUX, 0, shape.frames)
    yield Progress(Stage.MUX, shape.frames, shape.frames)


def _make(work: Work) -> Iterator[Event]:
    yield Progress(Stage.LOAD, 0, 1)
    engine = load_engine(work.plan.card, work.plan.folder, work.placement)
    yield Progress(Stage.LOAD, 1, 1)
    yield Progress(Stage.ENCODE, 0, 1)
    embeddings = Embeddings(
        engine.encode(work.prompt), engine.encode(work.negative) if work.negative else None
    )
    yield Progress(Stage.ENCODE, 1, 1)
    step = yield from _denoise(work, engine, embeddings)
    yield from _decode(work, engine, step)


def _denoise(work: Work, engine: LtxEngine, embeddings: Embeddings) -> Denoising:
    recipe = work.recipe
    yield Progress(Stage.DENOISE, 0, len(recipe.sigmas))
    for step in engine.denoise(embeddings, recipe):
        yield Progress(Stage.DENOISE, step.done, len(recipe.sigmas))
        image = engine.preview(step.clean, recipe.shape)
        if image is not None:
            yield Preview(step.done, image)
    return step


def _decode(work: Work, engine: LtxEngine, step: Step) -> Iterator[Event]:
    shape, done = work.effective.shape, 0
    yield Progress(Stage.DECODE, 0, shape.frames)
    for pixels in engine.decode(step.latents, work.recipe):
        wanted = cut(pixels, shape)[: shape.frames - done]
        if len(wanted):
            done += len(wanted)
            yield Frames(wanted)
            yield Progress(Stage.DECODE, done, shape.frames)
        if done == shape.frames:
            return  # the rest would only be cut off


def cut(pixels: Pixels, shape: Shape) -> Pixels:
    """The middle of each made frame, at the size that was asked for."""
    top = (shape.made_height - shape.height) // 2
    left = (shape.made_width - shape.width) // 2
    return pixels[:, top : top + shape.height, left : left + shape.width]


@lru_cache(maxsize=1)
def load_engine(card: ModelCard, folder: Path, placement: Placement) -> LtxEngine:
    """The engine of a card, kept for the next clip of the same model."""
    return ltx.load(card, folder, placement)


@lru_cache(maxsize=4)
def _tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


def _fall_back(work: Work, error: str) -> None:
    """Run in float32 from here on, and say so."""
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
