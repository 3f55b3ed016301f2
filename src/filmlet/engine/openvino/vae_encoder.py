"""The VAE's encoder as an OpenVINO graph, for frames of any number and size."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import openvino as ov
from openvino import Node
from openvino import opset13 as ops

from filmlet.core.events import PixelValues
from filmlet.engine.openvino.ops import (
    Floats,
    GraphBuilder,
    ModuleWeights,
    constant,
    int_constant,
)
from filmlet.engine.openvino.vae_ops import (
    channels_of,
    convolution,
    norm_modulate_silu,
    shortcut,
    slice_frames,
)

STRIDES = {"spatial": (1, 2, 2), "temporal": (2, 1, 1), "spatiotemporal": (2, 2, 2)}
MOST = 2**13, 2**11, 2**11  # frames, rows, columns: unbounded sizes overflow in the plugin


def build_graph(weights: ModuleWeights, config: Mapping[str, Any]) -> ov.Model:
    """Return the graph of float32 weights, which it refers to. weights: of `encoder`.

    Input: patches by `patchify`. Output: latents (1, channels, ...), the mean of them.
    """
    is_causal = config.get("encoder_causal", True)
    channels = 3 * config.get("patch_size", 4) ** 2
    sizes = [ov.Dimension(1, max_size) for max_size in MOST]
    graph = GraphBuilder("encoder")
    patches = graph.add_input("patches", (1, channels, *sizes))
    x = _convolve(weights.submodule("conv_in.conv"), patches, is_causal)
    kinds = config.get("downsample_type", ["conv"] * len(config["block_out_channels"]))
    for block, kind in zip(weights.modulelist("down_blocks"), kinds, strict=False):
        for resnet in block.modulelist("resnets"):
            x = _resnet(resnet, x, is_causal)
        if "downsamplers.0.conv.weight" in block:
            x = _convolve(block.submodule("downsamplers.0.conv"), x, is_causal, (2, 2, 2))
        elif block.has_submodule("downsamplers"):
            x = _downsample(
                block.submodule("downsamplers.0.conv.conv"), x, STRIDES[kind], is_causal
            )
        if block.has_submodule("conv_out"):
            x = _resnet(block.submodule("conv_out"), x, is_causal)
    for resnet in weights.modulelist("mid_block.resnets"):
        x = _resnet(resnet, x, is_causal)
    x = _convolve(weights.submodule("conv_out.conv"), norm_modulate_silu(x), is_causal)
    # The last channel is the variance, of all the others.
    ends = int_constant([0]), int_constant([-1]), int_constant([1]), int_constant([1])
    graph.outputs["latents"] = ops.slice(x, *ends)
    return graph.build()


def patchify(pixels: PixelValues, side: int) -> Floats:
    """(frames, height, width, 3) -> (1, 3 x side x side, frames, height / side, width / side)."""
    count, height, width = pixels.shape[:3]
    x = pixels.astype(np.float32) / 127.5 - 1
    x = x.reshape(count, height // side, side, width // side, side, 3)
    x = x.transpose(5, 4, 2, 0, 1, 3)
    return x.reshape(1, -1, count, height // side, width // side)


def _convolve(
    conv: ModuleWeights, x: Node, is_causal: bool, stride: tuple[int, ...] = (1, 1, 1)
) -> Node:
    kernel = conv["weight"].shape[2]
    before = kernel - 1 if is_causal else (kernel - 1) // 2
    first, last = (
        slice_frames(x, int_constant([start]), int_constant([stop]))
        for start, stop in ((0, 1), (-1, 2**31 - 1))
    )
    after = kernel - 1 - before
    return convolution(conv, ops.concat([*[first] * before, x, *[last] * after], 2), stride)


def _resnet(resnet: ModuleWeights, x: Node, is_causal: bool) -> Node:
    y = _convolve(resnet.submodule("conv1.conv"), norm_modulate_silu(x), is_causal)
    y = _convolve(resnet.submodule("conv2.conv"), norm_modulate_silu(y), is_causal)
    return ops.add(y, shortcut(resnet, x))


def _downsample(
    conv: ModuleWeights, x: Node, stride: tuple[int, int, int], is_causal: bool
) -> Node:
    """Frames, rows and columns become channels, of which the residual takes means."""
    if stride[0] > 1:
        x = ops.concat([slice_frames(x, int_constant([0]), int_constant([stride[0] - 1])), x], 2)
    y = _space_to_depth(_convolve(conv, x, is_causal), stride)
    residual = _space_to_depth(x, stride)
    shares = np.repeat(
        np.eye(channels_of(y), dtype=np.float32), channels_of(residual) // channels_of(y), axis=1
    )
    shares /= shares.sum(1, keepdims=True)
    means = constant(shares[..., None, None, None])
    return ops.add(y, ops.convolution(residual, means, [1, 1, 1], [0] * 3, [0] * 3, [1, 1, 1]))


def _space_to_depth(x: Node, stride: tuple[int, int, int]) -> Node:
    """Return the inverse of what an upsampling unfolds."""
    if stride == (2, 2, 2):
        return ops.space_to_depth(x, "depth_first", 2)
    channels, sizes = channels_of(x), ops.shape_of(x)
    count, rows, columns = (
        ops.gather(sizes, int_constant([axis]), int_constant(0)) for axis in (2, 3, 4)
    )
    halved = [ops.divide(size, int_constant([2])) for size in (count, rows, columns)]
    two, channel_count = int_constant([2]), int_constant([channels])
    if stride == (2, 1, 1):
        split_shape, order = [channel_count, halved[0], two, rows, columns], [0, 2, 1, 3, 4]
        together = [halved[0], rows, columns]
    else:
        split_shape = [channel_count, count, halved[1], two, halved[2], two]
        order, together = [0, 3, 5, 1, 2, 4], [count, *halved[1:]]
    x = ops.transpose(ops.reshape(x, ops.concat(split_shape, 0), False), int_constant(order))
    volume = stride[0] * stride[1] * stride[2]
    shape = [int_constant([1, channels * volume]), *together]
    return ops.reshape(x, ops.concat(shape, 0), False)
