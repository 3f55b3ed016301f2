"""The OpenVINO engine: a checkpoint's compiled components, and numpy around them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from filmlet.core.events import PixelFormat, Pixels, PixelValues
from filmlet.core.memory import OffloadMode
from filmlet.core.model_card import ComponentFiles, ModelCard
from filmlet.engine.base import DenoiseParams, Engine, LatentStats, TransformerInputs
from filmlet.engine.conditioning import NoiseFn
from filmlet.engine.latents import Latents
from filmlet.engine.openvino.compile import REFERENCE_DTYPE, ComponentBuild
from filmlet.engine.openvino.components import (
    StreamedTextEncoder,
    TextEncoder,
    Transformer,
    VaeDecoder,
    VaeEncoder,
)
from filmlet.engine.openvino.noise import TorchNoise
from filmlet.engine.openvino.ops import Floats, Kernels, choose_kernels
from filmlet.engine.openvino.runner import has_bfloat16, prefers_int8
from filmlet.engine.placement import Backend, Optimization, Placement
from filmlet.engine.state_dict import CheckpointWeights, load_latent_rgb_factors
from filmlet.errors import Cancelled
from filmlet.settings import Settings

KINDS: dict[str, Any] = {
    "text_encoder": TextEncoder,
    "encoder": VaeEncoder,
    "transformer": Transformer,
    "decoder": VaeDecoder,
}
LOW_PRECISION_COMPONENTS = ("transformer", "decoder")  # may be in bfloat16
INT8_COMPONENT = "decoder"  # may multiply in 8 bits


@dataclass(frozen=True, eq=False)
class OpenVINOEngine(Engine):
    """One checkpoint in OpenVINO. components: components in memory, by name."""

    components: dict[str, Any] = field(default_factory=dict, kw_only=True)

    @cached_property
    def statistics(self) -> LatentStats:
        vae = CheckpointWeights("vae", self.files.vae)
        mean, deviation = (
            vae.array(f"latents_{name}").reshape(1, -1, 1, 1, 1) for name in ("mean", "std")
        )
        return LatentStats(mean, deviation, vae.config.get("scaling_factor", 1.0))

    @property
    def core_components(self) -> tuple[str, ...]:
        return ("text_encoder", *LOW_PRECISION_COMPONENTS)

    def bytes_to_load(self, *names: str) -> int:
        builds = (self._build(name) for name in names if name not in self.components)
        return sum(build.weights.bytes for build in builds if build.name != self._streamed)

    def load_components(self, *names: str) -> Iterator[int]:
        if self.placement.offload is not OffloadMode.NONE:
            for other in self.components.keys() - set(names):
                del self.components[other]
        for name in names:
            if name not in self.components:
                kind = StreamedTextEncoder if name == self._streamed else KINDS[name]
                self.components[name] = yield from kind.load(self._build(name))

    def noise_source(self, seed: int) -> NoiseFn:
        return TorchNoise(seed).randn

    def encode_frames(self, pixels: PixelValues) -> Floats:
        return self.statistics.normalize(self._get("encoder")(pixels))

    @contextmanager
    def cancel_when(self, is_cancelled: Callable[[], bool]) -> Iterator[None]:
        def ask() -> None:
            if is_cancelled():
                raise Cancelled("The clip was cancelled.")

        with self._get("transformer").cancel_when(ask):
            yield

    def decode(
        self,
        latents: Latents,
        params: DenoiseParams,
        pixel_format: PixelFormat = PixelFormat.RGB24,  # noqa: ARG002 - it computes in RGB
    ) -> Iterator[Pixels]:
        clean, shape = (
            self._latents_for_decoder(latents, params, self.noise_source(params.seed)),
            params.shape,
        )
        for pixels in self._get("decoder")(clean):
            yield pixels[:, shape.crop_rows, shape.crop_columns]

    def _encode_ids(self, ids: NDArray[np.int64]) -> Floats:
        return self._get("text_encoder")(ids)

    def _predict_velocity(self, call: TransformerInputs) -> Floats:
        return self._get("transformer")(
            call.latents, call.prompt_embeds, call.timesteps, call.video_coords
        )

    @property
    def _streamed(self) -> str | None:
        """The component that is read while it runs, if there is one."""
        return "text_encoder" if self.placement.is_blockwise else None

    def _get(self, name: str) -> Any:
        """Return a component, read now if another clip has had it put away meanwhile."""
        if name not in self.components:
            for _ in self.load_components(name):
                pass
        return self.components[name]

    def _build(self, name: str) -> ComponentBuild:
        assert self.placement.cache
        dtype = self.placement.dtype if name in LOW_PRECISION_COMPONENTS else REFERENCE_DTYPE
        rounded = "transformer" if self.placement.is_blockwise else INT8_COMPONENT
        is_int8 = name == rounded and Optimization.INT8 in self.placement.optimizations
        kernels = choose_kernels(self.placement.is_plain)
        cache = self.placement.cache
        return ComponentBuild(name, self.card, self.files, dtype, cache, is_int8, kernels)


def create_engine(card: ModelCard, files: ComponentFiles, placement: Placement) -> OpenVINOEngine:
    """Return the engine of a checkpoint, with nothing read yet."""
    return OpenVINOEngine(card, files, placement, load_latent_rgb_factors(files))


def choose_placement(
    card: ModelCard, files: ComponentFiles, settings: Settings, dtype: str | None
) -> Placement | str:
    """Return how OpenVINO computes a checkpoint here, or why it cannot. dtype: it was begun in."""
    if reason := _why_not_files(files):
        return reason
    kernels = choose_kernels(settings.openvino_plain > 0)
    best, reason = _choose_dtype(card, files, settings.cache, kernels)
    if dtype == REFERENCE_DTYPE and best != REFERENCE_DTYPE:
        best, reason = REFERENCE_DTYPE, "as it was begun"
    decoder = ComponentBuild(INT8_COMPONENT, card, files, best, settings.cache, True, kernels)
    is_int8 = settings.int8 > 0 and prefers_int8(best) and not decoder.rejection()
    used = frozenset({Optimization.INT8} if is_int8 else ())
    return Placement(
        "cpu",
        best,
        reason,
        backend=Backend.OPENVINO,
        cache=settings.cache,
        optimizations=used,
        is_plain=settings.openvino_plain > 0,
    )


def choose_blockwise_placement(
    card: ModelCard, files: ComponentFiles, settings: Settings
) -> Placement | str:
    """Return how OpenVINO computes a checkpoint too large to be compiled at once, or why not.

    What is not in 8 bits is in float32.
    """
    kernels = choose_kernels(settings.openvino_plain > 0)
    build = ComponentBuild(
        "transformer", card, files, REFERENCE_DTYPE, settings.cache, True, kernels
    )
    if reason := _why_not_files(files) or build.rejection():
        return reason
    return Placement(
        "cpu",
        REFERENCE_DTYPE,
        "float32 beside 8 bits",
        backend=Backend.OPENVINO,
        cache=settings.cache,
        optimizations=frozenset({Optimization.INT8}),
        is_plain=settings.openvino_plain > 0,
        is_blockwise=True,
    )


def _why_not_files(files: ComponentFiles) -> str | None:
    """Return what a checkpoint has that is not compiled."""
    text, transformer, vae = (
        CheckpointWeights(name, getattr(files, name))
        for name in ("text_encoder", "transformer", "vae")
    )
    if any(vae.config.get("decoder_inject_noise", ())):
        return "the decoder adds noise, which is not compiled"
    if vae.config.get("patch_size_t", 1) != 1:
        return "the decoder has patches in time, which are not compiled"
    if any(weights.has_8bit_weights for weights in (text, transformer, vae)):
        return "weights in eight bits are torch's"
    return None


def _choose_dtype(
    card: ModelCard, files: ComponentFiles, cache: Path, kernels: Kernels
) -> tuple[str, str]:
    if not has_bfloat16():
        return REFERENCE_DTYPE, "this CPU has no bfloat16"
    for name in LOW_PRECISION_COMPONENTS:
        if verdict := ComponentBuild(
            name, card, files, "bfloat16", cache, kernels=kernels
        ).rejection():
            return REFERENCE_DTYPE, verdict
    return "bfloat16", "bfloat16 is faster here"
