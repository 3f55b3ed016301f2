"""Files of tensors, written as a whole or not at all."""

import errno
import re
import secrets
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from filmlet.engine.arrays import Tensors
from filmlet.engine.placement import Backend, Placement


def save(path: Path, tensors: Tensors, confirm: Callable[[], None] = lambda: None) -> None:
    """Write a table of tensors, under a name of this call alone first. Raises OSError.

    confirm: raises if the table may not have its name any more.
    """
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        _write(tensors, part)
        confirm()
        part.replace(path)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error)) from error
    finally:
        part.unlink(missing_ok=True)


def load(path: Path, placement: Placement) -> Tensors | None:
    """Load the table at `path` for its engine; None where there is none that can be read."""
    is_torch = placement.backend is Backend.TORCH
    where = {"device": placement.device} if is_torch else {}
    try:
        with safe_open(path, "pt" if is_torch else "np", **where) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError):  # numpy has no bfloat16
        return None


def _write(tensors: Tensors, path: Path) -> None:
    if all(isinstance(tensor, np.ndarray | np.generic) for tensor in tensors.values()):
        save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path)
        return
    from safetensors.torch import save_file as save_torch  # noqa: PLC0415 - torch may be missing

    save_torch({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
