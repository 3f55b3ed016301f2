"""The dtype that torch computes in on a device."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from filmlet.engine.placement import Placement
from filmlet.engine.torch.dtype_record import load_record, save_record

PROBE_BOUND = 2e-2  # relative error that bfloat16 may add to one layer
PROBE_GAIN = 1.2  # bfloat16 must be this much faster to be worth its error
Probe = Callable[[torch.dtype], Callable[[], Tensor]]


def choose_dtype(device: str, dtype: str | None = None, cache: Path | None = None) -> Placement:
    """Return the best dtype on a device that is there, or the one that is asked for.

    cache: folder in which what was measured is kept, so that one seed gives one clip.
    """
    best = replace(_default_placement(device, cache), cache=cache)
    if dtype is None or dtype == best.dtype:
        return best
    return replace(best, dtype=dtype, reason="as it was begun")


def _default_placement(device: str, folder: Path | None) -> Placement:
    match device.partition(":")[0]:
        case "cuda":
            return Placement(device, "bfloat16", "bfloat16 on CUDA")
        case "mps":
            return Placement(device, "float32", "float32 on Metal")
        case _:
            return _cpu_placement(folder)


def torch_dtype(placement: Placement) -> torch.dtype:
    """Return the placement's dtype as torch's."""
    dtype: torch.dtype = getattr(torch, placement.dtype)
    return dtype


@cache
def _cpu_placement(folder: Path | None) -> Placement:
    if folder is None:
        return _probe_cpu_bfloat16()
    found = load_record(folder)
    if found is None:
        placement = _probe_cpu_bfloat16()
        found = save_record(folder, placement.dtype, placement.reason)
    return Placement("cpu", *found)


def _probe_cpu_bfloat16() -> Placement:
    """bfloat16 where two small layers say it is faster and right; many CPUs are slow at it."""
    with torch.inference_mode():
        generator = torch.Generator().manual_seed(0)

        def draw(*size: int) -> Tensor:
            return torch.randn(size, generator=generator)

        rows, weight = draw(256, 256), draw(1024, 256)
        clip, kernel = draw(1, 16, 5, 16, 16), draw(16, 16, 3, 3, 3)
        probes: tuple[tuple[str, Probe], ...] = (
            ("matrix product", lambda d: partial(F.linear, rows.to(d), weight.to(d))),
            ("convolution", lambda d: partial(F.conv3d, clip.to(d), kernel.to(d))),
        )
        for name, layer in probes:
            exact, exact_s = _measure_seconds(layer(torch.float32), budget_s=0.02)
            rough, rough_s = _measure_seconds(layer(torch.bfloat16), budget_s=0.02)
            error = ((rough.float() - exact).norm() / exact.norm()).item()
            if exact_s < PROBE_GAIN * rough_s:
                gain = exact_s / rough_s
                reason = f"bfloat16 is only {gain:.2f}x as fast as float32 in a {name} here"
                return Placement("cpu", "float32", reason)
            if not error <= PROBE_BOUND:
                reason = f"bfloat16 is off by {error:.1%} in a {name} here"
                return Placement("cpu", "float32", reason)
    return Placement("cpu", "bfloat16", "bfloat16 is faster here and right")


def _measure_seconds(layer: Callable[[], Tensor], budget_s: float) -> tuple[Tensor, float]:
    """Return the layer's result and its shortest time in seconds, within about `budget_s`."""
    result = layer()  # the first call prepares kernels
    best, end = float("inf"), time.perf_counter() + budget_s
    while True:
        start = time.perf_counter()
        layer()
        best = min(best, time.perf_counter() - start)
        if time.perf_counter() > end:
            return result, best
