"""Weights that are where a model computes only while they are used: for models larger than that."""

import torch
from torch import Tensor, nn

from filmlet.engine.placement import Placement
from filmlet.engine.probing import dtype_of


def lend(blocks: nn.Module, placement: Placement) -> None:
    """Give each block its weights, on the device and in the dtype it computes in, while it runs.

    Between its runs they are as they were: in the file's dtype, on the CPU they are pages of the
    file, which the system may drop and read again.
    """
    for block in blocks.children():
        loan = Loan(placement)
        block.register_forward_pre_hook(loan.begin)
        block.register_forward_hook(loan.end)


class Loan:
    """What one block has borrowed."""

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self.kept: list[tuple[nn.Parameter, Tensor]] = []

    def begin(self, block: nn.Module, _: object) -> None:
        """Before the block runs; a run that was stopped has left its loan behind."""
        self.end(block)
        with torch.inference_mode(False):
            for weight in block.parameters():
                self.kept.append((weight, weight.data))
                weight.data = weight.data.to(self.placement.device, dtype_of(self.placement))

    def end(self, *_: object) -> None:
        """Give everything back."""
        with torch.inference_mode(False):
            for weight, own in self.kept:
                weight.data = own
        self.kept.clear()
