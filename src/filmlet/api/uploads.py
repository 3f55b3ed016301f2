"""Files that clients send: looked at before anything decodes them, and never by their name."""

from typing import BinaryIO

from starlette.datastructures import UploadFile

from filmlet.errors import InvalidRequest
from filmlet.media import Refused, check_image, check_video

IMAGE_BYTES = 20 * 1024 * 1024
VIDEO_BYTES = 100 * 1024 * 1024
BODY_BYTES = VIDEO_BYTES + 1024 * 1024


def check(upload: UploadFile, param: str, *, video: bool) -> BinaryIO:
    """The upload's file, once size, content, pixels and length are known to be fit.

    Raises InvalidRequest.
    """
    limit = VIDEO_BYTES if video else IMAGE_BYTES
    if not upload.size or upload.size > limit:
        raise InvalidRequest(
            f"{param} must be a file of at most {limit // 2**20} MiB, "
            f"got {upload.size or 0} bytes.",
            param=param,
        )
    try:
        (check_video if video else check_image)(upload.file)
    except Refused as refused:
        raise InvalidRequest(f"{param}: {refused}", param=param) from refused
    return upload.file
