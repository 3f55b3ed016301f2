"""Words of OpenVINO graphs: a module's weights by name, linear layers, norms."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray
from openvino import Node
from openvino import opset13 as ops

from filmlet.core import cpu

GELU = 2 * math.sqrt(2 / math.pi)  # of its approximation by tanh, whose argument is doubled
CUBE = 0.044715
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class ModuleWeights:
    """The weights of a module, by diffusers' names, or no more than their shapes.

    name: the module's own, with a dot behind.
    """

    table: Mapping[str, Any]
    name: str = ""

    def __getitem__(self, name: str) -> Floats:
        return self.table[self.name + name]

    def get(self, name: str) -> Floats | None:
        """A weight that may be missing."""
        return self.table.get(self.name + name)

    def __contains__(self, name: str) -> bool:
        return self.name + name in self.table

    def submodule(self, name: str) -> "ModuleWeights":
        """A module inside of it."""
        return ModuleWeights(self.table, f"{self.name}{name}.")

    def has_submodule(self, name: str) -> bool:
        """Whether there is such a module."""
        return any(key.startswith(f"{self.name}{name}.") for key in self.table)

    def modulelist(self, name: str) -> Iterator["ModuleWeights"]:
        """Modules of a list."""
        numbers = takewhile(lambda i: self.has_submodule(f"{name}.{i}"), count())
        return (self.submodule(f"{name}.{i}") for i in numbers)


def constant(weight: Floats) -> Node:
    """The memory is shared."""
    return ops.constant(np.ascontiguousarray(weight), shared_memory=True)


def int_constant(values: int | Sequence[int]) -> Node:
    return ops.constant(np.array(values, dtype=np.int64))


def float_constant(value: float) -> Node:
    return ops.constant(np.float32(value))


def linear(x: Node, layer: ModuleWeights, order: NDArray[np.int64] | slice = slice(None)) -> Node:
    """(..., in) -> (..., out), its outputs in another order where one is given."""
    x = ops.matmul(x, constant(layer["weight"][order]), False, True)
    return ops.add(x, constant(layer["bias"][order])) if "bias" in layer else x


def gelu(x: Node) -> Node:
    """Its approximation by tanh."""
    if not cpu.is_avx2_only():
        return ops.gelu(x, "tanh")
    # Without AVX-512 the plugin's tanh takes its coefficients from memory: this is twice as fast.
    cubic = ops.add(
        ops.multiply(ops.multiply(x, x), float_constant(-GELU * CUBE)), float_constant(-GELU)
    )
    return ops.divide(x, ops.add(float_constant(1), ops.exp(ops.multiply(x, cubic))))


def rms_norm(x: Node, eps: float, weight: Floats | None = None) -> Node:
    """Over the last axis, as the plugin has it in one kernel."""
    mean = ops.reduce_mean(ops.power(x, float_constant(2)), int_constant([-1]), True)
    root = ops.sqrt(ops.add(mean, float_constant(eps)))
    x = ops.multiply(x, ops.divide(float_constant(1), root))
    return x if weight is None else ops.multiply(x, constant(weight))


def split_heads(x: Node, heads: int, size: int) -> Node:
    """(1, tokens, channels) -> (1, heads, tokens, size)."""
    x = ops.reshape(x, int_constant([0, 0, heads, size]), True)
    return ops.transpose(x, int_constant([0, 2, 1, 3]))


def merge_heads(x: Node, channels: int) -> Node:
    """(1, heads, tokens, size) -> (1, tokens, channels)."""
    return ops.reshape(
        ops.transpose(x, int_constant([0, 2, 1, 3])), int_constant([0, 0, channels]), True
    )
