"""The decoder's last convolution, whose outputs are bytes: of pixels, or of an encoder's planes.

It gives patches, (1, channels, frames, height, width), each of as many pixels as `side` squared.
"""

from collections.abc import Sequence
from enum import Enum, auto

import numpy as np
from numpy.typing import NDArray
from openvino import Node
from openvino import opset13 as ops

from filmlet.engine.colours import BRIGHTEST, BYTE, DARKEST, MIX, OFFSETS
from filmlet.engine.compiled.nodes import Floats, Part, integers, number
from filmlet.errors import NotFinite
from filmlet.events import Pixels, Planes

HALF = BYTE / 2  # of -1 to 1
SHARED = 2  # rows and columns of pixels that have one colour in planes


class Layout(Enum):
    """What frames leave as."""

    PIXELS = auto()
    PLANES = auto()

    def convolution(self, conv: Part, side: int) -> Part:
        """One whose outputs are 0 to 255 in place of -1 to 1, in the order that `bytes_of` wants.

        Raises NotFinite: rounding makes a colour of anything, so nobody would see it later.
        """
        if not all(np.isfinite(conv[name]).all() for name in ("weight", "bias")):
            raise NotFinite("The VAE decoder's last weights are not numbers.")
        # Row by row of a patch, column by column, the three colours of a pixel together.
        order = np.arange(3 * side * side).reshape(3, side, side).T
        weight, bias = HALF * conv["weight"][order], HALF * conv["bias"][order] + HALF
        if self is Layout.PLANES:
            weight, bias = _mixed(weight), _mixed(bias, OFFSETS)
        table = {"weight": weight.reshape(-1, *weight.shape[3:]), "bias": bias.flatten()}
        floats = {f"{conv.name}{name}": one.astype(np.float32) for name, one in table.items()}
        return Part(floats, conv.name)

    def bytes_of(self, x: Node, side: int) -> Node:
        """What `frames_of` takes: (1, 1, frames, ...)."""
        low, high = number(0), number(BYTE)
        x = ops.fake_quantize(x, low, high, low, high, 256)  # rounds and cuts, in the convolution
        if self is Layout.PLANES:
            x = _joined(ops.convert(x, np.uint8), side)
        else:
            x = ops.convert(ops.transpose(x, integers([0, 2, 3, 4, 1])), np.uint8)
        return ops.unsqueeze(x, integers(1))

    def frames_of(self, made: NDArray[np.uint8], side: int) -> Pixels | Planes:
        """Frames of their own memory."""
        return made[0, 0].copy() if self is Layout.PLANES else _pictures(made[0, 0], side)


def _mixed(colours: Floats, offsets: Sequence[float] = (0, 0, 0)) -> Floats:
    """(rows, columns, 3, ...) -> (outputs, 1, 1, ...): light of pixels, then colour of fours."""
    mixed = np.tensordot(np.array(MIX), colours, (1, 2))
    mixed += np.array(offsets).reshape(3, *[1] * (mixed.ndim - 1))
    side, rest = colours.shape[0], colours.shape[3:]
    fours = mixed[1:].reshape(2, side // SHARED, SHARED, side // SHARED, SHARED, *rest)
    parts = mixed[0], *fours.mean((2, 4))
    return np.concat([one.reshape(-1, 1, 1, *rest) for one in parts])


def _joined(x: Node, side: int) -> Node:
    """(1, outputs, frames, height, width) -> (1, frames, rows, columns): planes, one by one."""
    half = side // SHARED
    shape = ops.shape_of(x)
    count, height, width = (ops.gather(shape, integers([i]), integers(0)) for i in (2, 3, 4))
    columns = ops.multiply(width, integers([side]))
    parts = ops.variadic_split(x, integers(1), integers([side**2, half**2, half**2])).outputs()
    planes = []
    for part, n, brightest in zip(parts, (side, half, half), BRIGHTEST, strict=True):
        patches = ops.concat([integers([n, n]), count, height, width], 0)
        rows = ops.transpose(ops.reshape(part, patches, False), integers([2, 3, 0, 4, 1]))
        whole = ops.concat([count, integers([-1]), columns], 0)
        planes.append(ops.clamp(ops.reshape(rows, whole, False), DARKEST, brightest))
    return ops.unsqueeze(ops.concat(planes, 1), integers(0))


def _pictures(patches: NDArray[np.uint8], side: int) -> Pixels:
    """(frames, height, width, outputs) -> (frames, rows, columns, 3)."""
    count, height, width, channels = patches.shape
    row = np.dtype((np.void, channels // side))  # of a patch: copied as one
    apart = np.ascontiguousarray(patches).view(row).reshape(count, height, width, side)
    rows = apart.swapaxes(2, 3).copy()
    return rows.view(np.uint8).reshape(count, height * side, width * side, 3)
