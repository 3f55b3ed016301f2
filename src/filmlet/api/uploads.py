"""Files that clients send: looked at before anything decodes them, and never by their name."""

import base64
import binascii
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from starlette.datastructures import UploadFile

from filmlet.errors import InvalidRequest
from filmlet.media import InvalidMedia, probe

IMAGE_BYTES = 20 * 1024 * 1024
VIDEO_BYTES = 100 * 1024 * 1024
TEXT_BYTES = IMAGE_BYTES * 4 // 3 + 1024  # of one field of a form: a picture in base64
REFERENCES = {"input_reference": 0, "last_reference": -1}  # and the frames that they are


def references(fields: dict[str, Any], files: dict[str, UploadFile]) -> dict[str, UploadFile]:
    """Takes the pictures out of what was sent: files, or `{image_url: "data:..."}`.

    Raises InvalidRequest.
    """
    references_by_name = {}
    for param in REFERENCES:
        if upload := files.pop(param, None):
            references_by_name[param] = upload
        for name in [name for name in fields if name.partition("[")[0] == param]:
            kind = name.partition("[")[2].rstrip("]")
            value = fields.pop(name)
            if value is not None:
                references_by_name[param] = _decode_data_url(
                    {kind: value} if kind else value, param
                )
    return references_by_name


def _decode_data_url(sent: object, param: str) -> UploadFile:
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
def saved_uploads(
    uploads: dict[str, UploadFile], *, video: bool = False
) -> Iterator[dict[str, Path]]:
    """Checked uploads as files, by parameter, under names of ours; gone after the block.

    Raises InvalidRequest, TooManyJobs.
    """
    if not uploads:
        yield {}
        return
    with TemporaryDirectory(prefix="filmlet-") as folder:
        paths = {param: Path(folder) / param for param in uploads}
        for param, upload in uploads.items():
            _check_size(upload, param, VIDEO_BYTES if video else IMAGE_BYTES)
            with paths[param].open("wb") as file:
                upload.file.seek(0)
                shutil.copyfileobj(upload.file, file)
            _check_content(paths[param], param, video)
        yield paths


def check(upload: UploadFile, param: str, *, video: bool) -> None:
    """Look at an upload that is not used. Raises InvalidRequest, TooManyJobs."""
    with saved_uploads({param: upload}, video=video):
        pass


def _check_size(upload: UploadFile, param: str, limit: int) -> None:
    if not upload.size or upload.size > limit:
        raise InvalidRequest(
            f"{param} must be a file of at most {limit // 2**20} MiB, "
            f"got {upload.size or 0} bytes.",
            param=param,
        )


def _check_content(path: Path, param: str, video: bool) -> None:
    """Refuse what is no picture, or no video, or beyond the limits of `probe`."""
    try:
        footage = probe(path)
    except InvalidMedia as refused:
        raise InvalidRequest(f"{param}: {refused}", param=param) from refused
    if video and footage.fps is None:
        raise InvalidRequest(f"{param}: this is neither an MP4 nor a WebM video.", param=param)
    if footage.fps and not video:
        raise InvalidRequest(f"{param}: this is a video; send a picture.", param=param)
