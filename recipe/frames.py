"""The VAE on single frames with 2D convolutions: the same function at a third of the cost.

A video of one frame is repeated in time wherever a convolution of the VAE looks beyond it, so each
kernel acts as the sum over its times, and of the frames that upsampling makes only one is kept.
"""

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLLTXVideo
from diffusers.models.autoencoders.autoencoder_kl_ltx import (
    LTXVideoCausalConv3d,
    LTXVideoDownsampler3d,
    LTXVideoResnetBlock3d,
    LTXVideoUpsampler3d,
)
from torch import Tensor

NORM_EPS = 1e-8


def can_encode_frames(vae: AutoencoderKLLTXVideo) -> bool:
    """Whether the encoder has the blocks that `encode_frames` knows, those of 0.9.5."""
    downsamplers = [d for block in vae.encoder.down_blocks for d in block.downsamplers or ()]
    return all(isinstance(downsampler, LTXVideoDownsampler3d) for downsampler in downsamplers)


def encode_frames(vae: AutoencoderKLLTXVideo, pixels: Tensor) -> Tensor:
    """Latents (batch, channels, height / 32, width / 32) of pixels (batch, 3, height, width)."""
    encoder = vae.encoder
    # Patches come in the order (colour, column, row).
    x = F.pixel_unshuffle(pixels, encoder.patch_size).unflatten(1, (3, encoder.patch_size, -1))
    x = _convolve(encoder.conv_in, x.transpose(2, 3).flatten(1, 3))

    for block in encoder.down_blocks:
        for resnet in block.resnets:
            x = _apply_resnet(resnet, x)
        for downsampler in block.downsamplers or ():
            x = _downsample(downsampler, x)

    for resnet in encoder.mid_block.resnets:
        x = _apply_resnet(resnet, x)
    return _convolve(encoder.conv_out, _normalise(x))[:, : vae.config.latent_channels]


def decode_frames(vae: AutoencoderKLLTXVideo, latents: Tensor) -> Tensor:
    """Pixels (batch, 3, height, width) of latents (batch, channels, height / 32, width / 32)."""
    decoder = vae.decoder
    x = _convolve(decoder.conv_in, latents)
    for resnet in decoder.mid_block.resnets:
        x = _apply_resnet(resnet, x)

    for block in decoder.up_blocks:
        if block.conv_in is not None:
            x = _apply_resnet(block.conv_in, x)
        for upsampler in block.upsamplers or ():
            x = _upsample(upsampler, x)
        for resnet in block.resnets:
            x = _apply_resnet(resnet, x)

    patches = _convolve(decoder.conv_out, _normalise(x))
    patches = patches.unflatten(1, (3, decoder.patch_size, -1)).transpose(2, 3)
    return F.pixel_shuffle(patches.flatten(1, 3), decoder.patch_size)


def _convolve(conv: LTXVideoCausalConv3d, x: Tensor, rows: slice | Tensor = slice(None)) -> Tensor:
    """rows: of the output channels."""
    weight = conv.conv.weight[rows].sum(2).contiguous(memory_format=torch.channels_last)
    return F.conv2d(x, weight, conv.conv.bias[rows], padding=weight.shape[-1] // 2)


def _normalise(x: Tensor) -> Tensor:
    """RMS norm over the channels, then SiLU."""
    scale = torch.rsqrt(x.float().square().mean(1, keepdim=True) + NORM_EPS)
    return F.silu(x * scale.to(x.dtype))


def _apply_resnet(resnet: LTXVideoResnetBlock3d, x: Tensor) -> Tensor:
    y = _convolve(resnet.conv1, _normalise(x))
    y = _convolve(resnet.conv2, _normalise(y))
    if resnet.norm3 is not None:
        x = resnet.norm3(x.movedim(1, -1)).movedim(-1, 1)
    if resnet.conv_shortcut is not None:
        x = _convolve(resnet.conv_shortcut, x)
    return x + y


def _downsample(downsampler: LTXVideoDownsampler3d, x: Tensor) -> Tensor:
    frames, side, _ = downsampler.stride

    def fold(value: Tensor) -> Tensor:
        folded = F.pixel_unshuffle(value, side).unflatten(1, (value.shape[1], 1, -1))
        return folded.expand(-1, -1, frames, -1, -1, -1).flatten(1, 3)

    residual = fold(x).unflatten(1, (-1, downsampler.group_size)).mean(2)
    return fold(_convolve(downsampler.conv, x)) + residual


def _upsample(upsampler: LTXVideoUpsampler3d, x: Tensor) -> Tensor:
    frames, side, _ = upsampler.stride
    channels = upsampler.conv.out_channels
    rows = torch.arange(channels, device=x.device).view(-1, frames, side * side)[:, -1].flatten()
    y = F.pixel_shuffle(_convolve(upsampler.conv, x, rows), side)
    if not upsampler.residual:
        return y

    kept = x.unflatten(1, (-1, frames, side * side))[:, :, -1].flatten(1, 2)
    residual = F.pixel_shuffle(kept, side)
    return y + residual.repeat(1, y.shape[1] // residual.shape[1], 1, 1)


@torch.no_grad()
def repeat_frames(vae: AutoencoderKLLTXVideo) -> None:
    """Let upsampling repeat the frame that single frames have taught, in place of untrained ones.

    A clip that stands still is then decoded as its frame is: motion is learned from there.
    """
    for block in vae.decoder.up_blocks:
        for upsampler in block.upsamplers or ():
            _repeat_frame(upsampler)


def _repeat_frame(upsampler: LTXVideoUpsampler3d) -> None:
    frames, side, _ = upsampler.stride
    places = side * side
    conv = upsampler.conv.conv
    weight = conv.weight.unflatten(0, (-1, frames, places))  # views: what is written here stays
    bias = conv.bias.unflatten(0, (-1, frames, places))
    weight[:, :-1] = weight[:, -1:]
    bias[:, :-1] = bias[:, -1:]
    if not upsampler.residual:
        return

    # The residual of each frame comes from other channels: add the last's, take away its own.
    outputs, sources = len(weight), conv.in_channels // (frames * places)
    middle = tuple(size // 2 for size in conv.kernel_size)
    for output in range(outputs):
        for frame in range(frames - 1):
            for place in range(places):
                first = output % sources * frames * places + place
                row = weight[output, frame, place]
                row[(first + (frames - 1) * places, *middle)] += 1
                row[(first + frame * places, *middle)] -= 1
