"""A transformer of graphs that are built, compiled and called one after the other.

For models too large to be compiled at once: each block's linear layers are in 8 bits, and no more
than one block is in memory in float32 meanwhile.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from filmlet.engine.openvino import transformer as graphs
from filmlet.engine.openvino.compile import ComponentBuild
from filmlet.engine.openvino.noise import TorchNoise
from filmlet.engine.openvino.ops import Floats, GraphOptions, ModuleWeights
from filmlet.engine.openvino.runner import Arrays, Ask, CompiledGraph
from filmlet.engine.openvino.timestep_embedding import SINES
from filmlet.engine.placement import trim_heap

MAX_INT8_ERROR = 0.1  # relative error that 8 bits may add to what one block changes
BLOCKS = "transformer_blocks"
OUTPUT = ("scale_shift_table", "proj_out.weight", "proj_out.bias")
EXAMPLE_TOKENS, EXAMPLE_WORDS = 64, 8


@dataclass(frozen=True)
class EmbeddingPart:
    """What comes before the blocks, in the dtype."""

    config: graphs.TransformerConfig
    names: frozenset[str]

    def build_part(self, weights: ModuleWeights, options: GraphOptions) -> ov.Model:
        return graphs.build_embedding_graph(weights, self.config, options.kernels)

    def find_part_fault(self, graph: CompiledGraph, exact: CompiledGraph) -> str | None:
        noise = TorchNoise(0)
        example = {
            "latents": noise.randn(1, EXAMPLE_TOKENS, self.config.channels),
            "text": noise.randn(1, EXAMPLE_WORDS, self.config.captions),
            "time": noise.randn(1, 1, SINES),
        }
        error = _relative_error(graph(example)["x"], exact(example)["x"])
        return _describe_fault(error, "the first layers")


@dataclass(frozen=True)
class BlockPart:
    """One block, its linear layers in 8 bits."""

    config: graphs.TransformerConfig
    names: frozenset[str]
    number: int

    def build_part(self, weights: ModuleWeights, options: GraphOptions) -> ov.Model:
        block = weights.submodule(f"{BLOCKS}.{self.number}")
        return graphs.build_block_graph(block, self.config, options)

    def find_part_fault(self, graph: CompiledGraph, exact: CompiledGraph) -> str | None:
        noise, width = TorchNoise(0), self.config.heads * self.config.head
        x = noise.randn(1, EXAMPLE_TOKENS, width)
        places = np.zeros((1, 3, EXAMPLE_TOKENS), np.float32)
        cos, sin = graphs.rotary_cos_sin(self.config, places)
        example = {
            "x": x,
            "text_states": noise.randn(1, EXAMPLE_WORDS, width),
            "mask": np.zeros((1, 1, 1, EXAMPLE_WORDS), np.float32),
            "modulation": noise.randn(1, 1, graphs.ADALN_PARAMS * width),
            "cos": cos,
            "sin": sin,
        }
        found, expected = (run(example)["x" + graphs.NEXT] - x for run in (graph, exact))
        error = _relative_error(found, expected)
        return _describe_fault(error, f"block {self.number}")


@dataclass(frozen=True)
class OutputPart:
    """What comes after the blocks, in the dtype."""

    config: graphs.TransformerConfig
    names: frozenset[str]

    def build_part(self, weights: ModuleWeights, options: GraphOptions) -> ov.Model:  # noqa: ARG002
        return graphs.build_output_graph(weights, self.config)

    def find_part_fault(self, graph: CompiledGraph, exact: CompiledGraph) -> str | None:
        noise, width = TorchNoise(0), self.config.heads * self.config.head
        names = ("x", EXAMPLE_TOKENS), ("embedded", 1)
        example = {name: noise.randn(1, tokens, width) for name, tokens in names}
        error = _relative_error(graph(example)["velocity"], exact(example)["velocity"])
        return _describe_fault(error, "the last layers")


@dataclass(eq=False)
class BlockwiseGraph:
    """The parts of a transformer, called like the graph of the whole.

    cancel_checks: asked before each part and inside it; raise to stop.
    """

    parts: Sequence[CompiledGraph]
    cancel_checks: Sequence[Ask] = ()

    @classmethod
    def load(
        cls, build: ComponentBuild, config: graphs.TransformerConfig
    ) -> Generator[int, None, "BlockwiseGraph"]:
        """Yields bytes. Raises NonFiniteValues where a part in 8 bits is too far from float32."""
        return cls((yield from build.load_or_compile_parts(list_parts(build, config))))

    def __call__(self, inputs: Arrays) -> dict[str, NDArray]:
        """Return the velocity. inputs: of `graphs.build_graph`."""
        arrays = dict(inputs)
        for part in self.parts:
            arrays |= self._run(part, arrays)
        return {"velocity": arrays["velocity"]}

    def _run(self, part: CompiledGraph, arrays: Arrays) -> dict[str, NDArray]:
        """Call one part. What it computes in goes to the next one: of one block it is 100 MB."""
        for ask in self.cancel_checks:
            ask()
        part.cancel_checks = self.cancel_checks
        try:
            outputs = part({name: arrays[name] for name in part.inputs})
            return {name.removesuffix(graphs.NEXT): array for name, array in outputs.items()}
        finally:
            part.release_memory()
            trim_heap()  # else the heap of each of OpenVINO's threads keeps a share of it


def list_parts(
    build: ComponentBuild, config: graphs.TransformerConfig
) -> list[EmbeddingPart | BlockPart | OutputPart]:
    """Return the parts of a transformer in the order in which they run."""
    shapes = build.weights.shapes
    count = len(list(ModuleWeights(shapes).modulelist(BLOCKS)))
    blocks = [BlockPart(config, _names_below(shapes, f"{BLOCKS}.{i}."), i) for i in range(count)]
    last = frozenset(OUTPUT) & shapes.keys()
    inner = _names_below(shapes, f"{BLOCKS}.")
    first = frozenset(shapes.keys() - inner - last)
    return [EmbeddingPart(config, first), *blocks, OutputPart(config, last)]


def _names_below(shapes: dict[str, tuple[int, ...]], prefix: str) -> frozenset[str]:
    return frozenset(name for name in shapes if name.startswith(prefix))


def _relative_error(found: Floats, expected: Floats) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _describe_fault(error: float, where: str) -> str | None:
    return None if error <= MAX_INT8_ERROR else f"off by {error:.1%} in {where} of the transformer"
