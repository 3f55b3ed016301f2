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
    """Decode the sound; returns an `Audio` as tensors."""
    progress = Progress(Stage.DECODE_AUDIO, 0, 1)
    yield progress
    for _ in engine.load_components("audio_vae", "vocoder"):
        yield progress  # so that it can be stopped
    sound = engine.decode_audio(latents, clip.denoise_params, context.cancelled.is_set)
    yield Progress(Stage.DECODE_AUDIO, 1, 1)
    rate = np.array([sound.sample_rate])
    return engine.to_device({"samples": _clip_samples(clip, sound), "sample_rate": rate})


def audio_from_tensors(tensors: Tensors) -> Audio:
    """The result of `decode_audio_stage`."""
    return Audio(to_numpy(tensors["samples"]), int(tensors["sample_rate"][0]))


def _clip_samples(clip: PreparedClip, sound: Audio) -> NDArray[np.float32]:
    """The samples that the clip plays: as long as its frames, silence where there is no sound."""
    shape, rate = clip.effective.shape, sound.sample_rate

    def samples(frames: int) -> int:
        return round(frames / shape.fps * rate)

    first = shape.padding_frames if shape.extend_backward else shape.context_frames
    new = sound.samples[samples(first) : samples(first + shape.new_frames)]
    before = 0 if shape.extend_backward else samples(shape.source_frames)
    played = np.zeros((samples(shape.frames), new.shape[1]), np.float32)
    played[before : before + len(new)] = new[: len(played) - before]
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
