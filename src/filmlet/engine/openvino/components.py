"""The compiled components of a checkpoint, each called with arrays."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from filmlet.core.events import Pixels, PixelValues
from filmlet.core.model_card import ModelCard
from filmlet.engine.configs import blame_files
from filmlet.engine.openvino import text_encoder as text_graphs
from filmlet.engine.openvino import transformer as transformer_graphs
from filmlet.engine.openvino import vae_decoder as decoder_graphs
from filmlet.engine.openvino import vae_encoder as encoder_graphs
from filmlet.engine.openvino.blockwise import BlockwiseGraph
from filmlet.engine.openvino.compile import (
    REFERENCE_DTYPE,
    CompiledGraphs,
    ComponentBuild,
    compile_all,
)
from filmlet.engine.openvino.noise import TorchNoise
from filmlet.engine.openvino.ops import (
    PLAIN_KERNELS,
    Floats,
    GraphOptions,
    Kernels,
    ModuleWeights,
    pad_text,
)
from filmlet.engine.openvino.runner import OV_TYPES, Arrays, Ask, CompiledGraph, is_finite
from filmlet.engine.openvino.timestep_embedding import SCALE, sinusoidal_embedding
from filmlet.engine.openvino.vae_ops import Range, unpatchify
from filmlet.engine.state_dict import CheckpointWeights
from filmlet.engine.streaming import PIECE, ChunkSize, run_streaming
from filmlet.errors import NonFiniteValues

MAX_BF16_ERROR = 3e-2  # relative error that bfloat16 may add to the transformer
MIN_PSNR_DB = 40.0  # peak signal-to-noise ratio of decoded frames beside those in float32
SAMPLES = 2  # by which the ranges of 8 bits are measured
CALIBRATION_GAIN = np.float32(1.5)  # clips' latents reach further than noise does
RANGE_MARGIN = 1.15


@dataclass(frozen=True)
class TextEncoderGraphs:
    """The graph of a text encoder: it is small beside the others, so it is plain and in float32."""

    config: Mapping[str, Any]
    count: int = 1

    def build(self, weights: ModuleWeights, options: GraphOptions) -> Iterable[ov.Model]:  # noqa: ARG002
        return [text_graphs.build_graph(weights, self.config)]

    def find_fault(self, graphs: CompiledGraphs, exact: CompiledGraphs) -> str | None:
        raise NotImplementedError("The text encoder is in float32.")


@dataclass(eq=False)
class TextEncoder:
    """The text encoder, in float32. biases: by tokens."""

    run: CompiledGraph
    table: Floats  # by distance, (buckets, heads)
    config: Mapping[str, Any]
    biases: dict[int, Floats] = field(default_factory=dict)

    @classmethod
    def load(cls, build: ComponentBuild) -> Generator[int, None, "TextEncoder"]:
        """Yields bytes that were read."""
        config = build.weights.config
        (run,) = yield from build.load_or_compile(TextEncoderGraphs(config))
        return cls(run, build.weights.array(text_graphs.BIAS), config)

    def __call__(self, ids: NDArray[np.int64]) -> Floats:
        """(1, tokens) -> (1, tokens, channels)."""
        count = ids.shape[1]
        if count not in self.biases:
            self.biases[count] = text_graphs.relative_position_bias(self.table, self.config, count)
        return self.run({"ids": ids, "bias": self.biases[count]})["states"]


@dataclass(eq=False)
class StreamedTextEncoder:
    """A large text encoder, of which one block is in memory at a time; in float32.

    Each call reads all of its files, once for a prompt.
    """

    weights: CheckpointWeights

    @classmethod
    def load(cls, build: ComponentBuild) -> Generator[int, None, "StreamedTextEncoder"]:
        """Yields no bytes: nothing is read yet."""
        yield 0
        return cls(build.weights)

    def __call__(self, ids: NDArray[np.int64]) -> Floats:
        """(1, tokens) -> (1, tokens, channels). Raises CheckpointCorrupt."""
        config, names = self.weights.config, self.weights.shapes
        table = self.weights.array(text_graphs.BIAS)
        bias = text_graphs.relative_position_bias(table, config, ids.shape[1])
        states = self.weights.array(text_graphs.embeddings_key(names))[ids]
        count = len(list(ModuleWeights(names).modulelist(text_graphs.BLOCKS)))
        for number in range(count):
            wanted: tuple[str, ...] = (f"{text_graphs.BLOCKS}.{number}.",)
            if number == count - 1:
                wanted += (f"{text_graphs.LAST_NORM}.",)
            states = self._run_block(number, wanted, {"x": states, "bias": bias})
        return states

    def _run_block(self, number: int, prefixes: tuple[str, ...], inputs: Arrays) -> Floats:
        """Read a block, run it once and let it go."""
        names = {name for name in self.weights.shapes if name.startswith(prefixes)}
        weights = ModuleWeights(dict(self.weights.arrays(names)))
        with blame_files(self.weights.path):
            graph = text_graphs.build_block_graph(weights, number, self.weights.config)
            (model,) = compile_all([graph], REFERENCE_DTYPE)
        return CompiledGraph.from_model(model)(inputs)["states"]


@dataclass(frozen=True)
class TransformerGraphs:
    """The graph of a transformer. kernels: that it is built with where it is not the exact one."""

    config: transformer_graphs.TransformerConfig
    kernels: Kernels
    count: int = 1

    def build(self, weights: ModuleWeights, options: GraphOptions) -> Iterable[ov.Model]:
        return [transformer_graphs.build_graph(weights, self.config, options.kernels)]

    def find_fault(self, graphs: CompiledGraphs, exact: CompiledGraphs) -> str | None:
        """Return how far bfloat16 is from float32 in a small call."""
        found = Transformer(graphs[0], self.config, self.kernels)._call_example()
        expected = Transformer(exact[0], self.config, PLAIN_KERNELS)._call_example()
        error = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
        return None if error <= MAX_BF16_ERROR else f"off by {error:.1%} in the transformer"


@dataclass(eq=False)
class Transformer:
    """Velocities of latents. rotary_cache: the latest positions and their rotation; a window has
    one.
    """

    run: CompiledGraph | BlockwiseGraph
    config: transformer_graphs.TransformerConfig
    kernels: Kernels
    rotary_cache: tuple[Floats, tuple[Floats, Floats]] | None = None

    @classmethod
    def load(cls, build: ComponentBuild) -> Generator[int, None, "Transformer"]:
        """Yields bytes. Raises NonFiniteValues where it is too far from float32."""
        config = transformer_graphs.TransformerConfig.from_config(build.weights.config)
        if build.is_int8:
            blocks = yield from BlockwiseGraph.load(build, config)
            return cls(blocks, config, build.kernels)
        (run,) = yield from build.load_or_compile(TransformerGraphs(config, build.kernels))
        return cls(run, config, build.kernels)

    def __call__(self, latents: Floats, text: Floats, levels: Floats, places: Floats) -> Floats:
        """(1, tokens, channels) each; levels: (1,) or (1, tokens); places: (1, 3, tokens)."""
        if self.rotary_cache is None or self.rotary_cache[0] is not places:
            rotation = transformer_graphs.rotary_cos_sin(self.config, places)
            self.rotary_cache = places, rotation
        cos, sin = self.rotary_cache[1]
        padded, mask = pad_text(text, self.kernels)
        time = sinusoidal_embedding(levels.flatten() * np.float32(SCALE))[None]
        inputs = {"latents": latents, "text": padded, "mask": mask, "time": time}
        return self.run({**inputs, "cos": cos, "sin": sin})["velocity"]

    @contextmanager
    def cancel_when(self, ask: Ask) -> Iterator[None]:
        """Ask every 50 ms of a call; it may raise."""
        self.run.cancel_checks = (*self.run.cancel_checks, ask)
        try:
            yield
        finally:
            others = (check for check in self.run.cancel_checks if check is not ask)
            self.run.cancel_checks = tuple(others)

    def _call_example(self) -> Floats:
        """Return a small call."""
        noise, axis = TorchNoise(0), np.arange(4, dtype=np.float32)
        places = np.stack(np.meshgrid(axis * 0.3, axis * 32, axis * 32, indexing="ij"))
        latents = noise.randn(1, 64, self.config.channels)
        text = noise.randn(1, 8, self.config.captions)
        return self(latents, text, np.array([0.5], np.float32), places.reshape(1, 3, -1))


@dataclass(frozen=True)
class VaeEncoderGraphs:
    """The graph of a VAE's encoder: plain and in float32, because it runs for few frames."""

    config: Mapping[str, Any]
    count: int = 1

    def build(self, weights: ModuleWeights, options: GraphOptions) -> Iterable[ov.Model]:  # noqa: ARG002
        return [encoder_graphs.build_graph(weights.submodule("encoder"), self.config)]

    def find_fault(self, graphs: CompiledGraphs, exact: CompiledGraphs) -> str | None:
        raise NotImplementedError("The VAE encoder is in float32.")


@dataclass(eq=False)
class VaeEncoder:
    """Latents of frames. side: of its patches."""

    run: CompiledGraph
    side: int

    @classmethod
    def load(cls, build: ComponentBuild) -> Generator[int, None, "VaeEncoder"]:
        """Yields bytes that were read."""
        config = build.weights.config
        (run,) = yield from build.load_or_compile(VaeEncoderGraphs(config))
        return cls(run, config.get("patch_size", 4))

    def __call__(self, pixels: PixelValues) -> Floats:
        """(8k+1, height, width, 3) -> (1, channels, k+1, height / 32, width / 32)."""
        return self.run({"patches": encoder_graphs.patchify(pixels, self.side)})["latents"]


@dataclass(frozen=True)
class VaeDecoderGraphs:
    """The graphs of a decoder, each for frames of one resolution. levels: the modules in them.

    channels: of latents. kernels: that the graphs are built with where they are not the exact ones.
    """

    config: decoder_graphs.DecoderConfig
    levels: Sequence[Sequence[decoder_graphs.DecoderModule]]
    channels: int
    kernels: Kernels

    @classmethod
    def from_weights(
        cls, weights: CheckpointWeights, card: ModelCard, kernels: Kernels
    ) -> "VaeDecoderGraphs":
        config = decoder_graphs.DecoderConfig.from_config(weights.config, card.decode_timestep)
        shapes = ModuleWeights(weights.shapes).submodule("decoder")
        levels = list(decoder_graphs.resolution_levels(shapes))
        return cls(config, levels, weights.config["latent_channels"], kernels)

    @property
    def count(self) -> int:
        return len(self.levels)

    def build(self, weights: ModuleWeights, options: GraphOptions) -> Iterable[ov.Model]:
        decoder = weights.submodule("decoder")
        ranges = self._measure_ranges(decoder) if options.is_int8 else None
        return decoder_graphs.build_graphs(decoder, self.config, options, ranges)

    def find_fault(self, graphs: CompiledGraphs, exact: CompiledGraphs) -> str | None:
        """Return how far frames of noise are from those of the exact graphs."""
        latents = self._draw_latents(seed=0)
        found = np.concat([*VaeDecoder(graphs, self)(latents)]).astype(float)
        expected = np.concat([*VaeDecoder(exact, self)(latents)])
        noise = max(float(np.mean((found - expected) ** 2)), 1e-9)
        psnr_db = 10 * np.log10(255**2 / noise)
        if psnr_db >= MIN_PSNR_DB:
            return None
        return f"only as near as {psnr_db:.0f} dB in the decoder"

    def _measure_ranges(self, decoder: ModuleWeights) -> dict[str, Range]:
        """Return the range of each convolution's inputs, and a little more."""
        models = decoder_graphs.build_graphs(
            decoder, self.config, GraphOptions(), is_calibration=True
        )
        compiled = compile_all(models, REFERENCE_DTYPE)
        graphs = [CompiledGraph.from_model(model) for model in compiled]
        ranges: dict[str, Range] = {}
        for seed in range(SAMPLES):
            latents = CALIBRATION_GAIN * self._draw_latents(seed)
            for _ in VaeDecoder(graphs, self).decode_patches(latents, ranges):
                pass
        return {
            name: (RANGE_MARGIN * low, RANGE_MARGIN * high) for name, (low, high) in ranges.items()
        }

    def _draw_latents(self, seed: int) -> Floats:
        return TorchNoise(seed).randn(1, self.channels, 3, 4, 4)


@dataclass(eq=False)
class VaeDecoder:
    """Frames of latents, in chunks."""

    runs: CompiledGraphs
    graphs: VaeDecoderGraphs

    @classmethod
    def load(cls, build: ComponentBuild) -> Generator[int, None, "VaeDecoder"]:
        """Yields bytes. Raises NonFiniteValues where it is too far from float32."""
        graphs = VaeDecoderGraphs.from_weights(build.weights, build.card, build.kernels)
        runs = yield from build.load_or_compile(graphs)
        return cls(runs, graphs)

    def __call__(self, latents: Floats) -> Iterator[Pixels]:
        """(1, channels, frames, height, width) -> (about 8 frames, height, width, 3), and so on.

        Raises NonFiniteValues.
        """
        if not is_finite(latents):  # 8 bits would make numbers of them
            raise NonFiniteValues("The latents have values that are not numbers.")
        for patches in self.decode_patches(latents):
            yield unpatchify(patches, self.graphs.config.side)

    def decode_patches(
        self, latents: Floats, ranges: dict[str, Range] | None = None
    ) -> Iterator[NDArray[np.uint8]]:
        """Frames for `unpatchify`. ranges: gets what goes into convolutions, where graphs tell."""
        lags = [self.graphs.config.lookahead_frames(level) for level in self.graphs.levels]
        # The early levels' frames are small; the last but one makes the largest arrays of each.
        is_short = self.runs[-1].inputs[decoder_graphs.FRAMES].kind == OV_TYPES["bfloat16"]
        counts = [2 * PIECE] * (len(lags) - 2) + [PIECE if is_short else PIECE // 2, PIECE]
        starts = range(0, latents.shape[2], counts[0])
        chunks = (latents[:, :, start : start + counts[0]] for start in starts)
        with ExitStack() as stack:
            streams = []
            for run, lag in zip(self.runs, lags, strict=True):
                call: Callable[[Arrays], Arrays] = run
                if self.graphs.kernels.double_buffer:
                    call = stack.enter_context(run.create_double_buffer())
                surplus = int(run is not self.runs[-1])
                level = decoder_graphs.StreamingLevel(run.inputs, call, lag, surplus, ranges)
                streams.append(level)
            sizes = list(map(ChunkSize, counts, lags))[1:]
            yield from run_streaming(streams, chunks, sizes)
