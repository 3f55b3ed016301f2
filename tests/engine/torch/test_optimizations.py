"""What a GPU does in other ways, on the CPU against the plain way: 8 bits, graphs."""

from pathlib import Path

import pytest
import torch
from diffusers.models import LTXVideoTransformer3DModel
from torch import Tensor, nn

from filmlet.core.model_card import ModelFamily
from filmlet.core.request import build_request
from filmlet.engine import selection
from filmlet.engine.base import TransformerInputs
from filmlet.engine.placement import Backend, Optimization, Placement
from filmlet.engine.torch import fp8
from filmlet.engine.torch.cuda_graphs import Function, GraphedCallable
from filmlet.engine.torch.fp8 import FP8Linear, quantize_linears, quantize_rows
from filmlet.engine.torch.transformer import CachedTransformer
from filmlet.pipeline.plan import make_plan
from filmlet.settings import Settings
from tests.engine.torch.test_transformer import GIVEN, ONE, TOKENS, call, own, transformer
from tests.helpers.clips import prepare_run
from tests.helpers.ltx2_engines import get_twin

LTX_VIDEO, LTX2 = ModelFamily.LTX_VIDEO, ModelFamily.LTX2


@pytest.fixture
def model(tiny: Path) -> LTXVideoTransformer3DModel:
    return transformer(tiny)


# In 8 bits


@pytest.fixture
def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(64, 32).bfloat16().requires_grad_(False)


def off(made: Tensor, exact: Tensor) -> float:
    return ((made.float() - exact.float()).norm() / exact.float().norm()).item()


def test_product_in_eight_bits_is_off_by_a_few_percent(linear: nn.Linear) -> None:
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    made = FP8Linear.from_linear(linear)(x)
    assert (made.shape, made.dtype) == ((2, 5, 32), torch.bfloat16)
    assert 0.001 < off(made, linear(x)) < 0.05


def test_one_large_value_spoils_its_own_row_only(linear: nn.Linear) -> None:
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    x[2, 7] = 3e4
    made, exact = FP8Linear.from_linear(linear)(x), linear(x)
    others = [0, 1, 3, 4]
    assert torch.isfinite(made).all()
    assert off(made[others], exact[others]) < 0.05


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e30])
def test_no_row_leaves_the_range_of_eight_bits(value: float) -> None:
    rows, scale = quantize_rows(torch.full((3, 16), value))
    assert rows.dtype == torch.float8_e4m3fn
    assert torch.allclose(rows.float() * scale, torch.full((3, 16), value), rtol=0.1, atol=1e-12)


def test_blocks_in_eight_bits_say_nearly_what_they_say_in_sixteen(
    tiny: Path, model: LTXVideoTransformer3DModel
) -> None:
    asked = call(ONE)
    short = TransformerInputs(
        asked.latents.bfloat16(), asked.prompt_embeds.bfloat16(), ONE, asked.video_coords, ()
    )
    exact = own(CachedTransformer(transformer(tiny).bfloat16(), torch.bfloat16), short)
    model.bfloat16()
    quantize_linears(model.transformer_blocks)
    made = own(CachedTransformer(model, torch.bfloat16), short)
    layers = [m for m in model.transformer_blocks.modules() if isinstance(m, FP8Linear)]
    assert len(layers) == 10 * len(model.transformer_blocks)
    assert isinstance(model.proj_in, nn.Linear)
    assert 0.001 < off(made, exact) < 0.1


# As graphs


class Recorder:
    """What captures on the CPU: as a GPU's graph, it reads and writes the captured memory alone."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def __call__(self, function: Function, buffers: tuple[Tensor, ...]) -> Function:
        self.captures += 1
        result = function(*buffers)

        def replay(*inputs: Tensor) -> Tensor:
            self.replays += 1
            with torch.inference_mode():
                for buffer, given in zip(buffers, inputs, strict=True):
                    buffer.copy_(given)
                return result.copy_(function(*buffers))

        return replay


GRAPHS = frozenset([Optimization.CUDA_GRAPHS])


def test_replayed_steps_say_what_plain_ones_say(
    tiny: Path, model: LTXVideoTransformer3DModel
) -> None:
    recorder, plain = Recorder(), CachedTransformer(transformer(tiny), torch.float32)
    stepping = CachedTransformer(model, torch.float32, GRAPHS, capture=recorder)
    asked = [call(ONE), call(ONE / 2), call(ONE, seed=1), call(GIVEN), call(ONE, seed=2, words=8)]
    made = [own(stepping, one) for one in asked * 2]
    for one, other in zip(made, asked * 2, strict=True):
        assert torch.allclose(one, own(plain, other), atol=1e-5)
    assert recorder.replays == len(made)
    assert recorder.captures == 3 + 3  # of three shapes; two are kept, in turns


def test_graph_is_not_replayed_over_other_weights(model: LTXVideoTransformer3DModel) -> None:
    recorder = Recorder()
    stepping = CachedTransformer(model, torch.float32, GRAPHS, capture=recorder)
    first = own(stepping, call(ONE))
    layer = model.transformer_blocks[0].attn1.to_q
    layer.weight = nn.Parameter(layer.weight + 0.5, requires_grad=False)
    changed = own(stepping, call(ONE))
    assert recorder.captures == 2
    assert torch.allclose(
        changed, own(CachedTransformer(model, torch.float32), call(ONE)), atol=1e-5
    )
    assert not torch.allclose(changed, first, atol=1e-3)


def test_long_clips_are_not_replayed(
    model: LTXVideoTransformer3DModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("filmlet.engine.torch.transformer.CUDA_GRAPH_MAX_TOKENS", TOKENS - 1)
    recorder = Recorder()
    own(CachedTransformer(model, torch.float32, GRAPHS, capture=recorder), call(ONE))
    assert recorder.captures == 0


def test_what_a_graph_gave_stays_what_it_was() -> None:
    graphed = GraphedCallable(lambda x: x * 2, list, Recorder())
    first = graphed(torch.ones(3))
    graphed(torch.zeros(3))
    assert first.tolist() == [2, 2, 2]


# Who gets them


@pytest.mark.parametrize(
    ("lever", "device", "loras", "family", "reason"),
    [
        (Optimization.FP8, "cpu", (), LTX_VIDEO, "needs a GPU"),
        (Optimization.FP8, "cuda", ("a LoRA",), LTX_VIDEO, "LoRAs are merged"),
        (Optimization.FP8, "cpu", (), LTX2, "needs a GPU"),
        (Optimization.CUDA_GRAPHS, "cpu", (), LTX_VIDEO, "CUDA graphs need a GPU"),
        (Optimization.CUDA_GRAPHS, "cuda", ("a LoRA",), LTX_VIDEO, None),
        (Optimization.CUDA_GRAPHS, "cuda", (), LTX2, "not for LTX-2"),
        (Optimization.COMPILE, "cuda", (), LTX_VIDEO, None),
        (Optimization.COMPILE, "cuda", (), LTX2, "not for LTX-2"),
    ],
)
def test_optimizations_that_cannot_be_used_are_told_with_their_reason(
    lever: Optimization,
    device: str,
    loras: tuple[str, ...],
    family: ModelFamily,
    reason: str | None,
) -> None:
    placement = Placement(device, "bfloat16", "a test")
    found = selection.why_not_optimization(lever, placement, bool(loras), family)
    assert found is None if reason is None else reason in found


def test_openvino_has_none_of_torchs_optimizations() -> None:
    placement = Placement("cpu", "bfloat16", "a test", backend=Backend.OPENVINO)
    assert all(
        "is for torch" in selection.why_not_optimization(lever, placement, False, LTX_VIDEO)
        for lever in Optimization
    )


def test_gpu_without_products_in_eight_bits_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "an A100")
    assert fp8.why_not_fp8("cuda") == "an A100 does not multiply in 8 bits"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert fp8.why_not_fp8("cuda") is None


def test_report_says_which_optimizations_were_asked_for_in_vain(tiny: Path) -> None:
    planned = make_plan(build_request("a ball", model=str(tiny), size="64x64", frames=1))
    asked = Settings(device="cpu", engine="torch", fp8=1, cuda_graphs=1)
    work = prepare_run(planned, asked)
    told = {change.field: (change.requested, change.effective) for change in work.effective.changes}
    assert told["fp8"] == told["cuda_graphs"] == (1, 0)
    assert "optimizations" not in work.effective.as_json()


def test_clip_of_ltx2_says_that_its_blocks_are_not_compiled() -> None:
    request = build_request("a ball", model=str(get_twin("2.3").folder), size="128x128", frames=9)
    work = prepare_run(make_plan(request), Settings(device="cpu", compile=True))
    reasons = {change.field: change.reason for change in work.effective.changes}
    assert "not for LTX-2" in reasons["compile"]
    assert "optimizations" not in work.effective.as_json()
