"""Seconds, memory and the distance to a device's limits, of calls that take turns."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.gpu.models import Call
from bench.optimizations import Module, peak_flops, time_in_turns
from filmlet.engine.placement import Placement, release_memory
from filmlet.engine.torch.fp8 import FP8Linear, why_not_fp8

COPY_BYTES = 2**30  # of a copy whose rate is measured; 1/64 of it on a CPU
FP8_SIDE = 8192  # of a square product in 8 bits
GB = 1e9


@dataclass(frozen=True)
class Side:
    """One of the calls that are compared. weight_bytes: on the device, of what it computes with."""

    name: str
    run: Call
    weight_bytes: int = 0


@dataclass(frozen=True)
class Limits:
    """What a device reaches in this very process; None: not measured.

    flops: FLOP a second of products in the dtype that is computed in. fp8_flops: in 8 bits.
    memory_bytes_s: read and written. upload_bytes_s: from main memory; pinned_bytes_s: pinned.
    """

    flops: float
    memory_bytes_s: float
    upload_bytes_s: float
    pinned_bytes_s: float | None = None
    fp8_flops: float | None = None

    def least_s(self, flop: float, weight_bytes: float) -> float:
        """Seconds that no call can be below: for its products, or for reading its weights."""
        return max(flop / self.flops, weight_bytes / self.memory_bytes_s)


@dataclass(frozen=True)
class Figure:
    """Of one side. gain: over the first side, in the middle of the runs, taken run by run.

    seconds: in the middle; first_s: of the first call, which compiles. weights_gb: on the device;
    added_gb: what a call adds at its peak, None on a CPU. least_s: of Limits, with the work that
    the first side does.
    """

    name: str
    seconds: float
    gain: float
    first_s: float
    weights_gb: float
    added_gb: float | None
    least_s: float | None


@torch.inference_mode()
def measure_limits(placement: Placement) -> Limits:
    """In a few seconds."""
    device, is_cuda = placement.device, placement.device.startswith("cuda")
    count = COPY_BYTES if is_cuda else COPY_BYTES // 64
    source = torch.zeros(count, dtype=torch.uint8, device=device)
    target, host = torch.empty_like(source), torch.zeros(count, dtype=torch.uint8)
    copies: dict[str, Call] = {
        "memory": lambda: target.copy_(source),
        "upload": lambda: target.copy_(host),
    }
    if is_cuda:
        pinned = host.pin_memory()
        copies["pinned"] = lambda: target.copy_(pinned)
    times = time_in_turns(copies, 5, device)
    fastest = {name: min(seconds[1:]) for name, seconds in times.items()}
    return Limits(
        flops=peak_flops(placement),
        memory_bytes_s=2 * count / fastest["memory"],
        upload_bytes_s=count / fastest["upload"],
        pinned_bytes_s=count / fastest["pinned"] if is_cuda else None,
        fp8_flops=None if why_not_fp8(device) else _fp8_flops(placement),
    )


def _fp8_flops(placement: Placement) -> float:
    """FLOP a second of products in 8 bits as filmlet makes them, the rounding of rows included."""
    linear = torch.nn.Linear(FP8_SIDE, FP8_SIDE, bias=False, device=placement.device)
    layer = FP8Linear.from_linear(linear.to(torch.bfloat16))
    rows = torch.randn(FP8_SIDE, FP8_SIDE, device=placement.device, dtype=torch.bfloat16)
    times = time_in_turns({"product": lambda: layer(rows)}, 10, placement.device)["product"]
    return float(2.0 * FP8_SIDE**3 / min(times[1:]))


def measure_sides(
    sides: Sequence[Side],
    placement: Placement,
    limits: Limits | None,
    runs: int,
    *,
    is_counted: bool = True,
) -> list[Figure]:
    """Each side once alone, then in turns, then once more for its peak memory.

    is_counted: the first side's FLOP are counted, in one more run.
    """
    device = placement.device
    flop = _count_flop(sides[0].run) if is_counted else 0.0
    release_memory(device)
    times = time_in_turns({side.name: side.run for side in sides}, runs, device)
    _, *first = times[sides[0].name]
    figures = []
    for side in sides:
        began, *later = times[side.name]
        figures.append(
            Figure(
                side.name,
                seconds=median(later),
                gain=median(a / b for a, b in zip(first, later, strict=True)),
                first_s=began,
                weights_gb=side.weight_bytes / GB,
                added_gb=_added_gb(side.run, device),
                least_s=limits.least_s(flop, sides[0].weight_bytes) if limits and flop else None,
            )
        )
    return figures


def _count_flop(run: Call) -> float:
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def _added_gb(run: Call, device: str) -> float | None:
    """What one more call adds to the device's memory at its peak."""
    if not device.startswith("cuda"):
        return None
    release_memory(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / GB


def to_float8(modules: Iterable[Module]) -> None:
    """Weights of matrices in 8 bits, cast as they are, as in Lightricks' files of LTX-Video."""
    for module in modules:
        for weight in module.parameters():
            if weight.ndim == 2:
                weight.data = weight.data.to(torch.float8_e4m3fn)
