"""Linear layers that multiply in 8 bits: tokens are rounded as they come, weights once.

The plugin multiplies bytes in its convolutions about twice as fast as float32 with AVX2 alone, and
in its fully connected layers no faster (OpenVINO 2026.4.0, bench/RESULTS-2B.md). So each layer is
a convolution of one position: channels last, its memory is that of the tokens.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from openvino import Node
from openvino import opset13 as ops

from filmlet.engine.openvino.ops import (
    Floats,
    ModuleWeights,
    constant,
    float_constant,
    int_constant,
)
from filmlet.engine.openvino.runner import lacks_vnni
from filmlet.engine.openvino.vae_ops import fake_quantize

LEVELS = 127  # on each side of 0
TINY = 1e-12  # of a scale: a row of zeros has none
WHOLE = slice(None)


@dataclass(frozen=True)
class QuantizedTokens:
    """Tokens in 8 bits, (1, channels, 1, tokens), and what each is multiplied by, (1, tokens, 1).

    Several layers may share them.
    """

    values: Node
    scale: Node

    @classmethod
    def from_tokens(cls, x: Node) -> "QuantizedTokens":
        """Round (1, tokens, channels): each token to the range of its own values."""
        largest = ops.reduce_max(ops.abs(x), int_constant([-1]), True)
        scale = ops.divide(ops.maximum(largest, float_constant(TINY)), float_constant(LEVELS))
        x = ops.transpose(ops.unsqueeze(ops.divide(x, scale), int_constant(1)), int_constant(ORDER))
        return cls(fake_quantize(x, (-LEVELS - 1, LEVELS)), scale)

    def linear(self, layer: ModuleWeights, order: NDArray[np.int64] | slice = WHOLE) -> Node:
        """Return (1, tokens, outputs), in another order where one is given."""
        weight, scale = quantize_rows(layer["weight"][order])
        kernel = ops.convert(ops.constant(weight[..., None, None]), np.float32)
        kernel = ops.multiply(kernel, constant(scale[..., None, None]))
        y = ops.convolution(self.values, kernel, [1, 1], [0, 0], [0, 0], [1, 1])
        y = ops.squeeze(ops.transpose(y, int_constant(INVERSE)), int_constant(1))
        y = ops.multiply(y, self.scale)
        return ops.add(y, constant(layer["bias"][order])) if "bias" in layer else y


ORDER = [0, 3, 1, 2]  # (1, 1, tokens, channels) -> (1, channels, 1, tokens)
INVERSE = [0, 2, 3, 1]


def quantize_rows(weight: Floats) -> tuple[NDArray[np.int8], Floats]:
    """(outputs, inputs) in 8 bits, and what each output is multiplied by, (outputs, 1).

    Without VNNI half of the levels remain unused: two products are added up in 16 bits.
    """
    levels = LEVELS // 2 if lacks_vnni() else LEVELS
    scale = np.maximum(np.abs(weight).max(1, keepdims=True), np.float32(TINY)) / np.float32(levels)
    return np.rint(weight / scale).astype(np.int8), scale
