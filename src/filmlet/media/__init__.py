"""Files a person can watch: video while it grows, animations, posters, and what made them."""

from filmlet.media.formats import InvalidMedia
from filmlet.media.images import poster, save_image, spritesheet, thumbnail
from filmlet.media.metadata import metadata_tags
from filmlet.media.reader import (
    BACKGROUND,
    MediaInfo,
    iter_frames,
    pad_to,
    probe,
    read_image,
    read_video,
    resize_to_cover,
)
from filmlet.media.sandbox import stopping_decoders_on
from filmlet.media.writer import (
    PART,
    FrameWriter,
    check_output_path,
    open_writer,
    partial_path,
    preferred_pixel_format,
    publish,
    to_output_error,
    write_video,
)

__all__ = [
    "BACKGROUND",
    "PART",
    "FrameWriter",
    "InvalidMedia",
    "MediaInfo",
    "check_output_path",
    "iter_frames",
    "metadata_tags",
    "open_writer",
    "pad_to",
    "partial_path",
    "poster",
    "preferred_pixel_format",
    "probe",
    "publish",
    "read_image",
    "read_video",
    "resize_to_cover",
    "save_image",
    "spritesheet",
    "stopping_decoders_on",
    "thumbnail",
    "to_output_error",
    "write_video",
]
