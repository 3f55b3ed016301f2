"""Compiled graphs that run: arrays in and out, and a stop that is heard inside a call.

numpy has no bfloat16: such arrays are of its 16 bits, and only graphs look into them.
"""

import atexit
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Self

import numpy as np
import openvino as ov
import psutil
from numpy.typing import NDArray

from filmlet.core import cpu

# Kernels that each graph keeps for shapes it has met, the latest. OpenVINO's own 5000 are never
# reached: a worker grew by 4 MB a shape for good. Clips of one shape take as long with these.
CACHED_KERNELS = 50
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
    """Whether this CPU multiplies bytes sooner than a dtype; bfloat16 by AMX is as fast."""
    has = cpu.instructions()
    return "avx2" in has and (dtype != "bfloat16" or "amx_bf16" not in has)


def adds_in_16_bits() -> bool:
    """Whether two products of bytes are added up in so few here: without VNNI."""
    return cpu.instructions().isdisjoint({"avx512_vnni", "avx_vnni"})


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
    name = core().get_property("CPU", "FULL_DEVICE_NAME")  # "AMD EPYC" of quite different ones
    has = (one for one in cpu.instructions() if one.startswith(("avx", "amx")))
    return (ov.__version__, name, str(threads()), *sorted(abilities), *sorted(has))


def options(dtype: str) -> dict[str, object]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": KINDS[dtype],
        "INFERENCE_NUM_THREADS": threads(),
        "ENABLE_CPU_PINNING": False,  # cores are shared with others
        "CPU_RUNTIME_CACHE_CAPACITY": CACHED_KERNELS,
    }


class Request:
    """What one call of a graph reads and writes; the next call through it writes there again."""

    def __init__(self, model: ov.CompiledModel) -> None:
        self.given: list[ov.Tensor] = []  # theirs is the memory that a call reads
        self.renew(model)

    def renew(self, model: ov.CompiledModel) -> None:
        self.model, self.own = model, model.create_infer_request()

    def begin(self, given: list[ov.Tensor]) -> None:
        self.given = given
        for i, tensor in enumerate(given):
            self.own.set_input_tensor(i, tensor)
        at_work.add(self)  # first: a signal may come between any two lines
        self.own.start_async()

    def settle(self) -> None:
        """A call that was given up runs on to the end of a layer."""
        if self in at_work:
            with suppress(RuntimeError):  # says that it was cancelled
                self.own.wait()
            at_work.discard(self)

    @property
    def outputs(self) -> list[NDArray]:
        return list(map(_seen, self.own.output_tensors))


at_work: set[Request] = set()


@atexit.register
def _settle_all() -> None:
    """A process that ended before a call that was given up would take its memory away."""
    for request in tuple(at_work):
        request.own.cancel()
        request.settle()


@dataclass(eq=False)
class Running:
    """One graph at work; one call at a time. asks: raise to stop a call.

    read: gives the graph, once more after a call was given up. put_away: gives the memory back that
    it was read from, once its first call has laid the weights out anew.
    """

    read: Callable[[], ov.CompiledModel]
    put_away: Callable[[], None] | None = None
    asks: Sequence[Ask] = ()

    @classmethod
    def at_hand(cls, model: ov.CompiledModel, **more: Any) -> Self:
        """Of a graph that is not kept: none of its calls is given up."""
        return cls(lambda: model, **more)

    def __post_init__(self) -> None:
        self.kinds = [given.element_type for given in self.model.inputs]
        self.lock = threading.RLock()
        self.idle: list[Request] = []  # of the latest relay: new memory costs a clip milliseconds
        self.given_up: Request | None = None

    @cached_property
    def model(self) -> ov.CompiledModel:
        self.is_fresh = True
        return self.read()

    @cached_property
    def request(self) -> Request:
        return Request(self.model)

    def __call__(self, *inputs: NDArray) -> list[NDArray]:
        """The graph's outputs, in memory of their own. Raises as `through` does."""
        with self.lock:
            self._mend()
            return list(map(np.array, self.through(self.request, *inputs)))

    @contextmanager
    def relay(self) -> Iterator["Relay"]:
        """Calls of the graph that are given what the one before gave, as it lies.

        What a call gives is there until the next but one.
        """
        with self.lock:
            self._mend()
            pair, self.idle = self.idle or [Request(self.model) for _ in range(2)], []
        try:
            yield Relay(self, pair)
        finally:
            self.idle = pair

    def through(self, request: Request, *inputs: NDArray) -> list[NDArray]:
        """The graph's outputs, in the request's memory.

        Raises what `asks` raise; that call then ends by itself.
        """
        with self.lock:
            self._mend()
            if request.model is not self.model:
                request.renew(self.model)
            try:
                request.begin([_lent(*pair) for pair in zip(inputs, self.kinds, strict=True)])
                while not request.own.wait_for(ASK_MS):
                    for ask in self.asks:
                        ask()
            except BaseException:
                self.given_up = request
                request.own.cancel()
                raise
            at_work.discard(request)
            if self.is_fresh and self.put_away:
                self.put_away()
            self.is_fresh = False
            return request.outputs

    def _mend(self) -> None:
        """A call that was given up leaves shapes of its own in the graph, and the next fails."""
        if self.given_up:
            self.given_up.settle()
            self.given_up, self.idle = None, []
            for name in ("model", "request"):  # gone before the graph is read anew
                self.__dict__.pop(name, None)


@dataclass
class Relay:
    """What `Running.relay` gives."""

    graph: Running
    requests: list[Request]

    def __call__(self, *inputs: NDArray) -> list[NDArray]:
        self.requests.reverse()
        return self.graph.through(self.requests[0], *inputs)


def _lent(array: NDArray, kind: ov.Type) -> ov.Tensor:
    return ov.Tensor(np.ascontiguousarray(array), list(array.shape), kind)


def _seen(tensor: ov.Tensor) -> NDArray:
    is_short = tensor.element_type == ov.Type.bf16
    seen: NDArray = tensor.data.view(np.uint16) if is_short else tensor.data
    return seen


def is_finite(array: NDArray) -> bool:
    """Whether all of it are numbers, of float32 or of the bits of bfloat16."""
    if array.dtype == np.uint16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return bool(np.isfinite(array).all())
