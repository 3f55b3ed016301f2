"""Weights that are where a model computes only while they are used: for models larger than that."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from filmlet.engine.placement import Placement
from filmlet.engine.torch.dtype import dtype_of


def lend(blocks: nn.Module, placement: Placement, is_ahead: bool) -> None:
    """Give each block its weights, on the device and in the dtype it computes in, while it runs.

    is_ahead: the next block's come meanwhile, so two are lent at once. Between its runs a block's
    are as they were: in the file's dtype, on the CPU they are pages of the file, which the system
    may drop and read again.
    """
    lender = Lender(list(blocks.children()), placement, is_ahead)
    for number, block in enumerate(lender.blocks):
        block.register_forward_pre_hook(partial(lender.begin, number))
        block.register_forward_hook(lender.end)


@dataclass(frozen=True, eq=False)
class Loan:
    """The weights of one block, where it computes. own: what they were made from.

    ready: when they are there, of a GPU.
    """

    number: int
    own: list[Tensor]
    lent: list[Tensor]
    ready: torch.cuda.Event | None = None


class Lender:
    """Blocks that run one after the other, over and over; it may be one ahead of them."""

    def __init__(self, blocks: Sequence[nn.Module], placement: Placement, is_ahead: bool) -> None:
        self.blocks, self.placement, self.is_ahead = blocks, placement, is_ahead
        self.thread = ThreadPoolExecutor(1, "lender")
        self.coming: Future[Loan] | None = None
        self.kept: list[tuple[nn.Parameter, Tensor]] = []
        is_cuda = placement.device.startswith("cuda")
        self.stream = torch.cuda.Stream(placement.device) if is_cuda else None

    def begin(self, number: int, block: nn.Module, _: object) -> None:
        """Before a block runs; a run that was stopped has left its loan behind."""
        self.end()
        loan = self._loan(number, block)
        with torch.inference_mode(False):
            for weight, tensor in zip(block.parameters(), loan.lent, strict=True):
                self.kept.append((weight, weight.data))
                weight.data = tensor
        if self.is_ahead:
            self.coming = self.thread.submit(self._fetch, (number + 1) % len(self.blocks))

    def end(self, *_: object) -> None:
        """Take everything back."""
        with torch.inference_mode(False):
            for weight, own in self.kept:
                weight.data = own
        self.kept.clear()

    def _loan(self, number: int, block: nn.Module) -> Loan:
        """What was fetched ahead; anew if another block came first, or its weights are others."""
        coming, self.coming = self.coming, None
        loan = coming.result() if coming else self._fetch(number)
        if loan.number != number or not _are_same(loan.own, _weights(block)):
            loan = self._fetch(number)
        if loan.ready:
            here = torch.cuda.current_stream(self.placement.device)
            here.wait_event(loan.ready)
            for tensor in loan.lent:
                tensor.record_stream(here)
        return loan

    def _fetch(self, number: int) -> Loan:
        own, dtype = _weights(self.blocks[number]), dtype_of(self.placement)
        with torch.inference_mode(False), torch.cuda.stream(self.stream):
            # As they are in the file, and cast there: it may be half the way.
            there = (one.to(self.placement.device, non_blocking=True) for one in own)
            lent = [one.to(dtype) for one in there]
            ready = self.stream.record_event() if self.stream else None
        return Loan(number, own, lent, ready)


def _weights(block: nn.Module) -> list[Tensor]:
    with torch.inference_mode(False):
        return [weight.data for weight in block.parameters()]


def _are_same(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether they are the same memory, which none of them has been changed in."""
    return [one.data_ptr() for one in some] == [one.data_ptr() for one in others]
