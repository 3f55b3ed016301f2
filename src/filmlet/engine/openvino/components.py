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
from filmlet.engine.openvino.compile import EXACT, Build, Runs, compile_all
from filmlet.engine.openvino.noise import Noise
from filmlet.engine.openvino.ops import Floats, Part
from filmlet.engine.openvino.runner import KINDS, Ask, Running, is_finite
from filmlet.engine.openvino.timestep_embedding import SCALE, sines
from filmlet.engine.openvino.vae_ops import Range, pictures
from filmlet.engine.streaming import PIECE, Take, flow
from filmlet.errors import NotFinite

BOUND = 3e-2  # relative error that bfloat16 may add to the transformer
LEAST_DB = 40.0  # peak signal-to-noise ratio of decoded frames beside those in float32
SAMPLES = 2  # by which the ranges of 8 bits are measured
LOUD = np.float32(1.5)  # clips' latents reach further than noise does
MARGIN = 1.15


@dataclass(eq=False)
class Text:
    """The text encoder, in float32: it is small beside the others. biases: by tokens."""

    run: Running
    table: Floats  # by distance, (buckets, heads)
    config: Mapping[str, Any]
    biases: dict[int, Floats] = field(default_factory=dict)

    @classmethod
    def load(cls, build: Build) -> Generator[int, None, "Text"]:
        """Yields bytes that were read."""
        config = build.weights.config
        (run,) = yield from build.runs(1, lambda part, *_: [reading.graph(part, config)])
        return cls(run, build.weights.array(reading.BIAS), config)

    def __call__(self, ids: NDArray[np.int64]) -> Floats:
        """(1, tokens) -> (1, tokens, channels)."""
        count = ids.shape[1]
        if count not in self.biases:
            self.biases[count] = reading.bias(self.table, self.config, count)
        (made,) = self.run(ids, self.biases[count])
        return made


@dataclass(eq=False)
class Transformer:
    """Velocities of latents. turned: the latest places and their rotation; a window has one."""

    run: Running
    widths: denoising.Widths
    turned: tuple[Floats, tuple[Floats, Floats]] | None = None

    @classmethod
    def load(cls, build: Build) -> Generator[int, None, "Transformer"]:
        """Yields bytes. Raises NotFinite where bfloat16 is too far from float32."""
        widths = denoising.Widths.of(build.weights.config)

        def check(rough: Runs, exact: Runs) -> str | None:
            one, other = (cls(run, widths)._example() for (run,) in (rough, exact))
            error = float(np.linalg.norm(one - other) / np.linalg.norm(other))
            return None if error <= BOUND else f"off by {error:.1%} in the transformer"

        def graphs(part: Part, *_: object) -> list[Any]:
            return [denoising.graph(part, widths)]

        (run,) = yield from build.runs(1, graphs, check)
        return cls(run, widths)

    def __call__(self, latents: Floats, text: Floats, levels: Floats, places: Floats) -> Floats:
        """(1, tokens, channels) each; levels: (1,) or (1, tokens); places: (1, 3, tokens)."""
        if self.turned is None or self.turned[0] is not places:
            self.turned = places, denoising.rotation(self.widths, places)
        time = sines(levels.flatten() * np.float32(SCALE))[None]
        (flow,) = self.run(latents, *denoising.filled(text), time, *self.turned[1])
        return flow

    @contextmanager
    def asking(self, ask: Ask) -> Iterator[None]:
        """Ask every 50 ms of a call; it may raise."""
        self.run.asks = (*self.run.asks, ask)
        try:
            yield
        finally:
            self.run.asks = tuple(one for one in self.run.asks if one is not ask)

    def _example(self) -> Floats:
        """A small call."""
        noise, axis = Noise(0), np.arange(4, dtype=np.float32)
        places = np.stack(np.meshgrid(axis * 0.3, axis * 32, axis * 32, indexing="ij"))
        latents = noise.draw(1, 64, self.widths.channels)
        text = noise.draw(1, 8, self.widths.captions)
        return self(latents, text, np.array([0.5], np.float32), places.reshape(1, 3, -1))


@dataclass(eq=False)
class Encoder:
    """Latents of frames, in float32: few are shown. side: of its patches."""

    run: Running
    side: int

    @classmethod
    def load(cls, build: Build) -> Generator[int, None, "Encoder"]:
        """Yields bytes that were read."""
        config = build.weights.config
        (run,) = yield from build.runs(
            1, lambda part, *_: [seeing.graph(part.at("encoder"), config)]
        )
        return cls(run, config.get("patch_size", 4))

    def __call__(self, pixels: Pixels) -> Floats:
        """(8k+1, height, width, 3) -> (1, channels, k+1, height / 32, width / 32)."""
        (latents,) = self.run(seeing.patched(pixels, self.side))
        return latents


@dataclass(eq=False)
class Decoder:
    """Its graphs, each for frames of one resolution, with the modules in them."""

    runs: Runs
    levels: Sequence[Sequence[decoding.Module]]
    recipe: decoding.Recipe

    @classmethod
    def load(cls, build: Build) -> Generator[int, None, "Decoder"]:
        """Yields bytes. Raises NotFinite where it is too far from float32."""
        config = build.weights.config
        recipe = decoding.Recipe.of(config, build.card.decode_timestep)
        levels = list(decoding.levels(Part(build.weights.shapes).at("decoder")))

        def check(rough: Runs, exact: Runs) -> str | None:
            latents = Noise(0).draw(1, config["latent_channels"], 3, 4, 4)
            one, other = (
                np.concat([*cls(runs, levels, recipe)(latents)]).astype(float)
                for runs in (rough, exact)
            )
            noise = max(float(np.mean((one - other) ** 2)), 1e-9)
            found = 10 * np.log10(255**2 / noise)
            return None if found >= LEAST_DB else f"only as near as {found:.0f} dB in the decoder"

        def graphs(part: Part, dtype: str, is_int8: bool) -> Iterator[Any]:
            decoder = part.at("decoder")
            ranges = measured(decoder) if is_int8 else None
            return decoding.graphs(decoder, recipe, dtype, ranges)

        def measured(decoder: Part) -> dict[str, Range]:
            """What goes into each convolution, and a little more."""
            models, names = zip(*decoding.gauged(decoder, recipe), strict=True)
            compiled = compile_all(models, EXACT)
            pairs = zip(compiled, names, strict=True)
            runs = [decoding.Gauged.at_hand(one, names=n) for one, n in pairs]
            for seed in range(SAMPLES):
                latents = Noise(seed).draw(1, config["latent_channels"], 3, 4, 4)
                for _ in cls(runs, levels, recipe)(LOUD * latents):
                    pass
            ranges = (pair for run in runs for pair in run.ranges.items())
            return {name: (MARGIN * low, MARGIN * high) for name, (low, high) in ranges}

        runs = yield from build.runs(len(levels), graphs, check)
        return cls(runs, levels, recipe)

    def __call__(self, latents: Floats) -> Iterator[Pixels]:
        """(1, channels, frames, height, width) -> (about 8 frames, height, width, 3), and so on.

        Raises NotFinite.
        """
        if not is_finite(latents):  # 8 bits would make numbers of them
            raise NotFinite("The latents have values that are not numbers.")
        lags = [self.recipe.lag(level) for level in self.levels]
        # The early levels' frames are small; the last but one makes the largest arrays of each.
        large = PIECE if self.runs[-1].kinds[0] == KINDS["bfloat16"] else PIECE // 2
        counts = [2 * PIECE] * (len(self.levels) - 2) + [large, PIECE]
        starts = range(0, latents.shape[2], counts[0])
        chunks = (latents[:, :, start : start + counts[0]] for start in starts)
        with ExitStack() as stack:
            relays = [stack.enter_context(run.relay()) for run in self.runs]
            streams = [
                decoding.LevelStream(relay, lag, surplus=relay is not relays[-1])
                for relay, lag in zip(relays, lags, strict=True)
            ]
            for made in flow(streams, chunks, list(map(Take, counts, lags))[1:]):
                yield pictures(made, self.recipe.side)
