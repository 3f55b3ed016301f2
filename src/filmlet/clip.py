"""The Python API: `generate` folds what `stream` yields into a Clip."""

import base64
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from filmlet.core.effective import EffectiveSettings
from filmlet.core.events import Event, Frames, Pixels, SettingsChanged, StageFinished, drain
from filmlet.core.request import ClipOptions, ClipRequest, build_request
from filmlet.media import metadata_tags, poster, write_video
from filmlet.pipeline import stages
from filmlet.pipeline.engine_cache import EngineCache
from filmlet.pipeline.plan import make_plan
from filmlet.pipeline.prepare import PreparedClip, prepare
from filmlet.pipeline.run_context import RunContext
from filmlet.settings import Settings

ENGINES = EngineCache()  # of all clips that this process makes through `generate` and `stream`


@dataclass(frozen=True, eq=False)
class Clip:
    """A finished clip. frames: (frames, height, width, 3) uint8, RGB; timings: seconds a stage."""

    frames: Pixels
    requested: ClipRequest
    effective: EffectiveSettings
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
        with write_video(
            target, self.effective.shape, metadata_tags(self.effective), force
        ) as movie:
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


def stream(prompt: str, **settings: Unpack[ClipOptions]) -> Generator[Event]:
    """Yield the events of one clip; closing it stops within one denoising step.

    The settings are those of `generate`.
    """
    clip = yield from _prepare_clip(build_request(prompt, **settings))
    yield from stages.generate_frames(clip, RunContext(ENGINES))


def generate(prompt: str, **settings: Unpack[ClipOptions]) -> Clip:
    """Make one clip.

    The settings are the command line's: ClipOptions lists them, ClipRequest says what they mean.
    Raises InvalidRequest and the other FilmletErrors.
    """
    request = build_request(prompt, **settings)
    clip = drain(_prepare_clip(request))
    effective = clip.effective
    timings: dict[str, float] = {}
    chunks = []
    for event in stages.generate_frames(clip, RunContext(ENGINES)):
        if isinstance(event, Frames):
            chunks.append(event.pixels)
        if isinstance(event, StageFinished):
            timings[event.stage.value] = timings.get(event.stage.value, 0.0) + event.seconds
        if isinstance(event, SettingsChanged):
            effective = event.effective
    return Clip(np.concatenate(chunks), request, effective, timings)


def _prepare_clip(request: ClipRequest) -> Generator[Event, None, PreparedClip]:
    return prepare(make_plan(request), Settings.from_environment(), engines=ENGINES)
