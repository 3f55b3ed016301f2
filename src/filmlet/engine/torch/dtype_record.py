"""The outcome of measuring bfloat16, kept: on a busy machine the next process may find another."""

import json
import os
import platform
import secrets
from contextlib import suppress
from pathlib import Path

import torch

from filmlet.core.checkpoint_headers import read_bounded
from filmlet.core.cpu import cpu_flags
from filmlet.errors import CheckpointCorrupt

MAX_BYTES = 4096  # of a record
DTYPES = ("float32", "bfloat16")


def load_record(cache: Path) -> tuple[str, str] | None:
    """Return dtype and reason that were found for this CPU and this torch; None if there are none.

    What cannot be read is measured anew.
    """
    try:
        table = json.loads(read_bounded(_path(cache), MAX_BYTES))
        dtype, reason = table["dtype"], table["reason"]
    except (OSError, ValueError, KeyError, TypeError, CheckpointCorrupt):
        return None
    if table.get("machine") != _machine() or dtype not in DTYPES or not isinstance(reason, str):
        return None
    return dtype, reason


def save_record(cache: Path, dtype: str, reason: str) -> tuple[str, str]:
    """Keep what was found, and return what holds: another process may have been first.

    Where nothing can be kept, what was found holds for this process.
    """
    path = _path(cache)
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    content = json.dumps({"machine": _machine(), "dtype": dtype, "reason": reason})
    is_stale = path.exists() and load_record(cache) is None
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_text(content)
            if is_stale:
                path.unlink(missing_ok=True)  # of another CPU or torch, or damaged
            os.link(part, path)
        finally:
            part.unlink(missing_ok=True)
    return load_record(cache) or (dtype, reason)


def _path(cache: Path) -> Path:
    return cache / "torch-dtype.json"


def _machine() -> list[str]:
    """What the outcome depends on."""
    return [torch.__version__, platform.machine(), *sorted(cpu_flags())]
