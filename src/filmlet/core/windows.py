"""A long clip in windows: the parts that the model makes one after the other."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from filmlet.core.shape import Grid, Shape
from filmlet.errors import InvalidRequest


@dataclass(frozen=True)
class Window:
    """Frames `first` up to `end` of what the model makes, for one of the prompts, 0 and on.

    shared: how many of them, the first, are the last of the window before. The model sees them
    as they are, and only what follows them is new.
    """

    first: int
    end: int
    shared: int = 0
    prompt: int = 0

    def latents(self, time: int) -> range:
        """Its latent frames among the clip's; the clip's first is one frame, others are `time`."""
        return range(-(-self.first // time), -(-self.end // time))


def split(shape: Shape, grid: Grid, prompts: int = 1) -> tuple[Window, ...]:
    """The windows of a clip: one where the model makes it at once, else nearly equal ones.

    Prompts share the new frames equally, and no window has two. Raises InvalidRequest where they
    are too short to share.
    """
    total, known = grid.latents(shape.made_frames), grid.latents(shape.context)
    shared = grid.overlap // grid.time
    is_long = prompts > 1 or shape.made_frames > grid.max_frames
    most = grid.latents(grid.window if is_long else shape.made_frames)
    least = prompts * (shared + 1)
    if prompts > 1 and total - known < least:
        raise InvalidRequest(
            f"{prompts} prompts need at least {(known + least - 1) * grid.time + 1 - shape.context}"
            f" frames, the clip has {shape.new}.",
            param="then",
        )
    borders = [0, *(known + (total - known) * i // prompts for i in range(1, prompts + 1))]
    return tuple(
        _window(grid.time, start, end, shared if start else 0, prompt)
        for prompt, span in enumerate(pairwise(borders))
        for start, end in pairwise(_cuts(*span, most, shared))
    )


def holding(windows: Sequence[Window], frame: int) -> Window:
    """The window in which a frame is new."""
    return next(window for window in windows if frame < window.end)


def _cuts(start: int, end: int, most: int, shared: int) -> list[int]:
    """Borders of as few windows as there can be, with nearly as many new latents each."""
    alone = 0 if start else min(shared, end - 1)  # the clip's first window sees none before it
    new = end - start - alone
    count = -(-new // max(1, most - shared))
    return [start, *(start + alone + new * i // count for i in range(1, count + 1))]


def _window(time: int, start: int, end: int, shared: int, prompt: int) -> Window:
    first = start - shared
    return Window(
        first=(first - 1) * time + 1 if first else 0,
        end=(end - 1) * time + 1,
        shared=shared * time,
        prompt=prompt,
    )
