"""The story of one clip: plan, load, encode, denoise, decode, mux."""

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
from filmlet.errors import InvalidRequest, NotFinite
from filmlet.events import Event, Frames, Pixels, Preview, Progress, Stage
from filmlet.media import tags, writing
from filmlet.models import check, find
from filmlet.request import Change, ClipRequest, Effective, Shape, fit
from filmlet.settings import Settings

Denoising = Generator[Event, None, Step]


@dataclass(eq=False)
class Work:
    """One clip that is planned. `effective` changes only if the model must be run in float32."""

    request: ClipRequest
    card: ModelCard
    placement: Placement
    prompt: Reading
    negative: Reading | None
    effective: Effective

    @property
    def recipe(self) -> Recipe:
        done = self.effective
        return Recipe(done.shape, done.sigmas, done.guidance, done.seed)


def plan(request: ClipRequest, settings: Settings) -> Work:
    """Decide everything before anything heavy is loaded; raises what is wrong with the request."""
    card = find(request.model)
    shape, changes = fit(request, card.grid)
    sigmas = _sigmas(request, card, changes)
    guidance = _guidance(request, card)
    tokenizer = _tokenizer(check(card))
    prompt = _read(tokenizer, "prompt", request.prompt, card, changes)
    negative = None
    if guidance > 1:
        negative = read(tokenizer, request.negative_prompt, card.max_tokens)
    elif request.negative_prompt:
        reason = f"{card.name} runs without guidance, which a negative prompt needs"
        changes.append(Change("negative_prompt", request.negative_prompt, "", reason))
    placement = choose(settings.device)
    effective = Effective(
        prompt=prompt.text,
        prompt_tokens=prompt.tokens,
        negative_prompt=request.negative_prompt if negative else "",
        unknown_words=prompt.unknown,
        model=card.name,
        revision=card.revision,
        seed=Effective.fresh_seed() if request.seed is None else request.seed,
        shape=shape,
        sigmas=sigmas,
        guidance=guidance,
        device=placement.device,
        dtype=placement.dtype_name,
        changes=tuple(changes),
    )
    return Work(request, card, placement, prompt, negative, effective)


def run(work: Work) -> Generator[Event]:
    """Make the clip: Progress of each stage, a Preview a step, Frames cut to what was asked.

    Close the generator to stop within one model call. A model that leaves the range of its dtype is
    run once more in float32. Raises NotFinite where that does not help.
    """
    try:
        yield from _make(work)
    except NotFinite as error:
        if work.placement.dtype == torch.float32:
            raise NotFinite(
                f"{error} This happens in float32 as well, so {work.card.name} is damaged or its "
                "settings are too far off; no clip was written."
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
    engine = load_engine(work.card, work.placement)
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


def cut(pixels: Pixels, shape: Shape) -> Pixels:
    """The middle of each made frame, at the size that was asked for."""
    top = (shape.made_height - shape.height) // 2
    left = (shape.made_width - shape.width) // 2
    return pixels[:, top : top + shape.height, left : left + shape.width]


@lru_cache(maxsize=1)
def load_engine(card: ModelCard, placement: Placement) -> LtxEngine:
    """The engine of a card, kept for the next clip of the same model."""
    return ltx.load(card, check(card), placement)


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


def _sigmas(request: ClipRequest, card: ModelCard, changes: list[Change]) -> tuple[float, ...]:
    steps = card.schedule.steps if request.steps is None else request.steps
    if steps > card.max_steps:
        raise InvalidRequest(
            f"steps must be between 1 and {card.max_steps}, got {steps}.", param="steps"
        )
    sigmas = card.schedule.at(steps)
    if card.distilled and steps != card.schedule.steps:
        reason = f"{card.name} is distilled for {card.schedule.steps} steps; expect a weaker clip"
        changes.append(Change("sigmas", None, sigmas, reason))
    return sigmas


def _guidance(request: ClipRequest, card: ModelCard) -> float:
    if request.guidance is None:
        return card.guidance
    if card.distilled and request.guidance > 1 and not request.force_guidance:
        raise InvalidRequest(
            f"{card.name} is distilled to run without guidance, and guidance {request.guidance:g} "
            "would spoil its clips; say --force-guidance to do it all the same.",
            param="guidance",
        )
    return request.guidance


def _read(
    tokenizer: Tokenizer, field: str, prompt: str, card: ModelCard, changes: list[Change]
) -> Reading:
    reading = read(tokenizer, prompt, card.max_tokens)
    if reading.cut:
        reason = f"{card.name} reads {card.max_tokens} tokens; this was cut off: {reading.cut!r}"
        changes.append(Change(field, prompt, reading.text, reason))
    if reading.unknown:
        words = ", ".join(repr(word) for word in reading.unknown)
        reason = f"{card.name} does not know: {words}"
        changes.append(Change(f"{field}_words", list(reading.unknown), [], reason))
    return reading
