"""Words of OpenVINO graphs: weights, linear layers, norms."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from openvino import Node
from openvino import opset13 as ops
from torch import Tensor, nn


def constant(weight: Tensor) -> Node:
    """In float32; the memory of one that is so already is shared."""
    return ops.constant(weight.detach().float().contiguous().numpy(), shared_memory=True)


def integers(values: int | Sequence[int]) -> Node:
    return ops.constant(np.array(values, dtype=np.int64))


def linear(x: Node, layer: nn.Linear, order: Tensor | None = None) -> Node:
    """(..., in) -> (..., out), its outputs in another order where one is given."""
    weight: Tensor = layer.weight
    bias: Tensor | None = layer.bias
    if order is not None:
        weight, bias = weight[order], None if bias is None else bias[order]
    x = ops.matmul(x, constant(weight), False, True)
    return x if bias is None else ops.add(x, constant(bias))


def rms_norm(x: Node, norm: Any, order: Tensor | None = None, axis: int = -1) -> Node:
    """Over one axis."""
    mean = ops.reduce_mean(ops.power(x, _number(2)), integers([axis]), True)
    root = ops.sqrt(ops.add(mean, _number(norm.eps)))
    x = ops.multiply(x, ops.divide(_number(1), root))
    weight = getattr(norm, "weight", None)
    if weight is None:
        return x
    return ops.multiply(x, constant(weight if order is None else weight[order]))


def _number(value: float) -> Node:
    return ops.constant(np.float32(value))
