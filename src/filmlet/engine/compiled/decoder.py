"""The VAE decoder as OpenVINO graphs, one a resolution, with what they remember as tensors."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import openvino as ov
import torch
from diffusers.models.autoencoders.autoencoder_kl_ltx import LTXVideoDecoder3d
from openvino import Node
from openvino import opset13 as ops
from torch import Tensor, nn

from filmlet.engine.compiled.nodes import constant, integers, rms_norm
from filmlet.engine.compiled.running import KINDS, Running
from filmlet.engine.streaming import (
    ConvStream,
    HeadStream,
    ResnetStream,
    Stream,
    UpsampleStream,
    streams,
    unpatched,
)

FRAMES = 2  # axis of (batch, channels, frames, height, width)
END = 2**31 - 1  # of a slice to the end: the plugin counts in 32 bits


def levels(decoder: LTXVideoDecoder3d, timestep: Tensor | None) -> Iterator[list[Stream]]:
    """Its streams in order, up to each upsampling together."""
    together: list[Stream] = []
    for stream in streams(decoder, timestep, None):
        together.append(stream)
        if isinstance(stream, UpsampleStream | HeadStream):
            yield together
            together = []


def graphs(
    decoder: LTXVideoDecoder3d, timestep: Tensor | None, dtype: torch.dtype
) -> Iterator[ov.Model]:
    """Of each level, from float32 weights.

    Inputs: x, `first` (1 for the first frames, else 0), `last` (END for the last frames, else -1),
    then what each convolution and residual remembers, without frames at first.
    Outputs: y, then what they remember.
    """
    for together in levels(decoder, timestep):
        yield _Level(KINDS[dtype]).graph(together)


@dataclass
class _Level:
    """One graph while it is built."""

    kind: ov.Type  # of frames that come, go and are remembered
    ends: list[Node] = field(default_factory=list)  # first, last
    memories: list[Node] = field(default_factory=list)
    remembered: list[Node] = field(default_factory=list)

    def graph(self, together: Sequence[Stream]) -> ov.Model:
        given, x = self._given(_convolutions(together[0])[0].conv.in_channels)
        self.ends = [ops.parameter(ov.PartialShape([1]), np.int64) for _ in range(2)]
        for stream in together:
            match stream:
                case ConvStream():
                    x = self._convolve(stream, x)
                case ResnetStream():
                    x = self._resnet(stream, x)
                case UpsampleStream():
                    x = self._upsample(stream, x)
                case HeadStream():
                    x = self._head(stream, x)
        # The plugin keeps in float32 what leads to a float32 result.
        results = [ops.convert(y, self.kind) for y in (x, *self.remembered)]
        return ov.Model(results, [given, *self.ends, *self.memories], "decoder")

    def _given(self, channels: int) -> tuple[Node, Node]:
        """A parameter, and it in float32."""
        frames = ops.parameter(ov.PartialShape([1, channels, -1, -1, -1]), self.kind)
        return frames, ops.convert(frames, ov.Type.f32)

    def _memory(self, x: Node) -> Node:
        """Frames from before."""
        memory, frames = self._given(_width(x))
        self.memories.append(memory)
        return frames

    def _remember(self, x: Node, start: Node) -> None:
        self.remembered.append(_frames(x, start, integers([END])))

    def _convolve(self, stream: ConvStream, x: Node) -> Node:
        """With the first frame repeated before the first, and the last after the last."""
        first, last = self.ends
        head, tail = _frames(x, integers([0]), first), _frames(x, integers([-1]), last)
        parts = [self._memory(x), *[head] * stream.before, x, *[tail] * stream.after]
        x = ops.concat(parts, FRAMES)
        self._remember(x, integers([1 - stream.kernel]))
        return _convolution(stream.conv, x)

    def _resnet(self, stream: ResnetStream, x: Node) -> Node:
        module = stream.module
        y = _activated(module.norm1, x, stream.modulation[:2] if stream.modulation else None)
        y = self._convolve(stream.first, y)
        y = _activated(module.norm2, y, stream.modulation[2:] if stream.modulation else None)
        y = self._convolve(stream.second, y)
        residual = self._waiting(x, y)
        if module.norm3 is not None:
            residual = _layer_norm(module.norm3, residual)
        if module.conv_shortcut is not None:
            residual = _convolution(module.conv_shortcut.conv, residual)
        return ops.add(y, residual)

    def _waiting(self, x: Node, y: Node) -> Node:
        """As many frames of a residual as its convolutions have given; the others wait."""
        x = ops.concat([self._memory(x), x], FRAMES)
        ready = ops.gather(ops.shape_of(y), integers([FRAMES]), integers(0))
        self._remember(x, ready)
        return _frames(x, integers([0]), ready)

    def _upsample(self, stream: UpsampleStream, x: Node) -> Node:
        y = self._convolve(stream.conv, x)
        unfolded = _unfold(stream, y)
        if not stream.module.residual:
            return unfolded
        residual = _unfold(stream, self._waiting(x, y))
        repeats = _width(unfolded) // _width(residual)
        return ops.add(unfolded, ops.concat([residual] * repeats, 1))

    def _head(self, stream: HeadStream, x: Node) -> Node:
        """Patches stay in the channels."""
        return self._convolve(
            stream.conv, _activated(stream.decoder.norm_out, x, stream.modulation)
        )


def _convolutions(stream: Stream) -> list[ConvStream]:
    match stream:
        case ConvStream():
            return [stream]
        case ResnetStream():
            return [stream.first, stream.second]
        case UpsampleStream() | HeadStream():
            return [stream.conv]
        case _:
            raise TypeError(stream)


def _width(x: Node) -> int:
    return x.get_output_partial_shape(0)[1].get_length()


def _frames(x: Node, start: Node, stop: Node) -> Node:
    return ops.slice(x, start, stop, integers([1]), integers([FRAMES]))


def _convolution(conv: nn.Conv3d, x: Node) -> Node:
    pads = list(conv.padding)
    x = ops.convolution(
        x, constant(conv.weight), list(conv.stride), pads, pads, list(conv.dilation)
    )
    if conv.bias is not None:
        x = ops.add(x, constant(conv.bias.view(1, -1, 1, 1, 1)))
    return x


def _unfold(stream: UpsampleStream, x: Node) -> Node:
    """Channels become frames, rows and columns."""
    return ops.depth_to_space(x, "depth_first", stream.module.stride[0])


def _activated(norm: nn.Module, x: Node, modulation: Sequence[Tensor] | None) -> Node:
    """Norm over channels, modulation, SiLU."""
    x = rms_norm(x, norm, axis=1)
    if modulation:
        shift, scale = modulation
        x = ops.add(ops.multiply(x, constant(1 + scale)), constant(shift))
    return ops.swish(x)


def _layer_norm(norm: nn.LayerNorm, x: Node) -> Node:
    """Over channels."""
    x = ops.transpose(x, integers([0, 2, 3, 4, 1]))
    x = ops.mvn(x, integers([-1]), True, norm.eps, "inside_sqrt")
    x = ops.add(ops.multiply(x, constant(norm.weight)), constant(norm.bias))
    return ops.transpose(x, integers([0, 4, 1, 2, 3]))


@dataclass
class LevelStream:
    """One graph while a clip runs through it: a Stream."""

    run: Running
    kind: torch.dtype
    lag: int  # frames that it needs beyond those it gives
    surplus: int  # frames at the beginning that upsampling adds
    begun: Tensor | None = None  # too few frames to give any
    memories: list[Tensor] | None = None

    def push(self, x: Tensor, last: bool) -> Tensor:
        x, first = x.to(self.kind), self.memories is None
        if first:
            x = x if self.begun is None else torch.cat([self.begun, x], FRAMES)
            if x.shape[FRAMES] <= self.lag and not last:
                self.begun = x
                return x[:, :, :0]
            self.begun, self.memories = None, self._empty(x)
        assert self.memories is not None
        ends = (torch.tensor([int(first)]), torch.tensor([END if last else -1]))
        y, *self.memories = self.run(x, *ends, *self.memories)
        return y[:, :, self.surplus :] if first else y

    def _empty(self, x: Tensor) -> list[Tensor]:
        channels = [given.partial_shape[1].get_length() for given in self.run.model.inputs[3:]]
        return [x.new_zeros(1, n, 0, *x.shape[3:]) for n in channels]


def level_of(together: Sequence[Stream], run: Running, kind: torch.dtype) -> LevelStream:
    """The graph of these streams, for one clip."""
    lag = sum(conv.after for stream in together for conv in _convolutions(stream))
    end = together[-1]
    return LevelStream(run, kind, lag, end.surplus if isinstance(end, UpsampleStream) else 0)


class PatchStream:
    """The last of them: patches back to pixels, in float32."""

    def __init__(self, time: int, side: int) -> None:
        self.time, self.side = time, side

    def push(self, x: Tensor, last: bool) -> Tensor:  # noqa: ARG002
        return unpatched(x.float(), self.time, self.side)
