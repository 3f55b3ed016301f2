"""Files of LoRAs and their names: which are read, which are refused, and how that is said."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor

from filmlet.core.lora import Lora, parse_lora
from filmlet.core.request import ClipRequest, build_request
from filmlet.errors import (
    CheckpointCorrupt,
    CheckpointNotFound,
    FilmletError,
    InvalidRequest,
    NotSupported,
)
from filmlet.pipeline.plan import make_plan
from tests.engine.torch.test_lora import adapters, diffusers, matrices, save, style

__all__ = ["style"]


def refused(table: dict[str, Tensor], path: Path, about: dict[str, str] | None = None) -> str:
    """The code and the sentence."""
    with pytest.raises(FilmletError) as error:
        adapters(save(path, table, about))
    return f"{error.value.code}: {error.value}"


def test_file_that_is_no_lora_for_ltx_video_is_refused_by_what_is_in_it(tmp_path: Path) -> None:
    good, path, one = diffusers(matrices()), tmp_path / "a.safetensors", torch.ones(4, 4)
    layer = "transformer.transformer_blocks.0.attn1.to_q"
    for more, code, says in (
        ({f"{layer}.dora_scale": one}, "not_offered", "DoRA"),
        ({f"{layer}.lora_magnitude_vector": one}, "not_offered", "DoRA"),
        ({f"{layer}.hada_w1_a": one}, "not_offered", "LoHa"),
        ({f"{layer}.lokr_w1": one}, "not_offered", "LoKr"),
        ({f"{layer}.diff": one}, "not_offered", "whole weights"),
        ({f"{layer}.lora_B.bias": one}, "not_offered", "biases"),
        ({"text_encoder.block.0.q.lora_A.weight": one}, "not_offered", "text encoder"),
        ({"lora_te_block_0_q.lora_down.weight": one}, "not_offered", "text encoder"),
        ({"transformer.single_blocks.0.q.lora_A.weight": one}, "invalid_loras", "single_b"),
        ({"transformer.transformer_blocks.0.attn1.q_norm.alpha": one}, "invalid_loras", "q_norm"),
        ({f"{layer}.something": one}, "invalid_loras", "something"),
        ({f"{layer}.weight": one}, "invalid_loras", "to_q.weight"),
        ({f"{layer}.alpha": one}, "checkpoint_damaged", "not one number"),
        ({f"{layer}.lora_A.weight": torch.ones(5, 48)}, "checkpoint_damaged", "do not fit"),
        ({f"{layer}.lora_A.weight": torch.ones(4, 48, 1)}, "checkpoint_damaged", "do not fit"),
        ({f"{layer}.lora_A.second.weight": one}, "checkpoint_damaged", "twice"),
        ({"transformer.transformer_blocks.1.attn1.to_v.lora_A.weight": one}, "checkpoint_damaged",
         "lacks the matrix up"),
    ):  # fmt: skip
        told = refused(good | more, path)
        assert told.startswith(code), told
        assert says in told
    for config in ("{", "[7]", '{"lora_alpha": "x"}', '{"alpha_pattern": 7}'):
        about = {"lora_adapter_metadata": config}
        assert refused(good, path, about).startswith("checkpoint_damaged"), config
    assert refused({}, path).startswith("checkpoint_damaged")


def test_what_no_lora_could_be_is_refused_at_the_door(tmp_path: Path, style: str) -> None:
    for loras, says in (
        ([""], "needs a file"),
        (["style.bin"], "no other kind"),
        (["owner/name/style.ckpt"], "no other kind"),
        (["owner/style.pt"], "no other kind"),
        (["a/b/c"], "no other kind"),
        (["style"], "no other kind"),
        ([f"{style}:x"], "SOURCE:STRENGTH"),
        ([f"{style}:nan"], "between -4 and 4"),
        ([f"{style}:4.1"], "between -4 and 4"),
        ([Lora(style)] * 9, "at most 8"),
        ([{"path": style}], "list of source"),
        ([7], "list of source"),
        (style, "list of source"),
        ([tmp_path / "none.safetensors"], "no file"),
        ([tmp_path], "no other kind"),
    ):
        with pytest.raises(InvalidRequest, match=says) as error:
            make_plan(build_request("a", loras=loras))
        assert error.value.param == "loras"
    for content, says in ((b"", "not a .safetensors"), (Path(style).read_bytes()[:-9], "bytes")):
        (tmp_path / "cut.safetensors").write_bytes(content)
        with pytest.raises(CheckpointCorrupt, match=says) as error:
            make_plan(build_request("a", loras=[str(tmp_path / "cut.safetensors")]))
        assert (error.value.code, error.value.param) == ("checkpoint_damaged", "loras")


def test_scale_that_stands_beside_a_file_of_peft_is_not_ignored(tmp_path: Path) -> None:
    path = save(tmp_path / "adapter_model.safetensors", diffusers(matrices()))
    config = tmp_path / "adapter_config.json"
    ranks = {layer: len(down) for layer, (down, _) in matrices().items()}
    for plain in ({}, {"alpha_pattern": ranks}):
        config.write_text(json.dumps(plain))
        adapters(path)
    config.write_text(json.dumps({"r": 4, "lora_alpha": 16}))
    with pytest.raises(NotSupported, match=r"adapter_config\.json scales"):
        adapters(path)
    config.write_text(json.dumps({"use_dora": True}))
    with pytest.raises(NotSupported, match="DoRA"):
        adapters(path)


# Names


def test_how_a_lora_is_written_decides_what_it_is() -> None:
    assert parse_lora("a.safetensors") == Lora("a.safetensors", 1.0)
    assert parse_lora("a:b.safetensors") == Lora("a:b.safetensors", 1.0)
    assert parse_lora("a.safetensors:-0.5") == Lora("a.safetensors", -0.5)
    assert parse_lora("owner/name:2") == Lora("owner/name", 2.0)
    for source, is_on_hub in (
        ("owner/name", True), ("owner/name-v1.5", True), ("owner/name/a.safetensors", True),
        ("owner/name/some folder/a.safetensors", True), ("folder/a.safetensors", False),
        ("./owner/name/a.safetensors", False), ("/a/b/c.safetensors", False),
        ("../a/b.safetensors", False), ("owner/name/../a.safetensors", False),
        ("a.safetensors", False), ("owner//a.safetensors", False),
    ):  # fmt: skip
        assert Lora(source).is_on_hub == is_on_hub, source


def test_request_with_loras_comes_back_from_json_and_old_ones_are_still_read() -> None:
    request = build_request("a", loras=["a.safetensors:0.5", Path("b.safetensors"), "owner/name"])
    assert ClipRequest(**json.loads(json.dumps(asdict(request)))) == request
    assert request.files == ("a.safetensors", "b.safetensors")
    assert request.explicit_settings()["loras"][0] == {"source": "a.safetensors", "strength": 0.5}
    assert ClipRequest(prompt="a").loras == ()
    assert "loras" not in build_request("a", loras=[]).explicit_settings()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Hub's cache, and in it the newest snapshot of owner/name."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repo = tmp_path / "hub" / "models--owner--name"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("c" * 40)
    snapshot = repo / "snapshots" / ("c" * 40)
    (snapshot / "v2").mkdir(parents=True)
    return snapshot


def test_name_of_the_hub_is_found_in_its_cache_or_said_how_to_fetch(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for source, says in (
        ("other/name", "hf download other/name"),
        ("owner/name", "hf download owner/name"),
        ("owner/name/a.safetensors", "hf download owner/name a.safetensors"),
    ):
        with pytest.raises(CheckpointNotFound, match=says) as error:
            adapters(source)
        assert (error.value.code, error.value.param) == ("checkpoint_missing", "loras")
    save(hub / "v2" / "a.safetensors", diffusers(matrices()))
    names = [adapters(s)[0].name for s in ("owner/name", "owner/name/v2/a.safetensors")]
    assert names == ["owner/name/a.safetensors", "owner/name/v2/a.safetensors"]
    save(hub / "b.safetensors", diffusers(matrices()))
    with pytest.raises(InvalidRequest, match=r"name one: owner/name/b\.safetensors, owner/name/v2"):
        adapters("owner/name")
    with pytest.raises(InvalidRequest, match="no name on the Hub"):
        adapters("owner/a--b")


LTX2_LAYERS = (
    "patchify_proj", "audio_patchify_proj", "audio_proj_out", "adaln_single.linear",
    "audio_adaln_single.emb.timestep_embedder.linear_1", "prompt_adaln_single.linear",
    "av_ca_a2v_gate_adaln_single.linear", "av_ca_audio_scale_shift_adaln_single.linear",
    *(f"transformer_blocks.1.{layer}" for layer in (
        "attn1.to_gate_logits", "attn2.to_k", "audio_attn1.to_out.0", "audio_attn2.to_q",
        "audio_to_video_attn.to_v", "video_to_audio_attn.to_gate_logits", "ff.net.0.proj",
        "audio_ff.net.2",
    )),
)  # fmt: skip


def test_lightricks_names_of_ltx2_are_diffusers_names(
    ltx2_folders: dict[str, Path], tmp_path: Path
) -> None:
    from diffusers import LTX2VideoTransformer3DModel

    model = LTX2VideoTransformer3DModel.from_pretrained(ltx2_folders["2.3"] / "transformer")
    table: dict[str, Tensor] = {}
    for name in LTX2_LAYERS:
        for part, shape in (("A", (2, 8)), ("B", (8, 2))):
            table[f"diffusion_model.{name}.lora_{part}.weight"] = torch.ones(shape)
    (adapter,) = adapters(save(tmp_path / "a.safetensors", table))
    assert len(adapter.layers) == len(LTX2_LAYERS)
    for pair in adapter.layers:
        assert model.get_submodule(pair.layer).weight.ndim == 2
    again = {f"transformer.{p.layer}.lora_{part}.weight": torch.ones(shape)
             for p in adapter.layers for part, shape in (("A", (2, 8)), ("B", (8, 2)))}  # fmt: skip
    (other,) = adapters(save(tmp_path / "b.safetensors", again))
    assert {p.layer for p in other.layers} == {p.layer for p in adapter.layers}


@pytest.mark.parametrize(
    "key",
    [
        "text_embedding_projection.video_aggregate_embed",
        "diffusion_model.video_embeddings_connector.transformer_1d_blocks.0.attn1.to_q",
        "diffusion_model.audio_embeddings_connector.transformer_1d_blocks.0.ff.net.2",
        "connectors.video_connector.transformer_blocks.0.attn1.to_q",
    ],
)
def test_lora_of_the_connectors_is_refused_with_the_reason(key: str, tmp_path: Path) -> None:
    more = {f"{key}.lora_A.weight": torch.ones(2, 8), f"{key}.lora_B.weight": torch.ones(8, 2)}
    said = refused(diffusers(matrices()) | more, tmp_path / "a.safetensors")
    assert said.startswith("not_offered")
    assert "connectors" in said


def test_lora_that_needs_a_reference_video_is_refused(tmp_path: Path) -> None:
    about = {"reference_downscale_factor": "2"}
    said = refused(diffusers(matrices()), tmp_path / "a.safetensors", about)
    assert said.startswith("not_offered")
    assert "IC-LoRA" in said


@pytest.mark.parametrize(
    ("name", "about", "base"),
    [
        ("ltx-2.3-22b-lora-style", {}, "2.3"), ("LTX-2-19b-LoRA-Camera", {}, "2.0"),
        ("ltx2.5_style", {}, "2.5"), ("ltxv-13b-0.9.8-style", {}, "LTX-Video"), ("style", {}, ""),
        ("style", {"ss_base_model_version": "LTX-2.3"}, "2.3"),
        ("ltx-2.3-style", {"modelspec.architecture": "ltx-2.5"}, "2.5"),
    ],
)  # fmt: skip
def test_what_a_lora_was_made_for_is_read_off_its_metadata_and_name(
    name: str, about: dict[str, str], base: str, tmp_path: Path
) -> None:
    (adapter,) = adapters(
        save(tmp_path / f"{name}.safetensors", diffusers(matrices()), about or None)
    )
    assert adapter.base == base
