"""How frames are shared out among the pieces that go through a decoder."""

import pytest

from filmlet.engine.streaming import ChunkSize, _even_chunks


@pytest.mark.parametrize("lag", [0, 3, 9])
@pytest.mark.parametrize("last", [True, False])
def test_pieces_are_all_frames_and_each_gives_about_as_many(lag: int, last: bool) -> None:
    for count in range(1, 100):
        pieces = list(_even_chunks(count, ChunkSize(8, lag), last))
        assert [start for start, _ in pieces[1:]] == [stop for _, stop in pieces[:-1]]
        assert (pieces[0][0], pieces[-1][1]) == (0, count)
        given = [stop - start for start, stop in pieces]
        assert min(given) >= 1
        assert max(given) <= 8 * 1.5 + lag / len(pieces)
        if last:
            given[-1] += lag
        if count > lag:
            assert max(given) - min(given) <= lag / 2 + 1


def test_flush_without_frames_is_one_piece() -> None:
    assert list(_even_chunks(0, ChunkSize(8, 3), last=True)) == [(0, 0)]
