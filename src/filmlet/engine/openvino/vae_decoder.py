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

from filmlet.engine.openvino.ops import Part, integers
from filmlet.engine.openvino.runner import BITS, KINDS, Relay, Request, Running, is_finite
from filmlet.engine.openvino.timestep_embedding import SCALE, embedded
from filmlet.engine.openvino.vae_ops import (
    FRAMES,
    SMALLEST,
    Modulation,
    Range,
    activated,
    convolution,
    frames,
    in_bytes,
    pixels_of,
    places,
    rounded,
    shaped_as,
    shortcut,
    sum_of_lengths,
    width,
)
from filmlet.errors import NotFinite

KERNEL = 3  # frames of every convolution
END = 2**31 - 1  # of a slice to the end: the plugin counts in 32 bits


class Kind(Enum):
    """What a module of the decoder does."""

    CONVOLUTION = auto()
    RESNET = auto()
    UPSAMPLING = auto()
    HEAD = auto()


@dataclass(frozen=True)
class Module:
    """One of them. name: its weights'; timed: of what it is told the timestep by; block: number."""

    kind: Kind
    name: str
    timed: str = ""
    block: int = 0

    @property
    def convolutions(self) -> int:
        return 2 if self.kind is Kind.RESNET else 1


def levels(decoder: Part) -> Iterator[list[Module]]:
    """The decoder's modules in order, up to each upsampling together, by the names of weights."""
    prefix = decoder.name
    together = [Module(Kind.CONVOLUTION, "conv_in.conv")]
    for i, block in enumerate((decoder.at("mid_block"), *decoder.each("up_blocks"))):
        name = block.name.removeprefix(prefix)
        timed = f"{name}time_embedder" if block.has("time_embedder") else ""
        if block.has("conv_in"):
            together.append(Module(Kind.RESNET, f"{name}conv_in"))
        if block.has("upsamplers"):
            upsampling = Module(Kind.UPSAMPLING, f"{name}upsamplers.0.conv.conv", block=i - 1)
            yield [*together, upsampling]
            together = []
        for number, _ in enumerate(block.each("resnets")):
            together.append(Module(Kind.RESNET, f"{name}resnets.{number}", timed))
    timed = "time_embedder" if decoder.has("time_embedder") else ""
    yield [*together, Module(Kind.HEAD, "conv_out.conv", timed)]


@dataclass(frozen=True)
class Recipe:
    """How a decoder is run. timestep: that it is told, if any; side: of its patches.

    residual: which of the upsamplings have one, from the latents outwards.
    """

    timestep: float
    side: int
    is_causal: bool
    residual: tuple[bool, ...]

    @classmethod
    def of(cls, config: Mapping[str, Any], timestep: float) -> "Recipe":
        causal, side = config.get("decoder_causal", False), config.get("patch_size", 4)
        residual = config.get("upsample_residual", ())[::-1]
        return cls(timestep, side, causal, tuple(residual))

    def lag(self, together: Sequence[Module]) -> int:
        """Frames that a level needs beyond those it gives."""
        return 0 if self.is_causal else sum(module.convolutions for module in together)


def graphs(
    weights: Part, recipe: Recipe, dtype: str, ranges: Mapping[str, Range] | None = None
) -> Iterator[ov.Model]:
    """Of each level, from float32 weights of `decoder`.

    Inputs: x, `first` (1 for the first frames, else 0), `last` (END for the last frames, else -1),
    then what each convolution and residual remembers, without frames at first. Outputs: y, then
    what they remember. Latents are float32; the last level gives bytes as `pictures` takes them,
    and the sum of its norms, by which one sees whether all are numbers.

    ranges: of what goes into each convolution, by its name, to multiply in 8 bits.
    """
    for i, together in enumerate(levels(weights)):
        yield _Level(weights, recipe, KINDS[dtype], ranges).graph(together, is_first=i == 0)


def gauged(weights: Part, recipe: Recipe) -> Iterator[tuple[ov.Model, list[str]]]:
    """The same in float32, and what each convolution is called whose ends it tells, for Gauged."""
    for i, together in enumerate(levels(weights)):
        level = _Level(weights, recipe, KINDS["float32"], gauges={})
        yield level.graph(together, is_first=i == 0), list(level.gauges or ())


@dataclass
class _Level:
    """One graph while it is built."""

    weights: Part
    recipe: Recipe
    kind: ov.Type  # of frames that go from graph to graph and are remembered
    ranges: Mapping[str, Range] | None = None
    gauges: dict[str, list[Node]] | None = None  # the ends of what goes into convolutions
    ends: list[Node] = field(default_factory=list)  # first, last
    memories: list[Node] = field(default_factory=list)
    remembered: list[Node] = field(default_factory=list)

    def graph(self, together: Sequence[Module], is_first: bool) -> ov.Model:
        conv = together[0].name + (".conv1.conv" if together[0].kind is Kind.RESNET else "")
        channels = self.weights.at(conv)["weight"].shape[1]
        given, x = self._given(channels, ov.Type.f32 if is_first else self.kind)
        self.ends = [ops.parameter(ov.PartialShape([1]), np.int64) for _ in range(2)]
        results: list[Node] = []
        for module in together:
            part = self.weights.at(module.name)
            match module.kind:
                case Kind.CONVOLUTION:
                    x = self._convolve(part, x)
                case Kind.RESNET:
                    x = self._resnet(part, x, self._modulations(part, module.timed, 4))
                case Kind.UPSAMPLING:
                    x = self._upsample(part, x, module.block)
                case Kind.HEAD:
                    told = self._modulations(self.weights, module.timed, 2)
                    results = [ops.convert(sum_of_lengths(x), self.kind)]
                    last = pixels_of(part, self.recipe.side)
                    x = in_bytes(self._activate(last, x, told[0]))
        y = x if results else ops.convert(x, self.kind)
        # The plugin keeps in float32 what leads to a float32 result.
        memories = [ops.convert(one, self.kind) for one in self.remembered]
        if self.gauges:
            results.append(ops.concat([end for ends in self.gauges.values() for end in ends], 0))
        return ov.Model([y, *memories, *results], [given, *self.ends, *self.memories], "decoder")

    def _modulations(self, part: Part, timed: str, count: int) -> list[Modulation | None]:
        """Shift and scale of each norm, of `count` values a channel."""
        if not timed:
            return [None] * (count // 2)
        level = self.recipe.timestep * SCALE
        if "timestep_scale_multiplier" in self.weights:
            level = self.recipe.timestep * float(self.weights["timestep_scale_multiplier"])
        told = embedded(self.weights.at(timed), level).reshape(count, -1)
        rows = told + part["scale_shift_table"]
        return [(rows[i], rows[i + 1]) for i in range(0, count, 2)]

    def _given(self, channels: int, kind: ov.Type) -> tuple[Node, Node]:
        """A parameter, and it in float32."""
        given = ops.parameter(ov.PartialShape([1, channels, -1, -1, -1]), kind)
        return given, ops.convert(given, ov.Type.f32)

    def _memory(self, x: Node) -> Node:
        """Frames from before."""
        memory, before = self._given(width(x), self.kind)
        self.memories.append(memory)
        return before

    def _remember(self, x: Node, start: Node) -> None:
        self.remembered.append(frames(x, start, integers([END])))

    def _activate(self, conv: Part, x: Node, told: Modulation | None) -> Node:
        """Norm and SiLU, which round in the same kernel where the convolution is in 8 bits."""
        return self._slide(conv, activated(x, told, self._within(conv)))

    def _convolve(self, conv: Part, x: Node) -> Node:
        within = self._within(conv)
        return self._slide(conv, rounded(x, within) if within else x)

    def _within(self, conv: Part) -> Range | None:
        return self.ranges[conv.name] if self.ranges else None

    def _slide(self, conv: Part, x: Node) -> Node:
        """With the first frame repeated before the first, and the last after the last."""
        first, last = self.ends
        head, tail = frames(x, integers([0]), first), frames(x, integers([-1]), last)
        before = KERNEL - 1 if self.recipe.is_causal else KERNEL // 2
        memory, within = self._memory(x), self._within(conv)
        # Rounded before, which changes nothing now but tells the plugin that these are bytes, too.
        memory = rounded(memory, within) if within else memory
        x = ops.concat([memory, *[head] * before, x, *[tail] * (KERNEL - 1 - before)], FRAMES)
        self._remember(x, integers([1 - KERNEL]))
        if self.gauges is not None:
            axes = integers(range(5))
            self.gauges[conv.name] = [ops.reduce_min(x, axes, True), ops.reduce_max(x, axes, True)]
        return convolution(conv, x, is_rounded=within is not None)

    def _resnet(self, resnet: Part, x: Node, told: Sequence[Modulation | None]) -> Node:
        y = self._activate(resnet.at("conv1.conv"), x, told[0])
        y = self._activate(resnet.at("conv2.conv"), y, told[1])
        past = shortcut(resnet, self._waiting(x, y))
        return shaped_as(y, ops.add(places(y), places(past)))

    def _waiting(self, x: Node, y: Node) -> Node:
        """As many frames of a residual as its convolutions have given; the others wait."""
        x = ops.concat([self._memory(x), x], FRAMES)
        ready = ops.gather(ops.shape_of(y), integers([FRAMES]), integers(0))
        self._remember(x, ready)
        return frames(x, integers([0]), ready)

    def _upsample(self, conv: Part, x: Node, block: int) -> Node:
        """Channels become frames, rows and columns."""
        y = self._convolve(conv, x)
        if any(self.recipe.residual[block : block + 1]):
            repeats = width(y) // width(x)
            y = ops.add(y, ops.concat([self._waiting(x, y)] * repeats, 1))
        return ops.depth_to_space(y, "depth_first", 2)


@dataclass(eq=False)
class Gauged(Running):
    """A graph that tells what goes into its convolutions. ranges: so far, by their names."""

    names: Sequence[str] = ()
    ranges: dict[str, Range] = field(default_factory=dict)

    def through(self, request: Request, *inputs: NDArray) -> list[NDArray]:
        *outputs, ends = super().through(request, *inputs)
        for name, (low, high) in zip(self.names, ends.reshape(-1, 2), strict=True):
            lowest, highest = self.ranges.get(name, (-SMALLEST, SMALLEST))
            self.ranges[name] = min(lowest, float(low)), max(highest, float(high))
        return outputs


@dataclass
class LevelStream:
    """One graph while a clip runs through it: a Stream."""

    run: Relay
    lag: int
    surplus: int  # frames at the beginning that upsampling adds
    begun: NDArray | None = None  # too few frames to give any
    memories: list[NDArray] | None = None

    def push(self, x: NDArray, last: bool) -> NDArray:
        first = self.memories is None
        if first:
            x = x if self.begun is None else np.concat([self.begun, x], FRAMES)
            if x.shape[FRAMES] <= self.lag and not last:
                self.begun = x.copy()
                return x[:, :, :0]
            self.begun, self.memories = None, self._empty(x)
        assert self.memories is not None
        ends = (np.array([int(first)]), np.array([END if last else -1]))
        count = len(self.memories)
        y, *others = self.run(x, *ends, *self.memories)
        self.memories = others[:count]
        if not all(map(is_finite, others[count:])):
            raise NotFinite("The VAE decoder gave values that are not numbers.")
        return y[:, :, self.surplus :] if first else y

    def _empty(self, x: NDArray) -> list[NDArray]:
        given = self.run.graph.model.inputs[3:]
        channels = [one.partial_shape[1].get_length() for one in given]
        kind = BITS[given[0].element_type]
        return [np.empty((1, n, 0, *x.shape[3:]), kind) for n in channels]
