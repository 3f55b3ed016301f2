"""What this machine's CPU can do."""

from functools import cache
from pathlib import Path


@cache
def cpu_flags() -> frozenset[str]:
    """Sets of instructions by their names in Linux ("avx512f"); empty elsewhere, and unknown."""
    try:
        with Path("/proc/cpuinfo").open() as cpuinfo:
            line = next((line for line in cpuinfo if line.startswith(("flags", "Features"))), "")
    except OSError:
        return frozenset()
    return frozenset(line.split()[2:])


def is_avx2_only() -> bool:
    """Return whether vectors are of eight numbers here and not sixteen, as AVX-512's are."""
    return "avx2" in cpu_flags() and "avx512f" not in cpu_flags()
