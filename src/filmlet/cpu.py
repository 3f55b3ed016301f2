"""What this machine's CPU can do."""

from functools import cache
from pathlib import Path


@cache
def instructions() -> frozenset[str]:
    """Sets of instructions by their names in Linux ("avx512f"); empty elsewhere, and unknown."""
    try:
        with Path("/proc/cpuinfo").open() as told:
            line = next((line for line in told if line.startswith(("flags", "Features"))), "")
    except OSError:
        return frozenset()
    return frozenset(line.split()[2:])


def has_avx2_alone() -> bool:
    """Whether vectors are of eight numbers here, and nothing is looked up in registers."""
    return "avx2" in instructions() and "avx512f" not in instructions()
