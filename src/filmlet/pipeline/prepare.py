"""One clip, ready to be made: its model is here, its prompt is read, its place is chosen."""

import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TypeVar, cast

from filmlet.core.effective import Effective
from filmlet.core.events import Event, Finished, Progress, Stage
from filmlet.core.lora import Adapter
from filmlet.core.memory import Hold
from filmlet.core.memory import choose as fitting
from filmlet.core.model_card import Files, ModelCard
from filmlet.core.shape import Change
from filmlet.engine import selection
from filmlet.engine.arrays import Tensors
from filmlet.engine.base import KILOBYTE, Engine, Recipe, kilobytes
from filmlet.engine.configs import check_loras, check_vocabulary
from filmlet.engine.placement import (
    TORCHS,
    Lever,
    Library,
    Placement,
    best_device,
    free_memory,
)
from filmlet.engine.tokenizer import Reading, Tokenizer, load_tokenizer, read
from filmlet.errors import CheckpointDamaged, CheckpointMissing
from filmlet.models import fetch, fetch_lora, locate, look_at_lora
from filmlet.pipeline.denoise import Shelf
from filmlet.pipeline.media_inputs import Given
from filmlet.pipeline.plan import Plan
from filmlet.settings import Settings

Value = TypeVar("Value")
KEEP_EVERY_S = 5.0  # a crash while denoising costs one step, or this much
# The engine of the last clip, for the next one.
loaded: dict[tuple[ModelCard, Files, Placement], Engine] = {}


@dataclass(eq=False)
class Work:
    """One clip, ready to be made. `effective` changes only if it must be run in another way.

    made: what the stages have come to, by name; drawn: frames that the decoder has given. folder:
    where the stages keep what they make; what is there is not made again. None keeps
    nothing. cancelled: set from another thread, it stops the work inside a model call.
    """

    plan: Plan
    files: Files
    loras: tuple[Adapter, ...]
    placement: Placement
    prompt: Reading
    negative: Reading | None
    effective: Effective
    made: dict[str, Tensors] = field(default_factory=dict)
    drawn: int = 0
    folder: Path | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    then: tuple[Reading, ...] = ()  # of further prompts
    is_planar: bool = False  # frames go into a video, whose encoder takes Planes
    confirm: Callable[[], None] = lambda: None  # raises if the folder is another attempt's now

    def file(self, name: str) -> Path | None:
        """Where a result of this name is kept, if at all."""
        return self.folder / name if self.folder else None

    @property
    def shelf(self) -> Shelf:
        """Where stages put what they make."""
        return Shelf(self.folder, self.placement, KEEP_EVERY_S, self.confirm)

    @property
    def recipe(self) -> Recipe:
        """The clip's shape and its first stage's levels."""
        done = self.effective
        return Recipe(done.shape, done.sigmas, done.guidance, done.seed, self.loras)

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
        second = () if self.effective.refine_sigmas else (Stage.UPSAMPLE, Stage.REFINE)
        return tuple(s for s in Stage if s not in (Stage.FETCH, *second))


def prepare(
    plan: Plan, settings: Settings, dtype: str | None = None, engine: str | None = None
) -> Generator[Event, None, Work]:
    """Fetch what is missing of the model, read the prompt and choose where to compute.

    Nothing heavy is loaded yet. dtype, engine: of an earlier attempt, so that its bytes come again;
    None chooses. Raises what `fetch` of models raises.
    """
    card, request = plan.card, plan.request
    files, loras = plan.files, tuple(adapter for adapter in plan.loras if adapter)
    if files is None or None in plan.loras:
        files, loras = yield from timed(Stage.FETCH, _fetched(plan, settings))
    if used := [adapter for adapter in loras if adapter.strength]:
        check_loras(files, used)
    tokenizer = _tokenizer(files.tokenizer)
    prompt = read(tokenizer, request.prompt, card.max_tokens)
    negative = None
    if plan.guidance > 1:
        negative = read(tokenizer, request.negative_prompt, card.max_tokens)
    then = tuple(read(tokenizer, text, card.max_tokens) for text in request.then)
    readings = (prompt, *then, *([negative] if negative else []))
    check_vocabulary(files, max(int(reading.ids.max()) for reading in readings))
    told = list(_told("prompt", prompt, request.prompt, card))
    for i, (reading, text) in enumerate(zip(then, request.then, strict=True), start=1):
        told += _told(f"then_{i}", reading, text, card)
    if negative:
        told += _told("negative_prompt", negative, request.negative_prompt, card)
    placement, against = _placed(plan, files, loras, settings, (dtype, engine))
    if against and (engine or settings.engine) == Library.OPENVINO:
        told.append(Change("engine", Library.OPENVINO, placement.library, against))
    for lever in _wanted(settings):
        if reason := selection.against(lever, placement, loras):
            told.append(Change(lever.value, 1, 0, reason))
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
        dtype=placement.dtype,
        hold=placement.hold.value,
        guides=tuple(guide.as_guide(plan.shape) for guide in plan.guides),
        extend=plan.clip.footage.name if plan.clip else None,
        loras=tuple(adapter.as_used() for adapter in loras),
        changes=(*plan.changes, *told),
        then=tuple(reading.text for reading in then),
        windows=plan.windows,
        engine=placement.library.value,
        levers=tuple(sorted(placement.levers)),
    )
    return Work(plan, files, loras, placement, prompt, negative, effective, then=then)


def _fetched(
    plan: Plan, settings: Settings
) -> Generator[Event, None, tuple[Files, tuple[Adapter, ...]]]:
    """The model's files and its LoRAs, all of them here."""
    card, asked = plan.card, plan.request.loras
    if not settings.fetch:
        raise CheckpointMissing(
            f"Weights of {card.name} or of its LoRAs are not on this machine, which fetches none "
            f"by itself: filmlet models pull {card.name}"
        )
    missing = [lora for lora, there in zip(asked, plan.loras, strict=True) if there is None]
    for so_far in chain(fetch(card), *map(fetch_lora, missing)):
        done = so_far.all_done // KILOBYTE
        yield Progress(Stage.FETCH, done, kilobytes(so_far.all_size))
    files = locate(card)
    if files is None:
        raise CheckpointDamaged(f"{card.name} was fetched and is not whole; try again.")
    pairs = zip(asked, plan.loras, strict=True)
    return files, tuple(there or look_at_lora(lora) for lora, there in pairs)


def _placed(
    plan: Plan,
    files: Files,
    loras: tuple[Adapter, ...],
    settings: Settings,
    begun: tuple[str | None, str | None],
) -> tuple[Placement, str | None]:
    """Where the clip is made, and why not by OpenVINO if that is not wanted away.

    begun: dtype and engine of an earlier attempt. Raises InvalidRequest, LibraryMissing.
    """
    device, (dtype, engine) = best_device(settings.device), begun
    wanted = engine or (Library.TORCH if dtype else settings.engine)
    against = None
    if wanted != Library.TORCH:
        is_forced = wanted == Library.OPENVINO
        against = selection.torchs(plan.card, plan.parameters)
        against = against or selection.against_openvino(files, device, loras, is_forced)
    if wanted != Library.TORCH and not against:
        found = selection.by_openvino(plan.card, files, settings.cache, settings.int8 > 0, dtype)
        if isinstance(found, Placement):
            hold = _hold(plan, files, found, settings)
            if hold in selection.HELD:
                return replace(found, hold=hold), None
            found = selection.LAYERS
        against = found
    placement = selection.by_torch(device, dtype, against)
    placement = replace(placement, cache=settings.cache)
    placement = replace(placement, hold=_hold(plan, files, placement, settings))
    used = (x for x in _wanted(settings) if not selection.against(x, placement, loras))
    return replace(placement, levers=frozenset(used)), against


def _wanted(settings: Settings) -> list[Lever]:
    """Levers of torch that are asked for."""
    return [lever for lever in TORCHS if getattr(settings, lever)]


def _hold(plan: Plan, files: Files, placement: Placement, settings: Settings) -> Hold:
    """How the model is held: as the settings say, as it is, or as there is memory for."""
    if settings.hold:
        return Hold(settings.hold)
    for card, where, held in loaded:
        alike = replace(held, hold=placement.hold, levers=placement.levers)
        if (card, where, alike) == (plan.card, files, placement):
            return held.hold
    found = plan.needs(placement.value_bytes)
    need = fitting(found, free_memory(placement.device))
    return need.hold if need else Hold.LAYERS


def timed(stage: Stage, events: Generator[Event, None, Value]) -> Generator[Event, None, Value]:
    """A stage's events, and at the end how long it took."""
    started = time.perf_counter()
    value = yield from events
    yield Finished(stage, time.perf_counter() - started)
    return value


def fold(events: Generator[object, None, Value]) -> Value:
    """What a stage comes to, its events unheard."""
    while True:
        try:
            next(events)
        except StopIteration as end:
            return cast(Value, end.value)


@lru_cache(maxsize=4)
def _tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


def _told(field: str, reading: Reading, prompt: str, card: ModelCard) -> Iterator[Change]:
    """What of a prompt does not reach the model."""
    if reading.cut:
        reason = f"{card.name} reads {card.max_tokens} tokens; this was cut off: {reading.cut!r}"
        yield Change(field, prompt, reading.text, reason)
    if reading.unknown:
        words = ", ".join(repr(word) for word in reading.unknown)
        reason = f"{card.name} does not know: {words}"
        yield Change(f"{field}_words", list(reading.unknown), [], reason)
