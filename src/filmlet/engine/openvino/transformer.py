"""The transformer as an OpenVINO graph, with tokens and text of any length."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import Node
from openvino import opset13 as ops

from filmlet.engine.openvino.int8_linear import QuantizedTokens
from filmlet.engine.openvino.ops import (
    Floats,
    GraphBuilder,
    GraphOptions,
    Kernels,
    ModuleWeights,
    RotaryEmbedding,
    constant,
    gelu,
    int_constant,
    linear,
    merge_heads,
    rms_norm,
    split_heads,
)
from filmlet.engine.openvino.timestep_embedding import SINES

ADALN_PARAMS = 6  # modulations of a block: shift, scale and gate of the attention, then of the rest
QK_EPS = 1e-5  # of the norms of queries and keys
OUT_EPS = 1e-6  # of the last norm
ROPE_BASE_SIZE = (
    20,
    2048,
    2048,
)  # seconds, rows and columns that rotate the slowest channels by a turn
THETA = 10000.0
NEXT = ".next"  # of what a block makes of its input of this name
Tokens: TypeAlias = Node | QuantizedTokens  # that a linear layer takes


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of a transformer, from its configuration."""

    channels: int
    captions: int
    heads: int
    head: int
    eps: float

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "TransformerConfig":
        return cls(
            channels=config["in_channels"],
            captions=config["caption_channels"],
            heads=config["num_attention_heads"],
            head=config["attention_head_dim"],
            eps=config.get("norm_eps", 1e-6),
        )


def build_graph(weights: ModuleWeights, config: TransformerConfig, kernels: Kernels) -> ov.Model:
    """Return the graph of float32 weights, which it refers to.

    Inputs: latents (1, tokens, channels), text (1, words, channels), mask (1, 1, 1, words), time
    (1, 1 or tokens, 256) by `sinusoidal_embedding`, cos and sin (1, heads, tokens, head). Output:
    velocity. Text and mask are as `pad_text` makes them.
    """
    graph = GraphBuilder("transformer")
    latents = graph.add_input("latents", (1, -1, config.channels))
    text = graph.add_input("text", (1, -1, config.captions))
    mask = graph.add_input("mask", (1, 1, 1, -1))
    time = graph.add_input("time", (1, -1, SINES))
    cos, sin = (
        graph.add_input(name, (1, config.heads, -1, config.head)) for name in ("cos", "sin")
    )

    states = _EmbeddedInputs.build(weights, latents, text, time, kernels)
    rotation = RotaryEmbedding(cos, sin, kernels)
    blocks = _BlockBuilder(config, kernels, states.text, mask, states.modulation, rotation)
    x = states.latents
    for block in weights.modulelist("transformer_blocks"):
        x = blocks.build(block, x)
    graph.outputs["velocity"] = _project_out(weights, x, states.time)
    return graph.build()


def build_embedding_graph(
    weights: ModuleWeights, config: TransformerConfig, kernels: Kernels
) -> ov.Model:
    """Return the part of `build_graph` before the blocks, which takes the same inputs.

    Outputs: x (1, tokens, width), text_states (1, words, width), modulation (1, 1 or tokens,
    6 x width), embedded (1, 1 or tokens, width).
    """
    graph = GraphBuilder("embedding")
    latents = graph.add_input("latents", (1, -1, config.channels))
    text = graph.add_input("text", (1, -1, config.captions))
    time = graph.add_input("time", (1, -1, SINES))
    states = _EmbeddedInputs.build(weights, latents, text, time, kernels)
    graph.outputs["x"] = states.latents
    graph.outputs["text_states"] = states.text
    graph.outputs["modulation"] = states.modulation
    graph.outputs["embedded"] = states.time
    return graph.build()


def build_block_graph(
    block: ModuleWeights, config: TransformerConfig, options: GraphOptions
) -> ov.Model:
    """Return one block. Inputs: outputs of `build_embedding_graph`, and mask, cos and sin.

    Output: x and NEXT.
    """
    graph, width = GraphBuilder("block"), config.heads * config.head
    x = graph.add_input("x", (1, -1, width))
    text = graph.add_input("text_states", (1, -1, width))
    mask = graph.add_input("mask", (1, 1, 1, -1))
    modulation = graph.add_input("modulation", (1, -1, ADALN_PARAMS * width))
    cos, sin = (
        graph.add_input(name, (1, config.heads, -1, config.head)) for name in ("cos", "sin")
    )
    rotation = RotaryEmbedding(cos, sin, options.kernels)
    blocks = _BlockBuilder(
        config, options.kernels, text, mask, modulation, rotation, options.is_int8
    )
    graph.outputs["x" + NEXT] = blocks.build(block, x)
    return graph.build()


def build_output_graph(weights: ModuleWeights, config: TransformerConfig) -> ov.Model:
    """Return the part of `build_graph` after the blocks.

    Inputs: x and embedded, as `build_embedding_graph` names them. Output: velocity.
    """
    graph, width = GraphBuilder("output"), config.heads * config.head
    x = graph.add_input("x", (1, -1, width))
    embedded = graph.add_input("embedded", (1, -1, width))
    graph.outputs["velocity"] = _project_out(weights, x, embedded)
    return graph.build()


@dataclass(frozen=True)
class _EmbeddedInputs:
    """What blocks are given. time: as the last layer is told it."""

    latents: Node
    text: Node
    modulation: Node
    time: Node

    @classmethod
    def build(
        cls, weights: ModuleWeights, latents: Node, text: Node, time: Node, kernels: Kernels
    ) -> "_EmbeddedInputs":
        embedder = weights.submodule("time_embed.emb.timestep_embedder")
        embedded = linear(time, embedder.submodule("linear_1"))
        embedded = linear(ops.swish(embedded), embedder.submodule("linear_2"))
        modulation = linear(ops.swish(embedded), weights.submodule("time_embed.linear"))
        caption = weights.submodule("caption_projection")
        text = gelu(linear(text, caption.submodule("linear_1")), kernels)
        text = linear(text, caption.submodule("linear_2"))
        return cls(linear(latents, weights.submodule("proj_in")), text, modulation, embedded)


def _project_out(weights: ModuleWeights, x: Node, embedded: Node) -> Node:
    shift, scale = weights["scale_shift_table"]
    x = ops.mvn(x, int_constant([-1]), True, OUT_EPS, "inside_sqrt")
    x = ops.multiply(x, ops.add(embedded, constant(scale + 1)))
    x = ops.add(x, ops.add(embedded, constant(shift)))
    return linear(x, weights.submodule("proj_out"))


@dataclass(frozen=True)
class _BlockBuilder:
    """Blocks of the transformer, and what each of them is given.

    is_int8: their linear layers multiply in 8 bits.
    """

    config: TransformerConfig
    kernels: Kernels
    text: Node
    mask: Node
    modulation: Node  # of the timestep
    rotation: RotaryEmbedding
    is_int8: bool = False

    def build(self, block: ModuleWeights, x: Node) -> Node:
        offset = block["scale_shift_table"].copy()
        offset[1::3] += 1  # the scales
        modulation = ops.add(self.modulation, constant(offset.flatten()))
        shift, scale, gate, shift_2, scale_2, gate_2 = ops.split(
            modulation, int_constant(2), ADALN_PARAMS
        ).outputs()

        y = rms_norm(x, self.config.eps, block.get("norm1.weight"))
        y = ops.add(ops.multiply(y, scale), shift)
        y = self._attend(block.submodule("attn1"), y)
        x = ops.add(x, ops.multiply(y, gate))
        x = ops.add(x, self._attend(block.submodule("attn2"), x, self.text))

        y = rms_norm(x, self.config.eps, block.get("norm2.weight"))
        y = ops.add(ops.multiply(y, scale_2), shift_2)
        y = gelu(self._linear(self._round(y), block.submodule("ff.net.0.proj")), self.kernels)
        y = self._linear(self._round(y), block.submodule("ff.net.2"))
        return ops.add(x, ops.multiply(y, gate_2))

    def _attend(self, attention: ModuleWeights, x: Node, text: Node | None = None) -> Node:
        """To the text, masked, or to itself, rotated."""
        heads, size = self.config.heads, self.config.head
        tokens = self._round(x)
        source = tokens if text is None else self._round(text)
        order = np.arange(heads * size)
        if text is None:
            order = self.rotation.channel_order(heads, size)
        query = self._project(attention, tokens, "q", order)
        key = self._project(attention, source, "k", order)
        value = split_heads(self._linear(source, attention.submodule("to_v")), heads, size)
        if text is None:
            query, key = (self.rotation.apply(y, size) for y in (query, key))
        mask = None if text is None else self.mask
        y = ops.scaled_dot_product_attention(query, key, value, mask)
        y = self._round(merge_heads(y, heads * size))
        return self._linear(y, attention.submodule("to_out.0"))

    def _project(
        self, attention: ModuleWeights, x: Tokens, kind: str, order: NDArray[np.int64]
    ) -> Node:
        """Queries or keys, normed, their channels in an order."""
        norm = attention.submodule(f"norm_{kind}")["weight"][order]
        y = rms_norm(self._linear(x, attention.submodule(f"to_{kind}"), order), QK_EPS, norm)
        return split_heads(y, self.config.heads, self.config.head)

    def _round(self, x: Node) -> Tokens:
        """Return tokens as linear layers take them; several may share them."""
        return QuantizedTokens.from_tokens(x) if self.is_int8 else x

    def _linear(
        self, x: Tokens, layer: ModuleWeights, order: NDArray[np.int64] | slice = slice(None)
    ) -> Node:
        if isinstance(x, QuantizedTokens):
            return x.linear(layer, order)
        return linear(x, layer, order)


def rotary_cos_sin(config: TransformerConfig, places: Floats) -> tuple[Floats, Floats]:
    """Cosines and sines for `build_graph`, in float32, as `LTXVideoRotaryPosEmbed` of diffusers.

    places: (1, 3, tokens). A pair's value stands in both halves of its head.
    """
    width = config.heads * config.head
    slow, tokens = width // 6, places.shape[2]
    # torch's own rounding: the fastest channels turn by thousands, so its last bit is seen.
    step = np.float32(1) / np.float32(slow - 1)
    ramp = np.arange(slow, dtype=np.float32)
    ramp = np.where(ramp < slow // 2, step * ramp, 1 - step * ramp[::-1])
    speeds = (THETA ** ramp.astype(np.float64)).astype(np.float32) * np.float32(np.pi) / 2
    share = places[0].T / np.array(ROPE_BASE_SIZE, np.float32)
    angles = (speeds * (share[..., None] * 2 - 1)).swapaxes(1, 2).reshape(tokens, -1)
    rest = np.zeros((tokens, width % 6 // 2), np.float32)  # channels that do not turn
    angles = np.concat([rest, angles], 1).reshape(1, tokens, config.heads, -1).swapaxes(1, 2)
    cos, sin = (np.concat([turn(angles)] * 2, 3) for turn in (np.cos, np.sin))
    return cos, sin
