import json
import shutil
from pathlib import Path

import pytest

from filmlet.core.schedules import FixedSigmas, ShiftedSigmas
from filmlet.errors import CheckpointCorrupt, CheckpointNotFound, UnknownModel
from filmlet.models import REGISTRY, get_card, local_files
from filmlet.models.registry import POCKET
from tests.helpers.tiny_checkpoint import edit_json


@pytest.mark.parametrize(
    "name", ["ltxv-2b-0.9.8-distilled", "ltxv-13b-0.9.7-distilled", "ltxv-13b-0.9.8-distilled"]
)
def test_ltxv_0_9_8_runs_seven_calls_then_three_at_the_published_levels(name: str) -> None:
    card = REGISTRY[name]
    published = (1.0, 0.9937, 0.9875, 0.9812, 0.9750, 0.9094, 0.7250)
    assert card.schedule.sigmas_for(7) == published
    assert card.refine_schedule == FixedSigmas((0.9094, 0.7250, 0.4219))
    assert (card.guidance_scale, card.distilled, card.stochastic_sampling) == (1.0, True, False)
    assert (card.decode_timestep, card.decode_noise_scale) == (0.05, 0.025)
    assert card.max_prompt_tokens == 256
    assert card.tone_map_compression_ratio == (0.6 if "13b" in name else 0.0)


def test_pocket_runs_the_levels_that_stock_diffusers_sets_for_its_scheduler() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    card = REGISTRY["pocket"]
    stock = FlowMatchEulerDiscreteScheduler.from_pretrained(POCKET / "scheduler")
    steps = card.schedule.steps
    assert steps <= 8
    stock.set_timesteps(sigmas=[(steps - i) / steps for i in range(steps)])
    assert card.schedule.sigmas_for(steps) == pytest.approx(stock.sigmas[:-1].tolist(), abs=1e-6)
    assert float(stock.sigmas[-1]) == 0.0


def test_other_numbers_of_steps_follow_the_line_through_the_fixed_levels() -> None:
    schedule = FixedSigmas((1.0, 0.9, 0.5))
    assert schedule.sigmas_for(3) == (1.0, 0.9, 0.5)
    assert schedule.sigmas_for(6) == pytest.approx((1.0, 0.95, 0.9, 0.7, 0.5, 0.25))
    assert schedule.sigmas_for(1) == (1.0,)


def test_shift_of_one_leaves_the_levels_even() -> None:
    assert ShiftedSigmas(4).sigmas_for(4) == (1.0, 0.75, 0.5, 0.25)


def test_unknown_model_is_told_with_the_nearest_name() -> None:
    with pytest.raises(UnknownModel, match="did you mean pocket"):
        get_card("poket")


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def test_folder_runs_as_a_full_model_with_its_schedulers_shift(copy: Path) -> None:
    card = get_card(str(copy))
    assert card.schedule == ShiftedSigmas(30, shift=3.0)
    assert (card.distilled, card.guidance_scale) == (False, 3.0)


def test_folder_whose_schedule_depends_on_the_clip_is_refused(copy: Path) -> None:
    edit_json(copy / "scheduler" / "scheduler_config.json", use_dynamic_shifting=True)
    with pytest.raises(CheckpointCorrupt, match="fixed schedules"):
        get_card(str(copy))


@pytest.mark.parametrize("component", ["transformer", "vae", "text_encoder"])
def test_cut_weight_file_is_noticed_before_loading(copy: Path, component: str) -> None:
    (weights,) = (copy / component).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointCorrupt, match="fetch it again"):
        local_files(get_card(str(copy)))


@pytest.mark.parametrize("rubbish", [b"", b"no", b"\x10" + bytes(7) + b"not json at all!"])
def test_file_that_is_no_safetensors_is_noticed(copy: Path, rubbish: bytes) -> None:
    (weights,) = (copy / "vae").glob("*.safetensors")
    weights.write_bytes(rubbish)
    with pytest.raises(CheckpointCorrupt, match=r"not a \.safetensors"):
        local_files(get_card(str(copy)))


@pytest.mark.parametrize("name", ["transformer/config.json", "tokenizer/tokenizer_config.json"])
def test_missing_or_broken_config_is_named(copy: Path, name: str) -> None:
    (copy / name).write_text("{")
    with pytest.raises(CheckpointCorrupt, match="JSON"):
        local_files(get_card(str(copy)))
    (copy / name).unlink()
    with pytest.raises(CheckpointNotFound, match="missing"):
        local_files(get_card(str(copy)))


def test_bundled_checkpoint_is_small_and_free_of_pickles() -> None:
    files = [f for f in POCKET.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 40_000_000
    assert {f.suffix for f in files} <= {".json", ".safetensors", ".md"}
    index = json.loads((POCKET / "model_index.json").read_text())
    assert index["_class_name"] == "LTXPipeline"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a.gguf", "GGUF"), ("a.ckpt", "pickles"), ("a.PT", "pickles"), ("a.bin", "pickles"),
        ("none.gguf", "no such file"), ("no/such/a.safetensors", "no such file"),
        ("folder", "model_index"), ("notes.txt", "no .safetensors file"),
    ],
)  # fmt: skip
def test_files_that_are_no_models_are_told_what_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for there in ("a.gguf", "a.ckpt", "a.PT", "a.bin", "notes.txt"):
        (tmp_path / there).touch()
    with pytest.raises(UnknownModel, match=says):
        get_card(name)
