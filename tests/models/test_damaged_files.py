"""Every damage to a checkpoint's or a LoRA's file ends in a sentence that names the file."""

import json
import os
import shutil
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from filmlet.cli import main
from filmlet.core.checkpoint_headers import MAX_JSON_BYTES, read_header, read_json
from filmlet.core.lora import Lora
from filmlet.engine.configs import check_components
from filmlet.engine.state_dict import CheckpointWeights, load_latent_rgb_factors
from filmlet.errors import CheckpointCorrupt, FilmletError, LoraCorrupt
from filmlet.models import (
    REGISTRY,
    count_parameters,
    get_card,
    hub_cache,
    inspect_lora,
    list_vocabulary,
    local_files,
)
from filmlet.models.tokenizer import load_tokenizer
from tests.helpers import damage
from tests.helpers.damage import Damage, join_weights, rewrite, split_weights

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
POCKET = REGISTRY["pocket"]


@pytest.fixture(autouse=True)
def hang() -> Iterator[None]:
    """A test that waits for a pipe ends."""

    def ring(*_: object) -> None:
        raise AssertionError("it hangs")

    signal.signal(signal.SIGALRM, ring)
    signal.alarm(240)
    yield
    signal.alarm(0)


@pytest.fixture(scope="module")
def whole(tiny_timed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint without what torch must compute for, but with a preview."""
    folder = tmp_path_factory.mktemp("whole") / "whole"
    return Path(shutil.copytree(tiny_timed, folder))


def look(folder: Path) -> None:
    """What is read of a checkpoint before anything heavy is loaded."""
    card = get_card(str(folder))
    files = local_files(card)
    assert files
    count_parameters(files)
    list_vocabulary(card)
    load_tokenizer(files.tokenizer)
    check_components(files)
    for name in ("transformer", "vae", "text_encoder"):
        weights = CheckpointWeights(name, getattr(files, name))
        assert weights.config
        assert weights.bytes
    load_latent_rgb_factors(files)


def refusal(folder: Path, file: Path, damaged: Damage) -> str | None:
    """The sentence, or nothing where the file can still be used."""
    damaged(file)
    error = error_of(look, folder)
    if error is None:
        return None
    assert error.code in ("checkpoint_damaged", "checkpoint_missing", "unknown_model")
    assert str(folder) in str(error), error
    assert len(str(error)) < 800
    return str(error)


def error_of(call: Callable[..., object], *given: object) -> FilmletError | None:
    try:
        call(*given)
    except FilmletError as error:
        return error
    return None


@pytest.fixture
def once(whole: Path, tmp_path: Path) -> Callable[[str, Damage], str | None]:
    """One file of a checkpoint, damaged, and whole again afterwards."""
    folder = Path(shutil.copytree(whole, tmp_path / "checkpoint"))

    def damage_once(name: str, damaged: Damage) -> str | None:
        file = folder / name
        try:
            return refusal(folder, file, damaged)
        finally:
            if file.is_dir() and not file.is_symlink():
                file.rmdir()
            file.unlink(missing_ok=True)
            shutil.copyfile(whole / name, file)

    return damage_once


def test_damaged_header_is_told_by_its_file(tmp_path: Path, whole: Path) -> None:
    survived = []
    for name, damaged in damage.HEADERS.items():
        file = Path(shutil.copyfile(whole / TRANSFORMER, tmp_path / "weights.safetensors"))
        damaged(file)
        error = error_of(read_header, file)
        if error is None:
            survived.append(name)
            continue
        assert error.code == "checkpoint_damaged"
        assert str(file) in str(error), name
        assert len(str(error)) < 800, name
    assert [name for name in survived if not name.startswith("bytes")] == ["no tensor but empty"]


def test_what_is_no_file_is_neither_waited_for_nor_read_to_its_end(
    once: Callable[[str, Damage], str | None],
) -> None:
    for name in (TRANSFORMER, "vae/config.json", "scheduler/scheduler_config.json",
                 "tokenizer/tokenizer_config.json", "tokenizer/tokenizer.json",
                 "model_index.json"):  # fmt: skip
        for kind, damaged in damage.IN_PLACE.items():
            assert once(name, damaged), (name, kind)


def test_damaged_configuration_is_told_by_its_file(
    once: Callable[[str, Damage], str | None],
) -> None:
    for name in ("vae/config.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer.json",
                 "tokenizer/tokenizer_config.json", "model_index.json"):  # fmt: skip
        for kind, damaged in damage.CONFIGS.items():
            told = once(name, damaged)
            is_usable = kind == "no keys" and name.split("/")[0] in (
                "scheduler", "tokenizer", "model_index.json"
            ) and not name.endswith("tokenizer.json")  # fmt: skip
            assert (told is None) == is_usable, (name, kind, told)


@pytest.mark.parametrize("component", ["transformer", "vae", "text_encoder", "scheduler"])
def test_no_value_of_a_configuration_reaches_a_library_unchecked(
    component: str, whole: Path, once: Callable[[str, Damage], str | None]
) -> None:
    file = "scheduler_config.json" if component == "scheduler" else "config.json"
    name, told = f"{component}/{file}", {}
    for kind, damaged in damage.wrong_values(whole / name):
        told[kind] = once(name, damaged)
    refused = {kind.partition(" = ")[0] for kind, sentence in told.items() if sentence}
    needed = {
        "transformer": {"num_layers", "attention_head_dim", "norm_eps", "qk_norm", "in_channels"},
        "vae": {"scaling_factor", "patch_size", "down_block_types", "timestep_conditioning"},
        "text_encoder": {"num_layers", "d_kv", "feed_forward_proj", "vocab_size"},
        "scheduler": {"shift"},
    }[component]
    assert needed <= refused
    assert all(told[f"{key} = {10**9}"] for key in needed - {"scaling_factor", "shift"})


def test_shards_lie_in_their_folder(once: Callable[[str, Damage], str | None]) -> None:
    for shard in ("../../etc/passwd", "/etc/passwd", "a/b.safetensors", "..", 7, None, "x.bin"):
        index = {"weight_map": {"a": shard}}

        def write(file: Path, index: object = index) -> None:
            file.with_name("a.safetensors.index.json").write_text(json.dumps(index))

        told = once(TRANSFORMER, write)
        assert told
        assert "no file of its folder" in told


def test_components_of_other_models_do_not_fit(tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "mixed"))
    shutil.rmtree(folder / "text_encoder")
    pocket = POCKET.sources.text_encoder.root
    assert pocket
    shutil.copytree(pocket / "text_encoder", folder / "text_encoder")
    with pytest.raises(CheckpointCorrupt, match=r"text_encoder does not fit the rest: d_model"):
        look(folder)


def test_command_line_says_one_sentence(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FILMLET_HOME", str(tmp_path / "home"))
    folder = Path(shutil.copytree(tiny, tmp_path / "damaged"))
    damage.HEADERS["deep"](folder / TRANSFORMER)
    out = str(tmp_path / "a.mp4")
    for words in (["generate", "a ball", "-o", out], ["plan"], ["models", "show"]):
        model = [str(folder)] if words[0] == "models" else ["--model", str(folder)]
        status = main.main([*words, *model])
        told = capsys.readouterr()
        if words[0] == "models":
            assert status == 0
            assert f"unusable: {folder / TRANSFORMER}" in told.out
            continue
        assert status == 1
        assert told.err.count("\n") == 1
        assert f"{folder / TRANSFORMER}" in told.err
        assert "[checkpoint_damaged]" in told.err


# LoRAs

Q = "transformer.transformer_blocks.0.attn1.to_q"


def write_lora(path: Path, down: np.ndarray, up: np.ndarray, metadata: object = None) -> Path:
    """One layer, in float32."""
    names = {f"{Q}.lora_A.weight": down, f"{Q}.lora_B.weight": up}
    path.write_bytes(struct.pack("<Q", 2) + b"{}")
    header = {} if metadata is None else {"__metadata__": metadata}
    tensors = tuple(
        (name, "F32", list(a.shape), a.astype(np.float32).tobytes()) for name, a in names.items()
    )
    rewrite(path, header, b"", more=tensors)
    return path


def good_lora(path: Path) -> Path:
    return write_lora(path, np.full((4, 48), 0.01), np.full((48, 4), 0.01))


def test_damaged_lora_is_refused_by_name(tmp_path: Path) -> None:
    for name, damaged in (damage.HEADERS | damage.IN_PLACE).items():
        file = good_lora(tmp_path / f"{abs(hash(name))}.safetensors")
        inspect_lora(Lora(str(file)))
        damaged(file)
        error = error_of(inspect_lora, Lora(str(file)))
        if error is None:
            assert name.startswith("bytes"), name
            continue
        assert error.code in ("checkpoint_damaged", "invalid_loras", "not_offered"), name
        assert file.name in str(error), name


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_lora_of_values_that_are_no_numbers_is_refused_when_it_is_named(
    value: float, tmp_path: Path
) -> None:
    down = np.full((4, 48), 0.01)
    down[3, 47] = value
    file = write_lora(tmp_path / "style.safetensors", down, np.ones((48, 4)))
    with pytest.raises(LoraCorrupt, match=r"style\.safetensors holds values that are not") as error:
        inspect_lora(Lora(str(file)))
    assert (error.value.code, error.value.param) == ("checkpoint_damaged", "loras")


def test_halves_and_eighths_that_are_no_numbers_are_seen(tmp_path: Path) -> None:
    file = tmp_path / "style.safetensors"
    for dtype, wrong, right in (
        ("F16", b"\0\x7e", b"\xff\x7b"), ("BF16", b"\x80\x7f", b"\x7f\x7f"),
        ("F8_E4M3", b"\x7f", b"\x7e"), ("F8_E5M2", b"\x7c", b"\x7b"),
        ("F64", bytes(6) + b"\xf0\x7f", bytes(6) + b"\xef\x7f"),
    ):  # fmt: skip
        for value, is_wrong in ((wrong, True), (right, False)):
            file.write_bytes(struct.pack("<Q", 2) + b"{}")
            tensors = tuple(
                (f"{Q}.lora_{part}.weight", dtype, shape, value * 192)
                for part, shape in (("A", [4, 48]), ("B", [48, 4]))
            )
            rewrite(file, {}, b"", more=tensors)
            if is_wrong:
                with pytest.raises(LoraCorrupt):
                    inspect_lora(Lora(str(file)))
            else:
                inspect_lora(Lora(str(file)))


def test_lora_that_overflows_when_merged_is_told_by_its_file(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_lora(tmp_path / "loud.safetensors", np.full((4, 48), 3e38), np.full((48, 4), 3e38))
    words = ["generate", "a ball", "--model", str(tiny), "--lora", str(file), "--steps", "1"]
    assert (
        main.main([*words, "--size", "64x64", "--frames", "9", "-o", str(tmp_path / "a.mp4")]) == 2
    )
    told = capsys.readouterr().err
    assert "loud.safetensors: merged into transformer_blocks.0.attn1.to_q" in told
    assert not (tmp_path / "a.mp4").exists()


def test_lora_for_another_model_is_refused_before_anything_is_loaded(
    tiny: Path, tmp_path: Path
) -> None:
    import filmlet

    file = write_lora(tmp_path / "other.safetensors", np.ones((4, 64)), np.ones((64, 4)))
    with pytest.raises(FilmletError, match=r"other\.safetensors was made for another model"):
        filmlet.generate("a", model=str(tiny), loras=[str(file)])


def test_odd_alphas_are_refused(tmp_path: Path) -> None:
    for alpha in ("1e999", "NaN", '"7"', "[1]", "true", "1e300", "9" * 400):
        config = {"lora_adapter_metadata": '{"lora_alpha": %s}' % alpha}  # noqa: UP031
        file = write_lora(tmp_path / "a.safetensors", np.ones((4, 48)), np.ones((48, 4)), config)
        with pytest.raises(LoraCorrupt, match=r"a\.safetensors"):
            inspect_lora(Lora(str(file)))


# The Hub's cache


def test_hubs_cache_is_not_left_by_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    refs = tmp_path / "models--owner--name" / "refs"
    (refs.parent / "snapshots").mkdir(parents=True)
    refs.mkdir()
    for commit in (b"../../..", b"/", b"", b"\xff" * 40, b"..\n"):
        (refs / "main").write_bytes(commit)
        assert hub_cache.snapshot("owner/name", "main") is None, commit
    (refs / "main").write_bytes(b"a" * 1000)
    with pytest.raises(CheckpointCorrupt, match="main"):
        hub_cache.snapshot("owner/name", "main")
    (refs / "main").unlink()
    os.mkfifo(refs / "main")
    assert hub_cache.snapshot("owner/name", "main") is None


def test_sizes_are_bounded(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(b'{"a": "' + b"b" * MAX_JSON_BYTES + b'"}')
    with pytest.raises(CheckpointCorrupt, match="more than 16 MB"):
        read_json(file)
    weights = good_lora(tmp_path / "a.safetensors")
    header, data = split_weights(weights)
    join_weights(weights, header | {"__metadata__": {"a": "b" * MAX_JSON_BYTES}}, data)
    with pytest.raises(CheckpointCorrupt, match="its header cannot have"):
        read_header(weights)
