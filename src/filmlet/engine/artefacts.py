"""What a stage has made, in a file: it is there whole or not at all."""

import errno
import re
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]


def save(path: Path, tensors: Tensors) -> None:
    """Write a table of tensors, under another name first. Raises OSError."""
    part = path.with_name(path.name + ".part")
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part)
        part.replace(path)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error)) from error
    finally:
        part.unlink(missing_ok=True)


def load(path: Path, device: str) -> Tensors | None:
    """The table at `path`; None where there is none, or none that can be read."""
    try:
        return load_file(path, device=device)
    except (SafetensorError, OSError):
        return None
