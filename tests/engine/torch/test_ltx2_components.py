"""LTX-2 in every layout is what stock diffusers and transformers load from their own folders."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LTX2Pipeline
from diffusers.pipelines.ltx2 import LTX2LatentUpsamplerModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from filmlet.core.lora import LoraAdapter
from filmlet.core.memory import OffloadMode
from filmlet.core.model_card import ComponentFiles
from filmlet.engine.configs import check_components, check_loras
from filmlet.engine.placement import Placement
from filmlet.engine.torch.block_offload import widen
from filmlet.engine.torch.components import ModelComponents
from filmlet.errors import CheckpointCorrupt, InvalidRequest
from tests.helpers.tiny_ltx2 import VERSIONS
from tests.helpers.tiny_ltx2_files import LAYOUTS, folder_files, to_8_bits, write_layout

pytestmark = pytest.mark.compile

FLOAT32 = Placement("cpu", "float32", "a test")
NAMES = (
    "transformer", "connectors", "vae", "audio_vae", "vocoder", "upsampler", "text_encoder",
)  # fmt: skip
KINDS = [(version, layout) for version in VERSIONS for layout in ("folder", *LAYOUTS[version])]
# What no weight depends on and no file says.
UNTOLD = {
    "audio_vae": {"resolution"}, "connectors": {"video_hidden_dim", "audio_hidden_dim"},
    "text_encoder": {"dtype", "max_position_embeddings", "rope_parameters"},
}  # fmt: skip


@pytest.fixture(scope="module")
def layouts(
    ltx2_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], ComponentFiles]:
    root = tmp_path_factory.mktemp("layouts")
    return {
        (version, layout): folder_files(ltx2_folders[version])
        if layout == "folder"
        else write_layout(ltx2_folders[version], root / version / layout, version, layout)
        for version, layout in KINDS
    }


@pytest.fixture(scope="module")
def stock(ltx2_folders: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """Modules by version and name, as diffusers and transformers load them."""
    found: dict[str, dict[str, Any]] = {}
    for version, folder in ltx2_folders.items():
        pipe = LTX2Pipeline.from_pretrained(folder)
        modules = {name: getattr(pipe, name) for name in NAMES if name != "upsampler"}
        modules["text_encoder"] = pipe.text_encoder.model.language_model
        modules["upsampler"] = LTX2LatentUpsamplerModel.from_pretrained(folder / "latent_upsampler")
        found[version] = modules | {"pipe": pipe}
    return found


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Weights, and what is computed from the configuration."""
    return dict([*module.named_parameters(), *module.named_buffers()])


@pytest.mark.parametrize(("version", "layout"), KINDS)
def test_every_module_equals_the_one_that_stock_loads(
    version: str, layout: str, layouts: dict[Any, ComponentFiles], stock: dict[str, dict[str, Any]]
) -> None:
    files = layouts[version, layout]
    check_components(files)
    components = ModelComponents(files, FLOAT32)
    for name in NAMES:
        mine, theirs = components.get(name), stock[version][name]
        expected = tensors_of(theirs)
        found = tensors_of(mine)
        assert found.keys() == expected.keys(), name
        assert [n for n, t in expected.items() if not torch.equal(found[n], t)] == [], name
        configs = [dict(m.config) if name != "text_encoder" else m.config.to_dict()
                   for m in (mine, theirs)]  # fmt: skip
        told = [k for k in configs[1] if k[0] != "_" and k not in UNTOLD.get(name, ())]
        plain = [{k: as_lists(c[k]) for k in told} for c in configs]
        assert plain[0] == plain[1], name


def as_lists(value: Any) -> Any:
    return [as_lists(v) for v in value] if isinstance(value, (list, tuple)) else value


def prompt_states(model: nn.Module, pipe: LTX2Pipeline) -> tuple[Tensor, ...]:
    tokens = pipe.tokenizer(
        ["a red ball on the sea", "the moon"], return_tensors="pt", padding="max_length",
        max_length=32,
    )  # fmt: skip
    with torch.inference_mode():
        output = model(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask,
            output_hidden_states=True,
        )  # fmt: skip
    states: tuple[Tensor, ...] = output.hidden_states
    return states


@pytest.mark.parametrize("offload", OffloadMode)
@pytest.mark.parametrize("version", VERSIONS)
def test_however_it_is_held_latents_are_stocks(
    version: str, offload: OffloadMode, layouts: dict[Any, ComponentFiles],
    stock: dict[str, dict[str, Any]],
) -> None:  # fmt: skip
    files = layouts[version, LAYOUTS[version][-1]]
    components = ModelComponents(files, replace(FLOAT32, offload=offload))
    pipe = stock[version]["pipe"]
    mine = prompt_states(components.get("text_encoder"), pipe)
    theirs = prompt_states(pipe.text_encoder, pipe)
    assert all(map(torch.equal, mine, theirs))

    parts = {name: components.get(name) for name in ("transformer", "connectors")}
    expected = sample(pipe)
    other = LTX2Pipeline(**pipe.components | parts)
    assert furthest(sample(other), expected) <= 1e-5


def furthest(some: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> float:
    """Sums depend on where weights lie in memory, in the last bit."""
    return max((a - b).abs().max().item() for a, b in zip(some, others, strict=True))


def sample(pipe: LTX2Pipeline) -> tuple[Tensor, Tensor]:
    """Latents of picture and sound after two steps, without guidance."""
    pipe.set_progress_bar_config(disable=True)
    off = {"guidance_scale": 1.0, "stg_scale": 0.0, "modality_scale": 1.0, "guidance_rescale": 0.0}
    output = pipe(
        "a red ball", width=64, height=64, num_frames=9, num_inference_steps=2,
        max_sequence_length=64, generator=torch.Generator().manual_seed(1), output_type="latent",
        **off, **{f"audio_{name}": value for name, value in off.items()},
    )  # fmt: skip
    return output.frames, output.audio


def test_vocoder_is_float32_whatever_the_rest_computes_in(
    layouts: dict[Any, ComponentFiles],
) -> None:
    files = layouts["2.3", "comfy"]
    components = ModelComponents(files, replace(FLOAT32, dtype="bfloat16"))
    dtypes = {
        name: {t.dtype for t in components.get(name).parameters()}
        for name in ("transformer", "text_encoder", "vocoder")
    }
    assert dtypes.pop("vocoder") == {torch.float32}
    assert set().union(*dtypes.values()) == {torch.bfloat16}


@pytest.fixture(scope="module")
def fp8(
    layouts: dict[Any, ComponentFiles], tmp_path_factory: pytest.TempPathFactory
) -> ComponentFiles:
    """LTX-2.3 in 8 bits with a scale for each layer."""
    files = layouts["2.3", "comfy"]
    out = tmp_path_factory.mktemp("fp8") / "ltx-2.3-fp8.safetensors"
    return replace(files, transformer=to_8_bits(files.transformer, out))


def by_hand(file: Path) -> Iterator[tuple[str, Tensor]]:
    """The weights of a file in 8 bits, in float32, by Lightricks' names."""
    table = load_file(file)
    for name, tensor in table.items():
        if tensor.dtype == torch.float8_e4m3fn:
            scale = table.get(f"{name}_scale", torch.tensor(1.0))
            yield name, tensor.to(torch.float32) * scale


def predict(components: ModelComponents, stock: dict[str, Any]) -> tuple[Tensor, Tensor]:
    return sample(LTX2Pipeline(**stock["pipe"].components | {
        "transformer": components.get("transformer")}))  # fmt: skip


@pytest.mark.parametrize("offload", OffloadMode)
@pytest.mark.parametrize("is_scaled", [True, False])
def test_weights_in_8_bits_are_their_values_times_their_scale(
    offload: OffloadMode, is_scaled: bool, fp8: ComponentFiles, tmp_path: Path,
    layouts: dict[Any, ComponentFiles], stock: dict[str, dict[str, Any]],
) -> None:  # fmt: skip
    files = fp8
    if not is_scaled:
        plain = to_8_bits(layouts["2.3", "comfy"].transformer, tmp_path / "a.safetensors",
                          is_scaled=False)  # fmt: skip
        files = replace(fp8, transformer=plain)
    check_components(files)
    wide = load_file(layouts["2.3", "comfy"].transformer) | dict(by_hand(files.transformer))
    changed = [n for n, t in by_hand(files.transformer)]
    assert len(changed) == 2 * (6 * 4 + 4)
    save_file(wide, tmp_path / "wide.safetensors", {"config": metadata_config(files.transformer)})
    expected = predict(
        ModelComponents(replace(files, transformer=tmp_path / "wide.safetensors"), FLOAT32),
        stock["2.3"],
    )
    components = ModelComponents(files, replace(FLOAT32, offload=offload))
    assert furthest(predict(components, stock["2.3"]), expected) <= 1e-5
    original = stock["2.3"]["transformer"].transformer_blocks[0].ff.net[2].weight
    error = wide["model.diffusion_model.transformer_blocks.0.ff.net.2.weight"] - original
    assert 0 < error.norm() / original.norm() < 0.05


def metadata_config(file: Path) -> str:
    from filmlet.core.checkpoint_headers import read_header

    return read_header(file).metadata["config"]


def weight_while_it_computes(layer: nn.Module) -> Tensor:
    """In float32; of an offloaded block it is merged when the block is lent."""
    weight = widen(layer.weight.detach(), torch.float32, getattr(layer, "weight_scale", 1.0))
    merge = getattr(layer, "weight_merge", None)
    return merge(weight, torch.float32) if merge else weight.clone()


@pytest.mark.parametrize("offload", OffloadMode)
def test_lora_is_merged_into_what_the_scaled_weights_mean(
    offload: OffloadMode, fp8: ComponentFiles, tmp_path: Path
) -> None:
    from filmlet.core.lora import Lora
    from filmlet.models import inspect_lora

    layer = "transformer_blocks.0.audio_to_video_attn.to_q"
    name = f"model.diffusion_model.{layer}.weight"
    down, up = torch.randn(2, 32) * 0.1, torch.randn(16, 2) * 0.1
    lora = tmp_path / "style.safetensors"
    save_file({f"diffusion_model.{layer}.lora_A.weight": down,
               f"diffusion_model.{layer}.lora_B.weight": up}, lora)  # fmt: skip
    adapter = inspect_lora(Lora(str(lora)))
    check_loras(fp8, [adapter])
    components = ModelComponents(fp8, replace(FLOAT32, offload=offload))
    transformer = components.get("transformer")
    assert components.fused_loras
    with components.fused_loras.ensure_fused([adapter]):
        merged = weight_while_it_computes(transformer.get_submodule(layer))
    expected = dict(by_hand(fp8.transformer))[name] + up @ down
    assert torch.allclose(merged, expected, atol=1e-6)
    with components.fused_loras.ensure_fused([]):
        again = transformer.get_submodule(layer).weight
    assert again.dtype == load_file(fp8.transformer)[name].dtype or offload in (
        OffloadMode.NONE,
        OffloadMode.MODEL,
    )


def test_lora_of_another_version_does_not_fit(fp8: ComponentFiles, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for base, says in (("2.5", "LTX-2.5, and this model is LTX-2.3"), ("LTX-Video", "LTX-Video")):
        adapter = LoraAdapter(path, "x", "0" * 64, 1.0, (), base)
        with pytest.raises(InvalidRequest, match=f"made for {says}"):
            check_loras(fp8, [adapter])
    check_loras(fp8, [LoraAdapter(path, "x", "0" * 64, 1.0, (), "2.3")])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"text_encoder": ("2.5", "split")}, "Gemma 3"),
        ({"connectors": ("2.0", "comfy")}, "caption_channels|width of video"),
        ({"vocoder": ("2.0", "comfy")}, ""),
        ({"vae": ("2.0", "comfy")}, ""),
    ],
)
def test_parts_of_other_versions_are_refused_where_they_do_not_fit(
    change: dict[str, tuple[str, str]], says: str, layouts: dict[Any, ComponentFiles]
) -> None:
    files = layouts["2.3", "shards"]
    other = replace(files, **{name: getattr(layouts[kind], name) for name, kind in change.items()})
    if not says:  # another version's sound and pictures are of the same latents
        check_components(other)
        return
    with pytest.raises(CheckpointCorrupt, match=says):
        check_components(other)
