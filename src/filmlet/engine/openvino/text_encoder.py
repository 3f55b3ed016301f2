"""T5's encoder as an OpenVINO graph, with text of any length."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import openvino as ov
from openvino import Node
from openvino import opset13 as ops

from filmlet.engine.openvino.ops import (
    Floats,
    Part,
    constant,
    gelu,
    heads_apart,
    heads_together,
    integers,
    linear,
    rms_norm,
)

BIAS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
ACTIVATIONS = {"relu": ops.relu, "gelu_new": gelu, "gelu": ops.gelu}


def graph(weights: Part, config: Mapping[str, Any]) -> ov.Model:
    """From float32 weights, which it refers to.

    Inputs: ids (1, tokens), bias (1, heads, tokens, tokens) as `bias` makes it. Output: (1, tokens,
    channels). Nothing is masked: the model was trained with the padding in sight, or gets none.
    """
    ids = ops.parameter(ov.PartialShape([1, -1]), np.int64, "ids")
    heads = config["num_heads"]
    near = ops.parameter(ov.PartialShape([1, heads, -1, -1]), np.float32, "bias")
    own = "shared.weight"
    words = weights[own if own in weights else "encoder.embed_tokens.weight"]
    x = ops.gather(constant(words), ids, integers(0))
    for block in weights.each("encoder.block"):
        x = ops.add(x, _attention(block.at("layer.0"), config, x, near))
        x = ops.add(x, _feed_forward(block.at("layer.1"), config, x))
    x = _norm(weights.at("encoder.final_layer_norm"), config, x)
    return ov.Model([x], [ids, near], "text encoder")


def _norm(norm: Part, config: Mapping[str, Any], x: Node) -> Node:
    return rms_norm(x, config.get("layer_norm_epsilon", 1e-6), norm["weight"])


def _attention(layer: Part, config: Mapping[str, Any], x: Node, near: Node) -> Node:
    heads, size = config["num_heads"], config["d_kv"]
    x = _norm(layer.at("layer_norm"), config, x)
    attention = layer.at("SelfAttention")
    query, key, value = (heads_apart(linear(x, attention.at(one)), heads, size) for one in "qkv")
    likeness = ops.add(ops.matmul(query, key, False, True), near)  # T5 scales nothing
    y = ops.matmul(ops.softmax(likeness, -1), value, False, False)
    return linear(heads_together(y, heads * size), attention.at("o"))


def _feed_forward(layer: Part, config: Mapping[str, Any], x: Node) -> Node:
    x = _norm(layer.at("layer_norm"), config, x)
    dense = layer.at("DenseReluDense")
    kind = config.get("feed_forward_proj", "relu")
    activation = ACTIVATIONS["gelu_new" if kind == "gated-gelu" else kind.removeprefix("gated-")]
    if "wi.weight" in dense:
        return linear(activation(linear(x, dense.at("wi"))), dense.at("wo"))
    y = ops.multiply(activation(linear(x, dense.at("wi_0"))), linear(x, dense.at("wi_1")))
    return linear(y, dense.at("wo"))


def bias(table: Floats, config: Mapping[str, Any], tokens: int) -> Floats:
    """What a token's distance adds to its likeness: (1, heads, tokens, tokens).

    table: (buckets, heads). Near distances have a bucket each, far ones share them by their
    logarithm. Source: Raffel et al., 2020, arXiv 1910.10683, section 2.1, and T5's own code.
    """
    half = len(table) // 2  # for what comes before, and for what comes after
    exact = half // 2
    most = config.get("relative_attention_max_distance", 128)
    offset = np.arange(tokens) - np.arange(tokens)[:, None]
    distance = np.abs(offset)
    shares = np.log(np.maximum(distance, 1) / exact) / math.log(most / exact)
    far = np.minimum(exact + (shares * (half - exact)).astype(int), half - 1)
    bucket = np.where(distance < exact, distance, far) + half * (offset > 0)
    return np.ascontiguousarray(table[bucket].transpose(2, 0, 1)[None])
