"""Clips made for tests: footage to begin with, the work, and what came of it."""

from contextlib import closing
from pathlib import Path

import numpy as np
from PIL import Image

from filmlet.core.events import Event, Pixels, Progress, Stage, drain
from filmlet.core.request import build_request
from filmlet.core.shape import Change, VideoShape
from filmlet.media import iter_frames, write_video
from filmlet.pipeline import stages
from filmlet.pipeline.plan import make_plan
from filmlet.pipeline.prepare import GenerationState, prepare
from filmlet.settings import Settings


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


def work_for(model: Path | str, **settings: object) -> GenerationState:
    small = {"size": "96x64", "frames": 25, "steps": 3, "seed": 2, "model": str(model)}
    request = build_request("a red ball", **(small | settings))
    return drain(prepare(make_plan(request), Settings(device="cpu"), "float32"))


def film(work: GenerationState, path: Path, until: Stage | None = None) -> list[Event]:
    """The events of a clip, up to the first thing that a stage has done."""
    told = []
    with closing(stages.write_clip(work, path, force=True)) as events:
        for event in events:
            told.append(event)
            if isinstance(event, Progress) and event.stage == until and event.done:
                break
    return told


def frames_in(path: Path) -> Pixels:
    return np.stack(list(iter_frames(path)))


def changes(work: GenerationState) -> dict[str, Change]:
    return {change.field: change for change in work.effective.changes}


def distance(one: Pixels, other: Pixels) -> float:
    return float(np.abs(one.astype(float) - other).mean())
