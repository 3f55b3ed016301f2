"""One pass over a .safetensors file: its hash, and whether all of its numbers are finite."""

import hashlib
from pathlib import Path

import numpy as np

from filmlet.core.checkpoint_headers import Header
from filmlet.core.files import open_regular_file
from filmlet.errors import CheckpointCorrupt

BLOCK_BYTES = 2**22
# Unsigned type and mask by dtype: values with all bits of the mask are infinite or no number.
EXPONENTS = {
    "F64": (np.uint64, 0x7FF0 << 48),
    "F32": (np.uint32, 0x7F80 << 16),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
    "F8_E5M2": (np.uint8, 0x7C),
    "F8_E4M3": (np.uint8, 0x7F),  # has no infinity
}


def hash_finite(path: Path, header: Header) -> str:
    """Return the SHA-256 of a file whose tensors hold finite numbers only.

    Raises CheckpointCorrupt that names the first tensor that holds another.
    """
    ordered = sorted(header.tensors.items(), key=lambda pair: (pair[1].start, pair[1].end))
    try:
        with open_regular_file(path) as file:
            digest = hashlib.sha256(file.read(ordered[0][1].start))
            for name, entry in ordered:
                for at in range(entry.start, entry.end, BLOCK_BYTES):
                    block = file.read(min(BLOCK_BYTES, entry.end - at))
                    digest.update(block)
                    if not _is_finite(block, entry.dtype):
                        raise CheckpointCorrupt(
                            f"{path.name} holds values that are not numbers, in {name}."
                        )
            digest.update(file.read(1))  # nothing, unless the file has grown
    except (OSError, ValueError) as error:
        raise CheckpointCorrupt(f"{path} cannot be read: {error}.") from error
    return digest.hexdigest()


def _is_finite(block: bytes, dtype: str) -> bool:
    if dtype not in EXPONENTS:
        return True
    kind, mask = EXPONENTS[dtype]
    bits = np.frombuffer(block, kind)
    return not bool(((bits & kind(mask)) == kind(mask)).any())
