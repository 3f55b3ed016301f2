"""A finished clip in another format: the same frames and tags, and its sound where there is room.

Its bytes are decoded by another process (`sandbox`), as those of every given file.
"""

import os
import shutil
from contextlib import closing
from pathlib import Path

from filmlet.core.effective import format_changes
from filmlet.core.request import SILENT_FORMATS
from filmlet.core.shape import Change, VideoShape
from filmlet.errors import InvalidRequest
from filmlet.media.audio_encoder import SAMPLE_RATE
from filmlet.media.formats import InvalidMedia
from filmlet.media.metadata import tags_after_conversion
from filmlet.media.output_path import (
    as_output_error,
    check_output_path,
    move_into_place,
    partial_path,
)
from filmlet.media.reader import MediaInfo, iter_frames, probe, read_audio, read_tags
from filmlet.media.writer import write_video

NOT_OURS = "only a clip that filmlet made, as MP4 or WebM, can be converted."


def convert_clip(
    source: str | os.PathLike[str], target: str | os.PathLike[str], *, force: bool = False
) -> tuple[Change, ...]:
    """Write a finished clip to another file; the suffix (.mp4, .webm, .gif, .webp) is its format.

    source: an MP4 or WebM that filmlet made, of at most 60 seconds. Frame rate, prompt, seed and
    settings are kept; a file of the same format is copied. Returns what the new format does not
    hold, such as sound in a GIF. Raises InvalidRequest, OutputExists unless `force`,
    OutputUnwritable, DiskFull.
    """
    clip, path = Path(source), Path(target)
    form = check_output_path(path, force)
    try:
        tags = read_tags(clip)
        if "provenance" not in tags:  # of ours alone may a file say what they say
            raise InvalidMedia(NOT_OURS)
        info = probe(clip)
        if info.name.endswith(f".{form}"):
            _copy(clip, path, force)
            return ()
        changes = tuple(format_changes(form, info.has_audio))
        _encode(clip, info, path, tags_after_conversion(tags, changes), force)
    except InvalidMedia as error:
        raise InvalidRequest(f"{clip.name}: {error}", param="source") from error
    return changes


def _encode(clip: Path, info: MediaInfo, path: Path, tags: dict[str, str], force: bool) -> None:
    """Write all frames of a clip, and its sound. Raises InvalidMedia."""
    assert info.fps
    size = info.width, info.height, info.frames
    shape = VideoShape(*size, info.fps, *size)
    is_silent = path.suffix.removeprefix(".").lower() in SILENT_FORMATS
    audio = None if is_silent or not info.has_audio else read_audio(clip, SAMPLE_RATE)
    written = 0
    with write_video(path, shape, tags, force, audio) as movie, closing(iter_frames(clip)) as found:
        for frame in found:
            movie.add(frame[None])
            written += 1
        if written != info.frames:
            raise InvalidMedia("this video has fewer frames than it says.")


def _copy(clip: Path, path: Path, force: bool) -> None:
    part = partial_path(path)
    try:
        with as_output_error(path):
            shutil.copyfile(clip, part)
            move_into_place(part, path, force)
    finally:
        part.unlink(missing_ok=True)
