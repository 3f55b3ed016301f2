"""Placement: the device, library and dtype that a model computes with."""

import ctypes
import gc
import os
import platform
import sys
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path

import psutil

from filmlet.core.memory import INT8_BYTES, OffloadMode
from filmlet.errors import InvalidRequest

CGROUP = Path("/sys/fs/cgroup")
OUT_OF_MEMORY = ("out of memory", "not enough memory", "t allocate memory", "bad_alloc")
GPUS = tuple(map(Path, ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")))  # NVIDIA's, AMD's, of WSL
BYTES_PER_VALUE = {"float32": 4, "bfloat16": 2, "float16": 2}  # of one value


class Optimization(StrEnum):
    """Optimizations of a model, by the names of their settings; the first three are torch's."""

    COMPILE = "compile"  # the transformer's blocks are compiled
    FP8 = "fp8"  # its products are in 8 bits
    CUDA_GRAPHS = "cuda_graphs"  # a step of a short clip is one graph
    INT8 = "int8"  # OpenVINO's decoder, or a large model's transformer, multiplies in 8 bits


TORCH_OPTIMIZATIONS = (Optimization.COMPILE, Optimization.FP8, Optimization.CUDA_GRAPHS)


class Backend(StrEnum):
    """The libraries that compute."""

    TORCH = "torch"
    OPENVINO = "openvino"


@dataclass(frozen=True)
class Placement:
    """Device, dtype and offload of a model; `reason` says why these. cache: of compiled graphs.

    optimizations: that are in use. is_plain: OpenVINO's graphs have none of their faster forms.
    is_blockwise: OpenVINO computes a model too large to be compiled at once, block by block, its
    transformer in 8 bits.
    """

    device: str
    dtype: str  # of transformer and decoder
    reason: str
    offload: OffloadMode = OffloadMode.NONE
    backend: Backend = Backend.TORCH
    cache: Path | None = None
    optimizations: frozenset[Optimization] = frozenset()
    is_plain: bool = False
    is_blockwise: bool = False

    @property
    def is_full_precision(self) -> bool:
        """Whether nothing is rounded more than float32 does."""
        return self.dtype == "float32" and Optimization.INT8 not in self.optimizations

    @property
    def value_bytes(self) -> int:
        """Bytes of one weight in memory: OpenVINO is given float32, or a transformer in 8 bits."""
        if self.is_blockwise:
            return INT8_BYTES
        return BYTES_PER_VALUE["float32" if self.backend is Backend.OPENVINO else self.dtype]


def has_torch() -> bool:
    """Return whether it is installed."""
    return find_spec("torch") is not None


def core_count() -> int:
    """Return the cores that this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(psutil.cpu_count(logical=False) or 1, allowed or 1)


def best_device(requested: str | None = None) -> str:
    """Return the device that is asked for, or the best there is. Raises InvalidRequest."""
    available = {"cpu": True, "cuda": False, "mps": False}
    if (requested or "cuda") != "cpu" and has_torch() and _may_have_gpu():
        import torch

        available |= {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if requested is None:
        return next(name for name in ("cuda", "mps", "cpu") if available[name])
    if not available.get(requested.partition(":")[0], False):
        raise InvalidRequest(
            f"This machine has no device {requested!r}; it has "
            f"{', '.join(name for name, is_available in available.items() if is_available)}.",
            param="device",
        )
    return requested


def _may_have_gpu() -> bool:
    """Whether it is worth the seconds of asking torch, which costs nothing once it is loaded."""
    return (
        "torch" in sys.modules or sys.platform != "linux" or any(device.exists() for device in GPUS)
    )


def device_name(device: str) -> str:
    """Its name."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def free_memory(device: str) -> int:
    """Return bytes that a model may take on the device."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0]
    available: int = psutil.virtual_memory().available
    return min(available, _cgroup_free_memory())


def total_memory() -> int:
    """Return bytes of this machine's memory, or of its container's."""
    total: int = psutil.virtual_memory().total
    try:
        return min(total, int((CGROUP / "memory.max").read_text()))
    except (OSError, ValueError):  # no such file, or "max"
        return total


def _cgroup_free_memory() -> int:
    """Return the bytes that a container's limit leaves; the system's own figures lack it."""
    limit, used = (CGROUP / name for name in ("memory.max", "memory.current"))
    try:
        return int(limit.read_text()) - int(used.read_text())
    except (OSError, ValueError):  # no such files, or "max"
        return sys.maxsize


def is_out_of_memory(error: Exception) -> bool:
    """Return whether it says so: on the CPU no library has an error of its own for it."""
    if isinstance(error, MemoryError):
        return True
    return any(message in str(error) for message in OUT_OF_MEMORY)


def release_memory(device: str) -> None:
    """Give memory back that nobody refers to."""
    gc.collect()
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()


def trim_heap() -> None:
    """Give freed memory back to the system where the C library keeps it, as glibc does."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
