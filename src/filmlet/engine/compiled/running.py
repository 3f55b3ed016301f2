"""Compiled graphs that run: tensors in and out, and a stop that is heard inside a call."""

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

import numpy as np
import openvino as ov
import torch
from torch import Tensor

ASK_MS = 50  # between two questions whether anybody still wants the clip
Ask = Callable[[], None]
KINDS = {torch.float32: ov.Type.f32, torch.bfloat16: ov.Type.bf16, torch.int64: ov.Type.i64}


@cache
def core() -> ov.Core:
    return ov.Core()


def has_bfloat16() -> bool:
    """Whether this CPU has instructions for it; emulated, it is slower than float32."""
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def machine() -> tuple[str, ...]:
    """What a compiled graph depends on beside its weights."""
    abilities = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    name = core().get_property("CPU", "FULL_DEVICE_NAME")
    return (ov.__version__, name, str(torch.get_num_threads()), *sorted(abilities))


def options(dtype: torch.dtype) -> dict[str, object]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": KINDS[dtype],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),  # sums depend on it
        "ENABLE_CPU_PINNING": False,  # cores are shared with others
    }


@dataclass(eq=False)
class Running:
    """One graph at work; one call at a time. asks: raise to stop a call.

    blob: what the graph was read from; its weights stay there.
    """

    model: ov.CompiledModel
    blob: ov.Tensor
    asks: Sequence[Ask] = ()

    def __post_init__(self) -> None:
        self.request = self.model.create_infer_request()
        self.lock = threading.Lock()
        self.given: list[ov.Tensor] = []  # theirs is the memory that a call reads
        self.given_up = False

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """The graph's outputs. Raises what `asks` raise; that call then ends by itself."""
        with self.lock:
            self._settle()
            self.given = [_lent(tensor) for tensor in inputs]
            for i, tensor in enumerate(self.given):
                self.request.set_input_tensor(i, tensor)
            self.request.start_async()
            try:
                while not self.request.wait_for(ASK_MS):
                    for ask in self.asks:
                        ask()
            except BaseException:
                self.request.cancel()
                self.given_up = True
                raise
            return [_copied(tensor) for tensor in self.request.output_tensors]

    def _settle(self) -> None:
        """A call that was given up runs on to the end of a layer."""
        if self.given_up:
            with suppress(RuntimeError):  # says that it was cancelled
                self.request.wait()
            self.given_up = False


def _lent(tensor: Tensor) -> ov.Tensor:
    tensor = tensor.contiguous()
    shape, kind = list(tensor.shape), KINDS[tensor.dtype]
    values = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
    return ov.Tensor(values.numpy(), shape, kind)


def _copied(tensor: ov.Tensor) -> Tensor:
    """A tensor of its own: the graph writes the next call's result into the same memory."""
    if tensor.element_type == ov.Type.bf16:
        return torch.from_numpy(tensor.data.view(np.int16)).view(torch.bfloat16).clone()
    return torch.from_numpy(tensor.data).clone()
