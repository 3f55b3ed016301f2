"""Files a person can watch: video while it grows, animations, posters, and what made them.

Names are imported when they are first used: the decoder's process needs none of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filmlet.media.audio_track import extract_audio
    from filmlet.media.conditioning_images import conditioning_image
    from filmlet.media.conversion import convert_clip
    from filmlet.media.formats import InvalidMedia
    from filmlet.media.images import (
        is_picture,
        poster,
        save_image,
        save_picture,
        spritesheet,
        thumbnail,
    )
    from filmlet.media.metadata import metadata_tags
    from filmlet.media.output_path import (
        PART,
        check_output_path,
        partial_path,
        reserve_path,
        to_output_error,
    )
    from filmlet.media.reader import (
        MediaInfo,
        iter_frames,
        pad_to,
        probe,
        read_audio,
        read_image,
        read_video,
        resize_to_cover,
    )
    from filmlet.media.sandbox import stop_decoders_on
    from filmlet.media.writer import (
        FrameWriter,
        open_writer,
        preferred_pixel_format,
        publish,
        write_video,
    )

_MODULES = {
    "audio_track": ("extract_audio",),
    "conditioning_images": ("conditioning_image",),
    "conversion": ("convert_clip",),
    "formats": ("InvalidMedia",),
    "images": ("is_picture", "poster", "save_image", "save_picture", "spritesheet", "thumbnail"),
    "metadata": ("metadata_tags",),
    "reader": (
        "MediaInfo", "iter_frames", "pad_to", "probe", "read_audio", "read_image",
        "read_video", "resize_to_cover",
    ),
    "sandbox": ("stop_decoders_on",),
    "output_path": (
        "PART", "check_output_path", "partial_path", "reserve_path", "to_output_error",
    ),
    "writer": (
        "FrameWriter", "open_writer", "preferred_pixel_format", "publish", "write_video",
    ),
}  # fmt: skip
_LAZY_IMPORTS = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "PART",
    "FrameWriter",
    "InvalidMedia",
    "MediaInfo",
    "check_output_path",
    "conditioning_image",
    "convert_clip",
    "extract_audio",
    "is_picture",
    "iter_frames",
    "metadata_tags",
    "open_writer",
    "pad_to",
    "partial_path",
    "poster",
    "preferred_pixel_format",
    "probe",
    "publish",
    "read_audio",
    "read_image",
    "read_video",
    "reserve_path",
    "resize_to_cover",
    "save_image",
    "save_picture",
    "spritesheet",
    "stop_decoders_on",
    "thumbnail",
    "to_output_error",
    "write_video",
]


def __getattr__(name: str) -> object:
    if name not in _LAZY_IMPORTS:
        raise AttributeError(f"module 'filmlet.media' has no attribute {name!r}")
    return getattr(import_module(f"filmlet.media.{_LAZY_IMPORTS[name]}"), name)
