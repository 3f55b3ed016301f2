"""Files of LTX-2: what is read off their headers, what is refused, and how that is said."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from filmlet.core.model_card import ComponentFiles, GuidanceScales, ModelFamily
from filmlet.core.schedules import FixedSigmas, StretchedSigmas
from filmlet.engine.configs import check_components
from filmlet.engine.state_dict import CheckpointWeights
from filmlet.errors import CheckpointCorrupt
from filmlet.models import REGISTRY, count_parameters, get_card, local_files
from filmlet.models.tokenizer import load_tokenizer, tokenize
from tests.helpers.tiny_checkpoint import edit_json
from tests.helpers.tiny_ltx2 import VERSIONS
from tests.helpers.tiny_ltx2_files import (
    LAYOUTS,
    folder_files,
    metadata,
    write_distilled_lora,
    write_layout,
)

ROWS = [card for card in REGISTRY.values() if card.family is ModelFamily.LTX2]


@pytest.fixture(scope="module")
def files(
    ltx2_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, ComponentFiles]:
    """By version, in the layout that the catalogue's are in."""
    root = tmp_path_factory.mktemp("files")
    return {
        version: write_layout(ltx2_folders[version], root / version, version, LAYOUTS[version][-1])
        for version in VERSIONS
    }


@pytest.fixture
def copy(ltx2_folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(ltx2_folders["2.3"], tmp_path / "copy"))


@pytest.mark.parametrize("card", ROWS, ids=lambda card: card.name)
def test_each_row_is_the_published_recipe(card: Any) -> None:
    if card.distilled:
        published = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875)
        assert card.schedule == FixedSigmas(published)
        assert (card.guidance_scale, card.multimodal_guidance) == (1.0, None)
        assert card.ancestral_sampling == (card.version == "2.5")
    else:
        guidance = card.multimodal_guidance
        assert card.schedule == StretchedSigmas({"2.0": 40}.get(card.version, 30))
        assert guidance.video == GuidanceScales(3.0, 1.0, 3.0, 0.7)
        assert guidance.audio == GuidanceScales(7.0, 1.0, 3.0, 0.7)
        assert guidance.perturbed_blocks == ({"2.0": 29}.get(card.version, 28),)
        assert (card.guidance_scale, card.is_refine_guided) == (3.0, False)
        assert card.distilled_lora_strengths == (0.0, 1.0)
    assert card.refine_schedule == FixedSigmas((0.909375, 0.725, 0.421875))
    assert card.image_crf == {"2.5": 18}.get(card.version, 33)
    assert card.max_prompt_tokens == 1024
    grid = card.grid
    assert grid.side_multiple == 64
    assert (grid.width, grid.height, grid.frames) == (768, 512, 121)
    assert (grid.fps, grid.max_total_frames(24), grid.max_total_frames(12)) == (24, 481, 241)
    assert card.makes_audio
    assert card.licence_terms
    parts = dict(card.sources.present()).keys()
    assert {"connectors", "audio_vae", "vocoder", "upsampler"} <= parts
    assert ("distilled_lora" in parts) == ("dev" in card.name)


@pytest.mark.parametrize("version", VERSIONS)
def test_folder_or_file_of_ones_own_is_of_the_version_it_holds(
    version: str, ltx2_folders: dict[str, Path], files: dict[str, ComponentFiles]
) -> None:
    card = get_card(str(ltx2_folders[version]))
    assert (card.family, card.version) == (ModelFamily.LTX2, version)
    assert local_files(card) == folder_files(ltx2_folders[version])
    single = get_card(str(files[version].transformer))
    assert (single.family, single.version) == (ModelFamily.LTX2, version)
    assert "run as a distilled model" in single.summary
    own = {name for name, source in single.sources.present() if source.root}
    split = {"transformer", "connectors"}
    assert own == (split if version == "2.5" else split | {"vae", "audio_vae", "vocoder"})
    assert single.schedule == REGISTRY["ltx-2.3-22b-distilled"].schedule


@pytest.mark.parametrize("version", VERSIONS)
def test_parameters_are_counted_alike_in_every_layout(
    version: str, ltx2_folders: dict[str, Path], files: dict[str, ComponentFiles]
) -> None:
    check_components(files[version])
    folder = count_parameters(folder_files(ltx2_folders[version]))
    assert count_parameters(files[version]) == folder


def test_file_named_as_a_full_model_is_run_as_one(
    files: dict[str, ComponentFiles], tmp_path: Path
) -> None:
    file = Path(shutil.copy(files["2.3"].transformer, tmp_path / "my-ltx-2.3-dev.safetensors"))
    card = get_card(str(file))
    assert (card.version, card.distilled) == ("2.3", False)
    assert card.sources.distilled_lora == REGISTRY["ltx-2.3-22b-dev"].sources.distilled_lora
    assert card.multimodal_guidance
    card = get_card(str(file.rename(tmp_path / "developed.safetensors")))
    assert (card.version, card.distilled) == ("2.3", True)


def test_folder_that_shifts_by_size_is_run_as_a_full_model(copy: Path) -> None:
    edit_json(copy / "scheduler" / "scheduler_config.json", use_dynamic_shifting=True)
    card = get_card(str(copy))
    assert (card.distilled, card.sources.upsampler, card.refine_schedule) == (False, None, None)
    assert card.multimodal_guidance


def test_folder_of_a_full_model_has_two_stages_with_the_lora_beside_it(copy: Path) -> None:
    edit_json(copy / "scheduler" / "scheduler_config.json", use_dynamic_shifting=True)
    write_distilled_lora(copy, copy / "distilled_lora.safetensors")
    card = get_card(str(copy))
    assert card.refine_schedule == FixedSigmas((0.909375, 0.725, 0.421875))
    assert card.grid.upscale_factor == 2
    files = local_files(card)
    assert files
    assert files.distilled_lora == copy / "distilled_lora.safetensors"
    assert count_parameters(files).distilled_lora == 0
    shutil.rmtree(copy / "latent_upsampler")
    card = get_card(str(copy))
    assert (card.refine_schedule, card.sources.distilled_lora) == (None, None)


def test_folder_without_an_upsampler_is_made_in_one_stage(copy: Path) -> None:
    shutil.rmtree(copy / "latent_upsampler")
    card = get_card(str(copy))
    assert (card.grid.side_multiple, card.refine_schedule) == (32, None)


def rewrite(file: Path, out: Path, about: dict[str, str], **changes: torch.Tensor) -> Path:
    save_file({n: t.clone() for n, t in load_file(file).items()} | changes, out, about)
    return out


@pytest.mark.parametrize("said", [None, 7, 1000])
def test_what_a_file_leaves_out_is_what_the_reference_takes(
    said: int | None, ltx2_folders: dict[str, Path], files: dict[str, ComponentFiles],
    tmp_path: Path,
) -> None:  # fmt: skip
    config = json.loads(metadata(ltx2_folders["2.3"], "2.3")["config"])
    del config["transformer"]["av_ca_timestep_scale_multiplier"]
    if said:
        config["transformer"]["av_ca_timestep_scale_multiplier"] = said
    about = {"config": json.dumps(config)}
    file = rewrite(files["2.3"].transformer, tmp_path / "a.safetensors", about)
    found = CheckpointWeights("transformer", file, ModelFamily.LTX2).config
    assert found["cross_attn_timestep_scale_multiplier"] == (said or 1)


@pytest.mark.parametrize("name", ["transformer", "connectors", "vae", "audio_vae", "vocoder"])
def test_file_that_says_nothing_of_itself_is_built_as_published(
    name: str, files: dict[str, ComponentFiles], tmp_path: Path
) -> None:
    file = rewrite(files["2.3"].transformer, tmp_path / "a.safetensors", {})
    said = CheckpointWeights(name, files["2.3"].transformer, ModelFamily.LTX2)
    silent = CheckpointWeights(name, file, ModelFamily.LTX2)
    if name == "connectors":  # 49 layers are read in published ones, so it cannot be told of 3
        with pytest.raises(CheckpointCorrupt, match="caption_channels"):
            _ = silent.config
        return
    differences = {k for k, v in said.config.items() if silent.config[k] != v}
    assert differences <= {"caption_channels"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x.weight_scale_2": torch.ones(()), "x.weight_scale": torch.ones(2, 2)}, "NVFP4"),
        ({"x.weight": torch.ones(2, 2, dtype=torch.int8)}, "integers of 8 bits"),
        ({"x.weight": torch.ones(2, 2, dtype=torch.uint8)}, "integers of 8 bits"),
    ],
)
def test_numbers_in_groups_are_refused(
    change: dict[str, torch.Tensor], says: str, files: dict[str, ComponentFiles], tmp_path: Path
) -> None:
    layer = "model.diffusion_model.transformer_blocks.0.attn1.to_q"
    named = {name.replace("x.", f"{layer}."): tensor for name, tensor in change.items()}
    file = rewrite(files["2.3"].transformer, tmp_path / "a.safetensors", {}, **named)
    with pytest.raises(CheckpointCorrupt, match=says):
        get_card(str(file))
    with pytest.raises(CheckpointCorrupt, match=says):
        check_components(replace(files["2.3"], transformer=file))


@pytest.mark.parametrize(
    ("part", "value", "says"),
    [
        ("", "{", "JSON"),
        ("transformer", 7, "transformer"),
        ("transformer", {"num_attention_heads": 0}, ""),  # gates tell it as well
        ("transformer", {"positional_embedding_max_pos": 3}, "configuration"),
        ("vae", {"_class_name": "CausalDiffusionVAE"}, "-conv-"),
        ("vocoder", {"bwe": []}, "bwe"),
        ("vocoder", {"vocoder": {"upsample_rates": 7}}, "configuration"),
    ],
)
def test_header_that_cannot_be_is_refused(
    part: str, value: Any, says: str, ltx2_folders: dict[str, Path],
    files: dict[str, ComponentFiles], tmp_path: Path,
) -> None:  # fmt: skip
    about = metadata(ltx2_folders["2.3"], "2.3")
    config = json.loads(about["config"])
    if part:
        config[part] = config[part] | value if isinstance(value, dict) else value
    about["config"] = json.dumps(config) if part else value
    file = rewrite(files["2.3"].transformer, tmp_path / "a.safetensors", about)
    if not says:
        assert get_card(str(file)).version == "2.3"
        return
    with pytest.raises(CheckpointCorrupt, match=says):
        get_card(str(file))


def test_header_that_names_another_version_is_refused(
    ltx2_folders: dict[str, Path], files: dict[str, ComponentFiles], tmp_path: Path
) -> None:
    about = metadata(ltx2_folders["2.3"], "2.5")
    file = rewrite(files["2.3"].transformer, tmp_path / "a.safetensors", about)
    with pytest.raises(CheckpointCorrupt, match=r"layers are those of 2\.3"):
        get_card(str(file))


@pytest.mark.parametrize(
    ("part", "changes", "says"),
    [
        ("transformer", {"num_layers": 10**9}, "num_layers"),
        ("transformer", {"rope_type": "other"}, "rope_type"),
        ("transformer", {"num_attention_heads": 3}, "proj_in"),
        ("transformer", {"audio_in_channels": 8}, "audio_proj_in"),
        ("connectors", {"text_proj_in_factor": 4}, "layers read"),
        ("connectors", {"video_connector_num_layers": 10**6}, "video_connector_num_layers"),
        ("vae", {"patch_size": 2}, "patch_size"),
        ("vae", {"spatial_compression_ratio": 16}, "compression"),
        ("vae", {"decoder_spatial_padding_mode": "circular"}, "padding"),
        ("audio_vae", {"mel_bins": 64}, "mel_bins"),
        ("vocoder", {"output_sampling_rate": 10**6}, "output_sampling_rate"),
        ("vocoder", {"upsample_factors": [5, 2, 2, 2, 2, 3]}, "upsample_factors"),
        ("vocoder", {"upsample_factors": [5]}, "one factor"),
        ("vocoder", {"hop_length": 40}, "bwe_upsample_factors"),
        ("latent_upsampler", {"in_channels": 16, "temporal_upsample": True}, "temporal_upsample"),
        ("text_encoder", {"text_config": {"model_type": "gemma3_text"}}, "lacks hidden_size"),
        ("text_encoder", {"text_config": 7}, "text_config"),
        ("text_encoder", {"text_config": {
            "model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2}}, "model_type"),
    ],
)  # fmt: skip
def test_configurations_that_do_not_fit_are_refused_by_name(
    part: str, changes: dict[str, object], says: str, copy: Path
) -> None:
    edit_json(copy / part / "config.json", **changes)
    with pytest.raises(CheckpointCorrupt, match=says):
        check_components(folder_files(copy))


def test_scale_that_is_not_one_number_is_refused(
    files: dict[str, ComponentFiles], tmp_path: Path
) -> None:
    layer = "model.diffusion_model.transformer_blocks.0.attn1.to_q"
    for scale in (torch.ones(32), torch.zeros(()), torch.tensor(float("nan"))):
        file = rewrite(
            files["2.3"].transformer, tmp_path / "a.safetensors", {},
            **{f"{layer}.weight_scale": scale},
        )  # fmt: skip
        weights = CheckpointWeights("transformer", file, ModelFamily.LTX2)
        with pytest.raises(CheckpointCorrupt, match="the scale of"):
            weights.scales(file)


@pytest.mark.parametrize("version", VERSIONS)
def test_prompt_is_read_as_by_transformers_behind_the_first_token(
    version: str, ltx2_folders: dict[str, Path], files: dict[str, ComponentFiles]
) -> None:
    from transformers import AutoTokenizer

    folder = ltx2_folders[version] / "tokenizer"
    theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    for place in (folder, files[version].tokenizer):
        tokenizer = load_tokenizer(place)
        for prompt in ("a red ball", "the sea " * 40):
            ids = theirs(prompt, truncation=True, max_length=16).input_ids
            start = [] if ids[0] == theirs.bos_token_id else [theirs.bos_token_id]
            mine = tokenize(tokenizer, prompt, 16)
            assert mine.ids[0, : mine.token_count].tolist() == [*start, *ids][:16]
            assert (mine.text + mine.truncated_text).strip() == prompt.strip()


def test_file_whose_tokenizer_is_none_is_refused(
    files: dict[str, ComponentFiles], tmp_path: Path
) -> None:
    text = files["2.5"].text_encoder
    rubbish = torch.tensor(list(b"no tokenizer"), dtype=torch.uint8)
    for tensor in (rubbish, torch.ones(3)):
        file = rewrite(text, tmp_path / "a.safetensors", {}, tokenizer_json=tensor)
        with pytest.raises(CheckpointCorrupt, match="tokenizer"):
            load_tokenizer(file)
    with pytest.raises(CheckpointCorrupt, match="holds no tokenizer_json"):
        load_tokenizer(files["2.5"].vae)
