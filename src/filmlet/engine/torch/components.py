"""The components of a checkpoint: read when they are needed and, where room is short, put away."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from diffusers.models import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel
from diffusers.pipelines.ltx.modeling_latent_upsampler import LTXLatentUpsamplerModel
from torch import nn
from transformers import T5Config, T5EncoderModel

from filmlet.core.memory import OffloadMode
from filmlet.core.model_card import ComponentFiles, ModelFamily
from filmlet.engine.configs import blame_files
from filmlet.engine.placement import Optimization, Placement
from filmlet.engine.state_dict import CheckpointWeights
from filmlet.engine.torch.dtype import torch_dtype
from filmlet.engine.torch.loader import WeightReader, build_on_meta, load_weights
from filmlet.engine.torch.lora import FusedLoras
from filmlet.engine.torch.ltx2.modules import (
    FLOAT32_COMPONENTS,
    LTX2_BLOCKS,
    build_ltx2_module,
    list_blocks,
)
from filmlet.engine.torch.ltx2.transformer import Ltx2Transformer
from filmlet.engine.torch.transformer import CachedTransformer

MODEL_CLASSES = {
    "transformer": LTXVideoTransformer3DModel,
    "vae": AutoencoderKLLTXVideo,
    "upsampler": LTXLatentUpsamplerModel,
}
BLOCKS = {"transformer": ("transformer_blocks",), "text_encoder": ("encoder.block",)}


@dataclass(eq=False)
class ModelComponents:
    """Modules by name, as many of them in memory as the placement has room for."""

    files: ComponentFiles
    placement: Placement
    modules: dict[str, Any] = field(default_factory=dict)
    fused_loras: FusedLoras | None = None  # LoRAs merged into the transformer
    cached_transformer: CachedTransformer | Ltx2Transformer | None = None  # how it runs

    def bytes_to_load(self, *names: str) -> int:
        """Bytes that `load` would read."""
        return sum(self.weights(name).bytes for name in names if name not in self.modules)

    def load(self, *names: str) -> Iterator[int]:
        """Read those that are not in memory; yields bytes. Raises CheckpointCorrupt.

        Where all do not fit, the others are put away first.
        """
        if self.placement.offload != OffloadMode.NONE:
            for other in self.modules.keys() - set(names):
                self.unload(other)
        for name in names:
            if name not in self.modules:
                yield from self._load_component(name)

    def get(self, name: str) -> Any:
        """Return a component, read now if another clip has had it put away meanwhile."""
        if name not in self.modules:
            for _ in self.load(name):
                pass
        return self.modules[name]

    def unload(self, name: str) -> None:
        """Free a component's memory."""
        del self.modules[name]
        if name == "transformer":
            self.fused_loras = self.cached_transformer = None
        if self.placement.device.startswith("cuda"):
            torch.cuda.empty_cache()

    @property
    def _offload_blocks(self) -> tuple[str, ...]:
        """Components that have their weights where they compute only while they use them."""
        match self.placement.offload:
            case OffloadMode.LAYERWISE_CASTING:
                return ("transformer",)
            case OffloadMode.SEQUENTIAL:
                return ("transformer", "text_encoder", "connectors")
            case _:
                return ()

    def weights(self, name: str) -> CheckpointWeights:
        """The files of a component, and its configuration, without reading its weights."""
        return CheckpointWeights.from_files(self.files, name)

    def _build(self, name: str, weights: CheckpointWeights) -> nn.Module:
        """A module without memory for its weights."""
        if self.files.family is ModelFamily.LTX2:
            return build_ltx2_module(name, weights)
        if name != "text_encoder":
            return build_on_meta(MODEL_CLASSES[name], weights.config)
        with torch.device("meta"):
            module: nn.Module = T5EncoderModel(T5Config.from_dict(weights.config))
        return module

    def _blocks(self, name: str, module: nn.Module) -> list[nn.Module]:
        """The parts of a module that run one after the other and have nearly all of its weights."""
        is_ltx2 = self.files.family is ModelFamily.LTX2
        return list_blocks(module, (LTX2_BLOCKS if is_ltx2 else BLOCKS)[name])

    def _load_component(self, name: str) -> Iterator[int]:
        weights, placement = self.weights(name), self.placement
        if name in FLOAT32_COMPONENTS:
            placement = replace(placement, dtype="float32")
        with blame_files(weights.path):
            module = self._build(name, weights)
        blocks = self._blocks(name, module) if name in self._offload_blocks else []
        yield from load_weights(module, weights, placement, blocks)
        if name == "transformer":
            self._wrap_transformer(module, weights, blocks)
        self.modules[name] = module

    def _wrap_transformer(
        self, module: nn.Module, weights: CheckpointWeights, lent: list[nn.Module]
    ) -> None:
        """lent: blocks that are offloaded."""
        dtype = torch_dtype(self.placement)
        layers = frozenset(layer for block in lent for layer in block.modules())
        self.fused_loras = FusedLoras(module, dtype, WeightReader(weights).read, layers)
        if Optimization.FP8 in self.placement.optimizations:  # of torch's latest: others do without
            from filmlet.engine.torch.fp8 import quantize_linears

            for block in self._blocks("transformer", module):
                quantize_linears(block)
        if self.files.family is ModelFamily.LTX2:
            self.cached_transformer = Ltx2Transformer(module, dtype)
        else:
            self.cached_transformer = CachedTransformer(
                module, dtype, self.placement.optimizations, is_lent=bool(lent)
            )
