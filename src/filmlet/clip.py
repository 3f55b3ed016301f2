"""The Python API: `generate` folds what `stream` yields into a Clip."""

import base64
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Unpack, cast

import numpy as np
from numpy.typing import NDArray

from filmlet.core.effective import EffectiveSettings
from filmlet.core.enhanced_prompt import EnhancedPrompt
from filmlet.core.events import (
    Audio,
    Event,
    Frames,
    Pixels,
    SettingsChanged,
    StageFinished,
    drain,
)
from filmlet.core.request import ClipOptions, ClipRequest, build_request
from filmlet.errors import ForkedProcess
from filmlet.media import is_picture, metadata_tags, poster, save_picture, write_video
from filmlet.pipeline import stages
from filmlet.pipeline.engine_cache import EngineCache
from filmlet.pipeline.plan import make_plan
from filmlet.pipeline.prepare import PreparedClip, prepare
from filmlet.pipeline.run_context import RunContext
from filmlet.settings import Settings

PICTURES = ("image", "last_image")  # settings that may be pictures in memory
_processes: list[int] = []  # the one whose threads compute, once a clip was made
ENGINES = EngineCache()  # of all clips that this process makes through `generate` and `stream`


@dataclass(frozen=True, eq=False)
class Clip:
    """A finished clip. frames: (frames, height, width, 3) uint8, RGB; timings: seconds a stage.

    audio: its sound, None where it has none.
    """

    frames: Pixels
    requested: ClipRequest
    effective: EffectiveSettings
    timings: dict[str, float]
    audio: Audio | None = None

    @property
    def poster(self) -> NDArray[np.uint8]:
        """The middle frame: (height, width, 3)."""
        return poster(self.frames)

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write the clip; the suffix (.mp4, .webm, .gif, .webp) chooses the format.

        The first two have its sound. Raises OutputExists unless `force`, OutputUnwritable,
        DiskFull.
        """
        target = Path(path)
        effective = self.effective.in_format(target.suffix.removeprefix(".").lower())
        tags = metadata_tags(effective)
        with write_video(target, effective.shape, tags, force, self.audio) as movie:
            movie.add(self.frames)
        return target

    def __repr__(self) -> str:
        shape = self.effective.shape
        return (
            f"Clip({self.effective.prompt!r}, {shape.width}x{shape.height}, {shape.frames} frames, "
            f"{shape.fps:g} fps, seed {self.effective.seed})"
        )

    def _repr_html_(self) -> str:
        """Return a player, for notebooks."""
        with TemporaryDirectory() as folder:
            data = base64.b64encode(self.save(Path(folder) / "clip.mp4").read_bytes()).decode()
        shape = self.effective.shape
        return (
            f'<video controls loop autoplay muted width="{shape.width}" height="{shape.height}" '
            f'src="data:video/mp4;base64,{data}"></video>'
        )


def stream(prompt: str | EnhancedPrompt, **settings: Unpack[ClipOptions]) -> Generator[Event]:
    """Yield the events of one clip; closing it stops within one denoising step.

    The settings are those of `generate`.
    """
    with _pictures_as_files(settings) as named:
        clip = yield from _prepare_clip(build_request(prompt, **named))
        yield from stages.generate_frames(clip, RunContext(ENGINES))


def generate(prompt: str | EnhancedPrompt, **settings: Unpack[ClipOptions]) -> Clip:
    """Make one clip.

    The prompt is text, or what `enhance_prompt` returns. The settings are the command line's:
    ClipOptions lists them, ClipRequest says what they mean.
    image and last_image may be pictures in memory. Raises InvalidRequest and the other
    FilmletErrors.
    """
    with _pictures_as_files(settings) as named:
        return _generate(build_request(prompt, **named))


def _generate(request: ClipRequest) -> Clip:
    clip = drain(_prepare_clip(request))
    effective = clip.effective
    timings: dict[str, float] = {}
    chunks, audio = [], None
    for event in stages.generate_frames(clip, RunContext(ENGINES)):
        if isinstance(event, Frames):
            chunks.append(event.pixels)
        if isinstance(event, Audio):
            audio = event
        if isinstance(event, StageFinished):
            timings[event.stage.value] = timings.get(event.stage.value, 0.0) + event.seconds
        if isinstance(event, SettingsChanged):
            effective = event.effective
    return Clip(np.concatenate(chunks), request, effective, timings, audio)


def _prepare_clip(request: ClipRequest) -> Generator[Event, None, PreparedClip]:
    _check_process()
    return prepare(make_plan(request), Settings.from_environment(), engines=ENGINES)


def _check_process() -> None:
    """Raises ForkedProcess where OpenVINO and torch would wait for threads that are not there."""
    if not _processes:
        _processes.append(os.getpid())
    if _processes[0] != os.getpid():
        raise ForkedProcess(
            "This process was forked from one that has made a clip, and lacks the threads that "
            'compute: start it with multiprocessing.get_context("spawn").'
        )


@contextmanager
def _pictures_as_files(settings: ClipOptions) -> Iterator[ClipOptions]:
    """Yield the settings with pictures in memory as files, which are there until the block ends."""
    values = dict(settings)
    pictures = {name: values[name] for name in PICTURES if is_picture(values.get(name))}
    if not pictures:
        yield settings
        return
    with TemporaryDirectory(prefix="filmlet-") as folder:
        for name, picture in pictures.items():
            file = Path(folder) / f"{name}.png"
            save_picture(file, picture)
            values[name] = file
        yield cast(ClipOptions, values)
