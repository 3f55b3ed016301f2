"""From latents to the frames that the clip shows."""

from collections.abc import Generator, Iterable, Iterator
from itertools import chain

from filmlet.core.events import Event, Frames, Pixels, Progress, Stage
from filmlet.core.shape import VideoShape
from filmlet.engine.base import Engine
from filmlet.engine.latents import Latents
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
