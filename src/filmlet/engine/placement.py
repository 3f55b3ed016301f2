"""On which device and in which dtype a model computes, chosen by what is there."""

import gc
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor

from filmlet.budget import Hold, Machine
from filmlet.errors import InvalidRequest

CGROUP = Path("/sys/fs/cgroup")
OUT_OF_MEMORY = ("not enough memory", "t allocate memory")
PROBE_BOUND = 2e-2  # relative error that bfloat16 may add to one layer
PROBE_GAIN = 1.2  # bfloat16 must be this much faster to be worth its error


@dataclass(frozen=True)
class Compiled:
    """Transformer and decoder through OpenVINO: in which dtype, and where graphs are kept."""

    dtype: torch.dtype
    folder: Path


@dataclass(frozen=True)
class Placement:
    """How a model is held; `reason` says why this dtype. compiled: what is not torch's."""

    device: str
    dtype: torch.dtype
    reason: str
    hold: Hold = Hold.ALL
    compiled: Compiled | None = None

    @property
    def engine(self) -> str:
        """What computes transformer and decoder."""
        return "openvino" if self.compiled else "torch"

    @property
    def dtype_name(self) -> str:
        """Of transformer and decoder."""
        dtype = self.compiled.dtype if self.compiled else self.dtype
        return str(dtype).removeprefix("torch.")


def choose(device: str | None = None) -> Placement:
    """The best placement on this machine, or on the device asked for."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else _mps() or "cpu"
    kind = device.partition(":")[0]
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": bool(_mps())}
    if not there.get(kind, False):
        raise InvalidRequest(
            f"This machine has no device {device!r}; it has "
            f"{', '.join(name for name, here in there.items() if here)}.",
            param="device",
        )
    match kind:
        case "cuda":
            return Placement(device, torch.bfloat16, "bfloat16 on CUDA")
        case "mps":
            return Placement(device, torch.float32, "float32 on Metal")
        case _:
            return _on_cpu()


def machine(device: str | None = None) -> Machine:
    """This machine, as a model finds it. Raises InvalidRequest for a device that is not there."""
    placement = choose(device)
    name = platform.processor() or platform.machine()
    if placement.device.startswith("cuda"):
        name = torch.cuda.get_device_name(placement.device)
    return Machine(
        device=placement.device,
        name=name,
        memory=free_memory(placement.device),
        dtype=placement.dtype_name,
        value_bytes=placement.dtype.itemsize,
    )


def free_memory(device: str) -> int:
    """Bytes that a model may take on the device."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    available: int = psutil.virtual_memory().available
    return min(available, _of_the_container())


def _of_the_container() -> int:
    """What a container's limit leaves, which the system's own figures do not tell."""
    limit, used = (CGROUP / name for name in ("memory.max", "memory.current"))
    try:
        return int(limit.read_text()) - int(used.read_text())
    except (OSError, ValueError):  # no such files, or "max"
        return sys.maxsize


def is_out_of_memory(error: Exception) -> bool:
    """Whether it says so: on the CPU torch has no error of its own for it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(words in str(error) for words in OUT_OF_MEMORY)


def free(device: str) -> None:
    """Give memory back that nobody refers to."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


def _mps() -> str | None:
    return "mps" if torch.backends.mps.is_available() else None


@cache
def _on_cpu() -> Placement:
    """bfloat16 where two small layers say it is faster and right; many CPUs are slow at it."""
    with torch.inference_mode():
        generator = torch.Generator().manual_seed(0)
        rows, weight = (torch.randn(s, generator=generator) for s in ((96, 256), (256, 256)))
        clip = torch.randn(1, 16, 5, 16, 16, generator=generator)
        kernel = torch.randn(16, 16, 3, 3, 3, generator=generator)
        probes = (
            ("matrix product", lambda d: rows.to(d) @ weight.to(d)),
            ("convolution", lambda d: F.conv3d(clip.to(d), kernel.to(d))),
        )
        for name, layer in probes:
            exact, exact_s = _timed(layer, torch.float32, budget_s=0.02)
            rough, rough_s = _timed(layer, torch.bfloat16, budget_s=0.02)
            error = ((rough.float() - exact).norm() / exact.norm()).item()
            if exact_s < PROBE_GAIN * rough_s:
                gain = exact_s / rough_s
                reason = f"bfloat16 is only {gain:.2f}x as fast as float32 in a {name} here"
                return Placement("cpu", torch.float32, reason)
            if not error <= PROBE_BOUND:
                reason = f"bfloat16 is off by {error:.1%} in a {name} here"
                return Placement("cpu", torch.float32, reason)
    return Placement("cpu", torch.bfloat16, "bfloat16 is faster here and right")


def _timed(
    layer: Callable[[torch.dtype], Tensor], dtype: torch.dtype, budget_s: float
) -> tuple[Tensor, float]:
    """The layer's result and its shortest time in seconds, within about `budget_s`."""
    result = layer(dtype)  # the first call prepares kernels
    best, end = float("inf"), time.perf_counter() + budget_s
    while True:
        start = time.perf_counter()
        layer(dtype)
        best = min(best, time.perf_counter() - start)
        if time.perf_counter() > end:
            return result, best
