"""Frames through the modules of a decoder, a few at a time; for arrays of every library."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol

from filmlet.engine.arrays import Array

PIECE = 8  # frames


class Take(NamedTuple):
    """How a stream is fed: about so many frames at a time. lag: as many more come at the end."""

    frames: int = PIECE
    lag: int = 0


class Stream(Protocol):
    """A piece of the decoder: frames in, as many frames out as can be known yet.

    All arrays are (batch, channels, frames, ...).
    """

    def push(self, x: Array, last: bool) -> Array: ...


def flow(
    streams: Sequence[Stream], chunks: Iterable[Array], takes: Sequence[Take] = ()
) -> Iterator[Array]:
    """Frames through the streams, one after the other.

    takes: of each stream but the first, which takes chunks.
    """
    takes = (*(takes or [Take()] * (len(streams) - 1)), Take())
    held: Array | None = None
    for chunk in chunks:
        if held is not None:
            yield from _through(streams, takes, held, last=False)
        held = chunk
    if held is not None:
        yield from _through(streams, takes, held, last=True)


def _through(
    streams: Sequence[Stream], takes: Sequence[Take], x: Array, last: bool
) -> Iterator[Array]:
    """Push frames through the streams in pieces: the flush at the end stays small, too."""
    if not streams and x.shape[2]:
        yield x
    if not streams or not (x.shape[2] or last):
        return
    y = streams[0].push(x, last)
    for start, stop in _pieces(y.shape[2], takes[0], last):
        is_end = last and stop == y.shape[2]
        yield from _through(streams[1:], takes[1:], y[:, :, start:stop], is_end)


def _pieces(count: int, take: Take, last: bool) -> Iterator[tuple[int, int]]:
    """Where they begin and end, so that each gives about as many: no frame is left over."""
    number, whole = max(1, round(count / take.frames)), count + take.lag * last
    inner = (min(whole * i // number, count - number + i) for i in range(1, number))
    return pairwise([0, *inner, count])
