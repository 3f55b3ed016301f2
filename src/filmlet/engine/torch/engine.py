"""The torch engine: diffusers' modules for one checkpoint, held in memory and ready to run."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from diffusers.models import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel
from diffusers.pipelines.ltx.modeling_latent_upsampler import LTXLatentUpsamplerModel
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import T5EncoderModel

from filmlet.core.events import Pixels, Planes
from filmlet.core.lora import Adapter
from filmlet.core.model_card import Files, ModelCard
from filmlet.engine.arrays import Tensors, pack, unpack
from filmlet.engine.base import Call, Engine, Recipe, Statistics
from filmlet.engine.conditioning import Draw
from filmlet.engine.placement import Placement
from filmlet.engine.state_dict import projection
from filmlet.engine.torch import vae_decoder
from filmlet.engine.torch.components import Parts
from filmlet.engine.torch.dtype import dtype_of
from filmlet.engine.torch.frame_transfer import Leaving, as_pixels, as_planes
from filmlet.engine.torch.lora import Loras
from filmlet.errors import Cancelled

Value = TypeVar("Value")
OF = {"encoder": "vae", "decoder": "vae"}  # the part that does it


@dataclass(frozen=True, eq=False)
class LtxEngine(Engine):
    """One checkpoint in torch; every method runs without gradients."""

    parts: Parts = field(kw_only=True)

    @property
    def placement(self) -> Placement:
        return self.parts.placement

    @property
    def channels(self) -> int:
        channels: int = self.transformer.config.in_channels
        return channels

    @property
    def dtype(self) -> torch.dtype:
        """That it computes in."""
        return dtype_of(self.placement)

    @property
    def text_encoder(self) -> T5EncoderModel:
        return self.parts.get("text_encoder")

    @property
    def transformer(self) -> LTXVideoTransformer3DModel:
        return self.parts.get("transformer")

    @property
    def vae(self) -> AutoencoderKLLTXVideo:
        return self.parts.get("vae")

    @property
    def upsampler(self) -> LTXLatentUpsamplerModel:
        return self.parts.get("upsampler")

    @property
    def loras(self) -> Loras:
        """What the transformer wears."""
        self.parts.get("transformer")
        assert self.parts.loras
        return self.parts.loras

    @property
    def statistics(self) -> Statistics:
        mean, deviation = (
            t.view(1, -1, 1, 1, 1).float() for t in (self.vae.latents_mean, self.vae.latents_std)
        )
        return Statistics(mean, deviation, self.vae.config.scaling_factor)

    @property
    def is_timed(self) -> bool:
        return bool(self.vae.config.timestep_conditioning)

    @property
    def parts_of_every_clip(self) -> tuple[str, ...]:
        names = (name for name, _ in self.parts.files.there())
        return tuple(name for name in names if name not in ("tokenizer", "preview"))

    def weigh(self, *names: str) -> int:
        return self.parts.weigh(*names)

    def bring(self, *names: str) -> Iterator[int]:
        return self.parts.bring(*(OF.get(name, name) for name in names))

    def dress(self, loras: Sequence[Adapter]) -> Iterator[None]:
        return self.loras.change(loras)

    def drawn(self, seed: int) -> Draw:
        return self._drawing(torch.Generator().manual_seed(seed))

    def _drawing(self, generator: torch.Generator) -> Draw:
        def draw(*size: int) -> Tensor:
            return torch.randn(size, generator=generator).to(self.placement.device)

        return draw

    def take(self, tensors: Tensors) -> Tensors:
        device = self.placement.device
        return {name: torch.as_tensor(one, device=device) for name, one in tensors.items()}

    @torch.inference_mode()
    def see(self, pixels: Pixels) -> Tensor:
        self._lay_out(self.vae.encoder)
        video = torch.tensor(pixels, device=self.placement.device).permute(3, 0, 1, 2)[None]
        video = (video.float() / 127.5 - 1).to(self.dtype)
        return self.statistics.normalised(self.vae.encode(video).latent_dist.mode().float())

    @torch.inference_mode()
    def _read(self, ids: NDArray[np.int64]) -> Tensor:
        return self.text_encoder(torch.tensor(ids, device=self.placement.device))[0].clone()

    @torch.inference_mode()
    def _flow(self, call: Call) -> Tensor:
        with self.loras.wearing(call.loras):
            assert self.parts.stepping
            return self.parts.stepping.flow(call).float()

    @torch.inference_mode()
    def upsample(self, latents: Tensor, recipe: Recipe) -> Tensor:
        small = self.statistics.denormalised(
            unpack(latents, *self.latent_shape(recipe.first().shape))
        )
        large = self.upsampler(small.to(self.dtype)).float()
        axes = (2, 3, 4)
        deviation, mean = torch.std_mean(large, axes, keepdim=True)
        wanted, centre = torch.std_mean(small, axes, keepdim=True)
        return pack(self.statistics.normalised((large - mean) / deviation * wanted + centre))

    @contextmanager
    def stopping(self, wanted: Callable[[], bool]) -> Iterator[None]:
        def ask(*_: object) -> None:
            if not wanted():
                raise Cancelled("The clip was cancelled.")

        # Before each step and each block: a step that is replayed runs none.
        parts = (self.transformer.proj_in, *self.transformer.transformer_blocks)
        hooks = [part.register_forward_pre_hook(ask) for part in parts]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def decode(
        self, latents: Tensor, recipe: Recipe, is_planar: bool = False
    ) -> Iterator[Pixels | Planes]:
        self._lay_out(self.vae.decoder)
        yield from _without_gradients(self._decode(latents, recipe, is_planar))

    @torch.inference_mode(False)
    def _lay_out(self, half: nn.Module) -> None:
        """Give a half of the VAE the layout that spares the norms over channels a copy.

        Once: what is never used keeps being pages of its file, which cost no memory of their own.
        """
        if self.placement.device != "mps":
            half.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def _decode(
        self, latents: Tensor, recipe: Recipe, is_planar: bool
    ) -> Iterator[Pixels | Planes]:
        generator = torch.Generator().manual_seed(recipe.seed)
        video = self._clean(latents, recipe, self._drawing(generator))
        timestep = None
        if self.is_timed:
            timestep = torch.full((1,), self.card.decode_timestep, device=video.device)
            timestep = timestep.to(self.dtype)
        chunks = video.to(self.dtype).split(1, dim=2)
        ahead = 1 if video.is_cuda else 0  # so a GPU goes on while whoever wants these encodes them
        lay_out = as_planes if is_planar and video.is_cuda else as_pixels
        leaving: deque[Leaving] = deque()
        for frames in vae_decoder.decode(self.vae.decoder, chunks, timestep, generator):
            shown = frames[0, :, :, recipe.shape.rows, recipe.shape.columns]
            leaving.append(Leaving(shown, lay_out))
            if len(leaving) > ahead:
                yield leaving.popleft().arrived()
        for last in leaving:
            yield last.arrived()


def begin(card: ModelCard, files: Files, placement: Placement) -> LtxEngine:
    """With nothing read yet."""
    return LtxEngine(card, projection(files), parts=Parts(files, placement))


def _without_gradients(steps: Iterator[Value]) -> Iterator[Value]:
    """Advance a generator inside inference mode, and leave the mode between its values.

    A mode that stays on across a `yield` would leak into the caller.
    """
    while True:
        with torch.inference_mode():
            try:
                value = next(steps)
            except StopIteration:
                return
        yield value
