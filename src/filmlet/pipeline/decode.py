"""From latents to the frames that the clip shows and the samples that it plays."""

from collections.abc import Generator, Iterable, Iterator
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from filmlet.core.events import Audio, Event, Frames, Pixels, Progress, Stage
from filmlet.core.shape import VideoShape
from filmlet.engine.arrays import Tensors, to_numpy
from filmlet.engine.base import Engine
from filmlet.engine.latents import Latents
from filmlet.pipeline.denoise import StageGenerator
from filmlet.pipeline.prepare import PreparedClip
from filmlet.pipeline.run_context import RunContext

SAMPLE_RATE = 48_000  # Hz, of clips whose sound is not the model's


def decode_stage(
    clip: PreparedClip, context: RunContext, engine: Engine, latents: Latents, emitted: int
) -> Generator[Event]:
    """Decode the picture. emitted: frames that an earlier run has given."""
    done, total = emitted, clip.effective.shape.frames
    progress = Progress(Stage.DECODE, done, total)
    yield progress
    for _ in engine.load_components("decoder"):
        yield progress  # so that it can be stopped
    generated = engine.decode(latents, clip.denoise_params, context.pixel_format)
    for pixels in _clip_frames(clip, generated, emitted):
        done += len(pixels)
        yield Frames(pixels)
        yield Progress(Stage.DECODE, done, total)


def decode_audio_stage(
    clip: PreparedClip, context: RunContext, engine: Engine, latents: Latents
) -> StageGenerator:
    """Decode the sound, and join it to that of the clip that is extended.

    Returns an `Audio` as tensors.
    """
    progress, plan = Progress(Stage.DECODE_AUDIO, 0, 1), clip.plan
    yield progress
    made, source = None, None
    if plan.makes_audio:
        for _ in engine.load_components("audio_vae", "vocoder"):
            yield progress  # so that it can be stopped
        made = engine.decode_audio(latents, clip.denoise_params, context.cancelled.is_set)
    rate = made.sample_rate if made else SAMPLE_RATE
    if plan.source_clip and plan.keeps_audio:
        source = plan.source_clip.audio(rate)
    yield Progress(Stage.DECODE_AUDIO, 1, 1)
    samples = join_audio(clip.effective.shape, rate, made, source)
    return engine.to_device({"samples": samples, "sample_rate": np.array([rate])})


def audio_from_tensors(tensors: Tensors) -> Audio:
    """The result of `decode_audio_stage`."""
    return Audio(to_numpy(tensors["samples"]), int(tensors["sample_rate"][0]))


def join_audio(
    shape: VideoShape, rate: int, made: Audio | None, source: Audio | None
) -> NDArray[np.float32]:
    """The samples that the clip plays, (samples, 2): as long as its frames.

    made: the sound of all frames that the model makes, of which those of the new ones are used.
    source: of the clip that is extended. Silence where there is none.
    """

    def count(frames: int) -> int:
        return round(frames / shape.fps * rate)

    played = np.zeros((count(shape.frames), 2), np.float32)

    def place(samples: NDArray[np.float32], first_frame: int, frames: int) -> None:
        start, stop = count(first_frame), count(first_frame + frames)
        part = samples[: stop - start]
        played[start : start + len(part)] = part

    is_backward = shape.extend_backward
    if made:
        first = shape.padding_frames if is_backward else shape.context_frames
        new = made.samples[count(first) :]
        place(new, 0 if is_backward else shape.source_frames, shape.new_frames)
    if source:
        place(source.samples, shape.new_frames if is_backward else 0, shape.source_frames)
    return played


def _clip_frames(clip: PreparedClip, generated: Iterable[Pixels], emitted: int) -> Iterator[Pixels]:
    """Yield the new frames, and those of the clip that they extend on its side."""
    shape, source = clip.effective.shape, clip.plan.source_clip
    if source is None:
        yield from crop_frames(generated, shape, emitted)
    elif shape.extend_backward:
        yield from crop_frames(generated, shape, emitted)
        yield from source.source_frames(shape, max(0, emitted - shape.new_frames))
    else:
        new = crop_frames(generated, shape, max(0, emitted - shape.source_frames))
        # Not before there is a new frame: the model may have to be run again in float32.
        first = next(new, None)
        yield from source.source_frames(shape, min(emitted, shape.source_frames))
        yield from chain([] if first is None else [first], new)


def crop_frames(
    frames: Iterable[Pixels], shape: VideoShape, already_emitted: int = 0
) -> Iterator[Pixels]:
    """Yield the new frames of a clip, in pieces as they come: neither context nor padding.

    frames: all that the model generates, in order; they are not read any further than the last
    new one. already_emitted: how many of the new frames are left out, the first.
    """
    before = shape.padding_frames if shape.extend_backward else shape.context_frames
    start, stop = before + already_emitted, before + shape.new_frames
    position = 0
    for pixels in frames:
        piece = pixels[max(0, start - position) : stop - position]
        position += len(pixels)
        if len(piece):
            yield piece
        if position >= stop:
            return  # the rest would only be cut off
