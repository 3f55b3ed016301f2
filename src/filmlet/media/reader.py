"""Pictures and videos that a clip is guided by or goes on from: what they are, and their pixels.

Every byte of them is decoded by another process (`sandbox`), whoever sends them.
"""

import hashlib
import json
import os
import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from PIL import Image

from filmlet.core.events import Audio, Pixels
from filmlet.core.files import open_regular_file
from filmlet.core.shape import Change
from filmlet.media.audio_samples import fit_length, resample
from filmlet.media.formats import (
    AUDIO_BYTES,
    AUDIO_RATES,
    IMAGE_BYTES,
    VIDEO_BYTES,
    VIDEO_FRAMES,
    Format,
    InvalidMedia,
    detect_format,
)
from filmlet.media.metadata import TAGS
from filmlet.media.notes import media_notes
from filmlet.media.sandbox import Message, look_into, run_decoder

SAMPLE_BYTES = 8  # left and right in float32
REMEMBERED = 256  # files that are not decoded again to say what they are


@dataclass(frozen=True)
class MediaInfo:
    """A file that was looked at, as it is read: upright, with square pixels, at an even rate.

    name: by its content alone; fps: None is a picture. every, is_resampled: how frames are chosen
    from the file's. has_audio: sound that `read_audio` reads. notes: what is not as the file holds
    it; fields and reasons without its name.
    """

    name: str
    width: int
    height: int
    frames: int = 1
    fps: float | None = None
    every: int = 1
    is_resampled: bool = False
    has_audio: bool = False
    notes: tuple[Change, ...] = ()


_remembered: dict[str, MediaInfo] = {}
_remembering = threading.Lock()


def probe(path: Path) -> MediaInfo:
    """Describe the picture or video at `path`. Raises InvalidMedia, Cancelled, TooManyJobs.

    The same content is decoded once: a page asks at each letter that is typed beside it.
    """
    file, form = _open(path)
    with file:
        file.seek(0)
        digest = hashlib.file_digest(cast(BufferedReader, file), "sha256").hexdigest()
        footage = _remembered.get(digest)
        if footage is None:
            name = f"given-{digest[:16]}.{form.suffix}"
            found = look_into(file, form)
            notes = tuple(media_notes(found.pop("facts"), found.get("fps")))
            footage = MediaInfo(name, notes=notes, **found)
            _remember(digest, footage)
    return footage


def _remember(digest: str, footage: MediaInfo) -> None:
    with _remembering:
        _remembered[digest] = footage
        for oldest in list(_remembered)[:-REMEMBERED]:
            del _remembered[oldest]


def _open(path: Path) -> tuple[BinaryIO, Format]:
    """Return a file that is small enough, and its format. Raises InvalidMedia."""
    try:
        file = open_regular_file(path)
        try:
            form, size = detect_format(file), os.fstat(file.fileno()).st_size
            most = VIDEO_BYTES if form.is_video else IMAGE_BYTES
            if size > most:
                raise InvalidMedia(f"{size >> 20} MiB are too many; at most {most >> 20}.")
        except BaseException:
            file.close()
            raise
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise InvalidMedia("no such file.") from error
        raise InvalidMedia(f"it cannot be read: {error.strerror or error}.") from error
    return file, form


def read_image(path: Path) -> Pixels:
    """Return a picture as one frame, (1, height, width, 3): upright, opaque, in sRGB. Raises
    InvalidMedia.
    """
    file, form = _open(path)
    with file, closing(run_decoder(file, form, {"task": "read"})) as answers:
        strips = [_to_frame(size, pixels) for size, pixels in answers]
    return np.concatenate(strips)[None]


def _to_frame(size: dict[str, int], pixels: bytearray) -> Pixels:
    return np.frombuffer(pixels, np.uint8).reshape(size["height"], size["width"], 3)


def iter_frames(path: Path, first: int = 0, count: int = VIDEO_FRAMES) -> Generator[Pixels]:
    """Yield frames from `first` on, (height, width, 3), upright, in sRGB; at most `count`.

    Raises InvalidMedia, Cancelled, TooManyJobs.
    """
    footage = probe(path)
    task = {
        "task": "read", "first": first, "count": count, "fps": footage.fps, "every": footage.every,
        "is_resampled": footage.is_resampled, "frames_at_rate": footage.frames,
    }  # fmt: skip
    file, form = _open(path)
    with file, closing(run_decoder(file, form, task)) as answers:
        for size, pixels in answers:
            if pixels:  # else it stands before the first
                yield _to_frame(size, pixels)


def read_video(path: Path, first: int, count: int) -> Generator[Pixels]:
    """Yield `count` frames of a video from `first` on, (height, width, 3). Raises InvalidMedia,
    Cancelled.
    """
    read = 0
    with closing(iter_frames(path, first, count)) as frames:
        for frame in frames:
            read += 1
            yield frame
    if read < count:
        raise InvalidMedia("this video has fewer frames than it says.")


def read_audio(path: Path, sample_rate: int) -> Audio | None:
    """The sound of a video while its frames are shown, silent where there is none: as long as they.

    sample_rate: that it gets, in Hz. None without sound that is read here. Raises InvalidMedia,
    Cancelled, TooManyJobs.
    """
    footage = probe(path)
    if footage.fps is None:
        return None
    seconds = footage.frames / footage.fps
    file, form = _open(path)
    task = {"task": "read_audio", "visible_s": seconds}
    with file, closing(run_decoder(file, form, task)) as answers:
        audio = _collect_audio(answers)
    if audio is None:
        return None
    samples = resample(audio, sample_rate).samples
    return Audio(fit_length(samples, round(seconds * sample_rate)), sample_rate)


def read_tags(path: Path) -> dict[str, str]:
    """Return the tags of a clip by their names, of another video those that it has of these.

    Raises InvalidMedia, Cancelled, TooManyJobs.
    """
    file, form = _open(path)
    if not form.is_video:
        file.close()
        return {}
    with file, closing(run_decoder(file, form, {"task": "read_tags", "names": TAGS})) as answers:
        _, text = next(answers)
        return {name: str(value) for name, value in json.loads(bytes(text)).items()}


def _collect_audio(answers: Iterator[Message]) -> Audio | None:
    """Join what the decoder answers; nothing that it says is believed to be in bounds."""
    pieces, rate, read_bytes = [], 0, 0
    for line, sound in answers:
        if not sound:  # it stands before the first frame
            continue
        rate, read_bytes = int(line["sample_rate"]), read_bytes + len(sound)
        is_in_bounds = AUDIO_RATES[0] <= rate <= AUDIO_RATES[1] and read_bytes <= AUDIO_BYTES
        if not is_in_bounds or len(sound) % SAMPLE_BYTES:
            raise InvalidMedia("its sound cannot be read.")
        samples = np.frombuffer(sound, np.float32).reshape(-1, 2)
        pieces.append(np.clip(np.nan_to_num(samples), -1, 1))
    return Audio(np.concatenate(pieces), rate) if pieces else None


def resize_to_cover(pixels: Pixels, width: int, height: int) -> Pixels:
    """Return frames resized to cover width x height, and their middle."""
    tall, wide = pixels.shape[1:3]
    if (wide, tall) == (width, height):
        return pixels
    scale = max(width / wide, height / tall)
    left, top = (wide - width / scale) / 2, (tall - height / scale) / 2
    box = left, top, wide - left, tall - top
    return np.stack(
        [
            np.asarray(
                Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS, box)
            )
            for frame in pixels
        ]
    )


def pad_to(pixels: Pixels, width: int, height: int) -> Pixels:
    """Return frames as they are in the middle of larger ones; their edges go on to the border."""
    tall, wide = pixels.shape[1:3]
    top, left = (height - tall) // 2, (width - wide) // 2
    sides = ((0, 0), (top, height - tall - top), (left, width - wide - left), (0, 0))
    return np.pad(pixels, sides, mode="edge")
