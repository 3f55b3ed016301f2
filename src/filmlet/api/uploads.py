"""Files that clients send: checked before they are decoded, and never named as the client says."""

import base64
import binascii
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import unquote

from starlette.datastructures import UploadFile

from filmlet.errors import InvalidRequest
from filmlet.media import InvalidMedia, probe

IMAGE_BYTES = 20 * 1024 * 1024
VIDEO_BYTES = 100 * 1024 * 1024
TEXT_BYTES = IMAGE_BYTES * 3 // 2  # of one field of a form: a picture in base64, in lines
PIECE_CHARS = 2**18  # of base64, decoded at once
URL_SAFE = str.maketrans("-_", "+/")
FRAMES = {"input_reference": 0, "last_reference": -1}  # which frame an image is, by its field


def find_images(fields: dict[str, Any], files: dict[str, UploadFile]) -> dict[str, UploadFile]:
    """Return the images of a body by their fields: files, or `{image_url: "data:..."}`.

    Raises InvalidRequest.
    """
    images = {param: files[param] for param in FRAMES if param in files}
    for name, value in fields.items():
        param = image_param(name)
        if param and value is not None:
            if param in images:
                raise InvalidRequest(f"There may be one {param}, not several.", param=param)
            key = name.partition("[")[2].rstrip("]")
            images[param] = _decode_data_url({key: value} if key else value, param)
    return {param: images[param] for param in FRAMES if param in images}


def image_param(name: str) -> str | None:
    """Return the image that a field is, or is a part of: `input_reference[image_url]`."""
    param = name.partition("[")[0]
    return param if param in FRAMES else None


def _decode_data_url(sent: object, param: str) -> UploadFile:
    """Return the image of a data: URL; other URLs are refused. Raises InvalidRequest."""
    url = sent.get("image_url") if isinstance(sent, dict) else sent
    if isinstance(sent, dict) and sent.get("file_id") is not None:
        raise InvalidRequest(
            f"{param}: this server keeps no files; send the image itself.", param=param
        )
    head, _, body = url.partition(",") if isinstance(url, str) else ("", "", "")
    head = head.strip().lower()
    if not (head.startswith("data:") and head.endswith(";base64")):
        raise InvalidRequest(
            f"{param} must be a file, or an image in a data: URL (data:image/png;base64,...); "
            "this server opens no connection to fetch one.",
            param=param,
        )
    if len(body) > TEXT_BYTES:
        raise _size_error(param, len(body) // 4 * 3, IMAGE_BYTES)
    try:
        data = _decode_base64(body)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"{param}: its base64 cannot be read.", param=param) from error
    return UploadFile(io.BytesIO(data), size=len(data))


def _decode_base64(text: str) -> bytes:
    """Decode base64 as programs write it: in lines, for URLs, unpadded. Raises ValueError.

    In pieces: a single call would keep all other threads waiting, and many escapes take a hundred
    times the memory of their text.
    """
    parts, digits, escape = [], "", ""
    for start in range(0, len(text), PIECE_CHARS):
        piece = escape + text[start : start + PIECE_CHARS]
        cut = piece.find("%", max(0, len(piece) - 2))  # of an escape that is not whole yet
        piece, escape = (piece, "") if cut < 0 else (piece[:cut], piece[cut:])
        digits += "".join(unquote(piece).split()).translate(URL_SAFE)

        end = max(0, len(digits) - 4) // 4 * 4  # the last may be padded
        if "=" in digits[:end]:
            raise ValueError("padding within base64")
        parts.append(base64.b64decode(digits[:end], validate=True))
        digits = digits[end:]
    last = (digits + escape).rstrip("=")
    parts.append(base64.b64decode(last + "=" * (-len(last) % 4), validate=True))
    return b"".join(parts)


@contextmanager
def save_uploads(
    uploads: dict[str, UploadFile], *, video: bool = False
) -> Iterator[dict[str, Path]]:
    """Save and check uploads; yield their paths by field. The files are deleted afterwards.

    Raises InvalidRequest.
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


def check_upload(upload: UploadFile, param: str, *, video: bool) -> None:
    """Check an upload that is not used. Raises InvalidRequest."""
    with save_uploads({param: upload}, video=video):
        pass


def _check_size(upload: UploadFile, param: str, limit: int) -> None:
    if not upload.size or upload.size > limit:
        raise _size_error(param, upload.size or 0, limit)


def _size_error(param: str, size: int, limit: int) -> InvalidRequest:
    return InvalidRequest(
        f"{param} must be a file of at most {limit // 2**20} MiB, got {size} bytes.", param=param
    )


def _check_content(path: Path, param: str, video: bool) -> None:
    """Raise InvalidRequest for other files, and for those beyond the limits of `probe`."""
    try:
        info = probe(path)
    except InvalidMedia as error:
        raise InvalidRequest(f"{param}: {error}", param=param) from error
    if video and info.fps is None:
        raise InvalidRequest(f"{param}: this is neither an MP4 nor a WebM video.", param=param)
    if info.fps and not video:
        raise InvalidRequest(f"{param}: this is a video; send an image.", param=param)
