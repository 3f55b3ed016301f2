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


def stops_at_avx2() -> bool:
    """Whether vectors are of eight numbers here and not sixteen, as AVX-512's are."""
    return "avx2" in instructions() and "avx512f" not in instructions()
