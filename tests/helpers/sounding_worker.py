"""A worker whose clips have sound, which a model would make: a click in the middle.

`python -m tests.helpers.sounding_worker`: its frames are made as everywhere.
"""

import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

from filmlet.core.events import Event, Frames, SettingsChanged
from filmlet.jobs import Job, Queue
from filmlet.jobs.worker import Worker
from filmlet.pipeline import stages
from filmlet.pipeline.prepare import PreparedClip
from filmlet.pipeline.run_context import RunContext
from filmlet.settings import Settings
from tests.helpers.queues import ask
from tests.helpers.sounds import FlashClip

PIECE_S = 0.15  # between two pieces of a clip's frames, so that it is seen to grow


def generate_with_sound(clip: PreparedClip, context: RunContext) -> Generator[Event]:
    """The clip's own frames, and the sound before them, as a model's that makes both."""
    shape = clip.effective.shape
    sound = FlashClip(shape.fps, shape.frames, shape.frames // 2, 24_000).audio
    yield SettingsChanged(replace(clip.effective, audio=True))
    is_first = True
    for event in stages.generate_frames(clip, context):
        if isinstance(event, Frames) and is_first:
            is_first = False
            yield sound
        yield event


def finish_job(settings: Settings, model: Path, *, with_sound: bool = True) -> Job:
    """A job that is made here, and its clip."""
    queue = Queue(settings)
    job = queue.submit(ask(model)).id
    generate = generate_with_sound if with_sound else stages.generate_frames
    Worker(settings, generate, queue).run_job(job)
    made = queue.get_job(job)
    queue.close()
    assert made.clip, made.failure
    return made


def generate_slowly(clip: PreparedClip, context: RunContext) -> Generator[Event]:
    for event in generate_with_sound(clip, context):
        yield event
        if isinstance(event, Frames):
            time.sleep(PIECE_S)


def main() -> None:
    Worker(Settings.from_environment(), generate_slowly).run()


if __name__ == "__main__":
    main()
