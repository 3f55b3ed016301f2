"""Layers that the VAE's encoder and decoder share, over (1, channels, frames, height, width)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from openvino import Node
from openvino import opset13 as ops

from filmlet.core.events import Pixels
from filmlet.engine.openvino.ops import (
    PLAIN_KERNELS,
    Floats,
    Kernels,
    ModuleWeights,
    constant,
    float_constant,
    int_constant,
)
from filmlet.engine.openvino.runner import lacks_vnni
from filmlet.errors import NonFiniteValues

FRAME_AXIS = 2
NORM_EPS = 1e-8
LAYER_EPS = 1e-6
SMALLEST = 1e-12  # that a range reaches to: one of no width has no levels
COLOURS = 3
Modulation = tuple[Floats, Floats]  # shift, scale
Range = tuple[float, float]


def channels_of(x: Node) -> int:
    """Its channels."""
    channels: int = x.get_output_partial_shape(0)[1].get_length()
    return channels


def slice_frames(x: Node, start: Node, stop: Node) -> Node:
    return ops.slice(x, start, stop, int_constant([1]), int_constant([FRAME_AXIS]))


def convolution(
    conv: ModuleWeights, x: Node, stride: Sequence[int] = (1, 1, 1), is_rounded: bool = False
) -> Node:
    """Padded at the sides of a frame, not in time. is_rounded: x is, so it multiplies in 8 bits."""
    weight = constant(conv["weight"])
    if is_rounded:
        largest = np.abs(conv["weight"]).max((1, 2, 3, 4), keepdims=True)  # of each output
        largest = np.maximum(largest, np.float32(SMALLEST))
        if lacks_vnni():
            largest *= 2  # half of the levels remain unused: two products then have room
        weight = fake_quantize(weight, (-largest, largest), 255)
    pads = [0, *(side // 2 for side in conv["weight"].shape[3:])]
    x = ops.convolution(x, weight, list(stride), pads, pads, [1, 1, 1])
    return ops.add(x, constant(conv["bias"].reshape(1, -1, 1, 1, 1)))


def fake_quantize(x: Node, ends: tuple[Floats | float, Floats | float], levels: int = 256) -> Node:
    """To so many levels between two ends: the plugin then computes with these as bytes."""
    low, high = (constant(np.asarray(end, np.float32)) for end in ends)
    return ops.fake_quantize(x, low, high, low, high, levels)


def rank(x: Node) -> int:
    return len(x.get_output_partial_shape(0))


def is_narrow(x: Node, kernels: Kernels) -> bool:
    """Return whether its channels fill too few vectors for the plugin's loops over them."""
    return channels_of(x) < kernels.narrow_channels


def flatten_if_narrow(x: Node, kernels: Kernels) -> Node:
    """(1, channels, positions), where channels are few.

    narrow_channels: the plugin keeps frames channels last, and its loops over few channels are too
    short to fill vectors. Of three axes it keeps each channel as a plane. Without it
    a decode takes 1.14 times as long (AVX-512; AVX2: no difference; OpenVINO 2026.4.0,
    bench/KERNELS.md).
    """
    return ops.reshape(x, int_constant([0, 0, -1]), True) if is_narrow(x, kernels) else x


def unflatten_if_narrow(like: Node, x: Node, kernels: Kernels) -> Node:
    """Undo `flatten_if_narrow` in an output that was computed from its result."""
    return ops.reshape(x, ops.shape_of(like), False) if is_narrow(x, kernels) else x


def finite_check(x: Node, kernels: Kernels) -> Node:
    """(1,): a number if all of it are. Each position's norm first: squares never reach memory."""
    every = ops.reduce_l2(flatten_if_narrow(x, kernels), int_constant([1]), True)
    return ops.reduce_sum(every, int_constant(range(1, rank(every))), False)


def norm_modulate_silu(
    states: Node,
    kernels: Kernels = PLAIN_KERNELS,
    modulation: Modulation | None = None,
    within: Range | None = None,
) -> Node:
    """Norm over channels, modulation, SiLU. within: what these give, to be rounded to it."""
    x = flatten_if_narrow(states, kernels)
    mean_square = ops.reduce_mean(ops.multiply(x, x), int_constant([1]), True)
    x = ops.divide(x, ops.sqrt(ops.add(mean_square, float_constant(NORM_EPS))))
    if modulation:
        shift, scale = (parameter.reshape(1, -1, *[1] * (rank(x) - 2)) for parameter in modulation)
        x = ops.add(ops.multiply(x, constant(1 + scale)), constant(shift))
    x = ops.swish(x)
    if within:
        x = fake_quantize(x, within)
    return unflatten_if_narrow(states, x, kernels)


def add_residual(y: Node, residual: Node, kernels: Kernels) -> Node:
    y_flat, residual_flat = (flatten_if_narrow(x, kernels) for x in (y, residual))
    return unflatten_if_narrow(y, ops.add(y_flat, residual_flat), kernels)


def shortcut(resnet: ModuleWeights, x: Node) -> Node:
    """Return the input of a residual in as many channels as its convolutions give."""
    if "norm3.weight" in resnet:
        norm = resnet.submodule("norm3")
        x = ops.transpose(x, int_constant([0, 2, 3, 4, 1]))
        x = ops.mvn(x, int_constant([-1]), True, LAYER_EPS, "inside_sqrt")
        x = ops.add(ops.multiply(x, constant(norm["weight"])), constant(norm["bias"]))
        x = ops.transpose(x, int_constant([0, 4, 1, 2, 3]))
    if resnet.has_submodule("conv_shortcut"):
        x = convolution(resnet.submodule("conv_shortcut.conv"), x)
    return x


def fold_pixel_scale(conv: ModuleWeights, side: int) -> ModuleWeights:
    """The last convolution, its outputs 0 to 255 in place of -1 to 1, and as bytes of a picture.

    Each patch is given row by row, column by column, the three colours of a pixel together.
    Raises NonFiniteValues: rounding makes a colour of anything, so nobody would see it later.
    """
    if not all(np.isfinite(conv[name]).all() for name in ("weight", "bias")):
        raise NonFiniteValues("The VAE decoder's last weights are not numbers.")
    order = np.arange(3 * side * side).reshape(3, side, side).T.flatten()
    weight, bias = (127.5 * conv[name][order] for name in ("weight", "bias"))
    table = {f"{conv.name}weight": weight, f"{conv.name}bias": bias + 127.5}
    return ModuleWeights(
        {name: values.astype(np.float32) for name, values in table.items()}, conv.name
    )


def to_uint8(x: Node, kernels: Kernels) -> Node:
    """Rounded and cut to 0 to 255. The plugin gives bytes soonest as a plane a channel.

    round_by_quantize: in the convolution before it. Without it a decode takes 1.74 times as long
    with int8 (AVX-512), 1.12 times in float32 (AVX2, OpenVINO 2026.4.0, bench/KERNELS.md).
    """
    if kernels.round_by_quantize:
        return ops.convert(fake_quantize(x, (0, 255)), np.uint8)
    return ops.convert(ops.round(ops.clamp(x, 0, 255), "half_to_even"), np.uint8)


def unpatchify(patches: NDArray[np.uint8], side: int) -> Pixels:
    """(1, channels, frames, height, width) of `to_uint8` as frames of pixels."""
    count, height, width = patches.shape[2:]
    frames = patches.reshape(side, side, COLOURS, count, height, width).transpose(3, 4, 0, 5, 1, 2)
    return frames.reshape(count, height * side, width * side, COLOURS)
