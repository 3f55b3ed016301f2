"""The VAE decoder as OpenVINO graphs, one a resolution, with what they remember as tensors.

The decoder sees one frame ahead at each convolution (`engine/streaming.py` says more): each
convolution keeps its last frames, each residual waits for the convolutions beside it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import Node
from openvino import opset13 as ops

from filmlet.engine.openvino.ops import GraphBuilder, GraphOptions, ModuleWeights, int_constant
from filmlet.engine.openvino.runner import (
    NUMPY_TYPES,
    OV_TYPES,
    Arrays,
    GraphInput,
    is_finite,
)
from filmlet.engine.openvino.timestep_embedding import SCALE, embed_timestep
from filmlet.engine.openvino.vae_ops import (
    FRAME_AXIS,
    SMALLEST,
    Modulation,
    Range,
    add_residual,
    channels_of,
    convolution,
    fake_quantize,
    finite_check,
    fold_pixel_scale,
    norm_modulate_silu,
    shortcut,
    slice_frames,
    to_uint8,
)
from filmlet.errors import NonFiniteValues

KERNEL = 3  # frames of every convolution
FRAMES, FIRST, LAST = "frames", "first", "last"  # inputs of every graph
NEXT = ".next"  # of the frames that a graph gives, and of a state after its call
RESIDUAL = ".residual"
FINITE = "finite"
ENDS = ".ends"
END = 2**31 - 1  # of a slice to the end: the plugin counts in 32 bits


class ModuleKind(Enum):
    """Kinds of the decoder's modules."""

    CONVOLUTION = auto()
    RESNET = auto()
    UPSAMPLING = auto()
    HEAD = auto()


@dataclass(frozen=True)
class DecoderModule:
    """One of them. name: its weights'; timed: of what it is told the timestep by; block: number."""

    kind: ModuleKind
    name: str
    timed: str = ""
    block: int = 0

    @property
    def convolutions(self) -> int:
        return 2 if self.kind is ModuleKind.RESNET else 1


def resolution_levels(decoder: ModuleWeights) -> Iterator[list[DecoderModule]]:
    """The decoder's modules in order, up to each upsampling together, by the names of weights."""
    prefix = decoder.name
    modules = [DecoderModule(ModuleKind.CONVOLUTION, "conv_in.conv")]
    for i, block in enumerate((decoder.submodule("mid_block"), *decoder.modulelist("up_blocks"))):
        name = block.name.removeprefix(prefix)
        timed = f"{name}time_embedder" if block.has_submodule("time_embedder") else ""
        if block.has_submodule("conv_in"):
            modules.append(DecoderModule(ModuleKind.RESNET, f"{name}conv_in"))
        if block.has_submodule("upsamplers"):
            upsampling = DecoderModule(
                ModuleKind.UPSAMPLING, f"{name}upsamplers.0.conv.conv", block=i - 1
            )
            yield [*modules, upsampling]
            modules = []
        for number, _ in enumerate(block.modulelist("resnets")):
            modules.append(DecoderModule(ModuleKind.RESNET, f"{name}resnets.{number}", timed))
    timed = "time_embedder" if decoder.has_submodule("time_embedder") else ""
    yield [*modules, DecoderModule(ModuleKind.HEAD, "conv_out.conv", timed)]


@dataclass(frozen=True)
class DecoderConfig:
    """Configuration of a decoder. timestep: its input, if any; side: of its patches.

    residual: which of the upsamplings have one, from the latents outwards.
    """

    timestep: float
    side: int
    is_causal: bool
    residual: tuple[bool, ...]

    @classmethod
    def from_config(cls, config: Mapping[str, Any], timestep: float) -> "DecoderConfig":
        causal, side = config.get("decoder_causal", False), config.get("patch_size", 4)
        residual = config.get("upsample_residual", ())[::-1]
        return cls(timestep, side, causal, tuple(residual))

    def lookahead_frames(self, modules: Sequence[DecoderModule]) -> int:
        """Return frames that a level needs beyond those it gives."""
        return 0 if self.is_causal else sum(module.convolutions for module in modules)


def build_graphs(
    weights: ModuleWeights,
    config: DecoderConfig,
    options: GraphOptions,
    ranges: Mapping[str, Range] | None = None,
    *,
    is_calibration: bool = False,
) -> Iterator[ov.Model]:
    """Return a graph for each level, from float32 weights of `decoder`.

    Inputs: frames, first (1 for the first frames, else 0), last (END for the last frames, else -1),
    and the state of each convolution and residual, without frames at first. Outputs: frames.next,
    and each state's name and NEXT. Latents are float32; the last level gives bytes for
    `unpatchify`, and finite, a number where all of its values are.

    ranges: of what goes into each convolution, by its name, to multiply in 8 bits.
    is_calibration: outputs of a convolution's name and ENDS have the least and the largest of it.
    """
    for i, modules in enumerate(resolution_levels(weights)):
        builder = _LevelGraphBuilder(weights, config, options, ranges, is_calibration)
        yield builder.build(modules, is_first=i == 0)


class _LevelGraphBuilder:
    """One graph while it is built."""

    def __init__(
        self,
        weights: ModuleWeights,
        config: DecoderConfig,
        options: GraphOptions,
        ranges: Mapping[str, Range] | None,
        is_calibration: bool,
    ) -> None:
        self.weights, self.config, self.kernels = weights, config, options.kernels
        self.ranges, self.is_calibration = ranges, is_calibration
        self.kind = OV_TYPES[options.dtype]  # of frames between graphs, and of states
        self.graph = GraphBuilder("decoder")

    def build(self, modules: Sequence[DecoderModule], is_first: bool) -> ov.Model:
        name = modules[0].name
        if modules[0].kind is ModuleKind.RESNET:
            name += ".conv1.conv"
        channels = self.weights.submodule(name)["weight"].shape[1]
        x = self._add_frames(FRAMES, channels, ov.Type.f32 if is_first else self.kind)
        self.first, self.last = (
            self.graph.add_input(end, (1,), ov.Type.i64) for end in (FIRST, LAST)
        )
        for module in modules:
            x = self._add_module(module, x)
        self.graph.outputs[FRAMES + NEXT] = x
        return self.graph.build()

    def _add_module(self, module: DecoderModule, x: Node) -> Node:
        part = self.weights.submodule(module.name)
        match module.kind:
            case ModuleKind.CONVOLUTION:
                return self._convolve(part, x)
            case ModuleKind.RESNET:
                return self._resnet(part, x, self._build_modulations(part, module.timed, 4))
            case ModuleKind.UPSAMPLING:
                return ops.convert(self._upsample(part, x, module.block), self.kind)
            case ModuleKind.HEAD:
                (modulation,) = self._build_modulations(self.weights, module.timed, 2)
                self.graph.outputs[FINITE] = ops.convert(finite_check(x, self.kernels), self.kind)
                last = fold_pixel_scale(part, self.config.side)
                return to_uint8(self._activate(last, x, modulation), self.kernels)

    def _build_modulations(
        self, part: ModuleWeights, timed: str, count: int
    ) -> list[Modulation | None]:
        """Shift and scale of each norm, of `count` values a channel."""
        if not timed:
            return [None] * (count // 2)
        level = self.config.timestep * SCALE
        if "timestep_scale_multiplier" in self.weights:
            level = self.config.timestep * float(self.weights["timestep_scale_multiplier"])
        embedding = embed_timestep(self.weights.submodule(timed), level).reshape(count, -1)
        rows = embedding + part["scale_shift_table"]
        return [(rows[i], rows[i + 1]) for i in range(0, count, 2)]

    def _add_frames(self, name: str, channels: int, kind: ov.Type) -> Node:
        """Return an input of frames, in float32."""
        frames = self.graph.add_input(name, (1, channels, -1, -1, -1), kind)
        return ops.convert(frames, ov.Type.f32)

    def _state_input(self, name: str, x: Node) -> Node:
        """Return frames from before."""
        return self._add_frames(name, channels_of(x), self.kind)

    def _state_output(self, name: str, x: Node, start: Node) -> None:
        kept = slice_frames(x, start, int_constant([END]))
        # The plugin keeps in float32 what leads to a float32 result.
        self.graph.outputs[name + NEXT] = ops.convert(kept, self.kind)

    def _activate(self, conv: ModuleWeights, x: Node, modulation: Modulation | None) -> Node:
        """Norm and SiLU, which round in the same kernel where the convolution is in 8 bits."""
        within = self._quant_range(conv)
        return self._pad_and_convolve(conv, norm_modulate_silu(x, self.kernels, modulation, within))

    def _convolve(self, conv: ModuleWeights, x: Node) -> Node:
        within = self._quant_range(conv)
        return self._pad_and_convolve(conv, fake_quantize(x, within) if within else x)

    def _quant_range(self, conv: ModuleWeights) -> Range | None:
        return self.ranges[conv.name] if self.ranges else None

    def _pad_and_convolve(self, conv: ModuleWeights, x: Node) -> Node:
        """Convolve with the first frame repeated before the first, and the last after the last."""
        head = slice_frames(x, int_constant([0]), self.first)
        tail = slice_frames(x, int_constant([-1]), self.last)
        before = KERNEL - 1 if self.config.is_causal else KERNEL // 2
        state, within = self._state_input(conv.name, x), self._quant_range(conv)
        if within:
            # Rounded when it was made, so no value changes. Without this the plugin (2026.4.0) does
            # not see bytes in what is joined, and computes every convolution in float32.
            state = fake_quantize(state, within)
        x = ops.concat([state, *[head] * before, x, *[tail] * (KERNEL - 1 - before)], FRAME_AXIS)
        self._state_output(conv.name, x, int_constant([1 - KERNEL]))
        if self.is_calibration:
            axes = int_constant(range(5))
            ends = [ops.reduce_min(x, axes, True), ops.reduce_max(x, axes, True)]
            self.graph.outputs[conv.name + ENDS] = ops.concat(ends, 0)
        return convolution(conv, x, is_rounded=within is not None)

    def _resnet(
        self, resnet: ModuleWeights, x: Node, modulations: Sequence[Modulation | None]
    ) -> Node:
        y = self._activate(resnet.submodule("conv1.conv"), x, modulations[0])
        y = self._activate(resnet.submodule("conv2.conv"), y, modulations[1])
        residual = shortcut(resnet, self._delay_residual(resnet.name, x, y))
        return add_residual(y, residual, self.kernels)

    def _delay_residual(self, name: str, x: Node, y: Node) -> Node:
        """Return as many frames of a residual as its convolutions have given; the others wait."""
        name += RESIDUAL
        x = ops.concat([self._state_input(name, x), x], FRAME_AXIS)
        ready = ops.gather(ops.shape_of(y), int_constant([FRAME_AXIS]), int_constant(0))
        self._state_output(name, x, ready)
        return slice_frames(x, int_constant([0]), ready)

    def _upsample(self, conv: ModuleWeights, x: Node, block: int) -> Node:
        """Channels become frames, rows and columns."""
        y = self._convolve(conv, x)
        if any(self.config.residual[block : block + 1]):
            repeats = channels_of(y) // channels_of(x)
            y = ops.add(y, ops.concat([self._delay_residual(conv.name, x, y)] * repeats, 1))
        return ops.depth_to_space(y, "depth_first", 2)


@dataclass
class StreamingLevel:
    """One graph while a clip runs through it: a Stream.

    ranges: gets what goes into convolutions, where the graph is one of calibration.
    """

    inputs: Mapping[str, GraphInput]
    run: Callable[[Arrays], Arrays]
    lag: int
    surplus: int  # frames at the beginning that upsampling adds
    ranges: dict[str, Range] | None = None
    pending: NDArray | None = None  # too few frames to give any
    state: Arrays | None = None

    def push(self, x: NDArray, last: bool) -> NDArray:
        first = self.state is None
        if first:
            x = x if self.pending is None else np.concat([self.pending, x], FRAME_AXIS)
            if x.shape[FRAME_AXIS] <= self.lag and not last:
                self.pending = x.copy()
                return x[:, :, :0]
            self.pending, self.state = None, self._empty_state(x)
        assert self.state is not None
        ends = {FIRST: np.array([int(first)]), LAST: np.array([END if last else -1])}
        outputs = self.run({FRAMES: x, **ends, **self.state})
        self.state = {name: outputs[name + NEXT] for name in self.state}
        if FINITE in outputs and not is_finite(outputs[FINITE]):
            raise NonFiniteValues("The VAE decoder gave values that are not numbers.")
        if self.ranges is not None:
            _add_ranges(self.ranges, outputs)
        y = outputs[FRAMES + NEXT]
        return y[:, :, self.surplus :] if first else y

    def _empty_state(self, x: NDArray) -> Arrays:
        state: dict[str, NDArray] = {}
        for name, port in self.inputs.items():
            if name not in (FRAMES, FIRST, LAST):
                shape = (1, port.channels, 0, *x.shape[3:])
                state[name] = np.empty(shape, NUMPY_TYPES[port.kind])
        return state


def _add_ranges(ranges: dict[str, Range], outputs: Arrays) -> None:
    for name, ends in outputs.items():
        if name.endswith(ENDS):
            conv = name.removesuffix(ENDS)
            lowest, highest = ranges.get(conv, (-SMALLEST, SMALLEST))
            low, high = ends.flatten().tolist()
            ranges[conv] = min(lowest, low), max(highest, high)
