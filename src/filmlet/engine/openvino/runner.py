"""Compiled graphs that run: arrays in and out, and a stop that is heard inside a call.

numpy has no bfloat16: such arrays are of its 16 bits, and only graphs look into them.
"""

import atexit
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from filmlet.core import cpu
from filmlet.engine.placement import core_count

# Kernels that each graph keeps for shapes it has met, the latest. OpenVINO's own 5000 are never
# reached: a worker grew by 4 MB a shape for good. Clips of one shape take as long with these.
CACHED_KERNELS = 50
ASK_MS = 50  # between two questions whether anybody still wants the clip
Ask = Callable[[], None]
Arrays = Mapping[str, NDArray]  # inputs or outputs of a graph by name
OV_TYPES = {"float32": ov.Type.f32, "bfloat16": ov.Type.bf16}
NUMPY_TYPES = {ov.Type.f32: np.float32, ov.Type.bf16: np.uint16}


@cache
def get_core() -> ov.Core:
    return ov.Core()


def has_bfloat16() -> bool:
    """Return whether this CPU has instructions for it; emulated, it is slower than float32."""
    return "BF16" in get_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def prefers_int8(dtype: str) -> bool:
    """Return whether this CPU multiplies bytes sooner than a dtype; bfloat16 by AMX is as fast."""
    has = cpu.cpu_flags()
    return "avx2" in has and (dtype != "bfloat16" or "amx_bf16" not in has)


def lacks_vnni() -> bool:
    """Return whether two products of bytes are added up in so few here: without VNNI."""
    return cpu.cpu_flags().isdisjoint({"avx512_vnni", "avx_vnni"})


def best_dtype() -> str:
    """Return the dtype that models are fastest in here."""
    return "bfloat16" if has_bfloat16() else "float32"


@cache
def cpu_threads() -> int:
    """Cores that this process may use: sums depend on how many share them."""
    return core_count()


def cache_key_of_cpu() -> tuple[str, ...]:
    """Return a key of what a compiled graph depends on beside its weights."""
    abilities = get_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    name = get_core().get_property("CPU", "FULL_DEVICE_NAME")  # "AMD EPYC" of quite different ones
    has = (flag for flag in cpu.cpu_flags() if flag.startswith(("avx", "amx")))
    return (ov.__version__, name, str(cpu_threads()), *sorted(abilities), *sorted(has))


def compile_options(dtype: str) -> dict[str, object]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": OV_TYPES[dtype],
        "INFERENCE_NUM_THREADS": cpu_threads(),
        "ENABLE_CPU_PINNING": False,  # cores are shared with others
        "CPU_RUNTIME_CACHE_CAPACITY": CACHED_KERNELS,
    }


class GraphRequest:
    """Buffers that one call of a graph reads and writes; the next call uses them again."""

    def __init__(self, model: ov.CompiledModel) -> None:
        self.given: list[ov.Tensor] = []  # theirs is the memory that a call reads
        self.rebind(model)

    def rebind(self, model: ov.CompiledModel) -> None:
        self.model, self.own = model, model.create_infer_request()

    def begin(self, tensors: list[ov.Tensor]) -> None:
        self.given = tensors
        for i, tensor in enumerate(tensors):
            self.own.set_input_tensor(i, tensor)
        in_flight.add(self)  # first: a signal may come between any two lines
        self.own.start_async()

    def wait(self) -> None:
        """A call that was given up runs on to the end of a layer."""
        if self in in_flight:
            with suppress(RuntimeError):  # says that it was cancelled
                self.own.wait()
            in_flight.discard(self)

    @property
    def outputs(self) -> list[NDArray]:
        return list(map(_to_numpy, self.own.output_tensors))


in_flight: set[GraphRequest] = set()


@atexit.register
def _cancel_pending_requests() -> None:
    """A process that ended before a call that was given up would take its memory away."""
    for request in tuple(in_flight):
        request.own.cancel()
        request.wait()


@dataclass(frozen=True)
class GraphInput:
    """An input of a graph. channels: of inputs that have a fixed number of them."""

    kind: ov.Type
    channels: int


@dataclass(eq=False)
class CompiledGraph:
    """One graph at work; one call at a time. cancel_checks: raise to stop a call.

    read: gives the graph, once more after a call was given up. release_blob: gives the memory back
    that it was read from, once its first call has laid the weights out anew.
    """

    read: Callable[[], ov.CompiledModel]
    release_blob: Callable[[], None] | None = None
    cancel_checks: Sequence[Ask] = ()

    @classmethod
    def from_model(cls, model: ov.CompiledModel) -> Self:
        """Return the graph of a model that is not cached; no call of it can be cancelled."""
        return cls(lambda: model)

    def __post_init__(self) -> None:
        self.lock = threading.RLock()
        self._model: ov.CompiledModel | None = None
        self._request: GraphRequest | None = None
        self._is_fresh = False  # not called since it was read
        self.spare_requests: list[GraphRequest] = []  # new memory costs a clip milliseconds
        self.cancelled_request: GraphRequest | None = None
        self.inputs = {port.any_name: _describe_input(port) for port in self.model.inputs}
        self.output_names = [port.any_name for port in self.model.outputs]

    @property
    def model(self) -> ov.CompiledModel:
        if self._model is None:
            self._model, self._is_fresh = self.read(), True
        return self._model

    @property
    def request(self) -> GraphRequest:
        """Buffers of calls that go through no double buffer."""
        if self._request is None:
            self._request = GraphRequest(self.model)
        return self._request

    def __call__(self, inputs: Arrays) -> dict[str, NDArray]:
        """Return the graph's outputs, in memory of their own. Raises as `infer` does."""
        with self.lock:
            self._recover_after_cancel()
            outputs = self.infer(self.request, inputs)
            return {name: np.array(array) for name, array in outputs.items()}

    @contextmanager
    def create_double_buffer(self) -> Iterator["DoubleBuffer"]:
        """Calls of the graph through two requests in turn, so that states are not copied.

        Without it a decode takes 1.02 times as long (AVX-512, OpenVINO 2026.4.0, bench/KERNELS.md).
        """
        with self.lock:
            self._recover_after_cancel()
            pair = self.spare_requests or [GraphRequest(self.model) for _ in range(2)]
            self.spare_requests = []
        try:
            yield DoubleBuffer(self, pair)
        finally:
            self.spare_requests = pair

    def infer(self, request: GraphRequest, inputs: Arrays) -> dict[str, NDArray]:
        """Return the graph's outputs by name, in the request's memory.

        Raises what `cancel_checks` raise; that call then ends by itself.
        """
        with self.lock:
            self._recover_after_cancel()
            if request.model is not self.model:
                request.rebind(self.model)
            assert inputs.keys() == self.inputs.keys()
            try:
                request.begin(
                    [_to_ov_tensor(inputs[name], port.kind) for name, port in self.inputs.items()]
                )
                while not request.own.wait_for(ASK_MS):
                    for ask in self.cancel_checks:
                        ask()
            except BaseException:
                self.cancelled_request = request
                request.own.cancel()
                raise
            in_flight.discard(request)
            if self._is_fresh and self.release_blob:
                self.release_blob()
            self._is_fresh = False
            return dict(zip(self.output_names, request.outputs, strict=True))

    def release_memory(self) -> None:
        """Give the memory back that calls compute in; the next call takes it anew."""
        with self.lock:
            if self._model and not self.cancelled_request:
                self._request = None
                self._model.release_memory()

    def _recover_after_cancel(self) -> None:
        """A call that was given up leaves shapes of its own in the graph, and the next fails."""
        if self.cancelled_request:
            self.cancelled_request.wait()
            self.cancelled_request, self.spare_requests = None, []
            self._model = self._request = None  # gone before the graph is read anew


@dataclass
class DoubleBuffer:
    """Two sets of buffers in turns: the output of one call may be an input of the next.

    It is there until the next call but one, where it lies: nothing is copied.
    """

    graph: CompiledGraph
    requests: list[GraphRequest]

    def __call__(self, inputs: Arrays) -> dict[str, NDArray]:
        self.requests.reverse()
        return self.graph.infer(self.requests[0], inputs)


def _describe_input(port: Any) -> GraphInput:
    channels = port.partial_shape[1] if len(port.partial_shape) > 1 else ov.Dimension(1)
    return GraphInput(port.element_type, channels.get_length() if channels.is_static else -1)


def _to_ov_tensor(array: NDArray, kind: ov.Type) -> ov.Tensor:
    return ov.Tensor(np.ascontiguousarray(array), list(array.shape), kind)


def _to_numpy(tensor: ov.Tensor) -> NDArray:
    is_short = tensor.element_type == ov.Type.bf16
    array: NDArray = tensor.data.view(np.uint16) if is_short else tensor.data
    return array


def is_finite(array: NDArray) -> bool:
    """Return whether all of it are numbers, of float32 or of the bits of bfloat16."""
    if array.dtype == np.uint16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return bool(np.isfinite(array).all())
