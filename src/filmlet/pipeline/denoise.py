"""The model calls of one stage, window by window; what each window and step comes to is kept."""

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from filmlet.core.events import Event, Preview, Progress, Stage
from filmlet.core.windows import Window, holding
from filmlet.engine import tensor_files
from filmlet.engine.arrays import Array, Tensors, unpack, words
from filmlet.engine.base import Embeddings, Engine, Recipe, Start
from filmlet.engine.conditioning import Shown
from filmlet.engine.placement import Placement
from filmlet.engine.sampler import Step
from filmlet.media import explain

Making = Generator[Event, None, Tensors]
KEPT = {Stage.DENOISE: "latents", Stage.REFINE: "refined"}  # what a stage comes to
STEP = {Stage.DENOISE: "step", Stage.REFINE: "refine-step"}  # and its latest step
SEED_STEP = 0x9E3779B1  # odd, so that no two windows of a clip have one seed


@dataclass(frozen=True)
class Shelf:
    """Where results are kept: a folder, or nowhere. every_s: how often a step is.

    confirm: raises if results may not be kept there any more.
    """

    folder: Path | None
    placement: Placement
    every_s: float
    confirm: Callable[[], None] = lambda: None

    def load(self, name: str) -> Tensors | None:
        """What is kept under a name, if it can be read."""
        file = self.folder / f"{name}.safetensors" if self.folder else None
        return tensor_files.load(file, self.placement) if file else None

    def save(self, name: str, tensors: Tensors) -> None:
        """Keep it. Raises DiskFull and the like."""
        if not self.folder:
            return
        file = self.folder / f"{name}.safetensors"
        try:
            tensor_files.save(file, tensors, self.confirm)
        except OSError as error:
            raise explain(error, file) from error


@dataclass(frozen=True, eq=False)
class Reel:
    """One stage of a clip before its latents are there.

    recipe: of the whole clip. texts: by a window's prompt. guides: where they stand in the whole.
    rough: what a second stage starts from, (1, tokens, channels). before: Previews of the first.
    """

    stage: Stage
    engine: Engine
    recipe: Recipe
    windows: Sequence[Window]
    texts: Sequence[Embeddings]
    guides: Sequence[Shown]
    rough: Array | None = None
    before: int = 0

    @property
    def names(self) -> list[str]:
        """Under which its windows are kept; a clip in one window has no others than the whole."""
        many = len(self.windows) > 1
        return [f"{KEPT[self.stage]}-{i}" for i in range(1, len(self.windows) + 1) if many]

    @property
    def calls(self) -> int:
        """Steps of each window."""
        return len(self.recipe.sigmas)

    def tokens(self, frames: int) -> int:
        """Of so many latent frames."""
        _, height, width = self.engine.latent_shape(self.recipe.shape)
        return frames * height * width

    def recipe_of(self, index: int) -> Recipe:
        """One window's own: it begins at time 0 as a clip does, with noise of its own."""
        time = self.engine.card.grid.time
        frames = (len(self.windows[index].latents(time)) - 1) * time + 1
        seed = (self.recipe.seed + index * SEED_STEP) % 2**32
        shape = replace(self.recipe.shape, made_frames=frames)
        return replace(self.recipe, shape=shape, seed=seed)

    def steps(self, index: int, made: Sequence[Array], start: Start | None) -> Iterator[Step]:
        """Denoise one window behind those that are made, from its start or a step that is kept."""
        window, recipe = self.windows[index], self.recipe_of(index)
        guides = [*self._shared(window, made), *self._guides(window)]
        text = self.texts[window.prompt]
        if self.rough is None:
            return self.engine.denoise(text, recipe, start, guides)
        span = window.latents(self.engine.card.grid.time)
        rough = self.rough[:, self.tokens(span.start) : self.tokens(span.stop)]
        return self.engine.refine(text, recipe, rough, start, guides)

    def _shared(self, window: Window, made: Sequence[Array]) -> Iterator[Shown]:
        """The last latents so far, as they are: decoded and seen anew they would be others."""
        if window.shared:
            frames = window.shared // self.engine.card.grid.time
            _, *sides = self.engine.latent_shape(self.recipe.shape)
            last = joined(made)[:, -self.tokens(frames) :]
            yield Shown(unpack(last, frames, *sides), 0, 1.0)

    def _guides(self, window: Window) -> Iterator[Shown]:
        """Those whose first frame is new in it, by its own time."""
        time = self.engine.card.grid.time
        for guide in self.guides:
            if holding(self.windows, guide.frame) is window:
                yield replace(guide, frame=guide.frame - window.latents(time).start * time)


def joined(made: Sequence[Array]) -> Array:
    """Latents of windows, (1, tokens, channels), one after the other."""
    return words(made[0]).concat([*made], 1)


def shoot(reel: Reel, shelf: Shelf, cancelled: threading.Event) -> Making:
    """Make the windows that are not kept; Progress counts the calls of all of them.

    Returns the latents of the whole, (1, tokens, channels). Raises Cancelled, NotFinite.
    """
    kept = takewhile(lambda one: one is not None, map(shelf.load, reel.names))
    made = [one["latents"] for one in kept if one]
    start = _left_at(reel, shelf, len(made))
    done, total = reel.calls * len(made), reel.calls * len(reel.windows)
    yield Progress(reel.stage, done + (start.done if start else 0), total)
    with reel.engine.stopping(lambda: not cancelled.is_set()):
        for index in range(len(made), len(reel.windows)):
            tokens = yield from _window(reel, shelf, index, reel.steps(index, made, start))
            shared = reel.windows[index].shared // reel.engine.card.grid.time
            made.append(tokens[:, reel.tokens(shared) :])
            if reel.names:
                shelf.save(reel.names[index], {"latents": made[-1]})
            start = None
    return {"latents": joined(made)}


def _window(
    reel: Reel, shelf: Shelf, index: int, steps: Iterator[Step]
) -> Generator[Event, None, Array]:
    """Steps as events; the latest is kept, so that a crash costs little."""
    before, total = reel.calls * index, reel.calls * len(reel.windows)
    shape, saved = reel.recipe_of(index).shape, time.monotonic()
    for step in steps:
        if step.done < reel.calls and time.monotonic() - saved > shelf.every_s:
            counted = words(step.latents).asarray([step.done, index])
            left = {"latents": step.latents, "done": counted}
            left |= {} if step.beside is None else {"beside": step.beside}
            shelf.save(STEP[reel.stage], left)
            saved = time.monotonic()
        yield Progress(reel.stage, before + step.done, total)
        image = reel.engine.preview(step.clean, shape)
        if image is not None:
            yield Preview(reel.before + before + step.done, image)
    return step.latents


def _left_at(reel: Reel, shelf: Shelf, index: int) -> Start | None:
    """The step that an earlier attempt had come to in this window."""
    kept = shelf.load(STEP[reel.stage])
    if kept is None:
        return None
    done, window = kept["done"].tolist()
    return Start(done, kept["latents"], kept.get("beside")) if window == index else None


def last_window(progress: Progress, windows: int) -> str | None:
    """Under which name the window is kept that was over just before this call."""
    if progress.stage not in KEPT or windows < 2:
        return None
    number, rest = divmod(progress.done - 1, progress.total // windows)
    return f"{KEPT[progress.stage]}-{number}" if number > 0 and not rest else None
