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
from filmlet.media.stills import poster, save_still

__all__ = [
    "Movie",
    "check_target",
    "explain",
    "growing",
    "part_of",
    "place",
    "poster",
    "save_still",
    "tags",
    "writing",
]
