"""GIF and animated WebP, written at the end: both need all frames at once."""

import json
import os
from pathlib import Path

import numpy as np
from PIL import Image

from filmlet.core.events import Pixels
from filmlet.core.shape import VideoShape
from filmlet.media.metadata import xmp_gif_block, xmp_packet

TRAILER = b";"  # of a GIF


class AnimationWriter:
    """Frames kept until the end, then written in one go."""

    def __init__(self, path: Path, form: str, shape: VideoShape, tags: dict[str, str]) -> None:
        self.path, self.form, self.shape, self.tags = path, form, shape, tags
        self.frames: list[Image.Image] = []

    def add(self, pixels: Pixels) -> None:
        """Keep the next frames: (frames, height, width, 3) RGB."""
        self.frames.extend(Image.fromarray(picture) for picture in pixels)

    def close(self) -> None:
        """Write the file."""
        first, *rest = self.frames
        note = json.dumps(self.tags, ensure_ascii=True, sort_keys=True)
        if self.form == "gif":
            options = {"comment": note.encode(), "duration": self._durations(10), "optimize": False}
        else:
            options = {
                "duration": self._durations(1),
                "quality": 85,
                "method": 4,
                "xmp": xmp_packet(note).encode(),
            }
        with self.path.open("wb") as file:
            first.save(file, self.form, save_all=True, append_images=rest, loop=0, **options)
            if self.form == "gif":
                file.seek(-len(TRAILER), os.SEEK_END)
                file.write(xmp_gif_block(xmp_packet(self.tags.get("comment", ""))) + TRAILER)

    def discard(self) -> None:
        """Forget the frames."""
        self.frames.clear()

    def _durations(self, unit_ms: int) -> list[int]:
        """Milliseconds each frame stands, in whole units, without drift over the clip."""
        ends = np.arange(1, len(self.frames) + 1) * 1000 / self.shape.fps
        rounded_ends = np.round(ends / unit_ms).astype(int) * unit_ms
        return np.diff(rounded_ends, prepend=0).tolist()
