"""Weights that are where a model computes only while they are used: for models larger than that."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from filmlet.engine.placement import Placement, free_memory
from filmlet.engine.torch.dtype import torch_dtype

# What a layer's `weight_merge` makes of its weight in float32, in the dtype that is computed in.
WeightMerge = Callable[[Tensor, torch.dtype], Tensor]
RESIDENT_SHARE = 0.5  # of the memory that is free when a model begins to run


def offload_blocks(
    blocks: Iterable[nn.Module], placement: Placement, *, is_ahead: bool, keeps_some: bool = False
) -> None:
    """Give each block its weights, on the device and in the dtype it computes in, while it runs.

    is_ahead: the next block's come meanwhile, so two are lent at once. Between its runs a block's
    are as they were: in the file's dtype, on the CPU they are pages of the file, which the system
    may drop and read again. Those in 8 bits are multiplied by their layer's `weight_scale`, and
    LoRAs are merged into them by its `weight_merge`.
    keeps_some: of a model that runs many times, as many blocks as half of the free memory holds
    keep theirs; a cache of the latest would hit none, for they run in a row.
    """
    lender = BlockOffloader(list(blocks), placement, is_ahead, keeps_some)
    for number, block in enumerate(lender.blocks):
        block.register_forward_pre_hook(partial(lender.pre_forward, number))
        block.register_forward_hook(lender.post_forward)


@dataclass(frozen=True, eq=False)
class OnloadedBlock:
    """The weights of one block, where it computes. source_weights: what they were made from.

    merges: of LoRAs into them. ready: when they are there, of a GPU.
    """

    number: int
    source_weights: list[Tensor]
    device_weights: list[Tensor]
    merges: list[WeightMerge | None]
    ready: torch.cuda.Event | None = None

    @property
    def bytes(self) -> int:
        """Return what it takes where it computes."""
        return sum(weight.nbytes for weight in self.device_weights)

    def is_from(self, block: nn.Module) -> bool:
        """Return whether the block's weights and LoRAs are still those that these were made of."""
        merges = zip(self.merges, _weight_merges(block), strict=True)
        return _are_same(self.source_weights, _block_weights(block)) and all(
            ours is theirs for ours, theirs in merges
        )


class BlockOffloader:
    """Blocks that run one after the other, over and over; it may be one ahead of them."""

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        placement: Placement,
        is_ahead: bool,
        keeps_some: bool = False,
    ) -> None:
        self.blocks, self.placement, self.is_ahead = blocks, placement, is_ahead
        self.keeps_some = keeps_some
        self.resident: dict[int, OnloadedBlock] = {}
        self.room: float | None = None  # bytes that further resident blocks may take
        self.thread = ThreadPoolExecutor(1, "lender")
        self.coming: Future[OnloadedBlock] | None = None
        self.kept: list[tuple[nn.Parameter, Tensor]] = []
        is_cuda = placement.device.startswith("cuda")
        self.stream = torch.cuda.Stream(placement.device) if is_cuda else None

    def pre_forward(self, number: int, block: nn.Module, _: object) -> None:
        """Before a block runs; a run that was stopped has left its loan behind."""
        self.post_forward()
        loan = self._take_prefetched(number, block)
        with torch.inference_mode(False):
            for weight, tensor in zip(block.parameters(), loan.device_weights, strict=True):
                self.kept.append((weight, weight.data))
                weight.data = tensor
        following = (number + 1) % len(self.blocks)
        if self.is_ahead and following not in self.resident:
            self.coming = self.thread.submit(self._onload, following)

    def post_forward(self, *_: object) -> None:
        """Take everything back."""
        with torch.inference_mode(False):
            for weight, source in self.kept:
                weight.data = source
        self.kept.clear()

    def _take_prefetched(self, number: int, block: nn.Module) -> OnloadedBlock:
        """Return the prefetched weights; fetch them if another block came or they changed."""
        coming, self.coming = self.coming, None
        loan = self.resident.get(number) or (coming.result() if coming else self._onload(number))
        if loan.number != number or not loan.is_from(block):
            self._release(number)
            loan = self._onload(number)
        elif number not in self.resident:
            loan = self._keep(loan)
        if loan.ready:
            stream = torch.cuda.current_stream(self.placement.device)
            stream.wait_event(loan.ready)
            for tensor in loan.device_weights:
                tensor.record_stream(stream)
        return loan

    def _keep(self, loan: OnloadedBlock) -> OnloadedBlock:
        """Keep a block's weights for its next run, if there is room for them."""
        if not self.keeps_some:
            return loan
        if self.room is None:
            self.room = free_memory(self.placement.device) * RESIDENT_SHARE
        if loan.bytes > self.room:
            return loan
        self.room -= loan.bytes
        with torch.inference_mode(False):
            # What is still a page of the file is copied: the system would drop it.
            owned = [
                weight.clone() if weight.data_ptr() == source.data_ptr() else weight
                for weight, source in zip(loan.device_weights, loan.source_weights, strict=True)
            ]
        self.resident[loan.number] = replace(loan, device_weights=owned)
        return self.resident[loan.number]

    def _release(self, number: int) -> None:
        """Forget a resident block whose weights are others by now."""
        stale = self.resident.pop(number, None)
        if stale and self.room is not None:
            self.room += stale.bytes

    def _onload(self, number: int) -> OnloadedBlock:
        block, dtype = self.blocks[number], torch_dtype(self.placement)
        weights, merges = _block_weights(block), _weight_merges(block)
        with torch.inference_mode(False), torch.cuda.stream(self.stream):
            # As they are in the file, and cast there: it may be half the way.
            copies = (weight.to(self.placement.device, non_blocking=True) for weight in weights)
            lent = [
                merge(widen(weight, torch.float32, scale), dtype)
                if merge
                else widen(weight, dtype, scale)
                for weight, scale, merge in zip(copies, _weight_scales(block), merges, strict=True)
            ]
            ready = self.stream.record_event() if self.stream else None
        return OnloadedBlock(number, weights, lent, merges, ready)


def _block_weights(block: nn.Module) -> list[Tensor]:
    with torch.inference_mode(False):
        return [weight.data for weight in block.parameters()]


def widen(weight: Tensor, dtype: torch.dtype, scale: float) -> Tensor:
    """A weight in the dtype that is computed in; scale: of one in 8 bits, rounded once."""
    return weight.to(dtype) if weight.itemsize > 1 or scale == 1 else weight.to(dtype).mul_(scale)


def _weight_scales(block: nn.Module) -> list[float]:
    """What each of a block's weights is to be multiplied by while it is in 8 bits."""
    return [
        getattr(layer, "weight_scale", 1.0) if name == "weight" else 1.0
        for layer in block.modules()
        for name, _ in layer.named_parameters(recurse=False)
    ]


def _weight_merges(block: nn.Module) -> list[WeightMerge | None]:
    """What merges LoRAs into each of a block's weights, None for most."""
    return [
        getattr(layer, "weight_merge", None) if name == "weight" else None
        for layer in block.modules()
        for name, _ in layer.named_parameters(recurse=False)
    ]


def _are_same(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Return whether they are the same memory, unchanged since."""
    return [tensor.data_ptr() for tensor in some] == [tensor.data_ptr() for tensor in others]
