"""Files that end before what they hold does: libav shows a shorter video, and says nothing."""

from collections.abc import Callable
from typing import BinaryIO

MAX_PARTS = 100_000  # boxes or elements that are followed; a minute of video has 20,000 at most
BOX_HEAD, LARGE_BOX_HEAD = 8, 16  # bytes
ELEMENT_HEAD = 12  # bytes of an id and a size, at most
SEGMENT, CLUSTER = 0x18538067, 0x1F43B675  # of Matroska, which may be of unknown size


def is_cut_off(file: BinaryIO, form: str) -> bool:
    """Return whether a file ends within a box or element that says how long it is.

    form: of the container, `mov` or `matroska`. The file is left where it was.
    """
    place, size = file.tell(), file.seek(0, 2)
    try:
        return CHECKS[form](file, size)
    finally:
        file.seek(place)


def _is_matroska_cut(file: BinaryIO, size: int) -> bool:
    start = 0
    for _ in range(MAX_PARTS):
        if start >= size:
            return start > size
        file.seek(start)
        head = file.read(ELEMENT_HEAD)
        id_bytes = _number_bytes(head, 0)
        size_bytes = _number_bytes(head, id_bytes)
        if not id_bytes or not size_bytes:
            return False  # no element: something lies behind the video
        data = id_bytes + size_bytes
        if len(head) < data:
            return True
        id, length = int.from_bytes(head[:id_bytes]), int.from_bytes(head[id_bytes:data])
        unknown = (1 << 7 * size_bytes) - 1  # all bits, without the one that tells the bytes
        length &= unknown
        if length == unknown:
            if id not in (SEGMENT, CLUSTER):
                return False
            start += data  # as programs write that do not know yet: its elements come one by one
        elif id == SEGMENT:
            return start + data + length > size
        else:
            start += data + length
    return False


def _number_bytes(head: bytes, place: int) -> int:
    """Return the bytes of a number of EBML, told by its leading zeros; 0 if it is none."""
    if place >= len(head):
        return 1  # it would be there, were the file longer
    return 9 - head[place].bit_length() if head[place] else 0


def _is_mp4_cut(file: BinaryIO, size: int) -> bool:
    """Only in fragments: for others, libav's index tells each frame's place."""
    start, is_fragmented = 0, False
    for _ in range(MAX_PARTS):
        file.seek(start)
        head = file.read(LARGE_BOX_HEAD)
        if len(head) < BOX_HEAD:
            return is_fragmented and len(head) > 0
        length, name = int.from_bytes(head[:4]), head[4:8]
        if length == 1:  # 64 bits follow the name
            length = int.from_bytes(head[BOX_HEAD:])
        if length < BOX_HEAD:  # 0: up to the end
            return False
        is_fragmented = is_fragmented or name == b"moof"
        start += length
        if start > size:
            return is_fragmented and name in (b"moof", b"mdat")
    return False


CHECKS: dict[str, Callable[[BinaryIO, int], bool]] = {
    "mov": _is_mp4_cut,
    "matroska": _is_matroska_cut,
}
