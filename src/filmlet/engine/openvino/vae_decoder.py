"""The VAE decoder as OpenVINO graphs, one a resolution, with what they remember as tensors.

The decoder sees one frame ahead at each convolution (`engine/streaming.py` says more): each
convolution keeps its last frames, each residual waits for the convolutions beside it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import Node
from openvino import opset13 as ops

from filmlet.engine.openvino.ops import ModuleWeights, int_constant
from filmlet.engine.openvino.runner import (
    NUMPY_TYPES,
    OV_TYPES,
    CompiledGraph,
    DoubleBuffer,
    GraphRequest,
    is_finite,
)
from filmlet.engine.openvino.timestep_embedding import SCALE, embed_timestep
from filmlet.engine.openvino.vae_ops import (
    FRAMES,
    SMALLEST,
    Modulation,
    Range,
    channels_of,
    convolution,
    fake_quantize,
    finite_check,
    flatten_if_narrow,
    fold_pixel_scale,
    norm_modulate_silu,
    shortcut,
    slice_frames,
    to_uint8,
    unflatten_if_narrow,
)
from filmlet.errors import NonFiniteValues

KERNEL = 3  # frames of every convolution
END = 2**31 - 1  # of a slice to the end: the plugin counts in 32 bits


class ModuleKind(Enum):
    """What a module of the decoder does."""

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
    together = [DecoderModule(ModuleKind.CONVOLUTION, "conv_in.conv")]
    for i, block in enumerate((decoder.submodule("mid_block"), *decoder.modulelist("up_blocks"))):
        name = block.name.removeprefix(prefix)
        timed = f"{name}time_embedder" if block.has_submodule("time_embedder") else ""
        if block.has_submodule("conv_in"):
            together.append(DecoderModule(ModuleKind.RESNET, f"{name}conv_in"))
        if block.has_submodule("upsamplers"):
            upsampling = DecoderModule(
                ModuleKind.UPSAMPLING, f"{name}upsamplers.0.conv.conv", block=i - 1
            )
            yield [*together, upsampling]
            together = []
        for number, _ in enumerate(block.modulelist("resnets")):
            together.append(DecoderModule(ModuleKind.RESNET, f"{name}resnets.{number}", timed))
    timed = "time_embedder" if decoder.has_submodule("time_embedder") else ""
    yield [*together, DecoderModule(ModuleKind.HEAD, "conv_out.conv", timed)]


@dataclass(frozen=True)
class DecoderConfig:
    """How a decoder is run. timestep: that it is told, if any; side: of its patches.

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

    def lookahead_frames(self, together: Sequence[DecoderModule]) -> int:
        """Frames that a level needs beyond those it gives."""
        return 0 if self.is_causal else sum(module.convolutions for module in together)


def build_graphs(
    weights: ModuleWeights,
    recipe: DecoderConfig,
    dtype: str,
    ranges: Mapping[str, Range] | None = None,
) -> Iterator[ov.Model]:
    """Of each level, from float32 weights of `decoder`.

    Inputs: x, `first` (1 for the first frames, else 0), `last` (END for the last frames, else -1),
    then what each convolution and residual remembers, without frames at first. Outputs: y, then
    what they remember. Latents are float32; the last level gives bytes as `pictures` takes them,
    and the sum of its norms, by which one sees whether all are numbers.

    ranges: of what goes into each convolution, by its name, to multiply in 8 bits.
    """
    for i, together in enumerate(resolution_levels(weights)):
        yield _LevelGraphBuilder(weights, recipe, OV_TYPES[dtype], ranges).graph(
            together, is_first=i == 0
        )


def build_calibration_graphs(
    weights: ModuleWeights, recipe: DecoderConfig
) -> Iterator[tuple[ov.Model, list[str]]]:
    """The same in float32, and what each convolution is called whose ends it tells, for Gauged."""
    for i, together in enumerate(resolution_levels(weights)):
        level = _LevelGraphBuilder(weights, recipe, OV_TYPES["float32"], gauges={})
        yield level.graph(together, is_first=i == 0), list(level.gauges or ())


@dataclass
class _LevelGraphBuilder:
    """One graph while it is built."""

    weights: ModuleWeights
    recipe: DecoderConfig
    kind: ov.Type  # of frames that go from graph to graph and are remembered
    ranges: Mapping[str, Range] | None = None
    gauges: dict[str, list[Node]] | None = None  # the ends of what goes into convolutions
    ends: list[Node] = field(default_factory=list)  # first, last
    state_inputs: list[Node] = field(default_factory=list)
    state_outputs: list[Node] = field(default_factory=list)

    def graph(self, together: Sequence[DecoderModule], is_first: bool) -> ov.Model:
        conv = together[0].name + (".conv1.conv" if together[0].kind is ModuleKind.RESNET else "")
        channels = self.weights.submodule(conv)["weight"].shape[1]
        parameter, x = self._parameter(channels, ov.Type.f32 if is_first else self.kind)
        self.ends = [ops.parameter(ov.PartialShape([1]), np.int64) for _ in range(2)]
        results: list[Node] = []
        for module in together:
            part = self.weights.submodule(module.name)
            match module.kind:
                case ModuleKind.CONVOLUTION:
                    x = self._convolve(part, x)
                case ModuleKind.RESNET:
                    x = self._resnet(part, x, self._modulations(part, module.timed, 4))
                case ModuleKind.UPSAMPLING:
                    x = self._upsample(part, x, module.block)
                case ModuleKind.HEAD:
                    modulations = self._modulations(self.weights, module.timed, 2)
                    results = [ops.convert(finite_check(x), self.kind)]
                    last = fold_pixel_scale(part, self.recipe.side)
                    x = to_uint8(self._activate(last, x, modulations[0]))
        y = x if results else ops.convert(x, self.kind)
        # The plugin keeps in float32 what leads to a float32 result.
        memories = [ops.convert(output, self.kind) for output in self.state_outputs]
        if self.gauges:
            results.append(ops.concat([end for ends in self.gauges.values() for end in ends], 0))
        return ov.Model(
            [y, *memories, *results], [parameter, *self.ends, *self.state_inputs], "decoder"
        )

    def _modulations(self, part: ModuleWeights, timed: str, count: int) -> list[Modulation | None]:
        """Shift and scale of each norm, of `count` values a channel."""
        if not timed:
            return [None] * (count // 2)
        level = self.recipe.timestep * SCALE
        if "timestep_scale_multiplier" in self.weights:
            level = self.recipe.timestep * float(self.weights["timestep_scale_multiplier"])
        embedding = embed_timestep(self.weights.submodule(timed), level).reshape(count, -1)
        rows = embedding + part["scale_shift_table"]
        return [(rows[i], rows[i + 1]) for i in range(0, count, 2)]

    def _parameter(self, channels: int, kind: ov.Type) -> tuple[Node, Node]:
        """A parameter, and it in float32."""
        parameter = ops.parameter(ov.PartialShape([1, channels, -1, -1, -1]), kind)
        return parameter, ops.convert(parameter, ov.Type.f32)

    def _state_input(self, x: Node) -> Node:
        """Frames from before."""
        memory, before = self._parameter(channels_of(x), self.kind)
        self.state_inputs.append(memory)
        return before

    def _state_output(self, x: Node, start: Node) -> None:
        self.state_outputs.append(slice_frames(x, start, int_constant([END])))

    def _activate(self, conv: ModuleWeights, x: Node, modulation: Modulation | None) -> Node:
        """Norm and SiLU, which round in the same kernel where the convolution is in 8 bits."""
        return self._padded_conv(conv, norm_modulate_silu(x, modulation, self._quant_range(conv)))

    def _convolve(self, conv: ModuleWeights, x: Node) -> Node:
        within = self._quant_range(conv)
        return self._padded_conv(conv, fake_quantize(x, within) if within else x)

    def _quant_range(self, conv: ModuleWeights) -> Range | None:
        return self.ranges[conv.name] if self.ranges else None

    def _padded_conv(self, conv: ModuleWeights, x: Node) -> Node:
        """With the first frame repeated before the first, and the last after the last."""
        first, last = self.ends
        head, tail = (
            slice_frames(x, int_constant([0]), first),
            slice_frames(x, int_constant([-1]), last),
        )
        before = KERNEL - 1 if self.recipe.is_causal else KERNEL // 2
        memory, within = self._state_input(x), self._quant_range(conv)
        # Rounded before, which changes nothing now but tells the plugin that these are bytes, too.
        memory = fake_quantize(memory, within) if within else memory
        x = ops.concat([memory, *[head] * before, x, *[tail] * (KERNEL - 1 - before)], FRAMES)
        self._state_output(x, int_constant([1 - KERNEL]))
        if self.gauges is not None:
            axes = int_constant(range(5))
            self.gauges[conv.name] = [ops.reduce_min(x, axes, True), ops.reduce_max(x, axes, True)]
        return convolution(conv, x, is_rounded=within is not None)

    def _resnet(
        self, resnet: ModuleWeights, x: Node, modulations: Sequence[Modulation | None]
    ) -> Node:
        y = self._activate(resnet.submodule("conv1.conv"), x, modulations[0])
        y = self._activate(resnet.submodule("conv2.conv"), y, modulations[1])
        past = shortcut(resnet, self._delayed_residual(x, y))
        return unflatten_if_narrow(y, ops.add(flatten_if_narrow(y), flatten_if_narrow(past)))

    def _delayed_residual(self, x: Node, y: Node) -> Node:
        """As many frames of a residual as its convolutions have given; the others wait."""
        x = ops.concat([self._state_input(x), x], FRAMES)
        ready = ops.gather(ops.shape_of(y), int_constant([FRAMES]), int_constant(0))
        self._state_output(x, ready)
        return slice_frames(x, int_constant([0]), ready)

    def _upsample(self, conv: ModuleWeights, x: Node, block: int) -> Node:
        """Channels become frames, rows and columns."""
        y = self._convolve(conv, x)
        if any(self.recipe.residual[block : block + 1]):
            repeats = channels_of(y) // channels_of(x)
            y = ops.add(y, ops.concat([self._delayed_residual(x, y)] * repeats, 1))
        return ops.depth_to_space(y, "depth_first", 2)


@dataclass(eq=False)
class CalibrationGraph(CompiledGraph):
    """A graph that tells what goes into its convolutions. ranges: so far, by their names."""

    names: Sequence[str] = ()
    ranges: dict[str, Range] = field(default_factory=dict)

    def infer(self, request: GraphRequest, *inputs: NDArray) -> list[NDArray]:
        *outputs, ends = super().infer(request, *inputs)
        for name, (low, high) in zip(self.names, ends.reshape(-1, 2), strict=True):
            lowest, highest = self.ranges.get(name, (-SMALLEST, SMALLEST))
            self.ranges[name] = min(lowest, float(low)), max(highest, float(high))
        return outputs


@dataclass
class StreamingLevel:
    """One graph while a clip runs through it: a Stream."""

    run: DoubleBuffer
    lag: int
    surplus: int  # frames at the beginning that upsampling adds
    pending: NDArray | None = None  # too few frames to give any
    state: list[NDArray] | None = None

    def push(self, x: NDArray, last: bool) -> NDArray:
        first = self.state is None
        if first:
            x = x if self.pending is None else np.concat([self.pending, x], FRAMES)
            if x.shape[FRAMES] <= self.lag and not last:
                self.pending = x.copy()
                return x[:, :, :0]
            self.pending, self.state = None, self._empty(x)
        assert self.state is not None
        ends = (np.array([int(first)]), np.array([END if last else -1]))
        count = len(self.state)
        y, *others = self.run(x, *ends, *self.state)
        self.state = others[:count]
        if not all(map(is_finite, others[count:])):
            raise NonFiniteValues("The VAE decoder gave values that are not numbers.")
        return y[:, :, self.surplus :] if first else y

    def _empty(self, x: NDArray) -> list[NDArray]:
        inputs = self.run.graph.model.inputs[3:]
        channels = [tensor.partial_shape[1].get_length() for tensor in inputs]
        kind = NUMPY_TYPES[inputs[0].element_type]
        return [np.empty((1, n, 0, *x.shape[3:]), kind) for n in channels]
