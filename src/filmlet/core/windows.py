"""A long clip in windows: the parts that the model makes one after the other."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from filmlet.core.shape import ShapeConstraints, VideoShape
from filmlet.errors import InvalidRequest


@dataclass(frozen=True)
class Window:
    """Frames `start_frame` up to `end_frame` of what the model makes, for one of the prompts, 0
    and on.

    overlap_frames: how many of them, the first, are the last of the window before. The model sees
    them as they are, and only what follows them is new.
    """

    start_frame: int
    end_frame: int
    overlap_frames: int = 0
    prompt_index: int = 0

    def latents(self, time: int) -> range:
        """Its latent frames among the clip's; the clip's first is one frame, others are `time`."""
        return range(-(-self.start_frame // time), -(-self.end_frame // time))


def split_into_windows(
    shape: VideoShape, grid: ShapeConstraints, prompts: int = 1
) -> tuple[Window, ...]:
    """Return the windows of a clip: one where the model makes it at once, else nearly equal ones.

    Prompts share the new frames equally, and no window has two. Raises InvalidRequest where they
    are too short to share.
    """
    total, context_latents = (
        grid.latent_frames(shape.generated_frames),
        grid.latent_frames(shape.context_frames),
    )
    shared = grid.overlap_frames // grid.temporal_compression
    is_long = prompts > 1 or shape.generated_frames > grid.max_frames
    max_latents = grid.latent_frames(grid.window_frames if is_long else shape.generated_frames)
    least = prompts * (shared + 1)
    if prompts > 1 and total - context_latents < least:
        min_total = (context_latents + least - 1) * grid.temporal_compression + 1
        raise InvalidRequest(
            f"{prompts} prompts need at least {min_total - shape.context_frames} frames,"
            f" the clip has {shape.new_frames}.",
            param="extra_prompts",
        )
    borders = [
        0,
        *(
            context_latents + (total - context_latents) * i // prompts
            for i in range(1, prompts + 1)
        ),
    ]
    return tuple(
        _build_window(grid.temporal_compression, start, end, shared if start else 0, prompt)
        for prompt, span in enumerate(pairwise(borders))
        for start, end in pairwise(_window_borders(*span, max_latents, shared))
    )


def window_of_frame(windows: Sequence[Window], frame: int) -> Window:
    """Return the window in which a frame is new."""
    return next(window for window in windows if frame < window.end_frame)


def _window_borders(start: int, end: int, max_latents: int, shared: int) -> list[int]:
    """Borders of as few windows as there can be, with nearly as many new latents each."""
    alone = 0 if start else min(shared, end - 1)  # the clip's first window sees none before it
    new = end - start - alone
    count = -(-new // max(1, max_latents - shared))
    return [start, *(start + alone + new * i // count for i in range(1, count + 1))]


def _build_window(time: int, start: int, end: int, shared: int, prompt: int) -> Window:
    first = start - shared
    return Window(
        start_frame=(first - 1) * time + 1 if first else 0,
        end_frame=(end - 1) * time + 1,
        overlap_frames=shared * time,
        prompt_index=prompt,
    )
