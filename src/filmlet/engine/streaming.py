"""Frames through the modules of a decoder, a few at a time; for arrays of every library."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol

from filmlet.engine.arrays import Array

PIECE = 8  # frames


class ChunkSize(NamedTuple):
    """How a stream is fed: about so many frames at a time. extra_at_end: as many more come at the
    end.
    """

    frames: int = PIECE
    extra_at_end: int = 0


class StreamingModule(Protocol):
    """A piece of the decoder: frames in, as many frames out as can be known yet.

    All arrays are (batch, channels, frames, ...).
    """

    def push(self, x: Array, last: bool) -> Array: ...


def run_streaming(
    streams: Sequence[StreamingModule], chunks: Iterable[Array], takes: Sequence[ChunkSize] = ()
) -> Iterator[Array]:
    """Yield frames through the streams, one after the other.

    takes: of each stream but the first, which takes chunks.
    """
    takes = (*(takes or [ChunkSize()] * (len(streams) - 1)), ChunkSize())
    pending: Array | None = None
    for chunk in chunks:
        if pending is not None:
            yield from _push_through(streams, takes, pending, last=False)
        pending = chunk
    if pending is not None:
        yield from _push_through(streams, takes, pending, last=True)


def _push_through(
    streams: Sequence[StreamingModule], takes: Sequence[ChunkSize], x: Array, last: bool
) -> Iterator[Array]:
    """Push frames through the streams in pieces: the flush at the end stays small, too."""
    if not streams and x.shape[2]:
        yield x
    if not streams or not (x.shape[2] or last):
        return
    y = streams[0].push(x, last)
    for start, stop in _even_chunks(y.shape[2], takes[0], last):
        is_end = last and stop == y.shape[2]
        yield from _push_through(streams[1:], takes[1:], y[:, :, start:stop], is_end)


def _even_chunks(count: int, take: ChunkSize, last: bool) -> Iterator[tuple[int, int]]:
    """Return begin and end of chunks that give about as many frames each: none is left over."""
    number, total = max(1, round(count / take.frames)), count + take.extra_at_end * last
    inner = (min(total * i // number, count - number + i) for i in range(1, number))
    return pairwise([0, *inner, count])
