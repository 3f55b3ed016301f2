"""Exact decoding in temporal chunks: the VAE decoder of diffusers, run frame by frame.

The decoder sees one frame ahead at each convolution, so no prefix of the latents can simply be cut
off and decoded. Here each convolution keeps the last frames it has seen, each residual waits for
the convolutions beside it, and the end is flushed with the last frame repeated, as the whole
decoder pads it. The result equals the one-shot decode; memory does not grow with the clip.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

import torch
from diffusers.models.autoencoders.autoencoder_kl_ltx import (
    LTXVideoCausalConv3d,
    LTXVideoDecoder3d,
    LTXVideoMidBlock3d,
    LTXVideoResnetBlock3d,
    LTXVideoUpBlock3d,
    LTXVideoUpsampler3d,
)
from diffusers.models.autoencoders.autoencoder_kl_ltx2 import (
    LTX2VideoCausalConv3d,
    LTX2VideoDecoder3d,
    LTX2VideoMidBlock3d,
    LTX2VideoResnetBlock3d,
    LTX2VideoUpBlock3d,
    LTX2VideoUpsampler3d,
    PerChannelRMSNorm,
)
from torch import Tensor, nn

from filmlet.engine.streaming import StreamingModule, run_streaming

Embed = Callable[[Tensor], Tensor]
Convolution: TypeAlias = LTXVideoCausalConv3d | LTX2VideoCausalConv3d
Resnet: TypeAlias = LTXVideoResnetBlock3d | LTX2VideoResnetBlock3d
Upsampler: TypeAlias = LTXVideoUpsampler3d | LTX2VideoUpsampler3d
Decoder: TypeAlias = LTXVideoDecoder3d | LTX2VideoDecoder3d


class StreamingConv:
    """A convolution over time that remembers the frames its next output needs.

    Those of LTX-2 do not say whether they are causal: its decoders are not.
    """

    def __init__(self, module: Convolution) -> None:
        self.conv = module.conv
        kernel, is_causal = module.kernel_size[0], getattr(module, "is_causal", False)
        self.before = kernel - 1 if is_causal else (kernel - 1) // 2
        self.after = 0 if is_causal else (kernel - 1) // 2
        self.kernel = kernel
        self.kept: Tensor | None = None

    def push(self, x: Tensor, last: bool) -> Tensor:
        if not x.shape[2] and not last:
            return _no_frames(x, self.conv.out_channels)
        if self.kept is None:
            x = torch.cat([x[:, :, :1]] * self.before + [x], dim=2)
        else:
            x = torch.cat([self.kept, x], dim=2)
        if last:
            x = torch.cat([x] + [x[:, :, -1:]] * self.after, dim=2)
        self.kept = x[:, :, max(0, x.shape[2] - self.kernel + 1) :]
        if x.shape[2] < self.kernel:
            return _no_frames(x, self.conv.out_channels)
        return _convolve(self.conv, x)


class StreamingResnet:
    """Two convolutions and a residual that waits for them."""

    def __init__(
        self, module: Resnet, temb: Tensor | None, generator: torch.Generator | None
    ) -> None:
        self.module = module
        self.first, self.second = StreamingConv(module.conv1), StreamingConv(module.conv2)
        self.waiting: Tensor | None = None
        self.noises: dict[int, Tensor] = {}
        self.generator = generator
        self.modulation: tuple[Tensor, ...] | None = None
        if module.scale_shift_table is not None and temb is not None:
            table = module.scale_shift_table[None, ..., None, None, None]
            self.modulation = (temb.unflatten(1, (4, -1)) + table).unbind(dim=1)

    def push(self, x: Tensor, last: bool) -> Tensor:
        self.waiting = x if self.waiting is None else torch.cat([self.waiting, x], dim=2)
        module = self.module
        y = self.first.push(self._norm_modulate_activate(module.norm1, x, 0), last)
        y = self._add_noise(y, module.per_channel_scale1, 0)
        y = self.second.push(self._norm_modulate_activate(module.norm2, y, 1), last)
        y = self._add_noise(y, module.per_channel_scale2, 1)
        ready = y.shape[2]
        residual, self.waiting = self.waiting[:, :, :ready], self.waiting[:, :, ready:]
        if not ready:
            return y
        if module.norm3 is not None:
            residual = _normalize(module.norm3, residual)
        if module.conv_shortcut is not None:
            residual = module.conv_shortcut(residual)
        return y + residual

    def _norm_modulate_activate(self, norm: Embed, x: Tensor, which: int) -> Tensor:
        x = _normalize(norm, x)
        if self.modulation is not None:
            shift, scale = self.modulation[2 * which : 2 * which + 2]
            x = x * (1 + scale) + shift
        return self.module.nonlinearity(x)

    def _add_noise(self, x: Tensor, scale: Tensor | None, which: int) -> Tensor:
        """Noise of the decoders that add some: one picture of it, the same for every frame."""
        if scale is None:
            return x
        if which not in self.noises:
            self.noises[which] = torch.randn(x.shape[-2:], generator=self.generator).to(x)
        return x + (self.noises[which][None] * scale)[None, :, None]


class StreamingUpsample:
    """A convolution whose channels become frames, rows and columns; drops the first frames."""

    def __init__(self, module: Upsampler) -> None:
        self.module = module
        self.conv = StreamingConv(module.conv)
        self.waiting: Tensor | None = None
        self.surplus = module.stride[0] - 1

    def push(self, x: Tensor, last: bool) -> Tensor:
        self.waiting = x if self.waiting is None else torch.cat([self.waiting, x], dim=2)
        y = self.conv.push(x, last)
        ready = y.shape[2]
        residual, self.waiting = self.waiting[:, :, :ready], self.waiting[:, :, ready:]
        y = self._unfold(y)
        if self.module.residual:
            repeats = y.shape[1] * _volume(self.module.stride) // residual.shape[1]
            y = y + self._unfold(residual).repeat(1, repeats, 1, 1, 1)
        dropped = min(self.surplus, y.shape[2])
        self.surplus -= dropped
        return y[:, :, dropped:]

    def _unfold(self, x: Tensor) -> Tensor:
        batch, channels, frames, height, width = x.shape
        time, rows, columns = self.module.stride
        channels //= _volume(self.module.stride)
        x = x.reshape(batch, channels, time, rows, columns, frames, height, width)
        x = x.permute(0, 1, 5, 2, 6, 3, 7, 4)
        return x.reshape(batch, channels, frames * time, height * rows, width * columns)


class StreamingHead:
    """The decoder's end: norm, modulation, activation, convolution, patches back to pixels."""

    def __init__(self, decoder: Decoder, temb: Tensor | None) -> None:
        self.decoder = decoder
        self.conv = StreamingConv(decoder.conv_out)
        self.modulation: tuple[Tensor, ...] | None = None
        if decoder.time_embedder is not None and temb is not None:
            embedded = _embed(decoder.time_embedder, temb).unflatten(1, (2, -1))
            table = decoder.scale_shift_table[None, ..., None, None, None]
            self.modulation = (embedded + table).unbind(dim=1)

    def push(self, x: Tensor, last: bool) -> Tensor:
        x = _normalize(self.decoder.norm_out, x)
        if self.modulation is not None:
            shift, scale = self.modulation
            x = x * (1 + scale) + shift
        x = self.conv.push(self.decoder.conv_act(x), last)
        return _unpatchify(x, self.decoder.patch_size_t, self.decoder.patch_size)


def _unpatchify(x: Tensor, time: int, side: int) -> Tensor:
    """Channels become frames, rows and columns, as the decoder's end has them."""
    batch, channels, frames, height, width = x.shape
    channels //= time * side * side
    x = x.reshape(batch, channels, time, side, side, frames, height, width)
    x = x.permute(0, 1, 5, 2, 6, 4, 7, 3)
    return x.reshape(batch, channels, frames * time, height * side, width * side)


def decode(
    decoder: Decoder,
    chunks: Iterable[Tensor],
    timestep: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Yield pixels (batch, 3, frames, height, width) in [-1, 1] as soon as they are known.

    chunks: latents (batch, channels, frames, height, width), in order. timestep: (batch,), for
    decoders that take one; generator: of the noise that some decoders add. Joined, the pixels
    equal `decoder(torch.cat(chunks), timestep)`.
    """
    yield from run_streaming(list(streaming_modules(decoder, timestep, generator)), chunks)


def streaming_modules(
    decoder: Decoder, timestep: Tensor | None, generator: torch.Generator | None
) -> Iterator[StreamingModule]:
    """Yield the decoder's modules in the order its forward() runs them."""
    if decoder.timestep_scale_multiplier is not None and timestep is not None:
        timestep = timestep * decoder.timestep_scale_multiplier
    yield StreamingConv(decoder.conv_in)
    for block in (decoder.mid_block, *decoder.up_blocks):
        yield from _block(block, timestep, generator)
    yield StreamingHead(decoder, timestep)


def _block(
    block: LTXVideoMidBlock3d | LTXVideoUpBlock3d | LTX2VideoMidBlock3d | LTX2VideoUpBlock3d,
    timestep: Tensor | None,
    generator: torch.Generator | None,
) -> Iterator[StreamingModule]:
    if getattr(block, "conv_in", None) is not None:
        yield StreamingResnet(block.conv_in, timestep, generator)
    temb = timestep
    if block.time_embedder is not None and timestep is not None:
        temb = _embed(block.time_embedder, timestep)
    for upsampler in getattr(block, "upsamplers", None) or ():
        yield StreamingUpsample(upsampler)
    for resnet in block.resnets:
        yield StreamingResnet(resnet, temb, generator)


def _embed(embedder: torch.nn.Module, timestep: Tensor) -> Tensor:
    """(batch,) -> (batch, channels, 1, 1, 1)."""
    embedded = embedder(
        timestep=timestep.flatten(),
        resolution=None,
        aspect_ratio=None,
        batch_size=timestep.shape[0],
        hidden_dtype=timestep.dtype,
    )
    return embedded.view(timestep.shape[0], -1, 1, 1, 1)


def _convolve(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """Convolve by oneDNN where it is there: left to itself, torch goes slower on pieces."""
    plain = x.is_cpu and x.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    if not plain or isinstance(conv.padding, str) or conv.padding_mode != "zeros":
        result: Tensor = conv(x)
        return result
    return torch.mkldnn_convolution(
        x, conv.weight, conv.bias, conv.padding, conv.stride, conv.dilation, conv.groups
    )


def _normalize(norm: Embed, x: Tensor) -> Tensor:
    """A norm over the channels, which most modules have as the last axis."""
    if isinstance(norm, PerChannelRMSNorm):
        return norm(x)
    return norm(x.movedim(1, -1)).movedim(-1, 1)


def _volume(stride: tuple[int, int, int]) -> int:
    time, rows, columns = stride
    return time * rows * columns


def _no_frames(x: Tensor, channels: int) -> Tensor:
    batch, _, _, height, width = x.shape
    return x.new_zeros(batch, channels, 0, height, width)
