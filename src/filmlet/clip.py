"""The Python door: `generate` folds what `stream` yields into a Clip."""

import base64
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from filmlet.core.effective import Effective
from filmlet.core.events import Event, Finished, Frames, Pixels
from filmlet.core.request import ClipRequest, ClipSettings, clip_request
from filmlet.media import poster, tags, writing
from filmlet.pipeline import stages
from filmlet.pipeline.plan import plan
from filmlet.pipeline.prepare import Work, fold, prepare
from filmlet.settings import Settings


@dataclass(frozen=True, eq=False)
class Clip:
    """A finished clip. frames: (frames, height, width, 3) uint8, RGB; timings: seconds a stage."""

    frames: Pixels
    requested: ClipRequest
    effective: Effective
    timings: dict[str, float]

    @property
    def poster(self) -> NDArray[np.uint8]:
        """The middle frame: (height, width, 3)."""
        return poster(self.frames)

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write the clip; the suffix (.mp4, .webm, .gif, .webp) chooses the format.

        Raises OutputExists unless `force`, OutputUnwritable, DiskFull.
        """
        target = Path(path)
        with writing(target, self.effective.shape, tags(self.effective), force) as movie:
            movie.add(self.frames)
        return target

    def __repr__(self) -> str:
        shape = self.effective.shape
        return (
            f"Clip({self.effective.prompt!r}, {shape.width}x{shape.height}, {shape.frames} frames, "
            f"{shape.fps:g} fps, seed {self.effective.seed})"
        )

    def _repr_html_(self) -> str:
        """A player, for notebooks."""
        with TemporaryDirectory() as folder:
            data = base64.b64encode(self.save(Path(folder) / "clip.mp4").read_bytes()).decode()
        shape = self.effective.shape
        return (
            f'<video controls loop autoplay muted width="{shape.width}" height="{shape.height}" '
            f'src="data:video/mp4;base64,{data}"></video>'
        )


def stream(prompt: str, **settings: Unpack[ClipSettings]) -> Generator[Event]:
    """Yield Progress, Preview and Frames of one clip; closing it stops within one denoising step.

    The settings are those of `generate`.
    """
    work = yield from _prepare(clip_request(prompt, **settings))
    yield from stages.run(work)


def generate(prompt: str, **settings: Unpack[ClipSettings]) -> Clip:
    """Make one clip.

    The settings are the command line's: ClipSettings lists them, ClipRequest says what they mean.
    Raises InvalidRequest and the other FilmletErrors.
    """
    request = clip_request(prompt, **settings)
    work = fold(_prepare(request))
    timings: dict[str, float] = {}
    chunks = []
    for event in stages.run(work):
        if isinstance(event, Frames):
            chunks.append(event.pixels)
        if isinstance(event, Finished):
            timings[event.stage.value] = timings.get(event.stage.value, 0.0) + event.seconds
    return Clip(np.concatenate(chunks), request, work.effective, timings)


def _prepare(request: ClipRequest) -> Generator[Event, None, Work]:
    return prepare(plan(request), Settings.from_environment())
