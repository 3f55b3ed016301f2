"""Weights that are lent to a block while it runs: the next block's come meanwhile."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from filmlet.engine.placement import Placement
from filmlet.engine.torch.block_offload import RESIDENT_SHARE, BlockOffloader, offload_blocks

IN_FLOAT32 = Placement("cpu", "float32", "a test")
COUNT = 4


class Blocks(nn.Module):
    """A row of layers, kept in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.row = nn.ModuleList(nn.Linear(8, 8) for _ in range(COUNT)).bfloat16()
        self.row.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.row:
            x = layer(x).sin()
        return x


@pytest.fixture
def blocks() -> Blocks:
    return Blocks()


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The numbers of blocks that were fetched."""
    numbers: list[int] = []
    fetch = BlockOffloader._onload

    def noted(lender: BlockOffloader, number: int) -> object:
        numbers.append(number)
        return fetch(lender, number)

    monkeypatch.setattr(BlockOffloader, "_onload", noted)
    return numbers


@torch.inference_mode()
def run(blocks: Blocks) -> Tensor:
    return blocks(torch.linspace(0, 1, 8)[None])


def held(blocks: Blocks) -> Tensor:
    """What it gives with its weights in float32 for good."""
    whole = Blocks()
    whole.load_state_dict(blocks.state_dict())
    return run(whole.float())


def test_each_block_is_fetched_once_a_run_and_ahead(blocks: Blocks, fetched: list[int]) -> None:
    offload_blocks(blocks.row, IN_FLOAT32, is_ahead=True)
    expected = held(blocks)
    for _ in range(3):
        assert torch.equal(run(blocks), expected)
    assert fetched[: 3 * COUNT] == [*range(COUNT)] * 3
    assert len(fetched) <= 3 * COUNT + 1  # one more is on its way


def test_without_going_ahead_no_more_than_one_block_is_lent(
    blocks: Blocks, fetched: list[int]
) -> None:
    offload_blocks(blocks.row, IN_FLOAT32, is_ahead=False)
    expected = held(blocks)
    for _ in range(2):
        assert torch.equal(run(blocks), expected)
    assert fetched == [*range(COUNT)] * 2


def test_between_its_runs_a_block_is_as_it_was(blocks: Blocks) -> None:
    before = {name: (one.data_ptr(), one.dtype) for name, one in blocks.state_dict().items()}
    offload_blocks(blocks.row, IN_FLOAT32, is_ahead=True)
    run(blocks)
    after = {name: (one.data_ptr(), one.dtype) for name, one in blocks.state_dict().items()}
    assert after == before


def test_run_that_was_stopped_leaves_nothing_wrong(blocks: Blocks) -> None:
    offload_blocks(blocks.row, IN_FLOAT32, is_ahead=True)
    expected = held(blocks)

    def stop(*_: object) -> None:
        raise InterruptedError

    hook = blocks.row[2].register_forward_pre_hook(stop)
    with pytest.raises(InterruptedError):
        run(blocks)
    hook.remove()
    assert torch.equal(run(blocks), expected)
    assert {one.dtype for one in blocks.state_dict().values()} == {torch.bfloat16}


def test_weights_that_changed_after_they_were_fetched_are_fetched_anew(blocks: Blocks) -> None:
    offload_blocks(blocks.row, IN_FLOAT32, is_ahead=True)
    first = run(blocks)
    layer = blocks.row[0]  # which is on its way by now
    layer.weight = nn.Parameter(layer.weight + 1, requires_grad=False)
    assert torch.equal(run(blocks), held(blocks))
    assert not torch.allclose(first, held(blocks), atol=1e-2)


@pytest.mark.parametrize("is_ahead", [False, True])
def test_blocks_that_there_is_room_for_are_fetched_once(
    blocks: Blocks, fetched: list[int], monkeypatch: pytest.MonkeyPatch, is_ahead: bool
) -> None:
    size = (8 * 8 + 8) * 4
    monkeypatch.setattr(
        "filmlet.engine.torch.block_offload.free_memory", lambda _: 2.5 * size / RESIDENT_SHARE
    )
    offload_blocks(blocks.row, IN_FLOAT32, is_ahead=is_ahead, keeps_some=True)
    expected = held(blocks)
    for _ in range(3):
        assert torch.equal(run(blocks), expected)
    for kept in (0, 1):
        assert fetched.count(kept) == 1
    for streamed in (2, 3):
        assert fetched.count(streamed) == 3


def test_resident_block_whose_weights_were_replaced_is_fetched_anew(
    blocks: Blocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("filmlet.engine.torch.block_offload.free_memory", lambda _: 10**9)
    offload_blocks(blocks.row, IN_FLOAT32, is_ahead=False, keeps_some=True)
    run(blocks)
    with torch.no_grad():
        blocks.row[1].weight.data = torch.ones(8, 8, dtype=torch.bfloat16)
    expected = held(blocks)
    for _ in range(2):
        assert torch.equal(run(blocks), expected)


def test_what_is_kept_does_not_stay_a_page_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("filmlet.engine.torch.block_offload.free_memory", lambda _: 10**9)
    blocks = Blocks()
    lender = BlockOffloader(list(blocks.row), Placement("cpu", "bfloat16", "a test"), False, True)
    lender.pre_forward(0, blocks.row[0], None)
    sources = [weight.data_ptr() for weight in lender.resident[0].source_weights]
    owned = [weight.data_ptr() for weight in lender.resident[0].device_weights]
    lender.post_forward()
    assert not set(sources) & set(owned)
