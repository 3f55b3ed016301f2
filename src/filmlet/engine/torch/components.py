"""The components of a checkpoint: read when they are needed and, where room is short, put away."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from diffusers.models import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel
from diffusers.pipelines.ltx.modeling_latent_upsampler import LTXLatentUpsamplerModel
from torch import nn
from transformers import T5Config, T5EncoderModel

from filmlet.core.memory import Hold
from filmlet.core.model_card import Files
from filmlet.engine.configs import blame_files
from filmlet.engine.placement import Lever, Placement
from filmlet.engine.state_dict import Weights
from filmlet.engine.torch.attention import Attending
from filmlet.engine.torch.dtype import dtype_of
from filmlet.engine.torch.loader import fill, on_meta
from filmlet.engine.torch.lora import Loras
from filmlet.engine.torch.transformer import Stepping

KINDS = {
    "transformer": LTXVideoTransformer3DModel,
    "vae": AutoencoderKLLTXVideo,
    "upsampler": LTXLatentUpsamplerModel,
}
BLOCKS = {"transformer": "transformer_blocks", "text_encoder": "encoder.block"}


@dataclass(eq=False)
class Parts:
    """Modules by name, as many of them in memory as the placement has room for."""

    files: Files
    placement: Placement
    held: dict[str, Any] = field(default_factory=dict)
    loras: Loras | None = None  # what the transformer wears, while it is here
    stepping: Stepping | None = None  # how it runs

    def weigh(self, *names: str) -> int:
        """Bytes that `bring` would read."""
        return sum(self._weights(name).bytes for name in names if name not in self.held)

    def bring(self, *names: str) -> Iterator[int]:
        """Read those that are not in memory; yields bytes. Raises CheckpointDamaged.

        Where all do not fit, the others are put away first.
        """
        if self.placement.hold != Hold.ALL:
            for other in self.held.keys() - set(names):
                self.put_away(other)
        for name in names:
            if name not in self.held:
                yield from self._read(name)

    def get(self, name: str) -> Any:
        """A component, read now if another clip has had it put away meanwhile."""
        if name not in self.held:
            for _ in self.bring(name):
                pass
        return self.held[name]

    def put_away(self, name: str) -> None:
        """Free a component's memory."""
        del self.held[name]
        if name == "transformer":
            self.loras = self.stepping = None
        if self.placement.device.startswith("cuda"):
            torch.cuda.empty_cache()

    @property
    def _lent(self) -> tuple[str, ...]:
        """Components that have their weights where they compute only while they use them."""
        match self.placement.hold:
            case Hold.STORED:
                return ("transformer",)
            case Hold.LAYERS:
                return ("transformer", "text_encoder")
            case _:
                return ()

    def _attending(self, dtype: torch.dtype) -> Attending | None:
        """On a GPU, whose kernels differ."""
        device, cache = self.placement.device, self.placement.cache
        if not cache or not device.startswith("cuda"):
            return None
        return Attending(cache / "attention.json", torch.device(device), dtype)

    def _weights(self, name: str) -> Weights:
        place = getattr(self.files, name)
        assert place
        return Weights(name, place)

    def _build(self, name: str, weights: Weights) -> nn.Module:
        """A module without memory for its weights."""
        if name != "text_encoder":
            return on_meta(KINDS[name], weights.config)
        with torch.device("meta"):
            module: nn.Module = T5EncoderModel(T5Config.from_dict(weights.config))
        return module

    def _read(self, name: str) -> Iterator[int]:
        weights, placement = self._weights(name), self.placement
        with blame_files(weights.place):
            module = self._build(name, weights)
        lent = module.get_submodule(BLOCKS[name]) if name in self._lent else None
        yield from fill(module, weights, placement, lent)
        if name == "transformer":
            dtype = dtype_of(placement)
            self.loras = Loras(module, dtype)
            if Lever.FP8 in placement.levers:  # of torch's latest: others do without
                import_module("filmlet.engine.torch.fp8").round_off(
                    module.get_submodule(BLOCKS[name])
                )
            self.stepping = Stepping(
                module,
                dtype,
                placement.levers,
                is_lent=lent is not None,
                attending=self._attending(dtype),
            )
        self.held[name] = module
