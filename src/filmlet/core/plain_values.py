"""Values that programs pass, as Python's own types: numpy's and torch's numbers are numbers too."""

import os
from decimal import Decimal
from numbers import Complex, Real
from operator import index

TRUTHS = ("bool", "torch.bool")  # dtypes


def to_int(value: object) -> int | None:
    """Return a whole number; None for anything else. True and 9.0 are none."""
    if is_bool(value) or not is_scalar(value):
        return None
    try:
        return index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def to_float(value: object) -> int | float | None:
    """Return a number, a whole one as int; None for anything else, text too."""
    if (whole := to_int(value)) is not None:
        return whole
    is_number = isinstance(value, Real | Decimal) or (
        hasattr(value, "dtype") and not isinstance(value, Complex)
    )
    if not is_number or is_bool(value) or not is_scalar(value):
        return None
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None


def to_bool(value: object) -> bool | None:
    """Return a truth value, 0 and 1 too; None for anything else."""
    whole = int(bool(value)) if is_bool(value) else to_int(value)
    return bool(whole) if whole in (0, 1) else None


def to_path(value: object) -> str | None:
    """Return a path as text; None for anything that names no file."""
    if not isinstance(value, str | bytes | os.PathLike):
        return None
    return str.__str__(os.fsdecode(value)) or None


def is_bool(value: object) -> bool:
    """Return whether it is a truth value, numpy's too."""
    dtype = str(getattr(value, "dtype", ""))
    return isinstance(value, bool) or (dtype in TRUTHS and is_scalar(value))


def is_scalar(value: object) -> bool:
    """Return whether it is one value and no array."""
    return tuple(getattr(value, "shape", ())) == ()
