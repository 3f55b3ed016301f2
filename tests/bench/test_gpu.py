"""The measurement of GPUs: at a tiny size on the CPU, all of it; and what stops or fails in it."""

import json
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu.__main__ import NAME, report, write_results
from bench.gpu.items import list_items
from bench.gpu.measure import Figure, Limits, Side, measure_sides
from bench.gpu.models import RandomModel
from bench.gpu.session import Item, ItemStatus, Measurement, NotApplicableError, Session
from bench.gpu.sizes import LTX_2_3, LTX_2B, LTX_13B, SIZES_AT_FULL, TINY_SIZES, ModelSize
from filmlet.engine.placement import Placement
from filmlet.models.registry import get_card

pytestmark = pytest.mark.compile

ROOT = Path(__file__).parent.parent.parent
# A machine with a GPU may have torch, transformers and diffusers, and none of these.
ABSENT = ("av", "fastapi", "gradio", "openvino", "pillow_heif", "rich", "sqlalchemy")
RUN = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({ABSENT!r}))
runpy.run_module("bench.gpu", run_name="__main__")
"""
ABOUT = dict.fromkeys(("date", "device", "dtype", "python", "versions", "budget", "sizes"), "-")
TRANSFORMER_PARAMETERS = {
    LTX_2B.name: 1_923_385_472,
    LTX_13B.name: 13_042_569_344,
    LTX_2_3.name: 18_988_838_144,
}
CPU = Placement("cpu", "float32", "a test")


def make_session(budget_s: float = 60.0, patience: float = 3.0) -> Session:
    return Session(CPU, time.monotonic(), budget_s, runs=1, patience=patience)


def make_item(name: str, expected_s: float = 0.0, error: Exception | None = None) -> Item:
    def measure(_: Session) -> Measurement:
        if error:
            raise error
        return Measurement([Figure("diffusers", 2.0, 1.0, 3.0, 4.0, 0.5, 1.0)])

    return Item(name, expected_s, measure)


def make_slow_item(expected_s: float) -> Item:
    def measure(_: Session) -> Measurement:
        time.sleep(60)
        return Measurement()

    return Item("slow", expected_s, measure)


def run_items(session: Session, items: Iterable[Item], folder: Path) -> list[dict[str, Any]]:
    write_results(session.run(list(items)), ABOUT, folder)
    found: list[dict[str, Any]] = json.loads((folder / f"{NAME}.json").read_text())["items"]
    return found


@pytest.mark.compile
def test_tiny_run_measures_every_item_with_few_libraries(tmp_path: Path) -> None:
    arguments = ("--tiny", "--runs", "1", "--budget", "3000", "--out", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

    items = json.loads((tmp_path / f"{NAME}.json").read_text())["items"]
    page = (tmp_path / f"{NAME}.md").read_text()
    assert [item["name"] for item in items] == [item.name for item in list_items(TINY_SIZES)]
    others = {i["name"]: i["reason"] for i in items if i["status"] != ItemStatus.MEASURED}
    assert others == {"tiny LTX-Video, CUDA graph at 64x32x9": "CUDA graphs need a GPU"}
    assert "Tiny models: no figure of this page says anything" in page
    for item in items:
        figures = item["found"]["figures"]
        assert figures or item["found"]["text"] or item["name"] in others
        assert all(figure["seconds"] > 0 and figure["first_s"] > 0 for figure in figures)
        assert not figures or figures[0]["gain"] == 1
        assert f"## {item['name'][0].upper()}{item['name'][1:]}\n" in page
        assert all(f"| {figure['name']} | " in page for figure in figures)
    clip = next(item for item in items if "LTX-2, clip" in item["name"])
    assert [figure["name"] for figure in clip["found"]["figures"]] == ["diffusers", "filmlet"]
    assert all(figure["least_s"] > 0 for figure in clip["found"]["figures"])


def test_item_that_raises_is_reported_and_the_rest_go_on(tmp_path: Path) -> None:
    bad = make_item("bad", error=RuntimeError("out of memory\nand much more"))
    absent = make_item("absent", error=NotApplicableError("it needs a GPU"))
    items = run_items(make_session(), [make_item("a"), bad, absent, make_item("b")], tmp_path)
    assert [item["status"] for item in items] == ["measured", "failed", "skipped", "measured"]
    page = (tmp_path / f"{NAME}.md").read_text()
    assert "## Bad\n\nNot measured (failed: RuntimeError: out of memory).\n" in page
    assert "## Absent\n\nNot measured (skipped: it needs a GPU).\n" in page
    assert page.count("| diffusers | 2000.0 | 1.00 | 50% | 4.00 | 0.50 | 3.0 |") == 2


def test_item_that_has_no_time_left_is_skipped_and_a_shorter_one_is_not(tmp_path: Path) -> None:
    items = run_items(make_session(5.0), [make_item("long", 100.0), make_item("short")], tmp_path)
    assert [item["status"] for item in items] == ["skipped", "measured"]
    assert items[0]["reason"].endswith("s left, it takes 100")


@pytest.mark.parametrize(("budget_s", "following"), [(60.0, "measured"), (0.3, "skipped")])
def test_item_that_does_not_end_is_stopped(tmp_path: Path, budget_s: float, following: str) -> None:
    items = run_items(
        make_session(budget_s, patience=5.0), [make_slow_item(0.1), make_item("next")], tmp_path
    )
    assert items[0]["status"] == "failed"
    assert "stopped after 0." in items[0]["reason"]
    assert items[0]["took_s"] < 20
    assert items[1]["status"] == following


def test_run_that_is_cut_short_leaves_what_it_has(tmp_path: Path) -> None:
    def cut(session: Session) -> Iterable[Any]:
        yield next(iter(session.run([make_item("first"), make_item("second")])))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_results(cut(make_session()), ABOUT, tmp_path)
    items = json.loads((tmp_path / f"{NAME}.json").read_text())["items"]
    assert [item["status"] for item in items] == ["measured", "waiting"]
    assert "## Second\n\nNot measured (waiting).\n" in (tmp_path / f"{NAME}.md").read_text()
    assert not [*tmp_path.glob("*.part")]


def test_limit_is_that_of_products_or_of_weights() -> None:
    limits = Limits(flops=100.0, memory_bytes_s=10.0, upload_bytes_s=1.0)
    assert limits.least_s(flop=1000.0, weight_bytes=20.0) == 10.0
    assert limits.least_s(flop=1000.0, weight_bytes=200.0) == 20.0


def test_gain_is_over_the_first_side_and_its_work_is_counted() -> None:
    matrix = torch.randn(64, 64)
    limits = Limits(flops=1e9, memory_bytes_s=1e9, upload_bytes_s=1e9)
    slow, fast = measure_sides(
        [Side("slow", lambda: (matrix @ matrix, time.sleep(0.2))), Side("fast", lambda: matrix)],
        CPU, limits, runs=2,
    )  # fmt: skip
    assert slow.gain == 1
    assert fast.gain > 2
    assert slow.least_s == fast.least_s == 2 * 64**3 / 1e9


def test_report_does_not_warn_of_true_sizes() -> None:
    assert "Tiny" not in report(ABOUT, [])
    assert "Tiny" in report(ABOUT | {"sizes": "tiny"}, [])


@pytest.mark.parametrize("size", SIZES_AT_FULL, ids=lambda size: size.name)
def test_full_sizes_are_those_of_the_published_models(size: ModelSize) -> None:
    model, card = RandomModel(size, Placement("meta", "bfloat16", "a test")), get_card(size.card)
    counts = {
        name: sum(weight.numel() for weight in model.part(name).parameters())
        for name in size.configs
    }
    assert counts["transformer"] == TRANSFORMER_PARAMETERS[size.name]
    assert counts["vae"] == pytest.approx(card.parameters.vae, rel=0.01)
    assert counts["text_encoder"] == pytest.approx(card.parameters.text_encoder, rel=0.01)
