"""T5's encoder as an OpenVINO graph, with text of any length."""

import math
from collections.abc import Container, Mapping
from functools import partial
from typing import Any

import numpy as np
import openvino as ov
from openvino import Node
from openvino import opset13 as ops

from filmlet.engine.openvino.ops import (
    Floats,
    GraphBuilder,
    ModuleWeights,
    constant,
    int_constant,
    linear,
    merge_heads,
    rms_norm,
    split_heads,
)

BLOCKS, LAST_NORM = "encoder.block", "encoder.final_layer_norm"
BIAS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
ACTIVATIONS = {
    "relu": ops.relu,
    "gelu_new": partial(ops.gelu, approximation_mode="tanh"),
    "gelu": ops.gelu,
}


def build_graph(weights: ModuleWeights, config: Mapping[str, Any]) -> ov.Model:
    """Return the graph of float32 weights, which it refers to.

    Inputs: ids (1, tokens), bias (1, heads, tokens, tokens) by `relative_position_bias`. Output:
    states (1, tokens, channels). Nothing is masked: the model was trained with the padding in
    sight, or gets none.
    """
    graph = GraphBuilder("text encoder")
    ids = graph.add_input("ids", (1, -1), ov.Type.i64)
    near = graph.add_input("bias", (1, config["num_heads"], -1, -1))
    x = ops.gather(constant(weights[embeddings_key(weights.table)]), ids, int_constant(0))
    for block in weights.modulelist(BLOCKS):
        x = _block(block, config, x, near)
    graph.outputs["states"] = _norm(weights.submodule(LAST_NORM), config, x)
    return graph.build()


def build_block_graph(weights: ModuleWeights, number: int, config: Mapping[str, Any]) -> ov.Model:
    """Return one block of float32 weights, and the last norm where they have it.

    Inputs: x (1, tokens, channels), bias as `build_graph`. Output: states.
    """
    graph = GraphBuilder("text encoder block")
    x = graph.add_input("x", (1, -1, config["d_model"]))
    near = graph.add_input("bias", (1, config["num_heads"], -1, -1))
    x = _block(weights.submodule(f"{BLOCKS}.{number}"), config, x, near)
    if weights.has_submodule(LAST_NORM):
        x = _norm(weights.submodule(LAST_NORM), config, x)
    graph.outputs["states"] = x
    return graph.build()


def embeddings_key(names: Container[str]) -> str:
    """Return the name of the embeddings of tokens."""
    return "shared.weight" if "shared.weight" in names else "encoder.embed_tokens.weight"


def _block(block: ModuleWeights, config: Mapping[str, Any], x: Node, near: Node) -> Node:
    x = ops.add(x, _attention(block.submodule("layer.0"), config, x, near))
    return ops.add(x, _feed_forward(block.submodule("layer.1"), config, x))


def _norm(norm: ModuleWeights, config: Mapping[str, Any], x: Node) -> Node:
    return rms_norm(x, config.get("layer_norm_epsilon", 1e-6), norm["weight"])


def _attention(layer: ModuleWeights, config: Mapping[str, Any], x: Node, near: Node) -> Node:
    heads, size = config["num_heads"], config["d_kv"]
    x = _norm(layer.submodule("layer_norm"), config, x)
    attention = layer.submodule("SelfAttention")
    query, key, value = (
        split_heads(linear(x, attention.submodule(projection)), heads, size) for projection in "qkv"
    )
    likeness = ops.add(ops.matmul(query, key, False, True), near)  # T5 scales nothing
    y = ops.matmul(ops.softmax(likeness, -1), value, False, False)
    return linear(merge_heads(y, heads * size), attention.submodule("o"))


def _feed_forward(layer: ModuleWeights, config: Mapping[str, Any], x: Node) -> Node:
    x = _norm(layer.submodule("layer_norm"), config, x)
    dense = layer.submodule("DenseReluDense")
    kind = config.get("feed_forward_proj", "relu")
    activation = ACTIVATIONS["gelu_new" if kind == "gated-gelu" else kind.removeprefix("gated-")]
    if "wi.weight" in dense:
        return linear(activation(linear(x, dense.submodule("wi"))), dense.submodule("wo"))
    y = ops.multiply(
        activation(linear(x, dense.submodule("wi_0"))), linear(x, dense.submodule("wi_1"))
    )
    return linear(y, dense.submodule("wo"))


def relative_position_bias(table: Floats, config: Mapping[str, Any], tokens: int) -> Floats:
    """Return the bias that a token's distance adds to its attention: (1, heads, tokens, tokens).

    table: (buckets, heads). Near distances have a bucket each, far ones share them by their
    logarithm. Source: Raffel et al., 2020, arXiv 1910.10683, section 2.1, and T5's own code.
    """
    half = len(table) // 2  # for what comes before, and for what comes after
    exact = half // 2
    max_distance = config.get("relative_attention_max_distance", 128)
    offset = np.arange(tokens) - np.arange(tokens)[:, None]
    distance = np.abs(offset)
    shares = np.log(np.maximum(distance, 1) / exact) / math.log(max_distance / exact)
    far = np.minimum(exact + (shares * (half - exact)).astype(int), half - 1)
    bucket = np.where(distance < exact, distance, far) + half * (offset > 0)
    return np.ascontiguousarray(table[bucket].transpose(2, 0, 1)[None])
