"""No value of LTX-2's configurations and headers reaches a library unchecked."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from filmlet.engine.configs import blame_files, check_components
from filmlet.engine.state_dict import CheckpointWeights
from filmlet.engine.torch.ltx2.modules import build_ltx2_module
from filmlet.errors import FilmletError
from filmlet.models import count_parameters, get_card, local_files
from tests.helpers import damage
from tests.helpers.tiny_ltx2_files import folder_files, metadata, write_layout

pytestmark = pytest.mark.compile

REFUSED = {
    "transformer": {"num_layers", "audio_attention_head_dim", "norm_eps", "rope_type", "ff_bias"},
    "connectors": {"text_proj_in_factor", "caption_channels", "rope_type", "proj_bias"},
    "vae": {"patch_size", "upsample_type", "decoder_spatial_padding_mode", "upsample_factor"},
    "audio_vae": {"mel_bins", "ch_mult", "norm_type", "sample_rate"},
    "vocoder": {"upsample_factors", "act_fn", "output_sampling_rate", "resnet_dilations"},
    "latent_upsampler": {"mid_channels", "dims", "temporal_upsample"},
    "text_encoder": {
        "num_hidden_layers", "head_dim", "rope_parameters", "layer_types", "hidden_size",
    },
}  # fmt: skip


def load(folder: Path, component: str) -> None:
    """What is read of a checkpoint before its weights, and the module without them."""
    files = local_files(get_card(str(folder)))
    assert files
    count_parameters(files)
    check_components(files)
    name = "upsampler" if component == "latent_upsampler" else component
    weights = CheckpointWeights.from_files(files, name)
    assert weights.bytes
    with blame_files(weights.path):
        build_ltx2_module(name, weights)


@pytest.mark.parametrize(
    ("component", "version"), [*((name, "2.3") for name in REFUSED), ("text_encoder", "2.5")]
)
def test_no_value_of_a_configuration_of_ltx2_reaches_a_library_unchecked(
    component: str, version: str, ltx2_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(ltx2_folders[version], tmp_path / "copy"))
    file = folder / component / "config.json"
    if component == "text_encoder":  # its language model's alone are read
        file.write_text(json.dumps(json.loads(file.read_text())["text_config"]))
    whole = file.read_text()
    load(folder, component)
    told: dict[str, FilmletError | None] = {}
    for kind, damaged in damage.wrong_values(file):
        if told.get(kind.partition(" = ")[0]) and component == "vocoder":
            continue  # its modules take long to build, and the checks of a key are one
        damaged(file)
        error = error_of(load, folder, component)
        file.write_text(whole)
        told[kind.partition(" = ")[0]] = error or told.get(kind.partition(" = ")[0])
        if error:
            assert error.code in ("checkpoint_damaged", "checkpoint_missing"), (kind, error)
            assert str(folder) in str(error), (kind, error)
    assert REFUSED[component] <= {key for key, error in told.items() if error}


def error_of(call: Callable[..., object], *given: object) -> FilmletError | None:
    try:
        call(*given)
    except FilmletError as error:
        return error
    return None


def test_damaged_file_of_ltx2_is_refused_by_its_name(
    ltx2_folders: dict[str, Path], tmp_path: Path
) -> None:
    files = write_layout(ltx2_folders["2.3"], tmp_path / "files", "2.3", "comfy")
    survived = []

    def look() -> None:
        card = get_card(str(file))
        for part in ("transformer", "connectors", "vae", "audio_vae", "vocoder"):
            assert CheckpointWeights(part, file, card.family).config

    for name, damaged in damage.HEADERS.items():
        file = Path(shutil.copyfile(files.transformer, tmp_path / "copy.safetensors"))
        damaged(file)
        error = error_of(look)
        if error is None:
            survived.append(name)
            continue
        assert error.code == "checkpoint_damaged", name
        assert str(file) in str(error), name
        assert len(str(error)) < 800, name
    assert [name for name in survived if not name.startswith("bytes")] == []


def test_no_value_of_a_header_reaches_a_library_unchecked(
    ltx2_folders: dict[str, Path], tmp_path: Path
) -> None:
    files = write_layout(ltx2_folders["2.3"], tmp_path / "files", "2.3", "comfy")
    table = load_file(files.transformer)
    about = metadata(ltx2_folders["2.3"], "2.3")
    config = json.loads(about["config"])
    file = tmp_path / "a.safetensors"

    def build(part: str) -> None:
        card = get_card(str(file))
        weights = CheckpointWeights(part, file, card.family)
        with blame_files(file):
            build_ltx2_module(part, weights)

    for part, keys in config.items():
        for key in keys:
            for value in damage.VALUES[:: 4 if part == "vocoder" else 2]:
                changed = config | {part: config[part] | {key: value}}
                save_file(table, file, about | {"config": json.dumps(changed)})
                error = error_of(build, part)
                if error:
                    assert error.code == "checkpoint_damaged"
                    assert file.name in str(error), (part, key, value)


def test_folders_of_the_twins_are_whole(ltx2_folders: dict[str, Path]) -> None:
    for folder in ltx2_folders.values():
        assert local_files(get_card(str(folder))) == folder_files(folder)
