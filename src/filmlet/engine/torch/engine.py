"""The torch engine: diffusers' modules for one checkpoint, held in memory and ready to run."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
from diffusers.models import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel
from diffusers.pipelines.ltx.modeling_latent_upsampler import LTXLatentUpsamplerModel
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import T5EncoderModel

from filmlet.core.events import PixelFormat, Pixels, PixelValues, YuvPlanes
from filmlet.core.model_card import ComponentFiles, ModelCard
from filmlet.engine.arrays import Tensors, pack_latents, unpack_latents
from filmlet.engine.base import DenoiseParams, Engine, LatentStats, TransformerInputs
from filmlet.engine.conditioning import NoiseFn
from filmlet.engine.latents import Latents
from filmlet.engine.placement import Placement
from filmlet.engine.state_dict import load_latent_rgb_factors
from filmlet.engine.torch import vae_decoder
from filmlet.engine.torch.components import ModelComponents
from filmlet.engine.torch.dtype import torch_dtype
from filmlet.engine.torch.frame_transfer import FrameTransfer, to_rgb, to_yuv420
from filmlet.engine.torch.lora import FusedLoras
from filmlet.engine.torch.transformer import CachedTransformer
from filmlet.errors import Cancelled

Value = TypeVar("Value")
COMPONENT_OF = {"encoder": "vae", "decoder": "vae"}  # the part that does it


@dataclass(frozen=True, eq=False)
class TorchEngine(Engine):
    """One checkpoint in torch; every method runs without gradients."""

    components: ModelComponents = field(kw_only=True)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype that it computes in."""
        return torch_dtype(self.placement)

    @property
    def text_encoder(self) -> T5EncoderModel:
        return self.components.get("text_encoder")

    @property
    def transformer(self) -> LTXVideoTransformer3DModel:
        return self.components.get("transformer")

    @property
    def vae(self) -> AutoencoderKLLTXVideo:
        return self.components.get("vae")

    @property
    def upsampler(self) -> LTXLatentUpsamplerModel:
        return self.components.get("upsampler")

    @property
    def loras(self) -> FusedLoras:
        """LoRAs that are fused into the transformer."""
        self.components.get("transformer")
        assert self.components.fused_loras
        return self.components.fused_loras

    @property
    def statistics(self) -> LatentStats:
        mean, deviation = (
            t.view(1, -1, 1, 1, 1).float() for t in (self.vae.latents_mean, self.vae.latents_std)
        )
        return LatentStats(mean, deviation, self.vae.config.scaling_factor)

    def bytes_to_load(self, *names: str) -> int:
        return self.components.bytes_to_load(*names)

    def load_components(self, *names: str) -> Iterator[int]:
        return self.components.load(*(COMPONENT_OF.get(name, name) for name in names))

    def noise_source(self, seed: int) -> NoiseFn:
        return self._noise_from(torch.Generator().manual_seed(seed))

    def _noise_from(self, generator: torch.Generator) -> NoiseFn:
        def draw(*size: int) -> Tensor:
            return torch.randn(size, generator=generator).to(self.placement.device)

        return draw

    def to_device(self, tensors: Tensors) -> Tensors:
        device = self.placement.device
        return {name: torch.as_tensor(tensor, device=device) for name, tensor in tensors.items()}

    @torch.inference_mode()
    def encode_frames(self, pixels: PixelValues) -> Tensor:
        self._to_channels_last(self.vae.encoder)
        video = torch.tensor(pixels, device=self.placement.device).permute(3, 0, 1, 2)[None]
        video = (video.float() / 127.5 - 1).to(self.dtype)
        return self.statistics.normalize(self.vae.encode(video).latent_dist.mode().float())

    @torch.inference_mode()
    def _encode_ids(self, ids: NDArray[np.int64]) -> Tensor:
        return self.text_encoder(torch.tensor(ids, device=self.placement.device))[0].clone()

    @torch.inference_mode()
    def _predict_velocity(self, call: TransformerInputs) -> Tensor:
        with self.loras.ensure_fused(call.loras):
            runner = self.components.cached_transformer
            assert isinstance(runner, CachedTransformer)
            return runner.predict_velocity(call).float()

    @torch.inference_mode()
    def upsample(self, latents: Latents, params: DenoiseParams) -> Latents:
        small = self.statistics.denormalize(
            unpack_latents(latents.video, *self.latent_shape(params.first_stage().shape))
        )
        large = self.upsampler(small.to(self.dtype)).float()
        axes = (2, 3, 4)
        deviation, mean = torch.std_mean(large, axes, keepdim=True)
        target_std, centre = torch.std_mean(small, axes, keepdim=True)
        larger = self.statistics.normalize((large - mean) / deviation * target_std + centre)
        return replace(latents, video=pack_latents(larger))

    @contextmanager
    def cancel_when(self, is_cancelled: Callable[[], bool]) -> Iterator[None]:
        # Before each step and each block: a step that is replayed runs none.
        parts = (self.transformer.proj_in, *self.transformer.transformer_blocks)
        loras = self.loras
        with raise_when_cancelled(parts, is_cancelled) as check:
            loras.cancel_checks.append(check)
            try:
                yield
            finally:
                loras.cancel_checks.remove(check)

    def decode(
        self,
        latents: Latents,
        params: DenoiseParams,
        pixel_format: PixelFormat = PixelFormat.RGB24,
    ) -> Iterator[Pixels | YuvPlanes]:
        self._to_channels_last(self.vae.decoder)
        yield from _in_inference_mode(self._decode(latents, params, pixel_format))

    @torch.inference_mode(False)
    def _to_channels_last(self, half: nn.Module) -> None:
        """Give a half of the VAE the layout that spares the norms over channels a copy.

        Once: what is never used keeps being pages of its file, which cost no memory of their own.
        """
        if self.placement.device != "mps":
            half.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def _decode(
        self, latents: Latents, params: DenoiseParams, pixel_format: PixelFormat
    ) -> Iterator[Pixels | YuvPlanes]:
        generator = torch.Generator().manual_seed(params.seed)
        video = self._latents_for_decoder(latents, params, self._noise_from(generator))
        timestep = None
        if self.has_timestep_conditioning:
            timestep = torch.full((1,), self.card.decode_timestep, device=video.device)
            timestep = timestep.to(self.dtype)
        chunks = video.to(self.dtype).split(1, dim=2)
        ahead = 1 if video.is_cuda else 0  # so a GPU goes on while whoever wants these encodes them
        is_yuv = video.is_cuda and pixel_format is PixelFormat.YUV420P
        lay_out = to_yuv420 if is_yuv else to_rgb
        leaving: deque[FrameTransfer] = deque()
        for frames in vae_decoder.decode(self.vae.decoder, chunks, timestep, generator):
            shown = frames[0, :, :, params.shape.crop_rows, params.shape.crop_columns]
            leaving.append(FrameTransfer(shown, lay_out))
            if len(leaving) > ahead:
                yield leaving.popleft().result()
        for last in leaving:
            yield last.result()


@contextmanager
def raise_when_cancelled(
    modules: Iterable[nn.Module], is_cancelled: Callable[[], bool]
) -> Iterator[Callable[..., None]]:
    """Ask before each of the modules runs; yields the question, which raises Cancelled."""

    def check(*_: object) -> None:
        if is_cancelled():
            raise Cancelled("The clip was cancelled.")

    hooks = [module.register_forward_pre_hook(check) for module in modules]
    try:
        yield check
    finally:
        for hook in hooks:
            hook.remove()


def create_engine(card: ModelCard, files: ComponentFiles, placement: Placement) -> TorchEngine:
    """Return the engine of a checkpoint, with nothing read yet."""
    components, factors = ModelComponents(files, placement), load_latent_rgb_factors(files)
    return TorchEngine(card, files, placement, factors, components=components)


def _in_inference_mode(steps: Iterator[Value]) -> Iterator[Value]:
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
