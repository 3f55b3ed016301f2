"""Layers of OpenVINO graphs, and graphs with inputs and outputs by name.

Some layers are written in a form that OpenVINO's CPU plugin computes faster than the plain form.
Each of these functions says what it gains, on which CPU and with which version of the plugin
(measured by `bench.kernels`), and `Kernels` switches it off: a new version of the plugin can turn a
gain into a loss.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, takewhile
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import Node
from openvino import opset13 as ops

from filmlet.core import cpu

GELU = 2 * math.sqrt(2 / math.pi)  # of its approximation by tanh, whose argument is doubled
CUBE = 0.044715
MASK_VALUE = -1e4  # added to the attention score of padding; bfloat16 can hold it
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Kernels:
    """Which layers are written in a faster form; the defaults are the plain forms.

    gelu_by_exp: `gelu`. narrow_channels: `flatten_if_narrow`, of fewer channels than these.
    rope_by_halves: `RotaryEmbedding`. text_multiple: `pad_text`. round_by_quantize: `to_uint8`.
    double_buffer: `CompiledGraph.create_double_buffer`.
    """

    gelu_by_exp: bool = False
    narrow_channels: int = 0
    rope_by_halves: bool = False
    text_multiple: int = 1
    round_by_quantize: bool = False
    double_buffer: bool = False


PLAIN_KERNELS = Kernels()


def choose_kernels(is_plain: bool = False) -> Kernels:
    """Return the forms that are fastest on this CPU, or the plain ones."""
    if is_plain:
        return PLAIN_KERNELS
    return Kernels(
        gelu_by_exp=cpu.is_avx2_only(),
        narrow_channels=0 if cpu.is_avx2_only() else 32,
        rope_by_halves=True,
        text_multiple=16,
        round_by_quantize=True,
        double_buffer=True,
    )


@dataclass(frozen=True)
class GraphOptions:
    """Options of a graph. is_int8: its convolutions are in 8 bits, the rest in the dtype."""

    dtype: str = "float32"
    is_int8: bool = False
    kernels: Kernels = PLAIN_KERNELS


@dataclass(frozen=True)
class GraphBuilder:
    """One graph while it is built, with its inputs and outputs by name."""

    name: str
    inputs: dict[str, Node] = field(default_factory=dict)
    outputs: dict[str, Node] = field(default_factory=dict)

    def add_input(
        self, name: str, shape: Sequence[int | ov.Dimension], kind: ov.Type = ov.Type.f32
    ) -> Node:
        """-1 in the shape is any size."""
        self.inputs[name] = ops.parameter(ov.PartialShape(list(shape)), kind, name)
        self.inputs[name].output(0).get_tensor().set_names({name})
        return self.inputs[name]

    def build(self) -> ov.Model:
        model = ov.Model(list(self.outputs.values()), list(self.inputs.values()), self.name)
        for name, output in zip(self.outputs, model.outputs, strict=True):
            output.get_tensor().set_names({name})
        return model


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
        """Return a weight that may be missing."""
        return self.table.get(self.name + name)

    def __contains__(self, name: str) -> bool:
        return self.name + name in self.table

    def submodule(self, name: str) -> "ModuleWeights":
        """Return a module inside of it."""
        return ModuleWeights(self.table, f"{self.name}{name}.")

    def has_submodule(self, name: str) -> bool:
        """Return whether there is such a module."""
        return any(key.startswith(f"{self.name}{name}.") for key in self.table)

    def modulelist(self, name: str) -> Iterator["ModuleWeights"]:
        """Modules of a list."""
        numbers = takewhile(lambda i: self.has_submodule(f"{name}.{i}"), count())
        return (self.submodule(f"{name}.{i}") for i in numbers)


def constant(weight: Floats) -> Node:
    """Return a node of a weight, whose memory it shares."""
    return ops.constant(np.ascontiguousarray(weight), shared_memory=True)


def int_constant(values: int | Sequence[int]) -> Node:
    return ops.constant(np.array(values, dtype=np.int64))


def float_constant(value: float) -> Node:
    return ops.constant(np.float32(value))


def linear(x: Node, layer: ModuleWeights, order: NDArray[np.int64] | slice = slice(None)) -> Node:
    """(..., in) -> (..., out), its outputs in another order where one is given."""
    x = ops.matmul(x, constant(layer["weight"][order]), False, True)
    return ops.add(x, constant(layer["bias"][order])) if "bias" in layer else x


def gelu(x: Node, kernels: Kernels) -> Node:
    """GELU's approximation by tanh.

    gelu_by_exp: x / (1 + exp(-2y)) instead of x (1 + tanh y) / 2, because the plugin's tanh takes
    its coefficients from memory where there is no AVX-512. Without it a step takes 1.24 times as
    long (AVX2, OpenVINO 2026.4.0, bench/KERNELS.md).
    """
    if not kernels.gelu_by_exp:
        return ops.gelu(x, "tanh")
    cubic = ops.add(
        ops.multiply(ops.multiply(x, x), float_constant(-GELU * CUBE)), float_constant(-GELU)
    )
    return ops.divide(x, ops.add(float_constant(1), ops.exp(ops.multiply(x, cubic))))


def rms_norm(x: Node, eps: float, weight: Floats | None = None) -> Node:
    """Norm over the last axis."""
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


@dataclass(frozen=True)
class RotaryEmbedding:
    """Cosines and sines of the tokens' positions, (1, heads, tokens, head) each.

    A pair's value stands in both halves of its head. rope_by_halves: channels of queries and keys
    are permuted so that the parts of pairs are halves of their head (`channel_order`), which the
    plugin rotates in one kernel, if it is written exactly as here. Without it a step takes 2.03
    times as long in bfloat16 (AVX-512), 1.47 times in float32 (AVX2, OpenVINO 2026.4.0,
    bench/KERNELS.md).
    """

    cos: Node
    sin: Node
    kernels: Kernels

    def channel_order(self, heads: int, size: int) -> NDArray[np.int64]:
        """Return an order of the channels of queries and keys; their products stay the same."""
        order = np.arange(heads * size)
        if not self.kernels.rope_by_halves:
            return order
        return order.reshape(heads, size // 2, 2).swapaxes(1, 2).flatten()

    def apply(self, x: Node, size: int) -> Node:
        """Rotate (1, heads, tokens, size)."""
        half = size // 2
        if not self.kernels.rope_by_halves:
            return self._rotate_pairs(x, half)
        halves = ops.variadic_split(x, int_constant(3), int_constant([half, half]))
        real, imaginary = halves.outputs()
        across = ops.concat([ops.multiply(imaginary, float_constant(-1)), real], -1)
        return ops.add(ops.multiply(x, self.cos), ops.multiply(across, self.sin))

    def _rotate_pairs(self, x: Node, half: int) -> Node:
        """Rotate neighbouring channels, as diffusers does."""
        split = int_constant([0, 0, 0, half, 2])
        real, imaginary = ops.split(ops.reshape(x, split, True), int_constant(4), 2).outputs()
        ends = int_constant([0]), int_constant([half]), int_constant([1]), int_constant([3])
        cos, sin = (
            ops.unsqueeze(ops.slice(y, *ends), int_constant(4)) for y in (self.cos, self.sin)
        )
        turned = (
            ops.subtract(ops.multiply(real, cos), ops.multiply(imaginary, sin)),
            ops.add(ops.multiply(imaginary, cos), ops.multiply(real, sin)),
        )
        return ops.reshape(ops.concat(list(turned), 4), int_constant([0, 0, 0, 2 * half]), True)


def pad_text(text: Floats, kernels: Kernels) -> tuple[Floats, Floats]:
    """(1, words, channels) with zeros up to a multiple of `text_multiple` words, and their mask.

    With AMX the plugin's attention takes twice as long over other numbers of words (2026.4.0,
    docs/design/openvino.md); without AMX a step takes 1.02 (AVX-512) and 0.99 times (AVX2) as long
    (bench/KERNELS.md).
    """
    words, padding = text.shape[1], -text.shape[1] % kernels.text_multiple
    mask = np.zeros((1, 1, 1, words + padding), np.float32)
    mask[..., words:] = MASK_VALUE
    return np.pad(text, ((0, 0), (0, padding), (0, 0))), mask
