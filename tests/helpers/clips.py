"""Clips made for tests: footage to begin with, a run, and what came of it."""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from filmlet.clip import ENGINES
from filmlet.core.effective import EffectiveSettings
from filmlet.core.events import Event, Pixels, Progress, SettingsChanged, Stage, drain
from filmlet.core.request import build_request
from filmlet.core.shape import Change, VideoShape
from filmlet.media import iter_frames, write_video
from filmlet.pipeline import stages
from filmlet.pipeline.artifacts import ArtifactStore
from filmlet.pipeline.plan import Plan, make_plan
from filmlet.pipeline.prepare import PreparedClip, prepare
from filmlet.pipeline.run_context import RunContext
from filmlet.settings import Settings


@dataclass(eq=False)
class ClipRun:
    """A clip ready to be made, what it is made with, and the settings that it was made with."""

    clip: PreparedClip
    context: RunContext = field(default_factory=lambda: RunContext(ENGINES))

    @property
    def plan(self) -> Plan:
        return self.clip.plan

    @property
    def effective(self) -> EffectiveSettings:
        return self.clip.effective

    @property
    def folder(self) -> Path:
        assert self.context.artifacts.folder
        return self.context.artifacts.folder

    def keep_in(self, folder: Path | None) -> "ClipRun":
        """Have the results kept in a folder from now on."""
        if folder:
            folder.mkdir(exist_ok=True)
        self.context = replace(self.context, artifacts=ArtifactStore(folder))
        return self

    def frames(self) -> Generator[Event]:
        """The events of the clip; its settings are followed."""
        for event in stages.generate_frames(self.clip, self.context):
            if isinstance(event, SettingsChanged):
                self.clip = replace(self.clip, effective=event.effective)
            yield event

    def write(self, path: Path, force: bool = False) -> Generator[Event]:
        """The events of the clip while it is written to `path`."""
        for event in stages.generate_clip(self.clip, self.context, path, force):
            if isinstance(event, SettingsChanged):
                self.clip = replace(self.clip, effective=event.effective)
            yield event

    def engine(self) -> Any:
        """What computes it, loaded."""
        return stages.load_engine(self.clip, self.context.engines)


def prepare_run(
    plan: Plan, settings: Settings, dtype: str | None = None, engine: str | None = None
) -> ClipRun:
    """A run of a plan, with the engines of this process."""
    return ClipRun(drain(prepare(plan, settings, dtype, engine, ENGINES)))


def footage(frames: int = 1, seed: int = 0, size: tuple[int, int] = (96, 64)) -> Pixels:
    """Smooth random frames: (frames, height, width, 3)."""
    width, height = size
    rough = np.random.default_rng(seed).integers(0, 256, (frames, 4, 6, 3), dtype=np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(f).resize(size, Image.Resampling.BICUBIC)) for f in rough]
    ).reshape(frames, height, width, 3)


def keep(path: Path, pixels: Pixels) -> str:
    """A picture, or a clip at 12 frames a second, in a file."""
    if len(pixels) == 1:
        Image.fromarray(pixels[0]).save(path)
    else:
        _, height, width, _ = pixels.shape
        shape = VideoShape(width, height, len(pixels), 12.0, width, height, len(pixels))
        with write_video(path, shape, {}) as movie:
            movie.add(pixels)
    return str(path)


def work_for(model: Path | str, **settings: object) -> ClipRun:
    small = {"size": "96x64", "frames": 25, "steps": 3, "seed": 2, "model": str(model)}
    request = build_request("a red ball", **(small | settings))
    return prepare_run(make_plan(request), Settings(device="cpu"), "float32")


def film(work: ClipRun, path: Path, until: Stage | None = None) -> list[Event]:
    """The events of a clip, up to the first thing that a stage has done."""
    told = []
    with closing(work.write(path, force=True)) as events:
        for event in events:
            told.append(event)
            if isinstance(event, Progress) and event.stage == until and event.done:
                break
    return told


def frames_in(path: Path) -> Pixels:
    return np.stack(list(iter_frames(path)))


def changes(work: ClipRun) -> dict[str, Change]:
    return {change.field: change for change in work.effective.changes}


def distance(one: Pixels, other: Pixels) -> float:
    return float(np.abs(one.astype(float) - other).mean())
