"""The model calls of one stage, window by window; what each window and step comes to is kept."""

import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from filmlet.core.events import Event, Preview, Progress, Stage
from filmlet.core.windows import Window, window_of_frame
from filmlet.engine.arrays import Array, Tensors, array_namespace, unpack_latents
from filmlet.engine.base import DenoiseParams, Engine, PromptEmbeds, ResumeState
from filmlet.engine.conditioning import GuideLatents
from filmlet.engine.sampler import DenoiseStep
from filmlet.pipeline.artifacts import ArtifactStore

StageGenerator = Generator[Event, None, Tensors]
RESULT_NAMES = {Stage.DENOISE: "latents", Stage.REFINE: "refined"}  # what a stage comes to
CHECKPOINT_NAMES = {Stage.DENOISE: "step", Stage.REFINE: "refine-step"}  # and its latest step
WINDOW_SEED_STRIDE = 0x9E3779B1  # odd, so that no two windows of a clip have one seed


@dataclass(frozen=True, eq=False)
class DenoisePass:
    """One stage of a clip before its latents are there.

    recipe: of the whole clip. prompt_embeds: by a window's prompt. guides: where they stand in the
    whole.
    init_latents: what a second stage starts from, (1, tokens, channels). first_preview_step:
    Previews of the first.
    """

    stage: Stage
    engine: Engine
    recipe: DenoiseParams
    windows: Sequence[Window]
    prompt_embeds: Sequence[PromptEmbeds]
    guides: Sequence[GuideLatents]
    init_latents: Array | None = None
    first_preview_step: int = 0

    @property
    def window_names(self) -> list[str]:
        """Under which its windows are kept; a clip in one window has no others than the whole."""
        many = len(self.windows) > 1
        return [f"{RESULT_NAMES[self.stage]}-{i}" for i in range(1, len(self.windows) + 1) if many]

    @property
    def steps_per_window(self) -> int:
        """Steps of each window."""
        return len(self.recipe.sigmas)

    def token_count(self, frames: int) -> int:
        """Of so many latent frames."""
        _, height, width = self.engine.latent_shape(self.recipe.shape)
        return frames * height * width

    def window_params(self, index: int) -> DenoiseParams:
        """One window's own: it begins at time 0 as a clip does, with noise of its own."""
        time = self.engine.card.grid.temporal_compression
        frames = (len(self.windows[index].latents(time)) - 1) * time + 1
        seed = (self.recipe.seed + index * WINDOW_SEED_STRIDE) % 2**32
        shape = replace(self.recipe.shape, generated_frames=frames)
        return replace(self.recipe, shape=shape, seed=seed)

    def denoise_window(
        self, index: int, latents: Sequence[Array], start: ResumeState | None
    ) -> Iterator[DenoiseStep]:
        """Denoise one window behind those that are made, from its start or a step that is kept."""
        window, recipe = self.windows[index], self.window_params(index)
        guides = [*self._overlap_guide(window, latents), *self._window_guides(window)]
        text = self.prompt_embeds[window.prompt_index]
        if self.init_latents is None:
            return self.engine.denoise(text, recipe, start, guides)
        span = window.latents(self.engine.card.grid.temporal_compression)
        rough = self.init_latents[:, self.token_count(span.start) : self.token_count(span.stop)]
        return self.engine.refine(text, recipe, rough, start, guides)

    def _overlap_guide(self, window: Window, latents: Sequence[Array]) -> Iterator[GuideLatents]:
        """The last latents so far, as they are: decoded and seen anew they would be others."""
        if window.overlap_frames:
            frames = window.overlap_frames // self.engine.card.grid.temporal_compression
            _, *sides = self.engine.latent_shape(self.recipe.shape)
            last = concat_windows(latents)[:, -self.token_count(frames) :]
            yield GuideLatents(unpack_latents(last, frames, *sides), 0, 1.0)

    def _window_guides(self, window: Window) -> Iterator[GuideLatents]:
        """Those whose first frame is new in it, by its own time."""
        time = self.engine.card.grid.temporal_compression
        for guide in self.guides:
            if window_of_frame(self.windows, guide.frame) is window:
                yield replace(guide, frame=guide.frame - window.latents(time).start * time)


def concat_windows(latents: Sequence[Array]) -> Array:
    """Latents of windows, (1, tokens, channels), one after the other."""
    return array_namespace(latents[0]).concat([*latents], 1)


def run_denoise_pass(
    reel: DenoisePass, shelf: ArtifactStore, cancelled: threading.Event
) -> StageGenerator:
    """Make the windows that are not kept; Progress counts the calls of all of them.

    Returns the latents of the whole, (1, tokens, channels). Raises Cancelled, NonFiniteValues.
    """
    saved_windows = takewhile(lambda window: window is not None, map(shelf.load, reel.window_names))
    latents = [window["latents"] for window in saved_windows if window]
    start = _load_checkpoint(reel, shelf, len(latents))
    done, total = reel.steps_per_window * len(latents), reel.steps_per_window * len(reel.windows)
    yield Progress(reel.stage, done + (start.done if start else 0), total)
    with reel.engine.cancel_when(lambda: not cancelled.is_set()):
        for index in range(len(latents), len(reel.windows)):
            tokens = yield from _run_window(
                reel, shelf, index, reel.denoise_window(index, latents, start)
            )
            shared = (
                reel.windows[index].overlap_frames // reel.engine.card.grid.temporal_compression
            )
            latents.append(tokens[:, reel.token_count(shared) :])
            if reel.window_names:
                shelf.save(reel.window_names[index], {"latents": latents[-1]})
            start = None
    return {"latents": concat_windows(latents)}


def _run_window(
    reel: DenoisePass, shelf: ArtifactStore, index: int, steps: Iterator[DenoiseStep]
) -> Generator[Event, None, Array]:
    """Steps as events; the latest is kept, so that a crash costs little."""
    before, total = reel.steps_per_window * index, reel.steps_per_window * len(reel.windows)
    shape, saved = reel.window_params(index).shape, time.monotonic()
    for step in steps:
        if (
            step.done < reel.steps_per_window
            and time.monotonic() - saved > shelf.checkpoint_interval_s
        ):
            counted = array_namespace(step.latents).asarray([step.done, index])
            checkpoint = {"latents": step.latents, "done": counted}
            checkpoint |= {} if step.keyframe_tokens is None else {"beside": step.keyframe_tokens}
            shelf.save(CHECKPOINT_NAMES[reel.stage], checkpoint)
            saved = time.monotonic()
        yield Progress(reel.stage, before + step.done, total)
        image = reel.engine.preview(step.pred_x0, shape)
        if image is not None:
            yield Preview(reel.first_preview_step + before + step.done, image)
    return step.latents


def _load_checkpoint(reel: DenoisePass, shelf: ArtifactStore, index: int) -> ResumeState | None:
    """The step that an earlier attempt had come to in this window."""
    checkpoint = shelf.load(CHECKPOINT_NAMES[reel.stage])
    if checkpoint is None:
        return None
    done, window = checkpoint["done"].tolist()
    return (
        ResumeState(done, checkpoint["latents"], checkpoint.get("beside"))
        if window == index
        else None
    )


def completed_window_name(progress: Progress, windows: int) -> str | None:
    """Under which name the window is kept that was over just before this call."""
    if progress.stage not in RESULT_NAMES or windows < 2:
        return None
    number, rest = divmod(progress.done - 1, progress.total // windows)
    return f"{RESULT_NAMES[progress.stage]}-{number}" if number > 0 and not rest else None
