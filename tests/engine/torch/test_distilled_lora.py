"""LTX-2's full models in two stages, the second with the distilled LoRA, against stock."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import LTX2ConditionPipeline
from safetensors.torch import load_file, save_file

from filmlet.core.events import Frames, Stage, StageFinished
from filmlet.core.lora import Lora, LoraAdapter
from filmlet.core.model_card import ComponentSource
from filmlet.core.request import build_request
from filmlet.engine.arrays import unpack_latents
from filmlet.engine.base import DenoiseParams
from filmlet.engine.latents import Modalities
from filmlet.engine.torch.ltx2.engine import Ltx2Engine
from filmlet.errors import Cancelled, CheckpointCorrupt
from filmlet.media import metadata_tags
from filmlet.models import REGISTRY, inspect_lora, inspect_model_lora
from filmlet.pipeline.plan import make_plan
from filmlet.settings import Settings
from tests.helpers.clips import ClipRun, film, prepare_run
from tests.helpers.clips import work_for as make_work
from tests.helpers.ltx2_engines import (
    FPS,
    FRAMES,
    REFINE_SIGMAS,
    SEED,
    SIDE,
    UNGUIDED,
    Twin,
    first_frame_marked,
    get_twin,
    make_engine,
    unpack_audio,
)
from tests.helpers.tiny_ltx2 import MAX_TOKENS, VERSIONS
from tests.helpers.tiny_ltx2_files import (
    lora_matrices,
    make_full_model,
    of_transformer,
    write_distilled_lora,
)

pytestmark = pytest.mark.compile
EXACT = 1e-5
SMALL = {"size": "128x128", "frames": 17, "steps": 2, "seed": 5}


@pytest.fixture(params=VERSIONS)
def twin(request: pytest.FixtureRequest) -> Twin:
    return get_twin(request.param)


@pytest.fixture
def full(tmp_path: Path) -> Path:
    return make_full_model(get_twin("2.3").folder, tmp_path / "full")


def work_for(folder: Path | str, **settings: object) -> ClipRun:
    return make_work(folder, **(SMALL | settings))  # type: ignore[arg-type]


def distilled(folder: Path) -> LoraAdapter:
    return inspect_model_lora(folder, ComponentSource(folder.name, root=folder.parent))


def style(folder: Path, out: Path) -> LoraAdapter:
    """Another LoRA, of a user."""
    table = {}
    for layer, (down, up) in lora_matrices(folder, seed=9).items():
        name = of_transformer(layer).removeprefix("model.")
        table |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    save_file(table, out)
    return inspect_lora(Lora(str(out), 0.4))


def stock_with(twin: Twin, *loras: tuple[int, float]) -> Twin:
    """The twin with a stock whose transformer has LoRAs merged. loras: seed and strength."""
    stock = LTX2ConditionPipeline.from_pretrained(twin.folder)
    stock.set_progress_bar_config(disable=True)
    weights = stock.transformer.state_dict()
    for seed, strength in loras:
        for layer, (down, up) in lora_matrices(twin.folder, seed).items():
            weight = weights[f"{layer}.weight"]
            weight.copy_(weight.double() + strength * (up.double() @ down.double()))
    return replace(twin, stock=stock)


def start_latents(twin: Twin) -> tuple[Modalities[torch.Tensor], DenoiseParams]:
    """Latents that a first stage could have made, upsampled, and the parameters of the second."""
    generator = torch.Generator().manual_seed(3)
    frames, height, width = twin.engine.latent_shape(twin.params.shape)
    video = torch.randn(1, frames * height * width, 16, generator=generator)
    audio = torch.randn(1, 18, 16, generator=generator)
    return Modalities(video, audio), replace(twin.params, sigmas=REFINE_SIGMAS)


def refined_by_stock(twin: Twin, latents: Modalities[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(SEED)
    frames, height, width = twin.engine.latent_shape(twin.first.shape)
    torch.randn(1, frames * height * width, 16, generator=generator)  # of the first stage
    torch.randn(1, 18, 16, generator=generator)
    video = unpack_latents(latents.video, *twin.engine.latent_shape(twin.params.shape))
    assert latents.audio is not None
    with first_frame_marked(twin):
        result: tuple[torch.Tensor, ...] = twin.stock(
            prompt=twin.text, width=SIDE, height=SIDE, num_frames=FRAMES, frame_rate=FPS,
            sigmas=list(REFINE_SIGMAS), generator=generator, output_type="latent",
            max_sequence_length=MAX_TOKENS, return_dict=False, use_cross_timestep=True,
            latents=twin.engine.statistics.denormalize(video),
            audio_latents=unpack_audio(twin, latents.audio), noise_scale=REFINE_SIGMAS[0],
            **UNGUIDED,
        )  # fmt: skip
    return result


@pytest.mark.parametrize("has_style", [False, True])
def test_second_stage_with_the_lora_equals_stock(
    twin: Twin, has_style: bool, tmp_path: Path
) -> None:
    adapter = distilled(write_distilled_lora(twin.folder, tmp_path / "distilled_lora.safetensors"))
    assert len(adapter.layers) == len(lora_matrices(twin.folder))
    loras, merged = (adapter,), [(0, 1.0)]
    if has_style:
        loras = (style(twin.folder, tmp_path / "style.safetensors"), adapter)
        merged.append((9, 0.4))
    engine = make_engine(twin.folder, twin.version)
    latents, params = start_latents(twin)
    stock = refined_by_stock(stock_with(twin, *merged), latents)
    *_, last = engine.refine(twin.embeds, replace(params, loras=loras, is_guided=False), latents)
    own = unpack_latents(last.latents.video, *engine.latent_shape(params.shape))
    assert torch.allclose(engine.statistics.denormalize(own), stock[0], atol=EXACT)
    assert last.latents.audio is not None
    assert torch.allclose(unpack_audio(twin, last.latents.audio), stock[1], atol=EXACT)
    *_, plain = engine.refine(twin.embeds, params, latents)
    assert (plain.latents.video - last.latents.video).abs().max() > 0.01


def test_clip_is_guided_on_its_own_weights_and_refined_with_the_lora(
    full: Path, tmp_path: Path
) -> None:
    work = work_for(full)
    (used,) = work.effective.as_json()["stage_loras"]  # type: ignore[attr-defined]
    assert (used["stage"], used["strength"], used["rank"]) == ("refine", 1.0, 2)
    assert used["layers"] == len(lora_matrices(full))
    assert used["sha256"] in metadata_tags(work.effective)["effective"]
    first, second = work.clip.first_stage_params, work.clip.refine_params
    assert (first.loras, first.is_guided, first.guidance) == ((), True, 3.0)
    assert (len(second.loras), second.is_guided, second.guidance) == (1, False, 1.0)
    assert second.sigmas == REFINE_SIGMAS
    assert first.shape.generated_width * 2 == second.shape.generated_width
    film(work, tmp_path / "clip.mp4")
    engine = work.engine()
    assert isinstance(engine, Ltx2Engine)
    assert len(engine.loras.original_weights) == used["layers"]
    film(work, tmp_path / "again.mp4")  # takes the LoRA out for its first stage
    assert (tmp_path / "clip.mp4").read_bytes() == (tmp_path / "again.mp4").read_bytes()
    draft = work_for(full, draft=True)
    assert draft.effective.stage_loras == ()
    assert draft.plan.predictions_per_step == 4


def test_guidance_that_is_asked_for_is_the_first_stages_and_says_so(full: Path) -> None:
    plan = work_for(full, guidance=4.0).plan
    (change,) = (c for c in plan.changes if c.field == "refine_guidance")
    assert (change.requested, change.effective) == (4.0, 1.0)
    assert (plan.predictions_per_step, plan.predictions_per_refine_step) == (4, 1)
    assert not [c for c in work_for(full).plan.changes if c.field == "refine_guidance"]


LEFT = (Stage.DENOISE, Stage.UPSAMPLE, Stage.REFINE, Stage.DECODE_AUDIO)


@pytest.mark.parametrize("left", LEFT)
def test_clip_left_in_any_stage_goes_on_to_the_same_bytes(
    full: Path, left: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("filmlet.pipeline.denoise.CHECKPOINT_INTERVAL_S", -1.0)
    film(work_for(full), tmp_path / "straight.mp4")
    film(work_for(full).keep_in(tmp_path / "kept"), tmp_path / "a.mp4", left)
    second = work_for(full).keep_in(tmp_path / "kept")
    events = film(second, tmp_path / "clip.mp4")
    reused = {e.stage for e in events if isinstance(e, StageFinished) and e.reused}
    order = second.clip.stages
    assert reused == set(order[1 : order.index(left)])
    assert (tmp_path / "clip.mp4").read_bytes() == (tmp_path / "straight.mp4").read_bytes()


@pytest.mark.parametrize("mode", ["model", "sequential"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_offload_mode_gives_the_same_values_without_a_copy_of_the_weights(
    full: Path, mode: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def frames(offload: str) -> tuple[bytes, ClipRun]:
        work = prepare_run(
            make_plan(build_request("a ball", model=str(full), **SMALL)),
            Settings(device="cpu", offload=offload), dtype,
        )  # fmt: skip
        events = list(work.frames())
        return b"".join(e.pixels.tobytes() for e in events if isinstance(e, Frames)), work

    held, _ = frames("none")
    for room in (0, 10**9):
        monkeypatch.setattr("filmlet.engine.torch.block_offload.free_memory", lambda _, r=room: r)
        made, work = frames(mode)
        assert made == held
        engine = work.engine()
        assert isinstance(engine, Ltx2Engine)
        loras = engine.loras
        with loras.ensure_fused(work.clip.refine_params.loras):
            copied = [name for name, weight in loras.original_weights.items() if weight is not None]
            blocks = {n for n in loras.original_weights if n.startswith("transformer_blocks.")}
        if dtype == "bfloat16":  # of the files, which are in float32
            assert not copied
        if mode == "sequential":
            assert not blocks & set(copied)
        with loras.ensure_fused(()):
            assert not loras.original_weights


def test_cancelling_stops_while_the_lora_is_merged_and_inside_a_step(full: Path) -> None:
    work = work_for(full)
    engine = work.engine()
    assert isinstance(engine, Ltx2Engine)
    latents, params = start_latents(get_twin("2.3"))
    params = replace(params, loras=work.clip.refine_params.loras, is_guided=False)
    for asked_before in (1, len(lora_matrices(full)) + 2):
        answers = iter([False] * asked_before)
        with (
            pytest.raises(Cancelled),
            engine.cancel_when(lambda answers=answers: next(answers, True)),
        ):
            list(engine.refine(get_twin("2.3").embeds, params, latents))


def corrupt_other_model(file: Path) -> None:
    write_distilled_lora(get_twin("2.0").folder, file)


def corrupt_pickled(file: Path) -> None:
    file.write_bytes(b"\x80\x04" + bytes(100))


def corrupt_text_encoder(file: Path) -> None:
    save_file(load_file(file) | {"lora_te_x.lora_A.weight": torch.ones(2, 2)}, file)


@pytest.mark.parametrize(
    "damage", [corrupt_pickled, corrupt_text_encoder], ids=["no safetensors", "text encoder"]
)
def test_file_that_is_no_lora_of_the_model_is_refused(
    full: Path, damage: Callable[[Path], None]
) -> None:
    damage(full / "distilled_lora.safetensors")
    with pytest.raises(CheckpointCorrupt):
        work_for(full)


def test_whole_run_with_the_lora_has_it_in_both_stages() -> None:
    for version, base in (("2.0", "ltx-2-19b"), ("2.3", "ltx-2.3-22b"), ("2.5", "ltx-2.5-22b")):
        card, own = REGISTRY[f"{base}-dev-distilled-lora"], REGISTRY[f"{base}-dev"]
        plain = REGISTRY[f"{base}-distilled"]
        assert card.version == version
        assert card.sources == own.sources
        assert (card.schedule, card.refine_schedule) == (plain.schedule, plain.refine_schedule)
        assert (card.ancestral_sampling, card.distilled) == (plain.ancestral_sampling, True)
        plan = make_plan(build_request("a ball", model=card.name))
        assert plan.distilled_lora_strengths == {Stage.DENOISE: 1.0, Stage.REFINE: 1.0}
        assert (plan.predictions_per_step, plan.predictions_per_refine_step) == (1, 1)
        full_plan = make_plan(build_request("a ball", model=own.name))
        assert full_plan.distilled_lora_strengths == {Stage.REFINE: 1.0}
        assert full_plan.shape == plan.shape
