"""The compiled components of a checkpoint, each called with arrays."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from filmlet.core.events import Pixels
from filmlet.engine.openvino import text_encoder as reading
from filmlet.engine.openvino import transformer as denoising
from filmlet.engine.openvino import vae_decoder as decoding
from filmlet.engine.openvino import vae_encoder as seeing
from filmlet.engine.openvino.compile import (
    REFERENCE_DTYPE,
    CompiledGraphs,
    ComponentBuild,
    compile_all,
)
from filmlet.engine.openvino.noise import TorchNoise
from filmlet.engine.openvino.ops import Floats, ModuleWeights
from filmlet.engine.openvino.runner import OV_TYPES, Ask, CompiledGraph, is_finite
from filmlet.engine.openvino.timestep_embedding import SCALE, sinusoidal_embedding
from filmlet.engine.openvino.vae_ops import Range, unpatchify
from filmlet.engine.streaming import PIECE, ChunkSize, run_streaming
from filmlet.errors import NonFiniteValues

MAX_BF16_ERROR = 3e-2  # relative error that bfloat16 may add to the transformer
MIN_PSNR_DB = 40.0  # peak signal-to-noise ratio of decoded frames beside those in float32
SAMPLES = 2  # by which the ranges of 8 bits are measured
CALIBRATION_GAIN = np.float32(1.5)  # clips' latents reach further than noise does
RANGE_MARGIN = 1.15


@dataclass(eq=False)
class TextEncoder:
    """The text encoder, in float32: it is small beside the others. biases: by tokens."""

    run: CompiledGraph
    table: Floats  # by distance, (buckets, heads)
    config: Mapping[str, Any]
    biases: dict[int, Floats] = field(default_factory=dict)

    @classmethod
    def load(cls, build: ComponentBuild) -> Generator[int, None, "TextEncoder"]:
        """Yields bytes that were read."""
        config = build.weights.config
        (run,) = yield from build.load_or_compile(
            1, lambda part, *_: [reading.build_graph(part, config)]
        )
        return cls(run, build.weights.array(reading.BIAS), config)

    def __call__(self, ids: NDArray[np.int64]) -> Floats:
        """(1, tokens) -> (1, tokens, channels)."""
        count = ids.shape[1]
        if count not in self.biases:
            self.biases[count] = reading.relative_position_bias(self.table, self.config, count)
        (hidden_states,) = self.run(ids, self.biases[count])
        return hidden_states


@dataclass(eq=False)
class Transformer:
    """Velocities of latents. rotary_cache: the latest places and their rotation; a window has
    one.
    """

    run: CompiledGraph
    widths: denoising.TransformerConfig
    rotary_cache: tuple[Floats, tuple[Floats, Floats]] | None = None

    @classmethod
    def load(cls, build: ComponentBuild) -> Generator[int, None, "Transformer"]:
        """Yields bytes. Raises NonFiniteValues where bfloat16 is too far from float32."""
        widths = denoising.TransformerConfig.from_config(build.weights.config)

        def check(rough: CompiledGraphs, exact: CompiledGraphs) -> str | None:
            rough_output, exact_output = (cls(run, widths)._example() for (run,) in (rough, exact))
            error = float(
                np.linalg.norm(rough_output - exact_output) / np.linalg.norm(exact_output)
            )
            return None if error <= MAX_BF16_ERROR else f"off by {error:.1%} in the transformer"

        def graphs(part: ModuleWeights, *_: object) -> list[Any]:
            return [denoising.build_graph(part, widths)]

        (run,) = yield from build.load_or_compile(1, graphs, check)
        return cls(run, widths)

    def __call__(self, latents: Floats, text: Floats, levels: Floats, places: Floats) -> Floats:
        """(1, tokens, channels) each; levels: (1,) or (1, tokens); places: (1, 3, tokens)."""
        if self.rotary_cache is None or self.rotary_cache[0] is not places:
            self.rotary_cache = places, denoising.rotary_cos_sin(self.widths, places)
        time = sinusoidal_embedding(levels.flatten() * np.float32(SCALE))[None]
        (flow,) = self.run(latents, *denoising.pad_text(text), time, *self.rotary_cache[1])
        return flow

    @contextmanager
    def cancel_when(self, ask: Ask) -> Iterator[None]:
        """Ask every 50 ms of a call; it may raise."""
        self.run.cancel_checks = (*self.run.cancel_checks, ask)
        try:
            yield
        finally:
            self.run.cancel_checks = tuple(
                check for check in self.run.cancel_checks if check is not ask
            )

    def _example(self) -> Floats:
        """A small call."""
        noise, axis = TorchNoise(0), np.arange(4, dtype=np.float32)
        places = np.stack(np.meshgrid(axis * 0.3, axis * 32, axis * 32, indexing="ij"))
        latents = noise.randn(1, 64, self.widths.channels)
        text = noise.randn(1, 8, self.widths.captions)
        return self(latents, text, np.array([0.5], np.float32), places.reshape(1, 3, -1))


@dataclass(eq=False)
class VaeEncoder:
    """Latents of frames, in float32: few are shown. side: of its patches."""

    run: CompiledGraph
    side: int

    @classmethod
    def load(cls, build: ComponentBuild) -> Generator[int, None, "VaeEncoder"]:
        """Yields bytes that were read."""
        config = build.weights.config
        (run,) = yield from build.load_or_compile(
            1, lambda part, *_: [seeing.build_graph(part.submodule("encoder"), config)]
        )
        return cls(run, config.get("patch_size", 4))

    def __call__(self, pixels: Pixels) -> Floats:
        """(8k+1, height, width, 3) -> (1, channels, k+1, height / 32, width / 32)."""
        (latents,) = self.run(seeing.patchify(pixels, self.side))
        return latents


@dataclass(eq=False)
class VaeDecoder:
    """Its graphs, each for frames of one resolution, with the modules in them."""

    runs: CompiledGraphs
    levels: Sequence[Sequence[decoding.DecoderModule]]
    recipe: decoding.DecoderConfig

    @classmethod
    def load(cls, build: ComponentBuild) -> Generator[int, None, "VaeDecoder"]:
        """Yields bytes. Raises NonFiniteValues where it is too far from float32."""
        config = build.weights.config
        recipe = decoding.DecoderConfig.from_config(config, build.card.decode_timestep)
        levels = list(
            decoding.resolution_levels(ModuleWeights(build.weights.shapes).submodule("decoder"))
        )

        def check(rough: CompiledGraphs, exact: CompiledGraphs) -> str | None:
            latents = TorchNoise(0).randn(1, config["latent_channels"], 3, 4, 4)
            rough_frames, exact_frames = (
                np.concat([*cls(runs, levels, recipe)(latents)]).astype(float)
                for runs in (rough, exact)
            )
            noise = max(float(np.mean((rough_frames - exact_frames) ** 2)), 1e-9)
            psnr_db = 10 * np.log10(255**2 / noise)
            return (
                None
                if psnr_db >= MIN_PSNR_DB
                else f"only as near as {psnr_db:.0f} dB in the decoder"
            )

        def graphs(part: ModuleWeights, dtype: str, is_int8: bool) -> Iterator[Any]:
            decoder = part.submodule("decoder")
            ranges = measure_ranges(decoder) if is_int8 else None
            return decoding.build_graphs(decoder, recipe, dtype, ranges)

        def measure_ranges(decoder: ModuleWeights) -> dict[str, Range]:
            """What goes into each convolution, and a little more."""
            models, names = zip(*decoding.build_calibration_graphs(decoder, recipe), strict=True)
            compiled = compile_all(models, REFERENCE_DTYPE)
            pairs = zip(compiled, names, strict=True)
            runs = [decoding.CalibrationGraph.from_model(graph, names=n) for graph, n in pairs]
            for seed in range(SAMPLES):
                latents = TorchNoise(seed).randn(1, config["latent_channels"], 3, 4, 4)
                for _ in cls(runs, levels, recipe)(CALIBRATION_GAIN * latents):
                    pass
            ranges = (pair for run in runs for pair in run.ranges.items())
            return {name: (RANGE_MARGIN * low, RANGE_MARGIN * high) for name, (low, high) in ranges}

        runs = yield from build.load_or_compile(len(levels), graphs, check)
        return cls(runs, levels, recipe)

    def __call__(self, latents: Floats) -> Iterator[Pixels]:
        """(1, channels, frames, height, width) -> (about 8 frames, height, width, 3), and so on.

        Raises NonFiniteValues.
        """
        if not is_finite(latents):  # 8 bits would make numbers of them
            raise NonFiniteValues("The latents have values that are not numbers.")
        lags = [self.recipe.lookahead_frames(level) for level in self.levels]
        # The early levels' frames are small; the last but one makes the largest arrays of each.
        large = PIECE if self.runs[-1].kinds[0] == OV_TYPES["bfloat16"] else PIECE // 2
        counts = [2 * PIECE] * (len(self.levels) - 2) + [large, PIECE]
        starts = range(0, latents.shape[2], counts[0])
        chunks = (latents[:, :, start : start + counts[0]] for start in starts)
        with ExitStack() as stack:
            relays = [stack.enter_context(run.create_double_buffer()) for run in self.runs]
            streams = [
                decoding.StreamingLevel(relay, lag, surplus=relay is not relays[-1])
                for relay, lag in zip(relays, lags, strict=True)
            ]
            for frames in run_streaming(streams, chunks, list(map(ChunkSize, counts, lags))[1:]):
                yield unpatchify(frames, self.recipe.side)
