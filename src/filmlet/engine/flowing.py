"""Frames through the modules of a decoder, a few at a time; for arrays of every library."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Protocol

from filmlet.engine.arrays import Array

PIECE = 8  # frames that one module works on at a time, if it is not told otherwise


class Stream(Protocol):
    """A piece of the decoder: frames in, as many frames out as can be known yet.

    All arrays are (batch, channels, frames, ...).
    """

    def push(self, x: Array, last: bool) -> Array: ...


def flow(
    streams: Sequence[Stream], chunks: Iterable[Array], pieces: Sequence[int] = ()
) -> Iterator[Array]:
    """Frames through the streams, one after the other.

    pieces: how many frames each takes at a time, but for the first, which takes chunks.
    """
    sizes = (*(pieces or [PIECE] * (len(streams) - 1)), PIECE)
    held: Array | None = None
    for chunk in chunks:
        if held is not None:
            yield from _through(streams, sizes, held, last=False)
        held = chunk
    if held is not None:
        yield from _through(streams, sizes, held, last=True)


def _through(
    streams: Sequence[Stream], sizes: Sequence[int], x: Array, last: bool
) -> Iterator[Array]:
    """Push frames through the streams in pieces: the flush at the end stays small, too."""
    if not streams and x.shape[2]:
        yield x
    if not streams or not (x.shape[2] or last):
        return
    y = streams[0].push(x, last)
    for start, stop in _even(y.shape[2], sizes[0]):
        is_end = last and stop == y.shape[2]
        yield from _through(streams[1:], sizes[1:], y[:, :, start:stop], is_end)


def _even(count: int, size: int) -> Iterator[tuple[int, int]]:
    """Where pieces of about a size begin and end: none is a single frame that is left over."""
    pieces = max(1, round(count / size))
    bounds = [count * i // pieces for i in range(pieces + 1)]
    return pairwise(bounds)
