"""The model calls of one stage, window by window; what each window and step comes to is kept."""

import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from filmlet.core.events import Event, Preview, Progress, Stage
from filmlet.core.windows import Window, window_of_frame
from filmlet.engine.arrays import Tensors, array_namespace, unpack_latents
from filmlet.engine.base import DenoiseParams, Engine, PromptEmbeds
from filmlet.engine.conditioning import GuideLatents
from filmlet.engine.latents import (
    Latents,
    latents_from_tensors,
    latents_to_tensors,
)
from filmlet.engine.sampler import DenoiseStep, ResumeState
from filmlet.pipeline.artifacts import RESULT_NAMES, ArtifactStore

StageGenerator = Generator[Event, None, Tensors]
CHECKPOINT_NAMES = {Stage.DENOISE: "step", Stage.REFINE: "refine-step"}  # of the latest step
CHECKPOINT_INTERVAL_S = 5.0  # a crash while denoising costs one step, or this much
WINDOW_SEED_STRIDE = 0x9E3779B1  # odd, so that no two windows of a clip have one seed


@dataclass(frozen=True, eq=False)
class DenoisePass:
    """One stage of a clip before its latents are there.

    params: of the whole clip. prompt_embeds: by a window's prompt. guides: where they stand in the
    whole.
    init_latents: what a second stage starts from. first_preview_step: Previews of the first.
    """

    stage: Stage
    engine: Engine
    params: DenoiseParams
    windows: Sequence[Window]
    prompt_embeds: Sequence[PromptEmbeds]
    guides: Sequence[GuideLatents]
    init_latents: Latents | None = None
    first_preview_step: int = 0

    @property
    def window_names(self) -> list[str]:
        """Under which its windows are kept; a clip in one window has no others than the whole."""
        many = len(self.windows) > 1
        return [f"{RESULT_NAMES[self.stage]}-{i}" for i in range(1, len(self.windows) + 1) if many]

    @property
    def steps_per_window(self) -> int:
        """Steps of each window."""
        return len(self.params.sigmas)

    @property
    def total_steps(self) -> int:
        """Steps of all windows."""
        return self.steps_per_window * len(self.windows)

    def drop_overlap(self, index: int, latents: Latents) -> Latents:
        """The latents of a window that are new in it."""
        overlap = self.windows[index].overlap_frames
        shared = overlap // self.engine.card.grid.temporal_compression
        return replace(latents, video=latents.video[:, self.token_count(shared) :])

    def token_count(self, frames: int) -> int:
        """Return the tokens of so many latent frames."""
        _, height, width = self.engine.latent_shape(self.params.shape)
        return frames * height * width

    def window_params(self, index: int) -> DenoiseParams:
        """Return one window's own: it begins at time 0 as a clip does, with noise of its own."""
        time = self.engine.card.grid.temporal_compression
        frames = (len(self.windows[index].latents(time)) - 1) * time + 1
        seed = (self.params.seed + index * WINDOW_SEED_STRIDE) % 2**32
        shape = replace(self.params.shape, generated_frames=frames)
        return replace(self.params, shape=shape, seed=seed)

    def denoise_window(
        self, index: int, latents: Sequence[Latents], start: ResumeState | None
    ) -> Iterator[DenoiseStep]:
        """Denoise one window behind those that are made, from its start or a step that is kept."""
        window, params = self.windows[index], self.window_params(index)
        guides = [*self._overlap_guide(window, latents), *self._window_guides(window)]
        text = self.prompt_embeds[window.prompt_index]
        if self.init_latents is None:
            return self.engine.denoise(text, params, start, guides)
        span = window.latents(self.engine.card.grid.temporal_compression)
        tokens = slice(self.token_count(span.start), self.token_count(span.stop))
        rough = replace(self.init_latents, video=self.init_latents.video[:, tokens])
        return self.engine.refine(text, params, rough, start, guides)

    def _overlap_guide(self, window: Window, latents: Sequence[Latents]) -> Iterator[GuideLatents]:
        """The last latents so far, as they are: decoded and seen anew they would be others."""
        if window.overlap_frames:
            frames = window.overlap_frames // self.engine.card.grid.temporal_compression
            _, *sides = self.engine.latent_shape(self.params.shape)
            last = concat_windows(latents).video[:, -self.token_count(frames) :]
            yield GuideLatents(unpack_latents(last, frames, *sides), 0, 1.0)

    def _window_guides(self, window: Window) -> Iterator[GuideLatents]:
        """Yield those whose first frame is new in it, by its own time."""
        time = self.engine.card.grid.temporal_compression
        for guide in self.guides:
            if window_of_frame(self.windows, guide.frame) is window:
                yield replace(guide, frame=guide.frame - window.latents(time).start * time)


def concat_windows(latents: Sequence[Latents]) -> Latents:
    """Latents of windows, one after the other."""
    first, *others = latents
    return first.map(lambda *parts: array_namespace(parts[0]).concat(parts, 1), *others)


def run_denoise_pass(
    task: DenoisePass, artifacts: ArtifactStore, cancelled: threading.Event
) -> StageGenerator:
    """Denoise the windows that are not saved; Progress counts the model calls of all of them.

    Returns the latents of the whole. Raises Cancelled, NonFiniteValues.
    """
    latents = _load_windows(task, artifacts)
    start = _load_checkpoint(task, artifacts, len(latents))
    done = task.steps_per_window * len(latents) + (start.done if start else 0)
    yield Progress(task.stage, done, task.total_steps)
    with task.engine.cancel_when(cancelled.is_set):
        for index in range(len(latents), len(task.windows)):
            steps = task.denoise_window(index, latents, start)
            tokens = yield from _run_window(task, artifacts, index, steps)
            latents.append(task.drop_overlap(index, tokens))
            if task.window_names:
                artifacts.save(task.window_names[index], latents_to_tensors(latents[-1]))
            start = None
    return latents_to_tensors(concat_windows(latents))


def _run_window(
    task: DenoisePass, artifacts: ArtifactStore, index: int, steps: Iterator[DenoiseStep]
) -> Generator[Event, None, Latents]:
    """Yield steps as events; the latest is saved, so that a crash costs little."""
    before, shape = task.steps_per_window * index, task.window_params(index).shape
    saved = time.monotonic()
    for step in steps:
        is_last = step.done == task.steps_per_window
        if not is_last and time.monotonic() - saved > CHECKPOINT_INTERVAL_S:
            _save_checkpoint(task, artifacts, index, step)
            saved = time.monotonic()
        yield Progress(task.stage, before + step.done, task.total_steps)
        image = task.engine.preview(step.pred_x0, shape)
        if image is not None:
            yield Preview(task.first_preview_step + before + step.done, image)
    return step.latents


def _load_windows(task: DenoisePass, artifacts: ArtifactStore) -> list[Latents]:
    """Return the latents of the first windows, as far as they are saved."""
    windows = (artifacts.load(name, task.engine) for name in task.window_names)
    return [latents_from_tensors(window) for window in takewhile(bool, windows) if window]


def _save_checkpoint(
    task: DenoisePass, artifacts: ArtifactStore, index: int, step: DenoiseStep
) -> None:
    done = array_namespace(step.latents.video).asarray([step.done, index])
    checkpoint = latents_to_tensors(step.latents) | {"done": done}
    if step.keyframe_tokens is not None:
        checkpoint["beside"] = step.keyframe_tokens
    artifacts.save(CHECKPOINT_NAMES[task.stage], checkpoint)


def _load_checkpoint(task: DenoisePass, artifacts: ArtifactStore, index: int) -> ResumeState | None:
    """Return the latest step of an earlier attempt, if it is one of this window."""
    checkpoint = artifacts.load(CHECKPOINT_NAMES[task.stage], task.engine)
    if checkpoint is None:
        return None
    done, window = checkpoint["done"].tolist()
    if window != index:
        return None
    return ResumeState(done, latents_from_tensors(checkpoint), checkpoint.get("beside"))


def completed_window_name(progress: Progress, windows: int) -> str | None:
    """Under which name the window is kept that was over just before this call."""
    if progress.stage not in CHECKPOINT_NAMES or windows < 2:
        return None
    number, rest = divmod(progress.done - 1, progress.total // windows)
    return f"{RESULT_NAMES[progress.stage]}-{number}" if number > 0 and not rest else None
