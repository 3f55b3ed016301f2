"""Matrix products in 8 bits, of GPUs that have them: quicker, and lossy.

Weights are rounded once, with a scale for each row; what comes in is rounded as it comes, with a
scale for each token. The sums are in more bits. Norms, attention, modulation and the first and
last layers stay as they are.
"""

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import ScalingType

DTYPE = torch.float8_e4m3fn
LARGEST = torch.finfo(DTYPE).max
TINY = 1e-12  # of a scale: a row of zeros has none
MULTIPLE = 16  # that the sides of a product must be


class FP8Linear(nn.Module):
    """A linear layer that multiplies in 8 bits; takes and gives what the layer did.

    weight: (out, in); scale: (out, 1).
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> Self:
        """Return the same layer, its weights rounded."""
        weight, scale = quantize_rows(linear.weight.detach())
        return cls(weight, scale, None if linear.bias is None else linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        rows, scale = quantize_rows(x.flatten(0, -2))
        product: Tensor = F.scaled_mm(
            rows,
            self.weight.t(),
            scale,
            ScalingType.RowWise,
            self.scale.t(),
            ScalingType.RowWise,
            bias=self.bias,
            output_dtype=x.dtype,
        )
        return product.unflatten(0, x.shape[:-1])


def quantize_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, columns) in 8 bits, and what they are to be multiplied by, (rows, 1).

    Clamped before the cast, which makes what is out of range no number.
    """
    scale = rows.abs().amax(1, keepdim=True).float().div_(LARGEST).clamp_min_(TINY)
    return (rows / scale).clamp_(-LARGEST, LARGEST).to(DTYPE), scale


def quantize_linears(blocks: nn.Module) -> None:
    """Put every linear layer of the blocks into 8 bits, one after the other."""
    for module in list(blocks.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, nn.Linear) and not any(n % MULTIPLE for n in layer.weight.shape):
                setattr(module, name, FP8Linear.from_linear(layer))


def why_not_fp8(device: str) -> str | None:
    """Why not on this device."""
    if not device.startswith("cuda"):
        return "multiplication in 8 bits needs a GPU"
    if torch.cuda.get_device_capability(device) < (8, 9):
        return f"{torch.cuda.get_device_name(device)} does not multiply in 8 bits"
    return None
