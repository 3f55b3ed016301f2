"""Files a person can watch: video while it grows, animations, posters, and what made them."""

from filmlet.media.movie import (
    Movie,
    check_target,
    explain,
    growing,
    part_of,
    place,
    writing,
)
from filmlet.media.provenance import tags
from filmlet.media.reading import Refused, check_image, check_video
from filmlet.media.stills import poster, save_still, spritesheet, thumbnail

__all__ = [
    "Movie",
    "Refused",
    "check_image",
    "check_target",
    "check_video",
    "explain",
    "growing",
    "part_of",
    "place",
    "poster",
    "save_still",
    "spritesheet",
    "tags",
    "thumbnail",
    "writing",
]
