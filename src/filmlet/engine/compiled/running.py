"""Compiled graphs that run: arrays in and out, and a stop that is heard inside a call.

numpy has no bfloat16: such arrays are of its 16 bits, and only graphs look into them.
"""

import atexit
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import openvino as ov
import psutil
from numpy.typing import NDArray

ASK_MS = 50  # between two questions whether anybody still wants the clip
Ask = Callable[[], None]
KINDS = {"float32": ov.Type.f32, "bfloat16": ov.Type.bf16}
BITS = {ov.Type.f32: np.float32, ov.Type.bf16: np.uint16}


@cache
def core() -> ov.Core:
    return ov.Core()


def has_bfloat16() -> bool:
    """Whether this CPU has instructions for it; emulated, it is slower than float32."""
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def prefers_int8(dtype: str) -> bool:
    """Whether this CPU multiplies bytes (VNNI) sooner than a dtype; bfloat16 by AMX is as fast."""
    return "vnni" in _flags() and (dtype != "bfloat16" or "amx_bf16" not in _flags())


@cache
def _flags() -> str:
    """Of the CPU's instructions, which only Linux tells."""
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def best_dtype() -> str:
    """That models are fastest in here."""
    return "bfloat16" if has_bfloat16() else "float32"


@cache
def threads() -> int:
    """Cores that this process may use: sums depend on how many share them."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(psutil.cpu_count(logical=False) or 1, allowed or 1)


def machine() -> tuple[str, ...]:
    """What a compiled graph depends on beside its weights."""
    abilities = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    name = core().get_property("CPU", "FULL_DEVICE_NAME")
    return (ov.__version__, name, str(threads()), *sorted(abilities))


def options(dtype: str) -> dict[str, object]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": KINDS[dtype],
        "INFERENCE_NUM_THREADS": threads(),
        "ENABLE_CPU_PINNING": False,  # cores are shared with others
    }


@dataclass(eq=False)
class Running:
    """One graph at work; one call at a time. asks: raise to stop a call.

    blob: what the graph was read from, if it was; its weights stay there. put_away: gives their
    memory back once the first call has laid them out anew.
    """

    model: ov.CompiledModel
    blob: ov.Tensor | None = None
    put_away: Callable[[], None] | None = None
    asks: Sequence[Ask] = ()

    def __post_init__(self) -> None:
        self.request = self.model.create_infer_request()
        self.kinds = [given.element_type for given in self.model.inputs]
        self.lock = threading.Lock()
        self.given: list[ov.Tensor] = []  # theirs is the memory that a call reads

    def __call__(self, *inputs: NDArray) -> list[NDArray]:
        """The graph's outputs. Raises what `asks` raise; that call then ends by itself."""
        with self.lock:
            self._settle()
            self.given = [_lent(*pair) for pair in zip(inputs, self.kinds, strict=True)]
            for i, tensor in enumerate(self.given):
                self.request.set_input_tensor(i, tensor)
            at_work.add(self)  # first: a signal may come between any two lines
            try:
                self.request.start_async()
                while not self.request.wait_for(ASK_MS):
                    for ask in self.asks:
                        ask()
            except BaseException:
                self.request.cancel()
                raise
            at_work.discard(self)
            if self.put_away:
                self.put_away()
                self.put_away = None
            return [_copied(tensor) for tensor in self.request.output_tensors]

    def _settle(self) -> None:
        """A call that was given up runs on to the end of a layer."""
        if self in at_work:
            with suppress(RuntimeError):  # says that it was cancelled
                self.request.wait()
            at_work.discard(self)


at_work: set[Running] = set()


@atexit.register
def _settle_all() -> None:
    """A process that ended before a call that was given up would take its memory away."""
    for running in tuple(at_work):
        running.request.cancel()
        running._settle()


def _lent(array: NDArray, kind: ov.Type) -> ov.Tensor:
    return ov.Tensor(np.ascontiguousarray(array), list(array.shape), kind)


def _copied(tensor: ov.Tensor) -> NDArray:
    """An array of its own: the graph writes the next call's result into the same memory."""
    is_short = tensor.element_type == ov.Type.bf16
    return np.array(tensor.data.view(np.uint16) if is_short else tensor.data)


def is_finite(array: NDArray) -> bool:
    """Whether all of it are numbers, of float32 or of the bits of bfloat16."""
    if array.dtype == np.uint16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return bool(np.isfinite(array).all())
