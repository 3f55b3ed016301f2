"""The transformer as an OpenVINO graph, with tokens and text of any length."""

from dataclasses import dataclass

import numpy as np
import openvino as ov
import torch
from diffusers.models import LTXVideoTransformer3DModel
from diffusers.models.transformers.transformer_ltx import LTXAttention, LTXVideoTransformerBlock
from openvino import Node
from openvino import opset13 as ops
from torch import Tensor, nn

from filmlet.engine.compiled.nodes import constant, integers, linear, rms_norm

ADA = 6  # modulations of a block: shift, scale and gate of the attention, then of the rest


@dataclass(frozen=True)
class Rotation:
    """Cosines and sines of the places of tokens, each (1, tokens, heads, head / 2)."""

    cos: Node
    sin: Node

    def of(self, x: Node, half: int) -> Node:
        """Rotate (1, tokens, heads, head), whose halves are the parts of the pairs."""
        real, imaginary = ops.variadic_split(x, integers(3), integers([half, half])).outputs()
        turned = ops.subtract(ops.multiply(real, self.cos), ops.multiply(imaginary, self.sin))
        across = ops.add(ops.multiply(real, self.sin), ops.multiply(imaginary, self.cos))
        return ops.concat([turned, across], 3)


def graph(module: LTXVideoTransformer3DModel) -> ov.Model:
    """From float32 weights, which it refers to.

    Inputs: latents (1, tokens, channels), text (1, words, channels), time (1, 1 or tokens, 256)
    as `Timesteps` makes it, cos and sin (1, tokens, heads, head / 2). Output: the velocity.
    Text has no padding, so nothing is masked: an additive mask is wrong in bfloat16.
    """
    heads, size = module.config.num_attention_heads, module.config.attention_head_dim
    inputs = [
        ops.parameter(ov.PartialShape(shape), np.float32, name)
        for name, shape in (
            ("latents", [1, -1, module.config.in_channels]),
            ("text", [1, -1, module.config.caption_channels]),
            ("time", [1, -1, 256]),
            ("cos", [1, -1, heads, size // 2]),
            ("sin", [1, -1, heads, size // 2]),
        )
    ]
    latents, text, time, cos, sin = inputs
    embedder = module.time_embed.emb.timestep_embedder
    embedded = linear(ops.swish(linear(time, embedder.linear_1)), embedder.linear_2)
    modulation = linear(ops.swish(embedded), module.time_embed.linear)
    caption = module.caption_projection
    words = linear(ops.gelu(linear(text, caption.linear_1), "tanh"), caption.linear_2)
    x = linear(latents, module.proj_in)
    for block in module.transformer_blocks:
        x = _block(block, x, words, modulation, Rotation(cos, sin))
    shift, scale = module.scale_shift_table
    x = ops.mvn(x, integers([-1]), True, module.norm_out.eps, "inside_sqrt")
    x = ops.multiply(x, ops.add(embedded, constant(scale + 1)))
    x = linear(ops.add(x, ops.add(embedded, constant(shift))), module.proj_out)
    return ov.Model([x], inputs, "transformer")


def _block(
    block: LTXVideoTransformerBlock, x: Node, words: Node, modulation: Node, rotation: Rotation
) -> Node:
    offset = block.scale_shift_table.clone()
    offset[1::3] += 1  # the scales
    whole = ops.add(modulation, constant(offset.flatten()))
    shift, scale, gate, shift_2, scale_2, gate_2 = ops.split(whole, integers(2), ADA).outputs()
    normed = rms_norm(x, block.norm1)
    y = ops.add(ops.multiply(normed, scale), shift)
    x = ops.add(x, ops.multiply(_attention(block.attn1, y, y, rotation), gate))
    x = ops.add(x, _attention(block.attn2, x, words, None))
    y = ops.add(ops.multiply(rms_norm(x, block.norm2), scale_2), shift_2)
    widen, _, narrow = block.ff.net
    y = linear(ops.gelu(linear(y, widen.proj), "tanh"), narrow)
    return ops.add(x, ops.multiply(y, gate_2))


def _attention(attention: LTXAttention, x: Node, source: Node, rotation: Rotation | None) -> Node:
    heads = attention.heads
    size = attention.to_q.out_features // heads
    order = _halves(heads, size) if rotation else torch.arange(heads * size)
    shape = integers([0, 0, heads, size])

    def split(y: Node) -> Node:
        return ops.reshape(y, shape, True)

    query = split(rms_norm(linear(x, attention.to_q, order), attention.norm_q, order))
    key = split(rms_norm(linear(source, attention.to_k, order), attention.norm_k, order))
    value = split(linear(source, attention.to_v))
    if rotation:
        query, key = (rotation.of(y, size // 2) for y in (query, key))
    swap = integers([0, 2, 1, 3])
    query, key, value = (ops.transpose(y, swap) for y in (query, key, value))
    y = ops.scaled_dot_product_attention(query, key, value)
    y = ops.reshape(ops.transpose(y, swap), integers([0, 0, heads * size]), True)
    return linear(y, attention.to_out[0])


def _halves(heads: int, size: int) -> Tensor:
    """Where channels come from so that pairs (0, 1), (2, 3), ... are halves of their head.

    Queries and keys both: their products stay the same, and rotating takes no interleaving.
    """
    return torch.arange(heads * size).view(heads, size // 2, 2).transpose(1, 2).flatten()


def rotation(module: nn.Module, places: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines for `graph`, in float32, by diffusers' own arithmetic.

    places: (1, 3, tokens).
    """
    whole = module(torch.empty(1, device=places.device), video_coords=places)
    cos, sin = (x[..., ::2].unflatten(2, (heads, -1)).contiguous() for x in whole)
    return cos, sin
