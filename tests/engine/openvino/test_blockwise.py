"""Models that OpenVINO computes block by block, in 8 bits, beside torch's in float32."""

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from filmlet.core import cpu
from filmlet.core.events import drain
from filmlet.core.model_card import ModelCard
from filmlet.core.request import build_request
from filmlet.engine import selection
from filmlet.engine.arrays import to_numpy
from filmlet.engine.base import Engine, PromptEmbeds
from filmlet.engine.placement import Backend, Optimization
from filmlet.engine.sampler import ResumeState
from filmlet.errors import Cancelled, CheckpointCorrupt, NonFiniteValues
from filmlet.models import get_card, local_files
from filmlet.models.tokenizer import load_tokenizer, tokenize
from filmlet.pipeline.placement_fallback import fall_back_to_float32
from filmlet.pipeline.plan import make_plan
from filmlet.settings import Settings
from tests.helpers.clips import prepare_run
from tests.helpers.openvino_fixtures import (
    FLOAT32,
    POCKET,
    frames,
    last,
    load,
    psnr,
    recipe_for,
    text_for,
)

pytest.importorskip("openvino")
import openvino as ov
from openvino import opset13 as ops

from filmlet.engine.openvino import blockwise, components, runner, transformer
from filmlet.engine.openvino.int8_linear import QuantizedTokens
from filmlet.engine.openvino.ops import ModuleWeights

pytestmark = pytest.mark.compile


def load_blockwise(card: ModelCard, cache: Path) -> Engine:
    placement = replace(
        FLOAT32,
        backend=Backend.OPENVINO,
        cache=cache,
        optimizations=frozenset({Optimization.INT8}),
        is_blockwise=True,
    )
    return drain(selection.load_engine(card, local_files(card), placement))


def test_clip_of_blocks_in_eight_bits_is_near_torchs(cache: Path) -> None:
    plain, fast = load(POCKET), load_blockwise(POCKET, cache)
    recipe = recipe_for(POCKET, size="128x96", frames=25)
    tokenizer = load_tokenizer(local_files(POCKET).tokenizer)
    reading = tokenize(tokenizer, "a red circle moving left on white", POCKET.max_prompt_tokens)
    told, expected_told = fast.encode_prompt(reading), plain.encode_prompt(reading)
    assert np.abs(told - to_numpy(expected_told)).max() <= 1e-4  # the text encoder is in float32
    expected = last(plain.denoise(PromptEmbeds(expected_told), recipe))
    found = last(fast.denoise(PromptEmbeds(told), recipe))
    assert 1e-3 < np.linalg.norm(found - expected) / np.linalg.norm(expected) < 0.1
    assert psnr(frames(plain, expected, recipe), frames(fast, found, recipe)) > 30


def test_linear_layers_of_blocks_are_held_and_multiplied_in_eight_bits(cache: Path) -> None:
    *_, block, _ = load_blockwise(POCKET, cache)._get("transformer").run.parts
    kinds = []
    for node in block.model.get_runtime_model().get_ops():
        about = {key: value.astype(str) for key, value in node.get_rt_info().items()}
        kinds.append((about["layerType"], about["runtimePrecision"]))
    products = [precision for layer, precision in kinds if layer in PRODUCTS]
    assert len(products) == 10
    assert set(products) <= {"u8", "i8"}


PRODUCTS = ("Convolution", "FullyConnected")


def test_weights_are_read_block_by_block(tmp_path: Path) -> None:
    build = load_blockwise(POCKET, tmp_path)._build("transformer")
    config = transformer.TransformerConfig.from_config(build.weights.config)
    shapes = build.weights.shapes
    sizes = [
        4 * sum(int(np.prod(shapes[name])) for name in part.names)
        for part in blockwise.list_parts(build, config)
    ]
    assert len(sizes) > 4
    peaks = []
    for _ in range(2):  # compiled, and read back
        tracemalloc.start()
        try:
            made = drain(components.Transformer.load(build))
            left, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        peaks.append(peak)
        assert left < max(sizes) / 4  # compiled graphs are pages of their files
        del made
    # A block in float32, and what compiling it copies; the checksum of a graph copies none.
    assert peaks[0] < 3 * max(sizes) < sum(sizes)
    assert peaks[1] < max(sizes)


def test_steps_that_go_on_are_those_of_the_whole_run(tiny_timed: Path, cache: Path) -> None:
    card = get_card(str(tiny_timed))
    engine, recipe = load_blockwise(card, cache), recipe_for(card, size="96x64", frames=17)
    text = text_for(engine, 5)
    steps = list(engine.denoise(text, recipe))
    again = load_blockwise(card, cache).denoise(text, recipe, ResumeState(3, steps[2].latents))
    assert np.array_equal(last(again), to_numpy(steps[-1].latents.video))


def test_cancel_is_heard_between_blocks_and_leaves_the_next_call_as_it_is(
    tiny_timed: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "ASK_MS", 60_000)  # no call of a part takes that long
    card = get_card(str(tiny_timed))
    engine, recipe = load_blockwise(card, cache), recipe_for(card, size="96x64", frames=17)
    text, parts = text_for(engine, 5), len(engine._get("transformer").run.parts)
    expected = last(engine.denoise(text, recipe))
    for moment in range(1, parts + 2):
        asked = []

        def is_cancelled(asked: list[int] = asked, moment: int = moment) -> bool:
            asked.append(1)
            return len(asked) == moment

        with pytest.raises(Cancelled), engine.cancel_when(is_cancelled):
            list(engine.denoise(text, recipe))
        assert len(asked) == moment
    assert np.array_equal(last(engine.denoise(text, recipe)), expected)


def test_streamed_text_encoder_says_what_is_wrong_with_its_files(
    tiny_timed: Path, cache: Path
) -> None:
    card = get_card(str(tiny_timed))
    engine = load_blockwise(card, cache)
    encoder = engine._get("text_encoder")
    ids = np.array([[3, 4, 1]])
    assert np.abs(encoder(ids) - to_numpy(load(card)._encode_ids(ids))).max() <= 1e-5
    encoder.weights.shapes.pop("encoder.final_layer_norm.weight")
    del encoder.weights.shapes["encoder.block.0.layer.0.SelfAttention.o.weight"]
    with pytest.raises(CheckpointCorrupt, match="text_encoder"):
        encoder(ids)


@pytest.mark.parametrize("has", [cpu.cpu_flags(), frozenset({"avx2"})])
def test_largest_products_of_tokens_do_not_overflow(
    monkeypatch: pytest.MonkeyPatch, has: frozenset[str]
) -> None:
    monkeypatch.setattr(cpu, "cpu_flags", lambda: has)
    layer = ModuleWeights({"weight": np.ones((32, 512), np.float32)})
    given = ops.parameter([1, -1, 512], np.float32)
    graph = ov.Model([QuantizedTokens.from_tokens(given).linear(layer)], [given])
    model = runner.get_core().compile_model(graph, "CPU")
    tokens = np.array([1.0, -1000.0, 0.0])[None, :, None].repeat(512, 2)
    (found,) = model(tokens.astype(np.float32)).values()
    assert found[0, :, 0] == pytest.approx([512, -512_000, 0], rel=1e-2)


def test_block_that_is_off_is_torchs_from_then_on(
    tiny_timed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "OPENVINO_MAX_BYTES", 10_000)
    monkeypatch.setattr(blockwise, "MAX_INT8_ERROR", 1e-4)
    settings = Settings(engine="openvino", cache=tmp_path / "cache")
    plan = make_plan(build_request("a ball", model=str(tiny_timed), size="64x64", frames=9))
    work = prepare_run(plan, settings)
    assert (work.effective.engine, work.effective.optimizations) == ("openvino", ("int8",))
    assert list(work.frames())
    assert (work.effective.engine, work.effective.optimizations) == ("torch", ())
    assert "in block 0 of the transformer" in work.effective.changes[-1].reason
    (lost,) = [change for change in work.effective.changes if change.field == "int8"]
    assert (lost.requested, lost.effective) == (1, 0)
    following = prepare_run(plan, settings).effective
    assert following.engine == "torch"
    assert "off by" in following.changes[0].reason


def test_clip_in_float32_takes_no_more_memory_than_it_did_in_eight_bits(
    tiny_timed: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "OPENVINO_MAX_BYTES", 10_000)
    plan = make_plan(build_request("a ball", model=str(tiny_timed), size="64x64", frames=9))
    work = prepare_run(plan, Settings(engine="openvino", cache=cache))
    exact = fall_back_to_float32(work.clip, NonFiniteValues("It is off."), emitted=0).placement
    assert (exact.backend, exact.dtype, exact.offload) == ("torch", "float32", "sequential")
    assert exact.is_full_precision
    again = prepare_run(plan, Settings(cache=cache), "float32", "openvino")  # after a crash
    assert again.clip.placement == work.clip.placement
    assert again.clip.placement.is_blockwise


def test_memory_of_blocks_in_eight_bits_is_told_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "cpu_flags", lambda: frozenset({"avx2"}))
    request = build_request("a ball", model="ltxv-2b-0.9.6-distilled", size="512x320", frames=49)
    plan = make_plan(request)
    machine = selection.DeviceInfo("cpu", "a CPU", 16 * 10**9, "float32", 4)

    def needs(settings: Settings) -> dict[str, int]:
        here = selection.machine_for_model(machine, plan.card, plan.parameters, settings)
        estimates = plan.memory_estimates(here.bytes_per_value)
        return {need.offload.value: need.bytes for need in estimates}

    eight, exact = needs(Settings()), needs(Settings(int8=0))
    assert exact == needs(Settings(engine="torch"))
    assert eight["model"] < 0.6 * exact["model"]
    assert eight["model"] < 10e9
    assert eight["sequential"] == exact["sequential"]  # torch's
    large = make_plan(build_request("a ball", model="ltxv-13b-0.9.8-distilled"))
    assert selection.why_not_openvino_model(large.card, large.parameters, Settings())
    monkeypatch.setattr(cpu, "cpu_flags", frozenset)
    reason = selection.why_not_openvino_model(plan.card, plan.parameters, Settings())
    assert "no AVX2" in str(reason)


def test_only_the_half_of_a_vae_that_runs_is_read(tiny_timed: Path, tmp_path: Path) -> None:
    engine = load_blockwise(get_card(str(tiny_timed)), tmp_path / "cache")
    build = replace(engine._build("decoder"), cache=tmp_path / "empty")
    read = sum(components.VaeDecoder.load(build))
    halves = {name.partition(".")[0] for name in build.weights.shapes}
    assert halves >= {"encoder", "decoder"}
    assert read == sum(
        4 * np.prod(shape) for name, shape in build.weights.shapes.items() if "decoder." in name
    )
