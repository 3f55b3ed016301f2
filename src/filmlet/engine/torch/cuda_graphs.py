"""One step of a GPU as one graph, for short clips, which lose time to launching kernels."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from filmlet.engine.torch.lru_cache import LRUCache

Function = Callable[..., Tensor]
Capture = Callable[[Function, tuple[Tensor, ...]], Function]
MAX_GRAPHS = 2  # with a negative prompt two take turns


def capture_cuda_graph(function: Function, buffers: tuple[Tensor, ...]) -> Function:
    """Capture a function as a graph that reads the buffers and writes the same result."""
    return cast(Function, torch.cuda.make_graphed_callables(function, buffers))


class GraphedCallable:
    """A function of tensors, captured for each of their shapes when it is first called with these.

    weights: what the function reads beside its inputs; a graph is of that very memory.
    """

    def __init__(
        self,
        function: Function,
        weights: Callable[[], Sequence[Tensor]],
        capture: Capture = capture_cuda_graph,
    ) -> None:
        self.function, self.weights, self.capture = function, weights, capture
        self.graphs: LRUCache[Function] = LRUCache(MAX_GRAPHS)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return the result, in memory of its own."""
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        addresses = tuple(weight.data_ptr() for weight in self.weights())
        graph = self.graphs.get((shapes, addresses), lambda: self._capture(inputs))
        return graph(*inputs).clone()

    def _capture(self, inputs: Sequence[Tensor]) -> Function:
        return self.capture(self.function, tuple(tensor.clone() for tensor in inputs))
