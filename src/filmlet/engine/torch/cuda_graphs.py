"""One step of a GPU as one graph: what a short clip loses to launching kernels, it gets back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from filmlet.engine.torch.lru_cache import LRUCache

Function = Callable[..., Tensor]
Replay = Callable[[], None]
Capture = Callable[[Function, Sequence[Tensor]], tuple[Replay, Tensor]]
MAX_GRAPHS = 2  # graphs: with a negative prompt two take turns
WARMUP_CALLS = 2  # calls before a capture, in which kernels are chosen and memory is taken


def capture_cuda_graph(function: Function, inputs: Sequence[Tensor]) -> tuple[Replay, Tensor]:
    """The function's kernels over the memory of `inputs`, and where the result will be."""
    stream = torch.cuda.Stream(inputs[0].device)
    stream.wait_stream(torch.cuda.current_stream(inputs[0].device))
    with torch.cuda.stream(stream):
        for _ in range(WARMUP_CALLS):
            function(*inputs)
    torch.cuda.current_stream(inputs[0].device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function(*inputs)
    return graph.replay, result


@dataclass(eq=False)
class CapturedGraph:
    """A graph, the memory that it reads and the one that it writes.

    given: what was last copied into the inputs; what is given again is there already.
    """

    inputs: list[Tensor]
    given: list[Tensor]
    replay: Replay
    result: Tensor

    def run(self, inputs: Sequence[Tensor]) -> Tensor:
        for buffer, old, new in zip(self.inputs, self.given, inputs, strict=True):
            if old is not new:
                buffer.copy_(new)
        self.given = list(inputs)
        self.replay()
        return self.result.clone()


class GraphedCallable:
    """A function of tensors, captured for each of their shapes when it is first called with these.

    weights: what the function reads beside its inputs; a graph is one of the very memory.
    Tensors that are given must not be changed afterwards.
    """

    def __init__(
        self, function: Function, weights: Callable[[], Sequence[Tensor]], capture: Capture
    ) -> None:
        self.function, self.weights, self.capture = function, weights, capture
        self.kept: LRUCache[CapturedGraph] = LRUCache(MAX_GRAPHS)

    def __call__(self, *inputs: Tensor) -> Tensor:
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        places = tuple(weight.data_ptr() for weight in self.weights())
        return self.kept.get((shapes, places), lambda: self._capture(inputs)).run(inputs)

    def _capture(self, inputs: Sequence[Tensor]) -> CapturedGraph:
        buffers = [tensor.clone() for tensor in inputs]
        return CapturedGraph(buffers, list(inputs), *self.capture(self.function, buffers))
