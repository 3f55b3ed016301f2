"""The OpenVINO engine: a checkpoint's compiled components, and numpy around them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from filmlet.core.events import Pixels
from filmlet.core.lora import Adapter
from filmlet.core.memory import Hold
from filmlet.core.model_card import Files, ModelCard
from filmlet.engine.arrays import Tensors, as_numpy
from filmlet.engine.base import Call, Engine, Recipe, Statistics
from filmlet.engine.conditioning import Draw
from filmlet.engine.openvino.compile import EXACT, Build
from filmlet.engine.openvino.components import Decoder, Encoder, Text, Transformer
from filmlet.engine.openvino.noise import Noise
from filmlet.engine.openvino.ops import Floats
from filmlet.engine.openvino.runner import has_bfloat16, prefers_int8
from filmlet.engine.placement import Lever, Library, Placement
from filmlet.engine.state_dict import Weights, projection
from filmlet.errors import Cancelled, NotOffered

KINDS: dict[str, Any] = {
    "text_encoder": Text,
    "encoder": Encoder,
    "transformer": Transformer,
    "decoder": Decoder,
}
ROUGH = ("transformer", "decoder")  # may be in bfloat16
QUANTISED = "decoder"  # may multiply in 8 bits


@dataclass(frozen=True, eq=False)
class CompiledEngine(Engine):
    """One checkpoint in OpenVINO. held: components in memory, by name."""

    files: Files = field(kw_only=True)
    where: Placement = field(kw_only=True)
    held: dict[str, Any] = field(default_factory=dict, kw_only=True)

    @property
    def placement(self) -> Placement:
        return self.where

    @property
    def channels(self) -> int:
        return self._get("transformer").widths.channels

    @cached_property
    def statistics(self) -> Statistics:
        vae = Weights("vae", self.files.vae)
        mean, deviation = (
            vae.array(f"latents_{name}").reshape(1, -1, 1, 1, 1) for name in ("mean", "std")
        )
        return Statistics(mean, deviation, vae.config.get("scaling_factor", 1.0))

    @cached_property
    def is_timed(self) -> bool:
        return bool(Weights("vae", self.files.vae).config.get("timestep_conditioning"))

    @property
    def parts_of_every_clip(self) -> tuple[str, ...]:
        return ("text_encoder", *ROUGH)

    def weigh(self, *names: str) -> int:
        builds = (self._build(name) for name in names if name not in self.held)
        return sum(build.weights.bytes for build in builds)

    def bring(self, *names: str) -> Iterator[int]:
        if self.where.hold is not Hold.ALL:
            for other in self.held.keys() - set(names):
                del self.held[other]
        for name in names:
            if name not in self.held:
                self.held[name] = yield from KINDS[name].load(self._build(name))

    def dress(self, loras: Sequence[Adapter]) -> Iterator[None]:
        assert not loras  # such clips are torch's
        return iter(())

    def drawn(self, seed: int) -> Draw:
        return Noise(seed).draw

    def take(self, tensors: Tensors) -> Tensors:
        return {name: as_numpy(one) for name, one in tensors.items()}

    def see(self, pixels: Pixels) -> Floats:
        return self.statistics.normalised(self._get("encoder")(pixels))

    def upsample(self, latents: Floats, recipe: Recipe) -> Floats:  # noqa: ARG002
        raise NotOffered("OpenVINO makes clips of one stage.", param="model")

    @contextmanager
    def stopping(self, wanted: Callable[[], bool]) -> Iterator[None]:
        def ask() -> None:
            if not wanted():
                raise Cancelled("The clip was cancelled.")

        with self._get("transformer").asking(ask):
            yield

    def decode(
        self,
        latents: Floats,
        recipe: Recipe,
        is_planar: bool = False,  # noqa: ARG002 - frames that are saved later give the same file
    ) -> Iterator[Pixels]:
        clean, shape = self._clean(latents, recipe, self.drawn(recipe.seed)), recipe.shape
        for pixels in self._get("decoder")(clean):
            yield pixels[:, shape.rows, shape.columns]

    def _read(self, ids: NDArray[np.int64]) -> Floats:
        return self._get("text_encoder")(ids)

    def _flow(self, call: Call) -> Floats:
        return self._get("transformer")(call.latents, call.text, call.levels, call.places)

    def _get(self, name: str) -> Any:
        """A component, read now if another clip has had it put away meanwhile."""
        if name not in self.held:
            for _ in self.bring(name):
                pass
        return self.held[name]

    def _build(self, name: str) -> Build:
        assert self.where.cache
        dtype = self.where.dtype if name in ROUGH else EXACT
        is_int8 = name == QUANTISED and Lever.INT8 in self.where.levers
        return Build(name, self.card, self.files, dtype, self.where.cache, is_int8)


def begin(card: ModelCard, files: Files, placement: Placement) -> CompiledEngine:
    """With nothing read yet."""
    return CompiledEngine(card, projection(files), files=files, where=placement)


def choose(
    card: ModelCard, files: Files, cache: Path, allow_int8: bool, dtype: str | None
) -> Placement | str:
    """How OpenVINO computes a checkpoint here, or why it cannot.

    allow_int8: products may be in 8 bits. dtype: that it was begun in.
    """
    text, transformer, vae = (
        Weights(name, getattr(files, name)) for name in ("text_encoder", "transformer", "vae")
    )
    if any(vae.config.get("decoder_inject_noise", ())):
        return "the decoder adds noise, which is not compiled"
    if vae.config.get("patch_size_t", 1) != 1:
        return "the decoder has patches in time, which are not compiled"
    if any(weights.is_in_eight_bits for weights in (text, transformer, vae)):
        return "weights in eight bits are torch's"
    best, reason = _dtype(card, files, cache)
    if dtype == EXACT and best != EXACT:
        best, reason = EXACT, "as it was begun"
    decoder = Build(QUANTISED, card, files, best, cache, is_int8=True)
    is_int8 = allow_int8 and prefers_int8(best) and not decoder.verdict()
    levers = frozenset({Lever.INT8} if is_int8 else ())
    return Placement("cpu", best, reason, library=Library.OPENVINO, cache=cache, levers=levers)


def _dtype(card: ModelCard, files: Files, cache: Path) -> tuple[str, str]:
    if not has_bfloat16():
        return EXACT, "this CPU has no bfloat16"
    for name in ROUGH:
        if verdict := Build(name, card, files, "bfloat16", cache).verdict():
            return EXACT, verdict
    return "bfloat16", "bfloat16 is faster here"
