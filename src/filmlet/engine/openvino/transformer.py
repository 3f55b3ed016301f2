"""The transformer as an OpenVINO graph, with tokens and text of any length."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import Node
from openvino import opset13 as ops

from filmlet.engine.openvino.ops import (
    Floats,
    ModuleWeights,
    constant,
    float_constant,
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
TEXT_MULTIPLE = 16  # words
MASK_VALUE = -1e4  # added to the likeness of a word that is none; bfloat16 can hold it
ROPE_BASE_SIZE = (
    20,
    2048,
    2048,
)  # seconds, rows and columns that rotate the slowest channels by a turn
THETA = 10000.0


@dataclass(frozen=True)
class RotaryEmbedding:
    """Cosines and sines of the places of tokens, each (1, heads, tokens, head)."""

    cos: Node
    sin: Node

    def apply(self, x: Node, half: int) -> Node:
        """Rotate (1, heads, tokens, head), whose halves are the parts of the pairs.

        Written as the plugin has it in one kernel, down to the axis of -1.
        """
        real, imaginary = ops.variadic_split(
            x, int_constant(3), int_constant([half, half])
        ).outputs()
        across = ops.concat([ops.multiply(imaginary, float_constant(-1)), real], -1)
        return ops.add(ops.multiply(x, self.cos), ops.multiply(across, self.sin))


@dataclass(frozen=True)
class TransformerConfig:
    """Of a transformer, as its configuration has them."""

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


def build_graph(weights: ModuleWeights, widths: TransformerConfig) -> ov.Model:
    """From float32 weights, which it refers to.

    Inputs: latents (1, tokens, channels), text (1, words, channels), mask (1, 1, 1, words), time
    (1, 1 or tokens, 256) as `sines` makes it, cos and sin (1, heads, tokens, head). Output: the
    velocity. Text and mask are as `pad_text` makes them.
    """
    inputs = [
        ops.parameter(ov.PartialShape(shape), np.float32, name)
        for name, shape in (
            ("latents", [1, -1, widths.channels]),
            ("text", [1, -1, widths.captions]),
            ("mask", [1, 1, 1, -1]),
            ("time", [1, -1, SINES]),
            ("cos", [1, widths.heads, -1, widths.head]),
            ("sin", [1, widths.heads, -1, widths.head]),
        )
    ]
    latents, text, mask, time, cos, sin = inputs
    embedder = weights.submodule("time_embed.emb.timestep_embedder")
    embedded = linear(time, embedder.submodule("linear_1"))
    embedded = linear(ops.swish(embedded), embedder.submodule("linear_2"))
    modulation = linear(ops.swish(embedded), weights.submodule("time_embed.linear"))
    caption = weights.submodule("caption_projection")
    text_states = gelu(linear(text, caption.submodule("linear_1")))
    text_states = linear(text_states, caption.submodule("linear_2"))
    x, rotation = linear(latents, weights.submodule("proj_in")), RotaryEmbedding(cos, sin)
    for block in weights.modulelist("transformer_blocks"):
        x = _block(block, widths, x, (text_states, mask), modulation, rotation)
    shift, scale = weights["scale_shift_table"]
    x = ops.mvn(x, int_constant([-1]), True, OUT_EPS, "inside_sqrt")
    x = ops.multiply(x, ops.add(embedded, constant(scale + 1)))
    x = linear(ops.add(x, ops.add(embedded, constant(shift))), weights.submodule("proj_out"))
    return ov.Model([x], inputs, "transformer")


def _block(
    block: ModuleWeights,
    widths: TransformerConfig,
    x: Node,
    text_and_mask: tuple[Node, Node],
    modulation: Node,
    rotation: RotaryEmbedding,
) -> Node:
    offset = block["scale_shift_table"].copy()
    offset[1::3] += 1  # the scales
    full_modulation = ops.add(modulation, constant(offset.flatten()))
    shift, scale, gate, shift_2, scale_2, gate_2 = ops.split(
        full_modulation, int_constant(2), ADALN_PARAMS
    ).outputs()

    def norm(x: Node, name: str) -> Node:
        return rms_norm(x, widths.eps, block.get(name))

    y = ops.add(ops.multiply(norm(x, "norm1.weight"), scale), shift)
    y = _attention(block.submodule("attn1"), widths, y, y, rotation=rotation)
    x = ops.add(x, ops.multiply(y, gate))
    text_states, mask = text_and_mask
    x = ops.add(x, _attention(block.submodule("attn2"), widths, x, text_states, mask=mask))
    y = ops.add(ops.multiply(norm(x, "norm2.weight"), scale_2), shift_2)
    y = gelu(linear(y, block.submodule("ff.net.0.proj")))
    return ops.add(x, ops.multiply(linear(y, block.submodule("ff.net.2")), gate_2))


def _attention(
    attention: ModuleWeights,
    widths: TransformerConfig,
    x: Node,
    source: Node,
    mask: Node | None = None,
    rotation: RotaryEmbedding | None = None,
) -> Node:
    heads, size = widths.heads, widths.head
    order = _half_split_order(heads, size) if rotation else np.arange(heads * size)
    scale = np.float32(size**-0.5)  # in the weights of a norm it costs nothing
    query, key = (
        rms_norm(linear(y, attention.submodule(f"to_{kind}"), order), QK_EPS, weight[order])
        for y, kind, weight in (
            (x, "q", attention.submodule("norm_q")["weight"] * scale),
            (source, "k", attention.submodule("norm_k")["weight"]),
        )
    )
    value = linear(source, attention.submodule("to_v"))
    query, key, value = (split_heads(y, heads, size) for y in (query, key, value))
    if rotation:
        query, key = (rotation.apply(y, size // 2) for y in (query, key))
    y = ops.scaled_dot_product_attention(query, key, value, mask, float_constant(1))
    return linear(merge_heads(y, heads * size), attention.submodule("to_out.0"))


def _half_split_order(heads: int, size: int) -> NDArray[np.int64]:
    """Where channels come from so that pairs (0, 1), (2, 3), ... are halves of their head.

    Queries and keys both: their products stay the same, and rotating takes no interleaving.
    """
    return np.arange(heads * size).reshape(heads, size // 2, 2).swapaxes(1, 2).flatten()


def pad_text(text: Floats) -> tuple[Floats, Floats]:
    """(1, words, channels) with words of nothing up to a multiple of TOGETHER, and their mask.

    The plugin's attention takes twice as long over other numbers of words.
    """
    token_count, rest = text.shape[1], -text.shape[1] % TEXT_MULTIPLE
    mask = np.zeros((1, 1, 1, token_count + rest), np.float32)
    mask[..., token_count:] = MASK_VALUE
    return np.pad(text, ((0, 0), (0, rest), (0, 0))), mask


def rotary_cos_sin(widths: TransformerConfig, places: Floats) -> tuple[Floats, Floats]:
    """Cosines and sines for `build_graph`, in float32, as `LTXVideoRotaryPosEmbed` of diffusers.

    places: (1, 3, tokens). A pair's value stands in both halves of its head.
    """
    width = widths.heads * widths.head
    slow, tokens = width // 6, places.shape[2]
    # torch's own rounding: the fastest channels turn by thousands, so its last bit is seen.
    step = np.float32(1) / np.float32(slow - 1)
    ramp = np.arange(slow, dtype=np.float32)
    ramp = np.where(ramp < slow // 2, step * ramp, 1 - step * ramp[::-1])
    speeds = (THETA ** ramp.astype(np.float64)).astype(np.float32) * np.float32(np.pi) / 2
    share = places[0].T / np.array(ROPE_BASE_SIZE, np.float32)
    angles = (speeds * (share[..., None] * 2 - 1)).swapaxes(1, 2).reshape(tokens, -1)
    rest = np.zeros((tokens, width % 6 // 2), np.float32)  # channels that do not turn
    angles = np.concat([rest, angles], 1).reshape(1, tokens, widths.heads, -1).swapaxes(1, 2)
    cos, sin = (np.concat([turn(angles)] * 2, 3) for turn in (np.cos, np.sin))
    return cos, sin
