"""Files that clients send: looked at before anything decodes them, and never by their name."""

import base64
import binascii
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

from starlette.datastructures import UploadFile

from filmlet.errors import InvalidRequest
from filmlet.media import Refused, check_image, check_video

IMAGE_BYTES = 20 * 1024 * 1024
VIDEO_BYTES = 100 * 1024 * 1024
TEXT_BYTES = IMAGE_BYTES * 4 // 3 + 1024  # of one field of a form: a picture in base64
REFERENCES = {"input_reference": 0, "last_reference": -1}  # and the frames that they are


def references(fields: dict[str, Any], files: dict[str, UploadFile]) -> dict[str, UploadFile]:
    """Takes the pictures out of what was sent: files, or `{image_url: "data:..."}`.

    Raises InvalidRequest.
    """
    found = {}
    for param in REFERENCES:
        if upload := files.pop(param, None):
            found[param] = upload
        for name in [name for name in fields if name.partition("[")[0] == param]:
            kind = name.partition("[")[2].rstrip("]")
            value = fields.pop(name)
            if value is not None:
                found[param] = _inline({kind: value} if kind else value, param)
    return found


def _inline(sent: object, param: str) -> UploadFile:
    """The picture of a data: URL; nothing is fetched from elsewhere."""
    url = sent.get("image_url") if isinstance(sent, dict) else sent
    if isinstance(sent, dict) and sent.get("file_id") is not None:
        raise InvalidRequest(
            f"{param}: this server keeps no files; send the picture itself.", param=param
        )
    head, _, body = url.partition(",") if isinstance(url, str) else ("", "", "")
    if not (head.startswith("data:") and head.endswith(";base64")):
        raise InvalidRequest(
            f"{param} must be a file, or a picture in a data: URL (data:image/png;base64,...); "
            "this server opens no connection to fetch one.",
            param=param,
        )
    try:
        data = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"{param}: its base64 cannot be read.", param=param) from error
    return UploadFile(io.BytesIO(data), size=len(data))


@contextmanager
def kept(uploads: dict[str, UploadFile], *, video: bool = False) -> Iterator[dict[str, Path]]:
    """Checked uploads as files, by parameter, under names of ours; gone after the block.

    Raises InvalidRequest.
    """
    if not uploads:
        yield {}
        return
    with TemporaryDirectory(prefix="filmlet-") as folder:
        paths = {}
        for param, upload in uploads.items():
            paths[param] = Path(folder) / param
            with paths[param].open("wb") as file:
                shutil.copyfileobj(check(upload, param, video=video), file)
        yield paths


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
