"""Files a person can watch: video while it grows, animations, posters, and what made them."""

from filmlet.media.formats import Refused
from filmlet.media.images import poster, save_still, spritesheet, thumbnail
from filmlet.media.metadata import tags
from filmlet.media.reader import (
    BACKGROUND,
    Footage,
    covering,
    framed,
    frames_of,
    look,
    read_picture,
    read_video,
)
from filmlet.media.sandbox import stopping_decoders_on
from filmlet.media.video_writer import VIDEOS
from filmlet.media.writer import (
    PART,
    Movie,
    check_target,
    explain,
    growing,
    part_of,
    place,
    writing,
)

__all__ = [
    "BACKGROUND",
    "PART",
    "VIDEOS",
    "Footage",
    "Movie",
    "Refused",
    "check_target",
    "covering",
    "explain",
    "framed",
    "frames_of",
    "growing",
    "look",
    "part_of",
    "place",
    "poster",
    "read_picture",
    "read_video",
    "save_still",
    "spritesheet",
    "stopping_decoders_on",
    "tags",
    "thumbnail",
    "writing",
]
