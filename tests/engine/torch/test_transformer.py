"""The transformer with what does not change computed once, against diffusers' own forward."""

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers.models import LTXVideoTransformer3DModel
from torch import Tensor, nn

from filmlet.core.request import build_request
from filmlet.engine import selection
from filmlet.engine.base import TransformerInputs
from filmlet.engine.placement import Optimization, Placement
from filmlet.engine.torch.block_offload import offload_blocks
from filmlet.engine.torch.transformer import CachedTransformer
from filmlet.pipeline import placement_fallback
from filmlet.pipeline.plan import make_plan
from filmlet.settings import Settings
from tests.helpers.clips import prepare_run

FRAMES, ROWS, COLUMNS = 3, 2, 4
TOKENS = FRAMES * ROWS * COLUMNS
COMPILED = frozenset([Optimization.COMPILE])
ONE = torch.tensor([0.7])
GIVEN = torch.where(torch.arange(TOKENS) < ROWS * COLUMNS, 0.0, 0.7)[None]  # the first frame


def transformer(folder: Path) -> LTXVideoTransformer3DModel:
    model = LTXVideoTransformer3DModel.from_pretrained(folder / "transformer")
    return model.eval().requires_grad_(False)


def places() -> Tensor:
    sizes = ((FRAMES, 1 / 3), (ROWS, 32.0), (COLUMNS, 32.0))
    axes = (torch.arange(count) * step for count, step in sizes)
    return torch.stack([axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")])[None]


def call(levels: Tensor, seed: int = 0, words: int = 5) -> TransformerInputs:
    draw = torch.Generator().manual_seed(seed)
    latents, text = (torch.randn(1, n, c, generator=draw) for n, c in ((TOKENS, 16), (words, 32)))
    return TransformerInputs(latents, text, levels, places(), ())


@torch.inference_mode()
def stock(model: LTXVideoTransformer3DModel, asked: TransformerInputs) -> Tensor:
    levels = asked.timesteps.expand(1, -1)
    return model(
        hidden_states=asked.latents,
        encoder_hidden_states=asked.prompt_embeds,
        timestep=levels * 1000,
        encoder_attention_mask=None,
        video_coords=asked.video_coords,
        return_dict=False,
    )[0]


@torch.inference_mode()
def own(stepping: CachedTransformer, asked: TransformerInputs) -> Tensor:
    return stepping.predict_velocity(asked)


@pytest.fixture
def model(tiny: Path) -> LTXVideoTransformer3DModel:
    return transformer(tiny)


@pytest.mark.parametrize("levels", [ONE, GIVEN], ids=["one level", "a level a token"])
@pytest.mark.parametrize("is_lent", [False, True])
def test_velocities_equal_those_of_diffusers(
    tiny: Path, model: LTXVideoTransformer3DModel, levels: Tensor, is_lent: bool
) -> None:
    asked = [call(levels), call(levels, seed=1, words=8), call(levels / 2)]
    expected = [stock(transformer(tiny), one) for one in asked]
    if is_lent:
        offload_blocks(
            model.transformer_blocks, Placement("cpu", "float32", "a test"), is_ahead=True
        )
    stepping = CachedTransformer(model, torch.float32, is_lent=is_lent)
    for one, other in zip(asked * 2, expected * 2, strict=True):
        assert torch.allclose(own(stepping, one), other, atol=1e-5)
        assert other.std() > 0.1


def test_bfloat16_is_no_further_from_float32_than_that_of_diffusers(tiny: Path) -> None:
    asked, exact = call(ONE), stock(transformer(tiny), call(ONE))
    short = TransformerInputs(
        asked.latents.bfloat16(), asked.prompt_embeds.bfloat16(), ONE, asked.video_coords, ()
    )
    theirs = stock(transformer(tiny).bfloat16(), short)
    made = own(CachedTransformer(transformer(tiny).bfloat16(), torch.bfloat16), asked)
    assert (made - exact).norm() <= 1.2 * (theirs - exact).norm() > 0


@pytest.fixture
def counted(model: LTXVideoTransformer3DModel) -> Iterator[Counter[str]]:
    """How often each module has run."""
    counts: Counter[str] = Counter()

    def count(name: str, module: nn.Module) -> None:
        module.register_forward_hook(lambda *_: counts.update([name]))

    for name, module in model.named_modules():
        count(name, module)
    return counts


def test_what_does_not_change_is_computed_once(
    model: LTXVideoTransformer3DModel, counted: Counter[str]
) -> None:
    stepping, levels, first = CachedTransformer(model, torch.float32), (1.0, 0.7, 0.4), call(ONE)
    clips = [first, first, call(ONE, seed=1)]
    for clip in clips:
        for level in levels:
            own(
                stepping,
                TransformerInputs(
                    clip.latents, clip.prompt_embeds, torch.tensor([level]), clip.video_coords, ()
                ),
            )
    steps, prompts, lengths = len(clips) * len(levels), 2, len(levels)
    assert counted["transformer_blocks.1.attn2.to_q"] == steps
    assert counted["transformer_blocks.1.attn2.to_k"] == prompts
    assert counted["caption_projection"] == counted["rope"] == prompts
    assert counted["time_embed"] == lengths


def test_tokens_of_one_level_share_its_embedding(
    model: LTXVideoTransformer3DModel, counted: Counter[str]
) -> None:
    own(CachedTransformer(model, torch.float32), call(GIVEN))
    assert counted["time_embed"] == 2


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore")  # of torch's own compiler
@pytest.mark.skipif(not any(map(shutil.which, selection.COMPILERS)), reason="no C++ compiler")
def test_compiled_blocks_give_the_same_and_still_ask_whether_to_go_on(
    model: LTXVideoTransformer3DModel,
) -> None:
    asked, calls = call(ONE), []
    expected = own(CachedTransformer(model, torch.float32), asked)
    compiled = CachedTransformer(model, torch.float32, COMPILED)
    for block in model.transformer_blocks:
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    assert torch.allclose(own(compiled, asked), expected, atol=1e-5)
    assert len(calls) == len(model.transformer_blocks)


@pytest.mark.parametrize(
    ("settings", "compilers", "reason"),
    [
        ({}, "/usr/bin/c++", None),
        ({}, None, "no C++ compiler"),
        ({"offload": "sequential"}, "/usr/bin/c++", "not available with this offload mode"),
    ],
)
def test_compiling_is_a_setting_and_where_it_cannot_be_the_report_says_why(
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, str],
    compilers: str | None,
    reason: str | None,
) -> None:
    monkeypatch.setattr(selection.shutil, "which", lambda _: compilers)
    planned = make_plan(build_request("a ball", model=str(tiny), size="64x64", frames=1))
    asked = Settings(device="cpu", engine="torch", compile=1, **settings)
    work = prepare_run(planned, asked)
    told = [change.reason for change in work.effective.changes if change.field == "compile"]
    assert (Optimization.COMPILE in work.clip.placement.optimizations) == (reason is None)
    assert work.effective.as_json().get("optimizations") == (None if reason else ("compile",))
    assert [reason in one for one in told] == ([True] if reason else [])


def test_lever_that_is_lost_with_the_memory_is_told(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection.shutil, "which", lambda _: "/usr/bin/c++")
    planned = make_plan(build_request("a ball", model=str(tiny), size="64x64", frames=1))
    settings = Settings(device="cpu", engine="torch", compile=1, offload="model")
    work = prepare_run(planned, settings)
    assert work.effective.optimizations == ("compile",)
    again = placement_fallback.fall_back_to_more_offload(work.clip, MemoryError())
    assert again.effective.optimizations == ()
    assert [change.field for change in again.effective.changes[-2:]] == ["offload", "compile"]


def test_model_that_is_held_in_a_leaner_way_is_not_compiled_any_more() -> None:
    placement = Placement("cpu", "float32", "a test", optimizations=COMPILED)
    turns = selection.with_more_offload(placement)
    assert turns.optimizations == COMPILED
    assert not selection.with_more_offload(turns).optimizations
