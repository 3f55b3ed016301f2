"""JSON and .safetensors headers of checkpoints and LoRAs: bounded, checked, without a library.

Whoever sends a file chooses every byte of it. What is returned is safe to compute with: sizes are
whole numbers, tensors lie inside of their file, side by side.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filmlet.core.files import open_regular_file
from filmlet.errors import CheckpointCorrupt

MAX_JSON_BYTES = 2**24  # a header of 10,000 tensors has 1.5 MB
MAX_TOKENIZER_BYTES = 2**26  # the largest published has 33 MB
MAX_NAME_LENGTH = 512
MAX_DIMENSIONS = 16
VALUE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class TensorEntry:
    """What a header says of one tensor. start, end: bytes from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """The tensors of a .safetensors file, and what else it says of itself."""

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]


def read_bounded(path: Path, most: int = MAX_JSON_BYTES) -> bytes:
    """Return a whole regular file of at most so many bytes. Raises CheckpointCorrupt."""
    try:
        with open_regular_file(path) as file:
            content = file.read(most + 1)
    except OSError as error:
        raise CheckpointCorrupt(f"{path} cannot be read: {error.strerror}.") from error
    if len(content) > most:
        raise CheckpointCorrupt(
            f"{path} has more than {most // 2**20} MB, which is the limit for such a file."
        )
    return content


def read_json(path: Path) -> dict[str, Any]:
    """Return one JSON object. Raises CheckpointCorrupt."""
    content = read_bounded(path)
    try:
        return parse_object(content)
    except ValueError as error:
        raise CheckpointCorrupt(f"{path} cannot be read as JSON: {error}.") from error


def parse_object(content: bytes | str) -> dict[str, Any]:
    """Parse a JSON object without NaN, a key twice, or much depth. Raises ValueError."""
    text = content.decode() if isinstance(content, bytes) else content
    try:
        table = json.loads(
            text, object_pairs_hook=_refuse_duplicate_keys, parse_constant=_refuse_constant
        )
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    if not isinstance(table, dict):
        raise ValueError("it does not hold a JSON object")
    return table


def _refuse_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("it holds a key twice")
    return table


def _refuse_constant(text: str) -> object:
    raise ValueError(f"{text} is not JSON")


def read_header(path: Path) -> Header:
    """Return the header of a .safetensors file, whose tensors fill the rest of it.

    Raises CheckpointCorrupt, for a file that is cut off as well.
    """
    try:
        with open_regular_file(path) as file:
            size = path.stat().st_size
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(MAX_JSON_BYTES, size - 8):
                raise ValueError(f"its header cannot have {length} bytes")
            table = parse_object(file.read(length))
        metadata = _check_metadata(table.pop("__metadata__", {}))
        tensors = {name: _parse_entry(name, given, 8 + length) for name, given in table.items()}
        end = _end_of_tensors(tensors, 8 + length)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointCorrupt(f"{path} is not a .safetensors file: {reason}.") from error
    if size != end:
        raise CheckpointCorrupt(f"{path} has {size} bytes and should have {end}; fetch it again.")
    return Header(tensors, metadata)


def read_tensor_bytes(path: Path, header: Header, name: str, most: int) -> bytes:
    """A file that is kept as a tensor of bytes, at most so many. Raises CheckpointCorrupt."""
    entry = header.tensors.get(name)
    if entry is None:
        raise CheckpointCorrupt(f"{path} holds no {name}.")
    size = entry.end - entry.start
    if entry.dtype not in ("U8", "I8") or size > most:
        raise CheckpointCorrupt(f"{path}: {name} is not at most {most // 2**20} MB of bytes.")
    try:
        with open_regular_file(path) as file:
            file.seek(entry.start)
            return file.read(size)
    except OSError as error:
        raise CheckpointCorrupt(f"{path} cannot be read: {error.strerror}.") from error


def _check_metadata(metadata: object) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("its metadata are not texts by name")
    return metadata


def _parse_entry(name: str, given: object, start: int) -> TensorEntry:
    if not name.isprintable() or not 0 < len(name) <= MAX_NAME_LENGTH:
        raise ValueError(f"{name[:40]!a} is no name of a tensor")
    wrong = ValueError(f"what it says of {name} cannot be")
    if not isinstance(given, dict) or given.keys() != {"dtype", "shape", "data_offsets"}:
        raise wrong
    dtype, shape, offsets = given["dtype"], given["shape"], given["data_offsets"]
    if not isinstance(dtype, str) or dtype not in VALUE_BYTES:
        raise ValueError(f"{name} is in {str(dtype)[:40]!r}, which is not read")
    if not (_are_sizes(shape) and len(shape) <= MAX_DIMENSIONS):
        raise wrong
    if not (_are_sizes(offsets) and len(offsets) == 2):
        raise wrong
    if offsets[1] - offsets[0] != math.prod(shape) * VALUE_BYTES[dtype]:
        raise wrong
    return TensorEntry(dtype, tuple(shape), start + offsets[0], start + offsets[1])


def _are_sizes(given: object) -> bool:
    """Return whether it is a list of whole numbers that a file's sizes can be."""
    return isinstance(given, list) and all(type(n) is int and 0 <= n < 2**63 for n in given)


def _end_of_tensors(tensors: Mapping[str, TensorEntry], start: int) -> int:
    """Return where the last tensor ends; none overlap, and nothing lies between."""
    if not tensors:
        raise ValueError("it holds no tensor")
    for name, entry in sorted(tensors.items(), key=lambda pair: (pair[1].start, pair[1].end)):
        if entry.start != start:
            raise ValueError(f"{name} does not begin where the one before it ends")
        start = entry.end
    return start
