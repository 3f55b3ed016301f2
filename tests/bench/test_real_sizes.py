"""The measurement of a model of 2 billion parameters, at a tiny size."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openvino")
from bench.real_sizes import SIDES, TINY, compare, make_files, measure

pytestmark = pytest.mark.compile


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sizes")
    make_files(folder, TINY)
    return folder


@pytest.mark.parametrize("part", ["transformer", "text_encoder", "decoder"])
def test_sides_compute_the_same(folder: Path, part: str) -> None:
    results = {}
    for side in SIDES:
        figures = measure(side, part, folder, TINY, calls=2)
        assert figures["peak_mb"] >= figures["load_mb"] > 0
        assert figures["call_s"] > 0
        results[side] = np.load(folder / f"{part}-{side}.npy").astype(float)
    stock, torch_side, fast = results.values()
    assert stock.std() > 0.1
    if part == "decoder":  # stock decodes other noise
        assert torch_side.shape == fast.shape == (TINY.frames, TINY.height, TINY.width, 3)
        assert np.abs(fast - torch_side).max() <= 1
        return
    assert np.allclose(torch_side, stock, atol=1e-3)
    error = np.linalg.norm(fast - stock) / np.linalg.norm(stock)
    assert (1e-3 < error < 0.1) if part == "transformer" else error < 1e-4
    assert "dB" in compare(part, "openvino", folder)
