"""Decoded frames on their way out: laid out where they were made, then copied to main memory."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from filmlet.core.events import Pixels, YuvPlanes
from filmlet.errors import NonFiniteValues

# ITU-R BT.709-6, section 3: what red, green and blue add to the light; the range of television.
LUMA_WEIGHTS = (0.2126, 0.7152, 0.0722)
LUMA_OFFSET, LUMA_SCALE = 16.0, 219.0
CHROMA_OFFSET, CHROMA_SCALE = 128.0, 112.0
BYTE = 255.0


class FrameTransfer:
    """Frames on their way to main memory: (3, frames, height, width) in [-1, 1]."""

    def __init__(self, frames: Tensor, lay_out: Callable[[Tensor], Tensor]) -> None:
        is_finite, is_cuda = torch.isfinite(frames).all(), frames.is_cuda  # Metal would not wait
        self.frames, self.is_finite = (
            tensor.to("cpu", non_blocking=is_cuda) for tensor in (lay_out(frames), is_finite)
        )
        self.event = torch.cuda.current_stream(frames.device).record_event() if is_cuda else None

    def result(self) -> Pixels | YuvPlanes:
        """Return the frames in their layout. Raises NonFiniteValues."""
        if self.event:
            self.event.synchronize()
        if not self.is_finite:
            raise NonFiniteValues("The VAE decoder gave values that are not numbers.")
        return self.frames.numpy()


def to_rgb(frames: Tensor) -> Tensor:
    """(3, frames, height, width) in [-1, 1] as Pixels."""
    return _to_bytes(frames.float().add(1).mul_(BYTE / 2)).permute(1, 2, 3, 0).contiguous()


def to_yuv420(frames: Tensor) -> Tensor:
    """Convert (3, frames, height, width) in [-1, 1], of even sides: half the bytes of pixels."""
    red, green, blue = _to_bytes(frames.float().add(1).mul_(BYTE / 2)).float().div_(BYTE)
    light = LUMA_WEIGHTS[0] * red + LUMA_WEIGHTS[1] * green + LUMA_WEIGHTS[2] * blue
    bluish, reddish = (
        (channel - light) / (1 - share)
        for channel, share in ((blue, LUMA_WEIGHTS[2]), (red, LUMA_WEIGHTS[0]))
    )
    colour = F.avg_pool2d(torch.stack([bluish, reddish], 1), 2) * CHROMA_SCALE + CHROMA_OFFSET
    count, _, width = light.shape
    planes = [
        _to_bytes(light * LUMA_SCALE + LUMA_OFFSET),
        _to_bytes(colour).reshape(count, -1, width),
    ]
    return torch.cat(planes, 1)


def _to_bytes(values: Tensor) -> Tensor:
    return values.round_().clamp_(0, BYTE).to(torch.uint8)
