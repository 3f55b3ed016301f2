"""Weights come from the Hub when they are needed, once, whole, and can be stopped."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save_file

from filmlet.core.events import Progress, Stage
from filmlet.engine.configs import check_components
from filmlet.errors import (
    CheckpointCorrupt,
    CheckpointNotFound,
    FilmletError,
    HubAccessDenied,
    HubUnreachable,
)
from filmlet.models import (
    REGISTRY,
    disk_usage,
    download_model,
    download_repository,
    get_card,
    hub_cache,
    local_files,
)
from tests.helpers.fake_hub import COMMIT, Hub, serve_repositories

pytestmark = pytest.mark.server

LTX = "Lightricks/LTX-Video"
CARD = REGISTRY["ltxv-2b-0.9.8-distilled"]
WEIGHTS = "ltxv-2b-0.9.8-distilled.safetensors"
NEEDED = {
    WEIGHTS,
    "ltxv-spatial-upscaler-0.9.8.safetensors",
    "text_encoder/config.json",
    *(f"text_encoder/model-0000{i}-of-00004.safetensors" for i in (1, 2, 3, 4)),
    "text_encoder/model.safetensors.index.json",
    "tokenizer/spiece.model",
    "tokenizer/tokenizer_config.json",
}
FETCH = (
    "from filmlet.models import REGISTRY, download_model\n"
    "list(download_model(REGISTRY['ltxv-2b-0.9.8-distilled']))"
)


@pytest.fixture
def online(
    twin: Path, tiny_guided: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Hub]:
    """A Hub that can be reached, and an empty cache."""
    with serve_repositories({LTX: twin, "acme/tiny": tiny_guided}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
        yield server


def partial() -> list[Path]:
    return list(hub_cache.cache().glob("**/*.incomplete"))


def refusal() -> FilmletError:
    with pytest.raises(FilmletError) as caught:
        list(download_model(CARD))
    assert local_files(CARD) is None
    assert partial() == []
    return caught.value


def test_exactly_the_files_that_are_needed_come_once_and_then_no_request_is_made(
    online: Hub,
) -> None:
    assert local_files(CARD) is None
    told = list(download_model(CARD))
    assert sorted(online.given()) == sorted(NEEDED)
    assert local_files(CARD) is not None
    online.asked.clear()
    assert list(download_model(CARD)) == []
    assert online.asked == []
    assert told[-1].all_done == told[-1].all_size == disk_usage(CARD)
    for now, later in pairwise(told):
        assert later.all_done >= now.all_done
        assert later.done <= later.size


def test_another_model_fetches_only_what_it_does_not_share(online: Hub) -> None:
    list(download_model(CARD))
    online.asked.clear()
    list(download_model(REGISTRY["ltxv-13b-0.9.8-distilled"]))
    assert online.given() == ["ltxv-13b-0.9.8-distilled.safetensors"]


@pytest.mark.usefixtures("online")
def test_what_another_tool_has_fetched_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "from huggingface_hub import snapshot_download as get; "
    words += (
        f"get({LTX!r}, revision={COMMIT!r}, allow_patterns=['*.json', '*.model', '*.safetensors'])"
    )
    subprocess.run([sys.executable, "-c", words], check=True, capture_output=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert local_files(CARD) is not None
    assert list(download_model(CARD)) == []


def test_transfer_that_breaks_goes_on_from_where_it_was(online: Hub) -> None:
    online.faults.dropped[WEIGHTS] = 2
    list(download_model(CARD))
    assert online.given().count(WEIGHTS) == 3
    assert local_files(CARD) is not None


def test_wrong_bytes_are_noticed_deleted_and_told(online: Hub) -> None:
    online.faults.wrong.add(WEIGHTS)
    error = refusal()
    assert isinstance(error, CheckpointCorrupt)
    assert WEIGHTS in str(error)
    online.faults.wrong.clear()
    online.asked.clear()
    list(download_model(CARD))
    assert WEIGHTS in online.given()
    assert "tokenizer/spiece.model" not in online.given(), "what was whole is kept"


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (401, "GatedRepo", "accept its licence"),
        (403, "GatedRepo", "accept its licence"),
        (401, "RepoNotFound", "HF_TOKEN"),
        (404, "RepoNotFound", "HF_TOKEN"),
        (403, "", "HF_TOKEN"),
    ],
)
def test_refusal_says_what_to_do(online: Hub, status: int, code: str, says: str) -> None:
    online.faults.status[LTX] = status, code
    error = refusal()
    assert isinstance(error, HubAccessDenied)
    assert says in str(error)
    assert str(error).count("\n") == 0


def test_token_opens_what_is_gated(online: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    online.faults.token = "hf_of_a_test"
    assert isinstance(refusal(), HubAccessDenied)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    list(download_model(CARD))
    assert local_files(CARD) is not None


def test_missing_revision_or_file_is_named(online: Hub, tmp_path: Path) -> None:
    online.faults.status[LTX] = 404, "RevisionNotFound"
    assert isinstance(refusal(), CheckpointNotFound)
    online.faults.status.clear()
    online.repositories[LTX] = tmp_path
    error = refusal()
    assert isinstance(error, CheckpointNotFound)
    assert WEIGHTS in str(error)


@pytest.mark.usefixtures("online")
def test_no_network_and_offline_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    error = refusal()
    assert isinstance(error, HubUnreachable)
    assert "http://127.0.0.1:9" in str(error)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    error = refusal()
    assert isinstance(error, HubUnreachable)
    assert "HF_HUB_OFFLINE" in str(error)


def test_disk_without_room_is_told_before_anything_is_fetched(
    online: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from filmlet.models import download_process, hub_cache

    monkeypatch.setattr(hub_cache, "MIN_FREE_BYTES", 10**18)
    sources = list(dict.fromkeys(source for _, source in CARD.sources.present()))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", online.url)
    with pytest.raises(FilmletError, match=r"\d GB left; make room"):
        download_process.download_files(sources, 10**18)
    assert online.given() == []


def test_closing_the_download_stops_it_and_leaves_nothing_half(online: Hub) -> None:
    online.faults.slow[WEIGHTS] = 0.2
    events = download_model(CARD)
    for so_far in events:
        if so_far.file == WEIGHTS:
            break
    started = time.monotonic()
    events.close()
    assert time.monotonic() - started < 1.0
    assert partial() == []
    assert local_files(CARD) is None


def test_killed_download_ends_and_its_rest_is_swept_by_the_next(online: Hub) -> None:
    online.faults.slow[WEIGHTS] = 0.2
    parent = subprocess.Popen([sys.executable, "-c", FETCH])
    while WEIGHTS not in online.given() or not partial():
        time.sleep(0.05)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    for lock in (hub_cache.cache() / ".locks").rglob("*.lock"):
        with lock.open() as held:
            fcntl.flock(held, fcntl.LOCK_EX)  # waits until nobody writes
    assert len(partial()) == 1, "a killed process cannot tidy up"
    online.faults.slow.clear()
    list(download_model(CARD))
    assert partial() == []
    assert local_files(CARD) is not None


def test_two_at_once_fetch_each_file_once(online: Hub) -> None:
    threads = [threading.Thread(target=lambda: list(download_model(CARD))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert local_files(CARD) is not None
    assert online.given().count(WEIGHTS) == 1


@pytest.mark.usefixtures("online")
def test_repository_of_ones_own_is_fetched_by_its_name() -> None:
    with pytest.raises(CheckpointNotFound, match="acme/tiny is not on this machine"):
        get_card("acme/tiny")
    list(download_repository("acme/tiny"))
    card = get_card("acme/tiny")
    assert card.name == "acme/tiny"
    assert card.revision == COMMIT[:12]
    assert local_files(card) is not None


def test_file_that_two_models_use_stays_until_both_are_gone(online: Hub, twin: Path) -> None:
    from filmlet.models import delete_model

    other = REGISTRY["ltxv-13b-0.9.8-distilled"]
    list(download_model(CARD))
    list(download_model(other))
    whole = disk_usage(other)
    assert delete_model(CARD) == (twin / WEIGHTS).stat().st_size
    assert online.given().count(WEIGHTS) == 1
    assert local_files(CARD) is None
    assert disk_usage(other) == whole
    assert delete_model(other) == whole
    assert list(hub_cache.cache().glob("models--*/blobs/*")) == []


@pytest.mark.usefixtures("online")
def test_bundled_model_is_not_dropped() -> None:
    from filmlet.models import delete_model

    assert delete_model(REGISTRY["pocket"]) == 0
    assert local_files(REGISTRY["pocket"]) is not None


def test_model_of_the_same_files_goes_with_the_one_that_is_deleted(
    online: Hub, ltx2_repositories: dict[str, Path]
) -> None:
    from filmlet.models import delete_model

    online.repositories.update(ltx2_repositories)
    card, other = (REGISTRY[f"ltx-2.3-22b-dev{end}"] for end in ("", "-distilled-lora"))
    list(download_model(card))
    assert local_files(other)
    assert delete_model(card) > 0
    assert not local_files(other)


def cli(*words: str) -> "subprocess.CompletedProcess[str]":
    run = "import sys; from filmlet.cli.main import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", run, *words], capture_output=True, text=True, check=False
    )


@pytest.mark.usefixtures("online")
def test_command_line_pulls_lists_shows_and_prunes() -> None:
    done = cli("models", "pull", CARD.name, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["bytes_on_disk"] == disk_usage(CARD)
    listed = {row["name"]: row for row in json.loads(cli("models", "list", "--json").stdout)}
    assert listed.keys() == REGISTRY.keys()
    assert listed[CARD.name]["is_here"]
    assert not listed["ltxv-13b-0.9.8-distilled"]["is_here"]
    assert CARD.name in cli("models").stdout
    shown = cli("models", "show", CARD.name).stdout
    assert "LTX-Video Open Weights License" in shown
    assert WEIGHTS in shown
    freed = cli("models", "prune", CARD.name, "--json")
    assert json.loads(freed.stdout)["bytes_freed"] > 4_000_000
    assert local_files(CARD) is None
    refused = cli("models", "pull", "ltxv-3b")
    assert (refused.returncode, "did you mean" in refused.stderr) == (2, True)


def test_pocket_shows_the_words_that_it_knows() -> None:
    told, words = cli("models", "show", "pocket").stdout.split("vocabulary:")
    assert "bundled" in told
    assert {"sunset", "kitten", "bouncing"} <= set(words.split())


def test_lora_of_the_hub_is_fetched_by_the_first_clip_that_wears_it(
    online: Hub, tmp_path: Path, tiny: Path
) -> None:
    import filmlet
    from tests.engine.torch.test_lora import diffusers, matrices, save

    repo = tmp_path / "style"
    repo.mkdir()
    save(repo / "style.safetensors", diffusers(matrices()))
    (repo / "preview.png").write_bytes(b"not needed")
    online.repositories["acme/style"] = repo
    settings = {"model": str(tiny), "size": "64x64", "frames": 9, "steps": 2, "seed": 1}
    stages = [
        event.stage
        for event in filmlet.stream("a red ball", loras=["acme/style:0.5"], **settings)
        if isinstance(event, Progress)
    ]
    assert stages[0] == Stage.FETCH
    assert online.given() == ["style.safetensors"]
    online.asked.clear()
    clip = filmlet.generate("a red ball", loras=["acme/style:0.5"], **settings)
    assert clip.effective.loras[0].file == "acme/style/style.safetensors"
    assert online.asked == []
    with pytest.raises(HubAccessDenied, match="HF_TOKEN"):
        filmlet.generate("a red ball", loras=["acme/none"], **settings)


def test_space_preloads_exactly_these_files_at_this_commit(online: Hub) -> None:
    from filmlet.spaces.preload import preload

    words = "from filmlet.models import REGISTRY; from filmlet.spaces.preload import preload as p; "
    words += f"print(p(REGISTRY[{CARD.name!r}])[0])"
    told = subprocess.run(
        [sys.executable, "-c", words], check=True, capture_output=True, text=True
    ).stdout.split()
    assert (told[0], set(told[1].split(",")), told[2]) == (LTX, NEEDED, COMMIT)
    list(download_model(CARD))
    online.asked.clear()
    assert set(preload(CARD)[0].split()[1].split(",")) == NEEDED
    assert online.asked == []


@pytest.mark.parametrize("name", [WEIGHTS, "mine.safetensors"])
def test_file_of_ones_own_fetches_only_what_it_lacks(
    online: Hub, twin: Path, tmp_path: Path, name: str
) -> None:
    file = tmp_path / name
    file.write_bytes((twin / WEIGHTS).read_bytes())
    card = get_card(str(file))
    assert local_files(card) is None
    list(download_model(card))
    assert WEIGHTS not in online.given()
    assert {"tokenizer/spiece.model", "text_encoder/config.json"} <= {*online.given()}
    files = local_files(card)
    assert files
    assert files.transformer == files.vae == file


def test_file_of_ones_own_without_the_hub_is_a_sentence(
    twin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    file = tmp_path / WEIGHTS
    file.write_bytes((twin / WEIGHTS).read_bytes())
    with pytest.raises(HubUnreachable):
        list(download_model(get_card(str(file))))


@pytest.mark.parametrize("tensor", ["model.diffusion_model.proj_in.weight", "a.weight"])
@pytest.mark.parametrize("name", [WEIGHTS, "mine.safetensors"])
def test_file_that_is_no_checkpoint_is_refused_before_anything_is_fetched(
    online: Hub, tmp_path: Path, name: str, tensor: str
) -> None:
    save_file({tensor: np.zeros(1, np.float32)}, tmp_path / name)
    with pytest.raises(CheckpointCorrupt, match="no checkpoint"):
        get_card(str(tmp_path / name))
    assert online.asked == []


@pytest.fixture(scope="module")
def ltx2_repositories(
    ltx2_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    from tests.helpers.tiny_ltx2_files import write_repositories

    places = write_repositories(ltx2_folders, tmp_path_factory.mktemp("repositories"))
    for place in places.values():
        (place / "README.md").write_text("not needed")
        (place / "another.safetensors").write_bytes(b"another model")
    return places


@pytest.mark.parametrize("name", [n for n, card in REGISTRY.items() if card.version])
def test_of_ltx2_only_the_files_of_its_row_come(
    name: str, online: Hub, ltx2_repositories: dict[str, Path]
) -> None:
    card = REGISTRY[name]
    online.repositories.update(ltx2_repositories)
    list(download_model(card))
    sources = {source for _, source in card.sources.present()}
    expected = {source.path for source in sources if source.path != "tokenizer"}
    if card.version != "2.5":
        expected |= {"tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"}
    assert sorted(online.given()) == sorted(expected)
    files = local_files(card)
    assert files is not None
    check_components(files)


def test_gated_files_are_refused_with_the_way_to_get_them(
    online: Hub, ltx2_repositories: dict[str, Path]
) -> None:
    online.repositories.update(ltx2_repositories)
    card = REGISTRY["ltx-2.5-22b-distilled"]
    for status in (401, 403):
        online.faults.status["Lightricks/LTX-2.5"] = status, "GatedRepo"
        with pytest.raises(HubAccessDenied) as caught:
            list(download_model(card))
        said = str(caught.value)
        assert "accept its licence at" in said
        assert "/Lightricks/LTX-2.5" in said
        assert "HF_TOKEN" in said


@pytest.mark.parametrize("has_upsampler", [True, False])
def test_repository_of_ltx2_comes_with_all_that_it_has_of_it(
    has_upsampler: bool, online: Hub, ltx2_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(ltx2_folders["2.3"], tmp_path / "own"))
    (folder / "prompt_enhancer").mkdir()
    (folder / "prompt_enhancer" / "model.safetensors").write_bytes(b"not needed")
    if not has_upsampler:
        shutil.rmtree(folder / "latent_upsampler")
    online.repositories["acme/ltx2"] = folder
    list(download_repository("acme/ltx2"))
    card = get_card("acme/ltx2")
    assert (card.version, card.refine_schedule is not None) == ("2.3", has_upsampler)
    files = local_files(card)
    assert files is not None
    check_components(files)
    assert not any("enhancer" in path for path in online.given())
